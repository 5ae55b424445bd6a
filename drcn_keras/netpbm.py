"""PGM and PPM of more than 8 bit, which Pillow reads at 8 bit where they have colour."""

import re

import numpy as np

_HEADER = re.compile(rb"P([2356])(?:(?:\s|#[^\n]*\n)+(\d+))" + 2 * rb"(?:(?:\s|#[^\n]*\n)+(\d+))" + rb"\s")


def deep_size(contents: bytes) -> tuple[int, int] | None:
    """(width, height) of a PGM or PPM with more than 8 bit; None for anything else."""
    header = _HEADER.match(contents)
    if not header or not 255 < int(header[4]) < 65536:
        return None
    return int(header[2]), int(header[3])


def deep_pixels(contents: bytes) -> np.ndarray:
    """The pixels of a file that `deep_size` knows.

    Returns:
        uint16 (height, width) or (height, width, 3), stretched to the whole range.

    Raises:
        ValueError: the file is truncated.
    """
    header = _HEADER.match(contents)
    assert header, "see deep_size"
    kind, width, height, largest = (int(group) for group in header.groups())
    channels = 3 if kind in (3, 6) else 1
    count, rest = width * height * channels, contents[header.end() :]
    plain = kind in (2, 3)
    values = np.array(rest.split()[:count], np.int64) if plain else np.frombuffer(rest[: 2 * count], ">u2")
    if len(values) < count:
        raise ValueError(f"{len(values)} of {count} values are there")
    pixels = np.round(np.minimum(values, largest) * (65535 / largest)).astype(np.uint16)
    return pixels.reshape((height, width, 3) if channels == 3 else (height, width))
