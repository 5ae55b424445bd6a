"""The drawings of the studies and of the report: one look, readable on a phone's width and in print."""

import io
import textwrap
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullLocator

OURS, OTHER = "#0b62a4", "#b4531a"

_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "font.size": 9,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


def recursions(rows: list[dict], caption: str) -> Figure:
    """PSNR against D, a panel per data set.

    Args:
        rows: list of dicts with "dataset", "scale", "recursions", "psnr" and "bicubic_psnr" in dB.
        caption: what stands under the panels.

    Returns:
        A matplotlib Figure.
    """
    groups = {}
    for row in rows:
        groups.setdefault((row["dataset"], row["scale"]), []).append(row)

    def draw(panel, key):
        group = groups[key]
        depths, psnr = [row["recursions"] for row in group], [row["psnr"] for row in group]
        panel.plot(depths, psnr, "o-", color=OURS)
        for depth, value in zip(depths, psnr, strict=True):
            panel.annotate(f"{value:.2f}", (depth, value), (0, 7), textcoords="offset points", ha="center", color=OURS)
        panel.margins(x=0.08, y=0.25)
        panel.set_xticks(depths)
        panel.set(xlabel="recursions D", ylabel="PSNR on Y, dB")
        panel.set_title(f"{key[0]} x{key[1]} (bicubic {group[0]['bicubic_psnr']:.2f} dB)")

    return _panels(draw, list(groups), caption)


def ensemble(results: list[dict], caption: str) -> Figure:
    """The PSNR of each single recursion, and the ensemble's as a line; a panel per model and data set.

    Args:
        results: list of dicts with "model", "dataset", "scale", "psnr" and "recursion_psnr" (D numbers), in dB.
        caption: what stands under the panels.

    Returns:
        A matplotlib Figure.
    """

    def draw(panel, result):
        single, together = result["recursion_psnr"], result["psnr"]
        depths = range(1, len(single) + 1)
        panel.plot(depths, single, "o-", color=OURS, label="single recursion $y_d$")
        panel.axhline(together, color=OTHER, linestyle="--", label="ensemble")
        panel.set_xticks(depths)
        panel.margins(y=0.15)
        panel.set(xlabel="recursion d", ylabel="PSNR on Y, dB")
        panel.legend()
        against = f"{together - max(single):+.2f} dB against the best $y_d$"
        panel.set_title(f"{result['model']}, {result['dataset']} x{result['scale']}: {together:.2f} dB, {against}")

    return _panels(draw, results, caption)


def weights(learned: list[dict], caption: str) -> Figure:
    """The ensemble's weights as bars and their start, 1/D, as a line; a panel per model.

    Args:
        learned: list of dicts with "model", "scales" and "weights" (D numbers).
        caption: what stands under the panels.

    Returns:
        A matplotlib Figure.
    """

    def draw(panel, entry):
        values = entry["weights"]
        depths = range(1, len(values) + 1)
        panel.axhline(1.0 / len(values), color=OTHER, linestyle="--", label="start, 1/D", zorder=3)
        many = len(values) > 9
        labels = {"fontsize": 7, "rotation": 90 if many else 0, "zorder": 4}
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # Keeps the line off the numbers.
        # A recursion that is not in use has no bar, and needs no number.
        bars = panel.bar(depths, values, color=OURS)
        panel.bar_label(bars, [f"{value:.3f}" if value else "" for value in values], padding=3, bbox=paper, **labels)
        panel.set_xticks(depths)
        panel.margins(y=0.5 if many else 0.3)
        panel.set(xlabel="recursion d", ylabel="weight $w_d$")
        panel.legend(loc="upper left")
        panel.set_title(f"{entry['model']}, {entry['scales']}: the weights' sum is {sum(values):.3f}")

    return _panels(draw, learned, caption)


def learning_curve(title: str, rows: list[dict]) -> Figure:
    """Validation PSNR and training loss against the epoch.

    Args:
        title: text.
        rows: the lines of a run's log.csv as dicts of text: "epoch", "loss" and, where the epoch was validated,
            "val_psnr" and "val_bicubic" in dB.

    Returns:
        A matplotlib Figure.
    """

    def draw(panel, kind):
        if kind == "PSNR":
            validated = [row for row in rows if row["val_psnr"]]
            epochs, psnr = [int(row["epoch"]) for row in validated], [float(row["val_psnr"]) for row in validated]
            panel.plot(epochs, psnr, ".-", color=OURS, label="DRCN")
            panel.axhline(float(validated[-1]["val_bicubic"]), color=OTHER, linestyle="--", label="bicubic")
            panel.set(ylabel="validation PSNR, dB", title=f"{title}: best {max(psnr):.2f} dB on its validation images")
            panel.legend(loc="center right")
        else:
            panel.plot([int(row["epoch"]) for row in rows], [float(row["loss"]) for row in rows], color=OURS)
            panel.set(xlabel="epoch", ylabel="training loss", yscale="log")
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter(FormatStrFormatter("%g"))
            panel.yaxis.set_minor_locator(NullLocator())
        panel.set_xlim(0, int(rows[-1]["epoch"]) * 1.03)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))

    validated = any(row["val_psnr"] for row in rows)
    return _panels(draw, ["PSNR", "loss"] if validated else ["loss"], "" if validated else title)


def png(figure: Figure, dpi: int = 180) -> bytes:
    """A figure as the bytes of a PNG file."""
    packed = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(packed, format="png", dpi=dpi)
    return packed.getvalue()


def _panels(draw, items, caption):
    """A figure with a panel per item, one under the other, each drawn by `draw(panel, item)`, and a caption."""
    lines = textwrap.wrap(caption, 84)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.4, 2.6 * len(items) + 0.17 * len(lines) + 0.1), layout="constrained")
        FigureCanvasAgg(figure)
        for panel, item in zip(figure.subplots(len(items), 1, squeeze=False)[:, 0], items, strict=True):
            draw(panel, item)
        if lines:
            figure.supxlabel("\n".join(lines), fontsize=8, x=0.015, ha="left", color="#444444")
    return figure
