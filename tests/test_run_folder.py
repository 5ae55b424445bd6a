import os
import pathlib

import pytest

from drcn_keras import card
from drcn_keras.errors import UserError
from drcn_keras.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path):
    """A folder in which a run has left one of everything, with a note of the user's own."""
    folder = RunFolder(str(tmp_path))
    folder.prepare()
    for name in ("best.keras", "log.csv", "checkpoints/step-000000003.npz", "checkpoints/.partial-x.npz", "note.txt"):
        (tmp_path / name).write_text("x")
    (tmp_path / "checkpoints" / "step-000000001.npz.damaged").write_text("x")
    card.write(folder.best, {"scale": 2})
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "events.out.tfevents.1.host.1").write_text("x")
    return folder


def everything(folder):
    return sorted(str(path.relative_to(folder.path)) for path in pathlib.Path(folder.path).rglob("*"))


def test_fresh_deletes_a_run_and_nothing_else(folder):
    folder.prepare(fresh=True)
    assert everything(folder) == ["checkpoints", "note.txt"]


@pytest.mark.parametrize(
    "stranger", ["checkpoints/mine.txt", "tensorboard/mine.txt", "checkpoints/step-000000004.npz/x"]
)
def test_fresh_deletes_nothing_where_something_of_a_strangers_stands(folder, stranger):
    path = pathlib.Path(folder.path, stranger)
    path.parent.mkdir(exist_ok=True)
    path.write_text("x")
    before = everything(folder)
    with pytest.raises(UserError, match=r"^`fresh`: .* is not what a training left there; nothing was deleted"):
        folder.prepare(fresh=True)
    assert everything(folder) == before


def test_fresh_follows_no_link(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    os.rename(folder.checkpoints, elsewhere / "checkpoints")
    os.symlink(elsewhere / "checkpoints", folder.checkpoints)
    before = everything(folder)
    with pytest.raises(UserError, match=r"`fresh`: .*checkpoints is not what a training left"):
        folder.prepare(fresh=True)
    assert everything(folder) == before
    assert len(os.listdir(elsewhere / "checkpoints")) == 3


def test_a_deletion_that_fails_half_way_brings_everything_back(folder, monkeypatch):
    before, rename = everything(folder), os.rename

    def failing(source, target):
        if source == folder.log:
            raise PermissionError(1, "Operation not permitted")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(PermissionError):
        folder.prepare(fresh=True)
    assert everything(folder) == before


def test_a_deletion_that_was_killed_half_way_is_undone_by_the_next_start(folder):
    before = everything(folder)
    os.mkdir(os.path.join(folder.path, ".leaving"))
    os.rename(folder.best, os.path.join(folder.path, ".leaving", "best.keras"))
    folder.prepare()
    assert everything(folder) == [name for name in before if ".partial" not in name]


def test_a_damaged_card_is_set_aside(folder, caplog):
    pathlib.Path(folder.path, "best.json").write_text("{")
    folder.prepare()
    assert card.read(folder.best) == {}
    assert pathlib.Path(folder.path, "best.json.damaged").read_text() == "{"
    assert "best.json is damaged" in caplog.text
    assert "set aside as best.json.damaged" in caplog.text


def test_one_training_at_a_time(folder):
    with folder.locked(), pytest.raises(UserError, match="another training is at work in"), folder.locked():
        pass
    with folder.locked():
        pass
