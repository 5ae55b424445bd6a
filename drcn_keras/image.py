"""Images as the super-resolution field handles them: MATLAB's bicubic and YCbCr, mod-crop, shave.

NumPy alone. Arrays are (height, width) or (height, width, channels).
"""

from collections.abc import Sequence

import numpy as np

SCALES = (2, 3, 4)  # The enlargements that the field measures.

Factor = float | Sequence[float]  # For both axes, or for height and width.
Window = tuple[slice, slice]  # Rows and columns.
WHOLE = (slice(None), slice(None))


# ITU-R BT.601 as MATLAB's rgb2ycbcr uses it: rows Y, Cb, Cr; columns R, G, B; for values in [0, 1].
_YCBCR_FROM_RGB = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]) / 255.0


_YCBCR_OFFSET = np.array([16.0, 128.0, 128.0]) / 255.0


_RGB_FROM_YCBCR = np.linalg.inv(_YCBCR_FROM_RGB)


def rgb_to_ycbcr(rgb: np.ndarray) -> np.ndarray:
    """MATLAB's rgb2ycbcr. (..., 3) in [0, 1] to float64 (..., 3), Y in [16/255, 235/255]; not rounded."""
    return np.asarray(rgb, np.float64) @ _YCBCR_FROM_RGB.T + _YCBCR_OFFSET


def ycbcr_to_rgb(ycbcr: np.ndarray) -> np.ndarray:
    """The exact inverse of `rgb_to_ycbcr`: (..., 3) to float64 (..., 3), not clipped."""
    return (np.asarray(ycbcr, np.float64) - _YCBCR_OFFSET) @ _RGB_FROM_YCBCR.T


def luma_plane(red: np.ndarray, green: np.ndarray, blue: np.ndarray) -> np.ndarray:
    """Y of MATLAB's rgb2ycbcr from three planes in [0, 1]: float64 in [16/255, 235/255], not rounded."""
    return sum(weight * plane for weight, plane in zip(_YCBCR_FROM_RGB[0], (red, green, blue), strict=True)) + 16 / 255


def brightened(rgb: np.ndarray, change: np.ndarray) -> list[np.ndarray]:
    """The planes of an RGB image after its Y has risen by `change`, with Cb and Cr as they were.

    Y of a gray is 219/255 of it, and its chroma 0: so a change of Y is the same change of red, green and blue.
    """
    return [plane + change * (255 / 219) for plane in rgb]


def luma(image: np.ndarray) -> np.ndarray:
    """The Y that the field measures on.

    Args:
        image: uint8 (height, width) gray, taken as it is, or (height, width, 3) RGB.

    Returns:
        uint8 (height, width): Y of MATLAB's rgb2ycbcr, rounded to 8 bit.
    """
    if image.ndim == 2:
        return image
    return np.round(255.0 * rgb_to_ycbcr(image / 255.0)[..., 0]).astype(np.uint8)


def mod_crop(image: np.ndarray, scale: int) -> np.ndarray:
    """Cuts the bottom and right so that both sides are multiples of `scale`."""
    height, width = image.shape[:2]
    return image[: height - height % scale, : width - width % scale]


def turned(image: np.ndarray, turn: int) -> np.ndarray:
    """One of the square's eight symmetries: `turn` in 0..7, quarter turns and, from 4 on, a flip."""
    image = np.rot90(image, turn % 4)
    return image[:, ::-1] if turn >= 4 else image


def unturned(image: np.ndarray, turn: int) -> np.ndarray:
    """Undoes `turned`."""
    return np.rot90(image[:, ::-1] if turn >= 4 else image, -(turn % 4))


def shave(image: np.ndarray, border: int) -> np.ndarray:
    """Cuts `border` pixels off every side."""
    return image[border : image.shape[0] - border, border : image.shape[1] - border]


def shrink(image: np.ndarray, scale: int) -> np.ndarray:
    """MATLAB's imresize(image, 1/scale, 'bicubic'): antialiased, symmetric border, not clipped."""
    return bicubic(image, 1.0 / scale)


