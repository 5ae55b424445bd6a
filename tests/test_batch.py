"""Batches on Apache Beam's local runner: every result once and right, every bad file named, nothing made twice."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

import drcn_keras
from drcn_keras.errors import UserError
from drcn_keras.image_files import read_image

pytest.importorskip("apache_beam", reason="needs pip install 'drcn_keras[beam]'; make test-beam has it")
from drcn_keras import batch_pipeline
from drcn_keras.batch import batch
from drcn_keras.batch_pipeline import target_of

ROOT = pathlib.Path(__file__).parent.parent
# Beam's own.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def photos(photographs, tmp_path):
    """A tree of tiny photographs, an unreadable and an empty file, and two of one stem."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    with Image.open(photographs / "coffee.png") as photo:
        photo = photo.convert("RGB")
        for number, path in enumerate(("a.png", "b.jpg", "deep/a.png", "deep/same.png", "deep/same.jpg")):
            photo.crop((10 * number, 100, 10 * number + 20, 115)).save(folder / path)
    (folder / "fake.png").write_text("no image")
    (folder / "deep" / "empty.jpg").touch()
    return folder


@pytest.fixture
def model(random_drcn, tmp_path):
    random_drcn().save(tmp_path / "model.keras")
    return str(tmp_path / "model.keras")


def times(output):
    return {path: path.stat().st_mtime_ns for path in output.rglob("*.png")}


def test_every_result_once_and_every_bad_file_named(photos, model, tmp_path):
    output = tmp_path / "large"
    counters = batch(f"{photos}/**", str(output), model)
    assert sorted(str(path.relative_to(output)) for path in output.rglob("*.png")) == ["a.png", "b.png", "deep/a.png"]
    for source, result in (("a.png", "a.png"), ("b.jpg", "b.png"), ("deep/a.png", "deep/a.png")):
        expected = drcn_keras.upscale(read_image(photos / source), model)
        assert np.array_equal(read_image(output / result), expected)
    assert counters == {"upscaled": 3, "present": 0, "bad": 4, "pixels": 3 * 40 * 30}
    lines = [json.loads(line) for line in (output / "bad_images.jsonl").read_text().splitlines()]
    reasons = {line["image"].removeprefix(f"{photos}/"): line["reason"] for line in lines}
    assert sorted(reasons) == ["deep/empty.jpg", "deep/same.jpg", "deep/same.png", "fake.png"]
    assert reasons["fake.png"].startswith("not an image in a known format")
    assert "same.jpg and" in reasons["deep/same.png"]
    assert "would all become" in reasons["deep/same.png"]
    # Once more: nothing is made again, the bad files are named again.
    before = times(output)
    assert batch(f"{photos}/**", str(output), model) == {"upscaled": 0, "present": 3, "bad": 4, "pixels": 0}
    assert times(output) == before
    assert len((output / "bad_images.jsonl").read_text().splitlines()) == 4


def test_an_interrupted_batch_goes_on(photos, model, tmp_path):
    output = tmp_path / "large"
    batch(f"{photos}/**", str(output), model)
    before = times(output)
    (output / "deep" / "a.png").unlink()
    (output / "deep" / ".partial-0123").write_text("half")
    assert batch(f"{photos}/**", str(output), model)["upscaled"] == 1
    after = times(output)
    assert after.keys() == before.keys()
    assert {path for path in after if after[path] != before[path]} == {output / "deep" / "a.png"}
    assert not list(output.rglob(".partial-*"))


def test_a_run_that_breaks_off_is_followed_by_another_while_they_get_on(photos, model, tmp_path, monkeypatch):
    left = [2]
    write = batch_pipeline.write_whole

    def breaking(path, contents):
        if path.endswith(".png") and not left[0]:
            left[0] = 2
            raise RuntimeError("the disk is gone")
        left[0] -= path.endswith(".png")
        write(path, contents)

    monkeypatch.setattr(batch_pipeline, "write_whole", breaking)
    counters = batch(f"{photos}/**", str(tmp_path / "large"), model)
    assert (counters["upscaled"], counters["present"]) == (1, 2)

    def broken(path, contents):
        if path.endswith(".png"):
            raise RuntimeError("the disk is gone")
        write(path, contents)

    monkeypatch.setattr(batch_pipeline, "write_whole", broken)
    with pytest.raises(UserError, match=r"Beam failed; the same command goes on with what is missing: .*disk is gone"):
        batch(f"{photos}/**", str(tmp_path / "other"), model)


