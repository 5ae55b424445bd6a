"""The paper's studies on networks of any size: a plot, its numbers and the command that made them.

drcn-study recursions --flagfile=FLAGS --train_dir=T91 --data_dir=Set5 --output=DIR
drcn-study ensemble --model=A.keras,B.keras --data_dir=Set5 --output=DIR
drcn-study weights --model=A.keras,B.keras --output=DIR

Every flag of drcn_keras.train is a flag here too, for the networks that a study trains. Running a command again goes
on with a training that was broken off.
"""

import csv
import dataclasses
import datetime
import io
import json
import os
import platform
import shlex
import signal
import subprocess
import sys

from absl import flags

import drcn_keras
from drcn_keras import card, commands, errors, train
from drcn_keras.commands import FLAGS
from drcn_keras.errors import UserError
from drcn_keras.files import make_folder, write_atomically
from drcn_keras.image_files import list_images
from drcn_keras.reporting import measured, plots
from drcn_keras.settings import Settings

STUDIES = ("recursions", "ensemble", "weights")
# Section 4.2 of arXiv 1511.04491 compares these depths on Set5 x3.
PAPER_DEPTHS = ["1", "6", "11", "16"]


def recursions(output, data_dirs, depths, training):
    """Trains one network per depth, alike, and measures it. Writes recursions.png, .csv and .json.

    Args:
        output: folder.
        data_dirs: folders of test images.
        depths: list of int, the numbers of recursions D.
        training: flags for `drcn_keras.train`, a list of str.

    Raises:
        UserError: a training failed, or a folder or an image is wrong.
    """
    rows, cards = [], []
    for index, depth in enumerate(depths, start=1):
        run = os.path.join(output, "runs", f"recursions_{depth:02d}")
        print(f"[{index}/{len(depths)}] recursions = {depth}", file=sys.stderr)
        best = _train(run, [*training, f"--recursions={depth}"])
        cards.append({**card.read(best), "epochs": _epochs(run)})
        for result in measured.measure(best, drcn_keras.load(best), data_dirs):
            rows.append(
                {key: result[key] for key in ("dataset", "scale")}
                | {"recursions": depth, "parameters": cards[-1]["parameters"]}
                | {key: result[key] for key in ("psnr", "ssim", "bicubic_psnr", "bicubic_ssim")}
                | {"epochs": cards[-1]["epochs"], "val_psnr": cards[-1]["val_psnr"]}
            )
    caption = f"{_training(cards)}."
    _write(output, "recursions", plots.recursions(rows, caption), rows, caption)


def ensemble(output, data_dirs, models):
    """Measures every single recursion beside the ensemble. Writes ensemble.png, .csv and .json.

    Args:
        output: folder.
        data_dirs: folders of test images.
        models: list of files or preset names.

    Raises:
        UserError: a model, a folder or an image is wrong.
    """
    results, rows, sizes = [], [], []
    for name in models:
        model = drcn_keras.load(name)
        sizes.append(measured.description(name, model))
        results += measured.measure(name, model, data_dirs)
    for result in results:
        same = {key: result[key] for key in ("model", "dataset", "scale")}
        for depth, psnr in enumerate(result["recursion_psnr"], start=1):
            rows.append({**same, "prediction": f"y_{depth}", "psnr": psnr})
        rows.append({**same, "prediction": "ensemble", "psnr": result["psnr"]})
    caption = f"{'; '.join(sizes)}."
    _write(output, "ensemble", plots.ensemble(results, caption), rows, caption)


def weights(output, models):
    """Draws the learned ensemble weights. Writes weights.png, .csv and .json.

    Args:
        output: folder.
        models: list of files or preset names.

    Raises:
        UserError: a model is wrong.
    """
    import keras

    learned, sizes = [], []
    for name in models:
        model = drcn_keras.load(name)
        sizes.append(measured.description(name, model))
        values = keras.ops.convert_to_numpy(model.ensemble_weights).tolist()
        learned.append({"model": measured.label(name), "scales": measured.scales(model), "weights": values})
    rows = [
        {"model": entry["model"], "scales": entry["scales"], "recursion": depth, "weight": weight}
        for entry in learned
        for depth, weight in enumerate(entry["weights"], start=1)
    ]
    caption = f"{'; '.join(sizes)}."
    _write(output, "weights", plots.weights(learned, caption), rows, caption)


