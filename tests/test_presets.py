"""The trained models that ship with the package."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import drcn_keras
from drcn_keras import inputs, tiling
from drcn_keras import presets as presets_module
from drcn_keras.commands import default_model
from drcn_keras.errors import UserError
from drcn_keras.evaluation import evaluate
from drcn_keras.image import as_scales
from drcn_keras.inputs import loaded
from drcn_keras.presets import path_of, presets
from drcn_keras.published import published

PRESETS = ["drcn-large-x234", "drcn-x2", "drcn-x234", "drcn-x3", "drcn-x4", "mobile-x2", "mobile-x3", "mobile-x4"]
# F=96; D=16 as the paper's.
MOST_PARAMETERS = 250_961


def card_of(name):
    return json.loads(pathlib.Path(path_of(name)).with_suffix(".json").read_text())


def test_all_of_them_are_tested():
    assert presets() == PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_what_its_name_and_its_card_say(name):
    model, card = drcn_keras.load(name), card_of(name)
    assert name.endswith("-x" + "".join(map(str, model.scales)))
    assert model.scales == as_scales(card["scale"])
    for fact in ("filters", "recursions", "channels"):
        assert getattr(model, fact) == card[fact]
    assert model.count_params() == card["parameters"] <= MOST_PARAMETERS
    assert pathlib.Path(path_of(name)).stat().st_size < 2_000_000


@pytest.mark.parametrize("name", PRESETS)
def test_card_tells_how_to_train_it_again(name):
    card = card_of(name)
    assert "drcn_keras.train --flagfile=" in card["command"]
    # Of a mean, each of the networks that it was taken of; one that another was trained from stands there alone.
    trainings = [training for training in card.get("average", [card]) if "flags" in training]
    assert trainings
    for training in trainings:
        assert set(training["train_sets"]) <= {"T91", "BSD200"}
        assert training["flags"]["seed"] >= 0
        assert training["minutes"] > 0
        assert training["machine"]
        assert "/" not in json.dumps(training["flags"])
    if "average" not in card:
        epochs, decibels = zip(*card["val_curve"], strict=True)
        assert list(epochs) == sorted(epochs)
        assert max(decibels) == pytest.approx(card["val_psnr"], abs=1e-3)
    else:
        assert card["val_psnr"] > max(network["val_psnr"] for network in card["average"])


@pytest.mark.parametrize("name", PRESETS)
def test_card_beats_srcnn_on_every_benchmark(name):
    results = card_of(name)["results"]
    measured = [(result["scale"], result["dataset"], result["images"]) for result in results]
    sets = [("Set5", 5), ("Set14", 14), ("B100", 100)]
    assert measured == [(scale, *count) for scale in drcn_keras.load(name).scales for count in sets]
    for result in results:
        assert result["psnr"] > published(result["dataset"], result["scale"], "SRCNN")[0]
        # The paper's claim for its ensemble.
        assert result["psnr"] > max(result["recursion_psnr"])


@pytest.mark.parametrize("name", PRESETS)
def test_set5_is_as_the_card_says(name, benchmark_set):
    results = evaluate(name, benchmark_set("Set5"))["results"]
    cards = [entry for entry in card_of(name)["results"] if entry["dataset"] == "Set5"]
    for result, written in zip(results, cards, strict=True):
        assert result["scale"] == written["scale"]
        assert result["mean"]["psnr"] == pytest.approx(written["psnr"], abs=2e-3)
        assert result["mean"]["ssim"] == pytest.approx(written["ssim"], abs=2e-5)
        assert result["mean"]["recursion_psnr"] == pytest.approx(written["recursion_psnr"], abs=2e-3)


@pytest.mark.parametrize("name", PRESETS)
def test_preset_restores_a_photograph_that_it_was_not_trained_on(name, photographs, tmp_path):
    with Image.open(photographs / "coffee.png") as photo:
        photo.convert("RGB").crop((150, 80, 342, 272)).save(tmp_path / "coffee.png")
    for result in evaluate(name, tmp_path)["results"]:
        assert result["mean"]["psnr"] > result["mean"]["bicubic_psnr"] + 0.5


@pytest.mark.parametrize(
    ("scale", "size"), [(None, (10, 12)), (2, (10, 12)), (3, (15, 18)), (4, (20, 24)), (2.5, (13, 15))]
)
def test_without_a_model_the_preset_of_the_scale_is_taken(tmp_path, scale, size):
    Image.fromarray(np.full((6, 5), 90, np.uint8)).save(tmp_path / "flat.png")
    result = drcn_keras.upscale(tmp_path / "flat.png", default_model(scale), scale=scale)
    assert result.size == size
    assert np.abs(np.asarray(result, int) - 90).max() <= 3


def test_a_model_is_loaded_once_until_its_file_changes(bicubic_drcn, tmp_path):
    path = tmp_path / "model.keras"
    bicubic_drcn().save(path)
    first = loaded(path)
    assert loaded(str(path)) is first
    gray = np.full((5, 4), 100, np.uint8)
    assert np.abs(drcn_keras.upscale(gray, path).astype(int) - 100).max() <= 1
    bicubic_drcn(offset=0.2).save(path)
    assert loaded(path) is not first
    assert np.abs(drcn_keras.upscale(gray, path).astype(int) - 151).max() <= 1
    # What the user loads is the user's own.
    assert drcn_keras.load(path) is not drcn_keras.load(path)


def test_nothing_is_loaded_or_built_anew_over_calls_of_random_sizes_by_name(monkeypatch):
    """A preset's name at every call, as the README has it. How memory stays: tests/test_graphs.py."""
    random = np.random.default_rng(0)
    loads, networks = [], []
    monkeypatch.setattr(presets_module, "load", lambda name, load=presets_module.load: loads.append(name) or load(name))
    inputs._load_once.cache_clear()
    for _ in range(40):
        height, width = random.integers(1, 40, 2)
        drcn_keras.upscale(np.zeros((height, width), np.uint8), "mobile-x2")
        networks += tiling._NETWORKS[loaded("mobile-x2")][1].values()
    assert loads == ["mobile-x2"]
    assert len(networks) == 40  # One precision.
    assert all(network is networks[0] for network in networks)


@pytest.mark.parametrize("backend", ["tensorfow", "numpy", ""])
def test_a_backend_that_is_none_ends_a_command_with_one_line(backend, tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "image.png")
    configured = tmp_path / "keras.json"
    configured.write_text('{"backend": "jaxx", "image_data_format": "channels_last", "floatx": "float32"}')
    environment = {**os.environ, "KERAS_HOME": str(tmp_path), "PYTHONPATH": str(pathlib.Path(__file__).parent.parent)}
    environment.pop("KERAS_BACKEND", None)
    if backend:
        environment["KERAS_BACKEND"] = backend
    command = [sys.executable, "-m", "drcn_keras.upscale", tmp_path / "image.png", f"--output={tmp_path}/large.png"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 1
    assert "error: KERAS_BACKEND must be one of tensorflow, jax, torch, and installed; it is" in result.stderr
    assert (backend or "jaxx") in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_hdf5_is_named(tmp_path):
    (tmp_path / "new.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(UserError, match=r"new\.h5 is HDF5 \(\.h5\), Keras's older format, which is not read here"):
        drcn_keras.load(str(tmp_path / "new.h5"))
