"""Measures a model as the field does: `python -m drcn_keras.evaluate --model=MODEL[,MODEL] --data_dir=DIR[,DIR]`.

Each original is cut to a multiple of the scale, shrunk with MATLAB's bicubic, enlarged again and restored. PSNR
and SSIM are taken on Y, rounded to 8 bit, without a border of `scale` pixels. Bicubic enlargement is measured
beside every model and held against the published number: if it is off, so is everything else.
"""

import itertools
import json
import math
import os

import numpy as np
from absl import flags, logging
from tqdm import tqdm

from drcn_keras import errors
from drcn_keras.commands import check_scales, check_tile, default_model, load_for, prepare_tensorflow, warn_skipped
from drcn_keras.errors import UserError
from drcn_keras.files import make_folder, write_atomically
from drcn_keras.image import SCALES, as_scales, enlarge, luma, mod_crop, rgb_to_ycbcr, shrink, ycbcr_to_rgb
from drcn_keras.image_files import list_images, read_image, write_image
from drcn_keras.metrics import SSIM_WINDOW, comparable, eight_bit, psnr, ssim
from drcn_keras.published import complaints, published
from drcn_keras.tiling import compiled, default_tile, restoring, tiles


def evaluate(
    model, data_dir, scale=None, tile=None, save_images=None, overwrite=False, progress=False, self_ensemble=False
):
    """Measures a model, and bicubic enlargement beside it, on folders of originals.

    Args:
        model: a `DRCN`, what `drcn_keras.load` takes, or "bicubic" for the baseline alone.
        data_dir: folder, or a list of folders. Images that cannot be read or are too small are skipped with a warning.
        scale: 2, 3 or 4, or a list of them; None: all of the model's.
        tile: side of the largest window, in pixels, that goes through the network at once; None: 512, or less for a
            large network. The results do not depend on it.
        save_images: folder for the restored images, <folder's name>/<image>_x<scale>.png; None: keep none.
        overwrite: replace files in `save_images`.
        progress: show a progress bar on standard error.
        self_ensemble: average over the eight flips and turns of each image, the field's "+" results.

    Returns:
        {"results": [{"dataset", "scale", "images": [{"name", "psnr", "ssim", "bicubic_psnr", "bicubic_ssim"}],
        "mean": {"psnr", "ssim", "bicubic_psnr", "bicubic_ssim", "recursion_psnr", "ensemble"}}]}, one result per
        folder and scale. PSNR in dB; "psnr" is the ensemble's; "recursion_psnr" has that of every single y_d, those
        that a thin ensemble leaves out too; "ensemble" lists the recursions d that it draws on. Both are empty for
        "bicubic".

    Raises:
        UserError: a folder, the model or `scale` is wrong, no image can be measured, or an image is in the way.
    """
    folders = [data_dir] if isinstance(data_dir, (str, os.PathLike)) else list(data_dir)
    scales = as_scales(scale)
    check_scales(scales)
    paths = [list_images(folder) for folder in folders]
    names = [os.path.basename(os.path.abspath(folder)) for folder in folders]
    if model == "bicubic":
        if not scales:
            raise UserError(f"bicubic has no scale of its own; expected --scale with one of {SCALES}.")
        restorer = None
    else:
        model = load_for(model, scales)
        check_tile(tile, model)
        scales = scales or model.scales
        restorer = _Restorer(model, tile, self_ensemble)
    targets = _targets(save_images, names, paths, scales, overwrite) if save_images else {}

    used = [] if restorer is None else restorer.used
    results = []
    with tqdm(total=len(scales) * sum(map(len, paths)), unit="image", disable=not progress) as bar:
        for scale, (name, files) in itertools.product(scales, zip(names, paths, strict=True)):
            bar.set_description(f"{name} x{scale}")
            measured = [_measured(path, scale, restorer, targets.get((path, scale)), bar) for path in files]
            results.append(_result(name, scale, [image for image in measured if image], used))
            if None in measured:
                logging.warning("%s: %d of %d images skipped", name, measured.count(None), len(measured))
    for complaint in complaints(results):
        logging.error(complaint)
    return {"results": results}


