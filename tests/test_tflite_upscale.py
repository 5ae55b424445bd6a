"""Enlarging on the device: tiles give exactly what one run over the whole image gives."""

import errno
import importlib
import json
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import tflite_exports as exports
from PIL import Image

from drcn_keras import image, transparency


@pytest.fixture
def tools(monkeypatch):
    """The modules of tflite/ by name."""
    monkeypatch.syspath_prepend(exports.ROOT / "tflite")
    return {name: importlib.import_module(name) for name in ("command", "pictures", "runtime", "upscale", "manifest")}


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("shape", [(7, 9, 3), (1, 1), (2, 5)])
def test_bicubic_and_colours_are_those_of_training(tools, scale, shape):
    pixels = np.random.default_rng(0).random(shape)
    np.testing.assert_allclose(tools["pictures"].enlarge(pixels, scale), image.enlarge(pixels, scale), atol=1e-14)
    some = tools["pictures"].enlarge(pixels, scale, (1, scale * shape[0]))
    np.testing.assert_array_equal(some, tools["pictures"].enlarge(pixels, scale)[1:])
    rgb = np.random.default_rng(1).random((4, 3))
    np.testing.assert_allclose(tools["pictures"].rgb_to_ycbcr(rgb), image.rgb_to_ycbcr(rgb), atol=1e-15)
    np.testing.assert_allclose(tools["pictures"].ycbcr_to_rgb(rgb), image.ycbcr_to_rgb(rgb), atol=1e-14)


def run_tiled(tools, model, manifest, image):
    """All rows of tiles below each other."""
    tiles = tools["upscale"].Tiles(model, manifest, image.shape[:2])
    return np.concatenate([tiles.run(image[top:end], first - top, last - top) for top, end, first, last in tiles.bands])


@pytest.mark.parametrize("size", [(32, 32), (33, 32), (70, 95), (20, 100), (100, 9), (5, 3), (1, 1)])
def test_tiles_equal_one_run_over_the_whole_image(tools, tmp_path, size):
    (path,) = exports.copy(tmp_path, "float32")
    manifest = json.loads(path.with_suffix(".json").read_text())
    ilr = np.random.default_rng(2).random((*size, 1), np.float32)

    def model(shape):
        return tools["runtime"].Model(path, 1, "xnnpack", shape)

    tiled = run_tiled(tools, model, manifest, ilr)
    whole = model((1, *size, 1)).run(ilr[None])[0]
    np.testing.assert_allclose(tiled, whole, atol=1e-6)


def test_a_halo_one_too_small_leaves_seams(tools, tmp_path):
    # The receptive field reaches 4 pixels: two 3x3 recursions, one convolution before and one behind.
    (path,) = exports.copy(tmp_path, "float32")
    manifest = json.loads(path.with_suffix(".json").read_text())
    ilr = np.random.default_rng(3).random((90, 90, 1), np.float32)

    def model(shape):
        return tools["runtime"].Model(path, 1, "xnnpack", shape)

    whole = model((1, 90, 90, 1)).run(ilr[None])[0]
    for halo, same in ((4, True), (3, False)):
        tiled = run_tiled(tools, model, {**manifest, "halo": halo}, ilr)
        assert (np.max(np.abs(tiled - whole)) < 1e-6) == same


@pytest.mark.parametrize(("length", "side", "halo"), [(100, 32, 5), (33, 32, 5), (32, 32, 16), (64, 11, 5), (1, 1, 5)])
def test_plans_cover_every_pixel_once_with_its_halo(tools, length, side, halo):
    position = 0
    for start, first, last in tools["upscale"].plan(length, side, halo):
        assert first == position < last
        assert start >= 0
        assert start + side <= length
        assert first - start >= halo or start == 0
        assert start + side - last >= halo or start + side == length
        position = last
    assert position == length


def test_a_model_no_larger_than_its_halo_cannot_be_tiled(tools):
    with pytest.raises(tools["manifest"].CannotRun, match="10 pixels a side cannot be tiled: 5 on either side"):
        tools["upscale"].plan(11, 10, 5)


def test_memory_follows_the_tile_and_not_the_image(tools, tmp_path):
    (path,) = exports.copy(tmp_path, "float32")
    manifest = json.loads(path.with_suffix(".json").read_text())

    def model(shape):
        return tools["runtime"].Model(path, 1, "xnnpack", shape)

    pixels = np.zeros((600, 200, 3), np.uint8)
    tracemalloc.start()
    tools["upscale"].upscale(model, manifest, pixels)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The image itself has 1.4 MB, and 11.5 MB as float64, of which the work on the whole needed several.
    assert peak < 1200 * 400 * 3 + 3e6


