"""What happens around the training steps: schedules, validation, records, checkpoints, an orderly stop.

Every callback that carries a state over a restart has `state()` and `restore(state)`, JSON in and out.
"""

import contextlib
import csv
import io
import json
import math
import os
import signal
import threading
import time

import keras
import numpy as np
from absl import logging
from keras import ops

from drcn_keras import checkpoint
from drcn_keras.errors import Stopped, UserError
from drcn_keras.files import write_atomically
from drcn_keras.metrics import measured_psnr

PLATEAU_EPOCHS = 5  # Section 4.1 of arXiv 1511.04491: divide after 5 epochs without a better validation error,
PLATEAU_FACTOR = 0.1  # by 10,
MINIMUM_LEARNING_RATE = 1e-6  # and stop below this.


class Progress:
    """The share of a run that is done, by epochs or by the clock, whichever is further.

    Args:
        epochs: planned epochs, >= 1.
        minutes: time limit of the whole run in minutes, restarts included; 0 for none.
        agree: function that makes the chief's number every worker's; see `distribute.Workers`.
    """

    def __init__(self, epochs, minutes=0.0, agree=float):
        self.epochs = epochs
        self.minutes = minutes
        self.agree = agree
        self._before = 0.0
        self._start = time.monotonic()

    def __call__(self, epoch):
        """The share in [0, 1] at the start of `epoch` (0-based)."""
        share = epoch / self.epochs
        if self.minutes:
            share = max(share, self.agree(self.elapsed) / self.minutes)
        return min(1.0, share)

    @property
    def elapsed(self):
        """Minutes so far, by this machine's clock."""
        return self._before + (time.monotonic() - self._start) / 60.0

    def state(self):
        return {"minutes": self.elapsed}

    def restore(self, state):
        self._before = state["minutes"]
        self._start = time.monotonic()


