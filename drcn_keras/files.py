"""Files that are whole or not there: what is written is beside its place until it is on the disk."""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO

from absl import logging

from drcn_keras.errors import UserError

if TYPE_CHECKING:
    import keras

_PARTIAL = ".partial-"
_BUILDING = ".building-"


def write_atomically(path: str, write: Callable[[BinaryIO], object]) -> None:
    """Calls `write(binary file)` on a new file beside `path` and renames it into place once it is on disk.

    A new file has the mode that the umask leaves; one that is replaced keeps its mode, and its owner where that may be.
    A symbolic link stays one, what it points to is replaced.

    Raises:
        UserError: no space, a read-only folder, a device or a pipe; `path` is then as it was.
    """
    target = os.path.realpath(path)
    if os.path.exists(target) and not os.path.isfile(target):
        raise UserError(f"{path} could not be written: it is no regular file.")
    folder = os.path.dirname(target)
    try:
        handle, temporary = tempfile.mkstemp(prefix=_PARTIAL, suffix=os.path.splitext(target)[1], dir=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                # As long as it is open: `remove_partial` of another process leaves it alone.
                fcntl.flock(handle, fcntl.LOCK_EX)
                write(file)
                file.flush()
                os.fsync(file.fileno())
                _take_mode(temporary, target)
                os.replace(temporary, target)
            # The rename too must be on disk before what it replaces is deleted elsewhere.
            sync(folder)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise UserError(
            f"{path} could not be written: {error.strerror or error}; what was there is unchanged."
        ) from error


def write_together(contents: Sequence[tuple[str, bytes]]) -> None:
    """Writes files that belong together: all of them are on the disk before one is renamed, the first one last.

    Args:
        contents: of (path, content), at least one.

    Raises:
        UserError: as `write_atomically`; every path is then as it was.
    """
    (path, content), *others = contents

    def write(file):
        file.write(content)
        file.flush()
        if others:
            write_together(others)

    write_atomically(path, write)


def write_model(path: str, model: "keras.Model") -> None:
    """Writes a Keras model as a .keras file, or nothing. Raises UserError as `write_atomically`."""
    try:
        # Keras writes one by name only.
        with tempfile.TemporaryDirectory() as folder:
            temporary = os.path.join(folder, "model.keras")
            model.save(temporary)
            with open(temporary, "rb") as file:
                packed = file.read()
    except OSError as error:
        raise UserError(
            f"{path} could not be written: {error.strerror or error}; what was there is unchanged."
        ) from error
    write_atomically(path, lambda file: file.write(packed))


def _take_mode(temporary, target):
    """Gives a new file the owner and the mode of what it replaces, or the mode that the umask leaves."""
    try:
        replaced = os.stat(target)
    except FileNotFoundError:
        umask = os.umask(0o077)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        return
    with contextlib.suppress(PermissionError):
        os.chown(temporary, replaced.st_uid, replaced.st_gid)
    os.chmod(temporary, stat.S_IMODE(replaced.st_mode))


def sync(path: str) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def folder_being_built(parent: str) -> Iterator[str]:
    """A context with a new folder in `parent`, to be renamed when all is in it; deleted where that is not reached."""
    path = tempfile.mkdtemp(prefix=_BUILDING, dir=parent)
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield path
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    finally:
        os.close(handle)


def remove_partial(folder: str) -> None:
    """Deletes what a process that was killed while it wrote left in `folder`; not what one is writing just now."""
    for name in os.listdir(folder):
        if not name.startswith((_PARTIAL, _BUILDING)):
            continue
        path = os.path.join(folder, name)
        with contextlib.suppress(FileNotFoundError, BlockingIOError), _locked(path):
            if os.path.isdir(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)


@contextlib.contextmanager
def _locked(path):
    """A context in which no process writes what stands at `path`. Raises BlockingIOError where one does."""
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def set_aside(path: str, reason: str) -> None:
    """Renames a damaged file, so that it is out of the way and can be looked at, and says so in a warning."""
    aside = f"{path}.damaged"
    number = 1
    while os.path.lexists(aside):
        number += 1
        aside = f"{path}.damaged-{number}"
    os.rename(path, aside)
    logging.warning("%s; it is set aside as %s", reason.rstrip("."), os.path.basename(aside))


def make_folder(folder: str) -> None:
    """Makes the folder where it is missing, and clears it of what a killed process left.

    Raises:
        UserError: no file can be written in it.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        remove_partial(folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written to: {error.strerror}.") from error
