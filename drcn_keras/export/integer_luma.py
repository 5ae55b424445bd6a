"""The luma file of integers from end to end: ILR in two int8 channels, SR of 256 levels out.

Rounding the ILR to 256 levels costs more than all else in 8 bit, and cannot be told from the rounded image alone where
that is flat. So a value comes in two digits: whole steps of the input's grid, and 256ths of one, each a channel.
"""

import keras
import numpy as np
from keras import ops

from drcn_keras import inference
from drcn_keras.export import flatbuffer, integer, names, quantize, runner, tune
from drcn_keras.export.pipeline import LUMA_DIGITS, to_tflite


class LumaNetwork(integer.Body):
    """The luma file: ILR in digits in, SR with 256 levels out.

    Args:
        model, network, ranges: as for `integer.Body`.
        images: representative ILR patches.
        wanted: `DRCN` whose images the last convolution is fitted to; None: `model`.
    """

    def __init__(self, model, network, ranges, images, wanted=None):
        super().__init__(model, network, ranges)
        # What lies above the grid's white the file cannot see: it must pull no fit.
        images = np.clip(images, 0.0, 1.0)
        side_by_side = np.tile(np.arange(LUMA_DIGITS * self.channels), integer.COPIES)
        self._first = self._embedding(images, side_by_side)
        self.members = np.concatenate([np.arange(self.features), self.features + side_by_side])
        self.last = self._fitted(np.asarray(inference.inference_model(wanted or model)(images)), images)

    def _embedding(self, images, members):
        """(kernel, bias) of the first convolution, on the digits' copies."""
        kernel, bias = self.network.get_layer(names.EMBEDDING_1).get_weights()
        grid = 1.0 / 255.0, -128
        moment = 0.0
        for image in images:
            digits = runner.unstepped(runner.stepped(image[None], *grid, digits=LUMA_DIGITS), *grid)
            fields = tune.rows(digits).astype(np.float64)
            moment = moment + fields.T @ fields
        return integer.finest(_of_digits(kernel, axis=2), moment, members), bias

    def _fitted(self, target, images):
        skip = np.zeros((3, 3, LUMA_DIGITS * self.channels, self.channels))
        skip[1, 1] = _of_digits(self.gain * np.eye(self.channels), axis=0)
        start = np.concatenate([self.kernel, skip], axis=2)
        draft = integer.rounded(start, self.bias, np.eye(start[..., 0].size), self.members)
        # The first of the image's copies stands for all.
        groups = np.unique(self.members, return_index=True)[1]
        values = integer.side_by_side(self.file(draft, *images.shape[1:3]), images)
        gathered = (each[..., groups] for each in values)
        return integer.fitted(start, self.bias, gathered, images, target, self.members)

    def file(self, last, height, width):
        """Bytes of the file for ILR of this size, with this last convolution."""
        ilr = keras.Input(batch_shape=(1, height, width, LUMA_DIGITS * self.channels), name="ilr")
        image = ops.concatenate([ilr] * integer.COPIES, axis=-1)
        features = self.reconstructions(image, *self._first)
        sr = integer.project(ops.concatenate([*features, image], axis=-1), last)
        content = to_tflite(integer.Program(keras.Model(ilr, sr, name="drcn_inference")), height, width)
        ranges = {name: (0.0, 1.0) for _, name, _, _ in flatbuffer.tensor_types(content)}
        return quantize.to_mode(content, "int8_full", {**ranges, **self.ranges})


def _of_digits(weights, axis):
    """Weights on values as weights on their digits, which stand one after the other along `axis`."""
    return np.concatenate([weights / 256.0**digit for digit in range(LUMA_DIGITS)], axis=axis)
