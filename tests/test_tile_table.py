"""What the table of tiles counts."""

import numpy as np
import tile_table
from kit import PHOTOGRAPHS
from PIL import Image


def test_differences_are_counted_in_levels_of_8_bit():
    pixels = np.full((2, 3, 3), 200, np.uint8)

    def changed(image):
        image = image.copy()
        image[0, 0, 0], image[1, 2, 1] = 203, 199
        return image

    # 200 - 203 in uint8 would be 253.
    found = tile_table.differences([lambda image: image, lambda image: image.copy(), changed], pixels)
    assert found == ["", "0 of 18, by 0", "2 of 18, by 3"]


def test_a_photograph_of_any_size_is_mirrored_beyond_its_edge():
    astronaut = np.asarray(Image.open(PHOTOGRAPHS / "astronaut.png"))
    assert np.array_equal(tile_table.photograph(20, 30), astronaut[:20, :30])
    large = tile_table.photograph(600, 20)
    assert large.shape == (600, 20, 3)
    assert np.array_equal(large[512:600], astronaut[: 424 - 1 : -1][:88, :20])
