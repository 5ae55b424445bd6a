"""Measuring whole images while training goes on, and keeping the best model."""

import collections
import math

import keras
import numpy as np
from keras import ops

from drcn_keras.metrics import measured_psnr


class Validation(keras.callbacks.Callback):
    """Measures whole images by the field's protocol and keeps the best model.

    Adds to the logs of a validated epoch: "val_psnr" (dB, the ensemble), "val_bicubic" (dB) and "lr";
    and where there are several scales, whose mean these are, "val_psnr_x2" and so on.

    Args:
        pairs: list of `data.Pair`.
        every: validate after every so many epochs, and after the last.
        epochs: planned epochs.
        save_best: function of (model, logs, epoch), called when val_psnr is higher than ever before.
        agree: function that makes the chief's number every worker's; see `distribute.Workers`.
    """

    def __init__(self, pairs, every=1, epochs=1, save_best=None, agree=float):
        super().__init__()
        self.pairs = pairs
        self.every = every
        self.epochs = epochs
        self.save_best = save_best
        self.agree = agree
        self.best = -math.inf
        self.bicubic = None

    def on_epoch_end(self, epoch, logs=None):
        logs["lr"] = float(ops.convert_to_numpy(self.model.optimizer.learning_rate))
        if (epoch + 1) % self.every and epoch + 1 < self.epochs and not self.model.stop_training:
            return
        if self.bicubic is None:
            self.bicubic = self._mean(self._by_scale(lambda pair: pair.ilr))
        logs["val_bicubic"] = self.bicubic
        measured = self._by_scale(self._upscaled)
        if len(measured) > 1:
            logs.update({f"val_psnr_x{scale}": psnr for scale, psnr in measured.items()})
        logs["val_psnr"] = self.agree(self._mean(measured))
        if logs["val_psnr"] > self.best:
            self.best = logs["val_psnr"]
            if self.save_best:
                self.save_best(self.model, logs, epoch)

    def _by_scale(self, restore):
        """The mean PSNR of what `restore` makes of the pairs, for each scale."""
        measured = collections.defaultdict(list)
        for pair in self.pairs:
            measured[pair.scale].append(measured_psnr(pair.hr, restore(pair), pair.scale))
        return {scale: float(np.mean(decibels)) for scale, decibels in measured.items()}

    @staticmethod
    def _mean(measured):
        """Every scale counts alike."""
        return float(np.mean(list(measured.values())))

    def _upscaled(self, pair):
        # Not model(ilr): called eagerly, Keras's functional model keeps the features of every recursion.
        weights = ops.convert_to_numpy(self.model.ensemble_weights)
        return np.tensordot(weights, ops.convert_to_numpy(self.model.reconstructions(pair.ilr[None]))[0], 1)

    def state(self):
        return {"best": self.best}

    def restore(self, state):
        self.best = state["best"]
