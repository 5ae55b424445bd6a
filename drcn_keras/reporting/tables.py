"""The report's tables and sentences: what the numbers of several models say beside each other."""

import collections
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from drcn_keras.published import complaints, published
from drcn_keras.reporting import measured

if TYPE_CHECKING:
    from drcn_keras.model import DRCN

OTHERS = ["A+", "RFL", "SelfEx", "SRCNN", "DRCN"]  # The published methods beside bicubic, DRCN last.

Method = collections.namedtuple("Method", ["name", "first_ours"])


def benchmark(results: list[dict], families: dict[str, str]) -> dict:
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


def marks(values: Sequence[float | None], digits: int) -> list[str]:
    """ "best", "second" or "" for each number, as they are printed; None is never marked, and equals share a mark."""
    rounded = [None if value is None else round(value, digits) for value in values]
    ranks = sorted({value for value in rounded if value is not None}, reverse=True)
    places: dict[float | None, str] = dict(zip(ranks, ["best", "second"], strict=False))
    return [places.get(value, "") for value in rounded]


def findings(results: list[dict]) -> list[str]:
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
    ensembles = [parts(result) for result in results if len(result["recursion_psnr"]) > 1]
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


def parts(result: dict) -> dict:
    """The ensemble of a result beside its parts."""
    single = result["recursion_psnr"]
    kept = {key: result[key] for key in ("dataset", "scale", "model", "psnr")}
    return {**kept, "last": single[-1], "best": max(single), "best_depth": single.index(max(single)) + 1}


def gain(entry: dict) -> float:
    """dB over bicubic; 0 where both are exact, at infinite PSNR."""
    return 0.0 if entry["psnr"] == entry["bicubic_psnr"] else entry["psnr"] - entry["bicubic_psnr"]


def names_of(models: Sequence[str]) -> dict[str, str]:
    """A name for every model: its label, or the path where two would share it."""
    labels = collections.Counter(measured.label(model) for model in models)
    return {model: measured.label(model) if labels[measured.label(model)] == 1 else model for model in models}


def family(name: str) -> str:
    """A model's name without its scale: mobile for mobile-x2."""
    return re.sub(r"[-_]?x[234]+$", "", name) or name


def families(networks: "dict[str, DRCN]") -> dict[str, str]:
    """The column of each model in the benchmark table: its family, or itself where that would be ambiguous."""
    cells = collections.Counter((family(name), scale) for name, network in networks.items() for scale in network.scales)
    shared = {known for (known, _), count in cells.items() if count > 1}
    return {name: name if family(name) in shared else family(name) for name in networks}
