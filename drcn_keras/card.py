"""A trained model's files: the presets by name, and the JSON card beside a model that says how it was made."""

import csv
import datetime
import importlib
import json
import os
import platform
from collections.abc import Iterator
from typing import Any

import drcn_keras
from drcn_keras.errors import UserError
from drcn_keras.files import write_atomically

# More than anyone has trained, and still what a file may ask for without running for hours or filling the memory.
MOST_RECURSIONS = 256
MOST_FILTERS = 1_024
_PRESETS = os.path.join(os.path.dirname(__file__), "weights")


def presets() -> list[str]:
    """The names of the trained models that ship with the package, sorted."""
    names = os.listdir(_PRESETS) if os.path.isdir(_PRESETS) else []
    return sorted(os.path.splitext(name)[0] for name in names if name.endswith(".keras"))


def path_of(model: str) -> str:
    """The path of a trained model's file. `model`: the name of a preset, or a path, which is returned as it is."""
    return os.path.join(_PRESETS, model + ".keras") if model in presets() else model


def card_path(model: str) -> str:
    """Where the card of a model stands, a preset's name or a path."""
    return os.path.splitext(path_of(model))[0] + ".json"


def read(model: str) -> dict:
    """The card of a model, a preset's name or a path; empty where there is none.

    Raises:
        UserError: what stands in its place is no card.
    """
    path = card_path(model)
    if not os.path.isfile(path):
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            card = json.load(file)
    except ValueError as error:  # JSON's own, and that of bytes that are no text.
        raise UserError(f"{path} is damaged: {error}.") from error
    if not isinstance(card, dict):
        raise UserError(f"{path} is damaged: expected a JSON object, found a {type(card).__name__}.")
    return card


def write(model: str, card: dict) -> None:
    """Writes the card of a model, atomically. Values are JSON's, so no NaN and no infinity."""
    text = json.dumps(card, indent=2, sort_keys=True, allow_nan=False) + "\n"
    write_atomically(card_path(model), lambda file: file.write(text.encode()))


def of_training(model: Any, epoch: int, minutes: float, logs: dict, settings: dict, sources: dict) -> dict:
    """The card of a model that training has just found to be the best so far.

    Args:
        model: the `DRCN`.
        epoch: the one that ended, 0-based.
        minutes: that the run took up to now.
        logs: of the epoch, with "val_psnr" and "val_bicubic" in dB, and "val_ssim".
        settings: every setting of the run.
        sources: what is said of the images, among it "train_sets" and "train_images", and under "init" the card of
            the model it started from, if it did.
    """
    return {
        **_made(model, logs),
        "epoch": epoch + 1,
        "minutes": round(minutes, 1),
        "hours": round(minutes / 60, 2),
        "flags": settings,
        **sources,
    }


def of_average(model: Any, logs: dict, images: dict, shares: list[tuple[str, int]]) -> dict:
    """The card of a model whose weights are the mean of others'.

    Args:
        model: the new `DRCN`.
        logs: as for `of_training`.
        images: what is said of those that chose: "val_sets" and "val_images".
        shares: (a preset's name or a path, how often it counts) of every model that was to choose from.

    Returns:
        The card. Under "average" stand the share and the card of each model that counts; of one that another was
        trained from, whose card holds its own, only what `brief` says.

    Raises:
        UserError: the card of one is damaged.
    """
    counted = [(name, share, with_origin(name)) for name, share in shares if share]
    earlier = [origin for _, _, card in counted for origin in origins(card)]
    return {
        **_made(model, logs),
        **images,
        "average": [{"share": share, **(brief(name) if card in earlier else card)} for name, share, card in counted],
    }


def origins(card: dict) -> Iterator[dict]:
    """The cards inside a card: of what its training started from or its mean was taken of, and so on."""
    for inner in [card["init"]] if "init" in card else card.get("average", []):
        yield {key: value for key, value in inner.items() if key != "share"}
        yield from origins(inner)


def _made(model, logs):
    """What is said of every new model: what made it when, its shape, and how it restores the validation images."""
    import keras

    return {
        "package_version": drcn_keras.__version__,
        "keras": keras.__version__,
        "backend": keras.backend.backend(),
        "backend_version": importlib.import_module(keras.backend.backend()).__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "date": datetime.date.today().isoformat(),
        "scale": model.scale or list(model.scales),
        "filters": model.filters,
        "recursions": model.recursions,
        "channels": model.channels,
        "parameters": model.count_params(),
        "val_psnr": round(logs["val_psnr"], 4),
        "val_ssim": round(logs["val_ssim"], 4),
        "val_bicubic_psnr": round(logs["val_bicubic"], 4),
    }


def of_preset(run: str, command: str, results: list[dict], self_ensemble: list[dict] | None = None) -> dict:
    """The card of a preset made of a finished run: of all its stages, without the folders of the machine.

    Args:
        run: the run's folder, or that of a mean.
        command: that made it.
        results: of `drcn_keras.evaluate`, one for each data set.
        self_ensemble: the same with `self_ensemble`; None: not measured.

    Raises:
        UserError: the run, or the model that it started from, has no card.
    """
    card = with_origin(os.path.join(run, "best.keras"), required=True)
    card["command"] = command
    if "average" not in card:
        with open(os.path.join(run, "log.csv"), newline="") as file:
            rows = list(csv.DictReader(file))
        card["val_curve"] = [[int(row["epoch"]), float(row["val_psnr"])] for row in rows if row["val_psnr"]]
    card["results"] = results_of(results)
    if self_ensemble is not None:
        # What a single recursion gives belongs to the plain rows.
        card["self_ensemble"] = [
            {key: value for key, value in result.items() if key not in ("recursion_psnr", "ensemble")}
            for result in results_of(self_ensemble)
        ]
    return card


def results_of(results: list[dict]) -> list[dict]:
    """The results of `drcn_keras.evaluate` as cards hold them: means, and how many images."""
    return [
        {"dataset": result["dataset"], "scale": result["scale"], "images": len(result["images"]), **result["mean"]}
        for result in results
    ]


def brief(model: str) -> dict:
    """What a card says of another model that had its part in a training: its name, size and validation result."""
    known = read(model)
    name = os.path.splitext(os.path.basename(model))[0]
    return {"name": name} | {key: known[key] for key in ("filters", "recursions", "val_psnr") if key in known}


def with_origin(model: str, required: bool = False) -> dict:
    """The card of a model, and under "init" that of the model its training started from, and so on.

    A run's own card holds it from the run's beginning: what bears a name later, a preset's above all, may be another
    model by then. The cards of earlier versions hold the name alone.

    Args:
        model: a preset's name or a path.
        required: whether each of them must have a card.

    Returns:
        The card without the folders of the machine, which are nobody's business; empty where there is none.

    Raises:
        UserError: a card is damaged, or missing though `required`.
    """
    card = read(model)
    if not card and required:
        raise UserError(f"no card at {card_path(model)}; expected one beside the best.keras of a training run.")
    flags = card.get("flags", {})
    init = flags.get("init")
    # A run that began with what stood in its own folder has overwritten that model's card.
    if init and "init" not in card and os.path.realpath(card_path(init)) != os.path.realpath(card_path(model)):
        card["init"] = with_origin(init, required)
    if flags:
        private = {key for key in flags if key.endswith("_dir")} | {"init", "teacher"}
        card["flags"] = {key: value for key, value in flags.items() if key not in private}
    return {key: value for key, value in card.items() if key != "init" or value}
