"""One HTML file that shows what models reach: tables, pictures, studies, learning curves; it needs no network.

drcn-report --model=A.keras,B.keras --data_dir=Set5,Set14 --output=DIR

The page carries crops of the images in --data_dir: publish it only where those images may be published.
"""

import base64
import collections
import csv
import datetime
import io
import json
import os
import re
import shlex
import sys
import tempfile

import jinja2
import numpy as np
from absl import flags
from PIL import Image, ImageDraw
from tqdm import tqdm

import drcn_keras
from drcn_keras import card, commands, image, image_files
from drcn_keras.commands import FLAGS
from drcn_keras.errors import UserError
from drcn_keras.files import make_folder, write_atomically
from drcn_keras.metrics import eight_bit
from drcn_keras.published import complaints, published
from drcn_keras.reporting import measured, plots
from drcn_keras.settings import Settings, as_json, spelled

FILE_NAME = "report.html"
GENERATOR = '<meta name="generator" content="drcn_keras report">'
CROP = 160  # Pixels of a side of the part that is carried along, and twice what is shown at first.
WHOLE = 320  # Pixels of the longer side of the small whole picture.
STUDY_TITLES = {
    "recursions": "More recursions",
    "ensemble": "Single recursions and their ensemble",
    "weights": "The learned ensemble weights",
}
SECTIONS = {  # In the page's order; those whose list is empty are left out.
    "findings": "Findings",
    "benchmark": "Benchmark",
    "pictures": "Side by side",
    "images": "Every image",
    "ensemble": "Ensemble",
    "studies": "Studies",
    "curves": "Learning curves",
    "models": "Models",
}
OTHERS = ["A+", "RFL", "SelfEx", "SRCNN", "DRCN"]  # The published methods beside bicubic, DRCN last.
IMAGE_COLUMNS = ["set", "scale", "model", "image", "bicubic dB", "dB", "gain dB", "bicubic SSIM", "SSIM"]

Method = collections.namedtuple("Method", ["name", "first_ours"])


def report(models, data_dirs, output, studies="", runs=(), command=""):
    """Measures models and writes `output`/report.html.

    Args:
        models: list of files or preset names.
        data_dirs: folders of test images.
        output: folder, made when it is missing.
        studies: folder that drcn-study wrote to, or "".
        runs: folders of trainings, for their log.csv.
        command: what the page says it was made by.

    Returns:
        The path of the page.

    Raises:
        UserError: a model, a folder or an image is wrong, or the page would replace a file that is no report.
    """
    path = os.path.join(output, FILE_NAME)
    _check_replaceable(path)
    _check_folders(data_dirs)
    names = _names(models)
    page = {
        "version": drcn_keras.__version__,
        "date": datetime.date.today().isoformat(),
        "command": command,
        "curves": [_curve(run) for run in runs],
        "studies": _studies(studies) if studies else [],
        "image_columns": IMAGE_COLUMNS,
    }
    networks = {name: drcn_keras.load(model) for model, name in names.items()}
    make_folder(output)
    with tempfile.TemporaryDirectory() as folder:
        results = _measure(names, networks, data_dirs, folder)
        page["pictures"] = _pictures(results)
    page["findings"] = findings(results)
    page["benchmark"] = benchmark(results, _families(networks))
    page["ensemble"] = [_parts(result) for result in results]
    page["images"] = [
        {**entry, "gain": gain(entry), **{key: result[key] for key in ("dataset", "scale", "model")}}
        for result in results
        for entry in result["images"]
    ]
    page["models"] = [_model(model, name, networks[name]) for model, name in names.items()]
    page["sections"] = [(section, title) for section, title in SECTIONS.items() if page.get(section, True)]

    html = _template().render(page).encode()
    write_atomically(path, lambda file: file.write(html))
    return path


def _measure(names, networks, data_dirs, folder):
    """What `measured.measure` returns of every model, by data set and scale, with the place of the restored images."""
    results = []
    for place, (model, name) in enumerate(names.items()):
        restored = os.path.join(folder, str(place))
        for result in measured.measure(model, networks[name], data_dirs, restored):
            results.append({**result, "model": name, "restored": restored})
    return sorted(results, key=lambda result: (data_dirs.index(result["folder"]), result["scale"]))


