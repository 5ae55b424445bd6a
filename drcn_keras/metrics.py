"""PSNR and SSIM as the super-resolution field reports them: on 8-bit Y, the border left out."""

from collections.abc import Sequence

import numpy as np
from skimage.metrics import structural_similarity

from drcn_keras.image import luma, shave

# SSIM's Gaussian window of sigma 1.5 is 11 pixels wide.
SSIM_WINDOW = 11


def eight_bit(image: np.ndarray) -> np.ndarray:
    """[0, 1] to uint8 0 to 255: clipped and rounded, never truncated. Any shape; channels-last of 1 is dropped."""
    image = np.asarray(image, np.float64)
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    return np.round(255.0 * np.clip(image, 0.0, 1.0)).astype(np.uint8)


def comparable(image: np.ndarray, scale: int) -> np.ndarray:
    """What the field compares: 8-bit Y without a border of `scale` pixels.

    Args:
        image: float (height, width), (height, width, 1) Y or gray, or (height, width, 3) RGB, in [0, 1].
        scale: int, the enlargement.

    Returns:
        uint8 (height - 2*scale, width - 2*scale).
    """
    return shave(luma(eight_bit(image)), scale)


def measured_psnr(hr: np.ndarray, sr: np.ndarray, scale: int) -> float:
    """PSNR under the field's protocol: clipped, rounded to 8 bit, on Y, `scale` border pixels left out.

    Args:
        hr: float (height, width), (height, width, 1) or (height, width, 3) in [0, 1], the original.
        sr: float, the same size, about [0, 1]: need not be clipped.
        scale: int, the enlargement.

    Returns:
        PSNR in dB, a float.
    """
    return psnr(comparable(hr, scale), comparable(sr, scale))


def psnr(hr: np.ndarray, sr: np.ndarray) -> float:
    """Peak signal-to-noise ratio.

    Args:
        hr, sr: arrays of one shape with values 0 to 255.

    Returns:
        10*log10(255^2 / mean squared error) in dB, a float; infinity when they are equal.

    Raises:
        ValueError: the shapes differ or there is no pixel.
    """
    hr, sr = np.asarray(hr, np.float64), np.asarray(sr, np.float64)
    if hr.shape != sr.shape or hr.size == 0:
        raise ValueError(f"psnr compares two images of one shape with pixels; received {hr.shape} and {sr.shape}.")
    error = np.mean(np.square(hr - sr))
    return float(10.0 * np.log10(255.0**2 / error)) if error > 0 else float("inf")


def mean_psnr(rows: Sequence[Sequence[float]] | np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Means that one flat image, restored exactly, does not make infinite.

    Args:
        rows: (images, methods), PSNR in dB; at least one image.

    Returns:
        (means, infinite). means: float64 (methods,), over the images whose row has no infinity, so that every method
        is averaged over the same images; over all of them where each row has one. infinite: list of the indices of
        the images with an infinity.
    """
    rows = np.asarray(rows, np.float64)
    exact = np.isposinf(rows).any(axis=1)
    return rows[~exact if not exact.all() else ...].mean(axis=0), np.flatnonzero(exact).tolist()


def ssim(hr: np.ndarray, sr: np.ndarray) -> float:
    """Structural similarity (Wang et al., 2004) with its authors' settings: Gaussian window, sigma 1.5.

    Args:
        hr, sr: (height, width) with values 0 to 255, of one shape.

    Returns:
        The mean SSIM, at most 1.

    Raises:
        ValueError: the shapes differ, or a side is under 11 pixels, the window's width.
    """
    return float(
        structural_similarity(hr, sr, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255)
    )
