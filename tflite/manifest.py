"""An exported model as it travels: the .tflite file, its manifest and its golden vectors, read and cross-checked.

NumPy and the standard library alone, like everything in this folder: it runs on the device.
"""

import hashlib
import json
import os

import numpy as np

FORMAT = 2
MODES = ("float32", "float16", "dynamic", "int8", "int8_full", "int16x8")
PIPELINES = ("luma", "rgb")

_REQUIRED = {
    "format": int,
    "model": dict,
    "golden": dict,
    "mode": str,
    "pipeline": str,
    "scale": int,
    "halo": int,
    "input": dict,
    "output": dict,
    "macs": int,
    "limits": dict,
}
# What the file is held to.
_LIMITS = {
    "golden_psnr": (int, float),
    "golden_ulp": (int, float, type(None)),
    "golden_differing": (int, float),
    "float_psnr": (int, float),
}


class CannotRun(Exception):
    """The work could not be done at all. Its text is one line: what happened, expected, received."""


def beside(model, suffix):
    """The path of a model's companion: the same stem, ending in `suffix`."""
    return os.path.splitext(model)[0] + suffix


def read_manifest(model):
    """The manifest beside a model.

    Args:
        model: path of the .tflite file.

    Returns:
        dict, every key that the tools here read present and of its type.

    Raises:
        CannotRun: a file is missing, or the manifest is damaged or of another format.
    """
    if not os.path.isfile(model):
        raise CannotRun(f"{model}: no such model file.")
    path = beside(model, ".json")
    if not os.path.isfile(path):
        raise CannotRun(f"{path}: no manifest beside the model; drcn-export-tflite writes one.")
    try:
        with open(path, encoding="utf-8") as file:
            manifest = json.load(file)
    except (ValueError, RecursionError) as error:
        raise CannotRun(f"{path}: damaged manifest: {error}.") from error
    if not isinstance(manifest, dict):
        raise CannotRun(f"{path}: a manifest is a JSON object; received a {type(manifest).__name__}.")
    if manifest.get("format", FORMAT) != FORMAT:
        raise CannotRun(
            f"{path}: manifest of format {manifest['format']}; this checker reads {FORMAT}. Export the model again."
        )
    if manifest.get("digest") != digest(manifest):
        raise CannotRun(
            f"{path}: the manifest was changed since it was written: its digest is not that of its content."
        )
    for key, kind in _REQUIRED.items():
        if not isinstance(manifest.get(key), kind):
            raise CannotRun(f"{path}: the manifest needs {key!r} as {kind.__name__}; found {manifest.get(key)!r}.")
    for key, kinds in _LIMITS.items():
        found = manifest["limits"].get(key, "nothing")
        if not isinstance(found, kinds):
            raise CannotRun(f"{path}: the manifest's limits need {key!r} as a number; found {found!r}.")
    for key, choices in (("mode", MODES), ("pipeline", PIPELINES)):
        if manifest[key] not in choices:
            raise CannotRun(f"{path}: unknown {key} {manifest[key]!r}; expected one of {', '.join(choices)}.")
    return manifest


def digest(manifest):
    """SHA-256 of a manifest but for its own "digest": keys sorted, no spaces, UTF-8."""
    rest = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_golden(model):
    """The golden vectors beside a model.

    Args:
        model: path of the .tflite file.

    Returns:
        dict of names (N), inputs (N, h, w, C), float_outputs and outputs (N, H, W, C).

    Raises:
        CannotRun: missing or damaged.
    """
    path = beside(model, ".npz")
    if not os.path.isfile(path):
        raise CannotRun(f"{path}: no golden vectors beside the model; drcn-export-tflite writes them.")
    try:
        with np.load(path, allow_pickle=False) as file:
            golden = {key: file[key] for key in ("names", "inputs", "float_outputs", "outputs")}
    except Exception as error:  # zipfile, zlib, KeyError and ValueError: all of them mean a damaged file.
        raise CannotRun(f"{path}: damaged golden vectors: {error}.") from error
    if len({len(array) for array in golden.values()}) != 1 or not len(golden["names"]):
        raise CannotRun(f"{path}: damaged golden vectors: their arrays are of different lengths, or empty.")
    pictures = [case for case, name in zip(golden["inputs"], golden["names"], strict=True) if is_real(str(name))]
    if not pictures or all(np.ptp(case) == 0 for case in pictures):
        raise CannotRun(f"{path}: the golden vectors show nothing: no patch of a photograph, or flat ones alone.")
    return golden