def _train(run, training):
    """Trains in the folder `run`, or goes on with it. Returns the path of its best model."""
    command = [sys.executable, "-m", "drcn_keras.train", *training, f"--model_dir={run}"]
    process = subprocess.Popen(command)
    stopped = []

    def stop(number, frame):
        stopped.append(number)
        process.terminate()  # The training writes a checkpoint and ends.

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = process.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if stopped:
        raise errors.Stopped("stopped; the same command goes on from here")
    if code:
        sys.exit(code)  # The training has said why.
    return os.path.join(run, "best.keras")


def _epochs(run):
    """The epochs that the training in the folder `run` has done."""
    with open(os.path.join(run, "log.csv"), newline="") as file:
        return int(list(csv.DictReader(file))[-1]["epoch"])


def _training(cards):
    """How the networks of the recursions study were trained, one phrase."""
    first = cards[0]
    settings = first["flags"]
    epochs = sorted({made["epochs"] for made in cards})
    steps = settings["steps_per_epoch"] or first["patches"] // settings["batch_size"]
    length = f"{epochs[0]}" if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]}"
    return (
        f"F={first['filters']}, trained alike on {measured.images(first)}: "
        f"{length} epochs of {steps} steps, batch {settings['batch_size']}, {settings['optimizer']}"
    )


def _write(output, name, figure, rows, caption):
    """Writes the plot, the numbers and how they were made, each file whole or not at all."""
    path = os.path.join(output, name)
    write_atomically(path + ".png", lambda file: file.write(plots.png(figure)))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _short(value) for key, value in row.items()} for row in rows)
    write_atomically(path + ".csv", lambda file: file.write(text.getvalue().encode()))
    document = {
        "study": name,
        "caption": caption,
        "command": shlex.join(["drcn-study", *sys.argv[1:]]),
        "package_version": drcn_keras.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "date": datetime.date.today().isoformat(),
    }
    # Last: a report takes the studies whose JSON it finds.
    write_atomically(path + ".json", lambda file: file.write((json.dumps(document, indent=2) + "\n").encode()))
    print(f"{path}.png, .csv and .json written", file=sys.stderr)


def _short(value):
    return f"{value:.4f}" if isinstance(value, float) else value


def define_flags():
    """Defines this tool's flags and those of drcn_keras.train."""
    flags.DEFINE_string("output", "", "folder for the plot, the CSV and the JSON; trainings go to its subfolder runs/")
    flags.DEFINE_list("data_dir", [], "folders of test images, separated by commas")
    flags.DEFINE_list(
        "model", [], "ensemble, weights: trained models, separated by commas; none: train one with the training flags"
    )
    flags.DEFINE_list("depths", PAPER_DEPTHS, "recursions: the numbers of recursions D to train")
    train.define_flags()
    commands.require("output")


def main(argv):
    if len(argv) != 2 or argv[1] not in STUDIES:
        raise UserError(f"expected one study of {', '.join(STUDIES)}; received {' '.join(argv[1:]) or 'none'}.")
    study = argv[1]
    training = _training_flags()
    if study != "weights" and not FLAGS.data_dir:
        raise UserError("--data_dir is required: folders of test images.")
    for folder in FLAGS.data_dir:
        list_images(folder)
    if FLAGS.model and (training or study == "recursions"):
        raise UserError("--model is trained already; it goes with ensemble and weights, and without training flags.")
    if not FLAGS.model and not FLAGS.train_dir:
        raise UserError("expected --model, or --train_dir and the flags of a training; received neither.")
    depths = _depths(FLAGS.depths)
    make_folder(FLAGS.output)
    if study == "recursions":
        recursions(FLAGS.output, FLAGS.data_dir, depths, training)
        return
    models = FLAGS.model or [_train(os.path.join(FLAGS.output, "runs", "model"), training)]
    if study == "ensemble":
        ensemble(FLAGS.output, FLAGS.data_dir, models)
    else:
        weights(FLAGS.output, models)


def _training_flags():
    """The training flags that were given, here or in a flagfile, as arguments for drcn_keras.train."""
    given = [FLAGS[field.name] for field in dataclasses.fields(Settings) if FLAGS[field.name].present]
    if any(flag.name == "model_dir" for flag in given):
        raise UserError("--model_dir is not for a study: its trainings go to --output.")
    return [argument for flag in given for argument in flag.serialize().split("\n")]


def _depths(texts):
    if not texts or not all(text.isdecimal() and int(text) >= 1 for text in texts):
        raise UserError(f"--depths must be whole numbers >= 1, separated by commas; received {','.join(texts)!r}.")
    return sorted({int(text) for text in texts})


def run():
    """The command `drcn-study`."""
    commands.run(main, define_flags)


if __name__ == "__main__":
    run()
