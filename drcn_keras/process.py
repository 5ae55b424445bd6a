"""One process computes. A fork of it that inherits a model would wait for ever for threads that it has not."""

import os

from drcn_keras.errors import UserError

_computing = None


def claim() -> None:
    """Says that this process builds or runs a model.

    Raises:
        UserError: it is a fork of a process that did so before.
    """
    global _computing
    if _computing not in (None, os.getpid()):
        raise UserError(
            "this process was forked from one that had a DRCN already, and would hang; start it by "
            "multiprocessing.get_context('spawn'), or load the first model after the fork."
        )
    _computing = os.getpid()
