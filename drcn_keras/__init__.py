"""DRCN, the Deeply-Recursive Convolutional Network for image super-resolution, with Keras 3."""

import importlib
import sys
import types

__version__ = "0.1.0"

# Loaded on first use, so that `import drcn_keras` and `--help` do not pay for TensorFlow.
_HOMES = {"DRCN": "model", "load": "model", "upscale": "upscale", "evaluate": "evaluate"}
__all__ = ["DRCN", "evaluate", "load", "upscale"]


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


class _Package(types.ModuleType):
    """Keeps `drcn_keras.upscale` and `.evaluate` the functions when their modules of the same name are imported."""

    def __setattr__(self, name, value):
        if name in _HOMES and isinstance(value, types.ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
