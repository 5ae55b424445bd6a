"""Reading pictures without loss of depth or transparency, whatever their kind; one that is not understood is refused.

Pillow, and others for what it reads wrongly or at 8 bit: tifffile for TIFF, pypng for PNG with 16-bit colour. Arrays
are (height, width) or (height, width, channels).
"""

import collections
import contextlib
import functools
import os
import warnings
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import png
import tifffile
from absl import logging
from PIL import ExifTags, Image, UnidentifiedImageError

from drcn_keras import netpbm, tiff
from drcn_keras.color import fitting_profile, rgb_from_lab, rgb_of
from drcn_keras.errors import UserError

# Of the files of a folder; their content decides once they are open.
SUFFIXES = (".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

# What Pillow may open, told by content. Formats that start other programs (EPS) are left out.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "WEBP")

_LONGEST_HEADER = 1 << 16


def list_images(folder: str, recursive: bool = False, quiet: bool = False) -> list[str]:
    """The image files of a folder, by suffix; what is left out is counted in a warning. Hidden files do not count.

    Args:
        folder: path.
        recursive: the files of its subfolders too.
        quiet: no warning.

    Returns:
        list of paths, sorted by name, never empty.

    Raises:
        UserError: no such folder, or no image in it.
    """
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: expected a folder of images; there is {_what_is_at(folder)}.")
    paths: list[str] = []
    left_out: collections.Counter[str] = collections.Counter()
    for place, subfolders, names in os.walk(folder):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            if name.lower().endswith(SUFFIXES):
                paths.append(os.path.join(place, name))
            else:
                left_out[os.path.splitext(name)[1].lower() or "without a suffix"] += 1
        if not recursive:
            left_out["folders"] += len(subfolders)
            break
    if not quiet:
        _warn_of_files(folder, left_out)
    if not paths:
        raise UserError(f"{folder}: no image in this folder; expected files ending in {' '.join(SUFFIXES)}.")
    return paths


def image_folders(folder: str) -> list[str]:
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


def _warn_of_files(folder, left_out):
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()) if count)
    if kinds:
        _warn_once(f"{folder}: left out {kinds}")


@functools.cache
def _warn_once(text):
    """Commands list a folder when they check it and again when they work on it."""
    logging.warning(text)


def read_image(path: str) -> np.ndarray:
    """An image as training and measuring take it: 8 bit, gray or RGB, upright, without transparency.

    Args:
        path: of a file: PNG, JPEG, TIFF, WebP, AVIF, BMP, GIF, PPM; the first frame or page.

    Returns:
        uint8 (height, width) for a gray image, else (height, width, 3) RGB. 16 bit is rounded to 8.

    Raises:
        UserError: the file is missing, damaged, no image, or too large (see `read_pixels`).
    """
    pixels, _ = read_pixels(path)
    if pixels.ndim == 3:
        colors = 3 if pixels.shape[2] >= 3 else 1
        pixels = pixels[..., 0] if colors == 1 else pixels[..., :3]
    return np.ascontiguousarray(eight_bit(pixels))


def eight_bit(pixels: np.ndarray) -> np.ndarray:
    """uint8 of uint8 or uint16, rounded."""
    return np.round(pixels / 257.0).astype(np.uint8) if pixels.dtype == np.uint16 else pixels


def read_pixels(path: str) -> tuple[np.ndarray, bytes | None]:
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
        with open(path, "rb") as file:
            return pixels_in(file, path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file.") from error
    except (IsADirectoryError, PermissionError) as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}.") from error


def pixels_in(file: BinaryIO, name: str) -> tuple[np.ndarray, bytes | None]:
    """What `read_pixels` returns, of an open file or of bytes in memory; errors call it `name`."""
    try:
        with warnings.catch_warnings():
            # Pillow warns at half of the size that it refuses, and about harmless metadata.
            warnings.simplefilter("ignore")
            pixels, profile, orientation = _decoded(file, name)
            return upright(pixels, orientation), fitting_profile(profile, pixels)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise UserError(f"{name}: refused as a decompression bomb: more than {limit:.0f} million pixels.") from error
    except UnidentifiedImageError as error:
        known = ", ".join(sorted((*_FORMATS, "TIFF")))
        raise UserError(f"{name}: not an image in a known format ({known}).") from error
    except Exception as error:  # Decoders raise many kinds, from SyntaxError to struct.error.
        raise UserError(f"{name}: damaged or truncated image: {error}") from error


