"""Enlarges an image of any size on the device, through a model of fixed shape.

    python tflite/upscale.py MODEL.tflite IN OUT

The image is cut into tiles of the model's size. Around the part of a tile that is kept lies a halo as wide as
the network's receptive field reaches, and tiles stop at the image's own border: the result is that of one
run over the whole image. Where the image is smaller than the model's input, the input is resized to it.
"""

import argparse
import sys

import numpy as np
import pictures
from manifest import CannotRun, end, identity_fault, read_manifest
from runtime import Model, usable_cores


def main():
    """Reads the flags, enlarges one image, returns 0."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model", metavar="MODEL.tflite", help="its manifest (.json) beside it")
    parser.add_argument("input", metavar="IN")
    parser.add_argument("output", metavar="OUT")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    parser.add_argument("--threads", type=int, default=min(4, usable_cores()))
    parser.add_argument("--delegate", default="xnnpack", help="as for check.py: xnnpack, none or a library")
    parser.add_argument("--tile", type=int, default=256, help="tile side for models of dynamic shape (default 256)")
    flags = parser.parse_args()
    manifest = read_manifest(flags.model)
    fault = identity_fault(flags.model, manifest)
    if fault:
        raise CannotRun(f"{flags.model}: {fault}.")
    pixels, alpha, profile = pictures.read(flags.input)
    pictures.check_output(flags.output, alpha is not None, flags.overwrite)

    def model(shape):
        return Model(flags.model, flags.threads, flags.delegate, shape)

    enlarged = upscale(model, manifest, pixels, flags.tile, _show_progress)
    if alpha is not None:
        alpha = pictures.to_bytes(pictures.enlarge(alpha / 255.0, manifest["scale"]))
    pictures.write(flags.output, enlarged, alpha, profile)
    return 0


def upscale(model, manifest, pixels, tile=256, progress=None):
    """Enlarges an image by the model's scale.

    Args:
        model: function of an input shape, or None for the file's own, that gives a `runtime.Model`.
        manifest: dict, of that model.
        pixels: uint8 (height, width) gray or (height, width, 3) RGB.
        tile: side of the tiles for a model of dynamic shape.
        progress: function of (tiles done, tiles in all), or None.

    Returns:
        uint8 (scale * height, scale * width[, 3]).

    Raises:
        CannotRun: the model cannot be tiled, or not be resized to a small image.
    """
    scale = manifest["scale"]
    if manifest["pipeline"] == "rgb":
        rgb = np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels
        sr = run_tiled(model, manifest, rgb.astype(manifest["input"]["dtype"]), scale, tile, progress) / 255.0
        return pictures.to_bytes(sr.mean(axis=2) if pixels.ndim == 2 else sr)
    if manifest.get("channels", 1) == 3:
        ilr = pictures.enlarge((np.dstack([pixels] * 3) if pixels.ndim == 2 else pixels) / 255.0, scale)
        sr = run_tiled(model, manifest, ilr.astype(np.float32), 1, tile, progress)
        return pictures.to_bytes(sr.mean(axis=2) if pixels.ndim == 2 else sr)
    if pixels.ndim == 2:
        ilr = pictures.enlarge(pixels / 255.0, scale)
        sr = run_tiled(model, manifest, ilr[..., None].astype(np.float32), 1, tile, progress)
        return pictures.to_bytes(sr[..., 0])
    ycbcr = pictures.enlarge(pictures.rgb_to_ycbcr(pixels / 255.0), scale)
    sr = run_tiled(model, manifest, ycbcr[..., :1].astype(np.float32), 1, tile, progress)
    ycbcr[..., 0] = sr[..., 0]
    return pictures.to_bytes(pictures.ycbcr_to_rgb(ycbcr))


def run_tiled(model, manifest, image, factor, tile=256, progress=None):
    """Runs the model over an image of any size, tile by tile.

    Args:
        model, manifest, tile, progress: as for `upscale`.
        image: (height, width, channels) of the model's input type.
        factor: output pixels per input pixel.

    Returns:
        (factor * height, factor * width, channels) of the model's output type.
    """
    halo = manifest.get("lr_halo", manifest["halo"]) if factor > 1 else manifest["halo"]
    own = manifest["input"]["shape"][1:3]
    sides = [min(tile if side < 1 else side, length) for side, length in zip(own, image.shape[:2], strict=True)]
    downward, across = (plan(length, side, halo) for length, side in zip(image.shape[:2], sides, strict=True))
    loaded = _load(model, own, sides, image, factor)
    result, done = None, 0
    for top, first_row, last_row in downward:
        for left, first_column, last_column in across:
            output = loaded.run(image[None, top : top + sides[0], left : left + sides[1]])[0]
            if result is None:
                result = np.empty((factor * image.shape[0], factor * image.shape[1], output.shape[2]), output.dtype)
            result[factor * first_row : factor * last_row, factor * first_column : factor * last_column] = output[
                factor * (first_row - top) : factor * (last_row - top),
                factor * (first_column - left) : factor * (last_column - left),
            ]
            done += 1
            if progress:
                progress(done, len(downward) * len(across))
    return result


def _load(model, own, sides, image, factor):
    """The model for tiles of `sides`, resized where they are not its own."""
    if sides == own:
        return model(None)
    try:
        loaded = model((1, *sides, image.shape[2]))
        if loaded.output["shape"][1:3] != (factor * sides[0], factor * sides[1]):
            raise CannotRun(f"resized, its output is {loaded.output['shape']}")
    except CannotRun as error:
        raise CannotRun(
            f"the image gives {image.shape[0]} x {image.shape[1]} pixels, less than the model's input of "
            f"{own[0]} x {own[1]}, and this model cannot be resized ({error}); export it smaller."
        ) from error
    return loaded


def plan(length, side, halo):
    """Where tiles lie along one axis.

    Args:
        length: of the image, at least 1.
        side: of a tile, at most `length`.
        halo: how far an output pixel sees.

    Returns:
        list of (start, first, last): a tile covers start to start + side, and first to last of the image is taken
        from it. These ranges follow each other without gap or overlap, `halo` away from every tile's edge
        that is not the image's own.

    Raises:
        CannotRun: a tile inside the image has nothing left without its halo.
    """
    if length > side and side <= 2 * halo:
        raise CannotRun(
            f"a model of {side} pixels a side cannot be tiled: {halo} on either side are halo; "
            f"export it with more than {2 * halo}."
        )
    found, done = [], 0
    while done < length:
        start = max(0, min(done - halo, length - side))
        last = length if start + side == length else start + side - halo
        found.append((start, done, last))
        done = last
    return found


def _show_progress(done, total):
    if sys.stderr.isatty() and total > 1:
        bar = "#" * (30 * done // total)
        print(f"\r[{bar:<30}] {done}/{total} tiles", end="\n" if done == total else "", file=sys.stderr, flush=True)


if __name__ == "__main__":
    end(main)
