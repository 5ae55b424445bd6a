"""What a teacher's answers are, and that they are learnt. Runs on every backend."""

import csv
import dataclasses
import json
import logging
import shutil

import numpy as np
import pytest
from kit import small_drcn, tiny_settings
from PIL import Image

from drcn_keras import card, data
from drcn_keras.errors import UserError
from drcn_keras.teaching import Teacher
from drcn_keras.train import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three photographs, wider than high."""
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(3):
        pixels = np.random.default_rng(number).integers(40, 215, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((36, 24), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The path of a network for x2 and x3."""
    path = tmp_path_factory.mktemp("teacher") / "large.keras"
    small_drcn(filters=4, scale=(2, 3)).save(path)
    return str(path)


@pytest.fixture
def pairs(folder):
    return data.load_pairs(sorted(str(path) for path in folder.iterdir()), (2, 3))


def settings(folder, model_dir, **changes):
    common = {"scale": (2, 3), "epochs": 1, "optimizer": "adam"}
    return tiny_settings(folder, model_dir, **{**common, **changes})


def answer_by_hand(model, ilr):
    """The mean of what the model makes of the eight flips and turns, each brought back."""
    mean = 0
    for quarters in range(4):
        for mirrored in (False, True):
            image = np.rot90(ilr[:, ::-1] if mirrored else ilr, quarters)
            answer = np.rot90(np.asarray(model(image[None].copy()))[0], -quarters)
            mean = mean + (answer[:, ::-1] if mirrored else answer) / 8
    return mean


def test_a_lesson_is_the_self_ensembled_answer_less_the_ilr(pairs, teacher, tmp_path):
    model = small_drcn(filters=4, scale=(2, 3))
    taught = Teacher(teacher, 1, (2, 3)).lessons(pairs, str(tmp_path / "kept"))
    window = (slice(3, 15), slice(7, 19))
    for before, after in zip(pairs, taught, strict=True):
        expected = answer_by_hand(model, before.ilr)
        assert np.abs(expected - before.ilr).max() > 0.01
        np.testing.assert_allclose(after.ilr + after.lesson, expected, atol=3e-4)
        ilr, target = after.example(window)
        np.testing.assert_array_equal(ilr, before.ilr[window])
        np.testing.assert_allclose(target, expected[window], atol=3e-4)
        # What is measured, and what weighs the patches, stays the original.
        np.testing.assert_array_equal(after.hr, before.hr)
        np.testing.assert_array_equal(before.example(window)[1], before.hr[window])


def test_tiles_change_nothing(pairs, teacher, tmp_path):
    whole = Teacher(teacher, 1, (2, 3))
    tiled = Teacher(teacher, 1, (2, 3))
    tiled._tile = 2 * tiled._halo + 5
    for one, other in zip(
        whole.lessons(pairs, str(tmp_path / "a")), tiled.lessons(pairs, str(tmp_path / "b")), strict=True
    ):
        np.testing.assert_allclose(one.lesson.astype(float), other.lesson, atol=2e-4)


