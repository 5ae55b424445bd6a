"""What makes a network lose less in 8 bit, without training and without originals: representative patches suffice.

Three steps, each exact in float or fitted to the float network itself:
- equalized: ReLU commutes with positive factors, so every channel can be brought to the same range (Nagel et al.,
  "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019).
- rounded: a kernel's weights are rounded one after the other, and those still to come make up for the error on real
  feature maps (Frantar et al., "GPTQ", ICLR 2023).
- refitted: the last convolution stays in float and is linear; least squares make it undo what the 8-bit layers
  before it do systematically.
"""

import keras
import numpy as np

from drcn_keras.export import quantize

# Neighbouring receptive fields are much alike: the rounding looks at one of 4 x 4.
_EVERY = 4
_EVERY_IMAGE = 3
_GPTQ_DAMPING = 0.01
_REFIT_DAMPING = 1e-4
_INPUTS = {"embedding_2": "embedding_1_", "inference": "state_", "reconstruction_1": "state_"}


def copied(network):
    """A network of its own with the same weights."""
    twin = keras.models.clone_model(network)
    twin.set_weights(network.get_weights())
    return twin


def equalized(network, observed, floor=0.3):
    """The same function with every channel of the feature maps scaled to a like range.

    Args:
        network: `inference.inference_model(..., residual=True, split_identity=True)`.
        observed: what `quantize.observe` saw of it.
        floor: channels are enlarged by at most 1/floor against the strongest one. A channel that is nearly always 0
            after its ReLU would otherwise stretch the range of what stands before it.

    Returns:
        a network.
    """
    twin = copied(network)

    def factors(*prefixes):
        seen = [stats["channels"] for name, stats in observed.items() if name.startswith(prefixes)]
        strongest = np.max(seen, axis=0)
        return np.maximum(strongest / strongest.max(), floor).astype(np.float32)

    first = factors("embedding_1_")
    state = factors("embedding_2_", "inference_", "state_")
    reconstructed = factors("reconstruction_1_")
    ends = np.ones(1, np.float32)
    for name, before, after in (
        ("embedding_1", ends, first),
        ("embedding_2", first, state),
        ("inference", state, state),
        ("reconstruction_1", state, reconstructed),
        ("reconstruction_2", reconstructed, ends),
    ):
        layer = twin.get_layer(name)
        kernel, bias = layer.get_weights()
        layer.set_weights([kernel * before[:, None] / after, bias / after])
    return twin


def rounded(network, content, images):
    """The network with the kernels of its heavy layers on their 8-bit grids.

    Args:
        network: as for `equalized`.
        content: its float luma file.
        images: representative ILR patches.
    """
    twin = copied(network)
    maps = quantize.values(content, images[::_EVERY_IMAGE], (*_INPUTS.values(), "embedding_2_"))
    for name, prefix in _INPUTS.items():
        sources = [seen for tensor, seen in maps.items() if tensor.startswith(prefix)]
        if name == "inference":
            # H_0 to H_(D-1) go in, H_1 to H_D come out.
            sources = [maps["embedding_2_1"], *sources[:-1]]
        second_moment = sum(rows.T @ rows for rows in (_rows(source, _EVERY) for source in sources))
        layer = twin.get_layer(name)
        kernel, bias = layer.get_weights()
        layer.set_weights([_rounded_kernel(kernel, second_moment), bias])
    return twin


def _rows(maps, every=1):
    """Receptive fields of a 3x3 convolution inside maps (n, h, w, c): (rows, 9 * c), as a kernel lies.

    `every`: of each so many rows and columns of the image one is taken.
    """
    windows = np.lib.stride_tricks.sliding_window_view(maps, (3, 3), axis=(1, 2))[:, ::every, ::every]
    return windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, 9 * maps.shape[-1])


def _rounded_kernel(kernel, second_moment):
    weights = kernel.reshape(-1, kernel.shape[-1]).astype(np.float64)
    step = np.abs(weights).max(axis=0) / 127.0
    step[step == 0.0] = 1.0
    moment = second_moment.astype(np.float64)
    moment += _GPTQ_DAMPING * np.mean(np.diag(moment)) * np.eye(len(moment))
    order = np.argsort(-np.diag(moment))
    # Rows of the inverse's Cholesky factor say how the weights to come make up for one weight's error.
    factor = np.linalg.cholesky(np.linalg.inv(moment[np.ix_(order, order)])).T
    weights = weights[order]
    result = np.empty_like(weights)
    for row in range(len(weights)):
        result[row] = np.clip(np.round(weights[row] / step), -127, 127) * step
        error = (weights[row] - result[row]) / factor[row, row]
        weights[row + 1 :] -= np.outer(factor[row, row + 1 :], error)
    unordered = np.empty_like(result)
    unordered[order] = result
    return unordered.reshape(kernel.shape).astype(np.float32)


def refitted(network, content, images, target):
    """The network with its last convolution fitted to what the 8-bit layers before it deliver.

    Args:
        network: as for `equalized`.
        content: its luma file in an 8-bit mode.
        images: representative ILR patches.
        target: what the float network makes of them, (count, height, width, channels).
    """
    twin = copied(network)
    layer = twin.get_layer("reconstruction_2")
    kernel, bias = layer.get_weights()
    sums = quantize.values(content, images, ("ensemble_", "weighted_1"))
    last = max((name for name in sums if name.startswith("ensemble_")), key=_number, default="weighted_1")
    rows = np.float64(_rows(sums[last]))
    rows = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
    start = np.concatenate([kernel.reshape(-1, kernel.shape[-1]), bias[None]]).astype(np.float64)
    wanted = target[:, 1:-1, 1:-1].reshape(-1, target.shape[-1])
    moment = rows.T @ rows
    damped = moment + _REFIT_DAMPING * np.mean(np.diag(moment)) * np.eye(len(moment))
    fitted = start + np.linalg.solve(damped, rows.T @ (wanted - rows @ start))
    layer.set_weights([fitted[:-1].reshape(kernel.shape), fitted[-1]])
    return twin


def _number(name):
    return int(name.rsplit("_", 1)[1])
