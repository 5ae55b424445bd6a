"""The trained models that ship with the package."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

import drcn_keras
from drcn_keras.commands import default_model
from drcn_keras.evaluation import evaluate
from drcn_keras.presets import path_of, presets
from drcn_keras.published import published

PRESETS = ["mobile-x2", "mobile-x3", "mobile-x4"]
# What two cores could reach was asked of networks no larger than F=64, D=9.
MOST_PARAMETERS = 112_010


def card_of(name):
    return json.loads(pathlib.Path(path_of(name)).with_suffix(".json").read_text())


def test_all_of_them_are_tested():
    assert presets() == PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_what_its_name_and_its_card_say(name):
    model, card = drcn_keras.load(name), card_of(name)
    assert f"mobile-x{model.scale}" == name
    for fact in ("scale", "filters", "recursions", "channels"):
        assert getattr(model, fact) == card[fact]
    assert model.count_params() == card["parameters"] <= MOST_PARAMETERS
    assert pathlib.Path(path_of(name)).stat().st_size < 2_000_000


@pytest.mark.parametrize("name", PRESETS)
def test_card_tells_how_to_train_it_again(name):
    card = card_of(name)
    assert "drcn_keras.train --flagfile=" in card["command"]
    assert set(card["train_sets"]) <= {"T91", "BSD200"}
    assert card["flags"]["seed"] >= 0
    assert card["minutes"] > 0
    assert card["machine"]
    epochs, decibels = zip(*card["val_curve"], strict=True)
    assert list(epochs) == sorted(epochs)
    assert max(decibels) == pytest.approx(card["val_psnr"], abs=1e-3)
    assert "/" not in json.dumps(card["flags"])


@pytest.mark.parametrize("name", PRESETS)
def test_card_beats_srcnn_on_every_benchmark(name):
    results = card_of(name)["results"]
    assert [(result["dataset"], result["images"]) for result in results] == [("Set5", 5), ("Set14", 14), ("B100", 100)]
    for result in results:
        assert result["psnr"] > published(result["dataset"], result["scale"], "SRCNN")[0]
        # The paper's claim for its ensemble.
        assert result["psnr"] > max(result["recursion_psnr"])


@pytest.mark.parametrize("name", PRESETS)
def test_set5_is_as_the_card_says(name, benchmark_set):
    (result,) = evaluate(name, benchmark_set("Set5"))["results"]
    (written,) = (entry for entry in card_of(name)["results"] if entry["dataset"] == "Set5")
    assert result["mean"]["psnr"] == pytest.approx(written["psnr"], abs=2e-3)
    assert result["mean"]["ssim"] == pytest.approx(written["ssim"], abs=2e-5)
    assert result["mean"]["recursion_psnr"] == pytest.approx(written["recursion_psnr"], abs=2e-3)


@pytest.mark.parametrize("name", PRESETS)
def test_preset_restores_a_photograph_that_it_was_not_trained_on(name, photographs, tmp_path):
    with Image.open(photographs / "coffee.png") as photo:
        photo.convert("RGB").crop((150, 80, 342, 272)).save(tmp_path / "coffee.png")
    (result,) = evaluate(name, tmp_path)["results"]
    assert result["mean"]["psnr"] > result["mean"]["bicubic_psnr"] + 0.5


@pytest.mark.parametrize(("scale", "size"), [(None, (10, 12)), (2, (10, 12)), (3, (15, 18)), (4, (20, 24))])
def test_without_a_model_the_preset_of_the_scale_is_taken(tmp_path, scale, size):
    Image.fromarray(np.full((6, 5), 90, np.uint8)).save(tmp_path / "flat.png")
    result = drcn_keras.upscale(tmp_path / "flat.png", default_model(scale))
    assert result.size == size
    assert np.abs(np.asarray(result, int) - 90).max() <= 3
