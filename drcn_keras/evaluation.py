"""Measures a model as the field does: `python -m drcn_keras.evaluate --model=MODEL[,MODEL] --data_dir=DIR[,DIR]`.

Each original is cut to a multiple of the scale, shrunk with MATLAB's bicubic, enlarged again and restored. PSNR
and SSIM are taken on Y, rounded to 8 bit, without a border of `scale` pixels. Bicubic enlargement is measured
beside every model and held against the published number: if it is off, so is everything else. With --lr_dir, LR
images of one's own take the place of shrunk originals.
"""

import collections
import itertools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags, logging
from tqdm import tqdm

from drcn_keras import commands
from drcn_keras.commands import FLAGS
from drcn_keras.errors import ArgumentError, UserError
from drcn_keras.files import make_folder, write_atomically
from drcn_keras.image import SCALES, as_scales
from drcn_keras.image_files import image_folders, list_images, read_image
from drcn_keras.inputs import check_scales, check_tile, load_for
from drcn_keras.lr_files import check_fit, matched
from drcn_keras.measuring import Restorer, measure
from drcn_keras.metrics import mean_psnr
from drcn_keras.precision import announced, chosen, define_precision
from drcn_keras.published import complaints
from drcn_keras.results import table, to_csv, to_json

if TYPE_CHECKING:
    from drcn_keras.model import DRCN

_Folders = str | os.PathLike | Sequence[str | os.PathLike]

DataSet = collections.namedtuple("DataSet", ["name", "paths", "lr_dir"])
DataSet.__doc__ = "A folder of originals: its name in results, its image files, the folder of their LR images or None."


def evaluate(
    model: "DRCN | str | os.PathLike",
    data_dir: _Folders,
    scale: int | Sequence[int] | None = None,
    tile: int | None = None,
    save_images: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
    self_ensemble: bool = False,
    lr_dir: _Folders | None = None,
    recursive: bool = False,
    precision: str = "float32",
) -> dict[str, list[dict[str, Any]]]:
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
        lr_dir: folder of LR images to restore as they are, or one for each of `data_dir`, found by name as
            `lr_files.matched` says; None: MATLAB's bicubic shrinks the originals.
        recursive: take every folder inside `data_dir` that holds images as a data set of its own, named by its path
            from there; those of `lr_dir` have the same paths.
        precision: as in `drcn_keras.upscale`; tables of float32, the default, are comparable.

    Returns:
        {"results": [{"dataset", "scale", "images": [{"name", "psnr", "ssim", "bicubic_psnr", "bicubic_ssim"}],
        "mean": {"psnr", "ssim", "bicubic_psnr", "bicubic_ssim", "recursion_psnr", "ensemble"}, "infinite"}]}, one
        result per folder and scale. PSNR in dB; "psnr" is the ensemble's; "recursion_psnr" has that of every single
        y_d, those that a thin ensemble leaves out too; "ensemble" lists the recursions d that it draws on. Both are
        empty for "bicubic". "infinite" names the images that one of the rows restored exactly: they are left out of
        the means of PSNR, unless there are no others. A result of `lr_dir` holds that folder as "lr_dir".

    Raises:
        UserError: an argument is wrong, no image can be measured, one is in the way, or has no LR image of its size.
    """
    scales = as_scales(scale)
    check_scales(scales)
    sets = data_sets(data_dir, lr_dir, recursive)
    precision, _ = chosen(precision)
    results = _results(model, sets, scales, tile, save_images, overwrite, progress, self_ensemble, precision)
    for complaint in complaints(results):
        logging.error(complaint)
    return {"results": results}


def _results(model, sets, scales, tile, save_images, overwrite, progress, self_ensemble, precision):
    """What `evaluate` returns as "results", without a word on bicubic rows that are off."""
    if model == "bicubic":
        if not scales:
            raise ArgumentError(f"bicubic has no scale of its own; expected `scale` with one of {SCALES}.")
        restorer = None
    else:
        network = load_for(model, scales)
        check_tile(tile, network)
        scales = scales or network.scales
        restorer = Restorer(network, tile, self_ensemble, precision)
    lr_paths = _lr_paths(sets, scales)
    targets = _targets(save_images, sets, scales, overwrite) if save_images else {}

    results = []
    total = len(scales) * sum(len(data_set.paths) for data_set in sets)
    with tqdm(total=total, unit="image", disable=not progress) as bar:
        for factor, data_set in itertools.product(scales, sets):
            bar.set_description(f"{data_set.name} x{factor}")
            measured = []
            for key in itertools.product(data_set.paths, (factor,)):
                measured.append(measure(*key, restorer, lr_paths.get(key), targets.get(key)))
                bar.update()
            results.append(_result(data_set, factor, measured, restorer.used if restorer else []))
    return results


def data_sets(data_dir: _Folders, lr_dir: _Folders | None = None, recursive: bool = False) -> list[DataSet]:
    """The data sets of `evaluate`'s arguments. Raises UserError where a folder is missing or holds no image."""
    folders = _listed(data_dir)
    lr_folders = _listed(lr_dir) or [None] * len(folders)
    if len(lr_folders) != len(folders):
        raise ArgumentError(f"`lr_dir` must name as many folders as `data_dir`, {len(folders)}; has {len(lr_folders)}.")
    sets = []
    for folder, lr_folder in zip(folders, lr_folders, strict=True):
        for inner in image_folders(folder) if recursive else [folder]:
            relative = os.path.relpath(inner, folder)
            name = os.path.basename(os.path.abspath(folder)) if relative == os.curdir else relative
            lr = lr_folder and os.path.normpath(os.path.join(lr_folder, relative))
            sets.append(DataSet(name, list_images(inner, quiet=recursive), lr))
    return sets


