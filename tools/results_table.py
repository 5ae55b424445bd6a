"""The tables of results in README.md and docs/results.md, from the presets' cards and the published numbers.

python tools/results_table.py --write
"""

import pathlib
import re
import sys

from absl import flags

from drcn_keras import card, commands
from drcn_keras.commands import FLAGS
from drcn_keras.errors import UserError
from drcn_keras.files import write_atomically
from drcn_keras.presets import presets
from drcn_keras.published import published

ROOT = pathlib.Path(__file__).parents[1]
SETS = ("Set5", "Set14", "B100")
SCALES = (2, 3, 4)
BEGIN, END = "<!-- tools/results_table.py -->\n", "<!-- end -->\n"


def measured(cards, dataset, scale, kind="results", row=""):
    """(PSNR, SSIM) of the one card that has them, or (None, None); `row` "bicubic_" for what stands beside them."""
    found = [
        (result[f"{row}psnr"], result[f"{row}ssim"])
        for made in cards
        for result in made.get(kind, [])
        if (result["dataset"], result["scale"]) == (dataset, scale)
    ]
    return found[0] if found else (None, None)


def families(names):
    """Our columns, from the smallest network to the largest: their titles, and the cards that fill each.

    Networks of one scale share a column, whose title is their name without the scale; one of several has its own.
    """
    cards = {name: card.read(name) for name in names}
    columns = {}
    for name, made in sorted(cards.items(), key=lambda item: item[1]["parameters"]):
        columns.setdefault(re.sub(r"-x\d$", "", name), []).append(made)
    return columns


def short():
    """README's: PSNR on Y in dB, the best of ours in bold."""
    ours = families(presets())
    lines = [_line(["", "bicubic", "SRCNN, published", *ours, "DRCN, published"]), _rule(len(ours) + 4)]
    for dataset in SETS:
        for scale in SCALES:
            values = [measured(cards, dataset, scale)[0] for cards in ours.values()]
            best = max(round(value, 2) for value in values if value is not None)
            bold = [_marked(value, best) for value in values]
            bicubic = measured(ours["mobile"], dataset, scale, row="bicubic_")[0]
            srcnn, drcn = (_decibels(published(dataset, scale, method)) for method in ("SRCNN", "DRCN"))
            lines.append(_line([f"{dataset} x{scale}", f"{bicubic:.2f}", srcnn, *bold, drcn]))
    return "".join(lines)


def full():
    """docs/results.md's: PSNR / SSIM of every column, those turned eight ways apart."""
    ours = families(presets())
    columns = {title: (cards, "results") for title, cards in ours.items()}
    columns |= {f"{title}+": (cards, "self_ensemble") for title, cards in ours.items()}
    lines = [_line(["", "bicubic", *columns, "DRCN, published"]), _rule(len(columns) + 3)]
    for dataset in SETS:
        for scale in SCALES:
            values = [measured(ours["mobile"], dataset, scale, row="bicubic_")]
            values += [measured(cards, dataset, scale, kind) for cards, kind in columns.values()]
            values.append(published(dataset, scale, "DRCN"))
            lines.append(_line([f"{dataset} x{scale}", *map(_pair, values)]))
    return "".join(lines)


def _marked(value, best):
    if value is None:
        return ""
    return f"**{value:.2f}**" if round(value, 2) == best else f"{value:.2f}"


def _decibels(value):
    return "" if value is None else f"{value[0]:.2f}"


def _pair(value):
    return "" if value[0] is None else f"{value[0]:.2f} / {value[1]:.4f}"


def _line(cells):
    return f"| {' | '.join(cells)} |\n"


def _rule(count):
    return _line(["---"] * count)


def replaced(text, table, path):
    """A page's text with the table between the marks renewed. Raises UserError where the marks are not there."""
    before, mark, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise UserError(f"{path} lacks the lines {BEGIN.strip()} and {END.strip()}, between which the table stands.")
    return f"{before}{mark}\n{table}\n{end}{after}"


def define_flags():
    flags.DEFINE_boolean("write", False, "put the tables into README.md and docs/results.md; without it print them")


def main(argv):
    commands.refuse_arguments(argv)
    for path, table in ((ROOT / "README.md", short()), (ROOT / "docs" / "results.md", full())):
        if not FLAGS.write:
            sys.stdout.write(f"{path.name}\n\n{table}\n")
            continue
        text = replaced(path.read_text(), table, path.name)
        write_atomically(str(path), lambda file, text=text: file.write(text.encode()))


if __name__ == "__main__":
    commands.run(main, define_flags)
