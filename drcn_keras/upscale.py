"""Upscales photographs: `python -m drcn_keras.upscale --model=FILE IN... --output=DIR_OR_FILE`.

IN is an image or a folder of images. One image may go to a file, whose suffix tells the format (png, tif, webp,
jpg, bmp); several go to a folder, as PNG under their own names. Luma goes through the network, colour is enlarged
bicubically, transparency and 16 bit are kept. EXIF and other metadata are dropped, the colour profile is kept.
"""

import os
import sys
import weakref

import numpy as np
from absl import flags, logging
from PIL import Image
from tqdm import tqdm

from drcn_keras import errors
from drcn_keras.errors import UserError
from drcn_keras.files import check_folder, write_atomically
from drcn_keras.image import (
    SCALES,
    SUFFIXES,
    check_writable,
    enlarge,
    image_of,
    list_images,
    pixels_of,
    read_pixels,
    rgb_to_ycbcr,
    write_pixels,
    ycbcr_to_rgb,
)

# What the feature maps of one tile may take. Larger tiles waste less on their halo, 512 pixels are enough for that.
_TILE_BYTES = 2 * 2**30
_LARGEST_TILE = 512

_NETWORKS = weakref.WeakKeyDictionary()


def upscale(image, model, tile=None, progress=False):
    """Upscales one image by the model's scale.

    Args:
        image: one of
            path of an image file;
            PIL image;
            array (height, width), or (height, width, 1, 2, 3 or 4) for gray, gray+alpha, RGB, RGBA; uint8, uint16, or
            floating point in [0, 1].
        model: a `DRCN`, or what `drcn_keras.load` takes.
        tile: side of the largest window, in pixels of the result, that goes through the network at once; None: 512, or
            less for a large network. The result does not depend on it; memory does.
        progress: show a progress bar on standard error.

    Returns:
        For an array, an array of its dtype, scale times as high and wide; otherwise a PIL image: upright, RGB for
        a palette or CMYK, 16-bit gray for 16-bit gray. PIL has no 16-bit colour, it is rounded to 8 bit; an array
        or the command keeps it.

    Raises:
        UserError: the file or the model cannot be read.
        ValueError: the array or `tile` is not as above.
    """
    profile = None
    if isinstance(image, np.ndarray):
        pixels = image
    elif isinstance(image, Image.Image):
        pixels, profile = pixels_of(image)
    else:
        pixels, profile = read_pixels(os.fspath(image))
    result = _upscaled(pixels, _loaded(model), tile, progress)
    return result if isinstance(image, np.ndarray) else image_of(result, profile)


def _loaded(model):
    if not isinstance(model, (str, os.PathLike)):
        return model
    with errors.tensorflow_notices_hidden():
        import keras

        keras.ops.zeros(1)
    from drcn_keras.model import load

    return load(os.fspath(model))


def _upscaled(pixels, model, tile=None, progress=False):
    """The pixels of an image, any of the arrays that `upscale` takes, through the model."""
    largest = _largest_value(pixels)
    network = _network(model)
    # The folded graph holds every recursion's features until it sums them.
    tile = default_tile(model, model.recursions + 2) if tile is None else tile
    source = pixels.reshape(*pixels.shape[:2], -1)
    height, width = (model.scale * side for side in source.shape[:2])
    result = np.empty((height, width, source.shape[2]), pixels.dtype)
    places = tiles(height, width, tile, model.halo)
    for window, inner, kept in tqdm(places, unit="tile", leave=False, disable=not progress or len(places) == 1):
        ilr = enlarge(source, model.scale, window) / largest
        sr = _through(network, ilr)[inner]
        if not np.isfinite(sr).all():
            raise UserError("the model gives NaN or infinity for this image; its weights are damaged.")
        sr = np.clip(sr, 0.0, 1.0) * largest
        result[kept] = sr if pixels.dtype.kind == "f" else np.round(sr)
    return result.reshape(height, width, *pixels.shape[2:])


def _largest_value(pixels):
    """What stands for white. Raises ValueError for an array that is no image."""
    if pixels.ndim not in (2, 3) or pixels.size == 0 or (pixels.ndim == 3 and pixels.shape[2] > 4):
        raise ValueError(
            f"expected (height, width) or (height, width, 1 to 4) with at least one pixel; received {pixels.shape}."
        )
    if pixels.dtype in (np.uint8, np.uint16):
        return np.iinfo(pixels.dtype).max
    if pixels.dtype.kind != "f":
        raise ValueError(f"expected uint8, uint16 or floating point; received {pixels.dtype}.")
    if not (pixels.min() >= 0.0 and pixels.max() <= 1.0):
        raise ValueError(f"floating point must be in [0, 1]; received {pixels.min()} to {pixels.max()}.")
    return 1.0


