"""Training that ends with a thin ensemble: once alpha is 0, the recursions that add least are left out."""

import json
from collections.abc import Callable, Sequence

import keras
import numpy as np
from absl import logging
from keras import ops

from drcn_keras.data import Pair
from drcn_keras.graphs import frozen
from drcn_keras.inference import recursions_model
from drcn_keras.refit import best_subset, statistics
from drcn_keras.tiling import default_tile, restoring

# Ours: a handful of photographs determine a few weights.
_PHOTOGRAPHS = 16


class Thinning(keras.callbacks.Callback):
    """At the first epoch whose alpha is 0 keeps the last recursion and the best few others, by least squares.

    An ensemble that draws on so many already, the last among them, as that of a preset, is kept as it was trained.
    Where nothing was learned yet, recursions evenly spread are kept, with equal weights: squares would fit w to noise.
    The others get the ensemble weight 0 for good: from then on a step neither reconstructs them nor computes what comes
    after the last in use. Must come after the callback that sets alpha.

    Args:
        outputs: recursions to keep, 1 to D.
        pairs: the training images, some of which the squares are summed over.
        agree: function that makes the chief's bytes every worker's; see `distribute.Workers`.
        untrained: whether the run began with the paper's initialisation.
    """

    def __init__(
        self,
        outputs: int,
        pairs: Sequence[Pair],
        agree: Callable[[bytes], bytes] = bytes,
        untrained: bool = False,
    ):
        super().__init__()
        self.outputs = outputs
        self.pairs = pairs[:: -(-len(pairs) // _PHOTOGRAPHS)]
        self.agree = agree
        self.untrained = untrained
        self.kept: list[int] | None = None

    def on_epoch_begin(self, epoch, logs=None):
        if self.kept is None and float(ops.convert_to_numpy(self.model.alpha)) == 0.0:
            weights = np.array(json.loads(self.agree(json.dumps(self._chosen().tolist()).encode())))
            self.kept = (np.flatnonzero(weights) + 1).tolist()
            logging.info("alpha is 0: from here on the ensemble draws on recursions %s alone", self.kept)
            _set_ensemble(self.model, weights)
        if self.kept is not None and self.model.supervised != tuple(self.kept):
            self.model.supervised = tuple(self.kept)
            self.model.make_train_function(force=True)

    def _chosen(self):
        if self.untrained and not int(ops.convert_to_numpy(self.model.optimizer.iterations)):
            recursions = self.model.recursions
            return equal_weights(recursions, evenly_spread(recursions, self.outputs))
        weights = ops.convert_to_numpy(self.model.ensemble_weights)
        if np.count_nonzero(weights) == self.outputs and weights[-1]:
            return weights
        network = restoring(frozen(recursions_model(self.model)))
        sums = statistics(list(self.pairs), network, default_tile(self.model, 8), self.model.halo)
        # A last recursion that falls out is never computed again, and what it would have learned is lost with it.
        return best_subset(sums, self.outputs, to_the_last=True)

    def state(self):
        return {"kept": self.kept}

    def restore(self, state):
        self.kept = state["kept"]


def evenly_spread(recursions: int, outputs: int) -> list[int]:
    """`outputs` of the recursions 1 to D, ascending, as far apart as they can be and the last among them."""
    return np.round(np.linspace(recursions, 1, outputs)).astype(int)[::-1].tolist()


def equal_weights(recursions: int, used: Sequence[int]) -> np.ndarray:
    """The ensemble weights (D,) whose ensemble is the mean of the recursions `used`, of 1 to D."""
    weights = np.zeros(recursions, np.float32)
    weights[np.array(used) - 1] = 1.0 / len(used)
    return weights


def _set_ensemble(model, weights):
    """Gives w new values, and the optimiser no memory of the old: its momentum would move what is to stay 0."""
    model.ensemble_weights.assign(weights)
    for variable in model.optimizer.variables:
        if "recursion_weights" in variable.path:
            average = model.optimizer.use_ema and variable.path.endswith("average")
            variable.assign(weights if average else np.zeros_like(weights))
