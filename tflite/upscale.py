"""Enlarges an image of any size on the device, through a model of fixed shape.

    python tflite/upscale.py MODEL.tflite IN OUT

The image is cut into tiles of the model's size. Around the part of a tile that is kept lies a halo as wide as
the network's receptive field reaches, and tiles stop at the image's own border: the result is that of one
run over the whole image. A row of tiles is enlarged, run and rounded before the next begins, so that memory follows
the tile. Where the image is smaller than the model's input, the input is resized to it.
"""

import sys

import numpy as np
import pictures
from command import MOST_THREADS, Parser, end, whole
from manifest import CannotRun, from_tensor, identity_fault, output_peak, read_manifest, to_tensor
from runtime import Model, chosen_delegate, usable_cores
from transparency import extend_colors, reach


def main():
    """Reads the flags, enlarges one image, returns 0."""
    parser = Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model", metavar="MODEL.tflite", help="its manifest (.json) beside it")
    parser.add_argument("input", metavar="IN")
    parser.add_argument("output", metavar="OUT")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    parser.add_argument("--threads", type=whole(1, MOST_THREADS), default=min(4, usable_cores()))
    parser.add_argument("--delegate", default="auto", help="as for check.py: auto, xnnpack, none or a library")
    parser.add_argument("--tile", type=whole(1), default=256, help="side, for models of dynamic shape (default 256)")
    flags = parser.parse_args()
    manifest = read_manifest(flags.model)
    fault = identity_fault(flags.model, manifest)
    if fault:
        raise CannotRun(f"{flags.model}: {fault}.")
    if pictures.same_file(flags.input, flags.output):
        raise CannotRun(f"{flags.output}: is the input; the result must not replace it.")
    pictures.check_output(flags.output, flags.overwrite)
    pixels, alpha, profile = pictures.read(flags.input)
    larger = tuple(manifest["scale"] * side for side in pixels.shape[:2])
    pictures.check_format(flags.output, larger, alpha is not None)
    if alpha is not None:
        pixels = extend_colors(pixels, alpha, reach(manifest["halo"], manifest["scale"]))

    def model(shape):
        return Model(flags.model, flags.threads, chosen_delegate(flags.delegate, manifest["mode"]), shape)

    enlarged = upscale(model, manifest, pixels, flags.tile, _show_progress)
    if alpha is not None:
        alpha = pictures.enlarge_bytes(alpha, manifest["scale"])
    pictures.write(flags.output, enlarged, alpha, profile, flags.overwrite)
    return 0


def upscale(model, manifest, pixels, tile=256, progress=None):
    """Enlarges an image by the model's scale, a row of tiles at a time: memory follows the tile, not the image.

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
    scale, gray, narrow = manifest["scale"], pixels.ndim == 2, False
    whole = manifest["pipeline"] == "rgb"
    colour = whole or manifest.get("channels", 1) == 3
    result = np.empty((scale * pixels.shape[0], scale * pixels.shape[1], *pixels.shape[2:]), np.uint8)
    tiles = Tiles(model, manifest, pixels.shape[:2] if whole else result.shape[:2], tile, progress)
    if colour:
        given = np.broadcast_to(pixels[..., None], (*pixels.shape, 3)) if gray else pixels
        convert = pictures.unit
    else:
        # A grid has no room for what enlargement adds beyond black and white: a gray picture goes as its colours' luma.
        narrow = gray and manifest["input"]["dtype"] != "float32"
        convert = pictures.luma_of_gray if narrow else pictures.unit if gray else _ycbcr_of_bytes
        given = pixels[..., None] if gray else pixels
    for top, bottom, first, last in tiles.bands:
        ilr = given[top:bottom] if whole else pictures.enlarge(given, scale, (top, bottom), convert)
        sr = tiles.run(ilr if colour else ilr[..., :1], first - top, last - top) / output_peak(manifest)
        if not colour and not gray:
            ilr = ilr[first - top : last - top]
            ilr[..., 0] = sr[..., 0]
            sr = pictures.ycbcr_to_rgb(ilr)
        elif narrow:
            sr = pictures.gray_of_luma(sr)
        rows = slice(tiles.factor * first, tiles.factor * last)
        result[rows] = pictures.to_bytes(sr.mean(axis=2) if gray else sr)
    return result


def _ycbcr_of_bytes(pixels):
    return pictures.rgb_to_ycbcr(pixels / 255.0)


class Tiles:
    """A model ready to run over an image of any size, a row of tiles after the other.

    Args:
        model, manifest, tile, progress: as for `upscale`.
        size: (height, width) of the image that the model takes: the ILR for luma files.

    Attributes:
        factor: output pixels per pixel of the model's input: the scale for rgb files, 1 for luma's, which take ILR.
        bands: list of (top, bottom, first, last), pixels of the model's input: the tiles of a row cover top to
            bottom, and first to last is taken from them.
    """

    def __init__(self, model, manifest, size, tile=256, progress=None):
        whole = manifest["pipeline"] == "rgb"
        self.factor = manifest["scale"] if whole else 1
        self._manifest = manifest
        halo = manifest.get("lr_halo", manifest["halo"]) if whole else manifest["halo"]
        own = manifest["input"]["shape"][1:3]
        if -1 in own and tile <= 2 * halo and max(size) > tile:
            raise CannotRun(f"--tile={tile} leaves nothing beside a halo of {halo} on either side; expected more.")
        self._sides = [min(tile if side < 1 else side, length) for side, length in zip(own, size, strict=True)]
        downward, self._across = (plan(length, side, halo) for length, side in zip(size, self._sides, strict=True))
        self.bands = [(top, top + self._sides[0], first, last) for top, first, last in downward]
        self._model = _load(model, own, self._sides, manifest["input"]["shape"][3], size, self.factor)
        self._progress, self._done = progress, 0

    def run(self, image, first, last):
        """One row of tiles.

        Args:
            image: (rows of a tile, width, channels) in the manifest's unit, before any quantisation.
            first, last: the rows of it that are taken.

        Returns:
            float32 (factor * (last - first), factor * width, channels) in the manifest's unit.
        """
        result, factor = None, self.factor
        image = to_tensor(image, self._manifest["input"])
        for left, first_column, last_column in self._across:
            output = self._model.run(image[None, :, left : left + self._sides[1]])[0]
            if result is None:
                result = np.empty((factor * (last - first), factor * image.shape[1], output.shape[2]), np.float32)
            result[:, factor * first_column : factor * last_column] = from_tensor(
                output[
                    factor * first : factor * last,
                    factor * (first_column - left) : factor * (last_column - left),
                ],
                self._manifest["output"],
            )
            self._done += 1
            if self._progress:
                self._progress(self._done, len(self.bands) * len(self._across))
        return result


def _load(model, own, sides, channels, size, factor):
    """The model for tiles of `sides`, resized where they are not its own."""
    if sides == own:
        return model(None)
    try:
        loaded = model((1, *sides, channels))
        if loaded.output["shape"][1:3] == (factor * sides[0], factor * sides[1]):
            return loaded
    except CannotRun:
        model(None)  # Raises again where the threads or the delegate are at fault, not the size.
    raise CannotRun(
        f"the image gives {size[1]} x {size[0]} pixels; expected {own[1]} x {own[0]} or more, for this model cannot be "
        "resized: export it with a smaller --lr_width and --lr_height."
    )


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