def benchmark(results, families):
    """The benchmark table.

    Args:
        results: list of dicts as `measured.measure` returns them.
        families: dict of a model's name to the column it belongs to.

    Returns:
        {"methods": list of Method, "rows": list of {"dataset", "scale", "group", "cells"}}. A cell has "psnr", "ssim"
        (None where there is none), their marks "best", "second" or "", and whether it begins our columns.
    """
    ours = list(dict.fromkeys(families[result["model"]] for result in results))
    pairs = list(dict.fromkeys((result["dataset"], result["scale"]) for result in results))
    others = OTHERS if any(published(*pair, "DRCN") for pair in pairs) else []
    rows, before = [], None
    for dataset, scale in pairs:
        here = [result for result in results if (result["dataset"], result["scale"]) == (dataset, scale)]
        values = [(here[0]["bicubic_psnr"], here[0]["bicubic_ssim"])]
        values += [published(dataset, scale, method) or (None, None) for method in others]
        mine = {families[result["model"]]: (result["psnr"], result["ssim"]) for result in here}
        values += [mine.get(family, (None, None)) for family in ours]
        psnr_marks = marks([psnr for psnr, _ in values], 2)
        ssim_marks = marks([ssim for _, ssim in values], 4)
        cells = [
            {"psnr": psnr, "ssim": ssim, "mark": mark, "ssim_mark": ssim_mark, "first_ours": place == len(others) + 1}
            for place, ((psnr, ssim), mark, ssim_mark) in enumerate(zip(values, psnr_marks, ssim_marks, strict=True))
        ]
        rows.append({"dataset": dataset, "scale": scale, "group": dataset != before, "cells": cells})
        before = dataset
    titles = ["bicubic", *(f"{method} (paper)" if method == "DRCN" else method for method in others), *ours]
    methods = [Method(title, place == len(others) + 1) for place, title in enumerate(titles)]
    return {"methods": methods, "rows": rows}


def marks(values, digits):
    """ "best", "second" or "" for each number, as they are printed; None is never marked, and equals share a mark."""
    rounded = [None if value is None else round(value, digits) for value in values]
    ranks = sorted({value for value in rounded if value is not None}, reverse=True)
    places = dict(zip(ranks, ["best", "second"], strict=False))
    return [places.get(value, "") for value in rounded]


def findings(results):
    """What the numbers say, sentence by sentence."""
    sentences = []
    off = complaints(results)
    sentences += off
    if not off and any(published(result["dataset"], result["scale"], "bicubic") for result in results):
        sentences.append("The bicubic rows measured here match the published ones to 0.02 dB, so the table compares.")
    for result in results:
        text = (
            f"{_place(result)}: {result['model']} reaches {result['psnr']:.2f} dB, {gain(result):+.2f} against bicubic"
        )
        for method in ("SRCNN", "DRCN"):
            if known := published(result["dataset"], result["scale"], method):
                text += f", {result['psnr'] - known[0]:+.2f} against {method} as published"
        sentences.append(text + ".")
    # The ensemble of one recursion is no ensemble.
    ensembles = [_parts(result) for result in results if len(result["recursion_psnr"]) > 1]
    return [*sentences, _ensemble_finding(ensembles)] if ensembles else sentences


def _ensemble_finding(rows):
    claim = "that the ensemble beats every single recursion"
    losses = [row for row in rows if row["psnr"] <= row["best"]]
    if not losses:
        return f"The paper's claim {claim} holds on average in {len(rows)} of {len(rows)} measurements."
    where = "; ".join(f"{row['model']} on {_place(row)} ({row['psnr'] - row['best']:+.3f} dB)" for row in losses)
    return f"The paper's claim {claim} does not hold in {len(losses)} of {len(rows)} measurements: {where}."


def _place(result):
    return f"{result['dataset']} x{result['scale']}"


def _parts(result):
    """The ensemble of a result beside its parts."""
    single = result["recursion_psnr"]
    kept = {key: result[key] for key in ("dataset", "scale", "model", "psnr")}
    return {**kept, "last": single[-1], "best": max(single), "best_depth": single.index(max(single)) + 1}


def _pictures(results):
    """For each set and scale, the frames of the pictures with the largest, the middle and the smallest gain."""
    groups = {}
    for result in results:
        groups.setdefault((result["dataset"], result["scale"]), []).append(result)
    shown = []
    with tqdm(total=3 * len(groups), desc="pictures", unit="picture") as progress:
        for (dataset, scale), group in groups.items():
            pictures = []
            for index, why in chosen(group):
                pictures.append(_picture(group, index, why, scale))
                progress.update()
            shown.append({"dataset": dataset, "scale": scale, "pictures": pictures})
    return shown


