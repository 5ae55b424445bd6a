"""Trained models by name: the presets that ship with the package, and any `.keras` file that holds a DRCN."""

import json
import os
import zipfile
from typing import Any

import keras
import numpy as np
from keras import ops

from drcn_keras.card import MOST_FILTERS, MOST_RECURSIONS, path_of, presets
from drcn_keras.errors import UserError
from drcn_keras.model import DRCN
from drcn_keras.process import claim

# Beside what a training may have: what a file may ask for without filling the memory.
MOST_PARAMETERS = 10**8
_LONGEST_CONFIG = 10**6  # bytes; a DRCN's takes about 2,000


def load(model: str | os.PathLike, any_size: bool = False) -> DRCN:
    """Loads a trained DRCN.

    Args:
        model: the name of a preset, such as "mobile-x2", or the path of a `.keras` file that `DRCN.save` wrote.
        any_size: load a network of more than 256 recursions, 1,024 filters or 10^8 parameters too.

    Returns:
        The `DRCN`, compile state included, a new one at every call.

    Raises:
        UserError: the file is missing, is damaged, is no DRCN, asks for more than the above, or holds a weight that
            is not finite; or this process is a fork of one that had a DRCN.
    """
    path = path_of(os.fspath(model))
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"{path} is no regular file; expected a .keras file that drcn_keras.train wrote.")
    if not os.path.isfile(path):
        raise UserError(
            f"no model {path}; expected a .keras file that drcn_keras.train wrote, or one of {', '.join(presets())}."
        )
    with open(path, "rb") as file:
        if file.read(4) == b"\x89HDF":
            raise UserError(f"{path} is HDF5 (.h5), Keras's older format, which is not read here; expected .keras.")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is not a readable DRCN model: it is damaged, or no .keras file.")
    claim()
    try:
        _check_config(path, _config(path), any_size)
        network = keras.saving.load_model(path, safe_mode=True)
    except UserError:
        raise
    except Exception as error:  # Keras raises many kinds, from zipfile's to TypeError.
        # Of Keras's many sentences, the cause if there is one, or the first.
        reason = str(error).split("Exception encountered:")[-1].strip().split(". ")[0]
        raise UserError(f"{path} is not a readable DRCN model: {reason}") from error
    for weight in network.weights:
        if not np.all(np.isfinite(ops.convert_to_numpy(weight))):
            raise UserError(f"{path} holds NaN or infinity in {weight.path}; it cannot be used.")
    return network


def _config(path):
    """What a `.keras` file says that it holds, before anything of it is built. Raises many kinds of errors."""
    with zipfile.ZipFile(path) as file:
        if file.getinfo("config.json").file_size > _LONGEST_CONFIG:
            raise ValueError(f"its config.json has more than {_LONGEST_CONFIG} bytes.")
        return json.loads(file.read("config.json"))


def _check_config(path: str, config: dict[str, Any], any_size: bool) -> None:
    """Raises UserError for another kind of model, and for a network that is beyond all bounds."""
    if config["registered_name"] != "drcn_keras>DRCN":
        raise UserError(f"{path} holds a {config['class_name']}, not a DRCN.")
    recursions, filters, channels = (config["config"][name] for name in ("recursions", "filters", "channels"))
    parameters = (27 * filters + 18 * channels + 4) * filters + channels + recursions
    too_large = recursions > MOST_RECURSIONS or filters > MOST_FILTERS or parameters > MOST_PARAMETERS
    if too_large and not any_size:
        raise UserError(
            f"{path} asks for {recursions:,} recursions of {filters:,} filters, {parameters:,} parameters; at most "
            f"{MOST_RECURSIONS}, {MOST_FILTERS:,} and {MOST_PARAMETERS:,} are loaded, unless "
            "drcn_keras.load(..., any_size=True) asks for it."
        )
