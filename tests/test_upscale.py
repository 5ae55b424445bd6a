"""Every kind of image through small networks whose answer is known, tiles against the whole, the command's manners."""

import importlib
import os
import subprocess
import sys

import numpy as np
import png
import pytest
from keras import ops
from kit import ROOT
from PIL import Image

import drcn_keras
from drcn_keras import image_writing, tiling
from drcn_keras.errors import UserError
from drcn_keras.image import enlarge
from drcn_keras.image_files import read_image, read_pixels
from drcn_keras.tiling import default_tile, tiles
from drcn_keras.upscaling import upscale, upscale_files


def noise(*shape, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape, dtype)


def rounded(image, dtype=np.uint8):
    """What a bicubic enlargement in the dtype's units is as an image."""
    largest = np.iinfo(dtype).max
    return np.floor(np.clip(image, 0, largest) + 0.5).astype(dtype)


def assert_one_step(result, expected):
    """Equal but for pixels that fall on the border between two levels, which float32 may round the other way."""
    assert result.dtype == expected.dtype
    assert result.shape == expected.shape
    difference = np.abs(result.astype(int) - expected)
    assert difference.max() <= (1 if result.dtype == np.uint8 else 3)
    if result.dtype == np.uint8:
        assert (difference > 0).mean() < 0.01


# === Kinds of arrays ===


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(7, 9), (7, 9, 1), (7, 9, 3)])
@pytest.mark.parametrize(("channels", "scale"), [(1, 2), (3, 3)])
def test_a_network_that_adds_nothing_is_bicubic(bicubic_drcn, channels, scale, shape, dtype):
    pixels = noise(*shape, dtype=dtype)
    result = upscale(pixels, bicubic_drcn(channels=channels, scale=scale))
    # Truncation instead of rounding would be off in half of the pixels.
    assert_one_step(result, rounded(enlarge(pixels, scale), dtype))


@pytest.mark.parametrize("channels", [1, 3])
def test_gray_goes_through_the_network_as_it_is(bicubic_drcn, channels):
    pixels = np.full((4, 5), 100, np.uint8)
    result = upscale(pixels, bicubic_drcn(offset=20 / 255, channels=channels))
    np.testing.assert_array_equal(result, np.full((8, 10), 120, np.uint8))


def test_color_goes_through_as_luma_of_matlab(bicubic_drcn):
    pixels = np.full((4, 5, 3), (60, 100, 140), np.uint8)
    result = upscale(pixels, bicubic_drcn(offset=21.9 / 255))
    # Y spans 219 levels, R, G and B span 255: 21.9 of Y are 25.5 of each; chroma stays.
    np.testing.assert_allclose(result.reshape(-1, 3) - np.array([85.5, 125.5, 165.5]), 0, atol=0.5 + 1e-4)


def test_rgb_network_sees_all_three_channels(random_drcn):
    model = random_drcn(channels=3)
    pixels = np.random.default_rng(1).random((6, 5, 3))
    expected = ops.convert_to_numpy(model(enlarge(pixels, 2)[None].astype(np.float32)))[0]
    np.testing.assert_allclose(upscale(pixels, model), np.clip(expected, 0, 1), atol=1e-5)


def test_results_are_clipped(bicubic_drcn):
    assert upscale(np.full((2, 2), 250, np.uint8), bicubic_drcn(offset=0.5)).min() == 255
    assert upscale(np.full((2, 2, 3), 5, np.uint8), bicubic_drcn(offset=-0.5)).max() == 0


