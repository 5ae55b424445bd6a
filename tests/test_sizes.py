"""Enlargements by any factor, and to a width or a height."""

import numpy as np
import pytest
from PIL import Image

from drcn_keras import upscale
from drcn_keras.errors import UserError
from drcn_keras.image import bicubic
from drcn_keras.sizes import enlargement

SEVERAL = (2, 3, 4)


def test_real_factors_of_a_network_of_several_scales(bicubic_drcn, photographs):
    model = bicubic_drcn(scale=SEVERAL)
    photograph = np.asarray(Image.open(photographs / "camera.png"))[100:140, 100:131]
    result = upscale(photograph, model, scale=2.5)
    # MATLAB's imresize: ceil of 100 and of 77.5.
    assert result.shape == (100, 78)
    expected = np.round(np.clip(bicubic(photograph, 2.5), 0, 255))
    assert np.abs(result - expected).max() <= 1


def test_default_is_the_smallest_scale(bicubic_drcn):
    assert upscale(np.zeros((5, 7), np.uint8), bicubic_drcn(scale=(3, 4))).shape == (15, 21)
    assert upscale(np.zeros((5, 7), np.uint8), bicubic_drcn(scale=(3, 4)), scale=1.1).shape == (6, 8)


def test_width_and_height(bicubic_drcn):
    model, image = bicubic_drcn(scale=SEVERAL), np.zeros((30, 40, 3), np.uint8)
    assert upscale(image, model, width=101).shape == (76, 101, 3)  # 101 / 40 * 30 = 75.75
    assert upscale(image, model, height=66).shape == (66, 88, 3)
    assert upscale(image, model, width=101, height=75).shape == (75, 101, 3)


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ({"scale": 4.01}, "from 1.1 to 4; received x4.01"),
        ({"scale": 1.0}, "from 1.1 to 4; received x1"),
        ({"width": 500}, "received x12.5"),
        ({"width": 80, "height": 90}, "80 x 90 would stretch an image of 40 x 30"),
        ({"width": 80, "scale": 2}, "twice"),
    ],
)
def test_sizes_that_cannot_be(bicubic_drcn, size, reason):
    with pytest.raises(UserError, match=reason):
        enlargement(bicubic_drcn(scale=SEVERAL), (30, 40, 3), **size)


def test_a_network_of_one_scale_takes_no_other(bicubic_drcn):
    assert enlargement(bicubic_drcn(scale=3), (30, 40)) == (3, 3)
    assert enlargement(bicubic_drcn(scale=3), (30, 40), width=120) == (3.0, 3.0)
    with pytest.raises(UserError, match=r"for x3 alone; received x2\.5"):
        enlargement(bicubic_drcn(scale=3), (30, 40), scale=2.5)


@pytest.mark.parametrize("factor", [1.1, 1.5, 2.5, np.pi, (1.7, 3.2)])
def test_bicubic_of_real_factors_has_pillows_size_and_phase(factor):
    rows, columns = factor if isinstance(factor, tuple) else (factor, factor)
    # A smooth bump in the middle of a flat field: the border, where the two differ, plays no part.
    grid = np.exp(-(((np.arange(64)[:, None] - 30.3) / 6) ** 2) - ((np.arange(48)[None] - 22.6) / 5) ** 2)
    ours = bicubic(grid, factor)
    assert ours.shape == (int(np.ceil(64 * rows)), int(np.ceil(48 * columns)))
    box = (0, 0, ours.shape[1] / columns, ours.shape[0] / rows)
    padded = np.pad(grid, ((0, 1), (0, 1))).astype(np.float32)
    theirs = Image.fromarray(padded).resize(ours.shape[::-1], Image.Resampling.BICUBIC, box=box)
    assert np.abs(ours - np.asarray(theirs)).max() < 1e-5


def test_bicubic_of_a_real_factor_by_hand():
    # imresize([0 0 1 0 0 0], 1.5): output k lies at (k + 1/2) / 1.5 - 1/2, and takes Keys' kernel of a = -1/2 there.
    def keys(x):
        x = abs(x)
        return 1.5 * x**3 - 2.5 * x**2 + 1 if x <= 1 else (-0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0)

    expected = [keys((k + 0.5) / 1.5 - 0.5 - 2) for k in range(9)]
    # The mirrored border carries zeros.
    line = np.array([[0.0, 0, 1, 0, 0, 0]])
    assert np.allclose(bicubic(line, (1, 1.5))[0], expected, atol=1e-12)


def test_self_ensemble_turns_with_the_image(random_drcn):
    model = random_drcn(scale=SEVERAL)
    image = np.random.default_rng(0).random((9, 13)).astype(np.float32)
    plain, averaged = (upscale(image, model, self_ensemble=flag) for flag in (False, True))
    assert np.abs(plain - averaged).max() > 1e-3
    assert np.allclose(upscale(np.rot90(image), model, self_ensemble=True), np.rot90(averaged), atol=1e-5)
    assert np.allclose(upscale(image[:, ::-1], model, self_ensemble=True), averaged[:, ::-1], atol=1e-5)


def test_tiles_change_nothing_at_a_real_factor(random_drcn):
    model = random_drcn(scale=SEVERAL)
    image = np.random.default_rng(0).random((23, 17)).astype(np.float32)
    for flag in (False, True):
        whole, tiled = (upscale(image, model, scale=2.3, tile=tile, self_ensemble=flag) for tile in (None, 17))
        assert np.abs(whole - tiled).max() < 1e-5
