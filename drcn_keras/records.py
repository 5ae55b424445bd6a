"""What a training run writes down of its epochs: a table and TensorBoard's files."""

import csv
import io
import os
from typing import Any

import keras
import numpy as np
from keras import ops

from drcn_keras.data import Pair
from drcn_keras.files import set_aside, write_atomically
from drcn_keras.metrics import measured_psnr

# Pixels on a side of what TensorBoard shows: every recursion's features of it stand in memory at once.
SAMPLE_SIDE = 256


class CSVLog(keras.callbacks.Callback):
    """One row per epoch in a CSV file. Rows of epochs that a resumed run repeats are replaced, never doubled.

    Args:
        path: the file.
        columns: names of the logs to write, after "epoch" (1-based).
    """

    def __init__(self, path: str, columns: list[str]) -> None:
        super().__init__()
        self.path = path
        self.columns = ["epoch", *columns]

    def on_epoch_end(self, epoch, logs=None):
        rows = [row for row in self._rows() if int(row["epoch"]) <= epoch]
        rows.append({"epoch": epoch + 1, **{name: f"{logs[name]:.6g}" for name in self.columns if name in logs}})
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.path, lambda file: file.write(text.getvalue().encode()))

    def _rows(self):
        if not os.path.isfile(self.path):
            return []
        try:
            with open(self.path, newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file, strict=True))
            for row in rows:
                if not set(row) <= set(self.columns) or int(row["epoch"]) < 1:
                    raise ValueError("columns of another table")
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            set_aside(self.path, f"{self.path} is damaged ({error})")
            return []
        return rows


class TensorBoardLog(keras.callbacks.Callback):
    """Scalars, the D ensemble weights, the PSNR of every recursion and a sample image, for TensorBoard.

    Written by tensorboardX, so that it is the same on every backend. A resumed run tells TensorBoard to drop what
    an earlier process wrote of the epochs that it repeats.

    Args:
        folder: where the event file goes.
        sample: a `data.Pair`: its middle is upscaled by every recursion at each validated epoch.
    """

    def __init__(self, folder: str, sample: Pair) -> None:
        super().__init__()
        self.folder = folder
        self.sample = sample
        self.writer: Any = None

    def on_epoch_end(self, epoch, logs=None):
        step = epoch + 1
        if self.writer is None:
            self._open(step)
        for name, value in logs.items():
            self.writer.add_scalar(name, value, step)
        weights = ops.convert_to_numpy(self.model.ensemble_weights)
        for recursion, weight in enumerate(weights, start=1):
            self.writer.add_scalar(f"ensemble_weights/{recursion:02d}", weight, step)
        if "val_psnr" in logs:
            self._add_sample(step)
        self.writer.flush()

    def on_train_end(self, logs=None):
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def _open(self, step):
        from tensorboardX import SummaryWriter

        # The suffix tells files apart that start within one second.
        purge = step if step > 1 else None
        self.writer = SummaryWriter(self.folder, purge_step=purge, filename_suffix=f".{step}")

    def _add_sample(self, step):
        scale = self.sample.scale
        ilr, hr = self.sample.cut(_centre(self.sample.original.shape))
        reconstructions = ops.convert_to_numpy(self.model.reconstructions(ilr[None]))[0]
        for recursion, image in enumerate(reconstructions, start=1):
            self.writer.add_scalar(f"recursion_psnr/{recursion:02d}", measured_psnr(hr, image, scale), step)
        sr = ops.convert_to_numpy(self.model(ilr[None]))[0]
        strip = np.clip(np.concatenate([ilr, sr, hr], axis=1), 0.0, 1.0)
        if strip.shape[-1] == 1:
            strip = np.repeat(strip, 3, axis=-1)
        self.writer.add_image("bicubic_drcn_original", strip, step, dataformats="HWC")


def _centre(shape):
    """The window of at most SAMPLE_SIDE pixels each way in the middle of an image: two slices."""
    starts = [max(0, (side - SAMPLE_SIDE) // 2) for side in shape[:2]]
    return tuple(slice(start, start + SAMPLE_SIDE) for start in starts)