def _targets(folder, names, paths, scales, overwrite):
    """Where the restored image of each file goes. Raises UserError where something is in the way."""
    targets = {}
    for name, files in zip(names, paths, strict=True):
        for path, scale in itertools.product(files, scales):
            stem = os.path.splitext(os.path.basename(path))[0]
            target = os.path.join(folder, name, f"{stem}_x{scale}.png")
            if target in targets.values():
                raise UserError(f"--save_images: two images would become {target}; measure them one by one.")
            targets[path, scale] = target
        make_folder(os.path.join(folder, name))
    existing = [target for target in targets.values() if os.path.exists(target)]
    if existing and not overwrite:
        raise UserError(f"{existing[0]} exists ({len(existing)} restored images do); --overwrite replaces them.")
    return targets


def _measured(path, scale, restorer, target, bar):
    """The numbers of one image, "recursions" among them; None where it cannot be measured."""
    bar.update()
    try:
        original = mod_crop(read_image(path), scale)
    except UserError as error:
        warn_skipped(error)
        return None
    if min(original.shape[:2]) < SSIM_WINDOW + 2 * scale:
        smallest = SSIM_WINDOW + 2 * scale
        height, width = original.shape[:2]
        warn_skipped(f"{path}: {width} x {height}, smaller than {smallest} pixels")
        return None
    gray = luma(original) / 255.0
    reference = comparable(gray, scale)
    bicubic = enlarge(shrink(gray, scale), scale)
    if restorer is None:
        sr, recursions = bicubic, []
    else:
        sr, recursions = restorer(original / 255.0 if restorer.channels == 3 else gray, scale)
    if target:
        write_image(target, _in_color(sr, original, scale))
    enlarged, restored = comparable(bicubic, scale), comparable(sr, scale)
    return {
        "name": os.path.basename(path),
        "psnr": psnr(reference, restored),
        "ssim": ssim(reference, restored),
        "bicubic_psnr": psnr(reference, enlarged),
        "bicubic_ssim": ssim(reference, enlarged),
        "recursions": [psnr(reference, comparable(image, scale)) for image in recursions],
    }


class _Restorer:
    """Shrinks an original, enlarges it again and sends it through the network, tile by tile.

    Args:
        model: a `DRCN`.
        tile: pixels, or None.
        self_ensemble: see `evaluate`.

    Call arguments:
        original: float (height, width) or (height, width, 3) in [0, 1].

    Returns:
        (the ensemble, the list of the D single reconstructions), float32 of the original's shape.
    """

    def __init__(self, model, tile, self_ensemble=False):
        import keras

        from drcn_keras.inference import used_recursions

        self.channels = model.channels
        self.halo = model.halo
        # Few feature maps are alive at once: every recursion is reconstructed as soon as it is computed.
        self.tile = tile or default_tile(model, 8)
        self.weights = np.asarray(model.get_layer("ensemble").get_weights()[0], np.float64)
        self.used = used_recursions(model)
        ilr = keras.Input((None, None, model.channels))
        self.network = restoring(compiled(keras.Model(ilr, model.reconstructions(ilr))), self_ensemble)

    def __call__(self, original, scale):
        gray = original.ndim == 2
        ilr = enlarge(shrink(original, scale), scale).reshape(*original.shape[:2], -1)
        if gray and self.channels == 3:
            ilr = np.repeat(ilr, 3, axis=2)
        ilr = ilr.astype(np.float32)
        recursions = np.empty((len(self.weights), *ilr.shape), np.float32)
        height, width = ilr.shape[:2]
        for window, inner, kept in tiles(height, width, self.tile, self.halo):
            recursions[:, *kept] = self.network(ilr[window])[:, *inner]
        if gray:
            # The gray of a gray original is what is measured, not the Y of an RGB image made of it.
            recursions = recursions.mean(axis=3)
        # A recursion out of use has no say, not even as infinity times 0.
        used = np.array(self.used) - 1
        return np.tensordot(self.weights[used], recursions[used], 1), recursions


def _in_color(sr, original, scale):
    """The restored image to look at: 8 bit, with bicubic chroma where only luma was restored."""
    if sr.ndim == 2 and original.ndim == 3:
        ycbcr = rgb_to_ycbcr(enlarge(shrink(original / 255.0, scale), scale))
        ycbcr[..., 0] = sr
        sr = ycbcr_to_rgb(ycbcr)
    return eight_bit(sr)


def _result(name, scale, images, used):
    if not images:
        raise UserError(f"{name}: no image in this folder can be measured; see the warnings above.")
    recursions = [image.pop("recursions") for image in images]
    mean = {key: float(np.mean([image[key] for image in images])) for key in images[0] if key != "name"}
    mean["recursion_psnr"] = np.mean(recursions, axis=0).tolist()
    mean["ensemble"] = used
    return {"dataset": name, "scale": scale, "images": images, "mean": mean}


