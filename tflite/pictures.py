"""Images on the device: MATLAB's bicubic and YCbCr in NumPy, reading and writing with Pillow.

A small copy of what the training side has, because nothing here may import it; a test holds the two equal.
"""

import contextlib
import io
import os
import sys
import warnings

import numpy as np
from command import check_place
from manifest import CannotRun, write_atomically

# ITU-R BT.601 as MATLAB's rgb2ycbcr uses it, for values in [0, 1].
_YCBCR_FROM_RGB = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]) / 255.0
_YCBCR_OFFSET = np.array([16.0, 128.0, 128.0]) / 255.0
_RGB_FROM_YCBCR = np.linalg.inv(_YCBCR_FROM_RGB)

# What Pillow may open, told by content; the library's own list but for AVIF, which not every Pillow has.
_READ = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_SUBFILE, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLE_FORMAT, _DNG_VERSION = 254, 258, 259, 262, 339, 50706  # Tags.
_YCBCR, _JPEG = 6, 7  # Of Photometric, of Compression.

# Pixels a side, at most.
_LARGEST = {"JPEG": 65500, "WEBP": 16383}

FORMATS = {
    ".bmp": "BMP",
    ".jpeg": "JPEG",
    ".jpg": "JPEG",
    ".png": "PNG",
    ".ppm": "PPM",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
}


def rgb_to_ycbcr(rgb):
    """MATLAB's rgb2ycbcr, not rounded: (..., 3) in [0, 1] to float64 (..., 3)."""
    return np.asarray(rgb, np.float64) @ _YCBCR_FROM_RGB.T + _YCBCR_OFFSET


def ycbcr_to_rgb(ycbcr):
    """The exact inverse of `rgb_to_ycbcr`, not clipped."""
    return (np.asarray(ycbcr, np.float64) - _YCBCR_OFFSET) @ _RGB_FROM_YCBCR.T


def enlarge(image, scale, rows=None, convert=np.float64):
    """MATLAB's imresize(image, scale, 'bicubic'): cubic kernel of a = -0.5, mirrored border, not clipped.

    Args:
        image: (height, width) or (height, width, channels), any real dtype.
        scale: int, at least 1.
        rows: (first, last): only these rows of the result, in memory that follows them; None for all.
        convert: what is done to the pixels before, for instance a change of colours: on the rows in use alone.

    Returns:
        float64 (scale * height or last - first, scale * width, ...).
    """
    first, last = rows or (0, scale * len(image))
    tall = _enlarged(image, scale, np.arange(first, last), convert)
    across = np.arange(scale * image.shape[1])
    return np.moveaxis(_enlarged(np.moveaxis(tall, 1, 0), scale, across, np.asarray), 0, 1)


def enlarge_bytes(image, scale, rows=256):
    """`enlarge` of uint8 pixels to uint8, so many rows of the result at a time."""
    starts = range(0, scale * len(image), rows)
    ends = [min(start + rows, scale * len(image)) for start in starts]
    return np.concatenate([to_bytes(enlarge(image, scale, band, unit)) for band in zip(starts, ends, strict=True)])


def _enlarged(source, scale, positions, convert):
    """Those positions of the enlarged first axis, float64."""
    length = len(source)
    centers = (positions + 0.5) / scale - 0.5
    first = np.floor(centers).astype(int) - 1
    taps = (first + np.arange(4)[:, None]) % (2 * length)
    mirrored = np.where(taps < length, taps, 2 * length - 1 - taps)
    start = mirrored.min()
    values = convert(source[start : mirrored.max() + 1])
    result = 0.0
    for tap in range(4):
        weights = _cubic(centers - first - tap)
        result = result + weights.reshape((-1,) + (1,) * (values.ndim - 1)) * values[mirrored[tap] - start]
    return result


def _cubic(x):
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.where(x <= 1.0, near, np.where(x <= 2.0, far, 0.0))


def unit(image):
    """uint8 to float64 in [0, 1]."""
    return image / 255.0


def luma_of_gray(pixels):
    """Gray uint8 to the luma that MATLAB's rgb2ycbcr gives gray colours: 16/255 to 235/255."""
    return (16.0 + 219.0 / 255.0 * pixels) / 255.0


def gray_of_luma(luma):
    """The inverse of `luma_of_gray`, in [0, 1]."""
    return (255.0 * luma - 16.0) / 219.0


def to_bytes(image):
    """[0, 1] to uint8, clipped and rounded."""
    return np.round(255.0 * np.clip(image, 0.0, 1.0)).astype(np.uint8)


def _pillow():
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise CannotRun("reading and writing images needs Pillow: pip install pillow.") from error
    return Image, ImageOps


