"""The images that an export looks at: calibration patches, and the golden vectors' inputs."""

import os
import sys

import numpy as np

from drcn_keras import image, image_files
from drcn_keras.data import load_pairs
from drcn_keras.errors import UserError

MIN_IMAGES = 4
PATCHES = 128
EXTREMES = 8
CALIBRATION_SIDE = 64
# Shares of the range of photographs that the representative images must hold, and should.
COVERED_AT_LEAST = 0.6
COVERED_WELL = 0.85


def representative_patches(folder, scale, channels):
    """ILR patches that calibration looks at: random ones, the flattest, the darkest, the brightest, black and white.

    Args:
        folder: of at least MIN_IMAGES photographs that are CALIBRATION_SIDE pixels or longer on both sides.
        scale: 2, 3 or 4.
        channels: 1 or 3.

    Returns:
        float32 (count, CALIBRATION_SIDE, CALIBRATION_SIDE, channels).

    Raises:
        UserError: no folder was named, or it has too few images.
    """
    pairs = _representative_pairs(folder, scale, channels)
    return _chosen([pair.ilr for pair in pairs], CALIBRATION_SIDE, (0.0, 0.5, 1.0))


def representative_lr(folder, scale):
    """The same choice of LR patches in colour, as an rgb file gets them: whole numbers from 0 to 255.

    Returns:
        float32 (count, side, side, 3), enlarged about as large as `representative_patches`.
    """
    pairs = _representative_pairs(folder, scale, 3)
    images = [np.round(255.0 * np.clip(pair.lr, 0.0, 1.0)) for pair in pairs]
    return _chosen(images, CALIBRATION_SIDE // scale, (0.0, 128.0, 255.0))


def _representative_pairs(folder, scale, channels):
    side = CALIBRATION_SIDE
    if not folder:
        raise UserError(
            "int8, int8_full and int16x8 measure the ranges of their tensors on photographs; expected "
            "`representative_dir`, a folder of training images (never of test images)."
        )
    paths = image_files.list_images(folder)
    if len(paths) < MIN_IMAGES:
        raise UserError(f"{folder} has too few images to be representative: expected {MIN_IMAGES}, found {len(paths)}.")
    pairs = load_pairs(paths, scale, channels, side)
    if len(pairs) < MIN_IMAGES:
        raise UserError(
            f"{folder} has too few images of {side}x{side} pixels or more: expected {MIN_IMAGES}, found {len(pairs)}."
        )
    return pairs


def _chosen(images, side, levels):
    """Patches of `side` pixels each way: random ones, extreme ones, and constant ones of these `levels`."""
    step = side // 2
    patches = np.stack(
        [
            image[row : row + side, column : column + side]
            for image in images
            for row in range(0, image.shape[0] - side + 1, step)
            for column in range(0, image.shape[1] - side + 1, step)
        ]
    )
    contrast, brightness = np.std(patches, axis=(1, 2, 3)), np.mean(patches, axis=(1, 2, 3))
    random = np.random.default_rng(0).permutation(len(patches))[:PATCHES]
    chosen = [
        random,
        np.argsort(contrast)[:EXTREMES],
        np.argsort(brightness)[:EXTREMES],
        np.argsort(brightness)[-EXTREMES:],
    ]
    real = patches[np.unique(np.concatenate(chosen))]
    constant = np.stack([np.full(real.shape[1:], level, np.float32) for level in levels])
    return np.concatenate([real, constant])


def refuse_narrow(images, own):
    """Raises UserError where representative images are so dark, bright or flat that photographs lie outside them.

    Args:
        images: representative patches, values in [0, 1].
        own: the package's own photographs, likewise.
    """
    varied = images[images.std(axis=(1, 2, 3)) > 0]
    if not len(varied):
        raise UserError("the representative images are of one colour each; expected photographs.")
    reach, wanted = (np.percentile(some, (1, 99)) for some in (varied, own[own.std(axis=(1, 2, 3)) > 0]))
    covered = (min(reach[1], wanted[1]) - max(reach[0], wanted[0])) / (wanted[1] - wanted[0])
    told = (
        f"the representative images hold values from {reach[0]:.2f} to {reach[1]:.2f}, the photographs that the export "
        f"is checked with {wanted[0]:.2f} to {wanted[1]:.2f}"
    )
    if covered < COVERED_AT_LEAST:
        raise UserError(f"{told}: expected {COVERED_AT_LEAST:.0%} of that range or more; choose varied photographs.")
    if covered < COVERED_WELL:
        print(f"warning: {told}: more varied photographs would calibrate better.", file=sys.stderr)


def golden_inputs(pipeline, height, width):
    """Test inputs of one file's size.

    Args:
        pipeline: `Pipeline`.
        height, width: pixels of the low-resolution image.

    Returns:
        (names, inputs): patches of scikit-image's photographs, black, white, a gradient, a checkerboard, noise.
    """
    _, rows, columns, channels = pipeline.shape(height, width)
    random = np.random.default_rng(0)
    scale = pipeline.scale
    factor = scale if pipeline.kind == "rgb" else 1
    cases = {}
    for index, photograph in enumerate(_photographs(channels)):
        hr = _grown(photograph, factor * rows, factor * columns)
        if factor > 1:
            patch = image.shrink(hr, scale)
        else:
            patch = image.enlarge(image.shrink(image.mod_crop(hr, scale), scale), scale)
        cases[f"patch_{index}"] = np.clip(patch, 0.0, 1.0)
    ramp = np.linspace(0.0, 1.0, columns)[None, :, None] * np.linspace(0.25, 1.0, rows)[:, None, None]
    shape = (rows, columns, channels)
    cases["black"], cases["white"] = np.zeros(shape), np.ones(shape)
    cases["gradient"] = np.broadcast_to(ramp, shape)
    cases["checkerboard"] = np.broadcast_to(np.indices((rows, columns)).sum(axis=0)[..., None] % 2, shape)
    cases["noise"] = random.random(shape)
    inputs = np.stack(list(cases.values()))
    if pipeline.kind == "rgb":
        inputs = np.round(255.0 * inputs)
    return list(cases), inputs.astype(pipeline.dtype)


def _photographs(channels):
    """Real images that scikit-image's wheel holds, in [0, 1]: (height, width, channels)."""
    import skimage.data

    folder = os.path.dirname(skimage.data.__file__)
    for name, row, column in (
        ("astronaut.png", 0, 150),
        ("chelsea.png", 60, 100),
        ("coffee.png", 100, 200),
        ("ihc.png", 250, 100),
        ("motorcycle_left.png", 150, 250),
    ):
        pixels = image_files.read_image(os.path.join(folder, name))[row:, column:]
        yield (image.luma(pixels)[..., None] if channels == 1 else pixels) / 255.0


def _grown(photograph, height, width):
    """Its first height x width pixels, mirrored on where it is too small."""
    rows, columns = (max(0, wanted - there) for wanted, there in zip((height, width), photograph.shape, strict=False))
    return np.pad(photograph, ((0, rows), (0, columns), (0, 0)), mode="symmetric")[:height, :width]
