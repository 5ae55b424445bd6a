"""What lies under transparency is never seen, and what is seen never changes."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from drcn_keras import upscale
from drcn_keras.transparency import extend_colors, reach


def disk(color, under, side=32):
    """A disk of `color` on nothing; `under` is what stands there, alpha last."""
    picture = Image.new("RGBA", (side, side), under)
    ImageDraw.Draw(picture).ellipse((6, 6, side - 7, side - 7), (*color, 255))
    return np.asarray(picture)


def over(pixels, background):
    """Lays an image with alpha over a gray level, in [0, 255]."""
    alpha = pixels[..., -1:] / 255.0
    return np.round(pixels[..., :-1] * alpha + background * (1 - alpha), 6)


@pytest.mark.parametrize("under", [(0, 0, 0, 0), (255, 0, 200, 0), (0, 0, 0, 1)])
@pytest.mark.parametrize("scale", [2, 3])
def test_a_white_disk_has_no_dark_edge(bicubic_drcn, scale, under):
    result = upscale(disk((255, 255, 255), under), bicubic_drcn(scale=scale))
    darkest = over(result, 255).min()
    assert darkest >= (255 if under[3] == 0 else 254)


def test_what_lies_under_full_transparency_has_no_say(random_drcn):
    model = random_drcn()
    black = over(upscale(disk((200, 90, 30), (0, 0, 0, 0)), model), 100)
    for under in ((255, 255, 255, 0), (0, 255, 0, 0)):
        np.testing.assert_array_equal(over(upscale(disk((200, 90, 30), under), model), 100), black)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_an_evenly_transparent_image_stays_as_it_is(dtype, alpha):
    largest = 1 if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max
    pixels = (np.random.default_rng(0).random((7, 9, 4)) * largest).astype(dtype)
    pixels[..., 3] = alpha * largest
    np.testing.assert_array_equal(extend_colors(pixels, 9), pixels)


def test_a_soft_shadow_stays_as_it_is():
    # A level of alpha a column, from 10 on: no neighbour is four times as opaque.
    pixels = np.random.default_rng(0).integers(0, 256, (5, 200, 2), np.uint8)
    pixels[..., 1] = np.arange(10, 210)
    np.testing.assert_array_equal(extend_colors(pixels, 9), pixels)


def test_a_row_worked_by_hand():
    # 80 at alpha 1, 8 at alpha 1/5, then nothing. The second pixel: (8 * 1/5 + 80 * (1/4 - 1/5)) / (1/5 + 1/20) = 22.4,
    # its weight is 1/4 from now on. The third draws on it as it was at first, 8, then no more: 1/20 of alpha went in,
    # and a quarter of 1/4 is more than that: (8 * 1/20 + 22.4 * 1/80) / (1/20 + 1/80) = 10.88.
    pixels = np.array([[[80.0, 1.0], [8.0, 0.2], [0.0, 0.0]]]) / [[[100.0, 1.0]]]
    np.testing.assert_allclose(100 * extend_colors(pixels, 1)[0, :, 0], [80, 22.4, 8])
    np.testing.assert_allclose(100 * extend_colors(pixels, 2)[0, :, 0], [80, 22.4, 10.88])
    np.testing.assert_array_equal(extend_colors(pixels, 2)[..., 1], pixels[..., 1])


def test_the_colors_go_on_as_far_as_they_are_felt():
    pixels = np.zeros((1, 30, 2), np.uint16)
    pixels[0, 0] = 50000, 65535
    # The paper's network at x2: two kernels of 2 pixels, and 20 pixels of the result.
    assert reach(20, 2) == 14
    assert extend_colors(pixels, 14)[0, :, 0].tolist() == [50000] * 15 + [0] * 15
