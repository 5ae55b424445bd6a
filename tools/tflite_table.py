"""Exports models in every mode, measures each file, prints the tables of docs/tflite.md.

python tools/tflite_table.py --model=mobile-x2,mobile-x3,mobile-x4 --train_dir=T91 --data_dir=Set5,Set14,B100
"""

import dataclasses
import json
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import compress
import numpy as np
from absl import flags, logging

from drcn_keras import commands
from drcn_keras.card import path_of
from drcn_keras.commands import FLAGS
from drcn_keras.data import list_folders
from drcn_keras.errors import UserError
from drcn_keras.export import manifest as manifests
from drcn_keras.export import runner, tflite, tflite_files
from drcn_keras.export.exporter import Compressed, Exporter, Options
from drcn_keras.files import write_atomically
from drcn_keras.inputs import load_at

TARGETS = {
    "float16": 0.001,
    "dynamic": 0.005,
    "int8": 0.03,
    "int8 (QAT)": 0.02,
    "int8_full": 0.05,
    "int8_full (QAT)": 0.03,
}
# Low-resolution pixels each way of the timed images.
SIDES = (64, 256)
MODES = ("float32", "float16", "dynamic", "int8", "int8 (QAT)", "int8_full", "int8_full (QAT)", "int16x8")
_AWARE = " (QAT)"
# LiteRT has reference kernels alone for its convolutions: timed at the smaller size only.
SLOW = ("int16x8",)
# Timed in turn, so that a slow moment of the machine meets every file.
ROUNDS = 9


def measure(exporter, modes, output, train_dirs, data_dir, training):
    """Exports and measures.

    Args:
        exporter: `Exporter`.
        modes: of MODES.
        output: folder for the files, replaced when they exist, and for results.json. Rows that stand there for the
            same model and are not of `modes` are kept.
        train_dirs: folders of training photographs for QAT.
        data_dir: folders to measure on.
        training: settings of `compress.compress` for QAT.

    Raises:
        UserError: there is no float32 row.

    Returns:
        dict of rows (dicts) by mode, in the order of MODES: mode, file, bytes, tests, integer_operators.
    """
    rows = _earlier(output, exporter.source)
    if "float32" not in (*rows, *modes):
        raise UserError(f"{output} has no row for float32, which the others are compared with; expected it in --mode.")
    for mode in modes:
        plain, maker = mode.removesuffix(_AWARE), exporter
        if plain != mode:
            maker = _quantization_aware(exporter, plain, train_dirs, training)
        (manifest,) = tflite_files.export(maker, output, ["luma"], [plain], overwrite=True)
        row = {name: manifest[name] for name in ("integer_operators", "source")}
        row |= {"mode": mode, "file": manifest["model"]["file"], "bytes": manifest["model"]["bytes"]}
        with open(os.path.join(output, row["file"]), "rb") as file:
            content = file.read()
        row["tests"] = [exporter.test_set(folder).measure(content) for folder in data_dir]
        rows[mode] = row
        _save(output, rows)
    return {mode: rows[mode] for mode in MODES if mode in rows}


def _quantization_aware(exporter, mode, train_dirs, training):
    """The `Exporter` of a model that was trained for a mode."""
    model, paths = exporter.model, list_folders(train_dirs)
    tuned, network, ranges = compress.compress(model, "qat", paths, exporter.representative, training)
    trained = Compressed(network=network, ranges=ranges, baseline=model)
    options = dataclasses.replace(exporter.options, label="qat")
    return Exporter(tuned, exporter.source, options, trained)


def add_times(rows, output, scale):
    """Times the files of `rows`, as `measure` returns them, and adds "latency" to each."""
    for side in SIDES:
        timed = [row for row in rows.values() if side == SIDES[0] or row["mode"] not in SLOW]
        paths = [os.path.join(output, row["file"]) for row in timed]
        for row, times in zip(timed, _latencies(paths, scale * side), strict=True):
            row.setdefault("latency", {})[str(side)] = times
    _save(output, rows)


def _earlier(output, source):
    """Rows of an earlier run for the same model, by mode."""
    try:
        with open(os.path.join(output, "results.json")) as file:
            rows = json.load(file)
    except FileNotFoundError:
        return {}
    same = manifests.sha256_of_file(source)
    return {row["mode"]: row for row in rows if row["source"]["sha256"] == same}


