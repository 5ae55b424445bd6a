"""android.py against a stand-in adb that keeps a "device" in a folder, records every call and injects failures."""

import importlib
import json
import os
import pathlib
import shlex
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from tflite_exports import sign

ROOT = pathlib.Path(__file__).parent.parent

TIMINGS = (
    "INFO: Explicitly applied XNNPACK delegate, and the model graph will be completely executed by the delegate.\n"
    "INFO: count=5 first=91000 curr=9100 min=9000 max=91000 avg=9300 std=10 p5=9000 median=9200 p95=9900\n"
    "INFO: count=50 first=8000 curr=8100 min=7900 max=9000 avg=8200 std=10 p5=7950 median=8150 p95=8800\n"
    "INFO: Inference timings in us: Init: 5579, First inference: 91000, Warmup (avg): 9300, Inference (avg): 8200\n"
)

# The stand-in: `FAULT` names the failure to inject.
ADB = """
import hashlib, json, os, pathlib, shutil, sys
device, fault = pathlib.Path(os.environ["DEVICE"]), os.environ.get("FAULT", "")
words = sys.argv[1:]
with open(device / "calls.jsonl", "a") as log:
    log.write(json.dumps(words) + "\\n")

def here(path):
    return device / path.lstrip("/")

if words == ["devices"]:
    lines = {"": ["abc\\tdevice"], "none": [], "two": ["abc\\tdevice", "def\\tdevice"],
             "unauthorized": ["abc\\tunauthorized"], "offline": ["abc\\toffline"]}
    print("List of devices attached", *lines.get(fault, ["abc\\tdevice"]), sep="\\n")
    sys.exit()
assert words[:2] == ["-s", "abc"], words
verb, rest = words[2], words[3:]
if verb == "push":
    data = pathlib.Path(rest[0]).read_bytes()
    if fault == "space":
        sys.exit("adb: error: failed to copy: remote couldn't create file: No space left on device")
    if fault == "disconnect":
        sys.exit("adb: error: failed to copy: connection reset")
    if fault == "cut" and rest[1].endswith(".tflite"):
        data = data[: len(data) // 2]
    if fault == "damaged" and rest[1].endswith(".tflite"):
        data = bytes([data[0] ^ 1]) + data[1:]
    here(rest[1]).parent.mkdir(parents=True, exist_ok=True)
    here(rest[1]).write_bytes(data)
elif verb == "pull":
    if not here(rest[0]).exists():
        sys.exit("adb: error: failed to stat remote object: No such file or directory")
    shutil.copy(here(rest[0]), rest[1])
elif rest[0].startswith("stat"):
    path = here(rest[0].split()[-1])
    print(path.stat().st_size)
    print(hashlib.sha256(path.read_bytes()).hexdigest(), path)
elif rest[0].startswith("getprop"):
    print({"ro.product.cpu.abi": "arm64-v8a", "ro.product.model": "Stand-in"}.get(rest[0].split()[1], "14"))
elif "benchmark_model --graph" in rest[0]:
    if fault == "missing":
        print("/system/bin/sh: benchmark_model: not found", file=sys.stderr)
        sys.exit(127)
    flags = dict(word.split("=", 1) for word in rest[0].split()[1:])
    given = here(flags["--input_layer_value_files"].split(":")[1]).read_bytes()
    assert given == pathlib.Path(os.environ["INPUT"]).read_bytes()
    data = pathlib.Path(os.environ["OUTPUT"]).read_bytes()
    if fault == "short":
        data = data[:-4]
    if fault != "no output":
        here(flags["--output_filepath"]).write_bytes(data)
    text = os.environ["TIMINGS"]
    lines = {"partial": text.replace("completely", "partially"), "silent": text.partition("\\n")[2], "mute": ""}
    print(lines.get(fault, text))
elif rest[0].startswith("rm -rf"):
    shutil.rmtree(here(rest[0].split()[-1]), ignore_errors=True)
"""