@pytest.mark.parametrize("colors", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_alpha_is_enlarged_and_never_dropped(random_drcn, colors, dtype):
    pixels = noise(8, 6, colors + 1, dtype=dtype) // 2 + 1
    pixels[..., -1] += np.iinfo(dtype).max // 3
    result = upscale(pixels, random_drcn())
    assert result.shape == (16, 12, colors + 1)
    assert_one_step(result[..., -1], rounded(enlarge(pixels[..., -1], 2), dtype))
    # Alpha has no say in the colours of visible pixels.
    opaque = upscale(pixels[..., 0] if colors == 1 else pixels[..., :3], random_drcn())
    assert_one_step(result[..., :-1], opaque.reshape(16, 12, colors))


def test_a_model_that_gives_nan_is_an_error_and_no_picture(random_drcn):
    model = random_drcn()
    model.ensemble_weights.assign([np.nan, 1.0])
    with pytest.raises(UserError, match="the model gives NaN or infinity"):
        upscale(noise(4, 4), model)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floating_point_stays_and_is_not_quantised(bicubic_drcn, dtype):
    pixels = np.random.default_rng(0).random((5, 4)).astype(dtype)
    result = upscale(pixels, bicubic_drcn())
    assert result.dtype == dtype
    np.testing.assert_allclose(result, np.clip(enlarge(pixels, 2), 0, 1), atol=1e-3 if dtype == np.float16 else 1e-6)


def test_images_of_a_pixel(random_drcn):
    model = random_drcn(scale=3)
    for shape in [(1, 1), (1, 7), (3, 1, 3), (1, 1, 4)]:
        assert upscale(noise(*shape), model).shape == (shape[0] * 3, shape[1] * 3, *shape[2:])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 2, 5), np.uint8), "received \\(2, 2, 5\\)"),
        (np.zeros((1, 2, 2, 3), np.uint8), "received \\(1, 2, 2, 3\\)"),
        (np.zeros((0, 2), np.uint8), "at least one pixel"),
        (np.zeros((2, 2), np.int32), "received int32"),
        (np.full((2, 2), 200.0), "received 200.0 to 200.0"),
        (np.full((2, 2), np.nan), "received nan"),
    ],
)
def test_arrays_that_are_no_image_are_refused(bicubic_drcn, array, message):
    with pytest.raises(ValueError, match=message):
        upscale(array, bicubic_drcn())


# === Tiles ===


@pytest.mark.parametrize("halo", [0, 3, 7])
def test_tiles_cover_every_pixel_once_with_the_halo_around(halo):
    for height, width, tile in [(1, 1, 100), (40, 15, 15), (33, 64, 20), (100, 17, 2 * halo + 1)]:
        covered = np.zeros((height, width), int)
        for window, inner, kept in tiles(height, width, tile, halo):
            covered[kept] += 1
            for cut, inside, target, length in zip(window, inner, kept, (height, width), strict=True):
                assert 0 <= cut.start < cut.stop <= length
                assert cut.stop - cut.start <= max(tile, 1)
                assert (cut.start + inside.start, cut.start + inside.stop) == (target.start, target.stop)
                assert cut.start == 0 or target.start - cut.start >= halo
                assert cut.stop == length or cut.stop - target.stop >= halo
        assert (covered == 1).all()


def test_all_tiles_have_one_size():
    # A graph is compiled once per size.
    sizes = {(rows.stop - rows.start, columns.stop - columns.start) for (rows, columns), _, _ in tiles(333, 555, 64, 7)}
    assert len(sizes) == 1


def test_tiles_are_as_wide_as_convolutions_like_it():
    def sides(height, width, tile):
        (rows, columns), _, _ = tiles(height, width, tile, 13)[0]
        return rows.stop - rows.start, columns.stop - columns.start

    # (1000 + 2 * 26) / 3 rows; (1500 + 3 * 26) / 4 columns are 394.5.
    assert sides(1000, 1500, 512) == (351, 400)
    assert sides(100, 395, 512) == (100, 395)  # There is nothing beyond the image.
    assert sides(100, 395, 211) == (100, 211)  # Nor is a tile larger than it may be.


@pytest.mark.parametrize("shape", [(20, 30), (31, 17, 3), (16, 40, 4)])
def test_tiled_equals_whole(random_drcn, shape):
    model = random_drcn(recursions=3)
    pixels = np.random.default_rng(3).random(shape)
    whole = upscale(pixels, model, tile=1000)
    assert np.abs(whole - np.clip(enlarge(pixels, 2), 0, 1)).mean() > 0.01, "the network does nothing: a weak test"
    for tile in (2 * model.halo + 5, 33):
        np.testing.assert_allclose(upscale(pixels, model, tile=tile), whole, atol=1e-5)


def test_the_halo_is_the_receptive_field(random_drcn):
    # One changed pixel of the ILR is felt `halo` pixels away and no further, so a smaller overlap would show seams.
    model = random_drcn(recursions=3)
    dark = np.full((1, 1, 31, 1), 0.5, np.float32)
    dark = np.repeat(dark, 31, axis=1)
    bright = dark.copy()
    bright[0, 15, 15] += 100.0
    felt = np.abs(ops.convert_to_numpy(model(bright)) - ops.convert_to_numpy(model(dark)))[0, ..., 0].max(axis=0)
    assert model.halo == 7
    assert felt[15 - 7] > 1e-4
    assert felt[: 15 - 7].max() == 0


