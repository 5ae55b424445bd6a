"""What keeps a run's state: the guard against NaN, averaged weights, checkpoints in time and on a signal."""

import contextlib
import math
import signal
import threading
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from drcn_keras import checkpoint
from drcn_keras.distribute import Workers
from drcn_keras.errors import Stopped, UserError


class NonFiniteGuard(keras.callbacks.Callback):
    """Stops with a UserError when the loss or a weight becomes NaN or infinite, before anything is saved.

    Must be the first callback. Under JAX no step is waited for: each loss is looked at in another thread once it is
    there, at the latest before the epoch is measured or saved. Under TensorFlow Keras itself waits for it.
    """

    async_safe = True  # Or Keras itself would read the logs after every step, for whatever callback wants them.

    def __init__(self) -> None:
        super().__init__()
        self._done = 0
        self._rate = 0.0

    def on_train_batch_begin(self, batch, logs=None):
        if batch == 0:  # Here the variables can be read on every backend.
            self._done = _steps_done(self.model)
            self._rate = float(ops.convert_to_numpy(self.model.optimizer.learning_rate))

    def on_train_batch_end(self, batch, logs=None):
        if not math.isfinite(float(logs["loss"])):
            self._stop(f"the loss is {float(logs['loss'])}", self._done + batch + 1)

    def on_epoch_end(self, epoch, logs=None):
        # The last step's loss was measured before its update.
        for weight in self.model.trainable_weights:
            if not np.all(np.isfinite(ops.convert_to_numpy(weight))):
                self._stop(f"{weight.path} holds NaN or infinity", _steps_done(self.model))

    def _stop(self, what, step):
        raise UserError(
            f"{what} at step {step} with learning rate {self._rate:g}; clip the gradient (`clip_norm`) or lower "
            "`learning_rate`. Checkpoints written before are kept."
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

    def __init__(
        self,
        folder: str,
        settings: dict,
        stateful: dict[str, Any],
        epochs: int,
        every: int,
        keep: int,
        workers: Workers,
    ) -> None:
        super().__init__()
        self.folder = folder
        self.settings = settings
        self.stateful = stateful
        self.epochs = epochs
        self.every = every
        self.keep = keep
        self.workers = workers
        self.stopped_by: str | None = None
        self._begun = False

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
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

    # Not at the end of a step: Keras would wait for its loss.
    def on_train_batch_begin(self, batch, logs=None):
        begun, self._begun = self._begun, True
        if begun and self.workers.any(self.stopped_by):
            self.workers.part()
            self.write()
            raise Stopped(
                f"stopped by {self.stopped_by or 'another worker'}: checkpoint written to {self.folder}; "
                "the same command resumes"
            )

    def on_epoch_end(self, epoch, logs=None):
        if (epoch + 1) % self.every == 0 or epoch + 1 == self.epochs or self.model.stop_training:
            self.write()

    def write(self) -> None:
        """Writes a checkpoint of this moment."""
        if not self.workers.is_chief:
            return
        sync_model(self.model)
        meta = {
            "step": _steps_done(self.model),
            "settings": self.settings,
            "state": {name: owner.state() for name, owner in self.stateful.items()},
        }
        checkpoint.save(self.folder, self.model, meta, self.keep)


def average_weights(optimizer: keras.optimizers.Optimizer) -> None:
    """Leaves the weights alone at the end of a `fit`, where Keras would put their averages in their place.

    A run is made of several: what was broken off goes on with the weights, not with the averages.
    """
    optimizer.finalize_variable_values = lambda variables: None


@contextlib.contextmanager
def averaged(model: keras.Model) -> Iterator[None]:
    """A context in which the model's weights are their moving averages, where its optimiser keeps any."""
    if not model.optimizer.use_ema:
        yield
        return
    kept = _copies(model)
    # The class's own: `average_weights` has hidden it.
    type(model.optimizer).finalize_variable_values(model.optimizer, model.trainable_variables)
    _assign(model, _copies(model))
    try:
        yield
    finally:
        _assign(model, kept)


def _copies(model):
    """Arrays of their own: under JAX the averages would share a buffer with the weights, which `predict` gives away."""
    return [np.array(ops.convert_to_numpy(variable)) for variable in model.trainable_variables]


def _assign(model, values):
    for variable, value in zip(model.trainable_variables, values, strict=True):
        variable.assign(value)


def _steps_done(model):
    return int(ops.convert_to_numpy(model.optimizer.iterations))


def sync_model(model: keras.Model) -> None:
    """Brings the variables up to date in the middle of an epoch: JAX's `fit` keeps their values elsewhere."""
    if keras.backend.backend() == "jax":
        model.jax_state_sync()
