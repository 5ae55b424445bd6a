"""Writes a trained DRCN as .tflite files, each with golden vectors and a manifest, and proves each in LiteRT.

drcn-export-tflite --model=best.keras --output=export --mode=float32,int8 --representative_dir=photos
"""

import io
import json
import os
import subprocess
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from absl import flags, logging
from tqdm import tqdm

from drcn_keras import commands
from drcn_keras.card import path_of, presets
from drcn_keras.commands import FLAGS
from drcn_keras.errors import UserError
from drcn_keras.export import quantize, runner
from drcn_keras.export.exporter import Exporter, Options
from drcn_keras.export.limits import required_psnr
from drcn_keras.export.manifest import describe
from drcn_keras.files import write_atomically
from drcn_keras.inputs import load_at

PIPELINES = ("luma", "rgb")
PRESETS_LICENSE = "MIT"


def export(exporter, output, pipelines, modes, test_dir="", overwrite=False, inspect=None):
    """Writes one .tflite, .npz and .json for each pipeline and mode.

    Args:
        exporter: `Exporter`.
        output: folder, made when missing.
        pipelines: of PIPELINES.
        modes: of quantize.MODES.
        test_dir: folder of original photographs to measure luma files on, or "".
        overwrite: replace files that exist.
        inspect: function of (content, mode) that returns more for the manifest, or raises UserError.

    Returns:
        list of manifests (dicts), one for each .tflite.

    Raises:
        UserError: a mode needs representative images, a file exists, a file failed its check.
    """
    if set(modes) & set(quantize.CALIBRATED) and not (exporter.ranges and set(modes) <= {"int8"}):
        _ = exporter.representative  # What is missing is said before anything is written.
    refuse_existing(exporter, output, pipelines, modes, overwrite)
    os.makedirs(output, exist_ok=True)
    jobs = [(pipeline, mode) for pipeline in pipelines for mode in modes]
    manifests = []
    for pipeline, mode in tqdm(jobs, desc="export", unit="file", disable=None):
        manifests.append(_export_one(exporter, output, pipeline, mode, test_dir, inspect))
    return manifests


def refuse_existing(exporter, output, pipelines, modes, overwrite):
    """Raises UserError when a file would be replaced without leave."""
    for pipeline in pipelines:
        for mode in modes:
            for suffix in (".tflite", ".npz", ".json"):
                path = os.path.join(output, exporter.stem(pipeline, mode) + suffix)
                if os.path.exists(path) and not overwrite:
                    raise UserError(f"{path} exists; --overwrite replaces it.")


def _export_one(exporter, output, pipeline, mode, test_dir, inspect):
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
    if test_dir and pipeline == "luma":
        manifest["test"] = [exporter.test_set(test_dir).measure(content)]
    path = os.path.join(output, stem)
    write_atomically(f"{path}.npz", lambda file: file.write(packed.getvalue()))
    write_atomically(f"{path}.tflite", lambda file: file.write(content))
    # The manifest last: where it stands, the other two are whole.
    text = json.dumps(manifest, indent=2) + "\n"
    write_atomically(f"{path}.json", lambda file: file.write(text.encode()))
    logging.info("%s: %d bytes, %.2f dB against the float model", stem, len(content), manifest["psnr_vs_float"])
    return manifest


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


def define_flags(values=flags.FLAGS):
    """Adds the command's flags to `values`."""

    def define(kind, *arguments, **options):
        getattr(flags, f"DEFINE_{kind}")(*arguments, flag_values=values, **options)

    define("string", "model", None, "a DRCN .keras file, or a preset such as mobile-x2", required=True)
    define("enum", "scale", None, ["2", "3", "4"], "the one to export of a model of several scales")
    define("string", "output", None, "folder that the files are written to", required=True)
    define("list", "mode", ["float32"], f"comma-separated: {', '.join(quantize.MODES)}")
    define("list", "pipeline", ["luma"], "luma: ILR to SR; rgb: 8-bit LR to 8-bit SR, everything in the graph")
    define("integer", "lr_height", 64, "pixels of the low-resolution image", lower_bound=1)
    define("integer", "lr_width", 64, "pixels of the low-resolution image", lower_bound=1)
    define("bool", "dynamic_shape", False, "let the file take any size, for runtimes that resize")
    define("enum", "rgb_dtype", "uint8", ["uint8", "float32"], "ends of the rgb pipeline; browsers want float32")
    define("string", "representative_dir", "", "training photographs; int8 and int16x8 need them")
    define("string", "data_dir", "", "original photographs to measure the luma files on")
    define("string", "license", "", f"of the weights, written into the file; the presets' is {PRESETS_LICENSE}")
    define("bool", "overwrite", False, "replace files that exist")


def known(name, values, choices):
    """The values of a list flag without repetition. Raises UserError for one that is no choice."""
    unknown = [value for value in values if value not in choices]
    if unknown or not values:
        raise UserError(f"--{name} must be of {', '.join(choices)}; received {', '.join(unknown) or 'nothing'}.")
    return list(dict.fromkeys(values))


def main(argv):
    commands.refuse_arguments(argv)
    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.ERROR)  # TensorFlow tells how it writes SavedModels.
    modes = known("mode", FLAGS.mode, quantize.MODES)
    pipelines = known("pipeline", FLAGS.pipeline, PIPELINES)
    options = Options(
        height=FLAGS.lr_height,
        width=FLAGS.lr_width,
        dynamic_shape=FLAGS.dynamic_shape,
        representative_dir=FLAGS.representative_dir,
        rgb_dtype=FLAGS.rgb_dtype,
        license=FLAGS.license or (PRESETS_LICENSE if FLAGS.model in presets() else ""),
    )
    model = load_at(FLAGS.model, FLAGS.scale and int(FLAGS.scale))
    exporter = Exporter(model, path_of(FLAGS.model), options)
    manifests = export(exporter, FLAGS.output, pipelines, modes, FLAGS.data_dir, FLAGS.overwrite)
    for manifest in manifests:
        print(os.path.join(FLAGS.output, manifest["model"]["file"]))


def run():
    """The command."""
    commands.run(main, define_flags)


if __name__ == "__main__":
    run()
