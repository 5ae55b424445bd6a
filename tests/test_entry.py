"""The installed commands, and how they end when a signal asks them to."""

import configparser
import signal
import subprocess
import sys

import pytest
from kit import ENVIRONMENT, ROOT

from drcn_keras import entry

SIGNALS = [signal.SIGINT, signal.SIGTERM]
# A process that was started in the background may have been told to ignore Ctrl-C.
PRELUDE = "import os, signal, sys, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"


def scripts():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    lines = settings["options.entry_points"]["console_scripts"].strip().splitlines()
    return dict(line.strip().split(" = ") for line in lines)


def python(code, **options):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=ENVIRONMENT, **options
    )


def command(body, **options):
    """Runs `body` as the main of a command. Returns the completed process."""
    code = f"from drcn_keras import commands\ndef main(argv):\n    {body}\n"
    return python(PRELUDE + code + "commands.run(main, lambda: None)", **options)


def assert_interrupted(done, output=""):
    assert done.returncode == 130, done
    assert done.stdout == output
    assert done.stderr.count("\n") == 1, done.stderr
    assert "error: interrupted" in done.stderr


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_end_a_command_in_one_line_after_it_has_tidied_up(number):
    done = command(f"try: os.kill(os.getpid(), {int(number)}); time.sleep(9)\n    finally: print('tidied up')")
    assert_interrupted(done, "tidied up\n")


@pytest.mark.parametrize("number", SIGNALS)
def test_no_import_hides_a_signal(number, tmp_path):
    """Python calls weak references' callbacks amid an import and drops what they raise; extensions raise their own."""
    (tmp_path / "deaf.py").write_text(
        f"import os\ntry:\n    os.kill(os.getpid(), {int(number)})\nexcept BaseException:\n    pass\n"
    )
    assert_interrupted(command("import deaf; print('went on')", cwd=tmp_path))


@pytest.mark.parametrize("name", scripts())
def test_a_signal_while_a_command_loads_ends_it_in_one_line(name):
    """Every command, at the moment when the first of its libraries is looked for."""
    code = f"""
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "absl":
            os.kill(os.getpid(), signal.SIGINT)
sys.argv = ["{name}"]
sys.meta_path.insert(0, Finder)
from {scripts()[name].split(":")[0]} import {scripts()[name].split(":")[1]} as run
run()
"""
    done = python(PRELUDE + code)
    assert_interrupted(done)
    assert done.stderr.startswith(f"{name}: ")


def test_a_signal_that_is_ignored_stays_ignored():
    code = "import os, signal\nfrom drcn_keras import entry\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    done = python(code + "entry.watch_signals(); os.kill(os.getpid(), signal.SIGINT); print('went on')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "went on\n", "")


def test_every_installed_command_is_here_under_its_name():
    for name, target in scripts().items():
        assert target == f"drcn_keras.entry:{name.removeprefix('drcn-').replace('-', '_')}"
        assert callable(getattr(entry, target.split(":")[1]))


def test_what_takes_long_to_load_is_loaded_inside_a_command():
    """`python -m drcn_keras.train` too: who interrupts it while NumPy or Pillow load finds a command that ends."""
    code = "import sys, drcn_keras.train; print(sorted({'numpy', 'PIL', 'keras'} & set(sys.modules)))"
    assert python(code).stdout.strip() == "[]"
