"""Upscales photographs: `python -m drcn_keras.upscale --model=FILE IN... --output=DIR_OR_FILE`.

IN is an image or a folder of images; "-" is standard input and output. One image may go to a file, whose suffix tells
the format (png, tif, webp, avif, jpg, bmp); several go to a folder, as PNG under their own names. Luma goes through the
network, colour is enlarged bicubically, transparency and 16 bit are kept. So are the colour profile and, unless
--strip_metadata says otherwise, EXIF (camera, date, GPS; turned upright), XMP and resolution.
"""

import functools
import io
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from absl import flags, logging
from PIL import Image
from tqdm import tqdm

from drcn_keras import commands
from drcn_keras.animation import read_animation, write_animation
from drcn_keras.commands import FLAGS
from drcn_keras.errors import UserError
from drcn_keras.files import make_folder, write_atomically
from drcn_keras.image import both, resized_side
from drcn_keras.image_files import pixel_limit, pixels_in, pixels_of, read_pixels
from drcn_keras.image_metadata import Metadata, read_metadata
from drcn_keras.image_writing import check_writable, image_of, write_image, write_pixels
from drcn_keras.inputs import check_tile, loaded, warn_skipped
from drcn_keras.jobs import STANDARD, plan, undone
from drcn_keras.precision import announced, define_precision
from drcn_keras.sizes import check_factor, enlargement
from drcn_keras.tiling import upscaled

if TYPE_CHECKING:
    from drcn_keras.model import DRCN


def upscale(
    image: str | os.PathLike | Image.Image | np.ndarray,
    model: "DRCN | str | os.PathLike",
    tile: int | None = None,
    progress: bool = False,
    scale: float | None = None,
    width: int | None = None,
    height: int | None = None,
    self_ensemble: bool = False,
    precision: str = "float32",
) -> Image.Image | np.ndarray:
    """Upscales one image.

    Args:
        image: one of
            path of an image file, or a PIL image;
            array (height, width), or (height, width, 1, 2, 3 or 4) for gray, gray+alpha, RGB, RGBA; uint8, uint16, or
            floating point in [0, 1].
        model: a `DRCN`, or what `drcn_keras.load` takes.
        tile: side of the largest window, in pixels of the result, that goes through the network at once; None: 512, or
            less for a large network. The result does not depend on it; memory does.
        progress: show a progress bar on standard error; or a function of (done, total), called with whole numbers of
            tiles, first (0, total), last (total, total), in the caller's thread. What it raises ends the work.
        scale: the enlargement; None: the model's, the smallest where it has several. A model of several scales takes
            any factor from 1.1 to 4; sides become ceil(scale * side), as MATLAB's imresize.
        width, height: pixels of the result, instead of `scale`; one of them keeps the proportions.
        self_ensemble: average over the eight flips and turns of the image: a little better, eight times the time.
        precision: "float32", the same image on every machine but for single levels that its library rounds otherwise;
            "bfloat16", all convolutions but the first in it, some 80 dB from that; or "auto", bfloat16 where this
            machine is faster in it, float32 elsewhere.

    Returns:
        For an array, an array of its dtype, enlarged; otherwise a PIL image: upright, RGB for a palette or CMYK, 16-bit
        gray for 16-bit gray. PIL has no 16-bit colour, it is rounded to 8 bit; an array or the command keeps it.

    Raises:
        UserError: the file or the model cannot be read, or the model is not for that enlargement.
        ValueError: the array, `tile` or `precision` is not as above.
    """
    profile = None
    if isinstance(image, np.ndarray):
        pixels = image
    elif isinstance(image, Image.Image):
        pixels, profile = pixels_of(image)
    else:
        pixels, profile = read_pixels(os.fspath(image))
    model = loaded(model)
    factor = enlargement(model, pixels.shape, scale, width, height)
    result = upscaled(pixels, model, factor, tile, progress, self_ensemble, precision)
    return result if isinstance(image, np.ndarray) else image_of(result, profile)