@pytest.fixture
def phone(tmp_path, monkeypatch, capsys):
    """A model that is never run here, a binary, and a function that runs android.py against the stand-in."""
    monkeypatch.syspath_prepend(ROOT / "tflite")
    android = importlib.import_module("android")
    generator = np.random.default_rng(0)
    inputs = generator.random((2, 16, 16, 1), np.float32)
    outputs = generator.random((2, 16, 16, 1), np.float32)
    names = np.array(["patch_0", "noise"])
    np.savez(tmp_path / "m.npz", names=names, inputs=inputs, outputs=outputs, float_outputs=outputs)
    (tmp_path / "m.tflite").write_bytes(bytes(range(256)) * 8)
    hashes = {name: subprocess_sha(tmp_path / f"m.{name}") for name in ("tflite", "npz")}
    side = {"shape": [1, 16, 16, 1], "dtype": "float32", "quantization": None}
    manifest = {
        "format": 2,
        "model": {"file": "m.tflite", "sha256": hashes["tflite"], "bytes": 2048},
        "golden": {"file": "m.npz", "sha256": hashes["npz"], "cases": 2},
        "mode": "float32",
        "pipeline": "luma",
        "scale": 2,
        "halo": 4,
        "input": {"name": "ilr", **side},
        "output": {"name": "sr", **side},
        "macs": 1000,
        "limits": {"golden_psnr": 100.0, "golden_ulp": 1000.0, "golden_differing": 0.01, "float_psnr": 97.0},
    }
    sign(tmp_path / "m.json", manifest)
    device = tmp_path / "device"
    device.mkdir()
    (tmp_path / "adb.py").write_text(textwrap.dedent(ADB))
    binary = tmp_path / "benchmark_model"
    binary.write_bytes(b"\x7fELF" + bytes(14) + (183).to_bytes(2, "little"))
    inputs[0].tofile(tmp_path / "in.raw")
    outputs[0].tofile(tmp_path / "out.raw")

    def run(*words, fault="", output=None):
        if output is not None:
            output.tofile(tmp_path / "out.raw")
        for name, value in (
            ("DEVICE", device),
            ("FAULT", fault),
            ("INPUT", tmp_path / "in.raw"),
            ("OUTPUT", tmp_path / "out.raw"),
            ("TIMINGS", TIMINGS),
        ):
            monkeypatch.setenv(name, str(value))
        adb = f"{shlex.quote(sys.executable)} -S -E {shlex.quote(str(tmp_path / 'adb.py'))}"
        model = str(tmp_path / "m.tflite")
        monkeypatch.setattr(sys, "argv", ["android.py", model, f"--benchmark_binary={binary}", f"--adb={adb}", *words])
        with pytest.raises(SystemExit) as ended:
            android.end(android.main)
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(sys.argv, ended.value.code, out, err)

    run.folder, run.device, run.outputs = tmp_path, device, outputs
    run.calls = lambda: [json.loads(line) for line in (device / "calls.jsonl").read_text().splitlines()]
    return run


def subprocess_sha(path):
    """The SHA-256 by the system's own tool, not the code under test."""
    return subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]


def test_reports_latency_and_agreement_and_cleans_up(phone):
    done = phone(f"--json={phone.folder / 'report.json'}")
    assert done.returncode == 0, done.stderr
    report = json.loads((phone.folder / "report.json").read_text())
    result = report["delegates"][0]
    # Microseconds in the log; the measured runs' percentiles, not the warm-up's.
    assert (result["init_ms"], result["first_ms"], result["average_ms"]) == (5.579, 91.0, 8.2)
    assert (result["median_ms"], result["p95_ms"]) == (8.15, 8.8)
    assert result["psnr"] == 200.0
    assert report["device"] == {"serial": "abc", "model": "Stand-in", "abi": "arm64-v8a", "android": "14"}
    assert not list((phone.device / "data/local/tmp").glob("drcn_check*"))


def test_dry_run_prints_the_commands_that_a_run_gives_and_gives_none(phone):
    dry = phone("--dry_run", "--serial=abc", "--delegates=xnnpack,none")
    assert dry.returncode == 0
    assert not (phone.device / "calls.jsonl").exists()
    printed = [shlex.split(line)[4:] for line in dry.stdout.splitlines()]
    done = phone("--delegates=xnnpack,none")
    assert done.returncode == 0, done.stderr

    def comparable(lines):
        # Temporary files have other names; the listing groups the pushes and their proofs.
        local = [
            [word if word.startswith("/data") else os.path.basename(word).lower() for word in line] for line in lines
        ]
        return sorted(local)

    assert comparable(printed) == comparable(phone.calls())


def test_a_file_of_any_size_runs_at_the_golden_vectors_size(phone):
    path = phone.folder / "m.json"
    manifest = json.loads(path.read_text())
    manifest["input"]["shape"] = [1, -1, -1, 1]
    sign(path, manifest)
    assert "--input_layer_shape=1,16,16,1" in phone("--dry_run").stdout
    assert phone().returncode == 0
    assert any("--input_layer_shape=1,16,16,1" in word for call in phone.calls() for word in call)


def test_an_output_that_differs_fails(phone):
    wrong = phone.outputs[0].copy()
    wrong[8, 8] += 0.5
    done = phone(output=wrong)
    assert done.returncode == 1
    # One pixel of 256 off by 0.5: 10*log10(256 / 0.25) = 30.1 dB.
    assert "30.1 dB against the golden output, expected 100" in done.stdout


