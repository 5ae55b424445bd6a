"""Writing pictures without loss of depth or transparency.

Pillow, and two libraries for the one thing that it lacks, 16-bit colour: pypng for PNG, tifffile for TIFF. Arrays are
(height, width) or (height, width, channels).
"""

import io
import os
import struct
import zlib
from typing import BinaryIO

import numpy as np
import png
import tifffile
from absl import logging
from PIL import Image

from drcn_keras.errors import UserError
from drcn_keras.files import write_atomically
from drcn_keras.image_files import eight_bit
from drcn_keras.image_metadata import Metadata, warn_of_brightness

_NONE = Metadata()
_XMP_TAG = 700

# By suffix: Pillow's name of the format, its options, whether it holds transparency, whether 16 bit, its longest side.
_JPEG = ("JPEG", {"quality": 95, "subsampling": 0}, False, False, 65500)
_TIFF = ("TIFF", {"compression": "tiff_lzw"}, True, True, 2**31 - 1)
_WRITTEN: dict[str, tuple[str, dict, bool, bool, int]] = {
    ".png": ("PNG", {}, True, True, 2**31 - 1),
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".webp": ("WEBP", {"lossless": True, "exact": True}, True, False, 16383),
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".jfif": _JPEG,
    ".avif": ("AVIF", {"quality": 95, "subsampling": "4:4:4"}, True, False, 65536),
    ".bmp": ("BMP", {}, False, False, 2**31 - 1),
}


def image_of(pixels: np.ndarray, icc_profile: bytes | None = None) -> Image.Image:
    """A PIL image of pixels in the layout of `read_pixels`; 16-bit colour, which PIL lacks, is rounded to 8 bit."""
    if pixels.ndim == 3:
        pixels = eight_bit(pixels)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if icc_profile:
        image.info["icc_profile"] = icc_profile
    return image


def check_writable(path: str, pixels: np.ndarray | None = None, size: tuple[int, int] | None = None) -> None:
    """Whether the suffix of `path` names a format that is written here and that can hold `pixels`.

    Args:
        path: of the file to be written; it is not touched.
        pixels: as from `read_pixels`, for their kind; None to look at the suffix alone.
        size: (height, width) of what will be written; None: that of `pixels`.

    Raises:
        UserError: it is not.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in _WRITTEN:
        raise UserError(f"{path}: cannot write {suffix or 'a file without a suffix'}; expected {' '.join(_WRITTEN)}.")
    name, _, holds_alpha, holds_sixteen, longest = _WRITTEN[suffix]
    if pixels is None:
        return
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4) and not holds_alpha:
        raise UserError(f"{path}: {name} cannot hold the image's transparency; write .png.")
    if pixels.dtype == np.uint16 and not holds_sixteen:
        raise UserError(f"{path}: {name} cannot hold the image's 16 bit; write .png.")
    height, width = size or pixels.shape[:2]
    if max(height, width) > longest:
        raise UserError(
            f"{path}: cannot be written as {name}: {width} x {height} pixels; it holds {longest} on a side. Write .png."
        )


def write_pixels(
    file: BinaryIO, path: str, pixels: np.ndarray, icc_profile: bytes | None = None, metadata: Metadata = _NONE
) -> None:
    """Encodes an image without losing depth or transparency.

    Args:
        file: binary file to write to.
        path: tells the format by its suffix: png, tif (LZW; uncompressed with EXIF), webp (lossless), jpg (quality 95,
            4:4:4), avif (quality 95, 4:4:4) or bmp.
        pixels: as from `read_pixels`.
        icc_profile: bytes, the colour profile to embed, or None.
        metadata: what of the source's to keep, where the format holds it.

    Raises:
        UserError: the format cannot hold the pixels, or not so many of them.
    """
    check_writable(path, pixels)
    name, options, _, _, _ = _WRITTEN[os.path.splitext(path)[1].lower()]
    deep = pixels.dtype == np.uint16 and pixels.ndim == 3
    if name != "PNG":
        warn_of_brightness(path, metadata, icc_profile)
    if name == "TIFF" and deep:
        _write_deep_tiff(file, pixels, icc_profile, metadata)
        return
    chunks = _png_chunks(metadata) if name == "PNG" else []
    try:
        if deep:
            _write_deep_png(file, pixels, icc_profile, chunks)
        elif chunks:
            encoded = io.BytesIO()
            image_of(pixels).save(encoded, name, icc_profile=icc_profile, **options)
            _write_chunks(file, encoded, chunks)
        else:
            image_of(pixels).save(
                file, name, icc_profile=icc_profile, **(options | _metadata_options(name, path, metadata))
            )
    except ValueError as error:
        raise UserError(f"{path}: cannot be written as {name}: {error}") from error


def _metadata_options(name, path, metadata):
    """What Pillow's writer of a format takes."""
    options = {} if name in ("WEBP", "AVIF") or not metadata.dpi else {"dpi": metadata.dpi}
    if name == "BMP":
        if metadata.exif or metadata.xmp:
            logging.warning("%s: BMP cannot hold the source's EXIF and XMP; write .png", path)
        return options
    exif = Image.Exif()
    if metadata.exif:
        exif.load(metadata.exif)
        options["exif"] = exif
        if name == "TIFF":
            options["compression"] = "raw"  # Of a compressed one Pillow cannot write EXIF's inner directories.
    if metadata.xmp and name == "TIFF":
        exif[_XMP_TAG] = metadata.xmp
        options["exif"] = exif
    elif metadata.xmp:
        options["xmp"] = metadata.xmp
    return options


