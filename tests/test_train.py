"""The training command and what it leaves behind. Runs on every backend."""

import csv
import dataclasses
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from kit import ROOT, tiny_settings
from PIL import Image

from drcn_keras import DRCN, card, checkpoint, data, load, records, trainer
from drcn_keras.errors import Stopped, UserError
from drcn_keras.run_folder import RunFolder
from drcn_keras.settings import Settings
from drcn_keras.train import train


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(3):
        pixels = np.random.default_rng(number).integers(40, 215, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((24, 24), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return str(folder)


@pytest.fixture(scope="module")
def tiny(photographs):
    """Function of a folder and changes: the settings of a run that takes a moment."""

    def settings(folder, **changes):
        return tiny_settings(**{"train_dir": photographs, "model_dir": folder, **changes})

    return settings


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """The folder of a run of four epochs, never broken off."""
    folder = tmp_path_factory.mktemp("finished")
    train(tiny(folder, epochs=4, tensorboard=True))
    return folder


def rows(folder):
    with open(folder / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def newest(folder):
    arrays, meta = checkpoint.unpack(checkpoint.newest(str(folder / "checkpoints")))
    return arrays, meta


def events(folder):
    """(step, tag) of every TensorBoard event, file by file in the order of writing; "purge" where one restarts."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    found = []
    for path in sorted((folder / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns):
        content = path.read_bytes()
        while content:
            # A record: length (8 bytes), its checksum (4), the event, its checksum (4).
            size = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + size])
            content = content[16 + size :]
            if event.session_log.status == SessionLog.START:
                found.append((event.step, "purge"))
            found += [(event.step, value.tag) for value in event.summary.value]
    return found


def stop_after(batches, settings, monkeypatch):
    """Trains until SIGTERM arrives while the last of so many batches is cut."""
    batch, calls = data.PatchStream.batch, []

    def stopping(stream, step):
        calls.append(step)
        if len(calls) == batches:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(stream, step)

    monkeypatch.setattr(data.PatchStream, "batch", stopping)
    with pytest.raises(Stopped):
        train(settings)
    monkeypatch.undo()


def test_a_run_leaves_the_best_model_its_card_and_a_row_per_epoch(finished):
    card = json.loads((finished / "best.json").read_text())
    model = load(str(finished / "best.keras"))
    assert (model.scale, model.filters, model.recursions, model.channels) == (2, 2, 2, 1)
    assert (card["scale"], card["filters"], card["recursions"], card["channels"]) == (2, 2, 2, 1)
    assert card["parameters"] == model.count_params()
    assert (card["train_images"], card["val_images"], card["patches"]) == (2, 1, 18)
    assert card["flags"]["learning_rate"] == 0.001
    assert card["backend_version"] == importlib.import_module(keras.backend.backend()).__version__
    assert card["hours"] == pytest.approx(card["minutes"] / 60, abs=0.01)
    assert 0 < card["val_ssim"] < 1
    table = rows(finished)
    assert [row["epoch"] for row in table] == ["1", "2", "3", "4"]
    # Linear over the first half of four epochs.
    assert [float(row["alpha"]) for row in table] == [1.0, 0.5, 0.0, 0.0]
    best = max(table, key=lambda row: float(row["val_psnr"]))
    assert card["epoch"] == int(best["epoch"])
    assert card["val_psnr"] == pytest.approx(float(best["val_psnr"]), abs=1e-3)
    assert [path.name for path in sorted((finished / "checkpoints").iterdir())] == [
        f"step-{step:09d}.npz" for step in (6, 9, 12)
    ]


def test_tensorboard_gets_everything_once_per_epoch(finished):
    found = [event for event in events(finished) if event[1] != "purge"]
    assert len(found) == len(set(found))
    expected = {"loss", "alpha", "lr", "minutes_left", "val_psnr", "val_ssim", "val_bicubic", "bicubic_drcn_original"}
    expected |= {f"{kind}/{number:02d}" for kind in ("ensemble_weights", "recursion_psnr") for number in (1, 2)}
    for epoch in (1, 2, 3, 4):
        assert {tag for step, tag in found if step == epoch} == expected


def test_a_run_that_broke_off_ends_as_the_uninterrupted_one(finished, tiny, tmp_path, monkeypatch):
    settings = tiny(tmp_path, epochs=4, tensorboard=True)

    def break_off(log, epoch, logs):
        if epoch == 2:
            raise RuntimeError("broken off")
        original(log, epoch, logs)

    # The worst moment: the third epoch's best model is written, its checkpoint is not.
    original = records.TensorBoardLog.on_epoch_end
    monkeypatch.setattr(records.TensorBoardLog, "on_epoch_end", break_off)
    with pytest.raises(RuntimeError, match="broken off"):
        train(settings)
    monkeypatch.undo()
    assert newest(tmp_path)[1]["step"] == 6
    train(settings)

    arrays, meta = newest(tmp_path)
    expected, expected_meta = newest(finished)
    assert meta["step"] == expected_meta["step"] == 12
    np.testing.assert_equal(arrays, expected)
    for name in ("validation", "plateau"):
        assert meta["state"][name] == expected_meta["state"][name]
    assert rows(tmp_path) == rows(finished)
    best, expected_best = (load(str(folder / "best.keras")).get_weights() for folder in (tmp_path, finished))
    np.testing.assert_equal(best, expected_best)
    # TensorBoard drops what stands before a purge and is not older than it.
    found = events(tmp_path)
    assert found.count((3, "purge")) == 1
    assert [found.count((step, "loss")) for step in (1, 2, 3, 4)] == [1, 1, 1, 1]


def test_more_epochs_extend_a_run(tiny, tmp_path):
    settings = tiny(tmp_path, alpha_start=0.5, alpha_end=0.5, schedule="constant")
    train(settings)
    before = newest(tmp_path)[0]
    # Nothing is left to do.
    train(settings)
    np.testing.assert_equal(newest(tmp_path)[0], before)
    train(dataclasses.replace(settings, epochs=3))
    assert newest(tmp_path)[1]["step"] == 9
    whole = tmp_path / "whole"
    train(dataclasses.replace(settings, epochs=3, model_dir=str(whole)))
    np.testing.assert_equal(newest(tmp_path)[0], newest(whole)[0])
    assert rows(tmp_path) == rows(whole)


def test_contradicting_flags_are_refused_by_name(finished, tiny):
    before = newest(finished)[0]
    for changes, text in (
        ({"filters": 3}, "^`filters=3` contradicts the checkpoint in `model_dir`, made with 2"),
        ({"seed": 9}, "^`seed=9` contradicts"),
        ({"schedule": "cosine"}, "^`schedule=cosine` contradicts"),
        ({"zooms": (1, 0.8)}, r"^`zooms=1\.0,0\.8` contradicts the checkpoint in `model_dir`, made with 1\.0"),
    ):
        with pytest.raises(UserError, match=text):
            train(tiny(finished, epochs=9, **changes))
    np.testing.assert_equal(newest(finished)[0], before)


def test_other_images_under_the_same_name_are_refused(tiny, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(*tiny(tmp_path).train_dir, folder)
    train(tiny(tmp_path / "run", train_dir=str(folder), epochs=1))
    Image.new("RGB", (24, 24), "gray").save(folder / "0.png")
    with pytest.raises(UserError, match=r"^`train_dir`, `val_dir` or `teacher`: not what the checkpoint"):
        train(tiny(tmp_path / "run", train_dir=str(folder), epochs=2))


def test_a_checkpoint_from_before_a_setting_existed_had_its_default(finished, tiny):
    identity = {**trainer._identity(tiny(finished)), "images": 5}
    saved = {name: value for name, value in identity.items() if name not in ("clip_norm", "images")}
    assert trainer._contradiction(identity, saved) is None
    assert "`clip_norm=1.0` contradicts" in trainer._contradiction({**identity, "clip_norm": 1.0}, saved)


def test_fresh_starts_over(tiny, tmp_path):
    train(tiny(tmp_path, filters=3, epochs=1, tensorboard=True))
    (tmp_path / "checkpoints" / ".partial-x.npz").write_bytes(b"x")
    train(tiny(tmp_path, epochs=1, fresh=True))
    assert load(str(tmp_path / "best.keras")).filters == 2
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000000003.npz"]
    assert not (tmp_path / "tensorboard").exists()


def test_damaged_files_are_set_aside_and_the_run_goes_on(tiny, tmp_path, caplog):
    train(tiny(tmp_path))
    with np.load(tmp_path / "checkpoints" / "step-000000006.npz") as file:
        arrays = {name: file[name] for name in file.files}
    meta = json.loads(bytes(arrays["meta"]))
    del meta["state"]["validation"]
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    np.savez(tmp_path / "checkpoints" / "step-000000006.npz", **arrays)
    (tmp_path / "log.csv").write_bytes(b"\xff")
    (tmp_path / "best.json").write_text("[")
    train(tiny(tmp_path, epochs=3))
    assert newest(tmp_path)[1]["step"] == 9
    assert [row["epoch"] for row in rows(tmp_path)] == ["2", "3"]
    for name in ("log.csv", "best.json", "checkpoints/step-000000006.npz"):
        assert (tmp_path / f"{name}.damaged").exists()
    assert "it lacks validation" in caplog.text


def test_a_checkpoint_whose_parts_are_incomplete_is_set_aside(tiny, tmp_path):
    train(tiny(tmp_path))
    path = tmp_path / "checkpoints" / "step-000000006.npz"
    arrays, meta = checkpoint.unpack(path.read_bytes())
    del meta["state"]["progress"]["minutes"]
    np.savez(path, **arrays, meta=np.frombuffer(json.dumps(meta).encode(), np.uint8))
    train(tiny(tmp_path))
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-000000003.npz", "step-000000006.npz", "step-000000006.npz.damaged"]


def test_a_best_model_that_was_taken_away_is_written_again(tiny, tmp_path, caplog):
    card = train(tiny(tmp_path, epochs=1, learning_rate=1e-12))
    (tmp_path / "best.keras").unlink()
    again = train(tiny(tmp_path, epochs=2, learning_rate=1e-12))
    assert again["epoch"] == 2
    assert load(str(tmp_path / "best.keras")).filters == 2
    assert "best.keras is missing" in caplog.text
    assert card["val_psnr"] == again["val_psnr"]  # Or it would have been written in any case.


def test_an_ended_run_whose_best_model_was_taken_away_is_no_success(tiny, tmp_path):
    train(tiny(tmp_path, epochs=1))
    (tmp_path / "best.keras").unlink()
    with pytest.raises(UserError, match=r"this run has ended, and .*best.keras is missing"):
        train(tiny(tmp_path, epochs=1))


def test_a_second_training_in_the_same_folder_is_refused(tiny, tmp_path):
    with RunFolder(str(tmp_path)).locked(), pytest.raises(UserError, match="another training is at work in"):
        train(tiny(tmp_path))
    assert not list(tmp_path.iterdir())


def test_validation_images_that_are_training_images_are_named(tiny, tmp_path, caplog):
    train(tiny(tmp_path / "apart", epochs=1))
    assert "training images too" not in caplog.text
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(os.path.join(*tiny(tmp_path).train_dir, "1.png"), other / "renamed.png")
    train(tiny(tmp_path / "run", val_dir=str(other), epochs=1))
    assert "1 of 1 validation images are training images too" in caplog.text
    assert "renamed.png" in caplog.text


def test_fresh_deletes_nothing_when_the_new_run_cannot_start(tiny, tmp_path):
    train(tiny(tmp_path, epochs=1))
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(UserError, match="none of the"):
        train(tiny(tmp_path, epochs=1, fresh=True, patch_size=41))
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_the_time_limit_ends_a_run_after_a_whole_epoch_and_can_be_raised(tiny, tmp_path):
    train(tiny(tmp_path, epochs=50, time_limit=1e-6))
    assert newest(tmp_path)[1]["step"] == 3
    assert float(rows(tmp_path)[0]["alpha"]) == 0.0  # By the clock, the run was over.
    train(tiny(tmp_path, epochs=50, time_limit=1e-6))
    assert newest(tmp_path)[1]["step"] == 3
    train(tiny(tmp_path, epochs=2, time_limit=0.0))
    assert newest(tmp_path)[1]["step"] == 6


def test_the_last_epoch_has_a_checkpoint_whatever_the_interval(tiny, tmp_path):
    train(tiny(tmp_path, epochs=3, checkpoint_every=2))
    assert sorted(path.name[5:14] for path in (tmp_path / "checkpoints").iterdir()) == ["000000006", "000000009"]


def test_nan_stops_training_and_leaves_the_last_good_checkpoint(tiny, tmp_path, monkeypatch):
    batch = data.PatchStream.batch

    def poisoned(stream, step):
        ilr, hr = batch(stream, step)
        return ilr, hr * np.float32(np.nan if step == 4 else 1.0)

    monkeypatch.setattr(data.PatchStream, "batch", poisoned)
    with pytest.raises(UserError, match=r"the loss is nan at step 5 with learning rate 0\.001; clip the gradient"):
        train(tiny(tmp_path))
    arrays, meta = newest(tmp_path)
    assert meta["step"] == 3
    assert all(np.all(np.isfinite(array)) for array in arrays.values())


def test_images_smaller_than_a_patch_are_counted(tiny, tmp_path, caplog):
    images = tmp_path / "images"
    shutil.copytree(*tiny(tmp_path).train_dir, images)
    Image.new("RGB", (30, 8)).save(images / "thin.png")
    card = train(tiny(tmp_path / "run", train_dir=str(images), val_dir=tiny(tmp_path).train_dir, epochs=1))
    assert "1 images skipped, 3 used" in caplog.text
    assert card["patches"] == 27


def test_training_starts_from_another_models_weights(finished, tiny, tmp_path):
    start = load(str(finished / "best.keras"))
    train(tiny(tmp_path, init=str(finished / "best.keras"), scale=3, epochs=1, learning_rate=1e-12))
    for ours, theirs in zip(load(str(tmp_path / "best.keras")).trainable_weights, start.trainable_weights, strict=True):
        np.testing.assert_allclose(np.array(ours), np.array(theirs), atol=1e-6)
    with pytest.raises(UserError, match=r"^`init`: .* has 2 recursions; this run has 1, expected as many or more"):
        train(tiny(tmp_path / "other", init=str(finished / "best.keras"), recursions=1))
    with pytest.raises(UserError, match=r"^`init`: .* has channels 1; this run has 3"):
        train(tiny(tmp_path / "other", init=str(finished / "best.keras"), channels=3))
    with pytest.raises(UserError, match=r"^`init`: .* has 2 filters; this run has 1, expected as many or more"):
        train(tiny(tmp_path / "other", init=str(finished / "best.keras"), filters=1))


@pytest.mark.parametrize("larger", [{"filters": 5}, {"recursions": 4}, {"filters": 3, "recursions": 3}])
def test_a_larger_network_starts_from_a_smaller_one(finished, tiny, tmp_path, larger):
    start = load(str(finished / "best.keras"))
    train(tiny(tmp_path, init=str(finished / "best.keras"), epochs=1, learning_rate=1e-12, **larger))
    image = np.random.default_rng(0).random((1, 16, 16, 1), dtype="float32")
    np.testing.assert_allclose(np.array(load(str(tmp_path / "best.keras"))(image)), np.array(start(image)), atol=1e-6)


def test_averaged_weights_are_kept_and_the_run_goes_on_with_the_weights_themselves(tiny, tmp_path, monkeypatch):
    settings = tiny(tmp_path / "whole", average=0.9, learning_rate=0.01, checkpoint_every=1, validate_every=2)
    train(settings)
    arrays, _ = newest(tmp_path / "whole")
    best = load(str(tmp_path / "whole" / "best.keras"))
    # By hand: a = 0.9 * a + 0.1 * w after every step, beginning with the first w.
    weights = [weight for index, weight in sorted(arrays.items()) if index.startswith("model/")]
    kept = best.get_weights()
    assert any(np.abs(ours - theirs).max() > 1e-4 for ours, theirs in zip(kept, weights, strict=True))

    broken = dataclasses.replace(settings, model_dir=str(tmp_path / "broken"))
    stop_after(5, broken, monkeypatch)
    train(broken)
    np.testing.assert_equal(newest(tmp_path / "broken")[0], arrays)
    np.testing.assert_equal(load(str(tmp_path / "broken" / "best.keras")).get_weights(), kept)


def test_a_run_that_ends_thin_resumes_thin(tiny, tmp_path):
    settings = tiny(tmp_path / "whole", recursions=3, epochs=4, outputs=2, optimizer="soap", balance_scales=True)
    train(settings)
    arrays, meta = newest(tmp_path / "whole")
    assert len(meta["state"]["thinning"]["kept"]) == 2
    for folder, epochs in (("early", 2), ("late", 3)):  # alpha is 0 from the third epoch on.
        path = tmp_path / folder
        train(dataclasses.replace(settings, model_dir=str(path), epochs=4, time_limit=0.0, checkpoint_every=1))
        for name in os.listdir(path / "checkpoints"):
            if name > f"step-{3 * epochs:09d}.npz":
                os.unlink(path / "checkpoints" / name)
        train(dataclasses.replace(settings, model_dir=str(path)))
        np.testing.assert_equal(newest(path)[0], arrays)
    assert np.count_nonzero(np.array(load(str(tmp_path / "whole" / "best.keras")).ensemble_weights)) in (2, 3)


@pytest.mark.parametrize(
    "options",
    [
        # 14 of 18 patches stay, three batches an epoch: passes begin in the middle of epochs.
        {"warmup": 3, "schedule": "cosine", "skip_flat": 0.25, "steps_per_epoch": 0},
        {"warmup": 2, "schedule": "plateau", "average": 0.9, "outputs": 1, "importance": 0.75, "balance_images": True},
    ],
    ids=lambda options: ",".join(options),
)
def test_options_resume_bit_for_bit_from_the_middle_of_an_epoch(options, tiny, tmp_path, monkeypatch):
    settings = tiny(tmp_path / "whole", epochs=4, **options)
    train(settings)
    broken = dataclasses.replace(settings, model_dir=str(tmp_path / "broken"))
    stop_after(5, broken, monkeypatch)  # In the second epoch: the warm-up is under way.
    first = newest(tmp_path / "broken")[1]["step"]
    assert 3 < first < 6
    stop_after(3, broken, monkeypatch)
    assert first < newest(tmp_path / "broken")[1]["step"] < 12
    train(broken)
    arrays, meta = newest(tmp_path / "broken")
    expected, expected_meta = newest(tmp_path / "whole")
    np.testing.assert_equal(arrays, expected)
    assert meta["step"] == expected_meta["step"] == 12
    assert [row["lr"] for row in rows(tmp_path / "broken")] == [row["lr"] for row in rows(tmp_path / "whole")]
    best, expected_best = (load(str(tmp_path / name / "best.keras")).get_weights() for name in ("broken", "whole"))
    np.testing.assert_equal(best, expected_best)


def test_auto_precision_is_that_which_a_run_began_with(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "announced", lambda asked: "bfloat16")
    train(tiny(tmp_path, precision="auto", epochs=1))
    assert newest(tmp_path)[1]["settings"]["precision"] == "bfloat16"
    monkeypatch.setattr(trainer, "announced", lambda asked: "float32" if asked == "auto" else asked)
    card = train(tiny(tmp_path, precision="auto", epochs=2))
    assert card["flags"]["precision"] == "bfloat16"
    assert load(str(tmp_path / "best.keras")).get_layer("inference").compute_dtype == "bfloat16"
    with pytest.raises(UserError, match="`precision=float32` contradicts"):
        train(tiny(tmp_path, precision="float32", epochs=3))


def test_training_starts_from_a_preset_by_name(tiny, tmp_path):
    train(tiny(tmp_path, init="mobile-x3", filters=32, recursions=9, epochs=1, learning_rate=1e-12))
    ours, theirs = load(str(tmp_path / "best.keras")), load("mobile-x3")
    np.testing.assert_allclose(np.array(ours.ensemble_weights), np.array(theirs.ensemble_weights), atol=1e-6)


def test_the_card_keeps_that_of_the_model_it_started_from(tiny, tmp_path, monkeypatch):
    """A name may have gone to another model before a run is resumed, a preset's when a stage of it is done."""
    start = {"init": "mobile-x3", "filters": 32, "recursions": 9, "learning_rate": 1e-12}
    before = train(tiny(tmp_path, epochs=1, **start))["init"]
    assert before["val_psnr"] == card.read("mobile-x3")["val_psnr"]
    monkeypatch.setattr(card, "with_origin", lambda model: {"val_psnr": 0.0})
    (tmp_path / "best.keras").unlink()
    again = train(tiny(tmp_path, epochs=2, **start))
    assert (again["epoch"], again["init"]) == (2, before)


def scalar_loss(theta, x, hr, alpha):
    """The network on a 1x1 image with one filter and one recursion: every convolution is its centre tap."""
    *layers, weight = theta
    feature = x
    for tap, bias in zip(layers[:8:2], layers[1:8:2], strict=True):
        feature = max(0.0, tap * feature + bias)
    y = layers[8] * feature + layers[9] + x
    return alpha * 0.5 * (hr - y) ** 2 + (1 - alpha) * 0.5 * (hr - weight * y) ** 2


def test_two_steps_of_sgd_are_the_gradient_twice_and_the_ensemble_weights_move():
    """A gradient that is never zeroed adds the first step's to the second; weights outside the graph stay at 1/D."""
    model = DRCN(recursions=1, filters=1, beta=0.0)
    for name in ("embedding_1", "embedding_2", "inference", "reconstruction_1", "reconstruction_2"):
        kernel = np.zeros((3, 3, 1, 1), "float32")
        kernel[1, 1] = 1.0
        model.get_layer(name).set_weights([kernel, np.zeros(1, "float32")])
    model.alpha.assign(0.5)
    model.compile(optimizer=keras.optimizers.SGD(0.1))
    x, hr = 0.5, 0.25
    theta = np.array([1.0, 0.0] * 5 + [1.0])
    for step in range(2):
        model.fit(np.full((1, 1, 1, 1), x, "float32"), np.full((1, 1, 1, 1), hr, "float32"), verbose=0)
        nudges = 1e-6 * np.eye(11)
        gradient = [
            (scalar_loss(theta + nudge, x, hr, 0.5) - scalar_loss(theta - nudge, x, hr, 0.5)) / 2e-6 for nudge in nudges
        ]
        if step == 0:
            # By hand: y = 1, so dL/dy = 0.5 * 0.75 + 0.5 * 0.75; a tap's derivative is x, a bias' 1; w's is y.
            np.testing.assert_allclose(gradient, [0.375, 0.75] * 5 + [0.375], rtol=1e-6)
        theta = theta - 0.1 * np.array(gradient)
        values = []
        for name in ("embedding_1", "embedding_2", "inference", "reconstruction_1", "reconstruction_2"):
            kernel, bias = model.get_layer(name).get_weights()
            values += [kernel[1, 1, 0, 0], bias[0]]
            assert np.count_nonzero(kernel) == 1
        values.append(np.array(model.ensemble_weights)[0])
        np.testing.assert_allclose(values, theta, atol=1e-6)


def command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "drcn_keras.train", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


def test_help_documents_every_flag():
    result = command("--help")
    for field in dataclasses.fields(Settings):
        assert f"--{'[no]' if field.type is bool else ''}{field.name}:" in result.stdout
        assert field.metadata["help"]
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--no_such_flag=1"], "Unknown command line flag 'no_such_flag'"),
        (["--model_dir=x"], "--train_dir is required"),
        (["--train_dir=nowhere", "--model_dir=x"], "nowhere: expected a folder of images; there is nothing"),
        (["--train_dir={images}", "--val_dir={empty}", "--model_dir=x"], "no image in this folder"),
        (["--train_dir={images}", "--model_dir={images}/0.png"], "0.png cannot be written to: File exists"),
        (
            ["--train_dir={images}", "--model_dir={empty}", "--scale=5"],
            "--scale must be one of 2, 3, 4; received 5",
        ),
        (["--train_dir={images}", "--model_dir={empty}", "--recursions=0"], "--recursions must be at least 1; rec"),
        (["--train_dir={images}", "--model_dir={empty}", "--epochs=many"], "--epochs=many"),
        (["--train_dir={images}", "--model_dir={empty}", "--zooms=1,2"], "--zooms must be numbers in (0, 1]"),
        (["--train_dir={images}", "--model_dir={empty}", "--zooms=1,b"], "--zooms must be numbers, separated by com"),
        (["--train_dir={images}", "--model_dir={empty}", "--scale=3,2"], "--scale must be ascending, each once; rec"),
        (["--train_dir={images}", "--model_dir={empty}", "--seed=4294967296"], "--seed must be at most 4294967295"),
        (
            ["--train_dir={images}", "--model_dir={empty}", "--init=none.keras"],
            "--init: no file at none.keras, and no pr",
        ),
        (["--train_dir={images}", "--model_dir={empty}", "stray"], "unexpected argument 'stray'"),
        (["--flagfile=none.cfg"], "none.cfg"),
    ],
)
def test_a_wrong_argument_ends_in_one_line_before_keras_loads(photographs, tmp_path, arguments, message):
    arguments = [text.format(images=photographs, empty=tmp_path) for text in arguments]
    # A Keras that could not even be imported would end in a traceback.
    result = command(*arguments, KERAS_BACKEND="none")
    assert result.returncode in (1, 2)
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
    assert not Path("x").exists()


def test_flags_compose_with_flagfiles(photographs, tmp_path):
    flagfile = tmp_path / "flags.cfg"
    flagfile.write_text("# a comment\n--scale=7\n--epochs=3\n")
    arguments = [f"--flagfile={flagfile}", f"--train_dir={photographs}", f"--model_dir={tmp_path / 'run'}"]
    assert "--scale must be one of 2, 3, 4; received 7" in command(*arguments).stderr
    assert "--epochs must be at least 1; received 0" in command(*arguments, "--scale=2", "--epochs=0").stderr


def test_one_network_for_several_scales(tiny, tmp_path):
    card = train(tiny(tmp_path, scale=(2, 3)))
    # Three photographs of 24 x 24, twice, each cut into nine patches of 12 with a stride of 6.
    assert card["scale"] == [2, 3]
    assert card["patches"] == 2 * card["train_images"] * 9
    model = load(str(tmp_path / "best.keras"))
    assert model.scales == (2, 3)
    rows = list(csv.DictReader((tmp_path / "log.csv").read_text().splitlines()))
    mean = (float(rows[-1]["val_psnr_x2"]) + float(rows[-1]["val_psnr_x3"])) / 2
    assert float(rows[-1]["val_psnr"]) == pytest.approx(mean, abs=1e-3)
    resumed = train(tiny(tmp_path, scale=[2, 3], epochs=3))
    assert resumed["val_images"] == card["val_images"] == 1
    with pytest.raises(UserError, match="scale=3` contradicts"):
        train(tiny(tmp_path, scale=3, epochs=3))


def test_training_on_lr_images_as_they_are(tiny, photographs, tmp_path):
    lr_dir = tmp_path / "LR"
    lr_dir.mkdir()
    for number in range(3):
        with Image.open(f"{photographs}/{number}.png") as photo:
            photo.resize((12, 12), Image.Resampling.BOX).save(lr_dir / f"{number}x2.png")
    card = train(tiny(tmp_path / "run", lr_dir=str(lr_dir), epochs=1))
    plain = train(tiny(tmp_path / "plain", epochs=1))
    assert card["flags"]["lr_dir"] == [str(lr_dir)]
    # Validation is on LR images too: bicubic enlargement of them is another baseline.
    assert abs(card["val_bicubic_psnr"] - plain["val_bicubic_psnr"]) > 0.1
    # Other LR images are other training images.
    Image.new("RGB", (12, 12), "gray").save(lr_dir / "0x2.png")
    with pytest.raises(UserError, match="not what the checkpoint"):
        train(tiny(tmp_path / "run", lr_dir=str(lr_dir), epochs=2))
