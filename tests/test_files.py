import os

import pytest

from drcn_keras import files
from drcn_keras.errors import UserError


def test_a_write_that_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "log.csv"
    path.write_bytes(b"old")

    def write(file):
        file.write(b"ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"log.csv could not be written: No space left on device"):
        files.write_atomically(str(path), write)
    assert [entry.name for entry in tmp_path.iterdir()] == ["log.csv"]
    assert path.read_bytes() == b"old"


def test_only_what_a_killed_write_left_is_removed(tmp_path):
    for name in (".partial-abc.npz", "step-000000001.npz", "notes.partial"):
        (tmp_path / name).write_bytes(b"x")
    files.remove_partial(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.partial", "step-000000001.npz"]


def test_what_another_process_is_writing_just_now_is_left_alone(tmp_path):
    def write(file):
        file.write(b"new")
        files.remove_partial(str(tmp_path))

    files.write_atomically(str(tmp_path / "log.csv"), write)
    assert (tmp_path / "log.csv").read_bytes() == b"new"


def test_a_damaged_file_never_replaces_one_set_aside_before(tmp_path):
    for number in (1, 2, 3):
        (tmp_path / "log.csv").write_text(str(number))
        files.set_aside(str(tmp_path / "log.csv"), "it is damaged")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "log.csv.damaged": "1",
        "log.csv.damaged-2": "2",
        "log.csv.damaged-3": "3",
    }


def test_a_folder_half_built_is_removed_unless_it_is_being_built(tmp_path):
    (tmp_path / ".building-killed").mkdir()
    (tmp_path / ".building-killed" / "x").write_bytes(b"x")
    with files.folder_being_built(str(tmp_path)) as building:
        files.make_folder(str(tmp_path))
        assert [str(path) for path in tmp_path.iterdir()] == [building]
        os.rename(building, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt), files.folder_being_built(str(tmp_path)):
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]
