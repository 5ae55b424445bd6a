"""What a measurement looks like: the command's table, JSON and CSV of the results of `drcn_keras.evaluate`."""

import csv
import io
import json
import math

from drcn_keras.published import is_off, published

_COLUMNS = ("name", "psnr", "ssim", "bicubic_psnr", "bicubic_ssim")


def table(result: dict, label: str) -> str:
    """What the command prints of one result: the rows of bicubic, the model, the paper, and every recursion."""
    mean = result["mean"]
    rows = [("bicubic", mean["bicubic_psnr"], mean["bicubic_ssim"])]
    if label != "bicubic":
        rows.append((label, mean["psnr"], mean["ssim"]))
    known = {method: published(result["dataset"], result["scale"], method) for method in ("bicubic", "DRCN")}
    # LR images of one's own stand beside the paper's rows only where bicubic says that they are the paper's.
    if "lr_dir" in result and is_off(result):
        known = {}
    rows += [(f"paper: {method}", *row) for method, row in known.items() if row]
    width = max(len(row[0]) for row in rows)
    lines = [f"{result['dataset']} x{result['scale']}, {len(result['images'])} images"]
    lines += [f"  {name:{width}}  {decibels:6.2f} dB  {similarity:.4f}" for name, decibels, similarity in rows]
    if mean["recursion_psnr"]:
        single = " ".join(f"{value:.2f}" for value in mean["recursion_psnr"])
        count, used = len(mean["recursion_psnr"]), mean["ensemble"]
        whose = "their ensemble" if len(used) == count else f"the ensemble of {', '.join(map(str, used))} alone"
        lines.append(f"  recursions 1 to {count}: {single}; {whose}: {mean['psnr']:.2f} dB")
    if result["infinite"]:
        count, names = len(result["infinite"]), ", ".join(result["infinite"])
        lines.append(f"  restored exactly, infinite PSNR, left out of its means: {count} ({names})")
    return "\n".join(lines)


def to_json(results: dict) -> str:
    """The results as JSON text. Infinity, the PSNR of equal images, has no JSON number and becomes null."""

    def finite(value):
        if isinstance(value, dict):
            return {key: finite(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [finite(entry) for entry in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(results), indent=2, allow_nan=False) + "\n"


def to_csv(results: dict) -> str:
    """The results, each with its "model", as CSV text: a line for every image; PSNR in dB, inf for equal images."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("model", "dataset", "scale", "image", *_COLUMNS[1:]))
    for result in results["results"]:
        for image in result["images"]:
            key = (result["model"], result["dataset"], result["scale"])
            writer.writerow((*key, *(image[column] for column in _COLUMNS)))
    return text.getvalue()