def enlarge(image: np.ndarray, scale: Factor, window: Window = WHOLE) -> np.ndarray:
    """MATLAB's imresize(image, scale, 'bicubic'): symmetric border, not clipped. Arguments as in `bicubic`."""
    return bicubic(image, scale, window)


def bicubic(image: np.ndarray, factor: Factor, window: Window = WHOLE) -> np.ndarray:
    """Resizes as MATLAB's imresize does, with a cubic kernel of a = -0.5 (Keys, 1981).

    Shrinking widens the kernel by 1/factor (antialiasing); the border is mirrored with its edge pixel
    repeated. tf.image.resize and Pillow treat the border differently, which moves PSNR tables.

    Args:
        image: (height, width) or (height, width, channels), any real dtype.
        factor: float > 0, or two of them, for height and width; each side becomes ceil(factor * side).
        window: the rows and columns of the result to compute, two slices; time and memory are those of the window.

    Returns:
        float64, the window of the resized image, not clipped and not rounded.
    """
    image = np.asarray(image)
    taps = []
    for axis, along in enumerate(both(factor)):
        indices, weights = _contributions(image.shape[axis], along, window[axis])
        first = indices.min()
        image = image[(slice(None),) * axis + (slice(first, indices.max() + 1),)]
        taps.append((indices - first, weights))
    resized = image.astype(np.float64)
    for axis, (indices, weights) in enumerate(taps):
        # Rows in one piece: NumPy gathers them several times as fast.
        source = np.ascontiguousarray(np.moveaxis(resized, axis, 0))
        rows = source.reshape(len(source), -1)
        result = np.zeros((len(indices), rows.shape[1]))
        # Tap by tap, so that memory stays that of the result.
        for tap in range(indices.shape[1]):
            result += weights[:, tap, None] * rows[indices[:, tap]]
        resized = np.moveaxis(result.reshape(-1, *source.shape[1:]), 0, axis)
    return resized


def as_scales(scale: int | Sequence[int] | None) -> tuple[int, ...]:
    """One enlargement, several of them or None, as a tuple."""
    if scale is None:
        return ()
    return tuple(scale) if isinstance(scale, Sequence) else (scale,)


def are_scales(scale: int | Sequence[int] | None) -> bool:
    """Whether `scale` is 2, 3 or 4, or several of them, ascending."""
    scales = as_scales(scale)
    return (
        len(scales) > 0 and all(type(s) is int and s in SCALES for s in scales) and list(scales) == sorted(set(scales))
    )


def both(factor: Factor) -> tuple[float, float]:
    """A factor for height and one for width, from one number or two."""
    return tuple(factor) if isinstance(factor, (tuple, list)) else (factor, factor)


def resized_side(length: int, factor: float) -> int:
    """Pixels of a side after `bicubic`: MATLAB's ceil(factor * length), free of the product's rounding error."""
    return int(np.ceil(length * factor - 1e-9))


def _contributions(length, factor, window):
    """For each output position in the window: the input positions (out, taps) it draws on and their weights."""
    stretch = max(1.0, 1.0 / factor)
    support = 4.0 * stretch
    outputs = np.arange(resized_side(length, factor))[window]
    centers = (outputs + 0.5) / factor - 0.5
    first = np.floor(centers - support / 2.0).astype(int)
    positions = first[:, None] + np.arange(int(np.ceil(support)) + 2)
    weights = _cubic((centers[:, None] - positions) / stretch)
    weights /= weights.sum(axis=1, keepdims=True)
    mirrored = np.concatenate([np.arange(length), np.arange(length)[::-1]])
    used = np.any(weights != 0.0, axis=0)
    return mirrored[positions % (2 * length)][:, used], weights[:, used]


def _cubic(x):
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.where(x <= 1.0, near, np.where(x <= 2.0, far, 0.0))
