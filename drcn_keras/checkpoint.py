"""Training state on disk: complete or not there at all, checked when read, a set number kept.

A checkpoint is one uncompressed .npz: every weight, every optimiser slot, and a JSON text with the step, the
settings and the callbacks' own state. Zip's checksums tell when a file was cut short or changed.
"""

import io
import json
import os
import re
import zipfile

import numpy as np
from absl import logging

from drcn_keras.errors import ArgumentError, UserError
from drcn_keras.files import write_atomically

_NAME = "step-{:09d}.npz"
_PATTERN = re.compile(r"step-(\d{9})\.npz$")


def save(folder, model, meta, keep=3):
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
    for path in _paths(folder)[:-keep]:
        os.unlink(path)


def newest(folder, objection=lambda meta: None):
    """The newest checkpoint that is whole and to which nothing is objected.

    One that is cut short, changed or of another configuration is named in a warning, and the one before it is
    used.

    Args:
        folder: path of an existing folder.
        objection: function of a checkpoint's meta; returns a reason not to use it, one line, or None.

    Returns:
        The file's bytes, for `unpack`; empty when there is no checkpoint at all.

    Raises:
        UserError: there are checkpoints but none can be used.
    """
    paths = _paths(folder)
    refused = []
    for path in reversed(paths):
        try:
            with open(path, "rb") as file:
                data = file.read()
            _, meta = unpack(data)
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            logging.warning("checkpoint %s is cut short or damaged (%s)", path, error)
            continue
        reason = objection(meta)
        if reason:
            refused.append((path, reason))
            continue
        for other in refused:
            logging.warning("checkpoint %s is of another configuration: %s", *other)
        return data
    if refused:
        raise ArgumentError(refused[0][1])
    if paths:
        raise UserError(f"none of the {len(paths)} checkpoints in {folder} is whole; fresh starts over.")
    return b""


def unpack(data):
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


def restore(model, arrays):
    """Assigns the arrays of `newest` to a compiled, built model.

    Raises:
        ValueError: a name is missing or a shape differs: the checkpoint is another model's.
    """
    variables = dict(_variables(model))
    if variables.keys() != arrays.keys():
        raise ValueError(f"the checkpoint lacks or adds {sorted(variables.keys() ^ arrays.keys())}")
    for name, variable in variables.items():
        if tuple(variable.shape) != arrays[name].shape:
            raise ValueError(f"{name} is {arrays[name].shape} in the checkpoint, {tuple(variable.shape)} in the model")
        variable.assign(arrays[name])


def _paths(folder):
    return sorted(os.path.join(folder, name) for name in os.listdir(folder) if _PATTERN.match(name))


def _variables(model):
    # By place, not by path: Keras numbers paths by process ("drcn_1").
    for kind, variables in (("model", model.weights), ("optimizer", model.optimizer.variables)):
        for index, variable in enumerate(variables):
            yield f"{kind}/{index:03d}", variable
