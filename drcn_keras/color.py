"""Colour spaces that are not written: CMYK and Lab become sRGB, through a colour profile where there is one."""

import io

import numpy as np
from absl import logging
from PIL import Image, ImageCms

# What an ICC profile says at byte 16 of the pixels it is for.
_SPACES = {b"GRAY": 1, b"RGB ": 3}

# The D50 white of ICC profiles, and linear sRGB of XYZ under it, adapted after Bradford.
_WHITE = np.array([0.9642, 1.0, 0.8249])
_RGB_FROM_XYZ = np.linalg.inv(
    [[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169], [0.0139322, 0.0971045, 0.7141733]]
)


def fitting_profile(icc_profile: bytes | None, pixels: np.ndarray) -> bytes | None:
    """The colour profile where it is for pixels like these, gray or RGB, with or without alpha; None elsewhere.

    Args:
        icc_profile: bytes or None.
        pixels: (height, width) or (height, width, 2 to 4).
    """
    if not icc_profile:
        return None
    colors = 3 if pixels.ndim == 3 and pixels.shape[2] >= 3 else 1
    if _SPACES.get(icc_profile[16:20]) != colors:
        space = icc_profile[16:20].decode("ascii", "replace").strip()
        logging.warning("a colour profile for %s does not go with these pixels and is left out", space or "nothing")
        return None
    return icc_profile


def rgb_from_cmyk(inks, icc_profile=None):
    """sRGB of CMYK.

    Args:
        inks: (height, width, 4), uint8, or uint16, which is rounded to 8 bit; the largest value is full ink.
        icc_profile: bytes of the inks' profile, or None.

    Returns:
        uint8 (height, width, 3).
    """
    if inks.dtype == np.uint16:
        logging.warning("CMYK with 16 bit is read at 8 bit")
        inks = np.round(inks / 257.0).astype(np.uint8)
    image = Image.frombytes("CMYK", inks.shape[1::-1], np.ascontiguousarray(inks).tobytes())
    return np.asarray(rgb_of(image, icc_profile))


def rgb_of(image, icc_profile=None):
    """A PIL image in CMYK as one in RGB."""
    if icc_profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))
            return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):
            pass  # A broken profile: the plain conversion is still an image.
    return image.convert("RGB")


def rgb_from_lab(lab, signed):
    """sRGB of CIE L*a*b* under D50, clipped.

    Args:
        lab: (height, width, 3), uint8 or uint16; L* over the whole range, a* and b* in levels of 8 bit from -128 on.
        signed: a* and b* are two's complement (TIFF's CIELab), else offset by half the range (ICCLab).

    Returns:
        (height, width, 3) of the dtype of `lab`.
    """
    largest, level = np.iinfo(lab.dtype).max, 256 if lab.dtype == np.uint16 else 1
    chroma = lab[..., 1:].astype(np.float64)
    half = 128 * level
    chroma = np.where(chroma >= half, chroma - 2 * half, chroma) if signed else chroma - half
    y = (100.0 * lab[..., 0] / largest + 16) / 116
    cubes = np.stack([y + chroma[..., 0] / level / 500, y, y - chroma[..., 1] / level / 200], axis=2)
    xyz = _WHITE * np.where(cubes > 6 / 29, cubes**3, 3 * (6 / 29) ** 2 * (cubes - 4 / 29))
    linear = np.clip(xyz @ _RGB_FROM_XYZ.T, 0, 1)
    rgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(largest * rgb).astype(lab.dtype)
