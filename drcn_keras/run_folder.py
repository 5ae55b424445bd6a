"""The folder of one training run: what it holds, and how it is made ready."""

import os
import shutil

from drcn_keras.card import card_path
from drcn_keras.files import remove_partial


class RunFolder:
    """What a run leaves in its folder, by purpose.

    Args:
        path: the folder, which exists.

    Attributes:
        best, log, checkpoints, tensorboard: paths of the best model, the table, and two folders.
    """

    def __init__(self, path: str):
        self.path = path
        self.best = os.path.join(path, "best.keras")
        self.log = os.path.join(path, "log.csv")
        self.checkpoints = os.path.join(path, "checkpoints")
        self.tensorboard = os.path.join(path, "tensorboard")

    def prepare(self, fresh: bool = False) -> None:
        """Makes the folder ready, without what an earlier run left under `fresh` and what a killed one half wrote."""
        if fresh:
            self._clear()
        os.makedirs(self.checkpoints, exist_ok=True)
        remove_partial(self.checkpoints)
        remove_partial(self.path)

    def _clear(self):
        for path in (self.best, card_path(self.best), self.log, self.checkpoints, self.tensorboard):
            if os.path.isdir(path):
                shutil.rmtree(path)
            elif os.path.exists(path):
                os.unlink(path)
