"""Training state on disk: complete or not there at all, checked when read, a set number kept.

A checkpoint is one uncompressed .npz: every weight, every optimiser slot, and a JSON text with the step, the
settings and the callbacks' own state. Zip's checksums tell when a file was cut short or changed.
"""

import json
import os
import re
import tempfile
import zipfile

import numpy as np
from absl import logging
from keras import ops

_NAME = "step-{:09d}.npz"
_PATTERN = re.compile(r"step-(\d{9})\.npz$")


def write_atomically(path, write):
    """Calls `write(binary file)` on a new file beside `path` and renames it into place once it is on disk.

    Raises:
        OSError: no space, a read-only folder; `path` is then as it was.
    """
    folder = os.path.dirname(path) or "."
    handle, temporary = tempfile.mkstemp(prefix=".partial-", suffix=os.path.splitext(path)[1], dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def save(folder, model, meta, keep=3):
    """Writes the model's and its optimiser's state as `folder`/step-<step>.npz and prunes older ones.

    Args:
        folder: an existing folder.
        model: a compiled, built DRCN.
        meta: JSON-serialisable dict with at least "step".
        keep: checkpoints to leave, >= 1.
    """
    arrays = {name: ops.convert_to_numpy(variable) for name, variable in _variables(model)}
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    write_atomically(os.path.join(folder, _NAME.format(meta["step"])), lambda file: np.savez(file, **arrays))
    for path in _paths(folder)[:-keep]:
        os.unlink(path)


def newest(folder):
    """The newest readable checkpoint.

    A file that was cut short or changed is named in a warning, and the one before it is used.

    Returns:
        (arrays by name, meta), or None when there is none.
    """
    for path in reversed(_paths(folder)):
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            return arrays, json.loads(bytes(arrays.pop("meta")))
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            logging.warning("checkpoint %s is cut short or damaged (%s); using the one before it", path, error)
    return None


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
