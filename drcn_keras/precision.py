"""float32 or bfloat16 for all convolutions but the first.

bfloat16 has float32's range and 8 bits of mantissa. A processor or GPU that multiplies it natively does so two to
sixteen times as fast; one that does not emulates it, slowly. What takes the image itself, the first convolution and the
skip, stays in float32, so that an image of a trained network is some 80 dB from float32's.

What bfloat16 gives differs in the last levels from machine to machine, as their sums have other orders.
"""

import functools
import sys
import time

import numpy as np
from absl import flags

from drcn_keras.errors import ArgumentError

PRECISIONS = ("auto", "float32", "bfloat16")
# Flags of /proc/cpuinfo: x86's AVX-512 and AMX instructions for bfloat16, and Arm's.
_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")
_GPU_CAPABILITY = (8, 0)  # NVIDIA Ampere, the first whose tensor cores take bfloat16.
_CPU_FEATURES = "/proc/cpuinfo"
# "auto" wants more than the noise of a measurement.
_GAIN = 1.2


def chosen(precision: str) -> tuple[str, str]:
    """What a precision comes to on this machine.

    Args:
        precision: "float32"; "bfloat16"; or "auto": bfloat16 where this machine multiplies it natively and a few
            convolutions of a mobile network, timed once per process, are at least 1.2 times as fast in it.

    Returns:
        ("float32" or "bfloat16", why: a phrase).

    Raises:
        ArgumentError: `precision` is none of these.
    """
    if precision not in PRECISIONS:
        raise ArgumentError(f"`precision` must be one of {', '.join(PRECISIONS)}; received {precision!r}.")
    if precision != "auto":
        return precision, "as asked"
    unit = native()
    if not unit:
        return "float32", "nothing here multiplies bfloat16 natively"
    gain = _measured_gain()
    if gain < _GAIN:
        return "float32", f"bfloat16 is native here ({unit}), but only {gain:.2f} times as fast"
    return "bfloat16", f"native here ({unit}) and {gain:.1f} times as fast"


def announced(precision: str) -> str:
    """`chosen(precision)[0]`, for a command: says on standard error what "auto" came to, and that emulation is slow."""
    name, why = chosen(precision)
    if precision == "auto":
        print(f"precision {name}: {why}", file=sys.stderr)
    elif name == "bfloat16" and not native():
        print("precision bfloat16: emulated on this machine, expect it to be slow", file=sys.stderr)
    return name


def define_precision(default: str) -> None:
    """The flag --precision of a command."""
    flags.DEFINE_enum(
        "precision",
        default,
        PRECISIONS,
        "what all convolutions but the first compute in; auto: bfloat16 where this machine multiplies it natively and "
        "is measured to be faster in it, else float32",
    )


def layer_policy(precision: str) -> str:
    """The Keras dtype policy of an inner layer; its weights are float32 in either. `precision` is not "auto"."""
    return {"float32": "float32", "bfloat16": "mixed_bfloat16"}[precision]


def native() -> str:
    """What multiplies bfloat16 natively where Keras computes: a phrase, or "" where nothing does."""
    capabilities = _gpu_capabilities()
    if capabilities:
        lowest = min(capabilities)
        return f"GPU of compute capability {lowest[0]}.{lowest[1]}" if lowest >= _GPU_CAPABILITY else ""
    return next((flag for flag in _FLAGS if flag in _processor_flags()), "")


def _gpu_capabilities() -> list[tuple[int, ...]]:
    """The (major, minor) compute capability of each GPU that the backend sees."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        found = [getattr(device, "compute_capability", "0.0") for device in jax.devices() if device.platform == "gpu"]
        return [tuple(map(int, capability.split("."))) for capability in found]
    if keras.backend.backend() == "torch":
        import torch

        return [torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())]
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    return [tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0)) for gpu in gpus]


def _processor_flags() -> set[str]:
    """The processor's features as Linux names them; empty on other systems."""
    try:
        with open(_CPU_FEATURES) as file:
            lines = [line.partition(":") for line in file]
    except OSError:
        return set()
    return {flag for key, _, flags in lines if key.strip() in ("flags", "Features") for flag in flags.split()}


@functools.cache
def _measured_gain() -> float:
    """How many times as fast three convolutions with 32 filters are in bfloat16: best of several, in turn."""
    import keras

    side, filters = 192, 32
    networks = {}
    for precision in ("float32", "bfloat16"):
        layers = [
            keras.layers.Conv2D(filters, 3, padding="same", activation="relu", dtype=layer_policy(precision))
            for _ in range(3)
        ]
        networks[precision] = keras.Sequential([keras.Input((side, side, filters)), *layers])
        networks[precision].compile(jit_compile=keras.backend.backend() == "jax")
    features = np.ones((1, side, side, filters), np.float32)
    seconds: dict[str, list[float]] = {precision: [] for precision in networks}
    for _ in range(8):
        for precision, network in networks.items():
            start = time.perf_counter()
            network.predict_on_batch(features)
            seconds[precision].append(time.perf_counter() - start)
    return min(seconds["float32"]) / min(seconds["bfloat16"])