def test_whole_numbers_at_the_ends(tools):
    described = {"dtype": "int8", "quantization": {"scale": 1 / 255, "zero_point": -128}}
    image = np.array([-0.1, 0.0, 0.5 / 255, 0.6 / 255, 0.5, 1.0, 1.2])
    tensor = tools["manifest"].to_tensor(image, described)
    assert tensor.dtype == np.int8
    # Ties to even, as NumPy and the C library round.
    assert tensor.tolist() == [-128, -128, -128, -127, 0, 127, 127]
    np.testing.assert_allclose(tools["manifest"].from_tensor(tensor, described)[[1, 3, 5]], [0, 1 / 255, 1], atol=1e-7)
    # In two digits: 100.25 steps, and what lies above all.
    two = tools["manifest"].to_tensor(np.array([[100.25 / 255], [1.2]]), {**described, "digits": 2})
    assert two.dtype == np.int8
    assert two.tolist() == [[-28, -64], [127, 127]]
    plain = {"dtype": "uint8", "quantization": None}
    assert tools["manifest"].to_tensor(np.array([0, 7.4, 255.0]), plain).tolist() == [0, 7, 255]


def run(*words):
    command = [sys.executable, exports.ROOT / "tflite" / "upscale.py", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_transparent_photograph_from_file_to_file(tools, tmp_path):
    (path,) = exports.copy(tmp_path, "float32")
    pixels = np.random.default_rng(4).integers(0, 256, (21, 40, 4), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    done = run(path, tmp_path / "in.png", tmp_path / "out.png")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "out.png") as file:
        result = np.asarray(file)
    assert result.shape == (42, 80, 4)
    # What lies under transparency is extended as in the library.
    pixels = transparency.extend_colors(pixels, transparency.reach(exports.HALO, 2))
    # By the training side's own functions: luma through the model, colours and transparency bicubic.
    ycbcr = image.enlarge(image.rgb_to_ycbcr(pixels[..., :3] / 255.0), 2)
    model = tools["runtime"].Model(path, 1, "xnnpack", (1, 42, 80, 1))
    ycbcr[..., 0] = model.run(ycbcr[None, ..., :1].astype(np.float32))[0, ..., 0]
    expected = np.round(255.0 * np.clip(image.ycbcr_to_rgb(ycbcr), 0, 1))
    assert np.max(np.abs(result[..., :3] - expected)) <= 1
    alpha = np.round(255.0 * np.clip(image.enlarge(pixels[..., 3] / 255.0, 2), 0, 1))
    np.testing.assert_array_equal(result[..., 3], alpha)
    again = run(path, tmp_path / "in.png", tmp_path / "out.png")
    assert again.returncode == 2
    assert "exists; --overwrite replaces it" in again.stderr


def test_the_input_is_never_replaced(tmp_path):
    (path,) = exports.copy(tmp_path, "float32")
    Image.new("L", (40, 40)).save(tmp_path / "in.png")
    (tmp_path / "link.png").symlink_to("in.png")
    before = (tmp_path / "in.png").read_bytes()
    for target in ("in.png", "link.png"):
        done = run(path, tmp_path / "in.png", tmp_path / target, "--overwrite")
        assert done.returncode == 2
        assert "is the input; the result must not replace it" in done.stderr
    assert (tmp_path / "in.png").read_bytes() == before


def test_a_link_stays_one_and_a_mode_is_kept(tmp_path):
    (path,) = exports.copy(tmp_path, "float32")
    Image.new("L", (40, 40)).save(tmp_path / "in.png")
    (tmp_path / "real.png").touch(mode=0o600)
    (tmp_path / "link.png").symlink_to("real.png")
    done = run(path, tmp_path / "in.png", tmp_path / "link.png", "--overwrite")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "link.png").is_symlink()
    assert (tmp_path / "real.png").stat().st_mode & 0o777 == 0o600


def test_gray_and_rgb_pipelines(tools, tmp_path):
    luma, rgb = exports.copy(tmp_path, "float32", "rgb")
    Image.fromarray(np.random.default_rng(5).integers(0, 256, (40, 50), np.uint8)).save(tmp_path / "gray.png")
    for model, name in ((luma, "a.png"), (rgb, "b.png")):
        done = run(model, tmp_path / "gray.png", tmp_path / name)
        assert done.returncode == 0, done.stderr
        with Image.open(tmp_path / name) as result:
            assert (result.mode, result.size) == ("L", (100, 80))


def test_the_rgb_pipeline_is_tiled_in_low_resolution_pixels(tools, tmp_path):
    (path,) = exports.copy(tmp_path, "rgb")
    manifest = json.loads(path.with_suffix(".json").read_text())
    pixels = np.random.default_rng(6).integers(0, 256, (50, 70, 3), np.uint8)

    def model(shape):
        return tools["runtime"].Model(path, 1, "xnnpack", shape)

    tiled = run_tiled(tools, model, manifest, pixels)
    assert tiled.shape == (100, 140, 3)
    # One tile in the middle, by hand: rows 9 to 41, columns 30 to 62; its inside is in the result.
    tile = model(None).run(pixels[None, 9:41, 30:62])[0]
    inside = 2 * exports.HALO
    np.testing.assert_array_equal(
        tiled[18 + inside : 82 - inside, 60 + inside : 124 - inside], tile[inside:-inside, inside:-inside]
    )


