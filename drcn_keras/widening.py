"""A wider or deeper network that computes what a smaller one does: the weights to start it from.

A feature map that is added is a random mixture of what the maps of its layer are before their ReLU, so that it sees
what they see, and no map of the smaller network reads it: its weights there are 0, and the function is kept as with the
copies of Net2Net (Chen, Goodfellow, Shlens, arXiv 1511.05641), which would have to part first.

More recursions are more calls of the same convolution, whose reconstructions have the ensemble weight 0 at first.
"""

import numpy as np

from drcn_keras.model import DRCN

# Layer by layer, whether the maps that go in and those that come out are the network's own, which become more.
_GROWS = {
    "embedding_1": (False, True),
    "embedding_2": (True, True),
    "inference": (True, True),
    "reconstruction_1": (True, True),
    "reconstruction_2": (True, False),
}

# Of a mixture's shares. Maps are mostly 0 where they are few, a mixture is not: with a norm of 1 the added maps of
# `drcn-x234` would be 2 to 12 times as large as its own. Ours.
_NORM = 0.25


def widened(model: DRCN, filters: int, recursions: int, seed: int = 0) -> dict[str, list[np.ndarray]]:
    """The weights of a larger DRCN that gives what `model` gives, up to rounding.

    Args:
        model: a `DRCN`.
        filters: feature maps F of the larger one, at least the model's.
        recursions: D of the larger one, at least the model's.
        seed: of the mixtures.

    Returns:
        By the name of a layer its weights, as `set_weights` takes them.
    """
    random = np.random.default_rng(seed)
    more = filters - model.filters
    weights = {}
    for name, (reads, writes) in _GROWS.items():
        kernel, bias = (np.asarray(weight, np.float64) for weight in model.get_layer(name).get_weights())
        if writes:
            mixture = random.normal(size=(model.filters, more))
            mixture *= _NORM / np.linalg.norm(mixture, axis=0)
            kernel, bias = np.concatenate([kernel, kernel @ mixture], axis=3), np.concatenate([bias, bias @ mixture])
        if reads:
            kernel = np.pad(kernel, [(0, 0), (0, 0), (0, more), (0, 0)])
        weights[name] = [kernel.astype(np.float32), bias.astype(np.float32)]
    (ensemble,) = model.get_layer("ensemble").get_weights()
    weights["ensemble"] = [np.pad(ensemble, (0, recursions - model.recursions))]
    return weights
