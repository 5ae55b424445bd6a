"""PGM and PPM of 16 bit, held to bytes made by hand."""

import numpy as np
import pytest

from drcn_keras.errors import UserError
from drcn_keras.image_files import read_pixels


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("plain", [False, True])
def test_sixteen_bit_is_kept(tmp_path, channels, plain):
    shape = (3, 5) if channels == 1 else (3, 5, 3)
    values = np.random.default_rng(0).integers(0, 65536, shape, np.uint16)
    kind = {(1, True): b"P2", (3, True): b"P3", (1, False): b"P5", (3, False): b"P6"}[channels, plain]
    data = " ".join(map(str, values.ravel())).encode() if plain else values.astype(">u2").tobytes()
    (tmp_path / "a.ppm").write_bytes(kind + b" # by hand\n5 3\n# more\n65535\n" + data)
    pixels, _ = read_pixels(tmp_path / "a.ppm")
    assert pixels.dtype == np.uint16
    np.testing.assert_array_equal(pixels, values)


def test_twelve_bit_is_stretched_to_sixteen(tmp_path):
    (tmp_path / "a.ppm").write_bytes(b"P6 1 1 4095\n" + np.array([0, 2048, 4095], ">u2").tobytes())
    # 2048 * 65535 / 4095 = 32775.5
    assert read_pixels(tmp_path / "a.ppm")[0].tolist() == [[[0, 32776, 65535]]]


def test_eight_bit_goes_as_before(tmp_path):
    (tmp_path / "a.ppm").write_bytes(b"P6 1 1 255\n" + bytes([1, 2, 3]))
    pixels, _ = read_pixels(tmp_path / "a.ppm")
    assert (pixels.dtype, pixels.tolist()) == (np.uint8, [[[1, 2, 3]]])


@pytest.mark.parametrize("contents", [b"P6 4 4 65535\n" + bytes(10), b"P3 4 4 65535\n1 2 3\n"])
def test_truncated_files_are_damaged(tmp_path, contents):
    (tmp_path / "a.ppm").write_bytes(contents)
    with pytest.raises(UserError, match=r"a\.ppm: damaged or truncated"):
        read_pixels(tmp_path / "a.ppm")
