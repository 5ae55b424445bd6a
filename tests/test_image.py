"""Bicubic and colour against hand-computed numbers and another formula; files of every kind and every damage."""

import io
import pathlib

import numpy as np
import png
import pytest
from PIL import Image, ImageCms, ImageOps

from drcn_keras import image, image_files, image_writing
from drcn_keras.errors import UserError

# === Bicubic ===


def catmull_rom(samples, position):
    """Keys' cubic with a = -1/2 written as the spline that it is: Hermite pieces, slopes from the neighbours."""
    index = int(np.floor(position))
    t = position - index
    before, left, right, after = (samples(index + offset) for offset in (-1, 0, 1, 2))
    slope_left, slope_right = (right - before) / 2, (after - left) / 2
    return (
        (2 * t**3 - 3 * t**2 + 1) * left
        + (t**3 - 2 * t**2 + t) * slope_left
        + (-2 * t**3 + 3 * t**2) * right
        + (t**3 - t**2) * slope_right
    )


def mirrored(signal):
    doubled = np.concatenate([signal, signal[::-1]])
    return lambda index: doubled[index % len(doubled)]


def resized_by_splines(signal, factor):
    """One axis: enlarging interpolates; shrinking averages under the spline of a single one, widened by 1/factor."""
    samples, result = mirrored(signal), []
    for output in range(int(np.ceil(len(signal) * factor))):
        center = (output + 0.5) / factor - 0.5
        if factor >= 1:
            result.append(catmull_rom(samples, center))
            continue
        reach = int(np.ceil(2 / factor)) + 1
        places = np.arange(int(center) - reach, int(center) + reach + 1)
        weights = np.array(
            [catmull_rom(lambda index: float(index == 0), (place - center) * factor) for place in places]
        )
        result.append(np.sum(weights * [samples(place) for place in places]) / weights.sum())
    return np.array(result)


@pytest.mark.parametrize("factor", [2.0, 3.0, 4.0, 1 / 2, 1 / 3, 1 / 4, 0.9, 0.6])
@pytest.mark.parametrize("length", [1, 2, 5, 12, 13])
def test_bicubic_equals_splines(factor, length):
    signal = np.random.default_rng(length).random(length)
    expected = resized_by_splines(signal, factor)
    np.testing.assert_allclose(image.bicubic(signal[:, None], factor)[:, 0], expected, atol=1e-12)
    np.testing.assert_allclose(image.bicubic(signal[None], factor)[0], expected, atol=1e-12)


def test_enlarged_impulse_by_hand():
    # |x| = 1/4, 3/4, 5/4, 7/4 in Keys' cubic with a = -1/2.
    expected = np.array([0, -3, -9, 29, 111, 111, 29, -9, -3, 0]) / 128
    np.testing.assert_allclose(image.enlarge([[0, 0, 1, 0, 0]], 2)[0], expected, atol=1e-15)


def test_mirrored_border_by_hand():
    # Left of [0, 1] stand 0, 1: the edge pixel is repeated. Clamping would give -9/128 and 26/128.
    np.testing.assert_allclose(image.enlarge([[0.0, 1.0]], 2)[0], np.array([-12, 26, 102, 140]) / 128, atol=1e-15)


def test_shrinking_is_antialiased():
    # The highest frequency is gone but for the border; without the wider kernel it would stay at full strength.
    stripes = np.tile([0.0, 1.0], 16)[None]
    np.testing.assert_allclose(image.shrink(stripes, 2)[0, 2:-2], 0.5, atol=1e-12)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_constant_image_stays_constant(scale):
    flat = np.full((9, 7, 3), 0.3)
    np.testing.assert_allclose(image.enlarge(flat, scale), 0.3, atol=1e-15)
    np.testing.assert_allclose(image.shrink(flat, scale), 0.3, atol=1e-15)
    assert image.enlarge(flat, scale).shape == (9 * scale, 7 * scale, 3)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_window_is_cut_from_the_whole(scale):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 14, 3), np.uint8)
    whole = image.enlarge(pixels, scale)
    for rows in [slice(0, 3), slice(7, 8), slice(5, 9 * scale), slice(None)]:
        for columns in [slice(0, 14 * scale), slice(14 * scale - 1, 14 * scale), slice(6, 20)]:
            np.testing.assert_array_equal(image.enlarge(pixels, scale, (rows, columns)), whole[rows, columns])


# === Colour and cropping ===


@pytest.mark.parametrize(
    ("rgb", "ycbcr"),
    [
        ((255, 255, 255), (235, 128, 128)),
        ((0, 0, 0), (16, 128, 128)),
        ((255, 0, 0), (81.481, 90.203, 240)),
        ((0, 255, 0), (144.553, 53.797, 34.214)),
        ((0, 0, 255), (40.966, 240, 109.786)),
    ],
)
def test_ycbcr_of_matlab(rgb, ycbcr):
    pixel = np.array(rgb, np.uint8).reshape(1, 1, 3)
    np.testing.assert_allclose(255 * image.rgb_to_ycbcr(pixel / 255)[0, 0], ycbcr, atol=1e-9)
    assert image.luma(pixel) == round(ycbcr[0])
    np.testing.assert_allclose(255 * image.ycbcr_to_rgb(np.array(ycbcr) / 255), rgb, atol=1e-9)


