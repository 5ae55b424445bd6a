"""Networks of integers from end to end: int8 in, int8 out, no operator in float, for NPUs that take nothing else.

What differs from the int8 mode, whose ends stay in float:
- The weighted sum, the last convolution and the skip are one convolution. sum_d conv_b(w_d * r_d) is a convolution over
  all r_d side by side. The ILR stands beside them in several copies, each with its share of the weight of about 1, so
  that one step of 8-bit weights suits the features too. The image is rounded once, at the end, to its own 256 levels.
- The input is not rounded to 256 levels, which would cost more than all else: luma comes in two digits, rgb files make
  the ILR four times.
- The last convolution is fitted to the float network by least squares on representative patches, its taps on the ILR
  included, and rounded weight after weight (GPTQ). PSNR is relative to an image's error, so smooth patches weigh more.

`integer_luma.py` is the file that takes the ILR; `integer_rgb.py` puts enlargement and colour before it.
"""

import dataclasses
import re

import keras
import numpy as np
from keras import ops

from drcn_keras import inference
from drcn_keras.export import flatbuffer, names, quantize, tune

COPIES = 16
_REFIT_DAMPING = 1e-4
_ROUNDING_DAMPING = 1e-3
# Of a patch's outermost pixels, which are 16 times as large a part of it as of a picture of 1000 x 1000.
_BORDER_WEIGHT = 1.0 / 16.0
# Squared levels of 255 that are added to a patch's error before its weight is 1 / error.
_WEIGHT_FLOOR = 4.0


@dataclasses.dataclass(frozen=True)
class Fine:
    """A convolution whose inputs come in groups of channels that share a weight: one weight, several times 127 steps.

    Args:
        kernel: (height, width, groups, outputs) in whole steps, the sum over each group's channels.
        bias: (outputs,).
        step: of the kernel's grid.
        members: for each input channel the group that it belongs to.
    """

    kernel: np.ndarray
    bias: np.ndarray
    step: float
    members: np.ndarray

    def dealt(self) -> np.ndarray:
        """The kernel of all channels, real numbers, each group's weights dealt out evenly, 127 steps the largest."""
        height, width, _, outputs = self.kernel.shape
        dealt = np.zeros((height, width, len(self.members), outputs))
        for group in range(self.kernel.shape[2]):
            channels = np.flatnonzero(self.members == group)
            each, left = np.divmod(self.kernel[:, :, group], len(channels))
            for number, channel in enumerate(channels):
                dealt[:, :, channel] = each + (number < left)
        for output in range(outputs):
            self._make_largest(dealt[..., output])
        return (dealt * self.step).astype(np.float32)

    def _make_largest(self, dealt):
        """The quantiser takes a channel's largest weight for 127 steps: one has to be just that."""
        if np.abs(dealt).max() == 127:
            return
        row, column, group = self._roomiest(dealt)
        first, *rest = np.flatnonzero(self.members == group)
        extra, dealt[row, column, first] = 127 - dealt[row, column, first], 127
        each, left = divmod(int(extra), len(rest))
        dealt[row, column, rest] -= each + (np.arange(len(rest)) < left)

    def _roomiest(self, dealt):
        """Where the weight lies that loses least by it: the largest mean of a group of several channels."""
        counts = np.bincount(self.members)
        means = np.stack([dealt[:, :, self.members == group].mean(axis=2) for group in range(len(counts))], axis=2)
        return np.unravel_index(np.argmax(np.where(counts > 1, means, -np.inf)), means.shape)


def rounded(kernel, bias, moment, members) -> Fine:
    """A `Fine` convolution, on the finest grid that holds every weight.

    Args:
        kernel: (height, width, groups, outputs), real numbers.
        bias: (outputs,).
        moment: (n, n) second moment of the n = height * width * groups inputs, as `tune.rows` puts them.
        members: as for `Fine`.
    """
    counts = np.bincount(members)
    step = max(np.abs(kernel[:, :, group]).max() / count for group, count in enumerate(counts)) / 127.0
    taps = kernel.shape[0] * kernel.shape[1]
    whole = tune.round_kernel(kernel, moment, step, np.tile(127 * counts, taps), _ROUNDING_DAMPING) / step
    return Fine(np.round(whole), bias, step, np.asarray(members))


def finest(kernel, moment, members) -> np.ndarray:
    """A kernel of all channels, each output on the finest grid of its own: (height, width, channels, outputs).

    `kernel`, `moment` and `members` are as for `rounded`.
    """
    outputs = (kernel[..., [output]] for output in range(kernel.shape[3]))
    return np.concatenate([rounded(one, None, moment, members).dealt() for one in outputs], axis=3)


class Body:
    """What luma and rgb files share: the network of one `DRCN` on its integer grids, without its last convolution.

    Args:
        model: `DRCN`.
        network: its residual network with the identity taken out, the heavy kernels on their 8-bit grids.
        ranges: dict of tensor name to (low, high), from `quantize.calibrate` in mode int8.
    """

    def __init__(self, model, network, ranges):
        self.channels, self.gain = model.channels, inference.skip_gain(model)
        self.used = inference.used_recursions(model)
        self.network = tune.copy(network)
        self.ranges = {**ranges, "ilr": (0.0, 1.0), "sr": (0.0, 1.0)}
        self._stretch()

    def _stretch(self):
        """Brings the reconstructions' range to the image's: side by side they share one grid. Exact, after a ReLU."""
        found = [name for name in self.ranges if names.role_of(name) == names.RECONSTRUCTION_1]
        reach = float(max(self.ranges[name][1] for name in found))
        layer = self.network.get_layer(names.RECONSTRUCTION_1)
        layer.set_weights([weights / reach for weights in layer.get_weights()])
        weights = self.network.get_layer(names.ENSEMBLE).get_weights()[0]
        kernel, self.bias = self.network.get_layer(names.RECONSTRUCTION_2).get_weights()
        # The last convolution over all reconstructions side by side.
        self.kernel = np.concatenate([weight * kernel * reach for weight in weights], axis=2)
        self.features = self.kernel.shape[2]
        self.ranges |= dict.fromkeys(found, (0.0, 1.0))

    def reconstructions(self, image, kernel, bias):
        """The reconstructions in use, a list, of an image, a Keras tensor, with this first convolution."""
        layer = self.network.get_layer
        embedding = keras.layers.Conv2D(len(bias), 3, padding="same", activation="relu", name=names.EMBEDDING_1)
        state = layer(names.EMBEDDING_2)(embedding(image))
        embedding.set_weights([kernel, bias])
        found = []
        for recursion in range(1, self.used[-1] + 1):
            state = ops.relu(state + layer(names.INFERENCE)(state))
            if recursion in self.used:
                found.append(layer(names.RECONSTRUCTION_1)(state))
        return found


