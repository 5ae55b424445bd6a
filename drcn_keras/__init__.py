"""DRCN, the Deeply-Recursive Convolutional Network for image super-resolution, with Keras 3."""

import importlib

__version__ = "0.1.0"

# Loaded on first use, so that `import drcn_keras` and `--help` do not pay for TensorFlow.
_HOMES = {"DRCN": "model", "load": "presets", "upscale": "upscaling", "evaluate": "evaluation"}
__all__ = ["DRCN", "evaluate", "load", "upscale"]


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
