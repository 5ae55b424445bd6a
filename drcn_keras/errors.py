"""What can be wrong: each error is one line, that a command tells without a traceback."""

import contextlib
import os
import sys
from collections.abc import Iterator


class UserError(Exception):
    """Something the user can put right. Its text is one line: what happened, expected, received.

    An argument is named as in Python, `tile`; a command tells it as its flag, --tile.
    """


class ArgumentError(UserError, ValueError):
    """An argument whose value is wrong whatever the files are."""


class Stopped(Exception):
    """A signal asked for an end and the work was put in a state that can be resumed: exit code 0."""


@contextlib.contextmanager
def extra(name: str) -> Iterator[None]:
    """For imports that need the extra `name` of the package. Raises UserError where one is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(
            f"{(error.name or str(error)).split('.')[0]} is not installed: pip install 'drcn_keras[{name}]'."
        ) from error


@contextlib.contextmanager
def tensorflow_notices_hidden() -> Iterator[None]:
    """TensorFlow writes to standard error how it was built and that there is no GPU; no setting of its own stops it."""
    if "tensorflow" in sys.modules:
        yield
        return
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
