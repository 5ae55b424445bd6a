"""Measuring whole images while training goes on, and keeping the best model."""

import math
from collections.abc import Callable, Sequence

import keras
import numpy as np
from absl import logging
from keras import ops

from drcn_keras.data import Pair, load_pairs
from drcn_keras.errors import UserError
from drcn_keras.graphs import compiled
from drcn_keras.metrics import SSIM_WINDOW, comparable, mean_psnr, psnr, ssim
from drcn_keras.safekeeping import averaged
from drcn_keras.tiling import default_tile, restored_pair, restoring


def held_out_pairs(
    paths: Sequence[str], scales: Sequence[int], channels: int, lr_paths: dict | None = None
) -> list[Pair]:
    """The photographs that a network is measured on while it is trained; arguments as for `data.load_pairs`."""
    return load_pairs(paths, scales, channels, SSIM_WINDOW + 2 * max(scales), lr_paths=lr_paths)


class Validation(keras.callbacks.Callback):
    """Measures whole images by the field's protocol and keeps the best model.

    Adds to the logs of a validated epoch: "val_psnr" (dB, the ensemble), "val_ssim", "val_bicubic" (dB) and "lr". With
    several scales these are the means of their means, and "val_psnr_x2" and so on are the single ones. An image that is
    restored exactly has no finite PSNR: it is named and left out. Where the optimiser averages the weights, the
    averages are measured and kept.

    Args:
        pairs: the validation images, every side at least 11 + 2 * scale.
        every: validate after every so many epochs, and after the last.
        epochs: planned epochs.
        save_best: function of (model, logs, epoch), called when val_psnr is higher than ever before.
        agree: function that makes the chief's number every worker's; see `distribute.Workers`.

    Raises:
        UserError: every image of a scale is restored exactly, so that nothing can be compared.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        every: int = 1,
        epochs: int = 1,
        save_best: Callable | None = None,
        agree: Callable[[float], float] = float,
    ):
        super().__init__()
        self.pairs = pairs
        self.every = every
        self.epochs = epochs
        self.save_best = save_best
        self.agree = agree
        self.best = -math.inf
        self._bicubic: list[float] = []
        self._left_out: set[str] = set()
        self._network: Callable | None = None

    def on_epoch_end(self, epoch, logs=None):
        logs["lr"] = float(ops.convert_to_numpy(self.model.optimizer.learning_rate))
        if (epoch + 1) % self.every and epoch + 1 < self.epochs and not self.model.stop_training:
            return
        with averaged(self.model):
            logs.update(self.measured())
            if logs["val_psnr"] > self.best:
                self.best = logs["val_psnr"]
                if self.save_best:
                    self.save_best(self.model, logs, epoch)

    def measured(self) -> dict[str, float]:
        """What the model gives for the images: the entries of the logs, but for "lr"."""
        if not self._bicubic:
            self._bicubic = [psnr(*(comparable(x, pair.scale) for x in (pair.hr, pair.ilr))) for pair in self.pairs]
        rows = []
        for pair, bicubic in zip(self.pairs, self._bicubic, strict=True):
            hr, sr = (comparable(image, pair.scale) for image in (pair.hr, self._upscaled(pair)))
            rows.append((bicubic, self.agree(psnr(hr, sr)), ssim(hr, sr)))
        scales = sorted({pair.scale for pair in self.pairs})
        means = [self._mean(scale, rows) for scale in scales]
        bicubic, decibels, similarity = np.mean(means, axis=0).tolist()
        logs = {"val_psnr": decibels, "val_ssim": similarity, "val_bicubic": bicubic}
        if len(scales) > 1:
            logs.update({f"val_psnr_x{scale}": float(mean[1]) for scale, mean in zip(scales, means, strict=True)})
        return logs

    def _mean(self, scale, rows):
        """The mean row of the images of one scale, finite."""
        own = [(pair.path, row) for pair, row in zip(self.pairs, rows, strict=True) if pair.scale == scale]
        mean, infinite = mean_psnr([row for _, row in own])
        if not np.isfinite(mean).all():
            raise UserError(f"no validation image can be compared at x{scale}: every one of them is restored exactly.")
        names = {own[index][0] for index in infinite} - self._left_out
        if names:
            self._left_out |= names
            logging.warning(
                "%d of %d validation images have no finite PSNR and are left out of the mean: %s",
                len(infinite), len(own), ", ".join(sorted(names)),
            )  # fmt: skip
        return mean

    def _upscaled(self, pair):
        network = self._network = self._network or self._graph()
        return restored_pair(network, pair, default_tile(self.model, 8), self.model.halo)

    def _graph(self):
        """A model of its own around the same layers: a graph, which keeps no recursion's features for gradients."""
        return restoring(compiled(keras.Model(self.model.inputs, self.model.outputs)))

    def state(self):
        return {"best": self.best}

    def restore(self, state):
        self.best = state["best"]