def _through(network, ilr):
    """One window (height, width, 1 to 4) in [0, 1]: colour through the network, alpha as it is."""
    channels = network.input_shape[-1]
    colors, alpha = (ilr[..., :1], ilr[..., 1:]) if ilr.shape[2] < 3 else (ilr[..., :3], ilr[..., 3:])

    def sr(x):
        return network.predict_on_batch(x[None].astype(np.float32))[0]

    if colors.shape[2] == channels:
        colors = sr(colors)
    elif channels == 3:
        colors = sr(np.repeat(colors, 3, axis=2)).mean(axis=2, keepdims=True)
    else:
        ycbcr = rgb_to_ycbcr(colors)
        ycbcr[..., :1] = sr(ycbcr[..., :1])
        colors = ycbcr_to_rgb(ycbcr)
    return np.concatenate([colors, alpha], axis=2)


def _network(model):
    """The compiled inference graph of a model, kept until the model's weights change."""
    from drcn_keras.deploy import inference_model

    weights = model.get_weights()
    kept, network = _NETWORKS.get(model, (None, None))
    if network is None or not all(map(np.array_equal, kept, weights)):
        network = compiled(inference_model(model))
        _NETWORKS[model] = weights, network
    return network


def compiled(network):
    """Makes `network.predict_on_batch` quick on this backend, and returns the network.

    JAX compiles every new size with XLA. TensorFlow's own graph takes any size once it has seen two, and is
    as quick as XLA on a CPU.
    """
    import keras

    jax = keras.backend.backend() == "jax"
    network.compile(jit_compile=jax)
    for side in () if jax else (1, 2):
        # TensorFlow sums the recursions of the first size in an order of its own: other last bits than later.
        network.predict_on_batch(np.zeros((1, side, side, network.input_shape[-1]), np.float32))
    return network


def default_tile(model, maps):
    """The side of a tile whose feature maps, `maps` of them at once, stay within 2 GiB; at most 512 pixels."""
    side = int((_TILE_BYTES / (4 * model.filters * maps)) ** 0.5)
    return max(min(side, _LARGEST_TILE), 4 * model.halo)


def tiles(height, width, tile, halo):
    """Cuts an image into overlapping windows of one size.

    The network pads with zeros at the border of what it is given. A window therefore ends at the image's own
    border, where those zeros belong, or `halo` pixels beyond what is kept of it: then the kept parts equal those
    of the whole image.

    Args:
        height, width: of the image, pixels.
        tile: largest side of a window, more than 2 * halo.
        halo: pixels on every side that an output pixel depends on.

    Returns:
        list of (window, inner, kept), each a pair of slices: the window in the image, what of the window is
        kept, and where that is in the image. The kept parts cover every pixel once.

    Raises:
        ValueError: `tile` is too small.
    """
    if tile <= 2 * halo:
        raise ValueError(
            f"a tile must be larger than twice the halo, {2 * halo} pixels for this model; received {tile}."
        )
    return [
        tuple(zip(rows, columns, strict=True))
        for rows in _spans(height, tile, halo)
        for columns in _spans(width, tile, halo)
    ]


