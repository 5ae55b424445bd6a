"""What the tests of the SavedModel and of serving share: one small export, and its graph without Keras."""

import functools
import pathlib
import pickle
import subprocess
import sys
import tempfile

import numpy as np
import tensorflow as tf
from kit import ROOT, small_drcn
from tensorflow.core.protobuf import saved_model_pb2

from drcn_keras.export import servable

# Small enough that images of tens of pixels are several tiles and too many pixels soon reached.
TILE, MAX_PIXELS = 32, 4096


def small_model(recursions=2, **arguments):
    """A DRCN whose every weight matters, at this file's size. The same for the same arguments."""
    ensemble = np.linspace(1.2, 0.8, recursions) / recursions
    return small_drcn(recursions, **{"seed": 3, "kept": 0.0, "spread": 0.2, "ensemble": ensemble, **arguments})


@functools.cache
def exported():
    """(model, path of the numbered SavedModel); made once per run of the tests, for it takes seconds."""
    model = small_model()
    folder = tempfile.TemporaryDirectory(prefix="drcn-saved-model-")
    exported.folder = folder  # Removed with the process.
    path = servable.export(model, folder.name, max_pixels=MAX_PIXELS, tile=TILE, warmup_sizes=((8, 8), (12, 20)))
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
