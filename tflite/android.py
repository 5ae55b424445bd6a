"""Checks and times a model on an Android device over adb, with LiteRT's benchmark_model.

    python tflite/android.py MODEL.tflite --benchmark_binary=PATH [--serial=SERIAL] [--delegates=xnnpack,none]

Pushes the binary, the model and a golden input, runs the binary once per delegate with that input, pulls the
output it wrote and compares it with the golden output. Exit code 0: every gate holds. 1: one fails. 2: it could
not be run. --dry_run prints the commands and touches no device.
"""

import argparse
import contextlib
import json
import os
import re
import shlex
import tempfile

import numerics
import numpy as np
from adb import Adb, reason_of
from check import limits_of
from command import MOST_THREADS, Parser, check_report, end, real, whole, words
from manifest import (
    CannotRun,
    from_tensor,
    identity_fault,
    output_peak,
    read_golden,
    read_manifest,
    write_atomically,
)

# What selects each delegate in benchmark_model. The GPU computes in float32 so that its image can be judged.
DELEGATES = {
    "xnnpack": ["--use_xnnpack=true"],
    "none": ["--use_xnnpack=false"],
    "gpu": ["--use_xnnpack=false", "--use_gpu=true", "--gpu_precision_loss_allowed=false"],
    "nnapi": ["--use_xnnpack=false", "--use_nnapi=true"],
}

# Its own for every run: two at once would take each other's files for theirs.
REMOTE = f"/data/local/tmp/drcn_check_{os.getpid()}"

_PROPERTIES = (
    ("model", "ro.product.model"),
    ("abi", "ro.product.cpu.abi"),
    ("android", "ro.build.version.release"),
)

# The machine in an ELF header, by Android's name for it.
_ELF_MACHINES = {"arm64-v8a": 183, "armeabi-v7a": 40, "x86_64": 62, "x86": 3}


def main():
    """Reads the flags, runs, prints, and returns the exit code."""
    flags = parse_flags()
    if flags.json is not None:
        check_report(flags.json)
    manifest = read_manifest(flags.model)
    fault = identity_fault(flags.model, manifest)
    if fault:
        raise CannotRun(f"{flags.model}: {fault}.")
    golden = read_golden(flags.model)
    case = _case(golden, flags.case)
    # A file of any size is run at the golden vectors'.
    shape = (1, *golden["inputs"].shape[1:])
    if flags.dry_run:
        adb = Adb(flags.adb, flags.serial)
        print("\n".join(shlex.join(command) for command in commands(adb, flags, shape, "INPUT.bin", "OUTPUT")))
        return 0
    if not os.path.isfile(flags.benchmark_binary):
        raise CannotRun(f"{flags.benchmark_binary}: no such file; expected LiteRT's benchmark_model for Android.")
    adb = Adb(flags.adb, flags.serial)
    adb.choose_device()
    report = check(adb, flags, manifest, golden, case)
    if flags.json is not None:
        write_atomically(flags.json, (json.dumps(report, indent=1) + "\n").encode())
    print(render(report))
    if flags.keep:
        print(f"kept on the device: {REMOTE}")
    return 0 if report["passed"] else 1


def parse_flags(argv=None):
    """The command line's flags."""
    parser = Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model", metavar="MODEL.tflite")
    parser.add_argument("--benchmark_binary", required=True, metavar="PATH", help="benchmark_model for the device")
    parser.add_argument("--serial", help="of the device; needed when there are several (adb devices)")
    parser.add_argument("--delegates", type=_delegates, default=["xnnpack"], help=f"of {', '.join(DELEGATES)}")
    parser.add_argument("--case", default="", help="golden case to run; default the first")
    parser.add_argument("--threads", type=whole(1, MOST_THREADS), default=4)
    parser.add_argument("--runs", type=whole(1), default=50)
    parser.add_argument("--golden_psnr", type=real(0), metavar="DB", help="at least; the default depends on the mode")
    parser.add_argument("--allow_fallback", action="store_true", help="do not fail when the delegate did not run all")
    parser.add_argument("--keep", action="store_true", help="leave the files on the device")
    parser.add_argument("--json", metavar="FILE", help="also write the report there")
    parser.add_argument("--dry_run", action="store_true", help="print the commands, run none")
    parser.add_argument("--adb", type=words, default=["adb"], metavar="COMMAND")
    parser.add_argument("--timeout", type=real(0), default=600.0, help="seconds for one command (default 600)")
    return parser.parse_args(argv)


