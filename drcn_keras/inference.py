"""The inference graph that fast inference and every export share, and what stands before and behind it.

The last convolution is linear, so the ensemble of D reconstructions is one reconstruction of a weighted
feature map: sum_d w_d * (conv_b(r_d) + x) = conv_b(sum_d w_d * r_d) + (sum_d w_d) * x. With conv_b's bias b,
conv_b(sum_d w_d * r_d) must carry sum_d w_d * b. Exact, and D - 1 convolutions fewer.

The ensemble may be thin: a weight of exactly 0 costs nothing, its recursion is not reconstructed, and recursions
after the last one in use are not computed.

Enlargement and colour are here as convolutions, for graphs that take the low-resolution image itself. They are
functions of tensors: they work on Keras symbols, in a tf.function and eagerly.
"""

import keras
import numpy as np
from keras import ops

from drcn_keras import image
from drcn_keras.layers import CenteredIdentity, RecursionWeighting
from drcn_keras.precision import layer_policy


def skip_gain(model):
    """sum_d w_d, the factor of the ILR in the ensemble: sr = residual + skip_gain * ilr. A float."""
    return float(np.sum(ops.convert_to_numpy(model.ensemble_weights)))


def used_recursions(model):
    """The recursions that the ensemble draws on: those whose weight is not exactly 0. A sorted list of 1 to D.

    Where all weights are 0 it is [1], for a graph needs an output.
    """
    return [int(index) + 1 for index in np.flatnonzero(ops.convert_to_numpy(model.ensemble_weights))] or [1]


def inference_model(model, residual=False, split_identity=False, precision="float32"):
    """The folded twin of a DRCN.

    Args:
        model: a built `DRCN`.
        residual: leave the skip out: the output is `model(ilr) - skip_gain(model) * ilr`, small numbers around 0,
            which a quantised graph holds in finer steps than a whole image.
        split_identity: compute each recursion as relu(h + conv(h, W - I) + b). Trained recursive kernels stay
            near the identity they start from; without it their largest weight is some ten times smaller, and so
            are the steps of an 8-bit kernel.
        precision: "float32" or "bfloat16", what the convolutions but the first compute in; see `precision`.

    Returns:
        A functional keras.Model: ilr float32 (batch, height, width, channels) -> sr (or residual) of the same shape,
        float32, equal to `model(ilr)` up to rounding. Its Conv2D layers have the names of the DRCN's; its ensemble
        layer has a weight for each of `used_recursions(model)`. In bfloat16 those weights are in the kernels instead:
        it has no ensemble layer, and for each d in use a `reconstruction_1_d`.
    """
    used = used_recursions(model)
    weights = ops.convert_to_numpy(model.ensemble_weights)[np.array(used) - 1]
    total = skip_gain(model)

    embedding, inference, reconstruct, project = _convolutions(model, precision)
    if split_identity:
        inference.activation = keras.activations.linear

    ilr = keras.Input((None, None, model.channels), name="ilr")
    features = ilr
    for layer in embedding:
        features = layer(features)
    found = {}
    for recursion in range(1, used[-1] + 1):
        features = ops.relu(features + inference(features)) if split_identity else inference(features)
        if recursion in used:
            found[recursion] = features
    ensemble = _ensemble_of_kernels if precision == "bfloat16" else _ensemble_layer
    outputs = ops.cast(project(ensemble(found, reconstruct, weights)), "float32")
    if not residual:
        outputs = outputs + total * ilr

    kernel, bias = project.get_weights()
    project.set_weights([kernel, total * bias])
    if split_identity:
        kernel, bias = inference.get_weights()
        inference.set_weights([kernel - ops.convert_to_numpy(CenteredIdentity()(kernel.shape)), bias])
    return keras.Model(ilr, outputs, name="drcn_inference")


def _ensemble_layer(found, reconstruct, weights):
    """sum_d w_d * r_d by a layer of its own; `found`: dict of d to the feature maps H_d."""
    weighting = RecursionWeighting(name="ensemble", dtype="float32")
    total = weighting([reconstruct(features) for features in found.values()])
    weighting.set_weights([weights])
    return total


def _ensemble_of_kernels(found, reconstruct, weights):
    """The same with |w_d| in the convolution before the ReLU, one for each d, and the sign in the sum.

    To multiply and add maps takes longer than a convolution where AMX does the convolutions.
    """
    maps = []
    for (recursion, features), weight in zip(found.items(), weights, strict=True):
        scaled = _copied(reconstruct, name=f"{reconstruct.name}_{recursion}")
        scaled.set_weights([abs(weight) * array for array in reconstruct.get_weights()])
        maps.append(scaled(features))
    total = maps[0] if weights[0] >= 0 else -maps[0]
    for each, weight in zip(maps[1:], weights[1:], strict=True):
        total = total + each if weight >= 0 else total - each
    return total


