"""Animations: every frame of a GIF, an APNG or a WebP, as APNG or WebP."""

import dataclasses
import io
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from drcn_keras.color import fitting_profile
from drcn_keras.errors import UserError
from drcn_keras.image_files import upright
from drcn_keras.image_writing import image_of

_READ = ("GIF", "PNG", "WEBP")
# Whole frames that replace each other, without loss.
_WRITTEN: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {"disposal": 0, "blend": 0}),
    ".webp": ("WEBP", {"lossless": True, "exact": True}),
}


@dataclasses.dataclass(frozen=True)
class Animation:
    """frames: uint8 (height, width, 3 or 4), of one shape. durations: milliseconds. loop: plays, 0 without end."""

    frames: Sequence[np.ndarray]
    durations: Sequence[float]
    loop: int
    icc_profile: bytes | None

    def mapped(self, function: Callable[[np.ndarray], np.ndarray]) -> "Animation":
        """The animation with `function` applied to every frame."""
        return dataclasses.replace(self, frames=[function(frame) for frame in self.frames])


def read_animation(contents: bytes, name: str, target: str) -> Animation | None:
    """The animation of a file; None where it is none, or `target` names a format that holds none.

    Raises:
        UserError: a frame is damaged; the text calls the file `name`.
    """
    if os.path.splitext(target)[1].lower() not in _WRITTEN:
        return None
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(contents), formats=_READ) as image:
            count = getattr(image, "n_frames", 1)
            # An APNG may have a still picture of its own beside its frames.
            if count == 1 or getattr(image, "default_image", False):
                return None
            loop, profile = image.info.get("loop", 1), image.info.get("icc_profile")
            frames, durations = [], []
            for index in range(count):
                image.seek(index)
                frames.append(_frame(image))
                durations.append(float(image.info.get("duration", 0)))
    except (UnidentifiedImageError, Image.DecompressionBombError):
        return None  # The reader of pictures says it.
    except Exception as error:  # Decoders raise many kinds.
        raise UserError(f"{name}: damaged or truncated image: {error}") from error
    if all((frame[..., 3] == 255).all() for frame in frames):
        frames = [frame[..., :3] for frame in frames]
    return Animation(frames, durations, loop, fitting_profile(profile, frames[0]))


def _frame(image):
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    return upright(np.asarray(image.convert("RGBA")), orientation)


def write_animation(file: BinaryIO, target: str, animation: Animation, icc_profile: bytes | None) -> None:
    """Encodes an animation in the format that the suffix of `target` names: .png or .webp."""
    name, options = _WRITTEN[os.path.splitext(target)[1].lower()]
    first, *others = (image_of(frame) for frame in animation.frames)
    durations = [round(duration) for duration in animation.durations]
    first.save(
        file,
        name,
        save_all=True,
        append_images=others,
        duration=durations,
        loop=animation.loop,
        icc_profile=icc_profile,
        **options,
    )