def test_lessons_are_kept_and_found_again(pairs, teacher, tmp_path, monkeypatch, caplog):
    kept = tmp_path / "kept"
    first = Teacher(teacher, 1, (2, 3)).lessons(pairs, str(kept))
    assert len(list(kept.iterdir())) == len(pairs) == 6
    computed, answer = [], Teacher._answer

    def counted(self, pair):
        computed.append((pair.path, pair.scale))
        return answer(self, pair)

    monkeypatch.setattr(Teacher, "_answer", counted)
    again = Teacher(teacher, 1, (2, 3)).lessons(pairs, str(kept))
    assert not computed
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.lesson, other.lesson)
    # A file that was cut short, one of another size, one that is empty, and one with a single bit turned.
    damaged = sorted(kept.iterdir())[:4]
    damaged[0].write_bytes(damaged[0].read_bytes()[:200])
    np.savez(damaged[1], lesson=np.zeros((2, 2, 1), np.float16))
    damaged[2].write_bytes(b"")
    content = bytearray(damaged[3].read_bytes())
    content[len(content) // 2] ^= 1
    damaged[3].write_bytes(content)
    with caplog.at_level(logging.WARNING):
        mended = Teacher(teacher, 1, (2, 3)).lessons(pairs, str(kept))
    assert len(computed) == 4
    assert caplog.text.count("is damaged") == 3
    for one, other in zip(first, mended, strict=True):
        np.testing.assert_array_equal(one.lesson, other.lesson)
    # Another teacher, or the same in another precision, has answers of its own.
    other = tmp_path / "other.keras"
    small_drcn(filters=4, scale=(2, 3), seed=5).save(other)
    Teacher(str(other), 1, (2, 3)).lessons(pairs[:1], str(kept))
    Teacher(teacher, 1, (2, 3), "bfloat16").lessons(pairs[:1], str(kept))
    assert len(computed) == 6
    assert len(list(kept.iterdir())) == 8


def test_a_teacher_that_does_not_fit_is_refused(folder, teacher, tmp_path):
    with pytest.raises(UserError, match=r"^`teacher`: .*large\.keras is for x2, x3; this run learns x4 too\.$"):
        train(settings(folder, tmp_path, teacher=teacher, scale=(2, 4)))
    with pytest.raises(UserError, match=r"^`teacher`: .* has channels 1; this run has 3\.$"):
        train(settings(folder, tmp_path, teacher=teacher, channels=3))
    with pytest.raises(UserError, match=r"^`teacher`: no file at nowhere, and no preset of that name"):
        train(settings(folder, tmp_path, teacher="nowhere"))


def test_a_network_learns_what_the_teacher_answers(folder, teacher, tmp_path):
    """The loss is the distance to the teacher: by hand, of a network that stands still."""
    still = {"learning_rate": 1e-12, "beta": 0.0, "alpha_start": 0.0, "steps_per_epoch": 1, "augment": False}
    start = tmp_path / "start.keras"
    model = small_drcn(filters=2, scale=(2, 3), seed=3)
    model.save(start)
    run = settings(folder, tmp_path / "run", teacher=teacher, init=str(start), **still)
    train(run)
    with open(tmp_path / "run" / "log.csv", newline="") as file:
        loss = float(next(csv.DictReader(file))["loss"])
    large = small_drcn(filters=4, scale=(2, 3))
    pairs = data.load_pairs([str(folder / name) for name in ("1.png", "2.png")], (2, 3))  # The first is held out.
    taught = [dataclasses.replace(pair, lesson=answer_by_hand(large, pair.ilr) - pair.ilr) for pair in pairs]
    stream = data.PatchStream(taught, 12, 6, 4, augment=False)
    ilr, answer = stream.batch(0)
    expected = 0.5 * np.square(answer - np.asarray(model(ilr))).sum(axis=(1, 2, 3)).mean()
    assert loss == pytest.approx(expected, rel=0.01)
    hr = data.PatchStream(pairs, 12, 6, 4, augment=False).batch(0)[1]
    assert not np.allclose(answer, hr, atol=0.02)


def test_the_card_names_the_teacher_and_a_preset_has_no_path(folder, teacher, tmp_path):
    run = settings(folder, tmp_path / "run", teacher=teacher)
    made = train(run)
    assert made["teacher"] == {"name": "large"}
    assert made["flags"]["teacher"] == teacher
    kept = card.with_origin(str(tmp_path / "run" / "best.keras"))
    assert kept["teacher"] == {"name": "large"}
    assert "teacher" not in kept["flags"]
    assert str(tmp_path) not in json.dumps(kept)
    assert card.brief("mobile-x2")["filters"] == 32


def test_a_run_goes_on_with_the_teacher_that_it_began_with(folder, teacher, tmp_path):
    teacher = shutil.copy(teacher, tmp_path)
    train(settings(folder, tmp_path / "run", teacher=teacher))
    train(settings(folder, tmp_path / "run", teacher=teacher, epochs=2))
    with pytest.raises(UserError, match=r"^`teacher=` contradicts"):
        train(settings(folder, tmp_path / "run", epochs=3))
    small_drcn(filters=4, scale=(2, 3), seed=9).save(teacher)
    with pytest.raises(UserError, match=r"^`train_dir`, `val_dir` or `teacher`: not what the checkpoint"):
        train(settings(folder, tmp_path / "run", teacher=teacher, epochs=3))