def test_the_networks_input_is_never_larger_than_the_tile(random_drcn, monkeypatch):
    model, seen = random_drcn(), []
    upscale(np.zeros((4, 4), np.uint8), model)
    network = tiling._network(model, "float32")
    predict = network.predict_on_batch
    monkeypatch.setattr(network, "predict_on_batch", lambda x: seen.append(x.shape) or predict(x))
    upscale(np.zeros((60, 50, 3), np.uint8), model, tile=32)
    assert len(seen) > 4
    assert max(max(shape) for shape in seen) <= 32


def test_a_tile_without_room_is_refused(random_drcn):
    with pytest.raises(ValueError, match="larger than twice the halo, 12 pixels"):
        upscale(np.zeros((30, 30), np.uint8), random_drcn(), tile=12)


def test_default_tile_of_the_papers_network():
    class Paper:
        filters, recursions, halo = 256, 16, 20

    # 18 maps of 341 x 341 x 256 floats are 2.0 GiB.
    assert default_tile(Paper, 18) == 341
    assert default_tile(Paper, 4) == 512


# === Models, images, paths ===


def test_changed_weights_are_seen(bicubic_drcn):
    model = bicubic_drcn()
    pixels = np.full((3, 3), 100, np.uint8)
    assert upscale(pixels, model).max() == 100
    kernel, bias = model.get_layer("reconstruction_2").get_weights()
    model.get_layer("reconstruction_2").set_weights([kernel, bias + 10 / 255])
    assert upscale(pixels, model).max() == 110


def test_path_image_and_array_agree(random_drcn, tmp_path):
    model = random_drcn()
    model.save(tmp_path / "model.keras")
    pixels = noise(6, 8, 3)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    expected = upscale(pixels, model)
    for given, network in [
        (str(tmp_path / "photo.png"), tmp_path / "model.keras"),
        (tmp_path / "photo.png", str(tmp_path / "model.keras")),
        (Image.fromarray(pixels), model),
    ]:
        result = upscale(given, network)
        assert isinstance(result, Image.Image)
        np.testing.assert_array_equal(np.asarray(result), expected)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("1", "L"),
        ("L", "L"),
        ("LA", "LA"),
        ("P", "RGB"),
        ("RGB", "RGB"),
        ("RGBA", "RGBA"),
        ("CMYK", "RGB"),
        ("I;16", "I;16"),
    ],
)
def test_modes_of_pil(bicubic_drcn, mode, expected):
    result = upscale(Image.new(mode, (3, 2)), bicubic_drcn())
    assert (result.mode, result.size) == (expected, (6, 4))


def test_palette_with_transparency_keeps_it(bicubic_drcn):
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([0, 0, 0, 200, 100, 50])
    picture.putpixel((0, 0), 0)
    picture.info["transparency"] = 0
    result = np.asarray(upscale(picture, bicubic_drcn()))
    assert result[0, 0, 3] < 30
    assert result[7, 7].tolist() == [200, 100, 50, 255]


