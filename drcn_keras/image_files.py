"""Reading and writing pictures without loss of depth or transparency.

Pillow, and pypng for the one thing that Pillow lacks: PNG with 16-bit colour. Arrays are (height, width) or
(height, width, channels).
"""

import io
import os
import warnings
import zlib

import numpy as np
import png
from absl import logging
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from drcn_keras.errors import UserError
from drcn_keras.files import write_atomically

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


# What Pillow may open, told by content. Formats that start other programs (EPS) are left out.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


_TIFF_DEPTH = 258  # The tag BitsPerSample.


# By suffix: Pillow's name of the format, its options, whether it holds transparency, whether 16-bit gray.
_WRITTEN: dict[str, tuple[str, dict, bool, bool]] = {
    ".png": ("PNG", {}, True, True),
    ".tif": ("TIFF", {"compression": "tiff_lzw"}, True, True),
    ".tiff": ("TIFF", {"compression": "tiff_lzw"}, True, True),
    ".webp": ("WEBP", {"lossless": True, "exact": True}, True, False),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}, False, False),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}, False, False),
    ".bmp": ("BMP", {}, False, False),
}


def list_images(folder):
    """The image files of a folder, by suffix; subfolders and hidden files are left out.

    Args:
        folder: path.

    Returns:
        list of paths, sorted by name, never empty.

    Raises:
        UserError: no such folder, or no image in it.
    """
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: expected a folder of images; there is {_what_is_at(folder)}.")
    paths = [
        os.path.join(folder, name)
        for name in sorted(os.listdir(folder))
        if name.lower().endswith(SUFFIXES) and not name.startswith(".")
    ]
    paths = [path for path in paths if os.path.isfile(path)]
    if not paths:
        raise UserError(f"{folder}: no image in this folder; expected files ending in {' '.join(SUFFIXES)}.")
    return paths


def image_folders(folder):
    """Every folder that holds images, from `folder` downward; hidden ones and links to folders are left out.

    Returns:
        list of paths, sorted, never empty.

    Raises:
        UserError: no such folder, or no image in it or below.
    """
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: expected a folder; there is {_what_is_at(folder)}.")
    found = []
    for inner, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if any(name.lower().endswith(SUFFIXES) and not name.startswith(".") for name in files):
            found.append(inner)
    if not found:
        raise UserError(f"{folder}: no image in this folder or below; expected files ending in {' '.join(SUFFIXES)}.")
    return found


def _what_is_at(path):
    return "a file" if os.path.exists(path) else "nothing"


def read_image(path):
    """An image as training and measuring take it: 8 bit, gray or RGB, upright, without transparency.

    Args:
        path: of a file that Pillow reads: PNG, JPEG, TIFF, WebP, BMP, GIF (first frame), PPM.

    Returns:
        uint8 (height, width) for a gray image, else (height, width, 3) RGB. 16 bit is rounded to 8.

    Raises:
        UserError: the file is missing, damaged, no image, or too large (see `read_pixels`).
    """
    pixels, _ = read_pixels(path)
    if pixels.ndim == 3:
        colors = 3 if pixels.shape[2] >= 3 else 1
        pixels = pixels[..., 0] if colors == 1 else pixels[..., :3]
    return np.ascontiguousarray(_to_eight_bit(pixels))


def _to_eight_bit(pixels):
    return np.round(pixels / 257.0).astype(np.uint8) if pixels.dtype == np.uint16 else pixels


def read_pixels(path):
    """An image without loss of depth or transparency, upright.

    Args:
        path: as for `read_image`.

    Returns:
        (pixels, icc_profile). pixels: uint8 or uint16, (height, width) gray or (height, width, 2, 3 or 4) for
        gray+alpha, RGB, RGBA. icc_profile: bytes, the colour profile that goes with them, or None.

    Raises:
        UserError: the file is missing, damaged, no image, of a kind with no 8 or 16-bit meaning, or a
            decompression bomb (more than twice Pillow's MAX_IMAGE_PIXELS).
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns at half of the size that it refuses, and about harmless metadata.
            warnings.simplefilter("ignore")
            with Image.open(path, formats=_FORMATS) as image:
                image.load()
                _warn_of_lost_depth(path, image)
                return _read_deep_png(path, image) or pixels_of(image)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file.") from error
    except (IsADirectoryError, PermissionError) as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}.") from error
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise UserError(f"{path}: refused as a decompression bomb: more than {limit:.0f} million pixels.") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: not an image in a known format ({', '.join(_FORMATS)}).") from error
    except Exception as error:  # Decoders raise many kinds, from SyntaxError to struct.error.
        raise UserError(f"{path}: damaged or truncated image: {error}") from error


def pixels_of(image):
    """The pixels of a PIL image, upright, in the layout of `read_pixels`.

    Palettes become RGB or RGBA, CMYK becomes RGB (through its colour profile when it has one), a transparent
    colour becomes an alpha channel.

    Args:
        image: PIL image.

    Returns:
        (pixels, icc_profile), as `read_pixels`.

    Raises:
        UserError: the image's mode has no 8 or 16-bit meaning (floating point, 32-bit integers out of range).
    """
    icc_profile = image.info.get("icc_profile")
    mode = image.mode
    if mode.startswith("I"):
        pixels = np.asarray(image)
        if pixels.size and (pixels.min() < 0 or pixels.max() > 65535):
            raise UserError("32-bit integer pixels; expected 8 or 16 bit.")
        pixels = _with_key_alpha(pixels.astype(np.uint16), image.info.get("transparency"))
    elif mode == "F":
        raise UserError("floating-point pixels; expected 8 or 16 bit.")
    elif mode == "CMYK":
        pixels, icc_profile = np.asarray(_rgb_from_cmyk(image, icc_profile)), None
    else:
        gray = mode in ("1", "L", "LA", "La")
        if image.has_transparency_data or mode in ("La", "RGBa"):
            pixels = np.asarray(image.convert("LA" if gray else "RGBA"))
        else:
            pixels = np.asarray(image.convert("L" if gray else "RGB"))
    return _upright(pixels, image), icc_profile


def _rgb_from_cmyk(image, icc_profile):
    if icc_profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))
            return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):
            pass  # A broken profile: the plain conversion is still an image.
    return image.convert("RGB")


def _warn_of_lost_depth(path, image):
    """Pillow reads a TIFF's 16-bit colour at 8 bit, without a word."""
    if image.format == "TIFF" and image.mode.startswith("RGB") and max(image.tag_v2.get(_TIFF_DEPTH, (8,))) > 8:
        logging.warning("%s: a TIFF with 16-bit colour is read at 8 bit; a PNG keeps its depth", path)