def _decoded(file, name):
    """(pixels as they lie in the file, icc_profile, orientation)."""
    start = file.read(_LONGEST_HEADER)
    file.seek(0)
    if tiff.is_tiff(start):
        with tifffile.TiffFile(file) as pages:
            page, *others = tiff.pictures(pages)
            _warn_of_frames(name, len(others), "pages")
            _check_size(page.imagewidth, page.imagelength)
            return tiff.page_pixels(page)
    if size := netpbm.deep_size(start):
        _check_size(*size)
        return netpbm.deep_pixels(file.read()), None, 1
    # Given a path, Pillow maps some files into memory with their sides mixed up.
    with Image.open(file, formats=_FORMATS) as image:
        _warn_of_frames(name, getattr(image, "n_frames", 1) - 1, "frames")
        image.load()
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        deep = _deep_png(file, start, image)
        if deep is not None:
            return deep, image.info.get("icc_profile"), orientation
        _warn_of_lost_depth(start, image)
        return *_pixels_as_stored(image), orientation


def _warn_of_frames(name, others, kind):
    if others:
        _warn_once(f"{name}: the first of {others + 1} {kind} is taken, {others} are left out")


@contextlib.contextmanager
def pixel_limit(megapixels: float | None) -> Iterator[None]:
    """Inside, images of up to `megapixels` million pixels are read; None: of what Pillow's MAX_IMAGE_PIXELS says."""
    before = Image.MAX_IMAGE_PIXELS
    try:
        if megapixels is not None:
            Image.MAX_IMAGE_PIXELS = int(megapixels * 1e6 / 2)  # It refuses twice as many.
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _check_size(width, height):
    # None, Pillow's own way to lift the limit, lifts it here too.
    if Image.MAX_IMAGE_PIXELS is not None and width * height > 2 * Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError


def pixels_of(image: Image.Image) -> tuple[np.ndarray, bytes | None]:
    """The pixels of a PIL image, upright, in the layout of `read_pixels`.

    Palettes become RGB or RGBA, CMYK becomes RGB (through its colour profile when it has one) and so does Lab, a
    transparent colour becomes an alpha channel.

    Args:
        image: PIL image.

    Returns:
        (pixels, icc_profile), as `read_pixels`.

    Raises:
        UserError: the image's mode has no 8 or 16-bit meaning (floating point, 32-bit integers out of range).
    """
    pixels, profile = _pixels_as_stored(image)
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    return upright(pixels, orientation), fitting_profile(profile, pixels)


def _pixels_as_stored(image):
    """(pixels, icc_profile), not turned."""
    icc_profile = image.info.get("icc_profile")
    mode = image.mode
    if mode.startswith("I"):
        pixels = np.asarray(image)
        if pixels.size and (pixels.min() < 0 or pixels.max() > 65535):
            raise UserError("32-bit integer pixels; expected 8 or 16 bit.")
        return _with_key_alpha(pixels.astype(np.uint16), image.info.get("transparency")), icc_profile
    if mode == "F":
        raise UserError("floating-point pixels; expected 8 or 16 bit.")
    if mode == "CMYK":
        return np.asarray(rgb_of(image, icc_profile)), None
    if mode == "LAB":
        return rgb_from_lab(np.asarray(image), signed=True), None
    gray = mode in ("1", "L", "LA", "La")
    if image.has_transparency_data or mode in ("La", "RGBa"):
        return np.asarray(image.convert("LA" if gray else "RGBA")), icc_profile
    return np.asarray(image.convert("L" if gray else "RGB")), icc_profile


def _warn_of_lost_depth(start, image):
    """Pillow reads AVIF of 10 and 12 bit at 8 bit, without a word."""
    configuration = start.find(b"av1C")
    if image.format == "AVIF" and configuration >= 0 and start[configuration + 6] & 0x40:
        logging.warning("an AVIF of more than 8 bit is read at 8 bit")


def _deep_png(file, start, image):
    """The pixels of a PNG with 16-bit colour, which Pillow would read at 8 bit; None for others."""
    # Its depth and its kind of colour; 0 is gray.
    if image.format != "PNG" or start[24] != 16 or start[25] == 0:
        return None
    file.seek(0)
    width, height, rows, info = png.Reader(file=file).read()
    pixels = np.empty((height, width, info["planes"]), np.uint16)
    for target, row in zip(pixels, rows, strict=True):
        target[...] = np.reshape(row, (width, info["planes"]))
    return _with_key_alpha(pixels, image.info.get("transparency"))


def _with_key_alpha(pixels, key):
    """16-bit pixels with an alpha channel that is 0 where their colour is `key` (PNG's tRNS chunk)."""
    if key is None:
        return pixels
    colors = pixels.reshape(*pixels.shape[:2], -1)
    alpha = np.where(np.all(colors == np.asarray(key), axis=2), 0, 65535).astype(np.uint16)
    return np.dstack([colors, alpha])


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undoes the camera's rotation: EXIF orientation 1 to 8."""
    if orientation in (5, 6, 7, 8):
        pixels = np.swapaxes(pixels, 0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
