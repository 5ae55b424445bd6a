"""Networks of integers from end to end: int8 in, int8 out, no operator in float, for NPUs that take nothing else.

What differs from the int8 mode, whose ends stay in float:
- The weighted sum, the last convolution and the skip are one convolution. sum_d conv_b(w_d * r_d) is a convolution over
  all r_d side by side. The ILR stands beside them in several copies, each with its share of the weight of about 1, so
  that one step of 8-bit weights suits the features too. The image is rounded once, at the end, to its own 256 levels.
- The grid of a luma input ends at 235/255, MATLAB's white: nothing of a colour photograph is lost, and the steps are
  8 % finer. What rounding the input costs is most of what such a file loses at all.
- That convolution is fitted to the float network by least squares on representative patches, its taps on the ILR
  included, and rounded weight after weight (GPTQ). PSNR is relative to an image's error, so smooth patches weigh more.
"""

import dataclasses

import keras
import numpy as np
from keras import ops

from drcn_keras import inference
from drcn_keras.export import names, quantize, tune
from drcn_keras.export.pipeline import to_tflite

# The largest luma of a colour photograph.
LUMA_TOP = 235.0 / 255.0
COPIES = 16
_GATHER = "concatenation"
_REFIT_DAMPING = 1e-4
_ROUNDING_DAMPING = 1e-3
# Of a patch's outermost pixels, which are 16 times as large a part of it as of a picture of 1000 x 1000.
_BORDER_WEIGHT = 1.0 / 16.0
# Squared levels of 255 that are added to a patch's error before its weight is 1 / error.
_WEIGHT_FLOOR = 4.0


@dataclasses.dataclass(frozen=True)
class Last:
    """The last convolution on its grid: features first, then the image's channels.

    Args:
        kernel: (3, 3, features + channels, channels) in whole steps.
        bias: (channels,).
        step: of the kernel's grid.
    """

    kernel: np.ndarray
    bias: np.ndarray
    step: float


