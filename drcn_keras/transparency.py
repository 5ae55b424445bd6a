"""Colour under transparency: what no one sees must not reach what they see."""

import math

import numpy as np

_KERNEL_REACH = 2  # Pixels on either side that bicubic interpolation draws on.
NEIGHBOURS = [(row, column) for row in (0, 1, 2) for column in (0, 1, 2) if (row, column) != (1, 1)]


def reach(halo: int, factor: float) -> int:
    """How many low-resolution pixels around a visible one can change the result where it is visible.

    Twice the bicubic kernel, that of the transparency and that of the colours, and the network's halo between them.
    """
    return 2 * math.ceil(_KERNEL_REACH / min(factor, 1)) + math.ceil(halo / factor)


def extend_colors(pixels: np.ndarray, distance: int) -> np.ndarray:
    """Replaces the colours of transparent pixels by those of the visible ones beside them.

    Enlarging draws on neighbours. What lies under full transparency is arbitrary, black most often, and would come
    out as a dark edge. Multiplying by alpha first would show the network an image that it was not trained on; here
    it sees the visible colours go on. A pixel takes the mean of those neighbours that are more than four times as
    opaque as it is, weighted with what they exceed it by; then the next ring draws on it, with a quarter of
    their weight. Where no such neighbour is, nothing changes: opaque images and soft shadows stay.

    Args:
        pixels: (height, width, 2 or 4), gray or RGB and alpha; uint8, uint16, or floating point in [0, 1].
        distance: pixels to go on for, see `reach`.

    Returns:
        An array of the same shape and dtype; alpha is unchanged.
    """
    largest = np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else 1
    precision = np.result_type(pixels.dtype, np.float32)
    alpha = pixels[..., -1].astype(precision) / precision.type(largest)
    colors = pixels[..., :-1].astype(precision)
    height, width = alpha.shape
    changed = np.zeros(alpha.shape, bool)
    for _ in range(distance):
        # Beyond the border lies nothing: alpha 0, which has no weight.
        alpha_around, colors_around = np.pad(alpha / 4, 1), np.pad(colors, ((1, 1), (1, 1), (0, 0)))
        total, weights, opacity = np.zeros_like(colors), np.zeros_like(alpha), alpha
        for row, column in NEIGHBOURS:
            window = (slice(row, row + height), slice(column, column + width))
            weight = np.maximum(alpha_around[window] - alpha, 0)
            total += weight[..., None] * colors_around[window]
            weights += weight
            opacity = np.maximum(opacity, alpha_around[window])
        taken = weights > 0
        if not taken.any():
            break
        own = alpha[taken, None]
        colors[taken] = (own * colors[taken] + total[taken]) / (own + weights[taken, None])
        changed |= taken
        alpha = opacity
    result = pixels.copy()
    result[changed, :-1] = colors[changed] if pixels.dtype.kind == "f" else np.round(colors[changed])
    return result