def test_a_killed_worker_costs_nothing(photographs, model, tmp_path):
    (tmp_path / "photos").mkdir()
    with Image.open(photographs / "coffee.png") as photo:
        for number in range(60):
            photo.crop((4 * number, 100, 4 * number + 120, 220)).save(tmp_path / "photos" / f"{number:02d}.png")
    (tmp_path / "photos" / "60.png").write_text("no image")
    output = tmp_path / "large"
    command = [f"--input={tmp_path / 'photos'}/*", f"--output={output}", f"--model={model}", "--direct_num_workers=2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "drcn_keras.beam", *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while not list(output.glob("*.png")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.kill(workers_of(process.pid)[0], signal.SIGKILL)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert b"a worker failed" in err
    assert sorted(path.name for path in output.glob("*.png")) == [f"{number:02d}.png" for number in range(60)]
    assert b"1 bad" in out
    assert sorted(path.name for path in output.iterdir() if path.suffix != ".png") == [
        ".batch.json",
        "bad_images.jsonl",
    ]


def workers_of(ancestor):
    """The ids of Beam's worker processes below a process."""
    parents, commands = {}, {}
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            commands[int(entry.name)] = (entry / "cmdline").read_text()
        except OSError:
            continue
    family = {ancestor}
    for _ in parents:
        family |= {child for child, parent in parents.items() if parent in family}
    return sorted(pid for pid in family if "sdk_worker_main" in commands[pid] and "/bin/sh" not in commands[pid])


@pytest.mark.parametrize(
    ("source", "pattern", "target"),
    [
        ("photos/a.jpg", "photos/*", "out/a.png"),
        ("photos/b/c.d.tif", "photos/**", "out/b/c.d.png"),
        ("photos/2024/a.png", "photos/20*/*.png", "out/2024/a.png"),
        ("photos/a.jpg", "photos/a.jpg", "out/a.png"),
        ("a.jpg", "*.jpg", "out/a.png"),
        ("gs://bucket/in/x/a.jpg", "gs://bucket/in/**.jpg", "out/x/a.png"),
    ],
)
def test_where_results_go(source, pattern, target):
    assert target_of(source, pattern, "out") == target


def test_results_of_other_settings_are_not_taken_for_these(photos, model, random_drcn, tmp_path):
    output = str(tmp_path / "large")
    batch(f"{photos}/*.png", output, model)
    random_drcn(scale=3).save(tmp_path / "other.keras")
    with pytest.raises(UserError, match=r"large holds results of another model, scale or precision \(x2, float32\)"):
        batch(f"{photos}/*.png", output, str(tmp_path / "other.keras"))


def test_bad_settings(photos, model, tmp_path, monkeypatch):
    output = str(tmp_path / "large")
    for pattern, folder, flags, message in [
        (f"{tmp_path}/none/*", output, (), "no file matches"),
        (str(photos), output, (), r"is a folder; expected a pattern: .*photos/\*"),
        (f"{photos}/**", str(photos / "deep"), (), "lies in --output"),
        ("nowhere://x/*", output, (), "cannot be searched"),
        (f"{photos}/*", output, ("--direct_num_wrokers=2",), "unknown flag --direct_num_wrokers"),
        (f"{photos}/*", output, ("--direct_num_workers=two",), "invalid int value: 'two'"),
        (f"{photos}/*", output, ("photos",), "unexpected argument 'photos'"),
        (f"{photos}/*", output, ("--runner=NoRunner",), "NoRunner"),
    ]:
        with pytest.raises(UserError, match=message):
            batch(pattern, folder, model, beam_flags=flags)
    monkeypatch.chdir(photos)
    with pytest.raises(UserError, match="lies in --output"):
        batch("**", "./deep/../deep", model)
    with pytest.raises(UserError, match="x2 alone; received x3"):
        batch(f"{photos}/*", output, model, scale=3)
    assert not os.path.exists(output)
