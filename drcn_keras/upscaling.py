"""Upscales photographs: `python -m drcn_keras.upscale --model=FILE IN... --output=DIR_OR_FILE`.

IN is an image or a folder of images. One image may go to a file, whose suffix tells the format (png, tif, webp,
jpg, bmp); several go to a folder, as PNG under their own names. Luma goes through the network, colour is enlarged
bicubically, transparency and 16 bit are kept. EXIF and other metadata are dropped, the colour profile is kept.
"""

import functools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from absl import flags, logging
from PIL import Image
from tqdm import tqdm

from drcn_keras import commands
from drcn_keras.commands import FLAGS
from drcn_keras.errors import UserError
from drcn_keras.files import make_folder
from drcn_keras.image_files import SUFFIXES, list_images, pixels_of, read_pixels
from drcn_keras.image_writing import check_writable, image_of, write_image
from drcn_keras.inputs import check_tile, loaded, warn_skipped
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
            "bfloat16", the inner convolutions in it, some 80 dB from that; or "auto", bfloat16 where this machine is
            faster in it, float32 elsewhere.

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
) -> list[str]:
    """Upscales files and folders into a file or a folder. A file that cannot be read is skipped, unless it is alone.

    Args:
        model: a `DRCN`, or what `drcn_keras.load` takes.
        inputs: list of paths of images and folders.
        output: path; a folder unless `inputs` is one image and this ends in a suffix that is written here.
        scale, width, height, tile, self_ensemble, precision: as in `upscale`; what "auto" comes to is told.
        overwrite: replace files that exist.
        skip_existing: leave out images whose result exists.

    Returns:
        list of the paths written.

    Raises:
        UserError: no image, no right to write, a file in the way, a model for another scale, or an image named by
            `inputs` itself that cannot be read (after the others are done).
    """
    check_factor(scale)
    jobs = _undone(_plan(inputs, output), overwrite, skip_existing)
    if not jobs:
        return []
    make_folder(os.path.dirname(jobs[0][1]) or ".")
    model = loaded(model)
    if width is None and height is None:
        enlargement(model, (1, 1), scale)  # What cannot work is told before the first image is read.
    check_tile(tile, model)
    # Said once, and not before an image is there to be upscaled: an error is one line.
    announced_once = functools.cache(announced)

    def one(source, target):
        pixels, profile = read_pixels(source)
        check_writable(target, pixels)
        factor = enlargement(model, pixels.shape, scale, width, height)
        return lambda: write_image(
            target, upscaled(pixels, model, factor, tile, True, self_ensemble, announced_once(precision)), profile
        )

    return _all_done(one, jobs, inputs)


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


def _plan(inputs, output):
    """The list of (source, target) paths."""
    if not inputs:
        raise UserError("no image given; expected paths of images or folders.")
    sources = [path for given in inputs for path in (list_images(given) if os.path.isdir(given) else [given])]
    suffix = os.path.splitext(output)[1].lower()
    if suffix in SUFFIXES and not os.path.isdir(output):
        if len(sources) > 1 or os.path.isdir(inputs[0]):
            raise UserError(f"`output`: {output} is a file name; expected a folder for {len(sources)} images.")
        check_writable(output)
        jobs = [(sources[0], output)]
    else:
        stems = [os.path.splitext(os.path.basename(path))[0] for path in sources]
        jobs = [(path, os.path.join(output, stem + ".png")) for path, stem in zip(sources, stems, strict=True)]
    owners, originals = {}, {os.path.realpath(path) for path in sources}
    for source, target in jobs:
        if target in owners:
            raise UserError(f"{owners[target]} and {source} would both become {target}; upscale them one by one.")
        owners[target] = source
        if os.path.realpath(target) in originals:
            raise UserError(f"{target} is an input; the result must not replace it. Choose another `output`.")
    return jobs


def _undone(jobs, overwrite, skip_existing):
    done = [job for job in jobs if os.path.exists(job[1])]
    if skip_existing:
        return [job for job in jobs if job not in done]
    if done and not overwrite:
        raise UserError(
            f"{done[0][1]} exists ({len(done)} of {len(jobs)} results do); `overwrite` replaces, `skip_existing` keeps."
        )
    return jobs


def define_flags():
    flags.DEFINE_string(
        "model",
        None,
        "a trained DRCN: a preset such as mobile-x2, or the .keras file that drcn_keras.train wrote (default: the "
        "preset mobile-x2, or that of --scale)",
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
    define_precision("auto")
    commands.require("output")


def main(argv):
    model = FLAGS.model or commands.default_model(FLAGS.scale)
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
    )
    print(
        f"{len(written)} written: {written[0]}{' ...' if len(written) > 1 else ''}" if written else "nothing left to do"
    )


def run():
    """The command `drcn-upscale`."""
    commands.run(main, define_flags)
