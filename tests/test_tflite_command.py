"""How the commands on a device end: one line, a code that is not 0, nothing half-written."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import tflite_exports as exports

TOOLS = exports.ROOT / "tflite"


def run_main(body, tmp_path, **options):
    """Runs `command.end` on a main of these lines, in a process of its own."""
    script = tmp_path / "tool.py"
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    script.write_text(f"import sys\nfrom command import end\ndef main():\n{lines}\nend(main)\n")
    environment = {**os.environ, "PYTHONPATH": str(TOOLS)}
    return subprocess.Popen([sys.executable, script], env=environment, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_unwinds_and_ends_in_one_line(tmp_path, number):
    body = "import time\ntry:\n    print('ready', flush=True)\n    time.sleep(60)\nfinally:\n    print('undone')"
    tool = run_main(body, tmp_path, stdout=subprocess.PIPE)
    assert tool.stdout.readline() == "ready\n"
    tool.send_signal(number)
    out, err = tool.communicate(timeout=30)
    assert (out, err, tool.returncode) == ("undone\n", "tool.py: error: interrupted\n", 130)


def test_a_reader_that_leaves_is_one_line(tmp_path):
    tool = run_main("print('line\\n' * 100000)\nreturn 0", tmp_path, stdout=subprocess.PIPE)
    tool.stdout.close()
    with tool.stderr:
        error = tool.stderr.read()
    assert error == "tool.py: error: standard output was closed before all was printed.\n"
    assert tool.wait(timeout=30) == 2


def test_a_full_disk_behind_standard_output_is_one_line(tmp_path):
    with open("/dev/full", "w") as full:
        tool = run_main("print('some')\nreturn 0", tmp_path, stdout=full)
        assert (tool.communicate(timeout=30)[1], tool.returncode) == ("tool.py: error: No space left on device\n", 2)


def test_closed_streams_are_no_error(tmp_path):
    (model,) = exports.copy(tmp_path, "float32")
    words = [sys.executable, str(TOOLS / "check.py"), str(model), "--runs=1"]
    done = subprocess.run(["sh", "-c", '"$@" >&- 2>&-', "sh", *words], timeout=120)
    assert done.returncode == 0


def test_too_little_memory_is_one_line(tmp_path):
    tool = run_main("raise MemoryError", tmp_path)
    assert (tool.communicate(timeout=30)[1], tool.returncode) == ("tool.py: error: not enough memory.\n", 2)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--threads=1025", "--threads: expected a whole number from 1 to 1,024; received '1025'"),
        ("--runs=0", "--runs: expected a whole number from 1 to 1,000,000; received '0'"),
        ("--warmup=-1", "--warmup: expected a whole number from 0"),
        ("--timeout=inf", "--timeout: expected a number from 0 to 1,000,000; received 'inf'"),
        ("--golden_psnr=nan", "--golden_psnr: expected a number from 0 to 1,000,000; received 'nan'"),
        ("--golden_differing=2", "--golden_differing: expected a number from 0 to 1; received '2'"),
        ("--python='", '--python: expected a command; received "\'": No closing quotation'),
        ("--python=", "--python: expected a command; received nothing"),
        ("--no_such_flag", "unrecognized arguments: --no_such_flag"),
    ],
)
def test_bad_flags_of_the_checker_are_one_line(monkeypatch, flag, message):
    monkeypatch.syspath_prepend(TOOLS)
    check, manifest = (importlib.import_module(name) for name in ("check", "manifest"))
    with pytest.raises(manifest.CannotRun) as refused:
        check.parse_flags(["none.tflite", flag])
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("{}.json", "is the place of a model's manifest"),
        ("{}.tflite", "a report's name ends in .json"),
        ("{}.npz", "a report's name ends in .json"),
        ("folder.json", "is a folder"),
        ("nowhere/report.json", "nowhere: no such folder"),
        ("", "a report's name ends in .json"),
    ],
)
def test_a_report_replaces_no_model_and_is_refused_before_the_work(tmp_path, place, message):
    (model,) = exports.copy(tmp_path, "float32")
    (tmp_path / "folder.json").mkdir()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    path = tmp_path / place.format("float32") if place else ""
    done = exports.check(model, f"--json={path}")
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_the_report_is_written_where_no_one_reads_the_table(tmp_path):
    (model,) = exports.copy(tmp_path, "float32")
    words = [sys.executable, str(TOOLS / "check.py"), str(model), "--runs=1", f"--json={tmp_path / 'r.json'}"]
    subprocess.run(["sh", "-c", '"$@" | true', "sh", *words], timeout=120, stderr=subprocess.DEVNULL)
    assert json.loads((tmp_path / "r.json").read_text())["passed"]


def ended(pid):
    """Whether the process ends: killed, it may still be listed until it is scheduled and its parent has seen it."""
    for _ in range(400):
        state = subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True).stdout.strip()
        if not state or state.startswith("Z"):
            return True
        time.sleep(0.05)
    return False


def test_an_interrupted_check_leaves_no_process_and_no_report(tmp_path):
    (model,) = exports.copy(tmp_path, "float32")
    slow = tmp_path / "slow.sh"
    slow.write_text('#!/bin/sh\necho $$ > "$(dirname "$0")/pid"\nexec sleep 60\n')
    slow.chmod(0o755)
    words = [sys.executable, TOOLS / "check.py", model, f"--python={slow}", f"--json={tmp_path / 'r.json'}"]
    tool = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert tool.poll() is None
        time.sleep(0.05)
    tool.terminate()
    assert tool.communicate(timeout=30) == ("", "check.py: error: interrupted\n")
    assert tool.returncode == 130
    assert not (tmp_path / "r.json").exists()
    assert ended((tmp_path / "pid").read_text().strip())


def test_a_manifest_nested_without_end_is_a_damaged_one(tmp_path):
    (model,) = exports.copy(tmp_path, "float32")
    model.with_suffix(".json").write_text("[" * 100_000)
    done = exports.check(model)
    assert done.returncode == 2
    assert "damaged manifest" in done.stderr
    assert len(done.stderr.splitlines()) == 1
