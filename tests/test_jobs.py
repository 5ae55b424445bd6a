"""Which file becomes which."""

import os

import pytest
from PIL import Image

from drcn_keras.errors import UserError
from drcn_keras.jobs import plan, undone


@pytest.fixture
def tree(tmp_path):
    """a.jpg, a.png and b.jfif, and c.png in a subfolder; a video and a hidden file among them."""
    (tmp_path / "in" / "inner").mkdir(parents=True)
    for name in ("a.jpg", "a.png", "b.jfif", "film.mp4", ".hidden.png", "inner/c.png"):
        (tmp_path / "in" / name).touch()
    return tmp_path / "in"


def test_same_stems_are_named_apart_and_the_rest_counted(tree, caplog):
    jobs = plan([str(tree)], "out")
    assert jobs == [
        (str(tree / "a.jpg"), "out/a.jpg.png"),
        (str(tree / "a.png"), "out/a.png.png"),
        (str(tree / "b.jfif"), "out/b.png"),
    ]
    assert f"{tree}: left out 1 .mp4, 1 folders" in caplog.text


def test_recursive_keeps_the_tree(tree):
    jobs = plan([str(tree)], "out", recursive=True)
    assert jobs[-1] == (str(tree / "inner" / "c.png"), os.path.join("out", "inner", "c.png"))
    assert len(jobs) == 4


@pytest.mark.parametrize("suffix", [".heic", ".jxl", ".tga", ".gif", ".ppm"])
def test_the_name_of_an_image_that_is_not_written_is_no_folder(tree, suffix):
    with pytest.raises(UserError, match=rf"cannot write \{suffix}"):
        plan([str(tree / "a.jpg")], f"photo{suffix}")


def test_one_name_of_two_folders_is_refused(tree):
    with pytest.raises(UserError, match="would both become"):
        plan([str(tree / "a.jpg"), str(tree / "inner" / ".." / "a.jpg")], "out")


def test_standard_input_and_output(tree):
    assert plan(["-"], "-") == [("-", "-")]
    assert plan(["-"], "out") == [("-", "out/standard-input.png")]
    assert undone([("-", "-")], False, False) == [("-", "-")]
    with pytest.raises(UserError, match="standard output takes one image; received 3"):
        plan([str(tree)], "-")


def test_an_input_is_no_output_by_a_link_either(tree):
    (tree.parent / "link").symlink_to(tree)
    Image.new("L", (2, 2)).save(tree / "d.png")
    with pytest.raises(UserError, match=r"d\.png is an input"):
        plan([str(tree / "d.png")], str(tree.parent / "link"))