def _read_deep_png(path, image):
    """(pixels, icc_profile) of a PNG with 16-bit colour, which Pillow would read at 8 bit; None for others."""
    if image.format != "PNG":
        return None
    with open(path, "rb") as file:
        header = file.read(26)
        depth, color_type = header[24], header[25]
        if depth != 16 or color_type == 0:
            return None
        file.seek(0)
        width, height, rows, info = png.Reader(file=file).read()
        pixels = np.empty((height, width, info["planes"]), np.uint16)
        for target, row in zip(pixels, rows, strict=True):
            target[...] = np.reshape(row, (width, info["planes"]))
    pixels = _with_key_alpha(pixels, image.info.get("transparency"))
    return _upright(pixels, image), image.info.get("icc_profile")


def _with_key_alpha(pixels, key):
    """16-bit pixels with an alpha channel that is 0 where their colour is `key` (PNG's tRNS chunk)."""
    if key is None:
        return pixels
    colors = pixels.reshape(*pixels.shape[:2], -1)
    alpha = np.where(np.all(colors == np.asarray(key), axis=2), 0, 65535).astype(np.uint16)
    return np.dstack([colors, alpha])


def _upright(pixels, image):
    """Undoes the camera's rotation: EXIF orientation 1 to 8."""
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    if orientation in (5, 6, 7, 8):
        pixels = np.swapaxes(pixels, 0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def image_of(pixels, icc_profile=None):
    """A PIL image of pixels in the layout of `read_pixels`; 16-bit colour, which PIL lacks, is rounded to 8 bit."""
    if pixels.ndim == 3:
        pixels = _to_eight_bit(pixels)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if icc_profile:
        image.info["icc_profile"] = icc_profile
    return image


def check_writable(path, pixels=None):
    """Whether the suffix of `path` names a format that is written here and that can hold `pixels`.

    Args:
        path: of the file to be written; it is not touched.
        pixels: as from `read_pixels`, or None to look at the suffix alone.

    Raises:
        UserError: it is not.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in _WRITTEN:
        raise UserError(f"{path}: cannot write {suffix or 'a file without a suffix'}; expected {' '.join(_WRITTEN)}.")
    name, _, holds_alpha, holds_sixteen = _WRITTEN[suffix]
    if pixels is None:
        return
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4) and not holds_alpha:
        raise UserError(f"{path}: {name} cannot hold the image's transparency; write .png.")
    # Pillow writes 16 bit of gray alone.
    deep = name == "PNG" or (holds_sixteen and pixels.ndim == 2)
    if pixels.dtype == np.uint16 and not deep:
        raise UserError(f"{path}: {name} cannot hold the image's 16 bit; write .png.")


def write_pixels(file, path, pixels, icc_profile=None):
    """Encodes an image without losing depth or transparency.

    Args:
        file: binary file to write to.
        path: tells the format by its suffix: png, tif (LZW), webp (lossless), jpg (quality 95, 4:4:4) or bmp.
        pixels: as from `read_pixels`.
        icc_profile: bytes, the colour profile to embed, or None.

    Raises:
        UserError: the format cannot hold the pixels, or not so many of them.
    """
    check_writable(path, pixels)
    name, options, _, _ = _WRITTEN[os.path.splitext(path)[1].lower()]
    if pixels.dtype == np.uint16 and pixels.ndim == 3:
        _write_deep_png(file, pixels, icc_profile)
        return
    try:
        image_of(pixels).save(file, name, icc_profile=icc_profile, **options)
    except ValueError as error:
        raise UserError(f"{path}: cannot be written as {name}: {error}") from error


def _write_deep_png(file, pixels, icc_profile):
    height, width, channels = pixels.shape
    writer = png.Writer(width, height, greyscale=channels == 2, alpha=channels in (2, 4), bitdepth=16)
    encoded = io.BytesIO()
    writer.write_packed(encoded, (row.astype(">u2").tobytes() for row in pixels))
    chunks = list(png.Reader(bytes=encoded.getvalue()).chunks())
    if icc_profile:
        # A chunk that pypng reads but does not write: name, zero, method 0 (deflate), the compressed profile.
        chunks.insert(1, (b"iCCP", b"profile\0\0" + zlib.compress(icc_profile)))
    png.write_chunks(file, chunks)


def write_image(path, pixels, icc_profile=None):
    """Writes an image as `image_files.write_pixels` does: the file is complete or as it was before."""
    write_atomically(path, lambda file: write_pixels(file, path, pixels, icc_profile))
