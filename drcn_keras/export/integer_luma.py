"""The luma file of integers from end to end: ILR of 256 levels in, SR of 256 levels out.

What rounding took from the ILR stands beside it, in a channel of its own, as far as the pixels around tell: bicubic
enlargement makes scale^2 pixels of one, so that most of what rounding adds cannot be part of it. A filter for each of
the scale^2 places, by least squares. A tile must begin at a multiple of the scale, which `pipeline.ilr_halo` sees to.
"""

import keras
import numpy as np
from keras import ops

from drcn_keras import inference
from drcn_keras.export import flatbuffer, integer, names, quantize, tune
from drcn_keras.export.pipeline import to_tflite

# Of the ILR, where its rounding is told from it: 8-bit weights that add up to finer ones.
_GIVEN = 4
# Pixels on either side that rounding is told from: those that `inference.mirrored` adds.
_REACH = 2
_FILTER_DAMPING = 1e-6
# Of the patches, for the first convolution's rounding.
_EVERY_IMAGE = 3


class LumaNetwork(integer.Body):
    """The luma file: ILR in, SR out, both with 256 levels.

    Args:
        model, network, ranges: as for `integer.Body`.
        images: representative ILR patches.
        wanted: `DRCN` whose images the last convolution is fitted to; None: `model`.
    """

    def __init__(self, model, network, ranges, images, wanted=None):
        super().__init__(model, network, ranges, integer.luma_top(model.channels))
        images, given = _taken(images, self.top)
        self.scale = model.scales[0]
        self._rounding = _rounding_filter(images, given, self.scale), np.full(self.channels, self.top / 2.0)
        image = np.arange(self.channels)
        side_by_side = np.concatenate([np.tile(image, integer.COPIES), image + self.channels])
        self._first = self._embedding(given.astype(np.float32), side_by_side)
        self.members = np.concatenate([np.arange(self.features), self.features + side_by_side])
        self.last = self._fitted(np.asarray(inference.inference_model(wanted or model)(images)), images)

    def _lost(self, ilr):
        """What rounding took from the ILR, a tensor of its size."""
        given = ops.concatenate([inference.mirrored(ilr)] * _GIVEN, axis=-1)
        kernel, bias = self._rounding
        height, width = (side // self.scale for side in ilr.shape[1:3])
        return integer.interleaved(given, kernel, bias, height, width, self.scale)

    def _embedding(self, given, members):
        """(kernel, bias) of the first convolution, on the ILR's copies and what rounding took."""
        kernel, bias = self.network.get_layer(names.EMBEDDING_1).get_weights()
        moment = 0.0
        for image in given[::_EVERY_IMAGE]:
            lost = np.clip(ops.convert_to_numpy(self._lost(image[None])), 0.0, self.top)
            fields = tune.rows(np.concatenate([image[None], lost], axis=3)).astype(np.float64)
            moment = moment + fields.T @ fields
        whole = np.concatenate([kernel, kernel * (2.0 / 255.0)], axis=2)
        bias = bias - kernel.sum(axis=(0, 1, 2)) * (self.top / 255.0)
        return integer.finest(whole, moment, members), bias

    def _fitted(self, target, images):
        skip = np.zeros((3, 3, 2 * self.channels, self.channels))
        whole = self.gain * np.eye(self.channels)
        skip[1, 1] = np.concatenate([whole, whole * (2.0 / 255.0)])
        bias = self.bias - self.gain * self.top / 255.0
        start = np.concatenate([self.kernel, skip], axis=2)
        draft = self.file(integer.rounded(start, bias, np.eye(start[..., 0].size), self.members), *images.shape[1:3])
        gathered = integer.side_by_side(draft, images)
        # The first of the image's copies stands for all.
        groups = np.unique(self.members, return_index=True)[1]
        return integer.fitted(start, bias, (values[..., groups] for values in gathered), images, target, self.members)

    def file(self, last, height, width):
        """Bytes of the file for ILR of this size, multiples of the scale, with this last convolution."""
        ilr = keras.Input(batch_shape=(1, height, width, self.channels), name="ilr")
        image = ops.concatenate([*[ilr] * integer.COPIES, self._lost(ilr)], axis=-1)
        features = self.reconstructions(image, *self._first)
        sr = integer.project(ops.concatenate([*features, image], axis=-1), last)
        content = to_tflite(integer.Program(keras.Model(ilr, sr, name="drcn_inference")), height, width)
        ranges = {name: (0.0, self.top) for _, name, _, _ in flatbuffer.tensor_types(content)}
        return quantize.to_mode(content, "int8_full", {**ranges, **self.ranges})


def given_back(images, scale):
    """The filter that gives back to a rounded ILR what rounding took, for training with what the file will see.

    Args:
        images: representative ILR patches, whose sides begin at multiples of the scale.
        scale: 2, 3 or 4.

    Returns:
        float32 (rows, columns, channels, scale^2 * channels): a convolution of `inference.mirrored` with that stride,
        whose scale^2 pixels, as `ops.depth_to_space` deals them, are to be added to the rounded ILR.
    """
    channels = images.shape[3]
    images, given = _taken(images, integer.luma_top(channels))
    kernel = _rounding_filter(images, given, scale)
    one = kernel.reshape(*kernel.shape[:2], _GIVEN, channels, -1).sum(axis=2)
    return (one * (2.0 / 255.0)).astype(np.float32)


def _taken(images, top):
    """(images without what the file cannot see, the same on its grid): what lies above its white must pull no fit."""
    images = np.clip(images, 0.0, top)
    return images, np.round(images * (255.0 / top)) * (top / 255.0)


def _rounding_filter(images, given, scale):
    """What tells from the rounded ILR what rounding took: a kernel as for `integer.interleaved`.

    The whole range is one step of the ILR up and one down; half of it, nothing, is the bias that is wanted beside it.
    """
    channels = images.shape[3]
    images, given = (np.moveaxis(each, 3, 1).reshape(-1, *each.shape[1:3], 1) for each in (images, given))
    size = 2 * _REACH + 1
    kernel = np.zeros((size + scale - 1, size + scale - 1, scale, scale))
    for row, column in np.ndindex(scale, scale):
        top, left = ((place - _REACH) % scale for place in (row, column))
        fields = tune.rows(given[:, top:, left:], scale, size).astype(np.float64)
        real = tune.rows(images[:, top:, left:], scale, size)
        centre = fields.shape[1] // 2
        lost = real[:, centre] - fields[:, centre]
        # From what is around a pixel less the pixel itself: of an even image nothing can be told.
        fields -= fields[:, [centre]]
        moment = fields.T @ fields
        damped = moment + _FILTER_DAMPING * np.trace(moment) / len(moment) * np.eye(len(moment))
        weights = np.linalg.solve(damped, fields.T @ lost)
        weights[centre] = -np.delete(weights, centre).sum()
        kernel[row : row + size, column : column + size, row, column] = weights.reshape(size, size)
    start = -_REACH % scale
    fields = tune.rows(given[:, start:, start:], scale, len(kernel)).astype(np.float64)
    whole = integer.finest(
        kernel.reshape(*kernel.shape[:2], 1, -1), fields.T @ fields, np.zeros(_GIVEN, int), _FILTER_DAMPING
    )
    whole = np.einsum("ijgp,cd->ijgcpd", whole, np.eye(channels)) * (255.0 / 2.0)
    return whole.reshape(*whole.shape[:2], -1, *whole.shape[4:])
