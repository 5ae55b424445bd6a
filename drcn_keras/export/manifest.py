"""The JSON beside a .tflite file: what the file is, takes, gives and was made from."""

import hashlib
import importlib.metadata
import os

import numpy as np

import drcn_keras
from drcn_keras.export import fidelity, flatbuffer, runner


def lr_halo(model):
    """Low-resolution pixels around an output pixel that it depends on, the bicubic's two included."""
    return -(-model.halo // model.scale) + 2


def describe(exporter, pipeline, mode, content, packed, golden):
    model, stem = exporter.model, exporter.stem(pipeline, mode)
    real = [index for index, name in enumerate(golden["names"]) if name.startswith("patch_")]
    return {
        "format": 1,
        "model": _file_entry(f"{stem}.tflite", content),
        "golden": {"file": f"{stem}.npz", "sha256": sha256(packed), "cases": len(golden["names"])},
        "mode": mode,
        "pipeline": pipeline,
        "scale": model.scale,
        "filters": model.filters,
        "recursions": model.recursions,
        "channels": model.channels,
        "halo": model.halo,
        "lr_halo": lr_halo(model),
        **_boundaries(content, exporter.dynamic_shape),
        "operators": flatbuffer.operators(content),
        "integer_operators": flatbuffer.integer_operators(content),
        "macs": flatbuffer.macs(content),
        "parameters": model.count_params(),
        "psnr_vs_float": fidelity.fidelity(golden["float_outputs"][real], golden["outputs"][real]),
        "test": [],
        "source": {"model": os.path.basename(exporter.source), "sha256": sha256_of_file(exporter.source)},
        "tools": _versions(),
    }


def _file_entry(name, content):
    return {"file": name, "sha256": sha256(content), "bytes": len(content)}


def _boundaries(content, dynamic_shape):
    entries = {}
    interpreter = runner.Runner(content).interpreter
    signature = interpreter.get_signature_list()["serving_default"]
    for key, names, details in (
        ("input", signature["inputs"], interpreter.get_input_details()[0]),
        ("output", signature["outputs"], interpreter.get_output_details()[0]),
    ):
        step, zero = details["quantization"]
        entries[key] = {
            "name": names[0],
            "shape": [int(n) for n in details["shape_signature" if dynamic_shape else "shape"]],
            "dtype": np.dtype(details["dtype"]).name,
            "quantization": {"scale": float(step), "zero_point": int(zero)} if step else None,
        }
    return entries


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _versions():
    names = ("tensorflow", "keras", "ai-edge-litert", "ai-edge-quantizer")
    versions = {name.replace("-", "_"): importlib.metadata.version(name) for name in names}
    return {**versions, "drcn_keras": drcn_keras.__version__}