def _listed(folders):
    if folders is None:
        return []
    return [os.fspath(folder) for folder in ([folders] if isinstance(folders, (str, os.PathLike)) else folders)]


def _lr_paths(sets, scales):
    """The LR image of each (original, scale) where there are any, each of the size that fits."""
    pairs = {}
    for scale, data_set in itertools.product(scales, sets):
        if data_set.lr_dir:
            found = matched(data_set.paths, data_set.lr_dir, scale)
            pairs |= {(path, scale): lr for path, lr in zip(data_set.paths, found, strict=True)}
    # A size that does not fit is told before minutes are spent on other images.
    for (path, scale), lr_path in pairs.items():
        try:
            images = read_image(lr_path), read_image(path)
        except UserError:
            continue  # Skipped with a warning when its turn comes.
        check_fit(lr_path, *images, scale)
    return pairs


def _targets(folder, sets, scales, overwrite):
    """Where the restored image of each file goes. Raises UserError where something is in the way."""
    targets = {}
    for name, paths, _ in sets:
        for path, scale in itertools.product(paths, scales):
            stem = os.path.splitext(os.path.basename(path))[0]
            target = os.path.join(folder, name, f"{stem}_x{scale}.png")
            if target in targets.values():
                raise UserError(f"`save_images`: two images would become {target}; measure them one by one.")
            targets[path, scale] = target
        make_folder(os.path.join(folder, name))
    existing = [target for target in targets.values() if os.path.exists(target)]
    if existing and not overwrite:
        raise UserError(f"{existing[0]} exists ({len(existing)} restored images do); `overwrite` replaces them.")
    return targets


def _result(data_set, scale, measured, used):
    """What `evaluate` returns of one data set. `measured`: of `measure`, None for an image that was skipped."""
    name = data_set.name
    images = [image for image in measured if image]
    if not images:
        raise UserError(f"{name}: no image in this folder can be measured; see the warnings above.")
    if None in measured:
        logging.warning("%s: %d of %d images skipped", name, measured.count(None), len(measured))
    rows = [[image["psnr"], image["bicubic_psnr"], *image.pop("recursions")] for image in images]
    (psnr, bicubic_psnr, *recursion_psnr), infinite = mean_psnr(rows)
    mean = {
        "psnr": float(psnr),
        "ssim": float(np.mean([image["ssim"] for image in images])),
        "bicubic_psnr": float(bicubic_psnr),
        "bicubic_ssim": float(np.mean([image["bicubic_ssim"] for image in images])),
        "recursion_psnr": [float(value) for value in recursion_psnr],
        "ensemble": used,
    }
    result = {"dataset": name, "scale": scale, "images": images, "mean": mean}
    result["infinite"] = [images[index]["name"] for index in infinite]
    return result | ({"lr_dir": data_set.lr_dir} if data_set.lr_dir else {})


