"""The studies: their numbers, the files they leave, and trainings that are alike and can be broken off."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from kit import ROOT
from PIL import Image

from drcn_keras import errors
from drcn_keras.card import read

pytest.importorskip("matplotlib", reason="matplotlib draws the studies: pip install drcn_keras[report]")

from drcn_keras.reporting import measured, studies


@pytest.fixture(scope="module")
def crops(tmp_path_factory, photographs):
    """A folder "crops" of two 48-pixel parts of a photograph."""
    folder = tmp_path_factory.mktemp("study") / "crops"
    folder.mkdir()
    astronaut = Image.open(photographs / "astronaut.png")
    astronaut.crop((200, 80, 248, 128)).save(folder / "eyes.png")
    astronaut.crop((40, 300, 88, 348)).save(folder / "badge.png")
    return str(folder)


@pytest.fixture(autouse=True)
def package_on_path(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def saved(random_drcn, tmp_path):
    """Function that saves a small x2 model with the given ensemble weights and returns its path."""

    def save(name, weights):
        model = random_drcn(recursions=len(weights), filters=2)
        model.ensemble_weights.assign(weights)
        model.save(tmp_path / name)
        return str(tmp_path / name)

    return save


RUNS = ["recursions_01", "recursions_02"]


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_recursions_trains_alike_and_measures(crops, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["study.py", "recursions", "--data_dir=some images"])
    training = [
        f"--train_dir={crops}",
        *["--scale=3", "--filters=2", "--patch_size=16", "--batch_size=2", "--holdout=1", "--tensorboard=false"],
        *["--epochs=2", "--steps_per_epoch=2", "--optimizer=adam", "--schedule=cosine", "--clip_norm=1"],
    ]
    studies.recursions(str(tmp_path), [crops], [1, 2], training)

    first, second = rows(tmp_path / "recursions.csv")
    assert [first["recursions"], second["recursions"]] == ["1", "2"]
    # One more recursion adds one ensemble weight and nothing else.
    assert int(second["parameters"]) - int(first["parameters"]) == 1
    assert first["epochs"] == second["epochs"] == "2"
    assert first["bicubic_psnr"] == second["bicubic_psnr"]
    flags = [read(str(tmp_path / "runs" / name / "best.keras"))["flags"] for name in RUNS]
    different = {key for key in flags[0] if flags[0][key] != flags[1][key]}
    assert different == {"recursions", "model_dir"}

    card = json.loads((tmp_path / "recursions.json").read_text())
    assert card["command"] == "drcn-study recursions '--data_dir=some images'"
    assert card["caption"].startswith("F=2, trained alike on 1 image of crops: 2 epochs of 2 steps, batch 2")
    assert_drawn(tmp_path / "recursions.png")
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def assert_drawn(path):
    pixels = np.asarray(Image.open(path).convert("RGB"))
    # The plots' blue is in it, and every edge is free: nothing is cut off.
    assert np.any(np.all(pixels == (0x0B, 0x62, 0xA4), axis=2))
    assert all(np.all(edge == 255) for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]))


def test_ensemble_of_one_recursion_is_that_recursion(crops, saved, tmp_path):
    model = saved("second_x2.keras", [0.0, 1.0, 0.0])
    studies.ensemble(str(tmp_path), [crops], [model])
    psnr = {row["prediction"]: row["psnr"] for row in rows(tmp_path / "ensemble.csv")}
    assert psnr["ensemble"] == psnr["y_2"]
    assert len({psnr["y_1"], psnr["y_2"], psnr["y_3"]}) == 3
    assert {row["model"] for row in rows(tmp_path / "ensemble.csv")} == {"second_x2"}
    assert_drawn(tmp_path / "ensemble.png")


def test_weights_are_those_of_the_model(saved, tmp_path):
    models = [saved("a.keras", [0.25, -0.5, 1.25]), saved("b.keras", [0.5, 0.5])]
    studies.weights(str(tmp_path), models)
    found = [(row["model"], row["recursion"], float(row["weight"])) for row in rows(tmp_path / "weights.csv")]
    assert found == [("a", "1", 0.25), ("a", "2", -0.5), ("a", "3", 1.25), ("b", "1", 0.5), ("b", "2", 0.5)]
    assert "a: F=2, D=3; b: F=2, D=2" in json.loads((tmp_path / "weights.json").read_text())["caption"]
    assert_drawn(tmp_path / "weights.png")


def script(path, text):
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return str(path)


def test_a_signal_reaches_the_training(tmp_path, monkeypatch):
    """The training, not the study, knows how to write its checkpoint: it must be asked and waited for."""
    waiting = (
        f"trap 'sleep 0.2; touch {tmp_path}/saved; exit 0' TERM; touch {tmp_path}/started; while :; do sleep 0.05; done"
    )
    monkeypatch.setattr(sys, "executable", script(tmp_path / "training", waiting))

    def interrupt():
        while not (tmp_path / "started").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(errors.Stopped, match="goes on from here"):
        studies.train_model(str(tmp_path), [])
    thread.join()
    assert (tmp_path / "saved").exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_training_that_fails_ends_the_study_with_its_code(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", script(tmp_path / "training", "exit 3"))
    with pytest.raises(SystemExit) as ended:
        studies.train_model(str(tmp_path), [])
    assert ended.value.code == 3


def test_names_of_models():
    assert measured.label("mobile-x2") == "mobile-x2"
    assert measured.label("runs/mobile_x3/best.keras") == "mobile_x3"
    assert measured.label("some/where/night.keras") == "night"


def test_wrong_input_gets_one_line(crops, tmp_path):
    commands = {
        "received depth": ["depth", f"--output={tmp_path}/o"],
        "--output is required": ["weights", "--model=a.keras"],
        "no image in this folder": ["ensemble", "--model=a.keras", f"--data_dir={tmp_path}", f"--output={tmp_path}/o"],
        "--model, or --train_dir": ["weights", f"--output={tmp_path}/o"],
        "received '1,x'": ["recursions", f"--train_dir={crops}", f"--data_dir={crops}", "--depths=1,x"],
        "goes with ensemble and weights": ["weights", "--model=a.keras", f"--output={tmp_path}/o", "--filters=3"],
    }
    commands["received '1,x'"].append(f"--output={tmp_path}/o")
    tool = [sys.executable, "-m", "drcn_keras.reporting.study"]
    processes = {
        expected: subprocess.Popen([*tool, *arguments], stderr=subprocess.PIPE, text=True)
        for expected, arguments in commands.items()
    }
    for expected, process in processes.items():
        line = process.communicate()[1]
        assert process.returncode == (2 if "required" in expected else 1)
        assert line.startswith("study.py: error: ")
        assert line.count("\n") == 1
        assert expected in line
    assert not (tmp_path / "o").exists()
