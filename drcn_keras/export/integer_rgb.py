"""The rgb file of integers from end to end: 8-bit LR in, 8-bit SR out, enlargement and colour inside.

- Enlargement is `integer.interleaved`, a convolution for each row of the s x s pixels that one becomes.
- The ILR is not rounded to 256 levels. It is made LEVELS times, each a fraction of a step brighter than the last, and
  rounded then: sum_k floor(x + k/n) = floor(n * x), so that the sum of n has n times as many levels (Hermite). What
  rounding the ILR once would cost is not lost here.
- Nothing turns YCbCr into RGB. The network's residual is one picture that brightens all three colours alike, so
  the last convolution adds it to the enlarged RGB, and rounds once.
- What the bicubic overshoots lies outside of the grid; `OVER` times that in channels of its own brings it back.
"""

import dataclasses

import keras
import numpy as np
from keras import ops

from drcn_keras import image, inference
from drcn_keras.export import flatbuffer, integer, names, quantize, tune
from drcn_keras.export.pipeline import to_tflite

LEVELS = 4
# Beyond black and white there are 255 / OVER levels.
OVER = 8
# Copies of the LR, and of the enlarged colours, whose 8-bit weights add up to finer ones.
_GIVEN = 2
_REPEATS = integer.COPIES // LEVELS
_COLOURS = 3
_WHITE = 255.0
# The fit and the rounding look at one of so many receptive fields each way.
_EVERY = 2