def recursions_model(model, precision="float32"):
    """Every recursion of a DRCN, those that a thin ensemble leaves out too.

    Args:
        model: a built `DRCN`.
        precision: as for `inference_model`.

    Returns:
        A functional keras.Model: ilr float32 (batch, height, width, channels) -> float32 (batch, D, height, width,
        channels), y_1 to y_D.
    """
    embedding, inference, reconstruct, project = _convolutions(model, precision)
    ilr = keras.Input((None, None, model.channels), name="ilr")
    features = ilr
    for layer in embedding:
        features = layer(features)
    reconstructions = []
    for _ in range(model.recursions):
        features = inference(features)
        reconstructions.append(ops.cast(project(reconstruct(features)), "float32") + ilr)
    return keras.Model(ilr, ops.stack(reconstructions, axis=1), name="drcn_recursions")


def _convolutions(model, precision):
    """Copies of a DRCN's layers: ([embedding_1, embedding_2], inference, reconstruction_1, reconstruction_2)."""
    inner = layer_policy(precision)

    def copy(name, dtype):
        return _copied(model.get_layer(name), dtype=dtype)

    # What takes the image itself stays in float32: 63 instead of 82 dB without. The last convolution gives a residual,
    # some hundredths: its rounding is not to be seen.
    first = copy("embedding_1", "float32")
    embedding_2, inference, reconstruction_1, last = (
        copy(name, inner) for name in ("embedding_2", "inference", "reconstruction_1", "reconstruction_2")
    )
    return [first, embedding_2], inference, reconstruction_1, last


def _copied(layer, **changes):
    """A convolution with the weights of another, and its configuration but for `changes`."""
    twin = keras.layers.Conv2D.from_config({**layer.get_config(), "kernel_initializer": "zeros", **changes})
    twin.build((None, None, None, layer.kernel.shape[2]))
    twin.set_weights(layer.get_weights())
    return twin


def enlarge(lr, scale):
    """`image.enlarge`, MATLAB's bicubic with its symmetric border, as one convolution and depth_to_space.

    Output pixel scale * i + p lies at i + (p + 1/2) / scale - 1/2 among the input's, whatever i is: each of the
    scale^2 phases is a 5x5 filter of its own.

    Args:
        lr: float32 tensor (batch, height, width, channels), every side 1 or longer, known or not. The number of
            channels is known.
        scale: 2, 3 or 4.

    Returns:
        float32 (batch, scale * height, scale * width, channels), not clipped.
    """
    channels = lr.shape[-1]
    # depth_to_space takes the channels of one phase side by side.
    kernel = np.einsum("ijp,cd->ijcpd", bicubic_phases(scale), np.eye(channels)).reshape(5, 5, channels, -1)
    return ops.depth_to_space(_conv(mirrored(lr), kernel), scale)


def bicubic_phases(scale):
    """The 5x5 filters of `enlarge`: (5, 5, scale^2), the scale^2 pixels that one becomes row by row."""
    # The filters are the answers of `image.enlarge` to one bright pixel at each of 5x5 places, far from its border.
    impulses = image.enlarge(np.eye(25).reshape(5, 5, 25), scale)
    return impulses[2 * scale : 3 * scale, 2 * scale : 3 * scale].reshape(-1, 5, 5).transpose(1, 2, 0)


def mirrored(lr):
    """A tensor (batch, height, width, channels) with two more pixels on each side, mirrored as by `image.enlarge`."""
    return _mirror_two(_mirror_two(lr, 1), 2)


def _mirror_two(x, axis):
    """Two mirrored pixels on either side of `axis` (1 or 2). Slices and concat: GPU delegates refuse MIRROR_PAD."""

    def cut(start, stop):
        return x[:, start:stop] if axis == 1 else x[:, :, start:stop]

    x = ops.concatenate([cut(0, 1), x, cut(-1, None)], axis=axis)
    # Now three pixels at least: the third from either end is the second mirrored one, for a side of 1 as well.
    return ops.concatenate([cut(2, 3), x, cut(-3, -2)], axis=axis)


def rgb_to_ycbcr(rgb):
    """`image.rgb_to_ycbcr` as a 1x1 convolution: float32 (batch, height, width, 3) in [0, 1], not rounded."""
    return _affine(rgb, image.rgb_to_ycbcr)


def ycbcr_to_rgb(ycbcr):
    """`image.ycbcr_to_rgb` as a 1x1 convolution: float32 (batch, height, width, 3), not clipped."""
    return _affine(ycbcr, image.ycbcr_to_rgb)


def _affine(x, function):
    """A map of colours that is linear but for an offset, taken from its values at 0 and at the unit vectors."""
    offset = function(np.zeros(3))
    return _conv(x, (function(np.eye(3)) - offset)[None, None]) + _constant(offset)


def _conv(x, kernel):
    return ops.conv(x, _constant(kernel), padding="valid")


def _constant(array):
    return ops.convert_to_tensor(array, dtype="float32")