def test_nan_in_the_output_fails(phone):
    wrong = phone.outputs[0].copy()
    wrong[0, 0] = np.nan
    done = phone(output=wrong)
    assert done.returncode == 1
    assert "1 NaN or infinite" in done.stdout


@pytest.mark.parametrize(
    # benchmark_model goes on without a GPU delegate that it does not have, and then names none.
    ("fault", "delegate", "message"),
    [("partial", "xnnpack", "partially executed by it"), ("silent", "gpu", "nothing in the log says that it ran")],
)
def test_a_delegate_that_fell_back_fails_unless_allowed(phone, fault, delegate, message):
    done = phone(f"--delegates={delegate}", fault=fault)
    assert done.returncode == 1
    assert f"the delegate fell back: {delegate}: {message}" in done.stdout
    assert phone(f"--delegates={delegate}", "--allow_fallback", fault=fault).returncode == 0


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("none", "no Android device"),
        ("two", "2 devices; choose one with --serial: abc, def"),
        ("unauthorized", "device abc is unauthorised: unlock it"),
        ("offline", "device abc is offline"),
        ("cut", "was cut off: 1024 of 2048 bytes arrived"),
        ("damaged", "arrived damaged"),
        ("space", "no space left on the device"),
        ("disconnect", "connection reset"),
        ("missing", "the binary is missing on the device"),
        ("mute", "printed no timings"),
        ("no output", "no output from benchmark_model"),
        ("short", "has 1020 bytes; expected 1024"),
    ],
)
def test_what_goes_wrong_is_one_line_and_exit_2(phone, fault, message):
    done = phone(fault=fault)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list((phone.device / "data/local/tmp").glob("drcn_check*"))


def test_a_binary_of_another_processor_or_none_is_refused(phone):
    other = phone.folder / "other"
    other.write_bytes(b"\x7fELF" + bytes(14) + (62).to_bytes(2, "little"))
    done = phone(f"--benchmark_binary={other}")
    assert done.returncode == 2
    assert "built for another processor; the device is arm64-v8a" in done.stderr
    done = phone(f"--benchmark_binary={phone.folder / 'nothing'}")
    assert done.returncode == 2
    assert "no such file" in done.stderr


def test_without_adb_or_with_an_unknown_serial_it_says_so(phone):
    assert "not found; install Android's platform-tools" in phone("--adb=no-such-adb").stderr
    assert "no device 'xyz'; adb sees abc" in phone("--serial=xyz").stderr


def test_two_runs_at_once_do_not_share_a_folder(phone):
    """Each would take the other's model, input and output for its own, and clean them away."""
    phone("--keep")
    (kept,) = (phone.device / "data/local/tmp").iterdir()
    assert kept.name == f"drcn_check_{os.getpid()}"


def test_whole_numbers_are_compared_in_the_manifests_unit(phone):
    """int8 at the ends: one of 256 pixels off by one step of 0.004: 10*log10(256 / 0.004^2) = 72.0 dB."""
    generator = np.random.default_rng(0)
    inputs, outputs = (generator.integers(-100, 100, (2, 16, 16, 1), np.int8) for _ in range(2))
    np.savez(
        phone.folder / "m.npz",
        names=np.array(["patch_0", "noise"]),
        inputs=inputs,
        outputs=outputs,
        float_outputs=outputs,
    )
    path = phone.folder / "m.json"
    manifest = json.loads(path.read_text())
    for side in ("input", "output"):
        manifest[side].update(dtype="int8", quantization={"scale": 0.004, "zero_point": -128})
    manifest["mode"], manifest["limits"]["golden_psnr"] = "int8_full", 50.0
    manifest["golden"]["sha256"] = subprocess_sha(phone.folder / "m.npz")
    sign(path, manifest)
    inputs[0].tofile(phone.folder / "in.raw")
    outputs[0, 3, 3] += 1
    done = phone(f"--json={phone.folder / 'report.json'}", output=outputs[0])
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((phone.folder / "report.json").read_text())
    assert report["delegates"][0]["psnr"] == pytest.approx(72.04, abs=0.01)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--threads=0", "--threads: expected a whole number from 1 to 1,024"),
        ("--runs=nan", "--runs: expected a whole number"),
        ("--timeout=inf", "--timeout: expected a number from 0"),
        ("--golden_psnr=nan", "--golden_psnr: expected a number"),
        ("--adb='", "--adb: expected a command"),
        ("--delegates=cuda", "unknown delegate 'cuda'"),
        ("--json=m.tflite", "a report's name ends in .json"),
    ],
)
def test_bad_flags_are_one_line(phone, flag, message):
    done = phone(flag)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