def side_by_side(draft, images):
    """What the last convolution of a file, bytes, gets for images: arrays (height, width, channels), real numbers."""
    gather = names.tensor("concatenation", flatbuffer.operators(draft)["CONCATENATION"])
    return (value for _, value in quantize.one_by_one(draft, images, f"{re.escape(gather)}$"))


def interleaved(given, kernel, bias, height, width):
    """A convolution that makes s x s pixels at every place, and puts them there.

    One convolution for each row of them: what it gives lies side by side in memory as it does in the image, so RESHAPE
    and CONCATENATION put all in their places: every NPU takes these two, not every one DEPTH_TO_SPACE.

    Args:
        given: Keras tensor, so much larger that the convolution gives height x width places.
        kernel: (rows, columns, channels, s * s, outputs), real numbers.
        bias: (outputs,).

    Returns:
        Keras tensor (1, s * height, s * width, outputs).
    """
    scale = round(kernel.shape[3] ** 0.5)
    rows = []
    for row in range(scale):
        phases = kernel[:, :, :, row * scale : (row + 1) * scale]
        layer = keras.layers.Conv2D(scale * len(bias), kernel.shape[:2])
        pixels = layer(given)
        layer.set_weights([phases.reshape(*phases.shape[:3], -1), np.tile(bias, scale)])
        rows.append(ops.reshape(pixels, (1, height, 1, -1)))
    return ops.reshape(ops.concatenate(rows, axis=2), (1, scale * height, scale * width, len(bias)))


def project(maps, last):
    """The last convolution, a `Fine`, on a Keras tensor."""
    layer = keras.layers.Conv2D(last.kernel.shape[-1], 3, padding="same", name=names.RECONSTRUCTION_2)
    sr = layer(maps)
    layer.set_weights([last.dealt(), last.bias])
    return sr


def fitted(start, bias, gathered, images, target, members) -> Fine:
    """The last convolution by least squares on what the 8-bit layers before it deliver, rounded.

    Args:
        start: (3, 3, groups, outputs), where the fit begins; bias: (outputs,).
        gathered: iterable of (height, width, groups), what stands side by side, group by group, in real numbers.
        images: (count, height, width, outputs), the enlarged images without the network.
        target: likewise, what the float network makes of them.
        members: of the groups, as for `Fine`.
    """
    moment, cross = _moments(start, bias, gathered, images, target)
    damped = moment + _REFIT_DAMPING * np.mean(np.diag(moment)) * np.eye(len(moment))
    kernel = np.concatenate([start.reshape(-1, start.shape[-1]), bias[None]]) + np.linalg.solve(damped, cross)
    last = rounded(kernel[:-1].reshape(start.shape), kernel[-1], moment[:-1, :-1], members)
    # The mean error that rounding left goes into the bias, whose steps are fine.
    left = kernel[:-1] - last.step * last.kernel.reshape(kernel[:-1].shape)
    return dataclasses.replace(last, bias=kernel[-1] + moment[-1, :-1] @ left / moment[-1, -1])


def _moments(start, bias, gathered, images, target):
    kernel = np.concatenate([start.reshape(-1, start.shape[-1]), bias[None]])
    moment, cross = np.zeros((len(kernel), len(kernel))), np.zeros(kernel.shape)
    border = np.full(images.shape[1:3], np.sqrt(_BORDER_WEIGHT))
    border[1:-1, 1:-1] = 1.0
    for image, wanted, given in zip(images, target, gathered, strict=True):
        weight = 1.0 / (_WEIGHT_FLOOR + 255.0**2 * np.mean(np.square(wanted - image)))
        # With the padding: a fit to the inside alone is free to be far off where zeros come in. All receptive fields:
        # with one of three each way a file of mobile-x2 loses a tenth more.
        fields = tune.rows(np.pad(given, ((1, 1), (1, 1), (0, 0)))[None])
        # In float64: what float32 loses exceeds the damping where patches are few.
        fields = np.concatenate([fields, np.ones((len(fields), 1))], axis=1, dtype=np.float64)
        error = wanted.reshape(len(fields), -1) - fields @ kernel
        fields *= border.reshape(-1, 1)
        moment += weight * (fields.T @ fields)
        cross += weight * (fields.T @ (border.reshape(-1, 1) * error))
    return moment, cross


class Program:
    """What `to_tflite` needs to know of a pipeline, for a network that is the whole of it; sizes are its input's."""

    dtype = "float32"

    def __init__(self, network):
        self.network = network
        self.input_name = network.input.name

    def __call__(self, images):
        return self.network(images)

    def shape(self, height, width):
        """Input shape."""
        return (1, height, width, self.network.input.shape[-1])