@pytest.fixture
def enlarge(tools, tmp_path, monkeypatch, capsys):
    """Runs upscale.py on files in the test's folder. Returns the exit code and the lines on standard error."""

    def run(model, source, target, *flags):
        places = [str(tmp_path / source), str(tmp_path / target)]
        monkeypatch.setattr(sys, "argv", ["upscale.py", str(model), *places, *flags])
        with pytest.raises(SystemExit) as ended:
            tools["command"].end(tools["upscale"].main)
        return ended.value.code, capsys.readouterr().err.splitlines()

    return run


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("none.png", "out.png", "no such file"),
        ("text.png", "out.png", "not a readable image; expected one of BMP, GIF"),
        ("folder", "out.png", "Is a directory"),
        ("clear.png", "out.jpg", "holds no transparency"),
        ("clear.png", "out.xyz", "expected a file ending in"),
        ("clear.png", "nowhere/out.png", "no such folder"),
        ("clear.png", "text.png/out.png", "no such folder"),
        ("wide.png", "out.jpg", "the result has 65502 x 2 pixels; JPEG holds 65500 a side at most"),
        ("wide.png", "out.webp", "WEBP holds 16383 a side at most"),
    ],
)
def test_bad_files_are_one_line(enlarge, tmp_path, source, target, message):
    (path,) = exports.copy(tmp_path, "float32")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "folder").mkdir()
    Image.new("RGBA", (8, 8)).save(tmp_path / "clear.png")
    Image.new("RGB", (32751, 1)).save(tmp_path / "wide.png")
    code, lines = enlarge(path, source, target)
    assert code == 2
    assert message in lines[0]
    assert len(lines) == 1
    assert not (tmp_path / target).exists()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--threads=0", "argument --threads: expected a whole number from 1 to 1,024; received '0'"),
        ("--threads=1025", "received '1025'"),
        ("--tile=nan", "argument --tile: expected a whole number from 1 to 1,000,000; received 'nan'"),
        ("--delegate=", "'' is no delegate; expected xnnpack, none or"),
        ("--delegate=libnone.so", "libnone.so: cannot load this delegate"),
        ("--delegate=libnone.so,fast", "expected a delegate's options as key=value; received 'fast'"),
        ("--overwrit=1", "ignored explicit argument"),
    ],
)
def test_bad_flags_are_one_line(enlarge, tmp_path, flag, message):
    """On an image smaller than the model, which is resized to it: the size must not be blamed."""
    (path,) = exports.copy(tmp_path, "float32")
    Image.new("RGB", (8, 8)).save(tmp_path / "small.png")
    code, lines = enlarge(path, "small.png", "out.png", flag)
    assert code == 2
    assert message in lines[0]
    assert len(lines) == 1


def test_a_folder_or_a_full_disk_loses_nothing(tools, enlarge, tmp_path, monkeypatch):
    (path,) = exports.copy(tmp_path, "float32")
    Image.new("L", (8, 8)).save(tmp_path / "in.png")
    (tmp_path / "out.png").mkdir()
    assert "out.png: is a folder; expected a file" in enlarge(path, "in.png", "out.png", "--overwrite")[1][0]
    (tmp_path / "old.png").write_bytes(b"old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tools["manifest"].os, "fsync", full)
    code, lines = enlarge(path, "in.png", "old.png", "--overwrite")
    assert code == 2
    assert lines[-1].endswith("old.png could not be written: No space left on device; what was there is unchanged.")
    assert (tmp_path / "old.png").read_bytes() == b"old"
    assert not list(tmp_path.glob("*.part*"))


def test_what_another_run_wrote_meanwhile_is_kept(tools, tmp_path):
    (tmp_path / "out.png").write_bytes(b"another's")
    with pytest.raises(tools["manifest"].CannotRun, match="exists; --overwrite replaces it"):
        tools["pictures"].write(str(tmp_path / "out.png"), np.zeros((2, 2), np.uint8), None, None, overwrite=False)
    assert (tmp_path / "out.png").read_bytes() == b"another's"


def test_an_image_smaller_than_a_model_of_fixed_size_is_refused_in_one_line(tools):
    def model(shape):
        if shape is not None:
            raise tools["manifest"].CannotRun("the delegate failed to reshape node 51")

    manifest = {"pipeline": "rgb", "scale": 2, "halo": 4, "input": {"shape": [1, 64, 64, 3], "dtype": "int8"}}
    with pytest.raises(tools["manifest"].CannotRun) as refused:
        tools["upscale"].upscale(model, manifest, np.zeros((37, 91, 3), np.uint8))
    assert str(refused.value) == (
        "the image gives 91 x 37 pixels; expected 64 x 64 or more, for this model cannot be resized: "
        "export it with a smaller --lr_width and --lr_height."
    )


def test_a_tile_that_is_all_halo_is_refused_by_its_flag(tools):
    manifest = {"pipeline": "rgb", "scale": 2, "halo": 4, "input": {"shape": [1, -1, -1, 3], "dtype": "uint8"}}
    with pytest.raises(tools["manifest"].CannotRun, match="--tile=8 leaves nothing beside a halo of 4 on either side"):
        tools["upscale"].upscale(None, manifest, np.zeros((37, 91, 3), np.uint8), tile=8)