def test_luma_of_gray_is_the_gray():
    gray = np.array([[0, 16, 255]], np.uint8)
    assert image.luma(gray) is gray


def test_mod_crop_and_shave():
    pixels = np.arange(7 * 8).reshape(7, 8)
    np.testing.assert_array_equal(image.mod_crop(pixels, 3), pixels[:6, :6])
    np.testing.assert_array_equal(image.mod_crop(pixels, 4), pixels[:4, :8])
    np.testing.assert_array_equal(image.shave(pixels, 3), pixels[3:4, 3:5])


# === Files ===


@pytest.fixture
def saved(tmp_path):
    """Function that saves a PIL image under a name and returns the path."""

    def save(picture, name, **options):
        picture.save(tmp_path / name, **options)
        return str(tmp_path / name)

    return save


def colors(mode="RGB", size=(6, 4)):
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(bands).integers(0, 256, (size[1], size[0], bands), np.uint8)
    return (
        Image.fromarray(pixels.squeeze(), mode=None)
        if mode != "CMYK"
        else Image.frombytes(mode, size, pixels.tobytes())
    )


def test_list_images_sorts_and_leaves_out(tmp_path):
    for name in ["b.png", "a.JPG", "notes.txt", ".hidden.png", "c.tiff"]:
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    found = image_files.list_images(tmp_path)
    assert [path[len(str(tmp_path)) + 1 :] for path in found] == [
        "a.JPG",
        "b.png",
        "c.tiff",
    ]


def test_list_images_of_nothing(tmp_path):
    with pytest.raises(UserError, match="no image in this folder"):
        image_files.list_images(tmp_path)
    with pytest.raises(UserError, match=r"missing: expected a folder of images; there is nothing"):
        image_files.list_images(tmp_path / "missing")
    (tmp_path / "file.png").touch()
    with pytest.raises(UserError, match="there is a file"):
        image_files.list_images(tmp_path / "file.png")


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_plain_modes(saved, mode):
    picture = colors(mode)
    path = saved(picture, "a.png")
    np.testing.assert_array_equal(image_files.read_pixels(path)[0], np.asarray(picture))
    # Training and measuring take no transparency.
    expected = np.asarray(picture)[..., :3] if mode.startswith("RGB") else np.asarray(picture).reshape(4, 6, -1)[..., 0]
    np.testing.assert_array_equal(image_files.read_image(path), expected)


def test_palette(saved):
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 0])
    picture.putdata([0, 1])
    opaque, _ = image_files.read_pixels(saved(picture, "a.png"))
    assert opaque.tolist() == [[[10, 20, 30], [200, 100, 0]]]
    keyed, _ = image_files.read_pixels(saved(picture, "b.png", transparency=1))
    assert keyed.tolist() == [[[10, 20, 30, 255], [200, 100, 0, 0]]]


def test_one_bit(saved):
    picture = Image.fromarray(np.array([[True, False]]))
    assert image_files.read_image(saved(picture, "a.png")).tolist() == [[255, 0]]


def test_transparent_gray_level(saved):
    picture = Image.fromarray(np.array([[7, 8]], np.uint8))
    assert image_files.read_pixels(saved(picture, "a.png", transparency=8))[0].tolist() == [[[7, 255], [8, 0]]]


def test_cmyk(saved):
    # Full cyan, and black by key alone; JPEG at 100 is off by a step or two.
    picture = Image.frombytes("CMYK", (16, 8), bytes([255, 0, 0, 0]) * 64 + bytes([0, 0, 0, 255]) * 64)
    pixels = image_files.read_image(saved(picture, "a.jpg", quality=100, subsampling=0)).astype(int)
    assert np.abs(pixels[0, 0] - [0, 255, 255]).max() <= 2
    assert pixels[7, 0].max() <= 2


def test_sixteen_bit_gray(saved):
    deep = np.array([[0, 128, 129, 65535]], np.uint16)
    path = saved(Image.fromarray(deep), "a.png")
    pixels, _ = image_files.read_pixels(path)
    assert pixels.dtype == np.uint16
    np.testing.assert_array_equal(pixels, deep)
    # 128/257 rounds to 0, 129/257 to 1: cutting off the low byte would give 0 for both.
    assert image_files.read_image(path).tolist() == [[0, 0, 1, 255]]


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_sixteen_bit_color_keeps_its_low_byte(tmp_path, channels):
    deep = np.random.default_rng(channels).integers(0, 65536, (3, 5, channels), np.uint16)
    writer = png.Writer(5, 3, greyscale=channels == 2, alpha=channels != 3, bitdepth=16)
    with open(tmp_path / "a.png", "wb") as file:
        writer.write(file, deep.reshape(3, -1).tolist())
    pixels, _ = image_files.read_pixels(tmp_path / "a.png")
    assert pixels.dtype == np.uint16
    np.testing.assert_array_equal(pixels, deep)


