"""What the tests of the SavedModel and of serving share: one small export, and the tools on the path."""

import functools
import pathlib
import pickle
import subprocess
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
TOOLS = ROOT / "tools"
sys.path.insert(0, str(TOOLS))

import tensorflow as tf  # noqa: E402
from tensorflow.core.protobuf import saved_model_pb2  # noqa: E402

from drcn_keras.export import saved_model  # noqa: E402
from drcn_keras.model import DRCN  # noqa: E402

# Small enough that images of tens of pixels are several tiles and too many pixels soon reached.
TILE, MAX_PIXELS = 32, 4096


def small_model(seed=3, **arguments):
    """A DRCN whose every weight matters: the ensemble uneven, biases not zero. The same for the same seed."""
    model = DRCN(**{"recursions": 2, "filters": 4, "scale": 2, **arguments})
    random = np.random.default_rng(seed)
    for layer in model.layers:
        # Small at the end, so that the image keeps its range and is not clipped to black and white.
        spread = 0.03 if layer.name == "reconstruction_2" else 0.2
        layer.set_weights([random.normal(0.0, spread, weight.shape) for weight in layer.get_weights()])
    model.ensemble_weights.assign(np.linspace(1.2, 0.8, model.recursions) / model.recursions)
    return model


@functools.cache
def exported():
    """(model, path of the numbered SavedModel); made once per run of the tests, for it takes seconds."""
    model = small_model()
    folder = tempfile.TemporaryDirectory(prefix="drcn-saved-model-")
    exported.folder = folder  # Removed with the process.
    path = saved_model.export(model, folder.name, max_pixels=MAX_PIXELS, tile=TILE, warmup_sizes=((8, 8), (12, 20)))
    return model, pathlib.Path(path)


def graph_of(path):
    """The SavedModel's MetaGraphDef."""
    return saved_model_pb2.SavedModel.FromString((pathlib.Path(path) / "saved_model.pb").read_bytes()).meta_graphs[0]


def run_in_c(path, requests, folder):
    """Answers from TensorFlow's C library, in a process without Python TensorFlow.

    Args:
        path: SavedModel.
        requests: list of (signature name, {input name: array}).
        folder: for files on the way.

    Returns:
        list of {output name: array}, or the text of the error.
    """
    definitions = graph_of(path).signature_def
    jobs = []
    for signature, inputs in requests:
        definition = definitions[signature]
        named = {definition.inputs[name].name: value for name, value in inputs.items()}
        jobs.append((named, [output.name for output in definition.outputs.values()]))
    (folder / "jobs").write_bytes(pickle.dumps(jobs))
    library = pathlib.Path(tf.__file__).parent / "libtensorflow_cc.so.2"
    command = [sys.executable, ROOT / "tests" / "c_api_runner.py", library, path, folder / "jobs", folder / "results"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = pickle.loads((folder / "results").read_bytes())
    return [
        result if isinstance(result, str) else dict(zip(definitions[signature].outputs, result, strict=True))
        for (signature, _), result in zip(requests, results, strict=True)
    ]
