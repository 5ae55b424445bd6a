"""Writes a trained DRCN as .tflite files, each with golden vectors and a manifest, and proves each in LiteRT."""

import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import logging
from tqdm import tqdm

from drcn_keras.errors import UserError
from drcn_keras.export import names, runner
from drcn_keras.export.exporter import Exporter
from drcn_keras.export.limits import required_psnr
from drcn_keras.export.manifest import describe, seal
from drcn_keras.files import make_folder, write_together


def export(
    exporter: Exporter,
    output: str,
    pipelines: Sequence[str],
    modes: Sequence[str],
    data_dirs: Sequence[str] = (),
    overwrite: bool = False,
    inspect: Callable[[bytes, str], dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Writes one .tflite, .npz and .json for each pipeline and mode.

    Args:
        exporter: `Exporter`.
        output: folder, made when missing.
        pipelines: of `names.PIPELINES`.
        modes: of `names.MODES`.
        data_dirs: folders of original photographs to measure luma files on.
        overwrite: replace files that exist.
        inspect: function of (content, mode) that returns more for the manifest, or raises UserError.

    Returns:
        list of manifests (dicts), one for each .tflite.

    Raises:
        UserError: a mode is not for a pipeline or needs representative images, a file exists or failed its check.
    """
    jobs = [(pipeline, mode) for pipeline in pipelines for mode in modes]
    for pipeline, mode in jobs:
        exporter.refuse(pipeline, mode)
    if set(modes) & set(names.CALIBRATED) and not (exporter.ranges and set(modes) <= {"int8"}):
        _ = exporter.representative  # What is missing is said before anything is written.
    if "dynamic" in modes and not exporter.options.representative_dir:
        print(
            "warning: dynamic without representative images is about 5 dB further from the float network; "
            "expected `representative_dir`.",
            file=sys.stderr,
        )
    refuse_existing(exporter, output, pipelines, modes, overwrite)
    for folder in data_dirs if "luma" in pipelines else ():
        exporter.test_set(folder)
    make_folder(output)
    manifests = []
    for pipeline, mode in tqdm(jobs, desc="export", unit="file", disable=None):
        content, golden, manifest = _made(exporter, pipeline, mode, data_dirs, inspect)
        refuse_existing(exporter, output, [pipeline], [mode], overwrite)  # Another run may have been quicker.
        _write(os.path.join(output, exporter.stem(pipeline, mode)), content, golden, manifest)
        manifests.append(manifest)
    return manifests


def refuse_existing(
    exporter: Exporter, output: str, pipelines: Sequence[str], modes: Sequence[str], overwrite: bool
) -> None:
    """Raises UserError when a file would be replaced without leave."""
    for pipeline in pipelines:
        for mode in modes:
            for suffix in (".tflite", ".npz", ".json"):
                path = os.path.join(output, exporter.stem(pipeline, mode) + suffix)
                if os.path.exists(path) and not overwrite:
                    raise UserError(f"{path} exists; `overwrite` replaces it.")


def _write(path, content, golden, manifest):
    text = json.dumps(manifest, indent=2) + "\n"
    # The manifest last: where it stands, the other two are whole.
    write_together([(f"{path}.json", text.encode()), (f"{path}.tflite", content), (f"{path}.npz", golden)])


def _made(exporter, pipeline, mode, data_dirs, inspect):
    """The bytes of one .tflite file and of its golden vectors, and its manifest: proven, and not yet written."""
    stem = exporter.stem(pipeline, mode)
    content = exporter.content(pipeline, mode)
    golden = exporter.golden(pipeline, content)
    packed = io.BytesIO()
    np.savez_compressed(packed, **golden)
    manifest = describe(exporter, pipeline, mode, content, packed.getvalue(), golden)
    if inspect:
        manifest.update(inspect(content, mode))
    required = required_psnr(manifest["limits"])
    # Not "less than": NaN is no agreement either.
    if not manifest["psnr_vs_float"] >= required:
        raise UserError(
            f"{stem}: {manifest['psnr_vs_float']:.1f} dB against the float model; expected at least {required:.1f}. "
            "Nothing was written for it."
        )
    _prove(stem, content, packed.getvalue())
    if data_dirs and pipeline == "luma":
        manifest["test"] = [exporter.test_set(folder).measure(content) for folder in data_dirs]
    logging.info("%s: %d bytes, %.2f dB against the float model", stem, len(content), manifest["psnr_vs_float"])
    return content, packed.getvalue(), seal(manifest)


def _prove(stem, content, packed):
    """Runs the file in a process that never loads TensorFlow."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, name) for name in ("model.tflite", "golden.npz")]
        for path, data in zip(paths, (content, packed), strict=True):
            with open(path, "wb") as file:
                file.write(data)
        done = subprocess.run([sys.executable, runner.__file__, *paths], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stdout or done.stderr).strip().splitlines() or ["no output"]
        raise UserError(f"{stem}: the file fails its check in LiteRT: {last[-1]}. Nothing was written for it.")