class AlphaAnnealing(keras.callbacks.Callback):
    """Moves the loss from the D reconstructions (alpha high) to their ensemble (alpha low), epoch by epoch.

    Section 3.3 of arXiv 1511.04491 anneals alpha without saying how; the schedules are ours. With s the share
    of the annealing that is done, from 0 to 1:

        linear:      start + (end - start) * s
        cosine:      end + (start - end) * (1 + cos(pi * s)) / 2
        exponential: start * (end / start)^s        (end > 0)

    The value of the epoch appears in its logs as "alpha". It depends on the epoch alone, so it survives a resume.

    Args:
        epochs: the epoch at which alpha has reached `end`.
        schedule: "linear", "cosine" or "exponential".
        start, end: alpha in [0, 1].
        progress: optional function of the epoch that gives s in place of epoch / epochs.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(self, epochs=1, schedule="linear", start=1.0, end=0.0, progress=None):
        super().__init__()
        if schedule not in ("linear", "cosine", "exponential"):
            raise ValueError(f"schedule must be linear, cosine or exponential; received {schedule!r}.")
        if not (0.0 <= start <= 1.0 and 0.0 <= end <= 1.0):
            raise ValueError(f"alpha must stay in [0, 1]; received start {start}, end {end}.")
        if schedule == "exponential" and not (start > 0.0 and end > 0.0):
            raise ValueError(f"an exponential schedule never reaches 0; received start {start}, end {end}.")
        if epochs <= 0:
            raise ValueError(f"epochs must be > 0; received {epochs}.")
        self.schedule = schedule
        self.start = start
        self.end = end
        self.progress = progress or (lambda epoch: epoch / epochs)

    def value(self, epoch):
        """alpha during `epoch` (0-based)."""
        share = min(1.0, max(0.0, self.progress(epoch)))
        if self.schedule == "linear":
            return self.start + (self.end - self.start) * share
        if self.schedule == "cosine":
            return self.end + (self.start - self.end) * (1.0 + math.cos(math.pi * share)) / 2.0
        return self.start * (self.end / self.start) ** share

    def on_epoch_begin(self, epoch, logs=None):
        self.model.alpha.assign(self.value(epoch))

    def on_epoch_end(self, epoch, logs=None):
        logs["alpha"] = float(ops.convert_to_numpy(self.model.alpha))


class CosineLearningRate(keras.callbacks.Callback):
    """Lowers the learning rate along half a cosine, from `start` to MINIMUM_LEARNING_RATE, epoch by epoch.

    Args:
        start: the learning rate of the first epoch.
        progress: function of the epoch that gives the share done, in [0, 1].
    """

    def __init__(self, start, progress):
        super().__init__()
        self.start = start
        self.progress = progress

    def on_epoch_begin(self, epoch, logs=None):
        low = min(MINIMUM_LEARNING_RATE, self.start)
        share = (1.0 + math.cos(math.pi * self.progress(epoch))) / 2.0
        self.model.optimizer.learning_rate.assign(low + (self.start - low) * share)


class Plateau(keras.callbacks.Callback):
    """The paper's rule: divide the learning rate by 10 when validation stands still, stop below 1e-6.

    Section 4.1 of arXiv 1511.04491. Reads "val_psnr" of the epochs that were validated.

    Args:
        patience: validated epochs without a better PSNR before the division.
    """

    def __init__(self, patience=PLATEAU_EPOCHS):
        super().__init__()
        self.patience = patience
        self.best = -math.inf
        self.wait = 0
        self.done = False

    def on_epoch_end(self, epoch, logs=None):
        if "val_psnr" not in logs:
            return
        if logs["val_psnr"] > self.best:
            self.best = logs["val_psnr"]
            self.wait = 0
            return
        self.wait += 1
        if self.wait < self.patience:
            return
        self.wait = 0
        rate = float(ops.convert_to_numpy(self.model.optimizer.learning_rate)) * PLATEAU_FACTOR
        # Half a per cent of slack: 0.01 divided by 10 four times is not exactly 1e-6 in float32.
        if rate < 0.995 * MINIMUM_LEARNING_RATE:
            logging.info("learning rate would fall below %g: training is done", MINIMUM_LEARNING_RATE)
            self.done = True
            self.model.stop_training = True
            return
        self.model.optimizer.learning_rate.assign(rate)

    def state(self):
        return {"best": self.best, "wait": self.wait, "done": self.done}

    def restore(self, state):
        self.best, self.wait, self.done = state["best"], state["wait"], state.get("done", False)


class Validation(keras.callbacks.Callback):
    """Measures whole images by the field's protocol and keeps the best model.

    Adds to the logs of a validated epoch: "val_psnr" (dB, the ensemble), "val_bicubic" (dB) and "lr".

    Args:
        pairs: list of `data.Pair`.
        every: validate after every so many epochs, and after the last.
        epochs: planned epochs.
        save_best: function of (model, logs, epoch), called when val_psnr is higher than ever before.
        agree: function that makes the chief's number every worker's; see `distribute.Workers`.
    """

    def __init__(self, pairs, every=1, epochs=1, save_best=None, agree=float):
        super().__init__()
        self.pairs = pairs
        self.every = every
        self.epochs = epochs
        self.save_best = save_best
        self.agree = agree
        self.best = -math.inf
        self.bicubic = None

    def on_epoch_end(self, epoch, logs=None):
        logs["lr"] = float(ops.convert_to_numpy(self.model.optimizer.learning_rate))
        if (epoch + 1) % self.every and epoch + 1 < self.epochs and not self.model.stop_training:
            return
        scale = self.model.scale
        if self.bicubic is None:
            self.bicubic = float(np.mean([measured_psnr(pair.hr, pair.ilr, scale) for pair in self.pairs]))
        logs["val_bicubic"] = self.bicubic
        psnr = np.mean([measured_psnr(pair.hr, self._upscaled(pair), scale) for pair in self.pairs])
        logs["val_psnr"] = self.agree(float(psnr))
        if logs["val_psnr"] > self.best:
            self.best = logs["val_psnr"]
            if self.save_best:
                self.save_best(self.model, logs, epoch)

    def _upscaled(self, pair):
        # Not model(ilr): called eagerly, Keras's functional model keeps the features of every recursion.
        weights = ops.convert_to_numpy(self.model.ensemble_weights)
        return np.tensordot(weights, ops.convert_to_numpy(self.model.reconstructions(pair.ilr[None]))[0], 1)

    def state(self):
        return {"best": self.best}

    def restore(self, state):
        self.best = state["best"]


class CSVLog(keras.callbacks.Callback):
    """One row per epoch in a CSV file. Rows of epochs that a resumed run repeats are replaced, never doubled.

    Args:
        path: the file.
        columns: names of the logs to write, after "epoch" (1-based).
    """

    def __init__(self, path, columns):
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
        if not os.path.exists(self.path):
            return []
        with open(self.path, newline="") as file:
            return list(csv.DictReader(file))


class TensorBoardLog(keras.callbacks.Callback):
    """Scalars, the D ensemble weights, the PSNR of every recursion and a sample image, for TensorBoard.

    Written by tensorboardX, so that it is the same on every backend. A resumed run tells TensorBoard to drop what
    an earlier process wrote of the epochs that it repeats.

    Args:
        folder: where the event file goes.
        sample: a `data.Pair`, a small one: it is upscaled by every recursion at each validated epoch.
    """

    def __init__(self, folder, sample):
        super().__init__()
        self.folder = folder
        self.sample = sample
        self.writer = None

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
        ilr, hr, scale = self.sample.ilr, self.sample.hr, self.model.scale
        reconstructions = ops.convert_to_numpy(self.model.reconstructions(ilr[None]))[0]
        for recursion, image in enumerate(reconstructions, start=1):
            self.writer.add_scalar(f"recursion_psnr/{recursion:02d}", measured_psnr(hr, image, scale), step)
        sr = ops.convert_to_numpy(self.model(ilr[None]))[0]
        strip = np.clip(np.concatenate([ilr, sr, hr], axis=1), 0.0, 1.0)
        if strip.shape[-1] == 1:
            strip = np.repeat(strip, 3, axis=-1)
        self.writer.add_image("bicubic_drcn_original", strip, step, dataformats="HWC")


class NonFiniteGuard(keras.callbacks.Callback):
    """Stops with a UserError when the loss or a weight becomes NaN or infinite, before anything is saved.

    Must be the first callback.

    Args:
        first_step: the number of steps that were done before.
    """

    def __init__(self, first_step=0):
        super().__init__()
        self.step = first_step

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        if not math.isfinite(float(logs["loss"])):
            self._stop(f"the loss is {float(logs['loss'])}")

    def on_epoch_end(self, epoch, logs=None):
        # The last step's loss was measured before its update.
        for weight in self.model.trainable_weights:
            if not np.all(np.isfinite(ops.convert_to_numpy(weight))):
                self._stop(f"{weight.path} holds NaN or infinity")

    def _stop(self, what):
        sync_model(self.model)
        rate = float(ops.convert_to_numpy(self.model.optimizer.learning_rate))
        raise UserError(
            f"{what} at step {self.step} with learning rate {rate:g}; clip the gradient (--clip_norm) or lower "
            "--learning_rate. Checkpoints written before are kept."
        )


class Checkpoints(keras.callbacks.Callback):
    """Writes the whole training state after every `every` epochs, after the last, and on SIGTERM or SIGINT.

    Must be the last callback, so that it sees the state that the others leave.

    Args:
        folder: an existing folder.
        settings: JSON-serialisable dict, kept to recognise a checkpoint of another configuration.
        stateful: dict of name to object with `state()`.
        epochs: planned epochs.
        every: epochs between two checkpoints.
        keep: checkpoints to keep.
        workers: `distribute.Workers`: all stop at the same step, and the chief writes.
    """

    def __init__(self, folder, settings, stateful, epochs, every, keep, workers):
        super().__init__()
        self.folder = folder
        self.settings = settings
        self.stateful = stateful
        self.epochs = epochs
        self.every = every
        self.keep = keep
        self.workers = workers
        self.stopped_by = None

    @contextlib.contextmanager
    def signals(self):
        """A context in which SIGTERM and SIGINT end training after the step in progress."""
        if threading.current_thread() is not threading.main_thread():
            yield  # Python lets the main thread alone handle signals.
            return
        handlers = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _stop(self, number, frame):
        self.stopped_by = signal.Signals(number).name

    def on_train_batch_end(self, batch, logs=None):
        if self.workers.any(self.stopped_by):
            self.write()
            raise Stopped(
                f"stopped by {self.stopped_by or 'another worker'}: checkpoint written to {self.folder}; "
                "the same command resumes"
            )

    def on_epoch_end(self, epoch, logs=None):
        if (epoch + 1) % self.every == 0 or epoch + 1 == self.epochs or self.model.stop_training:
            self.write()

    def write(self):
        """Writes a checkpoint of this moment."""
        if not self.workers.is_chief:
            return
        sync_model(self.model)
        meta = {
            "step": int(ops.convert_to_numpy(self.model.optimizer.iterations)),
            "settings": self.settings,
            "state": {name: owner.state() for name, owner in self.stateful.items()},
        }
        checkpoint.save(self.folder, self.model, meta, self.keep)


class TimeLimit(keras.callbacks.Callback):
    """Ends training, after a whole epoch, once the run's minutes are used up."""

    def __init__(self, progress):
        super().__init__()
        self.progress = progress

    def on_epoch_end(self, epoch, logs=None):
        if self.progress(0) >= 1.0:
            self.model.stop_training = True


def sync_model(model):
    """Brings the variables up to date in the middle of an epoch: JAX's `fit` keeps their values elsewhere."""
    if keras.backend.backend() == "jax":
        model.jax_state_sync()


def write_card(path, card):
    """Writes a model's JSON card, atomically."""
    text = json.dumps(card, indent=2, sort_keys=True) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