def upscale_files(
    model: "DRCN | str | os.PathLike",
    inputs: Sequence[str],
    output: str,
    scale: float | None = None,
    tile: int | None = None,
    overwrite: bool = False,
    skip_existing: bool = False,
    width: int | None = None,
    height: int | None = None,
    self_ensemble: bool = False,
    precision: str = "float32",
    recursive: bool = False,
    strip_metadata: bool = False,
    max_megapixels: float | None = None,
) -> list[str]:
    """Upscales files and folders into a file or a folder. A file that cannot be read is skipped, unless it is alone.

    Args:
        model: a `DRCN`, or what `drcn_keras.load` takes.
        inputs: paths of images and folders; "-" is standard input.
        output: a folder, unless `inputs` is one image and this ends in an image's suffix; "-" is standard output.
        scale, width, height, tile, self_ensemble, precision: as in `upscale`; what "auto" comes to is told.
        overwrite: replace files that exist; skip_existing: leave out images whose result exists.
        recursive: take folders with all below them, and keep their tree.
        strip_metadata: drop EXIF (GPS too), XMP and resolution, which are kept where the format holds them.
        max_megapixels: read images of up to so many million pixels; None: 179, Pillow's limit against bombs.

    Returns:
        The paths written.

    Raises:
        UserError: a file in the way, a model for another scale, or an image of `inputs` that cannot be read.
    """
    check_factor(scale)
    if not (jobs := undone(plan(inputs, output, recursive), overwrite, skip_existing)):
        return []
    for folder in {os.path.dirname(target) or "." for _, target in jobs if target != STANDARD}:
        make_folder(folder)
    model = loaded(model)
    if width is None and height is None:
        enlargement(model, (1, 1), scale)  # What cannot work is told before the first image is read.
    check_tile(tile, model)
    announced_once = functools.cache(announced)

    def larger(image, factor):
        return upscaled(image, model, factor, tile, True, self_ensemble, announced_once(precision))

    size = functools.partial(enlargement, model, scale=scale, width=width, height=height)
    return _all_done(functools.partial(_prepared, size, larger, strip_metadata, max_megapixels), jobs, inputs)


def _prepared(size, larger, strip_metadata, max_megapixels, source, target):
    """Reads an image and makes sure that its result can be written. Returns what makes and writes the result.

    `size`: function of an image's shape to the factors; `larger`: function of (pixels, factors) to the result.
    """
    with pixel_limit(max_megapixels):
        animation, pixels, profile, metadata = _read(source, _named(target))
    factor = size(pixels.shape)
    down, across = both(factor)
    check_writable(_named(target), pixels, (resized_side(pixels.shape[0], down), resized_side(pixels.shape[1], across)))
    if strip_metadata:
        metadata = metadata.without_private()
    if animation:
        return lambda: _write_frames(target, animation.mapped(lambda image: larger(image, factor)), profile)
    return lambda: _write(target, larger(pixels, factor), profile, metadata)


def _read(source, target):
    """(animation or None, pixels of the first frame, icc_profile, metadata) of a file or of standard input."""
    if source == STANDARD:
        name, contents = "standard input", sys.stdin.buffer.read()
    else:
        name = source
        try:
            with open(source, "rb") as file:
                contents = file.read()
        except OSError:
            return None, *read_pixels(source), Metadata()  # Which says what is wrong.
    animation = read_animation(contents, name, target)
    if animation:
        return animation, animation.frames[0], animation.icc_profile, Metadata()
    return None, *pixels_in(io.BytesIO(contents), name), read_metadata(contents, name)


def _write_frames(target, animation, profile):
    if target == STANDARD:
        encoded = io.BytesIO()
        write_animation(encoded, _named(target), animation, profile)
        sys.stdout.buffer.write(encoded.getvalue())
        sys.stdout.buffer.flush()
        return
    write_atomically(target, lambda file: write_animation(file, target, animation, profile))