@pytest.mark.parametrize(("greyscale", "key"), [(True, 300), (False, (1, 2, 300))])
def test_sixteen_bit_transparent_color(tmp_path, greyscale, key):
    other, keyed = np.zeros(1 if greyscale else 3, int), np.atleast_1d(key)
    with open(tmp_path / "a.png", "wb") as file:
        png.Writer(2, 1, greyscale=greyscale, bitdepth=16, transparent=key).write(file, [[*other, *keyed]])
    pixels, _ = image_files.read_pixels(tmp_path / "a.png")
    assert pixels.tolist() == [[[*other, 65535], [*keyed, 0]]]


def test_floating_point_is_refused(saved):
    with pytest.raises(UserError, match=r"a\.tif: floating-point pixels"):
        image_files.read_pixels(saved(Image.new("F", (3, 3)), "a.tif"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_cameras_rotation_is_undone(saved, orientation):
    picture = colors()
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(picture, "a.png", exif=exif)
    with Image.open(path) as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored))
    np.testing.assert_array_equal(image_files.read_image(path), expected)


def test_contents_decide_not_the_suffix(saved):
    path = saved(colors(), "a.png", format="BMP")
    np.testing.assert_array_equal(image_files.read_image(path), np.asarray(colors()))


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "webp", "gif"])
def test_truncated_file_is_named(saved, suffix):
    path = saved(colors(size=(64, 64)), f"a.{suffix}")
    contents = pathlib.Path(path).read_bytes()
    for length in (len(contents) // 2, 12):
        pathlib.Path(path).write_bytes(contents[:length])
        with pytest.raises(UserError, match=rf"a\.{suffix}: (damaged|not an image)") as error:
            image_files.read_image(path)
        assert "\n" not in str(error.value)


def test_renamed_and_missing_files_are_named(tmp_path):
    (tmp_path / "a.png").write_text("This is no image.")
    with pytest.raises(UserError, match=r"a\.png: not an image in a known format"):
        image_files.read_image(tmp_path / "a.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(UserError, match=r"empty\.png: not an image"):
        image_files.read_image(tmp_path / "empty.png")
    with pytest.raises(UserError, match=r"b\.png: no such file"):
        image_files.read_image(tmp_path / "b.png")
    with pytest.raises(UserError, match="cannot be read"):
        image_files.read_image(tmp_path)


def test_decompression_bomb_is_refused(saved, monkeypatch):
    path = saved(Image.new("L", (40, 40)), "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 799)
    with pytest.raises(UserError, match=r"a\.png: refused as a decompression bomb"):
        image_files.read_image(path)
    # Up to twice Pillow's limit it reads, and without a warning.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 801)
    assert image_files.read_image(path).shape == (40, 40)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".webp", ".jpg", ".jpeg", ".bmp"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_written_files_are_read_back_or_refused(tmp_path, suffix, channels, dtype):
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (16, 24, channels), dtype)
    pixels = pixels[..., 0] if channels == 1 else pixels
    path = str(tmp_path / f"a{suffix}")
    holds_alpha = suffix in (".png", ".tif", ".tiff", ".webp")
    holds_depth = suffix in (".png", ".tif", ".tiff")
    buffer = io.BytesIO()
    if (channels in (2, 4) and not holds_alpha) or (dtype == np.uint16 and not holds_depth):
        with pytest.raises(UserError, match=r"cannot hold the image's (transparency|16 bit); write \.png"):
            image_writing.write_pixels(buffer, path, pixels)
        assert not buffer.getvalue()
        return
    image_writing.write_pixels(buffer, path, pixels)
    (tmp_path / f"a{suffix}").write_bytes(buffer.getvalue())
    read, _ = image_files.read_pixels(path)
    assert read.dtype == dtype
    if suffix.startswith(".j"):
        # Noise, at quality 95 with full colour, is off by 4 on average; chroma of half the size would make it 40.
        assert read.shape == pixels.shape
        assert np.abs(read.astype(int) - pixels).mean() < 8
    elif suffix == ".webp" and channels <= 2:
        # WebP has no gray.
        np.testing.assert_array_equal(read[..., 0], pixels.reshape(16, 24, -1)[..., 0])
    else:
        np.testing.assert_array_equal(read, pixels)


def test_unknown_suffix_is_refused():
    with pytest.raises(UserError, match=r"a\.gif: cannot write \.gif; expected \.png"):
        image_writing.check_writable("a.gif")
    with pytest.raises(UserError, match="a file without a suffix"):
        image_writing.check_writable("a")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_color_profile_survives(tmp_path, dtype):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pixels = np.zeros((2, 3, 3), dtype)
    with open(tmp_path / "a.png", "wb") as file:
        image_writing.write_pixels(file, "a.png", pixels, profile)
    assert image_files.read_pixels(tmp_path / "a.png")[1] == profile


def test_image_too_wide_for_its_format_is_refused():
    with pytest.raises(UserError, match="cannot be written as WEBP"):
        image_writing.write_pixels(io.BytesIO(), "a.webp", np.zeros((1, 16384), np.uint8))
