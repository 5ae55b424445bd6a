import os
import stat

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


@pytest.fixture
def umask():
    """Function that sets the umask for a test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def write(path, text="new"):
    files.write_atomically(str(path), lambda file: file.write(text.encode()))


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_has_the_mode_that_the_umask_leaves(tmp_path, umask, mask, mode):
    umask(mask)
    write(tmp_path / "a")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode
    assert os.umask(mask) == mask, "the umask itself was changed"


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755])
def test_a_replaced_file_keeps_its_mode(tmp_path, mode):
    (tmp_path / "a").write_text("old")
    (tmp_path / "a").chmod(mode)
    write(tmp_path / "a")
    assert (tmp_path / "a").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


@pytest.mark.parametrize("there", [True, False])
def test_a_symbolic_link_stays_one(tmp_path, there):
    (tmp_path / "far").mkdir()
    if there:
        (tmp_path / "far" / "a").write_text("old")
    (tmp_path / "link").symlink_to("far/a")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "far" / "a").read_text() == "new"
    assert [path.name for path in (tmp_path / "far").iterdir()] == ["a"]


def test_a_pipe_is_not_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="no regular file"):
        write(tmp_path / "pipe")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_files_that_belong_together_are_replaced_together_or_not_at_all(tmp_path, monkeypatch):
    paths = [str(tmp_path / name) for name in ("a.json", "a.tflite", "a.npz")]
    files.write_together([(path, b"old") for path in paths])
    order, replace = [], os.replace

    def watched(source, target):
        # By the first rename all are on the disk.
        assert len(os.listdir(tmp_path)) == 2 * len(paths) - len(order)
        order.append(os.path.basename(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    files.write_together([(path, b"new") for path in paths])
    assert order == ["a.npz", "a.tflite", "a.json"]
    monkeypatch.setattr(os, "replace", replace)
    (tmp_path / "a.npz").unlink()
    (tmp_path / "a.npz").mkdir()
    with pytest.raises(UserError, match=r"a\.npz could not be written"):
        files.write_together([(path, b"third") for path in paths])
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "a.tflite").read_bytes() == b"new"
    assert sorted(os.listdir(tmp_path)) == ["a.json", "a.npz", "a.tflite"]