def _named(target):
    """A path whose suffix tells the format: PNG on standard output."""
    return "standard-output.png" if target == STANDARD else target


def _write(target, pixels, profile, metadata):
    if target != STANDARD:
        write_image(target, pixels, profile, metadata)
        return
    encoded = io.BytesIO()
    write_pixels(encoded, _named(target), pixels, profile, metadata)
    sys.stdout.buffer.write(encoded.getvalue())
    sys.stdout.buffer.flush()


def _all_done(one, jobs, inputs):
    """Reads, then writes file after file by `one`. Returns the paths written."""
    written, failed = [], []
    for source, target in tqdm(jobs, unit="image", disable=len(jobs) == 1):
        try:
            write = one(source, target)
        except UserError as error:
            if len(jobs) == 1:
                raise
            warn_skipped(error)
            failed.append(source)
            continue
        write()
        written.append(target)
    if failed:
        logging.warning("%d of %d images skipped", len(failed), len(jobs))
    if not written or any(source in inputs for source in failed):
        raise UserError(f"{len(failed)} of {len(jobs)} images could not be read; see the warnings above.")
    return written


def define_flags():
    flags.DEFINE_string(
        "model",
        None,
        "a trained DRCN: a preset such as mobile-x2, or the .keras file that drcn_keras.train wrote (default: the "
        "preset mobile-x2, or that of --scale; drcn-x234 for other factors, --width and --height)",
    )
    flags.DEFINE_string("output", None, "file or folder for the results; a folder is made where it is missing")
    flags.DEFINE_float(
        "scale",
        None,
        "the enlargement, from 1.1 to 4 for a model of several scales; one of a single scale refuses any other "
        "(default: the model's, x2 for one of several)",
    )
    flags.DEFINE_integer("width", None, "pixels of the result, instead of --scale; the proportions are kept")
    flags.DEFINE_integer("height", None, "pixels of the result, instead of --scale; the proportions are kept")
    flags.DEFINE_boolean(
        "self_ensemble", False, "average over the eight flips and turns: a little better, eight times the time"
    )
    flags.DEFINE_integer(
        "tile",
        None,
        "pixels of the result on a side that go through the network at once: less takes less memory and more time, "
        "the result is the same (default: 512, or less for a large network)",
    )
    flags.DEFINE_boolean("overwrite", False, "replace results that exist")
    flags.DEFINE_boolean("skip_existing", False, "leave out images whose result exists, to go on after an interruption")
    flags.DEFINE_boolean("recursive", False, "take folders with all below them; --output gets the same tree")
    flags.DEFINE_boolean(
        "strip_metadata", False, "drop EXIF with camera, date and GPS, XMP and resolution; the colour profile stays"
    )
    flags.DEFINE_float(
        "max_megapixels",
        None,
        "largest image that is read, in million pixels (default: 179, against bombs)",
        lower_bound=0,
    )
    define_precision("auto")
    commands.require("output")


def main(argv):
    model = FLAGS.model or commands.default_model(FLAGS.scale, bool(FLAGS.width or FLAGS.height))
    written = upscale_files(
        model,
        argv[1:],
        FLAGS.output,
        FLAGS.scale,
        FLAGS.tile,
        FLAGS.overwrite,
        FLAGS.skip_existing,
        FLAGS.width,
        FLAGS.height,
        FLAGS.self_ensemble,
        FLAGS.precision,
        FLAGS.recursive,
        FLAGS.strip_metadata,
        FLAGS.max_megapixels,
    )
    print(
        f"{len(written)} written: {written[0]}{' ...' if len(written) > 1 else ''}"
        if written
        else "nothing left to do",
        file=sys.stderr if FLAGS.output == STANDARD else sys.stdout,
    )


def run():
    """The command `drcn-upscale`."""
    commands.run(main, define_flags)
