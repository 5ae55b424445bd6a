"""Low-resolution images as they are: which file of a folder belongs to an original, and whether its size fits."""

import os

import numpy as np

from drcn_keras.errors import UserError
from drcn_keras.image import rgb_to_ycbcr
from drcn_keras.image_files import list_images


def matched(paths: list[str], lr_dir: str, scale: int) -> list[str]:
    """Finds the LR image of every original by its name.

    0801.png, 0801x2.png and 0801_x2.png belong to an original 0801.png, whatever their suffixes; the second is how
    DIV2K names them. Its layout too: where `lr_dir` has a folder X2, that one is searched.

    Args:
        paths: the originals' files.
        lr_dir: folder of the LR images; what belongs to no original is left alone.
        scale: 2, 3 or 4, the x in the names.

    Returns:
        The LR images' paths, in the order of `paths`.

    Raises:
        UserError: no such folder, or an original has no LR image or several.
    """
    inner = os.path.join(lr_dir, f"X{scale}")
    folder = inner if os.path.isdir(inner) else lr_dir
    by_stem = {}
    for path in list_images(folder):
        by_stem.setdefault(_stem(path), []).append(path)
    originals = {_stem(path) for path in paths}
    found, missing = [], []
    for path in paths:
        stem = _stem(path)
        # A name that is another original's own is that one's, not this one's with a scale behind it.
        names = [stem] + [name for name in (f"{stem}x{scale}", f"{stem}_x{scale}") if name not in originals]
        candidates = [candidate for name in names for candidate in by_stem.get(name, [])]
        if len(candidates) > 1:
            raise UserError(f"{path} has several LR images: {' and '.join(candidates)}; expected one.")
        found += candidates
        missing += [] if candidates else [path]
    if missing:
        stem = _stem(missing[0])
        raise UserError(
            f"{missing[0]} has no LR image in {folder} ({len(missing)} of {len(paths)} originals have none); expected "
            f"{stem}, {stem}x{scale} or {stem}_x{scale} with the suffix of an image."
        )
    return found


def check_fit(path: str, lr: np.ndarray, hr: np.ndarray, scale: int) -> None:
    """Raises UserError unless `lr`, read from `path`, has the size of the original `hr` divided by `scale`.

    Args:
        path: names the LR image.
        lr, hr: arrays (height, width) or (height, width, channels).
        scale: a side that is no multiple of it is rounded down, as mod-crop cuts it.
    """
    height, width = (side // scale for side in hr.shape[:2])
    if lr.shape[:2] != (height, width):
        raise UserError(
            f"{path} is {lr.shape[1]} x {lr.shape[0]} pixels; expected {width} x {height}, its original of "
            f"{hr.shape[1]} x {hr.shape[0]} divided by {scale}."
        )


def alike(*images: np.ndarray) -> list[np.ndarray]:
    """All in RGB where one is: the Y of a gray image is the gray itself, that of RGB runs from 16 to 235.

    Args:
        images: uint8 (height, width) or (height, width, 3), an original and its LR images.
    """
    if all(image.ndim == 2 for image in images):
        return list(images)
    return [image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2) for image in images]


def as_input(lr: np.ndarray, channels: int) -> np.ndarray:
    """What a network takes of an LR image: Y, not rounded, or RGB.

    Args:
        lr: uint8 (height, width) or (height, width, 3).
        channels: 1 for Y, 3 for RGB.

    Returns:
        float64 (height, width, channels) in [0, 1].
    """
    pixels = lr / 255.0
    if channels == 1:
        return rgb_to_ycbcr(pixels)[..., :1] if lr.ndim == 3 else pixels[..., None]
    return pixels if lr.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


def _stem(path):
    return os.path.splitext(os.path.basename(path))[0]