def is_real(name):
    """Whether a golden case is a patch of a photograph, not a synthetic image."""
    return name.startswith("patch")


def identity_fault(model, manifest):
    """Whether the files beside each other belong together.

    Returns:
        "" when the model and the golden vectors are those the manifest was written for, else a sentence.
    """
    described = manifest["model"]
    size = os.path.getsize(model)
    digest = sha256(model)
    if digest != described.get("sha256"):
        name = os.path.basename(model)
        if described.get("file", name) != name:
            return (
                f"the manifest is of another file: it describes {described['file']} (SHA-256 "
                f"{str(described.get('sha256'))[:12]}...), this file's is {digest[:12]}..."
            )
        if size < described.get("bytes", size):
            return f"the file is truncated: {size} of the {described['bytes']} bytes that the manifest names"
        return (
            f"not the file that the manifest describes: its SHA-256 is {digest[:12]}..., expected "
            f"{str(described.get('sha256'))[:12]}...: changed weights, another model, or a damaged copy"
        )
    golden = beside(model, ".npz")
    if os.path.isfile(golden) and sha256(golden) != manifest["golden"].get("sha256"):
        return f"the golden vectors {os.path.basename(golden)} are not those that the manifest describes (SHA-256)"
    return ""


def sha256(path):
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def to_tensor(image, described):
    """Pixels in the manifest's unit as what the file takes: rounded and clipped where that is an integer.

    Args:
        image: array (..., channels) of real numbers: in [0, 1] for luma files, 0 to 255 for rgb files.
        described: the manifest's "input": dtype, quantization (null where the integer is the pixel itself) and digits,
            1 where it does not say. In 2 digits a value is whole steps of the grid and 256ths of one: the image's
            channels stand there once for the one and once more for the other.
    """
    if described["dtype"] == "float32":
        return np.asarray(image, np.float32)
    grid = described.get("quantization") or {"scale": 1.0, "zero_point": 0}
    limits = np.iinfo(described["dtype"])
    levels, digits = limits.max - limits.min + 1, described.get("digits", 1)
    base = levels ** (digits - 1)
    steps = np.round(np.asarray(image, np.float64) / grid["scale"] * base) + (grid["zero_point"] - limits.min) * base
    steps = np.clip(steps, 0, levels * base - 1).astype(np.int64)
    parts = [steps // levels**place % levels + limits.min for place in reversed(range(digits))]
    return np.concatenate(parts, axis=-1).astype(described["dtype"])


def from_tensor(array, described):
    """What the file gives, in the manifest's unit: whole numbers on a grid become float32, 8-bit levels stay.

    `described`: the manifest's "output".
    """
    grid = described.get("quantization")
    if grid:
        return np.float32(grid["scale"]) * (array.astype(np.float32) - grid["zero_point"])
    return array


def output_peak(manifest):
    """The output's full range: 1 for luma, 255 for rgb. PSNR is relative to it."""
    return 255.0 if manifest["pipeline"] == "rgb" else 1.0


def write_atomically(path, data):
    """Writes bytes beside `path`, then renames: a reader sees the old file or the whole new one.

    Raises:
        CannotRun: no space, or a folder that is read-only; `path` is then as it was.
    """
    place = os.path.realpath(path)  # A symbolic link stays one.
    part = f"{place}.part{os.getpid()}"
    try:
        with open(part, "wb") as file:
            if os.path.exists(place):
                os.chmod(part, os.stat(place).st_mode & 0o7777)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, place)
    except OSError as error:
        raise CannotRun(f"{path} could not be written: {error.strerror}; what was there is unchanged.") from error
    finally:
        if os.path.exists(part):
            os.remove(part)