def chosen(group):
    """Which images of a set to show: [(index, why)], by the mean gain over the models of `group`."""
    gains = np.mean([[gain(entry) for entry in result["images"]] for result in group], axis=0)
    order = np.argsort(-gains)
    places = {0: "largest gain", len(order) // 2: "middle gain", len(order) - 1: "smallest gain"}
    return [(int(order[place]), f"{why}: {gains[order[place]]:+.2f} dB") for place, why in places.items()]


def gain(entry):
    """dB over bicubic; 0 where both are exact, at infinite PSNR."""
    return 0.0 if entry["psnr"] == entry["bicubic_psnr"] else entry["psnr"] - entry["bicubic_psnr"]


def _picture(group, index, why, scale):
    """One picture, for the page: the whole of it, and a part as it was, as bicubic and as each model made it."""
    name = group[0]["images"][index]["name"]
    hr = image.mod_crop(image_files.read_image(os.path.join(group[0]["folder"], name)), scale)
    bicubic = eight_bit(image.enlarge(image.shrink(hr / 255.0, scale), scale))
    part, (x, y) = hardest_part(hr, bicubic)
    first = group[0]["images"][index]
    frames = [
        {"title": "original", "psnr": None, "image": _png_uri(hr[part])},
        {
            "title": "bicubic",
            "psnr": first["bicubic_psnr"],
            "ssim": first["bicubic_ssim"],
            "image": _png_uri(bicubic[part]),
        },
    ]
    for result in group:
        restored = f"{os.path.splitext(name)[0]}_x{scale}.png"
        sr = image_files.read_image(os.path.join(result["restored"], result["dataset"], restored))
        measured = {key: result["images"][index][key] for key in ("psnr", "ssim")}
        frames.append({"title": result["model"], **measured, "image": _png_uri(sr[part])})
    return {"name": name, "why": why, "whole": _whole_uri(hr, part), "x": x, "y": y, "frames": frames}


def hardest_part(hr, bicubic):
    """The part to carry along, and where in it bicubic errs most.

    Args:
        hr, bicubic: uint8 (height, width) or (height, width, 3).

    Returns:
        (rows and columns as a tuple of slices, (x, y)): a square of CROP pixels or what the image has, with the
        window of half its side that has the largest squared error; x and y in [0, 1] say where that window lies.
    """
    error = np.square(hr.astype(float) - bicubic).reshape(*hr.shape[:2], -1).mean(axis=-1)
    side = min(CROP, *error.shape)
    window = max(1, side // 2)
    total = np.pad(error, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    sums = total[window:, window:] - total[:-window, window:] - total[window:, :-window] + total[:-window, :-window]
    top, left = np.unravel_index(np.argmax(sums), sums.shape)
    starts = [
        int(np.clip(start - (side - window) // 2, 0, length - side))
        for start, length in zip((top, left), error.shape, strict=True)
    ]
    room = max(1, side - window)
    place = (float(left - starts[1]) / room, float(top - starts[0]) / room)
    return tuple(slice(start, start + side) for start in starts), place


def _whole_uri(hr, part):
    """The whole picture made small, the part framed, as a data URI."""
    picture = Image.fromarray(hr).convert("RGB")
    factor = min(1.0, WHOLE / max(picture.size))
    picture = picture.resize([max(1, round(side * factor)) for side in picture.size], Image.Resampling.LANCZOS)
    box = [factor * part[axis].start for axis in (1, 0)] + [factor * part[axis].stop - 1 for axis in (1, 0)]
    ImageDraw.Draw(picture).rectangle(box, outline="yellow", width=2)
    packed = io.BytesIO()
    picture.save(packed, "JPEG", quality=85)
    return _uri("image/jpeg", packed.getvalue())


def _png_uri(pixels):
    packed = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(packed, "PNG", optimize=True)
    return _uri("image/png", packed.getvalue())


def _uri(kind, data):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _studies(folder):
    """The studies that stand in a folder, for the page."""
    if not os.path.isdir(folder):
        raise UserError(f"`studies`: no folder at {folder}.")
    shown = []
    for name, title in STUDY_TITLES.items():
        path = os.path.join(folder, name)
        if not os.path.isfile(path + ".json"):
            continue
        with open(path + ".json") as file:
            study = json.load(file)
        with open(path + ".png", "rb") as picture, open(path + ".csv", "rb") as table:
            files = {"image": _uri("image/png", picture.read()), "table": _uri("text/csv", table.read())}
        shown.append({"name": name, "title": title, "caption": study["caption"], "command": study["command"], **files})
    if not shown:
        raise UserError(f"`studies`: {folder} holds no study; drcn-study writes them.")
    return shown


def _curve(run):
    """The learning curve of a training's folder, for the page."""
    path = os.path.join(run, "log.csv")
    try:
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError as error:
        raise UserError(f"`runs`: no log.csv in {run}; expected a folder that drcn_keras.train wrote.") from error
    if not rows or not {"epoch", "loss", "val_psnr", "val_bicubic"} <= rows[0].keys():
        raise UserError(f"`runs`: {path} is not a log of drcn_keras.train with an epoch in it.")
    title = os.path.basename(os.path.normpath(run))
    return {"title": title, "image": _uri("image/png", plots.png(plots.learning_curve(title, rows)))}


def _model(model, name, network):
    """What the page says of a model."""
    made = card.read(model)
    text = (
        f"For {measured.scales(network)}, F={network.filters} filters, D={network.recursions} recursions, "
        f"{network.count_params():,} parameters."
    )
    if made:
        text += (
            f" Trained on {measured.images(made)}; its best epoch, "
            f"{made['epoch']}, was reached after {made['minutes']:g} minutes on {made['machine']}, with "
            f"{made['val_psnr']:.2f} dB on {made['val_images']} validation images "
            f"(bicubic {made['val_bicubic_psnr']:.2f} dB)."
        )
    command = made.get("command", "")
    if made and not command:
        defaults = as_json(Settings())
        flag_texts = [f"--{key}={spelled(value)}" for key, value in made["flags"].items() if value != defaults.get(key)]
        command = shlex.join(["python", "-m", "drcn_keras.train", *flag_texts])
    return {"name": name, "text": text, "command": command}


def _names(models):
    """A name for every model: its label, or the path where two would share it."""
    labels = collections.Counter(measured.label(model) for model in models)
    return {model: measured.label(model) if labels[measured.label(model)] == 1 else model for model in models}


def _family(name):
    """A model's name without its scale: mobile for mobile-x2."""
    return re.sub(r"[-_]?x[234]+$", "", name) or name


def _families(networks):
    """The column of each model in the benchmark table: its family, or itself where that would be ambiguous."""
    cells = [(_family(name), scale) for name, network in networks.items() for scale in network.scales]
    return {name: _family(name) if len(set(cells)) == len(cells) else name for name in networks}


def _check_folders(data_dirs):
    for folder in data_dirs:
        image_files.list_images(folder)
    names = [os.path.basename(os.path.abspath(folder)) for folder in data_dirs]
    if len(set(names)) < len(names):
        raise UserError(f"`data_dirs`: two folders have one name: {', '.join(names)}.")


def _check_replaceable(path):
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder; the report would be a file of that name.")
    if os.path.exists(path):
        with open(path, "rb") as file:
            if GENERATOR.encode() not in file.read(1000):
                raise UserError(f"{path} exists and is no report of this tool; choose another `output`.")


def _template():
    folder = os.path.dirname(os.path.abspath(__file__))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("report.html")


def define_flags():
    """Defines this tool's flags."""
    flags.DEFINE_list("model", [], "trained models or preset names, separated by commas")
    flags.DEFINE_list("data_dir", [], "folders of test images, separated by commas")
    flags.DEFINE_string("output", "", f"folder for {FILE_NAME}")
    flags.DEFINE_string("studies", "", "folder that drcn-study wrote to")
    flags.DEFINE_list("runs", [], "folders of trainings whose learning curves to show, separated by commas")
    commands.require("model", "data_dir", "output")


def main(argv):
    commands.refuse_arguments(argv)
    command = shlex.join(["drcn-report", *sys.argv[1:]])
    path = report(FLAGS.model, FLAGS.data_dir, FLAGS.output, FLAGS.studies, FLAGS.runs, command)
    print(f"{path} written: open it in a browser")


def run():
    """The command `drcn-report`."""
    commands.run(main, define_flags)


if __name__ == "__main__":
    run()
