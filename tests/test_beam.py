"""The command's own checks, which need no Beam; what it does is in test_batch."""

import importlib.util
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "drcn_keras.beam", *arguments], capture_output=True, text=True, cwd=ROOT
    )


def test_what_is_required():
    for arguments, message in [([], "--input, --output are required"), (["--input=a/*"], "--output is required")]:
        done = command(*arguments)
        assert done.returncode != 0
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert message in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("apache_beam") is not None, reason="Beam is installed here")
def test_a_missing_extra_is_named():
    done = command("--input=a/*", "--output=b")
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "apache_beam is not installed: pip install 'drcn_keras[beam]'" in done.stderr
