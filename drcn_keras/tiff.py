"""TIFF read by tifffile: Pillow misreads several of its layouts without an error, and 16-bit colour at 8 bit."""

import numpy as np
import tifffile
from absl import logging
from PIL import Image

from drcn_keras.color import rgb_from_cmyk, rgb_from_lab
from drcn_keras.errors import UserError

_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # Little and big endian, classic and BigTIFF.
_DNG_VERSION = 50706
_ORIENTATION = 274
_PROFILE = 34675
_REDUCED, _MASK = 1, 4  # Bits of NewSubfileType.
_PREMULTIPLIED, _ALPHA = 1, 2  # Of ExtraSamples.
_COLORS = {
    tifffile.PHOTOMETRIC.MINISWHITE: 1,
    tifffile.PHOTOMETRIC.MINISBLACK: 1,
    tifffile.PHOTOMETRIC.RGB: 3,
    tifffile.PHOTOMETRIC.PALETTE: 1,
    tifffile.PHOTOMETRIC.SEPARATED: 4,
    tifffile.PHOTOMETRIC.YCBCR: 3,
    tifffile.PHOTOMETRIC.CIELAB: 3,
    tifffile.PHOTOMETRIC.ICCLAB: 3,
}


def is_tiff(start):
    """Whether a file that starts with these bytes is a TIFF."""
    return start[:4] in _SIGNATURES


def pictures(tiff):
    """The pages of a `tifffile.TiffFile` that are pictures of their own, not thumbnails or masks of others.

    Raises:
        UserError: there is none, as in a camera's raw file.
    """
    pages = [page for page in tiff.pages if not page.subfiletype & (_REDUCED | _MASK)]
    if not pages and len(tiff.pages) == 1 and not tiff.pages[0].subifds:
        pages = [tiff.pages[0]]
    if not pages or _DNG_VERSION in pages[0].tags:
        raise UserError("a camera's raw file; expected a developed photograph.")
    return pages


def page_pixels(page):
    """The pixels of one page as they lie in the file, not turned upright.

    Args:
        page: `tifffile.TiffPage`.

    Returns:
        (pixels, icc_profile, orientation): as `image_files.read_pixels`, and EXIF's 1 to 8.

    Raises:
        UserError: the page has no 8 or 16-bit meaning here; the text names its kind.
    """
    _check(page)
    profile = page.tags.valueof(_PROFILE)
    orientation = page.tags.valueof(_ORIENTATION, 1)
    samples = np.moveaxis(page.asarray(squeeze=False)[:, 0], 0, -1)
    samples = samples.reshape(page.imagelength, page.imagewidth, -1)
    count = _COLORS[page.photometric]
    colors, alpha = _split(samples, count, page)
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
        colors = _looked_up(colors[..., 0], page.colormap)
        alpha = None if alpha is None else _stretched(alpha, page)
    else:
        colors = _stretched(colors, page)
        alpha = None if alpha is None else _stretched(alpha, page)
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        colors = np.iinfo(colors.dtype).max - colors
    elif page.photometric == tifffile.PHOTOMETRIC.SEPARATED:
        colors, profile = rgb_from_cmyk(colors, profile), None
    elif page.photometric == tifffile.PHOTOMETRIC.YCBCR and page.compression != tifffile.COMPRESSION.JPEG:
        colors = np.asarray(Image.fromarray(colors, "YCbCr").convert("RGB"))
    elif page.photometric in (tifffile.PHOTOMETRIC.CIELAB, tifffile.PHOTOMETRIC.ICCLAB):
        colors, profile = rgb_from_lab(colors, page.photometric == tifffile.PHOTOMETRIC.CIELAB), None
    if alpha is not None:
        colors = np.concatenate([colors, alpha.astype(colors.dtype)], axis=2)
    return colors[..., 0] if colors.shape[2] == 1 else colors, profile, orientation


def _check(page):
    """Raises UserError for what is not read here."""
    kind = page.photometric
    if kind not in _COLORS:
        raise UserError(f"a TIFF whose pixels are {getattr(kind, 'name', kind)}; expected gray, RGB, CMYK or Lab.")
    if page.sampleformat == tifffile.SAMPLEFORMAT.IEEEFP:
        raise UserError("floating-point pixels; expected 8 or 16 bit.")
    unsigned = page.sampleformat in (tifffile.SAMPLEFORMAT.UINT, tifffile.SAMPLEFORMAT.VOID)
    if not unsigned and kind != tifffile.PHOTOMETRIC.CIELAB:
        raise UserError("signed or complex pixels; expected 8 or 16 bit without a sign.")
    jpeg = page.compression == tifffile.COMPRESSION.JPEG
    if kind == tifffile.PHOTOMETRIC.YCBCR and not jpeg and (page.subsampling != (1, 1) or page.bitspersample != 8):
        raise UserError("YCbCr with chroma of its own size or depth, outside JPEG; expected RGB.")
    if isinstance(page.bitspersample, tuple):
        raise UserError(f"channels of different depth, {page.bitspersample} bits; expected 8 or 16 bit.")
    if page.imagedepth != 1:
        raise UserError(f"a volume of {page.imagedepth} slices; expected an image.")
    size = page.parent.filehandle.size
    if any(
        count == 0 or offset + count > size for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)
    ):
        raise ValueError("some of its pixels lie beyond the file's end")


def _split(samples, count, page):
    """(colors, alpha or None): alpha undone where the colours were multiplied by it; other channels are dropped."""
    if samples.shape[2] < count:
        raise ValueError(f"{samples.shape[2]} channels where {count} are needed")
    kinds = tuple(page.extrasamples)[: samples.shape[2] - count]
    colors, alpha, dropped = samples[..., :count], None, samples.shape[2] - count
    for index, kind in enumerate(kinds):
        if kind in (_PREMULTIPLIED, _ALPHA):
            alpha, dropped = samples[..., count + index : count + index + 1], dropped - 1
            if kind == _PREMULTIPLIED:
                largest = 2**page.bitspersample - 1
                divided = np.round(colors * float(largest) / np.maximum(alpha, 1))
                colors = np.minimum(divided, largest).astype(colors.dtype)
            break
    if dropped:
        logging.warning("%s: %d extra channels without a meaning are left out", page.parent.filename, dropped)
    return colors, alpha


def _stretched(samples, page):
    """Samples of any depth as uint8 (up to 8 bits) or uint16."""
    bits = page.bitspersample
    if bits > 16:
        if samples.size and (samples.min() < 0 or samples.max() > 65535):
            raise UserError(f"{bits}-bit integer pixels; expected 8 or 16 bit.")
        return samples.astype(np.uint16)
    dtype = np.uint8 if bits <= 8 else np.uint16
    if bits in (8, 16):
        return samples.view(dtype) if samples.dtype.kind == "i" else samples.astype(dtype, copy=False)
    return np.round(samples * (np.iinfo(dtype).max / (2**bits - 1))).astype(dtype)


def _looked_up(indices, colormap):
    """RGB, 8 bit, of a palette. Some writers put 8-bit values where TIFF wants 16; libtiff tells them so too."""
    levels = colormap >> 8 if colormap.max() > 255 else colormap
    return np.moveaxis(levels.astype(np.uint8), 0, -1)[indices]