def _delegates(text):
    names = text.split(",")
    for name in names:
        if name not in DELEGATES:
            raise argparse.ArgumentTypeError(f"unknown delegate {name!r}; expected some of {', '.join(DELEGATES)}")
    return names


def _case(golden, name):
    names = [str(case) for case in golden["names"]]
    if not name:
        return 0
    if name not in names:
        raise CannotRun(f"no golden case {name!r}; there are {', '.join(names)}.")
    return names.index(name)


def commands(adb, flags, shape, input_file, output_folder):
    """Every adb command of a run, in order, as lists of words."""
    files = _pushed(flags, input_file)
    lines = [[*adb.command, "devices"], *(adb.line("shell", f"getprop {name}") for _, name in _PROPERTIES)]
    lines.append(adb.line("shell", f"mkdir -p {REMOTE}"))
    lines += [adb.line("push", source, target) for source, target in files]
    lines += [adb.line("shell", f"stat -c %s {target}; sha256sum {target}") for _, target in files]
    lines.append(adb.line("shell", f"chmod 755 {REMOTE}/benchmark_model"))
    for name in flags.delegates:
        lines.append(adb.line("shell", _benchmark(flags, shape, name)))
        lines.append(adb.line("pull", _remote_output(name), os.path.join(output_folder, f"{name}.bin")))
    if not flags.keep:
        lines.append(adb.line("shell", f"rm -rf {REMOTE}"))
    return lines


def _pushed(flags, input_file):
    return [
        (flags.benchmark_binary, f"{REMOTE}/benchmark_model"),
        (flags.model, f"{REMOTE}/model.tflite"),
        (input_file, f"{REMOTE}/input.bin"),
    ]


def _remote_output(delegate):
    return f"{REMOTE}/output_{delegate}.bin"


def _benchmark(flags, shape, delegate):
    line = [
        f"{REMOTE}/benchmark_model",
        f"--graph={REMOTE}/model.tflite",
        "--input_layer=input",
        f"--input_layer_shape={','.join(str(side) for side in shape)}",
        f"--input_layer_value_files=input:{REMOTE}/input.bin",
        f"--output_filepath={_remote_output(delegate)}",
        f"--num_threads={flags.threads}",
        f"--num_runs={flags.runs}",
        "--warmup_runs=5",
        *DELEGATES[delegate],
    ]
    return shlex.join(line)


def check(adb, flags, manifest, golden, case):
    """Pushes, runs each delegate, compares.

    Returns:
        dict: device, model, case, delegates (a list of dicts with latency, what ran, the comparison, passed), passed.
    """
    device = {key: adb.must(["shell", f"getprop {name}"]).strip() for key, name in _PROPERTIES}
    _check_binary(flags.benchmark_binary, device["abi"])
    report = {"device": {"serial": adb.serial, **device}, "model": os.path.basename(flags.model)}
    report["case"] = str(golden["names"][case])
    try:
        with tempfile.TemporaryDirectory() as folder:
            input_file = os.path.join(folder, "input.bin")
            golden["inputs"][case].tofile(input_file)
            adb.must(["shell", f"mkdir -p {REMOTE}"])
            for source, target in _pushed(flags, input_file):
                adb.push(source, target, flags.timeout)
            adb.must(["shell", f"chmod 755 {REMOTE}/benchmark_model"])
            report["delegates"] = [
                _run_delegate(adb, flags, manifest, golden, case, name, folder) for name in flags.delegates
            ]
    finally:
        if not flags.keep:
            with contextlib.suppress(CannotRun):  # What went wrong before is what counts.
                adb.run(["shell", f"rm -rf {REMOTE}"])
    report["passed"] = all(result["passed"] for result in report["delegates"])
    return report


def _check_binary(path, abi):
    with open(path, "rb") as file:
        header = file.read(20)
    if header[:4] != b"\x7fELF" or abi not in _ELF_MACHINES:
        return  # A script, or an ABI of the future: the device will say.
    if int.from_bytes(header[18:20], "little") != _ELF_MACHINES[abi]:
        raise CannotRun(f"{path}: built for another processor; the device is {abi}.")


