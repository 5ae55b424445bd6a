"""What goes along with the pixels, from format to format."""

import io
import os
import pathlib
import subprocess
import sys

import numpy as np
import png
import pytest
from kit import ENVIRONMENT
from PIL import Image

from drcn_keras.errors import UserError
from drcn_keras.image_files import read_pixels
from drcn_keras.upscaling import upscale_files

# Keras 3.15 meets NumPy 2 inside convert_to_numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6" dc:creator="me"/></x:xmpmeta>'


@pytest.fixture
def photograph(tmp_path):
    """Function that writes a turned photograph with a camera, a date, a place, XMP and 300 dpi."""

    def write(name):
        exif = Image.Exif()
        exif[0x010F], exif[0x0112] = "Camera", 6
        exif.get_ifd(0x8769)[0x9003] = "2024:05:06 07:08:09"
        exif.get_ifd(0x8769)[0xA002] = 24
        exif.get_ifd(0x8825)[1] = "N"
        options = {"xmp": XMP}
        if name.endswith("tif"):
            exif[700] = XMP
            exif.load(exif.tobytes())  # Pillow writes inner directories of a loaded one alone.
        Image.new("RGB", (24, 16), (9, 8, 7)).save(tmp_path / name, exif=exif, dpi=(300, 300), **options)
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize("source", ["a.jpg", "a.tif"])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp", ".avif"])
def test_camera_date_place_and_resolution_are_kept_upright(bicubic_drcn, photograph, tmp_path, source, suffix):
    (path,) = upscale_files(bicubic_drcn(), [photograph(source)], str(tmp_path / f"out{suffix}"))
    with Image.open(path) as image:
        assert image.size == (32, 48)
        exif, xmp = image.getexif(), image.info.get("xmp")
        assert (exif[0x010F], exif[0x0112]) == ("Camera", 1)
        assert exif.get_ifd(0x8769) == {0x9003: "2024:05:06 07:08:09"}
        assert exif.get_ifd(0x8825)[1] == "N"
        if suffix not in (".webp", ".avif"):
            assert [round(float(dots)) for dots in image.info["dpi"]] == [300, 300]
    assert xmp.rstrip(b"\0") == XMP.replace(b'"6"', b'"1"')


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_strip_metadata_drops_them(bicubic_drcn, photograph, tmp_path, suffix):
    target = str(tmp_path / f"out{suffix}")
    (path,) = upscale_files(bicubic_drcn(), [photograph("a.jpg")], target, strip_metadata=True)
    contents = pathlib.Path(path).read_bytes()
    assert b"Camera" not in contents
    assert b"2024:05" not in contents
    assert b"creator" not in contents


@pytest.fixture
def bright(tmp_path):
    """A PNG with a gamma of 1 and a cICP chunk."""
    encoded = io.BytesIO()
    Image.new("RGB", (8, 8), 100).save(encoded, "PNG")
    header, *others = png.Reader(bytes=encoded.getvalue()).chunks()
    with open(tmp_path / "bright.png", "wb") as file:
        png.write_chunks(
            file, [header, (b"gAMA", (100000).to_bytes(4, "big")), (b"cICP", bytes([9, 16, 0, 1])), *others]
        )
    return str(tmp_path / "bright.png")


def test_brightness_goes_from_png_to_png(bicubic_drcn, bright, tmp_path):
    (path,) = upscale_files(bicubic_drcn(), [bright], str(tmp_path / "out.png"), strip_metadata=True)
    chunks = dict(png.Reader(bytes=pathlib.Path(path).read_bytes()).chunks())
    assert (chunks[b"gAMA"], chunks[b"cICP"]) == ((100000).to_bytes(4, "big"), bytes([9, 16, 0, 1]))


def test_brightness_that_a_format_cannot_hold_is_told(bicubic_drcn, bright, tmp_path, caplog):
    upscale_files(bicubic_drcn(), [bright], str(tmp_path / "out.jpg"))
    assert "cannot hold the source's gAMA or cICP" in caplog.text


def test_deep_colour_keeps_its_metadata(bicubic_drcn, tmp_path):
    encoded = io.BytesIO()
    png.Writer(8, 6, greyscale=False, bitdepth=16).write(encoded, np.full((6, 24), 700).tolist())
    header, *others = png.Reader(bytes=encoded.getvalue()).chunks()
    with open(tmp_path / "a.png", "wb") as file:
        png.write_chunks(file, [header, (b"pHYs", bytes([0, 0, 0x2E, 0x23] * 2 + [1])), *others])
    for suffix in (".png", ".tif"):
        (path,) = upscale_files(bicubic_drcn(), [str(tmp_path / "a.png")], str(tmp_path / f"out{suffix}"))
        assert read_pixels(path)[0].dtype == np.uint16
        with Image.open(path) as image:
            assert [round(float(dots)) for dots in image.info["dpi"]] == [300, 300]


def test_frames_that_are_lost_are_counted(tmp_path, caplog):
    frames = [Image.new("L", (8, 8), level) for level in (10, 90, 200)]
    for name in ("a.gif", "a.tif", "a.png", "a.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        caplog.clear()
        read_pixels(str(tmp_path / name))
        assert f"{name}: the first of 3 " in caplog.text


def test_a_limit_of_pixels_is_lifted(bicubic_drcn, tmp_path, monkeypatch):
    Image.new("L", (40, 40)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    arguments = bicubic_drcn(), [str(tmp_path / "a.png")], str(tmp_path / "out.png")
    with pytest.raises(UserError, match="decompression bomb"):
        upscale_files(*arguments)
    upscale_files(*arguments, max_megapixels=0.0016)
    assert Image.MAX_IMAGE_PIXELS == 700


def test_a_result_too_wide_for_its_format_is_refused_before_the_work(bicubic_drcn, tmp_path, monkeypatch):
    Image.new("L", (32751, 1)).save(tmp_path / "a.png")
    monkeypatch.setattr("drcn_keras.upscaling.upscaled", lambda *_: pytest.fail("worked"))
    with pytest.raises(UserError, match="cannot be written as JPEG: 65502 x 2 pixels; it holds 65500 on a side"):
        upscale_files(bicubic_drcn(), [str(tmp_path / "a.png")], str(tmp_path / "out.jpg"))


def test_from_standard_input_to_standard_output(tmp_path):
    Image.new("L", (6, 4), 90).save(tmp_path / "a.png")
    done = subprocess.run(
        [sys.executable, "-m", "drcn_keras.upscale", "-", "--output=-"],
        input=(tmp_path / "a.png").read_bytes(),
        capture_output=True,
        env=ENVIRONMENT,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    with Image.open(io.BytesIO(done.stdout)) as image:
        assert (image.format, image.size) == ("PNG", (12, 8))
    assert os.listdir(tmp_path) == ["a.png"]