def read(path):
    """An image file, upright.

    Returns:
        (pixels, alpha, icc_profile): uint8 (height, width) gray or (height, width, 3) RGB; uint8 (height, width) or
        None; bytes or None. Gray of 16 bit is rounded to 8, colour of 16 bit keeps its high byte, CMYK becomes sRGB.

    Raises:
        CannotRun: no such file, not an image, or one of a kind that is not read right here, by name.
    """
    image_module, operations = _pillow()
    try:
        # Given a path, Pillow maps some files into memory with their sides mixed up.
        with warnings.catch_warnings(), open(path, "rb") as file:
            warnings.simplefilter("ignore", image_module.DecompressionBombWarning)
            image = image_module.open(file, formats=_READ)
            if fault := _fault(image):
                raise CannotRun(f"{path}: {fault} are not read here; make it a PNG.")
            if getattr(image, "n_frames", 1) > 1:
                print(f"{path}: the first of {image.n_frames} frames or pages is taken.", file=sys.stderr)
            image.load()
            return _parts(operations.exif_transpose(image))
    except CannotRun:
        raise
    except FileNotFoundError as error:
        raise CannotRun(f"{path}: no such file.") from error
    except image_module.UnidentifiedImageError as error:
        raise CannotRun(f"{path}: not a readable image; expected one of {', '.join(_READ)}.") from error
    except Exception as error:  # Decoders raise many kinds.
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise CannotRun(f"{path}: not a readable image: {reason}.") from error


def _fault(image):
    """What Pillow would misread without an error, or "". Most of it is TIFF's."""
    # Netpbm's gray of 16 bit is an "I" too.
    if image.mode in ("F", "LAB") or (image.mode == "I" and image.format != "PPM"):
        return {"F": "floating-point pixels", "I": "32-bit integer pixels", "LAB": "Lab colours"}[image.mode]
    if image.format != "TIFF":
        return ""
    tags = image.tag_v2
    depth, white_is_zero = max(tags.get(_BITS, (1,))), tags.get(_PHOTOMETRIC) == 0
    if max(tags.get(_SAMPLE_FORMAT, (1,))) != 1:
        return "signed or floating-point pixels"
    if depth > 8 and (not image.mode.startswith("I;16") or depth != 16 or white_is_zero):
        return f"TIFF pixels of {depth} bit that are no plain 16-bit gray"
    if tags.get(_PHOTOMETRIC) == _YCBCR and tags.get(_COMPRESSION) != _JPEG:
        return "YCbCr colours outside JPEG"
    if tags.get(_SUBFILE, 0) & 1 or _DNG_VERSION in tags:
        return "raw files, or thumbnails in front of the picture,"
    return ""


def _parts(image):
    """`read`'s three of a PIL image."""
    profile = image.info.get("icc_profile")
    alpha = None
    if image.mode.startswith("I"):
        levels = np.asarray(image, np.float64)
        if "transparency" in image.info:
            alpha = np.where(levels == image.info["transparency"], 0, 255).astype(np.uint8)
        return np.round(levels / 257.0).astype(np.uint8), alpha, _fitting(profile, b"GRAY")
    if image.mode == "CMYK":
        return np.asarray(_rgb_of_cmyk(image, profile)), None, None
    gray = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data or image.mode in ("La", "RGBa"):
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
        image = image.convert("LA" if gray else "RGBA")
    pixels = np.asarray(image.convert("L" if gray else "RGB"))
    return pixels, alpha, _fitting(profile, b"GRAY" if gray else b"RGB ")


def _fitting(profile, space):
    """The colour profile where it is for pixels of that space: byte 16 of it says so."""
    return profile if profile and profile[16:20] == space else None


def _rgb_of_cmyk(image, profile):
    if profile:
        from PIL import ImageCms

        with contextlib.suppress(ImageCms.PyCMSError, OSError):
            inks = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            return ImageCms.profileToProfile(image, inks, ImageCms.createProfile("sRGB"), outputMode="RGB")
    return image.convert("RGB")


def same_file(one, other):
    """Whether two paths lead to one file, by links too."""
    return os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)


def check_output(path, overwrite):
    """Refuses, before any work, an output that could not be written.

    Raises:
        CannotRun: unknown suffix, no such folder, a file in the way, or what `check_place` refuses.
    """
    _pillow()
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in FORMATS:
        raise CannotRun(f"{path}: expected a file ending in {' '.join(FORMATS)}.")
    check_place(path)
    _check_free(path, overwrite)


def _check_free(path, overwrite):
    if os.path.exists(path) and not overwrite:
        raise CannotRun(f"{path}: exists; --overwrite replaces it.")


def check_format(path, size, has_alpha):
    """Refuses, before the network runs, an image that the output's format cannot hold: its size, or transparency."""
    kind = FORMATS[os.path.splitext(path)[1].lower()]
    if has_alpha and kind in ("JPEG", "BMP", "PPM"):
        raise CannotRun(f"{path}: the input is transparent and {kind} holds no transparency; use .png.")
    most = _LARGEST.get(kind, max(size))
    if max(size) > most:
        raise CannotRun(
            f"{path}: the result has {size[1]} x {size[0]} pixels; {kind} holds {most} a side at most; use .png."
        )


def write(path, pixels, alpha, icc_profile, overwrite=True):
    """Writes what `read` gives, atomically; JPEG at quality 95 without subsampling, as the library does."""
    image_module, _ = _pillow()
    if alpha is not None:
        pixels = np.dstack([pixels, alpha])
    buffer = io.BytesIO()
    kind = FORMATS[os.path.splitext(path)[1].lower()]
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    if icc_profile:
        options["icc_profile"] = icc_profile
    image_module.fromarray(np.ascontiguousarray(pixels)).save(buffer, kind, **options)
    _check_free(path, overwrite)  # Another run may have been quicker.
    write_atomically(path, buffer.getvalue())
