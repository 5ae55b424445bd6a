"""Colour under transparency: what no one sees must not reach what they see.

A small copy of what the library has, because nothing here may import it; a test holds the two equal.
"""

import math

import numpy as np

_NEIGHBOURS = [(row, column) for row in (0, 1, 2) for column in (0, 1, 2) if (row, column) != (1, 1)]


def reach(halo, scale):
    """How many low-resolution pixels around a visible one can change the result where it is visible."""
    return 4 + math.ceil(halo / scale)


def extend_colors(pixels, alpha, distance):
    """Replaces the colours of transparent pixels by those of the visible ones beside them, ring by ring.

    A pixel takes the mean of those neighbours that are more than four times as opaque as it is, weighted with what
    they exceed it by.

    Args:
        pixels: uint8 (height, width) or (height, width, 3).
        alpha: uint8 (height, width).
        distance: rings.

    Returns:
        uint8 of the shape of `pixels`.
    """
    height, width = alpha.shape
    opacity = alpha.astype(np.float32) / np.float32(255)
    colors = pixels.reshape(height, width, -1).astype(np.float32)
    changed = np.zeros(alpha.shape, bool)
    for _ in range(distance):
        around, colors_around = np.pad(opacity / 4, 1), np.pad(colors, ((1, 1), (1, 1), (0, 0)))
        total, weights, least = np.zeros_like(colors), np.zeros_like(opacity), opacity
        for row, column in _NEIGHBOURS:
            window = (slice(row, row + height), slice(column, column + width))
            weight = np.maximum(around[window] - opacity, 0)
            total += weight[..., None] * colors_around[window]
            weights += weight
            least = np.maximum(least, around[window])
        taken = weights > 0
        if not taken.any():
            break
        own = opacity[taken, None]
        colors[taken] = (own * colors[taken] + total[taken]) / (own + weights[taken, None])
        changed |= taken
        opacity = least
    result = pixels.reshape(colors.shape).copy()
    result[changed] = np.round(colors[changed])
    return result.reshape(pixels.shape)
