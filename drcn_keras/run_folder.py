"""The folder of one training run: what it holds, who may write there, and how it is made ready."""

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator

from drcn_keras import card
from drcn_keras.errors import ArgumentError, UserError
from drcn_keras.files import remove_partial, set_aside

# What stands in the two subfolders, a damaged file set aside and one half written among it.
_CHECKPOINTS = re.compile(r"step-\d{9}\.npz(\.damaged(-\d+)?)?$|\.partial-")
_EVENTS = re.compile(r"events\.out\.tfevents\.")
# Where an earlier run stands while it is taken away.
_LEAVING = ".leaving"


class RunFolder:
    """What a run leaves in its folder, by purpose.

    Args:
        path: the folder, which exists.

    Attributes:
        best, log, checkpoints, tensorboard: paths of the best model, the table, and two folders.
        lessons: folder of a teacher's answers, which `fresh` leaves: they belong to photographs, not to one run.
    """

    def __init__(self, path: str):
        self.path = path
        self.best = os.path.join(path, "best.keras")
        self.log = os.path.join(path, "log.csv")
        self.checkpoints = os.path.join(path, "checkpoints")
        self.tensorboard = os.path.join(path, "tensorboard")
        self.lessons = os.path.join(path, "teacher")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """A context in which no other training writes here. The system ends it with the process, however that ends.

        Raises:
            UserError: another training is at work here.
        """
        handle = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError as error:
            raise UserError(f"another training is at work in {self.path}; wait for it or choose another.") from error
        finally:
            os.close(handle)

    def prepare(self, fresh: bool = False) -> None:
        """Makes the folder ready: without an earlier run under `fresh`, what a killed process half wrote, and damage.

        Raises:
            UserError: under `fresh`, something stands there that no training wrote; nothing is deleted then.
        """
        self._bring_back()
        if fresh:
            self._clear()
        os.makedirs(self.checkpoints, exist_ok=True)
        remove_partial(self.checkpoints)
        remove_partial(self.path)
        try:
            card.read(self.best)
        except UserError as error:
            set_aside(card.card_path(self.best), str(error))

    def _clear(self):
        """Deletes an earlier run, all of it or nothing."""
        found = [
            path
            for path in (self.best, card.card_path(self.best), self.log, self.checkpoints, self.tensorboard)
            if os.path.lexists(path)
        ]
        for path in found:
            self._require_own(path)
        leaving = os.path.join(self.path, _LEAVING)
        os.mkdir(leaving)
        try:
            for path in found:
                os.rename(path, os.path.join(leaving, os.path.basename(path)))
        except OSError:
            self._bring_back()
            raise
        # From here on it is gone, whatever happens: a name that `remove_partial` knows.
        gone = os.path.join(self.path, f".partial-{os.getpid()}")
        os.rename(leaving, gone)
        shutil.rmtree(gone)

    def _bring_back(self):
        """Undoes a deletion that was broken off before all was taken away."""
        leaving = os.path.join(self.path, _LEAVING)
        if os.path.isdir(leaving):
            for name in os.listdir(leaving):
                os.rename(os.path.join(leaving, name), os.path.join(self.path, name))
            os.rmdir(leaving)

    def _require_own(self, path):
        """Raises unless a training wrote what stands at `path`."""
        known = {self.checkpoints: _CHECKPOINTS, self.tensorboard: _EVENTS}.get(path)
        if os.path.islink(path) or os.path.isdir(path) != (known is not None):
            raise ArgumentError(f"`fresh`: {path} is not what a training left there; nothing was deleted.")
        for name in os.listdir(path) if known else ():
            inside = os.path.join(path, name)
            if not known.match(name) or not os.path.isfile(inside) or os.path.islink(inside):
                raise ArgumentError(f"`fresh`: {inside} is not what a training left there; nothing was deleted.")
