"""What the functions make of what they are given: the model, its scales, the tile, images that are left out."""

import functools
import os
import sys
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

from absl import logging
from tqdm import tqdm

from drcn_keras import errors
from drcn_keras.card import path_of
from drcn_keras.errors import ArgumentError, UserError
from drcn_keras.image import SCALES
from drcn_keras.process import claim

if TYPE_CHECKING:
    from drcn_keras.model import DRCN

# What trains and upscales here; Keras has others, for inference alone.
BACKENDS = ("tensorflow", "jax", "torch")
_KEPT_MODELS = 8
_LOADING = threading.Lock()


def warn_skipped(reason: object) -> None:
    """Says on standard error, above the progress bar, which image is left out and why."""
    with tqdm.external_write_mode(file=sys.stderr):
        logging.warning("skipped: %s", reason)


def check_scales(scales: Iterable[int]) -> None:
    """Raises ArgumentError unless `scales` are enlargements that the field measures: 2, 3 and 4."""
    for scale in scales:
        if scale not in SCALES:
            raise ArgumentError(f"`scale` must be 2, 3 or 4; received {scale}.")


def load_for(model: "DRCN | str | os.PathLike", scales: Iterable[int] = ()) -> "DRCN":
    """The DRCN that `model` is or names. Raises ArgumentError where it is for other scales than `scales`."""
    network = loaded(model)
    for scale in scales:
        if scale not in network.scales:
            known = " and ".join(f"x{scale}" for scale in network.scales)
            raise ArgumentError(f"`scale={scale}`, but the model's weights are for {known}: {model}.")
    return network


def load_at(model: "DRCN | str | os.PathLike", scale: int | None = None) -> "DRCN":
    """The DRCN that `model` is or names, for one scale: an export's, which has no other.

    Args:
        model: a `DRCN`, or what `drcn_keras.load` takes.
        scale: 2, 3 or 4; None: the model's only one.

    Raises:
        ArgumentError: it is for other scales, or for several and `scale` is None.
    """
    network = load_for(model, () if scale is None else (scale,))
    scale = network.scale if scale is None else scale
    if scale is None:
        raise ArgumentError(f"`scale` is required, one of {network.scales}, for a model of several scales: {model}.")
    return network.at(scale)


def loaded(model: "DRCN | str | os.PathLike") -> "DRCN":
    """The DRCN that `model` is, or that `drcn_keras.load` finds under it: kept, shared, and not to be changed.

    A file is loaded again once it has changed.
    """
    if not isinstance(model, (str, os.PathLike)):
        return model
    import_keras()
    from drcn_keras.presets import load

    claim()
    try:
        state = os.stat(path_of(os.fspath(model)))
    except OSError:
        return load(model)  # Which says what is wrong.
    with _LOADING:
        return _load_once(os.fspath(model), state.st_dev, state.st_ino, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=_KEPT_MODELS)
def _load_once(model, *state):
    from drcn_keras.presets import load

    return load(model)


def import_keras(start: bool = True) -> None:
    """Imports Keras, without its backend's notices.

    Args:
        start: let the backend look for its devices too, which tf.distribute must do by itself.

    Raises:
        UserError: KERAS_BACKEND or keras.json names no backend that is here and can train.
    """
    try:
        with errors.tensorflow_notices_hidden():
            import keras

            if start:
                keras.ops.zeros(1)
        backend, reason = keras.backend.backend(), ""
    except (ImportError, ValueError, AssertionError) as error:
        backend, reason = os.environ.get("KERAS_BACKEND", "what keras.json says"), f" ({error})"
    if reason or backend not in BACKENDS:
        raise UserError(f"KERAS_BACKEND must be one of {', '.join(BACKENDS)}, and installed; it is {backend}{reason}.")


def check_tile(tile: int | None, model: "DRCN") -> None:
    """Raises ArgumentError where `tile`, not None, has no room beside the model's halo."""
    if tile is not None and tile <= 2 * model.halo:
        raise ArgumentError(f"`tile` must be more than {2 * model.halo}, twice the model's halo; received {tile}.")
