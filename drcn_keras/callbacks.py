"""What steers the training steps: the run's clock, and the schedules of alpha and of the learning rate.

Every callback that carries a state over a restart has `state()` and `restore(state)`, JSON in and out.
"""

import math
import time
from collections.abc import Callable

import keras
from absl import logging
from keras import ops

PLATEAU_EPOCHS = 5  # Section 4.1 of arXiv 1511.04491: divide after 5 epochs without a better validation error,
PLATEAU_FACTOR = 0.1  # by 10,
MINIMUM_LEARNING_RATE = 1e-6  # and stop below this.


class RunClock:
    """The share of a run that is done, by epochs or by the clock, whichever is further.

    Args:
        epochs: planned epochs, >= 1.
        minutes: time limit of the whole run in minutes, restarts included; 0 for none.
        agree: function that makes the chief's number every worker's; see `distribute.Workers`.
    """

    def __init__(self, epochs: int, minutes: float = 0.0, agree: Callable[[float], float] = float) -> None:
        self.epochs = epochs
        self.minutes = minutes
        self.agree = agree
        self._before = 0.0
        self._start = time.monotonic()

    def __call__(self, epoch: int) -> float:
        """The share in [0, 1] at the start of `epoch` (0-based)."""
        share = epoch / self.epochs
        if self.minutes:
            share = max(share, self.agree(self.elapsed) / self.minutes)
        return min(1.0, share)

    @property
    def elapsed(self) -> float:
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

    def __init__(
        self,
        epochs: float = 1,
        schedule: str = "linear",
        start: float = 1.0,
        end: float = 0.0,
        progress: Callable[[int], float] | None = None,
    ) -> None:
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

    def value(self, epoch: int) -> float:
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

    def __init__(self, start: float, progress: Callable[[int], float]) -> None:
        super().__init__()
        self.start = start
        self.progress = progress

    def value(self, epoch: int) -> float:
        """The learning rate of `epoch` (0-based)."""
        low = min(MINIMUM_LEARNING_RATE, self.start)
        share = (1.0 + math.cos(math.pi * self.progress(epoch))) / 2.0
        return low + (self.start - low) * share

    def on_epoch_begin(self, epoch, logs=None):
        self.model.optimizer.learning_rate.assign(self.value(epoch))


class WarmUp(keras.callbacks.Callback):
    """Raises the learning rate in equal steps, epoch by epoch, to what it is without warm-up.

    Must come after the callback that sets the learning rate of an epoch, where there is one.

    Args:
        epochs: the first epoch that has the whole learning rate is the last of so many.
        rate: function of the epoch that gives the whole learning rate.
    """

    def __init__(self, epochs: int, rate: Callable[[int], float]):
        super().__init__()
        self.epochs = epochs
        self.rate = rate

    def on_epoch_begin(self, epoch, logs=None):
        if epoch < self.epochs:
            self.model.optimizer.learning_rate.assign(self.rate(epoch) * (epoch + 1) / self.epochs)


class Plateau(keras.callbacks.Callback):
    """The paper's rule: divide the learning rate by 10 when validation stands still, stop below 1e-6.

    Section 4.1 of arXiv 1511.04491. Reads "val_psnr" of the epochs that were validated.

    Args:
        patience: validated epochs without a better PSNR before the division.
    """

    def __init__(self, patience: int = PLATEAU_EPOCHS) -> None:
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


class TimeLimit(keras.callbacks.Callback):
    """Ends training, after a whole epoch, once the run's minutes are used up."""

    def __init__(self, clock: RunClock):
        super().__init__()
        self.clock = clock

    def on_epoch_end(self, epoch, logs=None):
        if self.clock(0) >= 1.0:
            self.model.stop_training = True


class TimeLeft(keras.callbacks.Callback):
    """Adds to the logs of an epoch "minutes_left", by the share of the run that the minutes so far were for."""

    def __init__(self, clock: RunClock):
        super().__init__()
        self.clock = clock

    def on_epoch_end(self, epoch, logs=None):
        share = self.clock(epoch + 1)
        logs["minutes_left"] = round(self.clock.elapsed * (1.0 - share) / share, 1)
