"""One image by the field's protocol: shrunk unless its LR image is given, restored, held against the original."""

import os

import numpy as np

from drcn_keras.errors import UserError
from drcn_keras.graphs import frozen
from drcn_keras.image import enlarge, luma, mod_crop, rgb_to_ycbcr, shrink, ycbcr_to_rgb
from drcn_keras.image_files import read_image
from drcn_keras.image_writing import write_image
from drcn_keras.inputs import warn_skipped
from drcn_keras.lr_files import alike, as_input, check_fit
from drcn_keras.metrics import SSIM_WINDOW, comparable, eight_bit, psnr, ssim
from drcn_keras.tiling import default_tile, recursions_of, restoring


def measure(
    path: str, scale: int, restorer: "Restorer | None" = None, lr_path: str | None = None, target: str | None = None
) -> dict | None:
    """Measures one image.

    Args:
        path: the original.
        scale: 2, 3 or 4.
        restorer: a `Restorer`; None: bicubic enlargement stands in its place.
        lr_path: its LR image, taken as it is; None: MATLAB's bicubic shrinks the original.
        target: file for the restored image; None: keep none.

    Returns:
        {"name", "psnr", "ssim", "bicubic_psnr", "bicubic_ssim", "recursions"}: PSNR in dB, "recursions" has that of
        every single y_d, none without a restorer. None where the image cannot be read or is too small: a warning
        says so.

    Raises:
        UserError: the LR image has another size than the original divided by `scale`, or `target` cannot be written.
    """
    pair = _read(path, scale, lr_path)
    if pair is None:
        return None
    original, lr = pair
    gray = luma(original) / 255.0
    if lr is None:
        # The field rounds Y before it shrinks it.
        lr_gray, lr = shrink(gray, scale), shrink(original / 255.0, scale)
    else:
        lr_gray, lr = as_input(lr, 1)[..., 0], lr / 255.0
    reference = comparable(gray, scale)
    bicubic = enlarge(lr_gray, scale)
    if restorer is None:
        sr, recursions = bicubic, []
    else:
        sr, recursions = restorer(lr if restorer.channels == 3 else lr_gray, scale)
    if target:
        write_image(target, _in_color(sr, lr, scale))
    enlarged, restored = comparable(bicubic, scale), comparable(sr, scale)
    return {
        "name": os.path.basename(path),
        "psnr": psnr(reference, restored),
        "ssim": ssim(reference, restored),
        "bicubic_psnr": psnr(reference, enlarged),
        "bicubic_ssim": ssim(reference, enlarged),
        "recursions": [psnr(reference, comparable(image, scale)) for image in recursions],
    }


def _read(path, scale, lr_path):
    """(the original, cut to a multiple of the scale, its LR image or None); None where that cannot be measured."""
    try:
        original = read_image(path)
        lr = None if lr_path is None else read_image(lr_path)
    except UserError as error:
        warn_skipped(error)
        return None
    if lr is not None:
        check_fit(lr_path, lr, original, scale)
        original, lr = alike(original, lr)
    original = mod_crop(original, scale)
    smallest = SSIM_WINDOW + 2 * scale
    if min(original.shape[:2]) < smallest:
        height, width = original.shape[:2]
        warn_skipped(f"{path}: {width} x {height}, smaller than {smallest} pixels")
        return None
    return original, lr


class Restorer:
    """Enlarges an LR image and sends it through the network, tile by tile.

    Args:
        model: a `DRCN`.
        tile: pixels, or None.
        self_ensemble: average over the eight flips and turns of each image.
        precision: "float32" or "bfloat16".

    Call arguments:
        lr: float (height, width) or (height, width, 3) in [0, 1].
        scale: the enlargement.

    Returns:
        (the ensemble, the list of the D single reconstructions), float32, `scale` times as high and wide.
    """

    def __init__(self, model, tile, self_ensemble=False, precision="float32"):
        from drcn_keras.inference import recursions_model, used_recursions

        # Whatever it was trained in, so that tables can be compared.
        model = model.computing_in("float32")
        self.channels = model.channels
        self.halo = model.halo
        # Few feature maps are alive at once: every recursion is reconstructed as soon as it is computed.
        self.tile = tile or default_tile(model, 8)
        self.weights = np.asarray(model.get_layer("ensemble").get_weights()[0], np.float64)
        self.used = used_recursions(model)
        self.network = restoring(frozen(recursions_model(model, precision)), self_ensemble)

    def __call__(self, lr, scale):
        gray = lr.ndim == 2
        ilr = enlarge(lr, scale)
        ilr = ilr.reshape(*ilr.shape[:2], -1)
        if gray and self.channels == 3:
            ilr = np.repeat(ilr, 3, axis=2)
        ilr = ilr.astype(np.float32)
        recursions = recursions_of(self.network, ilr, self.tile, self.halo)
        if gray:
            # The gray of a gray original is what is measured, not the Y of an RGB image made of it.
            recursions = recursions.mean(axis=3)
        # A recursion out of use has no say, not even as infinity times 0.
        used = np.array(self.used) - 1
        sr = np.tensordot(self.weights[used], recursions[used], 1)
        if not np.isfinite(sr).all():
            raise UserError("the model gives NaN or infinity for this image; its weights are damaged.")
        # A recursion out of use may hold anything: what is no number counts as black.
        return sr, np.nan_to_num(recursions, copy=False, nan=0.0)


def _in_color(sr, lr, scale):
    """The restored image to look at: 8 bit, with bicubic chroma where only luma was restored."""
    if sr.ndim == 2 and lr.ndim == 3:
        ycbcr = rgb_to_ycbcr(enlarge(lr, scale))
        ycbcr[..., 0] = sr
        sr = ycbcr_to_rgb(ycbcr)
    return eight_bit(sr)
