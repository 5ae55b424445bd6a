"""How close a file's images are to the float model's: on golden vectors, and on folders of photographs."""

import concurrent.futures
import functools
import os
from typing import Any

import numpy as np
from tqdm import tqdm

from drcn_keras import image_files, inference, metrics
from drcn_keras.data import load_pairs
from drcn_keras.export import runner
from drcn_keras.model import DRCN

IDENTICAL = 200.0


def psnr(reference: np.ndarray, outputs: np.ndarray, peak: float = 1.0) -> float:
    """PSNR in dB of outputs against the float model's, at most IDENTICAL, NaN where a value is.

    `peak`: the largest value of an image.
    """
    error = np.mean(np.square(reference.astype(np.float64) - outputs.astype(np.float64)))
    # np.minimum keeps a NaN, min would not.
    return float(np.minimum(IDENTICAL, 10.0 * np.log10(peak**2 / error))) if error else IDENTICAL


class TestSet:
    """Originals, their ILR and what the float model makes of it, computed once for many files.

    Args:
        model: `DRCN`.
        folder: of original photographs.
    """

    def __init__(self, model: DRCN, folder: str) -> None:
        self.name = os.path.basename(os.path.normpath(folder))
        self.scale = model.scales[0]
        self.pairs = load_pairs(image_files.list_images(folder), self.scale, model.channels)
        reference = inference.inference_model(model)
        self.expected = [
            np.asarray(reference(pair.ilr[None]))[0]
            for pair in tqdm(self.pairs, desc=self.name, unit="image", leave=False, disable=None)
        ]

    def measure(self, content: bytes) -> dict[str, Any]:
        """A luma file, its bytes, by the field's protocol, next to the float model.

        Returns:
            dict for the manifest: dataset, scale, and in dB psnr, float_psnr, drop, fidelity.
        """
        compare = functools.partial(self._compare, content)
        # One image a thread: not every kernel shares its work among threads.
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            rows = list(pool.map(compare, self.pairs, self.expected))
        psnr, float_psnr, close = np.mean(rows, axis=0)
        return {
            "dataset": self.name,
            "scale": self.scale,
            "psnr": float(psnr),
            "float_psnr": float(float_psnr),
            "drop": float(float_psnr - psnr),
            "fidelity": float(close),
        }

    def _compare(self, content, pair, expected):
        received = runner.Runner(content).real(pair.ilr)
        return (
            metrics.measured_psnr(pair.hr, received, self.scale),
            metrics.measured_psnr(pair.hr, expected, self.scale),
            psnr(np.clip(expected, 0.0, 1.0), np.clip(received, 0.0, 1.0)),
        )