def define_flags():
    flags.DEFINE_list(
        "model",
        [],
        "trained DRCNs, separated by commas: presets such as mobile-x2, or .keras files that drcn_keras.train wrote; "
        'or "bicubic" (default: the preset mobile-x2, or that of --scale)',
    )
    commands.define_folders("data_dir", "folders of original images")
    flags.DEFINE_list(
        "scale", [], "2, 3 or 4, or several, separated by commas (default: all of the model's; needed for bicubic)"
    )
    flags.DEFINE_boolean(
        "self_ensemble", False, 'average over the eight flips and turns of each image: the field\'s "+" results'
    )
    commands.define_folders(
        "lr_dir",
        "folder of LR images to restore as they are, or one for each of --data_dir: 0801.png or 0801x2.png belongs to "
        "0801.png (default: shrink the originals)",
    )
    flags.DEFINE_boolean(
        "recursive", False, "take every folder inside --data_dir that holds images as a data set of its own"
    )
    flags.DEFINE_string("json", None, "file for the results of every image")
    flags.DEFINE_string("csv", None, "file for a line of every image: model, dataset, scale, image, PSNR, SSIM")
    flags.DEFINE_string("save_images", None, "folder for the restored images, one folder in it per data set")
    flags.DEFINE_integer(
        "tile",
        None,
        "pixels on a side that go through the network at once: less takes less memory and more time, the result is "
        "the same (default: 512, or less for a large network)",
    )
    flags.DEFINE_boolean("overwrite", False, "replace the files of --json, --csv and --save_images")
    define_precision("float32")
    commands.require("data_dir")


def main(argv):
    commands.refuse_arguments(argv)
    files = [(path, written) for path, written in ((FLAGS.json, to_json), (FLAGS.csv, to_csv)) if path]
    if len(files) == 2 and os.path.realpath(FLAGS.json) == os.path.realpath(FLAGS.csv):
        raise UserError(f"--json and --csv are the same file, {FLAGS.json}; expected two.")
    for path, _ in files:
        if os.path.isdir(path):
            raise UserError(f"{path} is a folder; expected a file.")
        if os.path.exists(path) and not FLAGS.overwrite:
            raise UserError(f"{path} exists; --overwrite replaces it.")
        make_folder(os.path.dirname(path) or ".")
    # What is wrong is told before Keras is loaded, and before minutes are spent on other models.
    scales = _scales(FLAGS.scale)
    sets = data_sets(FLAGS.data_dir, FLAGS.lr_dir, FLAGS.recursive)
    names = FLAGS.model or [commands.default_model(scale) for scale in scales or [None]]
    models = [name if name == "bicubic" else load_for(name, scales if FLAGS.model else ()) for name in names]
    asked = scales if FLAGS.model else []
    precision = announced(FLAGS.precision)
    results = []
    for name, model in zip(names, models, strict=True):
        measured = _results(
            model, sets, asked, FLAGS.tile, FLAGS.save_images, FLAGS.overwrite, True, FLAGS.self_ensemble, precision
        )
        # A row of its own: never to be mixed with plain results.
        label = name
        if name != "bicubic":
            label += "+" * FLAGS.self_ensemble + " (bfloat16)" * (precision == "bfloat16")
        for result in measured:
            print(table(result, label))
            results.append({"model": label, **result})
    for path, written in files:
        text = written({"results": results}).encode()
        write_atomically(path, lambda file, text=text: file.write(text))
    if wrong := dict.fromkeys(complaints(results)):
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
    commands.run(main, define_flags)
