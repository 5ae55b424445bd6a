"""Training state on disk: complete or not there at all, checked when read, a set number kept.

A checkpoint is one uncompressed .npz: every weight, every optimiser slot, and a JSON text with the step, the
settings and the callbacks' own state. Zip's checksums tell when a file was cut short or changed.
"""

import contextlib
import io
import json
import os
import re
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging

from drcn_keras.errors import ArgumentError, UserError
from drcn_keras.files import set_aside, write_atomically

_NAME = "step-{:09d}.npz"
# What reading one that is cut short, changed or incomplete raises.
_DAMAGE = (OSError, EOFError, ValueError, LookupError, TypeError, zipfile.BadZipFile)
_PATTERN = re.compile(r"step-(\d{9})\.npz$")


def save(folder: str, model: Any, meta: dict, keep: int = 3) -> None:
    """Writes the model's and its optimiser's state as `folder`/step-<step>.npz and prunes older ones.

    Args:
        folder: an existing folder.
        model: a compiled, built DRCN.
        meta: JSON-serialisable dict with at least "step".
        keep: checkpoints to leave, >= 1.

    Raises:
        UserError: the file cannot be written, or a value is not finite; older checkpoints are then as they were.
    """
    # Here, so that a command that only writes a file through this module does not wait for Keras.
    from keras import ops

    arrays = {name: ops.convert_to_numpy(variable) for name, variable in _variables(model)}
    for name, array in arrays.items():
        if not np.all(np.isfinite(array)):
            raise UserError(f"no checkpoint is written at step {meta['step']}: {name} holds NaN or infinity.")
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    packed = io.BytesIO()
    np.savez(packed, **arrays)
    write_atomically(os.path.join(folder, _NAME.format(meta["step"])), lambda file: file.write(packed.getbuffer()))
    # Those of later steps are another run's: they do not count, or they would drive this one's out.
    own = [path for path in _paths(folder) if os.path.basename(path) <= _NAME.format(meta["step"])]
    for path in own[:-keep]:
        os.unlink(path)


def newest(
    folder: str,
    objection: Callable[[dict], str | None] = lambda meta: None,
    flaw: Callable[[dict, dict], str | None] = lambda arrays, meta: None,
) -> bytes:
    """The newest checkpoint that is whole and to which nothing is objected.

    One that is cut short or changed, or lacks a part, is set aside with a warning; one of another configuration is
    named in a warning. The one before it is used.

    Args:
        folder: path of an existing folder.
        objection: function of a checkpoint's meta; returns a reason not to use it, one line, or None.
        flaw: function of arrays and meta, to which nothing is objected; returns what they lack, or None.

    Returns:
        The file's bytes, for `unpack`; empty when there is no checkpoint at all.

    Raises:
        UserError: there are checkpoints but none can be used.
    """
    paths = _paths(folder)
    refused, damaged = [], []
    for path in reversed(paths):
        try:
            with open(path, "rb") as file:
                arrays, meta = unpack(data := file.read())
            reason = objection(meta)
            lacking = None if reason else flaw(arrays, meta)
            if lacking:
                raise ValueError(lacking)
        except _DAMAGE as error:
            damaged.append((path, f"checkpoint {path} is cut short or damaged ({error})"))
            continue
        if reason:
            refused.append((path, reason))
            continue
        for other in refused:
            logging.warning("checkpoint %s is of another configuration: %s", *other)
        for other in damaged:
            set_aside(*other)
        return data
    # All stay where they are: the next start must not take this for a new run.
    for _, why in damaged:
        logging.warning(why)
    if refused:
        raise ArgumentError(refused[0][1])
    if paths:
        raise UserError(f"none of the {len(paths)} checkpoints in {folder} is whole; `fresh` starts over.")
    return b""


def newest_settings(folder: str) -> dict:
    """The settings that the newest checkpoint which can be read was made with; empty where there is none."""
    for path in reversed(_paths(folder) if os.path.isdir(folder) else []):
        with contextlib.suppress(*_DAMAGE), open(path, "rb") as file:
            return unpack(file.read())[1]["settings"]
    return {}


def unpack(data: bytes) -> tuple[dict, dict]:
    """What a checkpoint holds.

    Args:
        data: the file's bytes.

    Returns:
        (arrays by name, meta).

    Raises:
        ValueError, KeyError, EOFError, zipfile.BadZipFile: it is cut short or damaged.
    """
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    return arrays, json.loads(bytes(arrays.pop("meta")))


def mismatch(model: Any, arrays: dict) -> str | None:
    """What the arrays of `unpack` lack, add or have in another shape than a compiled, built model; None if nothing."""
    variables = dict(_variables(model))
    if variables.keys() != arrays.keys():
        return f"it lacks or adds {', '.join(sorted(variables.keys() ^ arrays.keys()))}"
    for name, variable in variables.items():
        if tuple(variable.shape) != arrays[name].shape:
            return f"{name} is {arrays[name].shape} in the checkpoint, {tuple(variable.shape)} in the model"
    return None


def restore(model: Any, arrays: dict) -> None:
    """Assigns the arrays of `unpack`, in which `mismatch` finds nothing, to a compiled, built model."""
    for name, variable in _variables(model):
        variable.assign(arrays[name])


def _paths(folder):
    paths = (os.path.join(folder, name) for name in os.listdir(folder) if _PATTERN.match(name))
    return sorted(path for path in paths if os.path.isfile(path))


def _variables(model):
    # By place, not by path: Keras numbers paths by process ("drcn_1").
    for kind, variables in (("model", model.weights), ("optimizer", model.optimizer.variables)):
        for index, variable in enumerate(variables):
            yield f"{kind}/{index:03d}", variable
