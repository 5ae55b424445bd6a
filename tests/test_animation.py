"""Every frame of an animation, one by one, with its time."""

import numpy as np
import pytest
from PIL import Image

from drcn_keras.animation import read_animation
from drcn_keras.errors import UserError
from drcn_keras.upscaling import upscale, upscale_files

# Keras 3.15 meets NumPy 2 inside convert_to_numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def frames_of(path):
    """(RGBA of every frame, milliseconds), through Pillow."""
    frames, durations = [], []
    with Image.open(path) as image:
        for index in range(image.n_frames):
            image.seek(index)
            frames.append(np.asarray(image.convert("RGBA")))
            durations.append(image.info["duration"])
        return frames, durations, image.info["loop"]


@pytest.fixture
def moving(tmp_path):
    """Function that writes three frames with a hole that moves."""

    def write(name):
        pixels = np.random.default_rng(0).integers(0, 4, (3, 8, 10, 4), np.uint8) * 85
        pixels[..., 3] = 255
        for index in range(3):
            pixels[index, index : index + 3, 2:6, 3] = 0
        first, *others = (Image.fromarray(frame) for frame in pixels)
        options = {"lossless": True, "exact": True} if name.endswith("webp") else {"disposal": 2}
        first.save(tmp_path / name, save_all=True, append_images=others, duration=[40, 80, 120], loop=0, **options)
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize("source", ["a.gif", "a.webp"])
@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_every_frame_is_upscaled(bicubic_drcn, moving, tmp_path, source, suffix):
    model, path = bicubic_drcn(), moving(source)
    (written,) = upscale_files(model, [path], str(tmp_path / f"out{suffix}"))
    frames, durations, loop = frames_of(written)
    given, _, _ = frames_of(path)
    assert (durations, loop, len(frames)) == ([40, 80, 120], 0, 3)
    for frame, original in zip(frames, given, strict=True):
        expected = upscale(original, model)
        np.testing.assert_array_equal(frame[..., 3], expected[..., 3])
        visible = expected[..., 3] > 0
        np.testing.assert_array_equal(frame[visible], expected[visible])


def test_a_still_picture_or_another_format_is_none(moving, tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "still.png")
    assert read_animation((tmp_path / "still.png").read_bytes(), "still.png", "out.png") is None
    with open(moving("a.gif"), "rb") as file:
        assert read_animation(file.read(), "a.gif", "out.jpg") is None


def test_a_truncated_animation_is_damaged(moving, tmp_path):
    path = moving("a.webp")
    with open(path, "rb") as file:
        contents = file.read()
    with pytest.raises(UserError, match=r"a\.webp: damaged or truncated"):
        read_animation(contents[: len(contents) - 200], "a.webp", "out.png")
