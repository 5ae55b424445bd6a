"""What a teacher makes of the training photographs: what a network may learn in place of the originals.

Knowledge distillation (Hinton, Vinyals, Dean, arXiv 1503.02531, section 2, with squared errors); not the paper's. Most
of an original's error cannot be known from its LR image: to the gradient it is noise, which a teacher's answer lacks.
"""

import dataclasses
import os
import zipfile
import zlib
from collections.abc import Sequence

import numpy as np
from absl import logging
from tqdm import tqdm

from drcn_keras.data import Pair
from drcn_keras.errors import ArgumentError, UserError
from drcn_keras.files import remove_partial, write_atomically
from drcn_keras.graphs import frozen
from drcn_keras.inference import inference_model
from drcn_keras.presets import load
from drcn_keras.tiling import default_tile, restored_pair, restoring


class Teacher:
    """A trained DRCN that answers for whole photographs, averaged over their eight flips and turns.

    Args:
        name: a preset's name or the path of a `.keras` file.
        channels: of the network that learns.
        scales: that it learns.
        precision: "float32" or "bfloat16", what the teacher computes in.

    Raises:
        UserError: there is no such model, or it does not fit.
    """

    def __init__(self, name: str, channels: int, scales: Sequence[int], precision: str = "float32"):
        self.name = name
        model = load(name)
        if model.channels != channels:
            raise ArgumentError(f"`teacher`: {name} has channels {model.channels}; this run has {channels}.")
        missing = ", ".join(f"x{scale}" for scale in scales if scale not in model.scales)
        if missing:
            known = ", ".join(f"x{scale}" for scale in model.scales)
            raise ArgumentError(f"`teacher`: {name} is for {known}; this run learns {missing} too.")
        self.checksum = 0
        for weight in model.get_weights():
            self.checksum = zlib.crc32(np.ascontiguousarray(weight).tobytes(), self.checksum)
        self._halo, self._tile, self._precision = model.halo, default_tile(model, 8), precision
        # Whatever the file was trained in; `precision` decides.
        network = inference_model(model.computing_in("float32"), precision=precision)
        self._network = restoring(frozen(network), self_ensemble=True)

    def lessons(self, pairs: Sequence[Pair], folder: str) -> list[Pair]:
        """The pairs, each with its `lesson`.

        What was computed is kept in `folder`, two bytes for each pixel of each scale, and found there again.

        Raises:
            UserError: a file cannot be written, or the teacher gives what is no number.
        """
        os.makedirs(folder, exist_ok=True)
        remove_partial(folder)
        bar = tqdm(pairs, desc="teacher", unit="image", leave=False)
        return [dataclasses.replace(pair, lesson=self._lesson(pair, folder)) for pair in bar]

    def _lesson(self, pair, folder):
        path = os.path.join(folder, f"{self._mark(pair)}.npz")
        kept = _kept(path, pair.original.shape)
        if kept is not None:
            return kept
        lesson = self._answer(pair)
        # A zip file's checksum tells damage that an .npy file would hand on.
        write_atomically(path, lambda file: np.savez(file, lesson=lesson))
        return lesson

    def _mark(self, pair):
        """Of what decides a lesson: another photograph, scale, teacher or precision has another."""
        seen = zlib.crc32(pair.lr.tobytes(), zlib.crc32(pair.original.tobytes()))
        return f"{seen:08x}-x{pair.scale}-{self.checksum:08x}-{self._precision}"

    def _answer(self, pair):
        """What the teacher adds to the ILR."""
        residual = restored_pair(self._network, pair, self._tile, self._halo) - pair.ilr
        if not np.isfinite(residual).all():
            raise UserError(f"`teacher`: {self.name} gives NaN or infinity for {pair.path}.")
        return residual.astype(np.float16)


def _kept(path, shape):
    """The lesson of an earlier run; None where there is none that can be used."""
    if not os.path.isfile(path):
        return None
    try:
        with open(path, "rb") as file:
            lesson = np.load(file, allow_pickle=False)["lesson"]
    except (OSError, ValueError, EOFError, LookupError, zipfile.BadZipFile, zlib.error) as error:
        logging.warning("%s is damaged (%s) and computed again", path, error)
        return None
    return lesson if lesson.shape == shape and lesson.dtype == np.float16 else None
