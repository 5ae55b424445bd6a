"""What the tests share beside fixtures: places, the environment of commands, one builder of small models."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import skimage

ROOT = pathlib.Path(__file__).parent.parent
PHOTOGRAPHS = pathlib.Path(skimage.__file__).parent / "data"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"}


def small_drcn(recursions=2, filters=4, channels=1, scale=2, seed=0, kept=1.0, spread=0.1, ensemble=None):
    """A DRCN whose every weight matters, its biases and its ensemble too. The same for the same arguments.

    Args:
        kept: share of the initial weights, of the identity among them, that stays.
        spread: standard deviation of what is added to every weight.
        ensemble: the ensemble's weights; None: random ones.
    """
    import keras
    from keras import ops

    from drcn_keras.model import DRCN

    keras.utils.set_random_seed(seed)
    model = DRCN(recursions=recursions, filters=filters, channels=channels, scale=scale)
    random = np.random.default_rng(seed)
    for weight in model.trainable_weights:
        weight.assign(kept * ops.convert_to_numpy(weight) + random.normal(0, spread, weight.shape))
    if ensemble is not None:
        model.ensemble_weights.assign(ensemble)
    # A residual as small as a trained one, so that the result is an image still.
    kernel, bias = model.get_layer("reconstruction_2").get_weights()
    model.get_layer("reconstruction_2").set_weights([0.1 * kernel, 0.1 * bias])
    return model


def tiny_settings(train_dir, model_dir, **changes):
    """The settings of a training on three photographs that takes a moment."""
    from training_process import TINY

    from drcn_keras.settings import Settings

    common = {**TINY, "epochs": 2, "tensorboard": False}
    return Settings(**{"train_dir": str(train_dir), "model_dir": str(model_dir), **common, **changes})


def vela_operators(path):
    """Operators of a .tflite file by where Arm's compiler for the Ethos-U55 puts them: dict of "CPU" and "NPU"."""
    vela = shutil.which("vela", path=os.path.dirname(sys.executable))
    if not vela:
        pytest.skip("ethos-u-vela is not installed (the dev extra)")
    command = [vela, path, "--accelerator-config=ethos-u55-256", f"--output-dir={path.parent}"]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {where: int(re.search(rf"{where} operators = (\d+)", report)[1]) for where in ("CPU", "NPU")}
