"""The installed commands, and how Ctrl-C and SIGTERM end one: in one line, with exit code 130, from its start on.

An import that is broken off may end in a traceback of its own, or hide the interruption and go on. While modules load
a signal therefore ends the process at once; what a killed process leaves is cleared by the next run. Everything else
unwinds as Python does it.
"""

import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_unwinds = False


def program() -> str:
    """The command's name, for its messages."""
    name = os.path.basename(sys.argv[0])
    return "drcn_keras" if name in ("", "__main__.py") else name


def watch_signals() -> None:
    """Lets SIGINT and SIGTERM end this process. One that was told to ignore SIGINT, as by nohup, goes on doing so."""
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)


@contextmanager
def unwinding() -> Iterator[None]:
    """A context in which the signals raise KeyboardInterrupt, so that what is half done is taken back."""
    global _unwinds
    _unwinds = True
    try:
        yield
    finally:
        _unwinds = False


def _end(number: int, frame: FrameType | None) -> None:
    if _unwinds and not _imports(frame):
        raise KeyboardInterrupt
    os.write(2, f"{program()}: error: interrupted\n".encode())
    os._exit(130)


def _imports(frame):
    """Whether an import is in progress."""
    while frame and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def _command(module: str) -> Callable[[], None]:
    def run() -> None:
        watch_signals()
        importlib.import_module(f"drcn_keras.{module}").run()

    return run


train = _command("train")
evaluate = _command("evaluation")
upscale = _command("upscaling")
beam = _command("beam")
refit = _command("refit")
average = _command("average")
export_tflite = _command("export.tflite")
export_saved_model = _command("export.saved_model")
export_onnx = _command("export.onnx_file")
report = _command("reporting.report")
study = _command("reporting.study")
serving_client = _command("client")
