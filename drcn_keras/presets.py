"""Trained models by name: the presets that ship with the package, and any `.keras` file that holds a DRCN."""

import os
import zipfile

import keras
import numpy as np
from keras import ops

from drcn_keras.card import path_of, presets
from drcn_keras.errors import UserError
from drcn_keras.model import DRCN


def load(model):
    """Loads a trained DRCN.

    Args:
        model: the name of a preset, such as "mobile-x2", or the path of a `.keras` file that `DRCN.save` wrote.

    Returns:
        The `DRCN`, compile state included.

    Raises:
        UserError: the file is missing, is damaged, is no DRCN, or holds a weight that is not finite.
    """
    path = path_of(model)
    if not os.path.isfile(path):
        raise UserError(
            f"no model {path}; expected a .keras file that drcn_keras.train wrote, or one of {', '.join(presets())}."
        )
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is not a readable DRCN model: it is damaged, or no .keras file.")
    try:
        model = keras.saving.load_model(path, safe_mode=True)
    except Exception as error:  # Keras raises many kinds, from zipfile's to TypeError.
        # Of Keras's many sentences, the cause if there is one, or the first.
        reason = str(error).split("Exception encountered:")[-1].strip().split(". ")[0]
        raise UserError(f"{path} is not a readable DRCN model: {reason}") from error
    if not isinstance(model, DRCN):
        raise UserError(f"{path} holds a {type(model).__name__}, not a DRCN.")
    for weight in model.weights:
        if not np.all(np.isfinite(ops.convert_to_numpy(weight))):
            raise UserError(f"{path} holds NaN or infinity in {weight.path}; it cannot be used.")
    return model
