"""One HTML file that shows what models reach: tables, pictures, studies, learning curves; it needs no network.

drcn-report --model=A.keras,B.keras --data_dir=Set5,Set14 --output=DIR

The page carries crops of the images in --data_dir: publish it only where those images may be published.
"""

import csv
import datetime
import json
import os
import shlex
import tempfile
from collections.abc import Sequence

import jinja2

import drcn_keras
from drcn_keras import card, image_files
from drcn_keras.errors import UserError
from drcn_keras.files import make_folder, write_atomically
from drcn_keras.inputs import loaded
from drcn_keras.reporting import measured, pictures, plots, tables
from drcn_keras.reporting.pictures import data_uri
from drcn_keras.settings import Settings, as_json, spelled

FILE_NAME = "report.html"
GENERATOR = '<meta name="generator" content="drcn_keras report">'
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
IMAGE_COLUMNS = ["set", "scale", "model", "image", "bicubic dB", "dB", "gain dB", "bicubic SSIM", "SSIM"]


def report(
    models: Sequence[str],
    data_dir: Sequence[str],
    output: str,
    studies: str = "",
    runs: Sequence[str] = (),
    command: str = "",
) -> str:
    """Measures models and writes `output`/report.html.

    Args:
        models: files or names of presets.
        data_dir: folders of test images.
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
    _check_folders(data_dir)
    names = tables.names_of(models)
    page = {
        "version": drcn_keras.__version__,
        "date": datetime.date.today().isoformat(),
        "command": command,
        "curves": [_curve(run) for run in runs],
        "studies": _studies(studies) if studies else [],
        "image_columns": IMAGE_COLUMNS,
    }
    networks = {name: loaded(model) for model, name in names.items()}
    make_folder(output)
    with tempfile.TemporaryDirectory() as folder:
        results = _measure(names, networks, data_dir, folder)
        page["pictures"] = pictures.pictures(results)
    page |= _numbers(results, networks)
    page["models"] = [_model(model, name, networks[name]) for model, name in names.items()]
    page["sections"] = [(section, title) for section, title in SECTIONS.items() if page.get(section, True)]

    html = _template().render(page).encode()
    write_atomically(path, lambda file: file.write(html))
    return path


def _numbers(results, networks):
    """The page's tables and sentences."""
    return {
        "findings": tables.findings(results),
        "benchmark": tables.benchmark(results, tables.families(networks)),
        "ensemble": [tables.parts(result) for result in results],
        "images": [
            {**entry, "gain": tables.gain(entry), **{key: result[key] for key in ("dataset", "scale", "model")}}
            for result in results
            for entry in result["images"]
        ],
    }


def _measure(names, networks, data_dir, folder):
    """What `measured.measure` returns of every model, by data set and scale, with the place of the restored images."""
    results = []
    for place, (model, name) in enumerate(names.items()):
        restored = os.path.join(folder, str(place))
        for result in measured.measure(model, networks[name], data_dir, restored):
            results.append({**result, "model": name, "restored": restored})
    return sorted(results, key=lambda result: (data_dir.index(result["folder"]), result["scale"]))


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
            files = {"image": data_uri("image/png", picture.read()), "table": data_uri("text/csv", table.read())}
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
    return {"title": title, "image": data_uri("image/png", plots.png(plots.learning_curve(title, rows)))}


def _model(model, name, network):
    """What the page says of a model."""
    made = card.read(model)
    text = (
        f"For {measured.scales(network)}, F={network.filters} filters, D={network.recursions} recursions, "
        f"{network.count_params():,} parameters."
    )
    trained = measured.images(made)
    text += f" Trained on {trained}." if trained else ""
    if "val_psnr" in made:
        if "average" in made:
            count = len(made["average"])
            text += f" The mean of the weights of {count} network{'s' * (count != 1)} has "
        else:
            text += (
                f" The best epoch, {made['epoch']}, was reached after {made['minutes']:g} minutes on "
                f"{made['machine']}; it has "
            )
        text += (
            f"{made['val_psnr']:.2f} dB on {made['val_images']} validation images "
            f"(bicubic {made['val_bicubic_psnr']:.2f} dB)."
        )
    command = made.get("command", "")
    if "flags" in made and not command:
        defaults = as_json(Settings())
        flag_texts = [f"--{key}={spelled(value)}" for key, value in made["flags"].items() if value != defaults.get(key)]
        command = shlex.join(["python", "-m", "drcn_keras.train", *flag_texts])
    return {"name": name, "text": text, "command": command}


def _check_folders(data_dir):
    for folder in data_dir:
        image_files.list_images(folder)
    names = [os.path.basename(os.path.abspath(folder)) for folder in data_dir]
    if len(set(names)) < len(names):
        raise UserError(f"`data_dir`: two folders have one name: {', '.join(names)}.")


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
