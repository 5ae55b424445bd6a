"""Exports a model in every mode, measures each file, prints the README's table.

python tools/tflite_table.py --model=best.keras --train_dir=T91 --data_dir=Set5,Set14 --int8_data_dir=B100
"""

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

TARGETS = {"float16": 0.001, "dynamic": 0.005, "int8": 0.03, "int8 (QAT)": 0.02, "int8_full": 0.05}
# Low-resolution pixels each way of the timed images.
SIDES = (64, 256)
MODES = ("float32", "float16", "dynamic", "int8", "int8 (QAT)", "int16x8", "int8_full")
# Timed in turn, so that a slow moment of the machine meets every file.
ROUNDS = 15


def measure(exporter, modes, output, train_dirs, data_dir, int8_data_dir, training):
    """Exports and measures.

    Args:
        exporter: `Exporter`.
        modes: of MODES.
        output: folder for the files, replaced when they exist, and for results.json. Rows that stand there for the
            same model and are not of `modes` are kept.
        train_dirs: folders of training photographs for QAT.
        data_dir: folders measured in every mode; int8_data_dir: in the int8 modes only.
        training: settings of `compress.compress` for QAT.

    Raises:
        UserError: there is no float32 row.

    Returns:
        list of rows (dicts) in the order of MODES: mode, file, bytes, tests, latency, integer_operators.
    """
    rows = _earlier(output, exporter.source)
    if "float32" not in (*rows, *modes):
        raise UserError(f"{output} has no row for float32, which the others are compared with; expected it in --mode.")
    for mode in modes:
        if mode == "int8 (QAT)":
            manifest = _quantization_aware(exporter, output, train_dirs, training)
        else:
            (manifest,) = tflite_files.export(exporter, output, ["luma"], [mode], overwrite=True)
        row = {name: manifest[name] for name in ("integer_operators", "source")}
        row |= {"mode": mode, "file": manifest["model"]["file"], "bytes": manifest["model"]["bytes"]}
        with open(os.path.join(output, row["file"]), "rb") as file:
            content = file.read()
        folders = [*data_dir, *(int8_data_dir if mode.startswith("int8") else [])]
        row["tests"] = [exporter.test_set(folder).measure(content) for folder in folders]
        rows[mode] = row
        _save(output, rows)
    rows = {mode: rows[mode] for mode in MODES if mode in rows}
    paths = [os.path.join(output, row["file"]) for row in rows.values()]
    for side in SIDES:
        for row, times in zip(rows.values(), _latencies(paths, exporter.model.scale * side), strict=True):
            row.setdefault("latency", {})[str(side)] = times
    _save(output, rows)
    return list(rows.values())


def _quantization_aware(exporter, output, train_dirs, training):
    model, paths = exporter.model, list_folders(train_dirs)
    tuned, network, ranges = compress.compress(model, "qat", paths, exporter.representative, training)
    trained = Compressed(network=network, ranges=ranges, baseline=model)
    aware = Exporter(tuned, exporter.source, Options(label="qat"), trained)
    (manifest,) = tflite_files.export(aware, output, ["luma"], ["int8"], overwrite=True)
    return manifest


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
        channels = run.interpreter.get_input_details()[0]["shape"][-1]
        image = run.taken(np.random.default_rng(0).random((side, side, channels), np.float32))
        run(image)
        runs.append((run, image, []))
    for _ in range(ROUNDS):
        for run, image, times in runs:
            start = time.perf_counter()
            run(image)
            times.append(1e3 * (time.perf_counter() - start))
    return [{"least": min(times), "p50": statistics.median(times)} for _, _, times in runs]


def markdown(rows):
    """The table, and a line for each target that was missed."""
    base = rows[0]
    names = list(dict.fromkeys(test["dataset"] for row in rows for test in row["tests"]))
    head = ["mode", "bytes", "of float32"]
    head += [f"{name} {what}" for name in names for what in ("dB", "drop", "Q dB")]
    head += [f"{side} px {what}" for side in SIDES for what in ("least ms", "p50 ms", "of float32")]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    missed = []
    for row in rows:
        cells = [row["mode"], f"{row['bytes']:,}", f"{row['bytes'] / base['bytes']:.2f}"]
        tests = {test["dataset"]: test for test in row["tests"]}
        for name in names:
            test = tests.get(name)
            cells += (
                [f"{test['psnr']:.3f}", f"{test['drop']:z.3f}", f"{test['fidelity']:.1f}"] if test else ["", "", ""]
            )
            target = TARGETS.get(row["mode"])
            if test and target is not None and round(test["drop"], 4) > target:
                missed.append(f"Missed: {row['mode']} on {name}, drop {test['drop']:.4f} dB, target {target}.")
        for times, of in ((row["latency"][str(side)], base["latency"][str(side)]) for side in SIDES):
            cells += [f"{times['least']:.2f}", f"{times['p50']:.2f}", f"{times['least'] / of['least']:.2f}"]
        lines.append(cells)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n" + "".join(f"\n{m}" for m in missed)


def define_flags():
    flags.DEFINE_string("model", None, "a DRCN .keras file, or a preset such as mobile-x2", required=True)
    flags.DEFINE_enum("scale", None, ["2", "3", "4"], "the one to export of a model of several scales")
    flags.DEFINE_string("output", "tflite_table", "folder that the files and results.json are written to")
    flags.DEFINE_list("train_dir", None, "folders of training photographs; calibration takes the first", required=True)
    flags.DEFINE_list("data_dir", None, "folders measured in every mode", required=True)
    flags.DEFINE_list("int8_data_dir", [], "folders measured in the int8 modes only")
    flags.DEFINE_list("mode", list(MODES), "what to measure anew; other rows of --output are kept")
    flags.DEFINE_integer("qat_steps", 1000, "steps of quantisation-aware training", lower_bound=1)
    flags.DEFINE_float("qat_learning_rate", 1e-4, "of its first step", lower_bound=1e-9)


def main(argv):
    commands.refuse_arguments(argv)
    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.ERROR)
    training = {"steps": FLAGS.qat_steps, "learning_rate": FLAGS.qat_learning_rate, "alpha_start": 0.1}
    training |= {"batch_size": 16, "patch_size": 41, "stride": 21, "seed": 0}
    source = path_of(FLAGS.model)
    options = Options(representative_dir=FLAGS.train_dir[0])
    exporter = Exporter(load_at(source, FLAGS.scale and int(FLAGS.scale)), source, options)
    modes = tflite.choose("mode", FLAGS.mode, MODES)
    os.makedirs(FLAGS.output, exist_ok=True)
    rows = measure(exporter, modes, FLAGS.output, FLAGS.train_dir, FLAGS.data_dir, FLAGS.int8_data_dir, training)
    print(markdown(rows))


if __name__ == "__main__":
    commands.run(main, define_flags)
