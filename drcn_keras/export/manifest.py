"""The JSON beside a .tflite file: what the file is, takes, gives and was made from."""

import hashlib
import importlib.metadata
import json
import os
import platform

import numpy as np

import drcn_keras
from drcn_keras.export import fidelity, flatbuffer, runner
from drcn_keras.export.limits import limits_of
from drcn_keras.export.pipeline import input_digits, lr_halo

# Beginnings of the names of processor features that change how LiteRT adds up.
KERNEL_FEATURES = ("avx", "fma", "f16c", "amx", "asimd", "sve", "i8mm", "bf16", "fphp")


def describe(exporter, pipeline, mode, content, packed, golden):
    """The manifest of one file, a dict; docs/tflite_manifest.md says what its keys mean.

    Args:
        exporter: `Exporter`.
        pipeline, mode: what it made.
        content: the file's bytes.
        packed: bytes of its .npz.
        golden: `exporter.golden(pipeline, content)`.
    """
    model, stem = exporter.model, exporter.stem(pipeline, mode)
    real = [index for index, name in enumerate(golden["names"]) if name.startswith("patch_")]
    boundaries = _boundaries(content, exporter.options.dynamic_shape)
    digits = input_digits(pipeline, mode)
    boundaries["input"] |= {"digits": digits} if digits > 1 else {}
    # An int8 image has 255 steps, like one of 8-bit levels.
    peak = 255.0 if pipeline == "rgb" or boundaries["output"]["dtype"] == "int8" else 1.0
    return {
        "format": 2,
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
        **boundaries,
        "limits": limits_of(mode, boundaries["output"]["dtype"], pipeline),
        "operators": flatbuffer.operators(content),
        "integer_operators": flatbuffer.integer_operators(content),
        "macs": flatbuffer.macs(content),
        "parameters": model.count_params(),
        "psnr_vs_float": fidelity.psnr(golden["float_outputs"][real], golden["outputs"][real], peak),
        "test": [],
        "source": {"model": os.path.basename(exporter.source), "sha256": sha256_of_file(exporter.source)},
        "tools": _versions(),
        "made_on": kernels(),
    }


def seal(manifest):
    """The manifest with `digest`: SHA-256 of all the rest, keys sorted, no spaces, as UTF-8. A change shows."""
    rest = {key: value for key, value in manifest.items() if key != "digest"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return {**rest, "digest": sha256(text.encode())}


def kernels():
    """What decides which of LiteRT's kernels run: the processor, and on Linux those of its features that they use."""
    try:
        with open("/proc/cpuinfo") as file:
            found = next((line for line in file if line.lower().startswith(("flags", "features"))), "")
    except OSError:
        found = ""
    kinds = [word for word in sorted(set(found.split())) if word.startswith(KERNEL_FEATURES)]
    return " ".join([platform.machine(), *kinds])


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


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _versions():
    names = ("tensorflow", "keras", "ai-edge-litert", "ai-edge-quantizer")
    versions = {name.replace("-", "_"): importlib.metadata.version(name) for name in names}
    return {**versions, "drcn_keras": drcn_keras.__version__}
