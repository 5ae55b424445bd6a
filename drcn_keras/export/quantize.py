"""Float .tflite files made smaller: which operators become what, and from which measured ranges.

The bulk of a DRCN's work, the D recursions and their reconstructions, is three convolutions' weights (`names.HEAVY`).
The first convolution and the last are 0.2 per cent of the work at 32 filters and touch the image itself, so they stay
in float in every 8-bit mode; so does the skip.
"""

import contextlib
import logging
import re
import warnings

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import quantizer, recipe_manager
from ai_edge_quantizer.qtyping import TFLOperationName as Operation

from drcn_keras.export import flatbuffer, names, runner

_HEAVY = names.pattern(*names.HEAVY)
_STATE = names.pattern(names.STATE)
_WHOLE = (
    Operation.INPUT,
    Operation.OUTPUT,
    Operation.CONV_2D,
    Operation.ADD,
    Operation.CONCATENATION,
    Operation.STRIDED_SLICE,
    Operation.RESHAPE,
)
_LEVELS = 255
_SAMPLES = 200_000
# Of an observed range, what a grid holds at least.
_LEAST_SHARE = 0.85


def to_mode(content, mode, ranges=None):
    """A float file in another mode.

    Args:
        content: bytes of a file that `pipeline.to_tflite` made.
        mode: one of `names.MODES`.
        ranges: for the `names.CALIBRATED` modes, dict of tensor name to (low, high).

    Returns:
        bytes.
    """
    if mode == "float32":
        return content
    if mode == "float16":
        return flatbuffer.halve(content)
    rules = recipe_manager.RecipeManager()
    calibration = None
    if mode == "dynamic":
        rules.add_dynamic_config(_HEAVY, Operation.CONV_2D, num_bits=8)
        # Its rounding would go through every recursion, and it is called once: 8 bit in the file, float at work.
        rules.add_weight_only_config(names.pattern(names.EMBEDDING_2), Operation.CONV_2D, num_bits=8)
    elif mode == "int8_full":
        for operation in _WHOLE:
            rules.add_static_config(".*", operation, activation_num_bits=8, weight_num_bits=8)
        calibration = {name: _statistics(*bounds) for name, bounds in ranges.items()}
    else:
        bits = {"int8": 8, "int16x8": 16}[mode]
        for pattern, operation in ((_HEAVY, Operation.CONV_2D), (_STATE, Operation.ADD)):
            rules.add_static_config(pattern, operation, activation_num_bits=bits, weight_num_bits=8)
        calibration = {name: _statistics(*bounds) for name, bounds in ranges.items()}
    with _looking_inside(), _quiet():
        tool = quantizer.Quantizer(bytearray(content), rules.get_quantization_recipe())
        result = tool.quantize(calibration, enable_progress_report=False, enable_progress_bar=False)
    return bytes(result.quantized_model)


@contextlib.contextmanager
def _quiet():
    """The quantiser logs every rule that another one overrides."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _looking_inside():
    """LiteRT warns that keeping inner tensors is for debugging; calibration is that."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*preserve_all_tensors")
        yield


def _statistics(low, high):
    shape = (1, 1, 1, 1)
    # An integer grid must hit 0 exactly: it is the padding's value.
    return {
        "min": np.full(shape, min(low, 0.0), np.float32),
        "max": np.full(shape, max(high, 0.0), np.float32),
    }


def observe(content, images):
    """What every tensor of the network holds while it looks at representative images.

    Args:
        content: bytes of a float luma file.
        images: array (count, height, width, channels) of ILR.

    Returns:
        dict of tensor name to a dict: "low", "high" (floats), "channels" (largest magnitude per channel),
        "sample" (some of the values).
    """
    random = np.random.default_rng(0)
    observed = {}
    for name, value in one_by_one(content, images):
        seen = observed.setdefault(name, {"low": np.inf, "high": -np.inf, "channels": 0.0, "sample": []})
        seen["low"] = min(seen["low"], float(value.min()))
        seen["high"] = max(seen["high"], float(value.max()))
        seen["channels"] = np.maximum(seen["channels"], np.abs(value).max(axis=(0, 1)))
        seen["sample"].append(random.choice(value.ravel(), max(1, _SAMPLES // len(images))))
    for seen in observed.values():
        seen["sample"] = np.concatenate(seen["sample"]).astype(np.float64)
    return observed


def values(content, images, pattern):
    """A luma file's float feature maps whose names match: dict of name to array (count, height, width, channels)."""
    found = {}
    for name, value in one_by_one(content, images, pattern):
        found.setdefault(name, []).append(value)
    return {name: np.stack(maps) for name, maps in found.items()}


def one_by_one(content, images, pattern=""):
    """(name, float32 (height, width, channels)) of the feature maps whose names match, image after image.

    No more than one is held, and none is read that is not asked for. Those of a file of integers come in real numbers.
    """
    with _looking_inside():
        interpreter = Interpreter(model_content=content, experimental_preserve_all_tensors=True)
    entry = interpreter.get_input_details()[0]
    (step, zero), digits = entry["quantization"], int(entry["shape"][-1]) // images.shape[-1]
    interpreter.resize_tensor_input(entry["index"], (1, *images.shape[1:-1], digits * images.shape[-1]))
    interpreter.allocate_tensors()
    details = [
        detail
        for detail in interpreter.get_tensor_details()
        if len(detail["shape"]) == 4 and re.match(pattern, name := detail["name"]) and name and "/" not in name
    ]
    for image in images:
        interpreter.set_tensor(entry["index"], runner.stepped(image, step, zero, digits)[None])
        interpreter.invoke()
        for detail in details:
            value = interpreter.get_tensor(detail["index"])[0]
            if step:
                value = runner.unstepped(value, *detail["quantization"])
            if value.dtype == np.float32:
                yield detail["name"], value


def best_range(seen):
    """The range, at most the observed one, whose 256 levels hold the sample with the least squared error.

    No more than the outermost 15 % are cut. In photographs unlike the representative ones larger values come: cut at
    60 %, as the error would have it, mobile-x2 lost 0.024 dB on Set14, which has drawn text, instead of 0.008.

    Returns:
        (low, high), floats, low <= 0 <= high.
    """
    low, high, sample = min(seen["low"], 0.0), max(seen["high"], 0.0), seen["sample"]
    if low == high:
        return 0.0, 1.0  # Nothing was seen but 0.

    def error(share):
        step = share * (high - low) / _LEVELS
        zero = np.round(share * low / step)
        steps = np.clip(np.round(sample / step), zero, zero + _LEVELS)
        return np.mean(np.square(steps * step - sample))

    share = min(np.linspace(_LEAST_SHARE, 1.0, 31), key=error)
    return share * low, share * high


def _whole_range(seen):
    return seen["low"], seen["high"]


def calibrate(content, images, mode):
    """The ranges for `to_mode` from representative images: all that was seen at 16 bit, the best cut at 8.

    Every call of a layer has its own. The state grows from recursion to recursion, in mobile-x4 ninefold from the
    first to the last, and so does what its first ones lose by rounding: on the last one's grid 0.097 dB on Set5
    instead of none.
    """
    chosen = _whole_range if mode == "int16x8" else best_range
    return {name: chosen(seen) for name, seen in observe(content, images).items()}
