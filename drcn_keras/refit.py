"""Chooses the recursions of a thin ensemble: `python -m drcn_keras.refit --model=... --train_dir=... --output=...`.

The ensemble is the paper's, y^ = sum_d w_d * y_d (equation 7 of arXiv 1511.04491), and linear in w: the w that
restore training images best are a least-squares problem, and so is the best w of each subset of the recursions. All
subsets of the size that is asked for are tried. The others' w become exactly 0, which spares their reconstruction.
"""

import itertools
import math
import os
from collections.abc import Callable
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
    from drcn_keras.model import DRCN

# Ours: all subsets of 9 or 16 recursions are solved in seconds; beyond, the command would seem to hang.
MOST_SUBSETS = 200_000


def statistics(pairs: list, network: Callable, tile: int, halo: int) -> list[tuple]:
    """What least squares need of each pair, without a border of `scale` pixels, as the field measures.

    Args:
        pairs: list of `data.Pair`.
        network: `inference.recursions_model` behind `tiling.restoring`.
        tile, halo: pixels, as for `tiling.tiles`.

    Returns:
        list of (gram, moment, energy, pixels): float64 (D, D) sums of y_d * y_e, (D,) of y_d * hr, the sum of hr^2, and
        how many pixels were summed over.
    """
    from drcn_keras.image import shave
    from drcn_keras.tiling import recursions_of

    sums = []
    for pair in tqdm(pairs, unit="image", disable=None):
        recursions = recursions_of(network, pair.ilr, tile, halo)
        rows = np.stack([shave(image, pair.scale).ravel() for image in recursions]).astype(np.float64)
        hr = shave(pair.hr, pair.scale).ravel().astype(np.float64)
        sums.append((rows @ rows.T, rows @ hr, float(hr @ hr), hr.size))
    return sums


def ensemble_psnr(sums: list[tuple], weights: np.ndarray) -> float:
    """Mean PSNR in dB of the ensemble with these weights over images, from their `statistics`: peak 1, not rounded.

    An image that is restored as good as exactly, a flat one, counts 100 dB: differences of sums tell no more.
    """

    def decibels(gram, moment, energy, pixels):
        error = (energy - 2 * weights @ moment + weights @ gram @ weights) / pixels
        return -10 * np.log10(max(error, 1e-10))

    return float(np.mean([decibels(*entry) for entry in sums]))


def best_subset(sums: list[tuple], outputs: int, to_the_last: bool = False) -> np.ndarray:
    """The weights, all but `outputs` of them exactly 0, that restore the images with the least squared error.

    Args:
        sums: of `statistics`.
        outputs: how many recursions the ensemble may draw on, 1 to D.
        to_the_last: leaves out the subsets without the last recursion.

    Returns:
        float64 (D,).

    Raises:
        ValueError: `outputs` is not in that range, or there are too many subsets to try.
    """
    gram, moment = sum(entry[0] for entry in sums), sum(entry[1] for entry in sums)
    count = len(moment)
    if not 1 <= outputs <= count:
        raise ArgumentError(f"`outputs` must be from 1 to {count}, the model's recursions; received {outputs}.")
    if math.comb(count, outputs) > MOST_SUBSETS:
        raise ArgumentError(
            f"`outputs`: {outputs} of {count} recursions are {math.comb(count, outputs):,} subsets; expected at most "
            f"{MOST_SUBSETS:,}."
        )
    subsets = np.array(list(itertools.combinations(range(count), outputs)))
    if to_the_last:
        subsets = subsets[subsets[:, -1] == count - 1]
    # Pseudo-inverse: recursions that are one and the same, as at the start of training, have no single best share.
    inverses = np.linalg.pinv(gram[subsets[:, :, None], subsets[:, None, :]], rcond=1e-12, hermitian=True)
    solved = np.einsum("sij,sj->si", inverses, moment[subsets])
    gains = np.einsum("sk,sk->s", solved, moment[subsets])
    best = np.argmax(gains)
    weights = np.zeros(count)
    weights[subsets[best]] = solved[best]
    return weights


def refitted(model: "DRCN", weights: np.ndarray) -> "DRCN":
    """A copy of a `DRCN` with other ensemble weights, float (D,)."""
    twin = model.copy(name="drcn")
    twin.ensemble_weights.assign(weights)
    return twin


