"""A model saved under one backend gives the same image under the other."""

import os
import subprocess

import keras
import numpy as np
import pytest
from kit import ROOT

from drcn_keras import DRCN, load

JAX_PYTHON = ROOT / ".venv-jax" / "bin" / "python"
# Loads what TensorFlow saved and what it gave for an image; saves a model of its own and what that gives.
IN_JAX = """
import sys, numpy as np
from drcn_keras import DRCN, load
folder = sys.argv[1]
ilr = np.load(f"{folder}/ilr.npy")
np.save(f"{folder}/tensorflow_in_jax.npy", load(f"{folder}/tensorflow.keras")(ilr))
model = DRCN(recursions=3, filters=4, channels=1, scale=3)
model.save(f"{folder}/jax.keras")
np.save(f"{folder}/jax.npy", model(ilr))
assert "tensorflow" not in sys.modules
"""


def test_models_cross_the_backends(tmp_path):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("started from TensorFlow's side")
    if not JAX_PYTHON.exists():
        pytest.skip(f"no JAX environment at {JAX_PYTHON.relative_to(ROOT)}; `make test-jax` makes it")
    ilr = np.random.default_rng(0).random((1, 21, 17, 1), dtype="float32")
    model = DRCN(recursions=3, filters=4, channels=1, scale=3)
    model.alpha.assign(0.25)
    model.save(tmp_path / "tensorflow.keras")
    np.save(tmp_path / "ilr.npy", ilr)
    environment = {**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": str(ROOT)}
    subprocess.run([JAX_PYTHON, "-c", IN_JAX, tmp_path], check=True, env=environment)

    np.testing.assert_allclose(np.load(tmp_path / "tensorflow_in_jax.npy"), np.array(model(ilr)), rtol=0, atol=1e-5)
    other = load(str(tmp_path / "jax.keras"))
    assert other.scale == 3
    np.testing.assert_allclose(np.array(other(ilr)), np.load(tmp_path / "jax.npy"), rtol=0, atol=1e-5)
    assert np.ptp(np.load(tmp_path / "jax.npy")) > 0.1
