"""What is said of a trained model: a short name, its card, its results."""

import itertools
import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import drcn_keras
from drcn_keras import card

if TYPE_CHECKING:
    from drcn_keras.model import DRCN


def label(name: str) -> str:
    """A short name for a model: the preset's, the file's, or its run's folder where the file is best.keras."""
    stem = os.path.splitext(os.path.basename(name))[0]
    return os.path.basename(os.path.dirname(os.path.abspath(name))) if stem == "best" else stem


def description(name: str, model: "DRCN") -> str:
    """One phrase: the model's size and, where its card tells, its training."""
    text = f"{label(name)}: F={model.filters}, D={model.recursions}"
    if model.scale is None:
        text += f", one network for {scales(model)}"
    trained = images(card.read(name))
    return text + (f", trained on {trained}" if trained else "")


def scales(model: "DRCN") -> str:
    """The enlargements of a model, such as "x2" or "x2, x3, x4"."""
    return ", ".join(f"x{scale}" for scale in model.scales)


def images(made: dict) -> str:
    """What a card says of the training images: how many, of which sets; empty where it says nothing.

    Of several stages the one that used most counts: one of large patches leaves out what an earlier one has seen.
    """
    stages = [stage for stage in (made, *card.origins(made)) if "train_images" in stage]
    if not stages:
        return ""
    most = max(stages, key=lambda stage: stage["train_images"])
    count = most["train_images"]
    return f"{count} image{'s' * (count != 1)} of {' and '.join(most['train_sets'])}"


def measure(name: str, model: "DRCN", data_dir: Sequence[str], save_images: str | None = None) -> list[dict]:
    """Measures one model on several folders of test images, with a progress bar.

    Args:
        name: what the model was loaded from.
        model: a `DRCN`.
        data_dir: folders.
        save_images: folder for the restored images, see `drcn_keras.evaluate`; None: keep none.

    Returns:
        list of dicts, one per scale and folder: what `drcn_keras.evaluate` returns of it and its mean's entries, with
        "model", the
        label, and "folder".

    Raises:
        UserError: a folder or an image is wrong.
    """
    # TensorFlow warns when functions are traced often; here each model is traced once, and there may be many.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    results = drcn_keras.evaluate(model, data_dir, save_images=save_images, progress=True)["results"]
    return [
        {"model": label(name), "folder": folder, **result, **result["mean"]}
        for folder, result in zip(itertools.cycle(data_dir), results, strict=False)
    ]
