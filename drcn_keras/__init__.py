"""DRCN, the Deeply-Recursive Convolutional Network for image super-resolution, with Keras 3."""

import importlib
import sys

__version__ = "0.1.0"

# Loaded on first use, so that `import drcn_keras` and `--help` do not pay for TensorFlow.
_HOMES = {
    "AlphaAnnealing": "callbacks",
    "DRCN": "model",
    "Soap": "soap",
    "evaluate": "evaluation",
    "load": "presets",
    "upscale": "upscaling",
}
__all__ = ["DRCN", "AlphaAnnealing", "Soap", "evaluate", "load", "upscale"]
# What a model file may name.
_SAVED = {"CenteredIdentity": "layers", "DRCN": "model", "RecursionWeighting": "layers", "Soap": "soap"}


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def _register(keras):
    """Lets `keras.saving.load_model` find the classes of `_SAVED`; each is imported when a file names it."""
    for name in _SAVED:
        keras.saving.get_custom_objects().setdefault(f"{__name__}>{name}", _stand_in(name))


def _stand_in(name):
    class StandIn:
        @staticmethod
        def from_config(config):
            return getattr(importlib.import_module(f"{__name__}.{_SAVED[name]}"), name).from_config(config)

    return StandIn


class _KerasFinder:
    """Has `_register` called once Keras is loaded."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "keras":
            return None
        others = (finder for finder in sys.meta_path if finder is not _KerasFinder and hasattr(finder, "find_spec"))
        spec = next((found for finder in others if (found := finder.find_spec(name, path, target))), None)
        if spec is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module):
                execute(module)
                _register(module)

            spec.loader.exec_module = execute_and_register
        return spec


if "keras" in sys.modules:
    _register(sys.modules["keras"])
else:
    sys.meta_path.insert(0, _KerasFinder)