def _spans(length, tile, halo):
    """(window, inner, kept) along one axis."""
    overlap = 2 * halo
    count = max(1, -(-(length - overlap) // (tile - overlap)))
    # All windows have one size, the smallest that `count` of them cover the axis with: a graph is compiled once.
    tile = -(-(length + (count - 1) * overlap) // count)
    begin = 0
    while begin < length:
        start = max(0, min(begin - halo, length - tile))
        stop = min(start + tile, length)
        end = length if stop == length else stop - halo
        yield slice(start, stop), slice(begin - start, end - start), slice(begin, end)
        begin = end


# === The command ===


def upscale_files(model, inputs, output, scale=None, tile=None, overwrite=False, skip_existing=False):
    """Upscales files and folders into a file or a folder. A file that cannot be read is skipped, unless it is alone.

    Args:
        model: a `DRCN`, or what `drcn_keras.load` takes.
        inputs: list of paths of images and folders.
        output: path; a folder unless `inputs` is one image and this ends in a suffix that is written here.
        scale: the scale that the model must be for; None: any.
        tile: as in `upscale`.
        overwrite: replace files that exist.
        skip_existing: leave out images whose result exists.

    Returns:
        list of the paths written.

    Raises:
        UserError: no image, no right to write, a file in the way, a model for another scale, or an image named by
            `inputs` itself that cannot be read (after the others are done).
    """
    check_scale(scale)
    jobs = _undone(_plan(inputs, output), overwrite, skip_existing)
    if not jobs:
        return []
    check_folder(os.path.dirname(jobs[0][1]) or ".")
    model = load_for(model, scale)
    check_tile(tile, model)

    written, failed = [], []
    for source, target in tqdm(jobs, unit="image", disable=len(jobs) == 1):
        try:
            pixels, profile = read_pixels(source)
            check_writable(target, pixels)
        except UserError as error:
            if len(jobs) == 1:
                raise
            warn_skipped(error)
            failed.append(source)
            continue
        write_image(target, _upscaled(pixels, model, tile, progress=True), profile)
        written.append(target)
    if failed:
        logging.warning("%d of %d images skipped", len(failed), len(jobs))
    if not written or any(source in inputs for source in failed):
        raise UserError(f"{len(failed)} of {len(jobs)} images could not be read; see the warnings above.")
    return written


def write_image(path, pixels, icc_profile=None):
    """Writes an image as `image.write_pixels` does: the file is complete or as it was before."""
    write_atomically(path, lambda file: write_pixels(file, path, pixels, icc_profile))


def _plan(inputs, output):
    """The list of (source, target) paths."""
    if not inputs:
        raise UserError("no image given; expected paths of images or folders.")
    sources = [path for given in inputs for path in (list_images(given) if os.path.isdir(given) else [given])]
    suffix = os.path.splitext(output)[1].lower()
    if suffix in SUFFIXES and not os.path.isdir(output):
        if len(sources) > 1 or os.path.isdir(inputs[0]):
            raise UserError(f"--output: {output} is a file name; expected a folder for {len(sources)} images.")
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
            raise UserError(f"{target} is an input; the result must not replace it. Choose another --output.")
    return jobs


def _undone(jobs, overwrite, skip_existing):
    done = [job for job in jobs if os.path.exists(job[1])]
    if skip_existing:
        return [job for job in jobs if job not in done]
    if done and not overwrite:
        raise UserError(
            f"{done[0][1]} exists ({len(done)} of {len(jobs)} results do); --overwrite replaces, --skip_existing keeps."
        )
    return jobs


def warn_skipped(reason):
    """Says on standard error, above the progress bar, which image is left out and why."""
    with tqdm.external_write_mode(file=sys.stderr):
        logging.warning("skipped: %s", reason)


def check_scale(scale):
    """Raises UserError unless `scale` is 2, 3, 4 or None."""
    if scale not in (None, *SCALES):
        raise UserError(f"--scale must be 2, 3 or 4; received {scale}.")


def load_for(model, scale):
    """The DRCN that `model` is or names. Raises UserError where it is for another scale than `scale`, not None."""
    loaded = _loaded(model)
    if scale not in (None, loaded.scale):
        raise UserError(f"--scale={scale}, but the model's weights are for x{loaded.scale}: {model}.")
    return loaded


def check_tile(tile, model):
    """Raises UserError where `tile`, not None, has no room beside the model's halo."""
    if tile is not None and tile <= 2 * model.halo:
        raise UserError(f"--tile must be more than {2 * model.halo}, twice the model's halo; received {tile}.")


def default_model(scale):
    """The preset for a scale, or for x2 where it is None."""
    return f"mobile-x{scale or 2}"


def prepare_tensorflow():
    """What a command sets before TensorFlow is imported."""
    # oneDNN halves the time of a small network on CPUs where TensorFlow leaves it off.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    # Notices about how TensorFlow was built would bury the one line of an error.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def define_flags():
    flags.DEFINE_string(
        "model",
        None,
        "a trained DRCN: a preset such as mobile-x2, or the .keras file that drcn_keras.train wrote (default: the "
        "preset mobile-x2, or that of --scale)",
    )
    flags.DEFINE_string("output", None, "file or folder for the results; a folder is made where it is missing")
    flags.DEFINE_integer("scale", None, "2, 3 or 4: refuse a model that is for another (default: take the model's)")
    flags.DEFINE_integer(
        "tile",
        None,
        "pixels of the result on a side that go through the network at once: less takes less memory and more time, "
        "the result is the same (default: 512, or less for a large network)",
    )
    flags.DEFINE_boolean("overwrite", False, "replace results that exist")
    flags.DEFINE_boolean("skip_existing", False, "leave out images whose result exists, to go on after an interruption")


def main(argv):
    given = flags.FLAGS
    if not given.output:
        raise UserError("--output is required (--help lists every flag).")
    model = given.model or default_model(given.scale)
    written = upscale_files(
        model, argv[1:], given.output, given.scale, given.tile, given.overwrite, given.skip_existing
    )
    print(
        f"{len(written)} written: {written[0]}{' ...' if len(written) > 1 else ''}" if written else "nothing left to do"
    )


def run():
    """The command `drcn-upscale`."""
    prepare_tensorflow()
    define_flags()
    errors.run(main)


if __name__ == "__main__":
    run()