def refit(model: "DRCN", paths: list[str], outputs: int, holdout: int = 8) -> tuple["DRCN", dict]:
    """A DRCN with a thin ensemble, fitted to photographs that are degraded for each of the model's scales.

    Args:
        model: a `DRCN`.
        paths: training photographs; `holdout` of them, evenly spread, only tell what was gained or lost.
        outputs: recursions that the new ensemble draws on, 1 to D.
        holdout: photographs.

    Returns:
        (the new `DRCN`, a dict for its card: "outputs", the recursions d; "train_images", "val_images"; and mean PSNR
        in dB on the held-out images, not rounded to 8 bit: "val_psnr_before", "val_psnr", and "val_psnr_all" of all D
        recursions refitted).

    Raises:
        UserError: too few images, or too many outputs.
    """
    from drcn_keras.data import load_pairs, split_holdout
    from drcn_keras.graphs import frozen
    from drcn_keras.inference import recursions_model, used_recursions
    from drcn_keras.tiling import default_tile, restoring

    if not 1 <= outputs <= model.recursions:
        raise ArgumentError(
            f"`outputs` must be from 1 to {model.recursions}, the model's recursions; received {outputs}."
        )
    network, tile = restoring(frozen(recursions_model(model))), default_tile(model, 8)
    fitted, held = (
        statistics(load_pairs(some, model.scales, model.channels, min_side=32), network, tile, model.halo)
        for some in split_holdout(paths, holdout)
    )
    before = np.asarray(model.get_layer("ensemble").get_weights()[0], np.float64)
    chosen = refitted(model, best_subset(fitted, outputs))
    after = np.asarray(chosen.get_layer("ensemble").get_weights()[0], np.float64)
    return chosen, {
        "outputs": used_recursions(chosen),
        "train_images": len(paths) - holdout,
        "val_images": holdout,
        "val_psnr_before": round(ensemble_psnr(held, before), 4),
        "val_psnr": round(ensemble_psnr(held, after), 4),
        "val_psnr_all": round(ensemble_psnr(held, best_subset(fitted, model.recursions)), 4),
    }


def define_flags() -> None:
    flags.DEFINE_string("model", None, "a trained DRCN: a preset such as mobile-x2, or a .keras file")
    commands.define_folders("train_dir", "folders of training photographs")
    commands.define_output("the .keras file to write; its card stands beside it")
    flags.DEFINE_integer("outputs", 4, "recursions that the new ensemble draws on", lower_bound=1)
    flags.DEFINE_integer("holdout", 8, "training photographs that only tell what was gained or lost", lower_bound=1)
    commands.define_folders("data_dir", "folders of benchmark images to measure the new model on, for its card")
    commands.require("model", "train_dir")


def main(argv: list[str]) -> None:
    from drcn_keras import card
    from drcn_keras.data import list_folders
    from drcn_keras.evaluation import evaluate

    commands.refuse_arguments(argv)
    output = commands.checked_output(".keras", ".json")
    paths = list_folders(FLAGS.train_dir)
    made = {key: value for key, value in card.read(FLAGS.model).items() if key != "results"}
    model = loaded(FLAGS.model)
    new, found = refit(model, paths, FLAGS.outputs, FLAGS.holdout)
    found["train_sets"] = [os.path.basename(os.path.abspath(folder)) for folder in FLAGS.train_dir]
    made["refit"] = found
    if FLAGS.data_dir:
        made["results"] = card.results_of(evaluate(new, FLAGS.data_dir, progress=True)["results"])
    write_model(output, new)
    card.write(output, made)
    print(
        f"{output}: recursions {', '.join(map(str, found['outputs']))} of {model.recursions}; "
        f"{found['val_psnr']:.3f} dB on {found['val_images']} held-out images, "
        f"{found['val_psnr'] - found['val_psnr_before']:+.3f} against {FLAGS.model}; "
        f"all {model.recursions} refitted: {found['val_psnr_all']:.3f} dB"
    )


def run() -> None:
    """The command `drcn-refit`."""
    commands.run(main, define_flags)


if __name__ == "__main__":
    run()
