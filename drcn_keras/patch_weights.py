"""Which patches a training draws and how much each weighs, by the squared error that bicubic enlargement leaves.

All of it is ours, not the paper's.
"""

from typing import Any

import numpy as np

# Added to every patch's error by which it may be drawn, of their mean: with the power 0.75 no weight is above 10.
_FLAT_SHARE = 0.05
# Of its scale's mean error, the least that a photograph's counts as: no weight is above twenty times its scale's.
_LEAST_ERROR = 0.05


def errors_of(pair: Any, patch_size: int, stride: int) -> tuple[float, np.ndarray]:
    """What the ILR of a `data.Pair` leaves wrong, from one enlargement of it.

    Returns:
        (the mean squared error of the whole image; the squared error summed over each patch of the grid, row by row,
        float32).
    """
    squared = np.square(pair.ilr - pair.hr).astype(np.float64)
    errors = squared.sum(axis=2)
    # Summed over rows and columns from the corner: a patch is a difference of four of its places.
    sums = np.pad(errors, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    rows = slice(0, sums.shape[0] - patch_size, stride), slice(patch_size, None, stride)
    columns = slice(0, sums.shape[1] - patch_size, stride), slice(patch_size, None, stride)
    top, bottom = (sums[part] for part in rows)
    left, right = columns
    patches = bottom[:, right] - bottom[:, left] - top[:, right] + top[:, left]
    return float(squared.mean()), patches.astype(np.float32).ravel()


def scale_weights(errors: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """For each image the inverse of its scale's mean squared error, times the mean of the scales' errors.

    Args:
        errors: of each image its mean squared error, (images,).
        scales: of each image its scale, (images,).

    Returns:
        (images,): the scales count alike.
    """
    means, of = _means(errors, scales)
    return means.mean() / means[of]


def image_weights(errors: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """As `scale_weights`, by each image's own error instead of its scale's, but never above twenty times that.

    The loss is nearer to the mean PSNR so, in which an image counts by the logarithm of its error.
    """
    means, of = _means(errors, scales)
    return means.mean() / np.maximum(errors, _LEAST_ERROR * means[of])


def _means(errors, scales):
    """The mean error of each scale, ascending, and the place among them of each image's."""
    found, of = np.unique(scales, return_inverse=True)
    # Of flat images alone there is no error to divide by.
    return np.array([max(errors[scales == scale].mean(), 1e-12) for scale in found]), of


def hardest(errors: np.ndarray, scales: np.ndarray, skip_flat: float) -> np.ndarray:
    """The indices of the patches that stay where of each scale the same share is left out, ascending."""
    kept = []
    for scale in np.unique(scales):
        ranked = np.flatnonzero(scales == scale)
        ranked = ranked[np.argsort(errors[ranked], kind="stable")]
        kept.append(ranked[int(skip_flat * len(ranked)) :])
    return np.sort(np.concatenate(kept))


def shares(errors: np.ndarray, importance: float) -> np.ndarray:
    """The probability of each patch to be drawn, which grows with the power `importance` of its error."""
    grown = np.maximum(errors + _FLAT_SHARE * errors.mean(), 1e-12) ** importance
    return grown / grown.sum()