def _run_delegate(adb, flags, manifest, golden, case, name, folder):
    expected = golden["outputs"][case]
    shape = (1, *golden["inputs"].shape[1:])
    code, out, err = adb.run(["shell", _benchmark(flags, shape, name)], flags.timeout)
    log = out + err
    result = {"delegate": name, **parse_log(log)}
    if code:
        reason = reason_of(out, err)
        hint = "; the binary is missing on the device" if "not found" in reason else ""
        raise CannotRun(f"benchmark_model with {name} failed (exit {code}): {reason}{hint}")
    if result["average_ms"] is None:
        raise CannotRun(f"benchmark_model with {name} printed no timings: {reason_of(out, err)}")
    pulled = os.path.join(folder, f"{name}.bin")
    code, out, err = adb.run(["pull", _remote_output(name), pulled], flags.timeout)
    if code or not os.path.isfile(pulled):
        raise CannotRun(f"no output from benchmark_model with {name} (is --output_filepath known to it?).")
    if os.path.getsize(pulled) != expected.nbytes:
        raise CannotRun(
            f"the output pulled for {name} has {os.path.getsize(pulled)} bytes; expected {expected.nbytes}."
        )
    pulled = np.fromfile(pulled, expected.dtype).reshape(expected.shape)
    actual, expected = (from_tensor(array[None], manifest["output"]) for array in (pulled, expected))
    compared = numerics.compare(actual, expected, output_peak(manifest), manifest["halo"])
    xnnpack = name == "xnnpack" and result["ran"] == "completely"
    limit = limits_of(manifest, xnnpack)["golden_psnr"] if flags.golden_psnr is None else flags.golden_psnr
    faults = []
    if not np.all(np.isfinite(actual)):
        faults.append(f"{np.sum(~np.isfinite(actual))} NaN or infinite values")
    elif compared["psnr"] < limit:
        faults.append(f"{compared['psnr']:.1f} dB against the golden output, expected {limit:g} or more")
    if name != "none" and result["ran"] != "completely" and not flags.allow_fallback:
        said = (
            "nothing in the log says that it ran" if result["ran"] == "unknown" else f"{result['ran']} executed by it"
        )
        faults.append(f"the delegate fell back: {name}: {said}")
    return {**result, **compared, "limit_db": limit, "faults": faults, "passed": not faults}


def parse_log(log):
    """What benchmark_model prints.

    Returns:
        dict: init_ms, first_ms, average_ms, median_ms, p95_ms (None where not printed), and ran: "completely",
        "partially", "not", or "unknown" when the log names no delegate.
    """
    timing = re.search(r"Init: ([\d.e+]+), First inference: ([\d.e+]+),.*Inference \(avg\): ([\d.e+]+)", log)
    init, first, average = (float(value) / 1000.0 for value in timing.groups()) if timing else (None, None, None)
    result = {"init_ms": init, "first_ms": first, "average_ms": average}
    # Two count= lines: the warm-up's and, last, the measured runs'.
    counts = [line for line in log.splitlines() if "count=" in line and "avg=" in line]
    for key in ("median", "p95"):
        found = re.search(rf"\b{key}=([\d.e+]+)", counts[-1]) if counts else None
        result[f"{key}_ms"] = float(found.group(1)) / 1000.0 if found else None
    ran = re.search(r"model graph will (be completely|be partially|not be) executed by the delegate", log)
    result["ran"] = {"be completely": "completely", "be partially": "partially", "not be": "not"}.get(
        ran.group(1) if ran else "", "unknown"
    )
    return result


def render(report):
    """The report as text."""
    device = report["device"]
    lines = [
        f"{device['model']} ({device['serial']}), {device['abi']}, Android {device['android']}",
        f"{report['model']}, case {report['case']}",
        f"{'delegate':<10}{'ran':<14}{'init ms':>10}{'first ms':>10}{'mean ms':>10}{'p95 ms':>10}{'golden dB':>11}",
    ]
    for result in report["delegates"]:
        p95 = "-" if result["p95_ms"] is None else f"{result['p95_ms']:.2f}"
        lines.append(
            f"{result['delegate']:<10}{result['ran']:<14}{result['init_ms']:>10.2f}{result['first_ms']:>10.2f}"
            f"{result['average_ms']:>10.2f}{p95:>10}{result['psnr']:>11.1f}"
        )
        lines += [f"  FAIL {fault}" for fault in result["faults"]]
    lines.append("passed" if report["passed"] else "failed")
    return "\n".join(lines)


if __name__ == "__main__":
    end(main)
