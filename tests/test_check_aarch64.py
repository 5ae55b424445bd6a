"""tools/check_aarch64.sh with stand-ins for what it downloads and emulates with: nothing of others is touched."""

import os
import shutil
import signal
import subprocess
import time

import pytest
from kit import ROOT

STAND_INS = {
    # Unpacks one package, or waits to be interrupted.
    "debootstrap": """
        for last; do :; done
        mkdir -p "$last/var/cache/apt/archives" && touch "$last/var/cache/apt/archives/a.deb"
        [ -z "$HANG" ] || { touch "$HANG"; exec sleep 60; }""",
    "dpkg": 'mkdir -p "$3/usr/bin"',
    # pip download ... --dest FOLDER ..., and zipfile -e WHEEL FOLDER.
    "python3": """
        [ "$2" = zipfile ] && exec mkdir -p "$5"
        for word; do [ "$before" = --dest ] && touch "$word/a.whl"; before=$word; done; true""",
    "qemu-aarch64-static": 'printf "%s\\n" "$@"; echo "path $PYTHONPATH"',
}


@pytest.fixture
def script(tmp_path):
    """Starts the script with a root; the process."""
    if not shutil.which("bash"):
        pytest.skip("needs bash")
    (tmp_path / "bin").mkdir()
    for name, body in STAND_INS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)

    def start(root, **more):
        environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "AARCH64_ROOT": str(root)}
        command = ["bash", str(ROOT / "tools" / "check_aarch64.sh"), "model.tflite"]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
        return subprocess.Popen(command, env={**environment, "HANG": "", **more}, **options)

    return start


def test_a_folder_with_spaces_is_one_word_and_is_unpacked_once(script, tmp_path):
    root = tmp_path / "an ä root"
    for unpacked in (True, False):
        process = script(root)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0, err
        assert ("Unpacking" in err) == unpacked
        lines = out.splitlines()
        assert lines[:3] == ["-L", f"{root}/system", f"{root}/system/usr/bin/python3.11"]
        assert f"--python=qemu-aarch64-static -L '{root}/system' '{root}/system/usr/bin/python3.11'" in lines
        assert lines[-1] == f"path {root}/packages"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["an ä root", "bin"]


def test_a_folder_of_others_is_left_alone(script, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("years of work")
    process = script(home)
    assert process.communicate(timeout=30) == (
        "",
        f"check_aarch64.sh: error: {home} holds something else; expected no such folder, or an empty one\n",
    )
    assert process.returncode == 2
    assert [path.name for path in home.iterdir()] == ["thesis.txt"]


def test_an_interrupted_run_leaves_nothing(script, tmp_path):
    hanging = tmp_path / "hanging"
    process = script(tmp_path / "root", HANG=str(hanging))
    while not hanging.exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.communicate(timeout=30)[1].splitlines()[-1] == "check_aarch64.sh: error: interrupted"
    assert process.returncode == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "hanging"]
