"""A wider or deeper network that computes what a smaller one does: the weights to start it from.

Every feature map is split into copies, as Net2Net does (Chen, Goodfellow, Shlens, arXiv 1511.05641), but what reads
them draws on each copy by another random share. The shares of one map sum to 1, so the function is kept; and because
they are unequal and another for each reader, the copies get unequal gradients and part at the first step.

More recursions are more calls of the same convolution, whose reconstructions have the ensemble weight 0 at first.
"""

import numpy as np

from drcn_keras.model import DRCN

# Layer by layer, whether the maps that go in and those that come out are the network's own, which are split.
_SPLIT = {
    "embedding_1": (False, True),
    "embedding_2": (True, True),
    "inference": (True, True),
    "reconstruction_1": (True, True),
    "reconstruction_2": (True, False),
}


def widened(model: DRCN, filters: int, recursions: int, seed: int = 0) -> dict[str, list[np.ndarray]]:
    """The weights of a larger DRCN that gives what `model` gives, up to rounding.

    Args:
        model: a `DRCN`.
        filters: feature maps F of the larger one, at least the model's.
        recursions: D of the larger one, at least the model's.
        seed: of the shares.

    Returns:
        By the name of a layer its weights, as `set_weights` takes them.
    """
    random = np.random.default_rng(seed)
    parents = np.arange(filters) % model.filters
    weights = {}
    for name, (read, written) in _SPLIT.items():
        kernel, bias = (np.asarray(weight, np.float64) for weight in model.get_layer(name).get_weights())
        if written:
            kernel, bias = kernel[..., parents], bias[parents]
        if read:
            kernel = kernel[:, :, parents] * _shares(parents, kernel.shape[3], random)
        weights[name] = [kernel.astype(np.float32), bias.astype(np.float32)]
    (ensemble,) = model.get_layer("ensemble").get_weights()
    weights["ensemble"] = [np.pad(ensemble, (0, recursions - model.recursions))]
    return weights


def _shares(parents, readers, random):
    """For each copy and reader its share of the parent: (copies, readers); those of one parent sum to 1."""
    shares = random.uniform(0.5, 1.5, (len(parents), readers))
    totals = np.zeros((parents.max() + 1, readers))
    np.add.at(totals, parents, shares)
    return shares / totals[parents]
