"""The paper's studies: a plot each, its numbers and the command that made them."""

import csv
import datetime
import io
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence

import drcn_keras
from drcn_keras import card, errors
from drcn_keras.files import write_atomically
from drcn_keras.inputs import loaded
from drcn_keras.reporting import measured, plots


def recursions(output: str, data_dir: Sequence[str], depths: Sequence[int], training: Sequence[str]) -> None:
    """Trains one network per depth, alike, and measures it. Writes recursions.png, .csv and .json.

    Args:
        output: folder.
        data_dir: folders of test images.
        depths: list of int, the numbers of recursions D.
        training: flags for `drcn_keras.train`, a list of str.

    Raises:
        UserError: a training failed, or a folder or an image is wrong.
    """
    rows, cards = [], []
    for index, depth in enumerate(depths, start=1):
        run = os.path.join(output, "runs", f"recursions_{depth:02d}")
        print(f"[{index}/{len(depths)}] recursions = {depth}", file=sys.stderr)
        best = train_model(run, [*training, f"--recursions={depth}"])
        cards.append({**card.read(best), "epochs": _epochs(run)})
        for result in measured.measure(best, loaded(best), data_dir):
            rows.append(
                {key: result[key] for key in ("dataset", "scale")}
                | {"recursions": depth, "parameters": cards[-1]["parameters"]}
                | {key: result[key] for key in ("psnr", "ssim", "bicubic_psnr", "bicubic_ssim")}
                | {"epochs": cards[-1]["epochs"], "val_psnr": cards[-1]["val_psnr"]}
            )
    caption = f"{_training(cards)}."
    _write(output, "recursions", plots.recursions(rows, caption), rows, caption)


def ensemble(output: str, data_dir: Sequence[str], models: Sequence[str]) -> None:
    """Measures every single recursion beside the ensemble. Writes ensemble.png, .csv and .json.

    Args:
        output: folder.
        data_dir: folders of test images.
        models: list of files or preset names.

    Raises:
        UserError: a model, a folder or an image is wrong.
    """
    results, rows, sizes = [], [], []
    for name in models:
        model = loaded(name)
        sizes.append(measured.description(name, model))
        results += measured.measure(name, model, data_dir)
    for result in results:
        same = {key: result[key] for key in ("model", "dataset", "scale")}
        for depth, psnr in enumerate(result["recursion_psnr"], start=1):
            rows.append({**same, "prediction": f"y_{depth}", "psnr": psnr})
        rows.append({**same, "prediction": "ensemble", "psnr": result["psnr"]})
    caption = f"{'; '.join(sizes)}."
    _write(output, "ensemble", plots.ensemble(results, caption), rows, caption)


def weights(output: str, models: Sequence[str]) -> None:
    """Draws the learned ensemble weights. Writes weights.png, .csv and .json.

    Args:
        output: folder.
        models: list of files or preset names.

    Raises:
        UserError: a model is wrong.
    """
    learned, sizes = [], []
    for name in models:
        model = loaded(name)
        sizes.append(measured.description(name, model))
        values = model.get_layer("ensemble").get_weights()[0].tolist()
        learned.append({"model": measured.label(name), "scales": measured.scales(model), "weights": values})
    rows = [
        {"model": entry["model"], "scales": entry["scales"], "recursion": depth, "weight": weight}
        for entry in learned
        for depth, weight in enumerate(entry["weights"], start=1)
    ]
    caption = f"{'; '.join(sizes)}."
    _write(output, "weights", plots.weights(learned, caption), rows, caption)


def train_model(run: str, training: Sequence[str]) -> str:
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
