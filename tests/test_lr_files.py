"""Which LR image belongs to which original, and which is refused."""

import numpy as np
import pytest
from PIL import Image

from drcn_keras.errors import UserError
from drcn_keras.lr_files import check_fit, matched


@pytest.fixture
def folder(tmp_path):
    """Function that fills a new folder with tiny images of the given names and returns their paths."""

    def fill(name, *files):
        (tmp_path / name).mkdir(parents=True)
        for file in files:
            Image.new("L", (4, 4)).save(tmp_path / name / file)
        return [str(tmp_path / name / file) for file in files]

    return fill


@pytest.mark.parametrize("name", ["0801.png", "0801x2.png", "0801_x2.png", "0801x2.bmp"])
def test_names(folder, tmp_path, name):
    originals = folder("HR", "0801.png", "0802.png")
    lr = folder("LR", "0802.png", name, "0801x3.png", "unrelated.png")
    assert matched(originals, str(tmp_path / "LR"), 2) == [lr[1], lr[0]]


def test_the_layout_of_div2k(folder, tmp_path):
    originals = folder("HR", "0001.png")
    for scale in (2, 3):
        folder(f"LR/X{scale}", f"0001x{scale}.png")
    assert matched(originals, str(tmp_path / "LR"), 3) == [str(tmp_path / "LR" / "X3" / "0001x3.png")]


def test_another_originals_own_name_is_not_taken_for_a_scale(folder, tmp_path):
    originals = folder("HR", "a.png", "ax2.png")
    lr = folder("LR", "a.png", "ax2.png")
    assert matched(originals, str(tmp_path / "LR"), 2) == lr


def test_no_lr_image_or_several(folder, tmp_path):
    originals = folder("HR", "a.png", "b.png", "c.png")
    folder("LR", "a.png", "ax2.png", "b.png")
    with pytest.raises(UserError, match=r"HR.a\.png has several LR images: .*a\.png and .*ax2\.png; expected one"):
        matched(originals, str(tmp_path / "LR"), 2)
    with pytest.raises(
        UserError, match=r"c\.png has no LR image in .*LR \(1 of 2 originals have none\); expected c, cx"
    ):
        matched(originals[1:], str(tmp_path / "LR"), 4)
    with pytest.raises(UserError, match="missing: expected a folder"):
        matched(originals, str(tmp_path / "missing"), 2)


def test_sizes():
    hr = np.zeros((37, 43, 3))
    check_fit("a.png", np.zeros((18, 21)), hr, 2)
    check_fit("a.png", np.zeros((12, 14, 3)), hr, 3)
    for wrong in ((19, 22), (18, 22), (21, 18), (37, 43)):
        with pytest.raises(UserError, match=r"a\.png is \d+ x \d+ pixels; expected 21 x 18, its original of 43 x 37"):
            check_fit("a.png", np.zeros(wrong), hr, 2)
