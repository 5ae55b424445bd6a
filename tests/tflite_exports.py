"""Small .tflite files with golden vectors and manifests, for the tests of tflite/.

Run as a script it writes them with TensorFlow, in a process of its own. The networks are DRCN's in miniature: the
tests of the exporter check the exporter; here only the files' format matters, and that faults can be planted.
"""

import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
SIDE = 32
HALO = 5
NAMES = ["patch_0", "patch_1", "black", "white", "gradient", "noise"]


@functools.cache
def _all():
    folder = tempfile.TemporaryDirectory(prefix="tflite_exports_")
    subprocess.run([sys.executable, __file__, folder.name], check=True, capture_output=True)
    return folder


def copy(folder, *names):
    """Copies exports into a folder. Returns the paths of their .tflite files."""
    for name in names:
        for suffix in (".tflite", ".npz", ".json"):
            shutil.copy(pathlib.Path(_all().name) / (name + suffix), folder)
    return [pathlib.Path(folder) / f"{name}.tflite" for name in names]


def sha256(path):
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def reseal(model):
    """Writes into the manifest the hashes that the files have now: what a careless exporter would have done."""
    path = model.with_suffix(".json")
    manifest = json.loads(path.read_text())
    manifest["model"].update(file=model.name, sha256=sha256(model), bytes=model.stat().st_size)
    manifest["golden"].update(file=model.with_suffix(".npz").name, sha256=sha256(model.with_suffix(".npz")))
    sign(path, manifest)


def sign(path, manifest):
    """Writes a manifest with a digest of its content, by the rule in docs/tflite_manifest.md."""
    manifest.pop("digest", None)
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    manifest["digest"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(manifest))


def edit(model, change):
    """Applies `change` to the model as an object of the .tflite schema, and writes it back."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    tree = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(model.read_bytes(), 0))
    change(tree)
    builder = flatbuffers.Builder(1024)
    builder.Finish(tree.Pack(builder), b"TFL3")
    model.write_bytes(bytes(builder.Output()))


def check(*words, timeout=120):
    """Runs check.py with few timed runs; returns the finished process."""
    command = [sys.executable, ROOT / "tflite" / "check.py", "--runs=4", "--warmup=1", "--threads=2", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


def _photographs(channels):
    import skimage
    from PIL import Image

    image = Image.open(pathlib.Path(skimage.__file__).parent / "data" / "coffee.png")
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(400, 600, channels)
    return [pixels[20 + 30 * i :, 100 + 40 * i :][:SIDE, :SIDE] for i in range(12)]


def _inputs(channels):
    """(cases, SIDE, SIDE, channels) uint8."""
    ramp = np.broadcast_to(np.linspace(0, 255, SIDE)[None, :, None], (SIDE, SIDE, channels))
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, channels))
    flat = np.zeros((SIDE, SIDE, channels))
    return np.stack([*_photographs(channels)[:2], flat, flat + 255, ramp, noise]).astype(np.uint8)


def _write_all(folder):
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf
    from ai_edge_litert.interpreter import Interpreter

    from drcn_keras.export.limits import limits_of
    from drcn_keras.export.manifest import kernels

    def network(seed, channels, fault=""):
        generator = np.random.default_rng(seed)
        kernels = [
            tf.constant(generator.normal(0, deviation, (3, 3, *shape)).astype(np.float32))
            for deviation, shape in ((0.25, (1, 4)), (0.2, (4, 4)), (0.08, (4, 1)))
        ]

        def luma(ilr):
            features = tf.nn.relu(tf.nn.conv2d(ilr, kernels[0], 1, "SAME"))
            for _ in range(2):
                features = tf.nn.relu(features + tf.nn.conv2d(features, kernels[1], 1, "SAME"))
            if fault == "border":
                features = tf.pad(features[:, 1:-1, 1:-1], [[0, 0], [1, 1], [1, 1], [0, 0]])
            return ilr + tf.nn.conv2d(features, kernels[2], 1, "SAME")

        def rgb(lr):
            image = tf.cast(lr, tf.float32) / 255.0
            if fault == "channels":
                image = image[..., ::-1]
            planes = [luma(image[..., i : i + 1]) * (0.5 + 0.2 * i) for i in range(3)]
            sr = tf.image.resize(tf.concat(planes, 3), (2 * SIDE, 2 * SIDE), "nearest")
            return tf.cast(tf.clip_by_value(tf.round(255.0 * sr), 0.0, 255.0), tf.uint8)

        return rgb if channels == 3 else luma

    def write(name, function, channels, mode="float32", side=SIDE):
        dtype = tf.uint8 if channels == 3 else tf.float32
        module = tf.Module()
        module.run = tf.function(
            lambda image: {"sr": function(image)}, [tf.TensorSpec((1, side, side, channels), dtype, "image")]
        )
        with tempfile.TemporaryDirectory() as saved:
            tf.saved_model.save(module, saved, module.run.get_concrete_function())
            converter = tf.lite.TFLiteConverter.from_saved_model(saved)
            if mode == "int8":
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
                converter.representative_dataset = lambda: (
                    [patch[None].astype(np.float32) / 255.0] for patch in _photographs(1)
                )
                converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            data = converter.convert()
        path = pathlib.Path(folder) / f"{name}.tflite"
        path.write_bytes(data)
        images = _inputs(channels)
        images = images if channels == 3 else images.astype(np.float32) / 255.0
        interpreter = Interpreter(str(path))
        interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], (1, SIDE, SIDE, channels))
        interpreter.allocate_tensors()
        given, taken = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
        outputs = []
        for image in images:
            interpreter.set_tensor(given["index"], image[None])
            interpreter.invoke()
            outputs.append(interpreter.get_tensor(taken["index"])[0])
        exact = np.concatenate([function(tf.constant(image[None])).numpy() for image in images])
        np.savez_compressed(
            path.with_suffix(".npz"), names=np.array(NAMES), inputs=images, outputs=outputs, float_outputs=exact
        )
        manifest = {
            "format": 2,
            "model": {},
            "golden": {"cases": len(NAMES)},
            "mode": mode,
            "pipeline": "rgb" if channels == 3 else "luma",
            "scale": 2,
            "filters": 4,
            "recursions": 2,
            "channels": 1,
            "halo": HALO,
            "lr_halo": HALO,
            "input": _tensor(given),
            "output": _tensor(taken),
            # Four 3x3 convolutions: 1 to 4 channels, twice 4 to 4, and 4 to 1.
            "macs": (SIDE * SIDE if side else 1) * 9 * (4 + 2 * 16 + 4) * channels,
            "parameters": 216,
            "made_on": kernels(),
            "tools": {"ai_edge_litert": importlib.metadata.version("ai-edge-litert")},
            "limits": limits_of(mode, np.dtype(taken["dtype"]).name),
        }
        path.with_suffix(".json").write_text(json.dumps(manifest))
        reseal(path)

    write("float32", network(1, 1), 1)
    write("other", network(2, 1), 1)
    write("any_size", network(1, 1), 1, side=None)
    write("border", network(1, 1, "border"), 1)
    write("int8", network(1, 1), 1, "int8")
    write("rgb", network(1, 3), 3)
    write("swapped", network(1, 3, "channels"), 3)


def _tensor(details):
    return {
        "name": details["name"],
        "shape": details["shape_signature"].tolist(),
        "dtype": np.dtype(details["dtype"]).name,
        "quantization": None,
    }


if __name__ == "__main__":
    _write_all(sys.argv[1])