class IntegerNetwork:
    """The network of one `DRCN` on its integer grids.

    Args:
        model: `DRCN`.
        network: its residual network with the identity taken out, the heavy kernels on their 8-bit grids.
        ranges: dict of tensor name to (low, high), from `quantize.calibrate` in mode int8.
        images: representative ILR patches.
    """

    def __init__(self, model, network, ranges, images):
        self.channels, self.gain = model.channels, inference.skip_gain(model)
        self.used = inference.used_recursions(model)
        self.top = LUMA_TOP if model.channels == 1 else 1.0
        self.network = tune.copy(network)
        self.ranges = {**ranges, "ilr": (0.0, self.top), "sr": (0.0, 1.0)}
        # Above its white the file cannot see: an image that lies there must not pull the fit.
        images = np.clip(images, 0.0, self.top)
        given = np.round(images * (255.0 / self.top)) * (self.top / 255.0)
        tune.round_layer(self.network.get_layer(names.EMBEDDING_1), given.astype(np.float32))
        roles = {name: names.role_of(name) for name in ranges}
        reach = max(high for name, (_, high) in ranges.items() if roles[name] == names.RECONSTRUCTION_1)
        self._stretch(float(reach))
        target = np.asarray(inference.inference_model(model)(images))
        self.luma = self._fitted(target, images)

    def _stretch(self, reach):
        """Brings the reconstructions' range to the image's: side by side they share one grid. Exact, after a ReLU."""
        layer = self.network.get_layer(names.RECONSTRUCTION_1)
        layer.set_weights([weights * (self.top / reach) for weights in layer.get_weights()])
        weights = self.network.get_layer(names.ENSEMBLE).get_weights()[0]
        kernel, bias = self.network.get_layer(names.RECONSTRUCTION_2).get_weights()
        self.features = len(weights) * kernel.shape[2]
        self._start = np.concatenate([weight * kernel * (reach / self.top) for weight in weights], axis=2), bias
        same = {names.RECONSTRUCTION_1, _GATHER}
        known = {name: (0.0, self.top) for name in self.ranges if names.role_of(name) in same}
        self.ranges |= {**known, names.tensor(_GATHER, 1): (0.0, self.top)}

    def _fitted(self, target, images):
        """The last convolution by least squares on what the 8-bit layers before it deliver."""
        kernel, bias = self._start
        skip = np.zeros((3, 3, self.channels, self.channels))
        skip[1, 1] = self.gain * np.eye(self.channels)
        start = np.concatenate([kernel, skip], axis=2)
        draft = self.luma_file(self._rounded(start, bias, np.eye(start[..., 0].size)), 16, 16)
        moment, cross = self._moments(draft, images, target, start, bias)
        damped = moment + _REFIT_DAMPING * np.mean(np.diag(moment)) * np.eye(len(moment))
        fitted = np.concatenate([start.reshape(-1, start.shape[-1]), bias[None]]) + np.linalg.solve(damped, cross)
        last = self._rounded(fitted[:-1].reshape(start.shape), fitted[-1], moment[:-1, :-1])
        # The mean error that rounding left goes into the bias, whose steps are fine.
        left = fitted[:-1] - last.step * last.kernel.reshape(fitted[:-1].shape)
        return dataclasses.replace(last, bias=fitted[-1] + moment[-1, :-1] @ left / moment[-1, -1])

    def _moments(self, draft, images, target, start, bias):
        kernel = np.concatenate([start.reshape(-1, start.shape[-1]), bias[None]])
        moment, cross = np.zeros((len(kernel), len(kernel))), np.zeros(kernel.shape)
        border = np.full(images.shape[1:3], np.sqrt(_BORDER_WEIGHT))
        border[1:-1, 1:-1] = 1.0
        gathered = quantize.int8_values(draft, images, names.tensor(_GATHER, 1))
        for ilr, wanted, given in zip(images, target, gathered, strict=True):
            # With the padding: a fit to the inside alone is free to be far off where zeros come in.
            padded = np.pad(given[..., : self.features + self.channels], ((1, 1), (1, 1), (0, 0)))
            fields = tune.rows(padded[None])
            # In float64: what float32 loses exceeds the damping where patches are few.
            fields = np.concatenate([fields, np.ones((len(fields), 1))], axis=1, dtype=np.float64)
            error = wanted.reshape(len(fields), -1) - fields @ kernel
            weight = 1.0 / (_WEIGHT_FLOOR + 255.0**2 * np.mean(np.square(wanted - ilr)))
            fields *= border.reshape(-1, 1)
            moment += weight * (fields.T @ fields)
            cross += weight * (fields.T @ (border.reshape(-1, 1) * error))
        return moment, cross

    def _rounded(self, kernel, bias, moment):
        features, skip = np.abs(kernel[:, :, : self.features]), np.abs(kernel[:, :, self.features :])
        step = max(abs(self.gain) / COPIES, skip.max() / COPIES, features.max()) / 127.0
        most = np.where(np.arange(kernel.shape[2]) < self.features, 127, 127 * COPIES)
        whole = tune.round_kernel(kernel, moment, step, np.tile(most, 9), _ROUNDING_DAMPING) / step
        return Last(np.round(whole), bias, step)

    def graph(self, last, ilr):
        """The whole network on a Keras tensor (batch, height, width, channels), with this `Last`: the SR image."""
        layer = self.network.get_layer
        state = layer(names.EMBEDDING_2)(layer(names.EMBEDDING_1)(ilr))
        features = []
        for recursion in range(1, self.used[-1] + 1):
            state = ops.relu(state + layer(names.INFERENCE)(state))
            if recursion in self.used:
                features.append(layer(names.RECONSTRUCTION_1)(state))
        side_by_side = ops.concatenate([*features, *[ilr] * COPIES], axis=-1)
        project = keras.layers.Conv2D(last.kernel.shape[-1], 3, padding="same", name=names.RECONSTRUCTION_2)
        sr = project(side_by_side)
        project.set_weights([self._copied(last), last.bias])
        return sr

    def _copied(self, last):
        """The kernel with the weights on the image dealt out to its copies, and 127 steps the largest of all."""
        channels = last.kernel.shape[2] - self.features
        image_taps = last.kernel[:, :, self.features :]
        dealt = np.zeros((COPIES, *image_taps.shape))
        dealt[:] = np.floor(image_taps / COPIES)
        for number in range(COPIES):
            dealt[number] += number < image_taps - COPIES * np.floor(image_taps / COPIES)
        for channel in range(channels):
            # The quantiser takes a channel's largest weight for 127 steps: one has to be just that.
            first, rest = dealt[0, 1, 1, channel, channel], dealt[1:, 1, 1, channel, channel]
            extra, dealt[0, 1, 1, channel, channel] = 127 - first, 127
            each, left = divmod(int(extra), COPIES - 1)
            rest -= each + (np.arange(COPIES - 1) < left)
        kernel = np.concatenate([last.kernel[:, :, : self.features], *dealt], axis=2)
        return (kernel * last.step).astype(np.float32)

    def luma_file(self, last, height, width):
        """Bytes of the luma file for ILR of this size, or of any (None)."""
        ilr = keras.Input((None, None, self.channels), name="ilr")
        network = keras.Model(ilr, self.graph(last, ilr), name="drcn_inference")
        return quantize.to_mode(to_tflite(_Luma(network, self.channels), height, width), "int8_full", self.ranges)


class _Luma:
    """What `to_tflite` needs to know of a pipeline, for a network that is the whole of it. Sizes are ILR's."""

    dtype, input_name = "float32", "ilr"

    def __init__(self, network, channels):
        self.network, self.channels = network, channels

    def __call__(self, images):
        return self.network(images)

    def shape(self, height, width):
        """Input shape; None for any size."""
        return (1, height, width, self.channels)
