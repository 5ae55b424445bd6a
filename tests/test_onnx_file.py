"""The ONNX file in ONNX Runtime against the Keras model, and the command."""

import subprocess
import sys

import numpy as np
import pytest
from keras import ops

onnx = pytest.importorskip("onnx", reason="onnx is not installed (the onnx extra)")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (the dev extra)")

from drcn_keras.errors import UserError  # noqa: E402
from drcn_keras.export import onnx_file  # noqa: E402

# Keras 3.15 meets NumPy 2 inside convert_to_numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def in_runtime(content, ilr):
    """(batch, height, width, channels) through ONNX Runtime."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(["sr"], {"ilr": np.ascontiguousarray(ilr.transpose(0, 3, 1, 2))})[0].transpose(0, 2, 3, 1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("weights", [[0.4, 0.3, 0.5, 0.1], [0.9, 0.0, 0.3, 0.0], [0.0, 1.2, 0.0, 0.0]])
def test_onnx_runtime_gives_what_keras_gives(random_drcn, channels, weights):
    model = random_drcn(recursions=4, channels=channels)
    model.ensemble_weights.assign(weights)
    content = onnx_file.to_onnx(model)
    for shape in [(1, 1, 1), (2, 17, 9), (1, 40, 33)]:
        ilr = np.random.default_rng(0).random((*shape, channels), np.float32)
        np.testing.assert_allclose(in_runtime(content, ilr), ops.convert_to_numpy(model(ilr)), atol=1e-4)
    assert onnx_file.check_equality(content, model) < 1e-4
    kinds = [node.op_type for node in onnx.load_from_string(content).graph.node]
    used = np.flatnonzero(weights)
    # Two of the embedding, the recursions up to the last in use, one for each in use, and the last.
    assert kinds.count("Conv") == 2 + used[-1] + 1 + len(used) + 1


def test_the_file_does_not_grow_with_the_recursions(random_drcn):
    few, many = (len(onnx_file.to_onnx(random_drcn(recursions=count, filters=32))) for count in (2, 6))
    assert many < 1.1 * few


def test_a_graph_that_differs_is_refused(random_drcn):
    model = random_drcn()
    content = onnx_file.to_onnx(model)
    model.ensemble_weights.assign([0.5, 0.9])
    with pytest.raises(UserError, match="differs from the Keras model by"):
        onnx_file.check_equality(content, model)


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "drcn_keras.export.onnx_file", *map(str, arguments)], capture_output=True, text=True
    )


def test_command(random_drcn, tmp_path):
    model, path = random_drcn(), tmp_path / "new" / "model.onnx"
    model.save(tmp_path / "model.keras")
    done = run(f"--model={tmp_path / 'model.keras'}", f"--output={path}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{path}: ")
    ilr = np.random.default_rng(0).random((1, 8, 8, 1), np.float32)
    np.testing.assert_allclose(in_runtime(path.read_bytes(), ilr), ops.convert_to_numpy(model(ilr)), atol=1e-4)
    for arguments, message in [
        ([f"--model={tmp_path / 'model.keras'}", f"--output={path}"], "model.onnx exists; --overwrite replaces it."),
        ([f"--model={tmp_path / 'model.keras'}", "--output=a.pb"], "expected a name that ends in .onnx"),
        (["--model=missing.keras", f"--output={tmp_path / 'a.onnx'}"], "no model missing.keras"),
    ]:
        done = run(*arguments)
        assert done.returncode == 1
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert message in done.stderr
