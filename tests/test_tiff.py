"""TIFF layouts that other readers scramble; the whole table is in test_picture_table.py."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from drcn_keras.errors import UserError
from drcn_keras.image_files import read_image, read_pixels


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_turned_gray_is_not_scrambled(tmp_path, orientation, dtype):
    gray = (np.arange(32)[None] * 7 + 20 + np.zeros((24, 1))).astype(dtype)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(gray).save(tmp_path / "t.tif", exif=exif)
    turned = [gray, gray[:, ::-1], gray[::-1, ::-1], gray[::-1], gray.T, np.rot90(gray, -1), gray[::-1, ::-1].T]
    expected = [*turned, np.rot90(gray)][orientation - 1]
    np.testing.assert_array_equal(read_pixels(tmp_path / "t.tif")[0], expected)


@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_white_is_zero(tmp_path, byteorder):
    tifffile.imwrite(tmp_path / "w.tif", np.zeros((8, 8), np.uint16), photometric="miniswhite", byteorder=byteorder)
    assert read_pixels(tmp_path / "w.tif")[0].tolist() == [[65535] * 8] * 8


def test_a_plane_for_each_color(tmp_path):
    planes = np.zeros((3, 24, 32), np.uint16)
    planes[0] = np.arange(32) * 2000
    tifffile.imwrite(tmp_path / "p.tif", planes, photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(read_pixels(tmp_path / "p.tif")[0], np.moveaxis(planes, 0, -1))


def test_lab_becomes_srgb_without_its_profile(tmp_path):
    # L*, a*, b* of white, of mid gray, and of sRGB's red (54.29, 80.80, 69.89) as ICC gives it under D50.
    lab = np.array([[[255, 0, 0], [137, 0, 0], [138, 81, 70]]], np.uint8)
    profile = bytes(16) + b"Lab XYZ " + bytes(104)
    tifffile.imwrite(tmp_path / "l.tif", lab, photometric="cielab", iccprofile=profile)
    pixels, kept = read_pixels(tmp_path / "l.tif")
    assert kept is None
    assert np.abs(pixels[0].astype(int) - [[255, 255, 255], [128, 128, 128], [255, 0, 0]]).max() <= 2


def test_a_profile_for_other_pixels_is_left_out(tmp_path, caplog):
    profile = bytes(16) + b"RGB XYZ " + bytes(104)
    tifffile.imwrite(tmp_path / "g.tif", np.zeros((4, 4), np.uint8), photometric="minisblack", iccprofile=profile)
    assert read_pixels(tmp_path / "g.tif")[1] is None
    assert "a colour profile for RGB does not go with these pixels" in caplog.text


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        (np.zeros((4, 4), np.float32), {}, "floating-point pixels"),
        (np.zeros((4, 4), np.int16), {}, "signed or complex pixels"),
        (np.full((4, 4), 70000, np.uint32), {}, "32-bit integer pixels"),
        (np.zeros((4, 4), np.uint16), {"photometric": "cfa"}, "a TIFF whose pixels are CFA"),
        (
            np.zeros((4, 4, 3), np.uint8),
            {"photometric": "rgb", "extratags": [(50706, 1, 4, (1, 4, 0, 0))]},
            "a camera's raw file",
        ),
    ],
)
def test_kinds_without_a_meaning_are_named(tmp_path, array, options, message):
    tifffile.imwrite(tmp_path / "a.tif", array, **{"photometric": "minisblack"} | options)
    with pytest.raises(UserError, match=rf"a\.tif: {message}"):
        read_image(tmp_path / "a.tif")


def test_channels_without_a_meaning_are_left_out_with_a_word(tmp_path, caplog):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 4), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["unspecified"])
    np.testing.assert_array_equal(read_pixels(tmp_path / "a.tif")[0], pixels[..., :3])
    assert "1 extra channels without a meaning are left out" in caplog.text


def test_a_thumbnail_in_front_is_not_the_picture(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(np.zeros((2, 2), np.uint8), photometric="minisblack", subfiletype=1, metadata=None)
        file.write(np.full((8, 8), 9, np.uint8), photometric="minisblack", metadata=None)
    assert read_image(tmp_path / "a.tif").tolist() == [[9] * 8] * 8


@pytest.mark.parametrize("compression", [None, "lzw", "zlib"])
def test_a_truncated_file_is_damaged(tmp_path, compression):
    pixels = np.random.default_rng(0).integers(0, 65536, (40, 40, 3), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", compression=compression)
    contents = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(contents[: len(contents) - 500])
    with pytest.raises(UserError, match=r"a\.tif: damaged or truncated image"):
        read_image(tmp_path / "a.tif")


def test_a_bomb_is_refused_before_it_is_read(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((40, 40), np.uint8), compression="zlib")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 799)
    with pytest.raises(UserError, match="decompression bomb"):
        read_image(tmp_path / "a.tif")