class RgbNetwork(integer.Body):
    """The rgb file of one `DRCN`, LR of 8 bit to SR of 8 bit.

    Args:
        model, network, ranges: as for `integer.Body`.
        images: representative LR patches, (count, height, width, 3), whole numbers from 0 to 255.
    """

    def __init__(self, model, network, ranges, images):
        super().__init__(model, network, ranges)
        self.scale = model.scales[0]
        self._brightness()
        lr = images.astype(np.float32) / _WHITE
        self._planes = self._enlargement(lr)
        enlarged = np.asarray(inference.enlarge(lr, self.scale))
        ilr = enlarged @ self.to_network + self.offset
        kernel, bias = self.network.get_layer(names.EMBEDDING_1).get_weights()
        fields = tune.rows(ilr, _EVERY)
        members = np.repeat(np.arange(self.channels), LEVELS)
        self._first = integer.finest(kernel, fields.T @ fields, members), bias
        # Three colours in LEVELS each, then what lies above white of each, then what lies below black.
        groups = np.concatenate([np.repeat(np.arange(_COLOURS), LEVELS), np.arange(_COLOURS, 3 * _COLOURS)])
        self.members = np.concatenate([np.arange(self.features), self.features + np.tile(groups, _REPEATS)])
        residual = np.asarray(inference.inference_model(model, residual=True)(ilr.astype(np.float32)))
        target = enlarged + (residual + (self.gain - 1.0) * ilr) @ self.to_colours
        self.last = self._fitted(images, enlarged, target)

    def _brightness(self):
        """Matrices from RGB to what the network takes, and from what it adds to that back to RGB."""
        if self.channels == _COLOURS:
            self.to_network, self.offset, self.to_colours = np.eye(3), np.zeros(3), np.eye(3)
            return
        black = image.rgb_to_ycbcr(np.zeros(3))
        self.to_network, self.offset = (image.rgb_to_ycbcr(np.eye(3)) - black)[:, :1], black[:1]
        self.to_colours = (image.ycbcr_to_rgb(black + np.eye(3)[0]) - image.ycbcr_to_rgb(black))[None]

    def _enlargement(self, lr):
        """[(kernel, bias) of the network's input, of the colours], a convolution each for a row of s x s pixels."""
        filters = inference.bicubic_phases(self.scale)
        fields = tune.rows(lr, _EVERY, 5)
        by_colour = fields.reshape(len(fields), 25, _COLOURS)
        # A colour's filter must not lean on another colour.
        alone = np.einsum("nic,njc->ij", by_colour, by_colour)
        plain = integer.finest(filters[:, :, None], alone, np.zeros(_GIVEN, int))
        colours = np.einsum("ijgp,cd->ijgcpd", plain, np.eye(_COLOURS))
        mixed = np.einsum("ijp,cd->ijcpd", filters, self.to_network).reshape(5, 5, _COLOURS, -1)
        network = integer.finest(mixed, fields.T @ fields, np.tile(np.arange(_COLOURS), _GIVEN))
        channels = _GIVEN * _COLOURS
        network = np.repeat(network.reshape(5, 5, channels, -1, self.channels), LEVELS, axis=-1)
        colours = colours.reshape(5, 5, channels, -1, _COLOURS)
        colours = np.concatenate([np.repeat(colours, LEVELS, axis=-1), OVER * colours, -OVER * colours], axis=-1)
        # Halves of a step: rounding is to the nearest, not down.
        shifts = (np.arange(LEVELS) - (LEVELS - 1) / 2) / (LEVELS * _WHITE)
        brighter = np.repeat(self.offset, LEVELS) + np.tile(shifts, self.channels)
        beyond = np.repeat([-OVER, 0.0], _COLOURS)
        return (network, brighter), (colours, np.concatenate([np.tile(shifts, _COLOURS), beyond]))

    def _fitted(self, images, enlarged, target):
        kernel = self.kernel @ self.to_colours
        skip = np.zeros((3, 3, 3 * _COLOURS, _COLOURS))
        centre = np.eye(_COLOURS) + (self.gain - 1.0) * self.to_network @ self.to_colours
        skip[1, 1] = np.concatenate([centre, centre / OVER, -centre / OVER])
        start = np.concatenate([kernel, skip], axis=2)
        bias = (self.bias + (self.gain - 1.0) * self.offset) @ self.to_colours
        draft = integer.rounded(start, bias, np.eye(start[..., 0].size), self.members)
        content = self.file(draft, *images.shape[1:3])
        gathered = integer.side_by_side(content, images.astype(np.float32))
        return integer.fitted(start, bias, map(self._grouped, gathered), enlarged, target, self.members)

    def _grouped(self, values):
        """What stands side by side, (height, width, channels), with the mean of each group in place of its channels."""
        once = self.members[: self.features + _COLOURS * (LEVELS + 2)]
        means = np.equal.outer(once, np.arange(once.max() + 1)) / np.bincount(once)
        return values[..., : len(once)] @ means

    def file(self, last, height, width):
        """Bytes of the file for LR images of this size, with this last convolution."""
        lr = keras.Input(batch_shape=(1, height, width, _COLOURS), name="lr")
        given = ops.concatenate([inference.mirrored(lr)] * _GIVEN, axis=-1)
        ilr, colours = (
            integer.interleaved(given, kernel / _WHITE, bias, height, width) for kernel, bias in self._planes
        )
        features = self.reconstructions(ilr, *self._first)
        white = dataclasses.replace(last, step=_WHITE * last.step, bias=_WHITE * last.bias)
        sr = integer.project(ops.concatenate([*features, *[colours] * _REPEATS], axis=-1), white)
        content = to_tflite(integer.Program(keras.Model(lr, sr, name="drcn_inference")), height, width)
        return quantize.to_mode(content, "int8_full", self._with_pixels(content))

    def _with_pixels(self, content):
        """The ranges of all tensors: 0 to 255 until the first convolution and at the end, 0 to 1 between."""
        ranges, enlarged = {"lr": (0.0, _WHITE)}, False
        for operator, name, _, _ in flatbuffer.tensor_types(content):
            enlarged |= operator == "CONV_2D"
            ranges[name] = (0.0, 1.0 if enlarged else _WHITE)
        return {**ranges, **self.ranges, "sr": (0.0, _WHITE)}