def table(result, label):
    """What the command prints of one result: the rows of bicubic, the model, the paper, and every recursion."""
    mean = result["mean"]
    rows = [("bicubic", mean["bicubic_psnr"], mean["bicubic_ssim"])]
    if label != "bicubic":
        rows.append((label, mean["psnr"], mean["ssim"]))
    known = {method: published(result["dataset"], result["scale"], method) for method in ("bicubic", "DRCN")}
    rows += [(f"paper: {method}", *row) for method, row in known.items() if row]
    width = max(len(row[0]) for row in rows)
    lines = [f"{result['dataset']} x{result['scale']}, {len(result['images'])} images"]
    lines += [f"  {name:{width}}  {decibels:6.2f} dB  {similarity:.4f}" for name, decibels, similarity in rows]
    if mean["recursion_psnr"]:
        single = " ".join(f"{value:.2f}" for value in mean["recursion_psnr"])
        count, used = len(mean["recursion_psnr"]), mean["ensemble"]
        whose = "their ensemble" if len(used) == count else f"the ensemble of {', '.join(map(str, used))} alone"
        lines.append(f"  recursions 1 to {count}: {single}; {whose}: {mean['psnr']:.2f} dB")
    return "\n".join(lines)


def to_json(results):
    """The results as JSON text. Infinity, the PSNR of equal images, has no JSON number and becomes null."""

    def finite(value):
        if isinstance(value, dict):
            return {key: finite(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [finite(entry) for entry in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(results), indent=2, allow_nan=False) + "\n"


def define_flags():
    flags.DEFINE_list(
        "model",
        [],
        "trained DRCNs, separated by commas: presets such as mobile-x2, or .keras files that drcn_keras.train wrote; "
        'or "bicubic" (default: the preset mobile-x2, or that of --scale)',
    )
    flags.DEFINE_list("data_dir", None, "folders of original images, separated by commas")
    flags.DEFINE_list(
        "scale", [], "2, 3 or 4, or several, separated by commas (default: all of the model's; needed for bicubic)"
    )
    flags.DEFINE_boolean(
        "self_ensemble", False, 'average over the eight flips and turns of each image: the field\'s "+" results'
    )
    flags.DEFINE_string("json", None, "file for the results of every image")
    flags.DEFINE_string("save_images", None, "folder for the restored images, one folder in it per data set")
    flags.DEFINE_integer(
        "tile",
        None,
        "pixels on a side that go through the network at once: less takes less memory and more time, the result is "
        "the same (default: 512, or less for a large network)",
    )
    flags.DEFINE_boolean("overwrite", False, "replace the files of --json and --save_images")


def main(argv):
    given = flags.FLAGS
    errors.refuse_arguments(argv)
    if not given.data_dir:
        raise UserError("--data_dir is required (--help lists every flag).")
    if given.json:
        if os.path.exists(given.json) and not given.overwrite:
            raise UserError(f"{given.json} exists; --overwrite replaces it.")
        make_folder(os.path.dirname(given.json) or ".")
    # What is wrong is told before Keras is loaded, and before minutes are spent on other models.
    scales = _scales(given.scale)
    for folder in given.data_dir:
        list_images(folder)
    names = given.model or [default_model(scale) for scale in scales or [None]]
    models = [name if name == "bicubic" else load_for(name, scales if given.model else ()) for name in names]
    results = []
    for name, model in zip(names, models, strict=True):
        measured = evaluate(
            model,
            given.data_dir,
            (scales if given.model else None) or None,
            given.tile,
            given.save_images,
            given.overwrite,
            progress=True,
            self_ensemble=given.self_ensemble,
        )
        # A row of its own: never to be mixed with plain results.
        label = f"{name}+" if given.self_ensemble and name != "bicubic" else name
        for result in measured["results"]:
            print(table(result, label))
            results.append({"model": label, **result})
    if given.json:
        write_atomically(given.json, lambda file: file.write(to_json({"results": results}).encode()))
    if wrong := complaints(results):
        raise UserError(" ".join(wrong))


def _scales(texts):
    try:
        scales = [int(text) for text in texts]
    except ValueError:
        raise UserError(f"--scale must be 2, 3 or 4, or several of them; received {','.join(texts)}.") from None
    check_scales(scales)
    return scales


def run():
    """The command `drcn-evaluate`."""
    prepare_tensorflow()
    define_flags()
    errors.run(main)