def test_turned_photograph_comes_out_upright(bicubic_drcn, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # The camera was turned: show it a quarter to the right.
    Image.new("RGB", (40, 24)).save(tmp_path / "a.jpg", exif=exif)
    result = upscale(tmp_path / "a.jpg", bicubic_drcn())
    assert result.size == (48, 80)
    assert not result.getexif()


def test_the_package_keeps_the_functions():
    for name in ("upscale", "evaluate"):
        with pytest.raises(ImportError, match=f"drcn_keras.{name} is a function"):
            importlib.import_module(f"drcn_keras.{name}")
        assert callable(getattr(drcn_keras, name))


# === Files and folders ===


@pytest.fixture
def folder(tmp_path):
    """A folder with a gray PNG, an RGBA PNG, a 16-bit RGB PNG and a JPEG."""
    source = tmp_path / "in"
    source.mkdir()
    Image.fromarray(noise(6, 8)).save(source / "gray.png")
    Image.fromarray(noise(6, 8, 4)).save(source / "rgba.png")
    Image.fromarray(noise(6, 8, 3)).save(source / "photo.jpg")
    with open(source / "deep.png", "wb") as file:
        png.Writer(8, 6, greyscale=False, bitdepth=16).write(file, noise(6, 24, dtype=np.uint16).tolist())
    return source


def test_folder_to_folder(bicubic_drcn, folder, tmp_path):
    written = upscale_files(bicubic_drcn(), [str(folder)], str(tmp_path / "new" / "out"))
    assert [os.path.basename(path) for path in written] == ["deep.png", "gray.png", "photo.png", "rgba.png"]
    kinds = [(pixels.shape[2:], pixels.dtype) for pixels, _ in map(read_pixels, written)]
    assert kinds == [((3,), np.uint16), ((), np.uint8), ((3,), np.uint8), ((4,), np.uint8)]
    assert len(os.listdir(tmp_path / "new" / "out")) == 4, "something else was left behind"


def test_deep_color_keeps_sixteen_bit(bicubic_drcn, folder, tmp_path):
    (path,) = upscale_files(bicubic_drcn(), [str(folder / "deep.png")], str(tmp_path / "deep_x2.png"))
    expected = rounded(enlarge(noise(6, 24, dtype=np.uint16).reshape(6, 8, 3), 2), np.uint16)
    assert_one_step(read_pixels(path)[0], expected)


def test_damaged_files_are_skipped_in_folders_and_fatal_alone(bicubic_drcn, folder, tmp_path, caplog):
    (folder / "fake.png").write_text("no image")
    contents = (folder / "gray.png").read_bytes()
    (folder / "short.png").write_bytes(contents[: len(contents) // 2])
    out = tmp_path / "out"
    assert len(upscale_files(bicubic_drcn(), [str(folder)], str(out))) == 4
    assert "fake.png" in caplog.text
    assert "short.png" in caplog.text
    with pytest.raises(UserError, match=r"short\.png: damaged or truncated"):
        upscale_files(bicubic_drcn(), [str(folder / "short.png")], str(tmp_path / "short_x2.png"))
    assert not (tmp_path / "short_x2.png").exists()
    # Named by the user among others: the others are done, and then it is an error.
    with pytest.raises(UserError, match="1 of 2 images could not be read"):
        upscale_files(bicubic_drcn(), [str(folder / "short.png"), str(folder / "gray.png")], str(tmp_path / "two"))
    assert os.listdir(tmp_path / "two") == ["gray.png"]


def test_a_folder_of_damaged_files_is_an_error(bicubic_drcn, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for name in ("a.png", "b.png"):
        (source / name).write_text("no image")
    with pytest.raises(UserError, match="2 of 2 images could not be read"):
        upscale_files(bicubic_drcn(), [str(source)], str(tmp_path / "out"))


def test_nothing_is_overwritten_unasked(bicubic_drcn, folder, tmp_path):
    model, out = bicubic_drcn(), tmp_path / "out"
    upscale_files(model, [str(folder)], str(out))
    (out / "gray.png").write_text("mine")
    with pytest.raises(UserError, match=r"exists \(4 of 4 results do\); `overwrite` replaces"):
        upscale_files(model, [str(folder)], str(out))
    (out / "rgba.png").unlink()
    written = upscale_files(model, [str(folder)], str(out), skip_existing=True)
    assert [os.path.basename(path) for path in written] == ["rgba.png"]
    assert (out / "gray.png").read_text() == "mine"
    upscale_files(model, [str(folder)], str(out), overwrite=True)
    assert read_image(out / "gray.png").shape == (12, 16)


def test_an_input_is_never_replaced(bicubic_drcn, folder):
    before = (folder / "gray.png").read_bytes()
    with pytest.raises(UserError, match=r"gray\.png is an input"):
        upscale_files(bicubic_drcn(), [str(folder / "gray.png")], str(folder), overwrite=True)
    assert (folder / "gray.png").read_bytes() == before


def test_images_of_one_name_get_names_apart(bicubic_drcn, folder, tmp_path):
    Image.new("L", (2, 2)).save(folder / "gray.bmp")
    written = upscale_files(bicubic_drcn(), [str(folder)], str(tmp_path / "out"))
    names = ["deep.png", "gray.bmp.png", "gray.png.png", "photo.png", "rgba.png"]
    assert [os.path.basename(path) for path in written] == names
    again = [str(folder / "gray.png"), str(folder / "gray.png")]
    with pytest.raises(UserError, match=r"gray\.png and .*gray\.png would both become"):
        upscale_files(bicubic_drcn(), again, str(tmp_path / "out"))


def test_outputs_that_cannot_be(bicubic_drcn, folder, tmp_path):
    model = bicubic_drcn()
    with pytest.raises(UserError, match="is a file name; expected a folder for 4 images"):
        upscale_files(model, [str(folder)], str(tmp_path / "out.png"))
    with pytest.raises(UserError, match=r"cannot write \.gif"):
        upscale_files(model, [str(folder / "gray.png")], str(tmp_path / "out.gif"))
    with pytest.raises(UserError, match="JPEG cannot hold the image's transparency"):
        upscale_files(model, [str(folder / "rgba.png")], str(tmp_path / "out.jpg"))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written to"):
        upscale_files(model, [str(folder / "gray.png")], str(tmp_path / "file" / "out"))
    assert sorted(os.listdir(tmp_path)) == ["file", "in"]


def test_scales_and_tiles_that_cannot_be(bicubic_drcn, folder, tmp_path):
    arguments = [str(folder / "gray.png")], str(tmp_path / "out.png")
    with pytest.raises(UserError, match=r"from 1\.1 to 4; received x5"):
        upscale_files(bicubic_drcn(), *arguments, scale=5)
    with pytest.raises(UserError, match="the model's weights are for x2 alone; received x3"):
        upscale_files(bicubic_drcn(), *arguments, scale=3)
    with pytest.raises(UserError, match="`tile` must be more than 12"):
        upscale_files(bicubic_drcn(), *arguments, tile=12)
    with pytest.raises(UserError, match="no image given"):
        upscale_files(bicubic_drcn(), [], str(tmp_path / "out"))


def test_a_model_with_nan_is_refused(bicubic_drcn, folder, tmp_path):
    bicubic_drcn(offset=np.nan).save(tmp_path / "model.keras")
    with pytest.raises(UserError, match="holds NaN or infinity"):
        upscale_files(tmp_path / "model.keras", [str(folder)], str(tmp_path / "out"))


def test_a_failing_write_leaves_what_was_there(bicubic_drcn, folder, tmp_path, monkeypatch):
    target = tmp_path / "out.png"
    target.write_text("mine")

    def fail(file, *_):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(image_writing, "write_pixels", fail)
    with pytest.raises(UserError, match="No space left"):
        upscale_files(bicubic_drcn(), [str(folder / "gray.png")], str(target), overwrite=True)
    assert target.read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["in", "out.png"]


# === The command ===


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "drcn_keras.upscale", *map(str, arguments)], capture_output=True, text=True, cwd=ROOT
    )


def test_command(bicubic_drcn, folder, tmp_path):
    bicubic_drcn().save(tmp_path / "model.keras")
    done = command(f"--model={tmp_path / 'model.keras'}", folder / "gray.png", f"--output={tmp_path / 'out.png'}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"1 written: {tmp_path / 'out.png'}\n"
    # Which it took, and why, is said once.
    assert [
        line for line in done.stderr.splitlines() if line.startswith(("precision float32: ", "precision bfloat16: "))
    ]
    assert read_image(tmp_path / "out.png").shape == (12, 16)
    (folder / "fake.png").write_text("no image")
    failed = command(f"--model={tmp_path / 'model.keras'}", folder / "fake.png", f"--output={tmp_path / 'fake.png'}")
    assert failed.returncode == 1
    assert len(failed.stderr.splitlines()) == 1, failed.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=m.keras", "IN/gray.png"], "--output is required"),
        (["--model=m.keras", "--output=OUT"], "no image given"),
        (["--model=m.keras", "IN/none.png", "--output=OUT/a.png"], "no model m.keras"),
        (["--model=m.keras", "IN/gray.png", "--output=OUT", "--scale=5"], "from 1.1 to 4; received x5"),
        (["--model=m.keras", "IN/gray.png", "--output=OUT", "--nonsense"], "Unknown command line flag"),
    ],
)
def test_command_ends_in_one_line(folder, tmp_path, arguments, message):
    places = {"IN": str(folder), "OUT": str(tmp_path / "out")}
    done = command(*[text.replace("IN", places["IN"]).replace("OUT", places["OUT"]) for text in arguments])
    assert done.returncode != 0
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert message in done.stderr


def test_progress_is_told_tile_by_tile_and_may_end_the_work(random_drcn):
    model, image = random_drcn(), np.zeros((20, 30), np.uint8)
    told = []
    whole = upscale(image, model, progress=lambda *numbers: told.append(numbers))
    assert told == [(0, 1), (1, 1)]
    told.clear()
    # 40 x 60 pixels in windows of 28 with a halo of 6: 2 rows of 3.
    tiled = upscale(image, model, tile=28, progress=lambda *numbers: told.append(numbers))
    assert told == [(done, 6) for done in range(7)]
    assert np.array_equal(tiled, whole)

    def cancel(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upscale(image, model, tile=28, progress=cancel)
