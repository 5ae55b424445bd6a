"""What a .tflite file is held to: one set of numbers. The exporter obeys it, the manifest carries it to every checker.

golden: against what the same file gave where it was exported; another processor sums in another order, and quantised
values can fall on the other side of a rounding step. Learned from mobile-x2 in ai-edge-litert 1.4.0 and 2.3.0 on
x86-64: XNNPACK repeats XNNPACK's bits; the built-in kernels give at worst 138 dB in float32 and float16, 75 in dynamic,
63 in int8 (5 % of the pixels differ), 55 in int8_full (its rgb file: 18 %); mobile-x4 49.5 in int8_full. Where runtime
and processor are the exporter's, check.py asks for more. xnnpack: the same wherever XNNPACK runs every convolution;
on emulated Arm int8 gives 149.8 dB, int8_full the same bits. float: the patches of photographs against the float model.
PSNR in dB; ulp: the largest difference in units of the last place; differing: share of the pixels that differ after
rounding to 8 bit.
"""

import math
from typing import Any

_OF_MODE: dict[str, dict[str, Any]] = {
    "float32": {"golden_psnr": 100.0, "golden_ulp": 1000.0, "golden_differing": 0.01, "float_psnr": 97.0},
    "float16": {"golden_psnr": 90.0, "golden_ulp": 4000.0, "golden_differing": 0.02, "float_psnr": 70.0},
    "dynamic": {"golden_psnr": 50.0, "golden_ulp": None, "golden_differing": 0.5, "float_psnr": 45.0},
    "int8": {
        "golden_psnr": 58.0,
        "xnnpack_psnr": 100.0,
        "golden_ulp": None,
        "golden_differing": 0.2,
        "float_psnr": 45.0,
    },
    "int8_full": {
        "golden_psnr": 47.0,
        "xnnpack_psnr": 65.0,
        "golden_ulp": None,
        "golden_differing": 0.3,
        "float_psnr": 45.0,
    },
    "int16x8": {"golden_psnr": 55.0, "golden_ulp": None, "golden_differing": 0.3, "float_psnr": 50.0},
}
# An 8-bit output is rounded: where the float value lies between two levels, the last bit of a sum decides. At
# 65 dB one value in fifty is one level off.
_EIGHT_BIT = {"golden_psnr": 65.0, "xnnpack_psnr": 65.0, "golden_ulp": 1.0, "float_psnr": 52.0}


def limits_of(mode: str, output_dtype: str, pipeline: str = "luma") -> dict[str, Any]:
    """The limits of a file, as the manifest holds them; None is no limit.

    Args:
        mode: one of `names.MODES`.
        output_dtype: "float32", "int8" or "uint8", of the file's output.
        pipeline: one of `names.PIPELINES`; rgb files round to 8 bit whatever their output's type is.
    """
    limits = {"xnnpack_psnr": None} | _OF_MODE[mode]
    if output_dtype == "uint8" or pipeline == "rgb":
        for name, least in _EIGHT_BIT.items():
            limits[name] = limits[name] and min(limits[name], least)
        if output_dtype == "float32":
            limits["golden_ulp"] = None  # One level is thousands of float32's units.
    return limits


def required_psnr(limits: dict[str, Any]) -> float:
    """dB against the float model that a file needs where it is exported, more than a checker asks for.

    A device may be as far from the golden output as `golden_psnr` allows, in a direction of its own, and must still
    reach `float_psnr`: mean squared errors add up.
    """
    allowed = 10.0 ** (-limits["float_psnr"] / 10.0) - 10.0 ** (-limits["golden_psnr"] / 10.0)
    return -10.0 * math.log10(allowed)
