"""Averages the weights of networks: `python -m drcn_keras.average --model=A,B,... --train_dir=... --output=...`.

Networks that were trained from one start stay near one another, and there the mean of their weights restores better
than each of them. Which of them it is taken of, held-out photographs choose: the "greedy soup" of Wortsman et al.
(arXiv 2203.05482, algorithm 1), but that a network may be taken more than once.
"""

import math
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from absl import flags
from tqdm import tqdm

from drcn_keras import commands
from drcn_keras.commands import FLAGS
from drcn_keras.errors import ArgumentError
from drcn_keras.files import write_model
from drcn_keras.inputs import loaded

if TYPE_CHECKING:
    from drcn_keras.data import Pair
    from drcn_keras.model import DRCN

# Ours: a smaller gain on a few photographs is chance.
LEAST_GAIN = 1e-4
# Ours: one more network among so many moves the mean by next to nothing.
MOST_SHARES = 16
# Ours: what anyone may mean, and what float64 adds up without rounding.
MOST_SAID = 1_000_000


def mean_weights(weights: Sequence[Sequence[np.ndarray]], shares: Sequence[int]) -> list[np.ndarray]:
    """The mean of networks' weights, each counted as often as its share says: float32, as `Model.set_weights` takes.

    Args:
        weights: of each network, as `Model.get_weights` gives them.
        shares: int >= 0 for each network, not all 0.
    """
    return [
        np.average(np.asarray(same, np.float64), axis=0, weights=shares).astype(np.float32)
        for same in zip(*weights, strict=True)
    ]


def best_shares(count: int, measured: Callable[[tuple[int, ...]], float]) -> tuple[tuple[int, ...], float]:
    """How often each of `count` networks belongs into the mean.

    It begins with the one that is best by itself. Whichever gains most when it is taken once more joins it, until none
    gains 0.0001 dB or sixteen are taken.

    Args:
        count: of networks.
        measured: function of shares, ints of shape (count,), that gives the PSNR of that mean in dB.

    Returns:
        (shares, the PSNR of their mean).
    """
    shares, best = (0,) * count, -np.inf
    while sum(shares) < MOST_SHARES:
        found = [measured(tried) for tried in _one_more(shares)]
        if max(found) < best + LEAST_GAIN:
            break
        best, shares = max(found), _one_more(shares)[int(np.argmax(found))]
    return shares, best


def _one_more(shares):
    """The shares with one more for the first network, for the second and so on."""
    return [tuple(share + (place == index) for place, share in enumerate(shares)) for index in range(len(shares))]


def average(
    models: Sequence["DRCN"], pairs: list["Pair"], shares: Sequence[int] | None = None
) -> tuple["DRCN", tuple[int, ...], dict]:
    """The mean of networks, each taken as often as held-out images favour or as is said.

    Args:
        models: at least two `DRCN` of the same scales, filters, recursions and channels. Where their thin ensembles
            draw on different recursions, the mean's draws on all of those.
        pairs: the held-out images, as of `validation.held_out_pairs`.
        shares: int >= 0 for each network, how often it counts; None: the images choose.

    Returns:
        (a new `DRCN` in float32, the share of each model, what `validation.Validation` measures of the new one).

    Raises:
        UserError: there are fewer than two, they differ in one of these, the shares do not fit, or no image can be
            measured.
    """
    from drcn_keras.validation import Validation

    _check(models, shares)
    mean = models[0].copy(name="drcn", dtype="float32")
    weights = [model.get_weights() for model in models]
    validation = Validation(pairs)
    validation.set_model(mean)
    logs: dict[tuple[int, ...], dict] = {}

    with tqdm(unit="mean", disable=None) as progress:

        def measured(tried):
            # Twice one network is that network.
            least = tuple(share // math.gcd(*tried) for share in tried)
            if least not in logs:
                mean.set_weights(mean_weights(weights, least))
                logs[least] = validation.measured()
                progress.update()
            return logs[least]

        if shares is None:
            shares, _ = best_shares(len(models), lambda tried: measured(tried)["val_psnr"])
        found = measured(shares)
    mean.set_weights(mean_weights(weights, shares))
    return mean, tuple(shares), found


def _check(models, shares):
    if len(models) < 2:
        raise ArgumentError(f"`model` must name at least two networks to average; received {len(models)}.")
    first, *others = models
    for name in ("scales", "filters", "recursions", "channels"):
        for other in others:
            one, another = getattr(first, name), getattr(other, name)
            if one != another:
                raise ArgumentError(f"`model`: all must have the same {name}; received {one} and {another}.")
    if shares is None:
        return
    if len(shares) != len(models) or not any(shares) or not all(0 <= share <= MOST_SAID for share in shares):
        raise ArgumentError(
            f"`shares` must be {len(models)} whole numbers, one for each network, from 0 to {MOST_SAID:,} and not "
            f"all 0; received {', '.join(map(str, shares))}."
        )


def define_flags() -> None:
    flags.DEFINE_list("model", [], "the networks, at least two: presets such as mobile-x2, or .keras files")
    flags.DEFINE_list("shares", None, "how often each of them counts, such as 2,1; without it the photographs choose")
    commands.require("model")
    commands.define_folders("train_dir", "the folders of photographs that they were trained on")
    flags.DEFINE_integer("holdout", 8, "photographs of train_dir that choose: those that training holds out", 1)
    commands.define_folders("val_dir", "folders of photographs that choose, in place of those of train_dir")
    commands.define_output("the .keras file to write; its card stands beside it")


def main(argv: list[str]) -> None:
    from drcn_keras import card
    from drcn_keras.data import list_folders, split_holdout

    commands.refuse_arguments(argv)
    if not (FLAGS.train_dir or FLAGS.val_dir):
        raise ArgumentError("`train_dir` or `val_dir` is required: its photographs choose.")
    output = commands.checked_output(".keras", ".json")
    given = commands.whole_numbers("shares", 0) if FLAGS.shares is not None else None
    folders = FLAGS.val_dir or FLAGS.train_dir
    paths = list_folders(folders)
    if not FLAGS.val_dir:
        _, paths = split_holdout(paths, FLAGS.holdout)
    # Not before: Keras takes seconds to load, and what is wrong above is told at once.
    from drcn_keras.validation import held_out_pairs

    models = [loaded(name) for name in FLAGS.model]
    pairs = held_out_pairs(paths, models[0].scales, models[0].channels)
    mean, shares, logs = average(models, pairs, given)
    taken = list(zip(FLAGS.model, shares, strict=True))
    sets, count = [os.path.basename(os.path.abspath(folder)) for folder in folders], len({pair.path for pair in pairs})
    made = card.of_average(mean, logs, {"val_sets": sets, "val_images": count}, taken)
    write_model(output, mean)
    card.write(output, made)
    told = ", ".join(f"{share} x {name}" for name, share in taken if share)
    print(f"{output}: {told}; {logs['val_psnr']:.4f} dB on {count} held-out images")


def run() -> None:
    """The command `drcn-average`."""
    commands.run(main, define_flags)


if __name__ == "__main__":
    run()