def _save(output, rows):
    text = json.dumps(list(rows.values()), indent=2) + "\n"
    write_atomically(os.path.join(output, "results.json"), lambda file: file.write(text.encode()))


def _latencies(paths, side):
    """Milliseconds of one run of each luma file on one thread at side x side ILR pixels: dicts of "least" and "p50"."""
    runs = []
    for path in paths:
        run = runner.Runner(path)
        image = run.taken(np.random.default_rng(0).random((side, side, run.channels), np.float32))
        run(image)
        runs.append((run, image, []))
    for _ in range(ROUNDS):
        for run, image, times in runs:
            start = time.perf_counter()
            run(image)
            times.append(1e3 * (time.perf_counter() - start))
    return [{"least": min(times), "p50": statistics.median(times)} for _, _, times in runs]


def markdown(rows):
    """The table, and a line for each target that was missed.

    Args:
        rows: dict by mode, float32 among them.
    """
    base = rows["float32"]
    names = list(dict.fromkeys(test["dataset"] for row in rows.values() for test in row["tests"]))
    head = ["mode", "bytes", *(f"{name} {what}" for name in names for what in ("dB", "drop"))]
    head += [f"{side} px {what}" for side in SIDES for what in ("ms", "of float32")]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    missed = []
    for mode, row in rows.items():
        cells = [mode, f"{row['bytes']:,}"]
        tests = {test["dataset"]: test for test in row["tests"]}
        for name in names:
            test = tests.get(name)
            cells += [f"{test['psnr']:.3f}", f"{test['drop']:z.3f}"] if test else ["", ""]
            target = TARGETS.get(mode)
            if test and target is not None and round(test["drop"], 4) > target:
                missed.append(f"Missed: {mode} on {name}, drop {test['drop']:.4f} dB, target {target}.")
        for side in map(str, SIDES):
            least = row.get("latency", {}).get(side, {}).get("least")
            cells += [f"{least:.2f}", f"{least / base['latency'][side]['least']:.2f}"] if least else ["", ""]
        lines.append(cells)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n" + "".join(f"\n{m}" for m in missed)


def define_flags():
    flags.DEFINE_list("model", None, "DRCN .keras files, or presets such as mobile-x2; a table each")
    flags.DEFINE_enum("scale", None, ["2", "3", "4"], "the one to export of a model of several scales")
    flags.DEFINE_string("output", "tflite_table", "folder; in it one for each model, with the files and results.json")
    commands.define_folders("train_dir", "folders of training photographs; calibration takes the first")
    commands.define_folders("data_dir", "folders to measure on")
    commands.require("model", "train_dir", "data_dir")
    flags.DEFINE_list("mode", list(MODES), "what to measure anew; other rows of --output are kept. int16x8 takes hours")
    flags.DEFINE_bool("times_only", False, "time the files of --output again and measure nothing else")
    flags.DEFINE_integer("qat_steps", 1000, "steps of quantisation-aware training", lower_bound=1)
    flags.DEFINE_float("qat_learning_rate", 1e-4, "of its first step", lower_bound=1e-9)


def main(argv):
    commands.refuse_arguments(argv)
    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.ERROR)
    training = {"steps": FLAGS.qat_steps, "learning_rate": FLAGS.qat_learning_rate, "alpha_start": 0.1}
    training |= {"batch_size": 3, "patch_size": 96, "stride": 21, "seed": 0}
    modes = [] if FLAGS.times_only else tflite.choose("mode", FLAGS.mode, MODES)
    for name in FLAGS.model:
        source = path_of(name)
        options = Options(representative_dir=FLAGS.train_dir[0])
        exporter = Exporter(load_at(source, FLAGS.scale and int(FLAGS.scale)), source, options)
        output = os.path.join(FLAGS.output, os.path.basename(name).removesuffix(".keras"))
        os.makedirs(output, exist_ok=True)
        rows = measure(exporter, modes, output, FLAGS.train_dir, FLAGS.data_dir, training)
        add_times(rows, output, exporter.model.scale)
        print(f"{name}\n\n{markdown(rows)}\n", flush=True)


if __name__ == "__main__":
    commands.run(main, define_flags)
