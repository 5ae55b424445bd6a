"""How commands end when a signal asks them to."""

import signal
import subprocess
import sys

import pytest


def command(body):
    """Runs `body` as the main of a command. Returns the completed process."""
    code = f"import os, signal, time\nfrom drcn_keras import commands\ndef main(argv):\n    {body}\n"
    # A process that was started in the background may have been told to ignore Ctrl-C.
    code += "signal.signal(signal.SIGINT, signal.default_int_handler)\ncommands.run(main, lambda: None)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_a_command_in_one_line_after_it_has_tidied_up(number):
    done = command(f"try: os.kill(os.getpid(), {int(number)}); time.sleep(9)\n    finally: print('tidied up')")
    assert done.returncode == 130
    assert done.stdout == "tidied up\n"
    assert done.stderr.count("\n") == 1
    assert "error: interrupted" in done.stderr


def test_what_takes_long_to_load_is_loaded_inside_a_command():
    """Ctrl-C while NumPy or Pillow load would end in a traceback before there is a command to catch it."""
    code = "import sys, drcn_keras.train; print(sorted({'numpy', 'PIL', 'keras'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
