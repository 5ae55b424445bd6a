"""What the commands here share: flags whose values are checked, the one line of an error, and how a signal ends one."""

import argparse
import contextlib
import os
import shlex
import signal
import sys

from manifest import CannotRun

# More are of no use, and so many that the machine has no more to give crash the runtime, and other programs.
MOST_THREADS = 1024


class Parser(argparse.ArgumentParser):
    """argparse's, but a wrong flag is one line, a `CannotRun`."""

    def error(self, message):
        raise CannotRun(f"{message} (--help lists every flag)")


def whole(least, most=1_000_000):
    """The `type` of a flag that is a whole number within limits."""
    return _number(int, least, most, "a whole number")


def real(least, most=1_000_000):
    """The `type` of a flag that is a number within limits, neither infinite nor not-a-number."""
    return _number(float, least, most, "a number")


def _number(kind, least, most, name):
    def parse(text):
        with contextlib.suppress(ValueError):
            if least <= kind(text) <= most:
                return kind(text)
        raise argparse.ArgumentTypeError(f"expected {name} from {least:,} to {most:,}; received {text!r}")

    return parse


def words(text):
    """The `type` of a flag that is a command: its words, at least one."""
    try:
        found = shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a command; received {text!r}: {error}") from error
    if not found:
        raise argparse.ArgumentTypeError("expected a command; received nothing")
    return found


def check_place(path):
    """Refuses, before any work, a file that could not be written.

    Raises:
        CannotRun: a folder, a device or a pipe, or a folder that is missing or read-only.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise CannotRun(f"{path}: {'is a folder' if os.path.isdir(path) else 'is no regular file'}; expected a file.")
    folder = os.path.dirname(os.path.realpath(path))
    if not os.path.isdir(folder):
        raise CannotRun(f"{os.path.dirname(path) or folder}: no such folder.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CannotRun(f"{os.path.dirname(path) or folder}: no file can be written in this folder.")


def check_report(path):
    """`check_place` for --json, where a forgotten value or a slip must not cost a model or its manifest."""
    check_place(path)
    stem, suffix = os.path.splitext(path)
    if suffix.lower() != ".json":
        raise CannotRun(f"{path}: a report's name ends in .json.")
    if os.path.exists(f"{stem}.tflite"):
        raise CannotRun(f"{path}: is the place of a model's manifest; the report needs another name.")


def end(main):
    """Runs a main and ends the process with its exit code; a `CannotRun` ends in one line and code 2.

    Ctrl-C and SIGTERM unwind, so that what is half done is taken back, and end in one line and code 130.

    Args:
        main: function without arguments that returns an exit code.
    """
    program = os.path.basename(sys.argv[0])
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # Closed by who started this process.
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    sys.stdout.reconfigure(errors="backslashreplace")  # A file's name may hold what it cannot encode.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    code = 2
    try:
        done = main()
        sys.stdout.flush()
        sys.exit(done)
    except CannotRun as error:
        message = str(error)
    except BrokenPipeError:
        message = "standard output was closed before all was printed."
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
    except MemoryError:
        message = "not enough memory."
    except KeyboardInterrupt:
        message, code = "interrupted", 130
    _leave_stdout()
    print(f"{program}: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def _leave_stdout():
    """What could not be written would fail once more, with a traceback, when Python ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