def _png_chunks(metadata):
    """The chunks, (name, data), that hold the metadata in a PNG."""
    chunks = list(metadata.chunks)
    if metadata.dpi:
        # Pixels a metre.
        chunks.append((b"pHYs", struct.pack(">IIB", *(round(value / 0.0254) for value in metadata.dpi), 1)))
    if metadata.exif:
        chunks.append((b"eXIf", metadata.exif.removeprefix(b"Exif\0\0")))
    if metadata.xmp:
        chunks.append((b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + metadata.xmp))
    return chunks


def _write_chunks(file, encoded, chunks):
    """Writes a PNG with more chunks, behind its header."""
    header, *others = png.Reader(bytes=encoded.getvalue()).chunks()
    png.write_chunks(file, [header, *chunks, *others])


def _write_deep_png(file, pixels, icc_profile, chunks):
    height, width, channels = pixels.shape
    writer = png.Writer(width, height, greyscale=channels == 2, alpha=channels in (2, 4), bitdepth=16)
    encoded = io.BytesIO()
    writer.write_packed(encoded, (row.astype(">u2").tobytes() for row in pixels))
    if icc_profile:
        # A chunk that pypng reads but does not write: name, zero, method 0 (deflate), the compressed profile.
        chunks = [(b"iCCP", b"profile\0\0" + zlib.compress(icc_profile)), *chunks]
    _write_chunks(file, encoded, chunks)


def _write_deep_tiff(file, pixels, icc_profile, metadata):
    channels = pixels.shape[2]
    if metadata.exif:
        logging.warning("TIFF with 16-bit colour is written without the source's EXIF; a PNG holds it")
    xmp = [(_XMP_TAG, 1, len(metadata.xmp), metadata.xmp, True)] if metadata.xmp else []
    resolution = {"resolution": metadata.dpi, "resolutionunit": "INCH"} if metadata.dpi else {}
    encoded = io.BytesIO()  # tifffile wants a file's name, and one that is written atomically has none.
    tifffile.imwrite(
        encoded,
        pixels,
        photometric="rgb" if channels >= 3 else "minisblack",
        planarconfig="contig",
        extrasamples=["unassalpha"] if channels in (2, 4) else None,
        compression="lzw",
        predictor=True,
        iccprofile=icc_profile,
        extratags=xmp,
        metadata=None,
        software=False,
        **resolution,
    )
    file.write(encoded.getvalue())


def write_image(path: str, pixels: np.ndarray, icc_profile: bytes | None = None, metadata: Metadata = _NONE) -> None:
    """Writes an image as `write_pixels` does: the file is complete or as it was before."""
    write_atomically(path, lambda file: write_pixels(file, path, pixels, icc_profile, metadata))
