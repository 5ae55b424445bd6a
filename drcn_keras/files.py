"""Files that are whole or not there: what is written is beside its place until it is on the disk."""

import contextlib
import os
import tempfile

from drcn_keras.errors import UserError

_PARTIAL = ".partial-"


def write_atomically(path, write):
    """Calls `write(binary file)` on a new file beside `path` and renames it into place once it is on disk.

    Raises:
        UserError: no space, a read-only folder; `path` is then as it was.
    """
    folder = os.path.dirname(path) or "."
    try:
        handle, temporary = tempfile.mkstemp(prefix=_PARTIAL, suffix=os.path.splitext(path)[1], dir=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
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


def sync(path):
    """Waits until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_partial(folder):
    """Deletes what a process that was killed while it wrote left in `folder`."""
    for name in os.listdir(folder):
        if name.startswith(_PARTIAL):
            os.unlink(os.path.join(folder, name))


def make_folder(folder):
    """Makes the folder where it is missing. Raises UserError where no file can be written in it."""
    try:
        os.makedirs(folder, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"{folder} cannot be written to: {error.strerror}.") from error
