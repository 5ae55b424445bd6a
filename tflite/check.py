"""Checks on the device itself that a .tflite file computes the right image, how fast, and in how much memory.

    python tflite/check.py MODEL.tflite [MORE.tflite ...] [--json=FILE]

Reads the manifest (.json) and golden vectors (.npz) that drcn-export-tflite writes beside each model. Needs
Python, NumPy and ai-edge-litert (or tflite-runtime); it loads neither TensorFlow, Keras nor drcn_keras.
Exit code 0: every gate holds. 1: one fails. 2: it could not be run.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile

import runtime
from command import MOST_THREADS, Parser, check_report, end, real, whole, words
from manifest import CannotRun, identity_fault, read_golden, read_manifest, write_atomically

# XNNPACK gives the same bits with any number of threads; the built-in kernels, which int16x8 needs, do not.
THREADS_ULP = 0.0
BUILT_IN_THREADS_ULP = 64.0

# What the exporter's own runtime gives again on its own kind of processor, in dB, at least.
SAME_KERNELS_PSNR = 140.0

# Above this p95 / p50 something else ran on the device: the times are not the model's own.
BUSY_RATIO = 1.5

# How much further than the centre the border may be off, in dB, before the padding is suspected.
BORDER_DB = 6.0


def main():
    """Parses the flags, checks each model, prints, and returns the exit code."""
    flags = parse_flags()
    if flags.json is not None:
        check_report(flags.json)
    device = runtime.device_facts()
    reports = []
    for number, model in enumerate(flags.models, 1):
        if sys.stderr.isatty():
            print(f"[{number}/{len(flags.models)}] {model} ...", file=sys.stderr)
        try:
            reports.append(check(model, flags))
        except CannotRun as error:
            print(f"check.py: error: {error}", file=sys.stderr)
            reports.append({"file": os.path.basename(model), "error": str(error), "gates": [], "passed": False})
    passed = all(report["passed"] for report in reports)
    if flags.json is not None:
        document = {"format": 1, "device": device, "models": reports, "passed": passed}
        write_atomically(flags.json, (json.dumps(document, indent=1) + "\n").encode())
    print(render(device, reports))
    if any("error" in report for report in reports):
        return 2
    return 0 if passed else 1


def parse_flags(argv=None):
    """The command line's flags; every default that a mode sets is None here."""
    parser = Parser(
        description=__doc__.split("\n\n")[0], epilog="Exit code 0: every gate holds; 1: one fails; 2: could not be run."
    )
    parser.add_argument("models", nargs="+", metavar="MODEL.tflite")
    parser.add_argument("--json", metavar="FILE", help="also write the whole report there")
    parser.add_argument(
        "--delegate",
        default="auto",
        help="xnnpack; none: built-in kernels; or an external delegate: libNAME.so[,key=value...]. "
        "auto (default): xnnpack, and none for int16x8, which XNNPACK does not compute",
    )
    parser.add_argument("--allow_fallback", action="store_true", help="do not fail when the delegate did not run")
    parser.add_argument("--threads", type=whole(1, MOST_THREADS), default=min(4, runtime.usable_cores()))
    parser.add_argument("--runs", type=whole(1), default=100, help="timed runs (default 100)")
    parser.add_argument("--warmup", type=whole(0), default=5, help="untimed runs before (default 5)")
    parser.add_argument("--max_seconds", type=real(0), default=20.0, help="end the timed runs after this (default 20)")
    parser.add_argument("--timeout", type=real(0), default=900.0, help="seconds allowed for one model (default 900)")
    parser.add_argument(
        "--python",
        type=words,
        default=[sys.executable],
        metavar="COMMAND",
        help="starts Python for the measuring process; under an emulator, the emulator with its arguments",
    )
    gates = parser.add_argument_group("gates", "defaults stand in the manifest")
    gates.add_argument("--golden_psnr", type=real(0), metavar="DB", help="at least, worst case against its own golden")
    gates.add_argument("--golden_ulp", type=real(0), metavar="N", help="largest difference, units of the last place")
    gates.add_argument("--golden_differing", type=real(0, 1), metavar="SHARE", help="differing in 8 bit, at most")
    gates.add_argument("--float_psnr", type=real(0), metavar="DB", help="at least, patches against the float model")
    gates.add_argument("--threads_ulp", type=real(0), metavar="N", help="1 against N threads (0; built-in kernels 64)")
    gates.add_argument("--max_p50_ms", type=real(0), metavar="MS", help="no default: it depends on the device")
    gates.add_argument("--max_p95_ms", type=real(0), metavar="MS", help="no default")
    gates.add_argument("--max_slowdown", type=real(0), metavar="RATIO", help="second half / first half; no default")
    gates.add_argument("--max_peak_mb", type=real(0), metavar="MB", help="peak resident set; no default")
    return parser.parse_args(argv)


def check(model, flags):
    """One model's report: dict of file, mode, pipeline, gates, passed, and all that was measured.

    Raises:
        CannotRun: no verdict was possible.
    """
    manifest = read_manifest(model)
    report = {key: manifest.get(key) for key in ("mode", "pipeline", "scale", "filters", "recursions", "parameters")}
    report = {"file": os.path.basename(model), "bytes": os.path.getsize(model), **report, "gates": []}
    fault = identity_fault(model, manifest)
    _gate(report, "file", not fault, fault or "SHA-256 as in the manifest")
    if not fault:
        read_golden(model)
        report.update(measured(model, manifest, flags))
        judge(report, manifest, flags)
    report["passed"] = all(gate["passed"] for gate in report["gates"])
    return report


def measured(model, manifest, flags):
    """What measure.py, in a process of its own, finds out about a model.

    Raises:
        CannotRun: it refused, crashed or took too long.
    """
    request = {
        "model": os.path.abspath(model),
        "delegate": runtime.chosen_delegate(flags.delegate, manifest["mode"]),
        "threads": flags.threads,
        "runs": flags.runs,
        "warmup": flags.warmup,
        "max_seconds": flags.max_seconds,
    }
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, name) for name in ("request.json", "result.json")]
        with open(paths[0], "w", encoding="utf-8") as file:
            json.dump(request, file)
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "measure.py")
        command = [*flags.python, script, *paths]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=flags.timeout)
        except subprocess.TimeoutExpired as error:
            raise CannotRun(f"{model}: not done after {flags.timeout:g} seconds (--timeout).") from error
        if done.returncode < 0:
            name = signal.Signals(-done.returncode).name
            raise CannotRun(f"{model}: the runtime crashed ({name}): a damaged file, or out of memory.")
        if done.returncode or not os.path.exists(paths[1]):
            lines = done.stderr.strip().splitlines() or [f"no message, exit code {done.returncode}"]
            raise CannotRun(f"{model}: measuring failed: {lines[-1]}")
        with open(paths[1], encoding="utf-8") as file:
            result = json.load(file)
    if "error" in result:
        raise CannotRun(result["error"])
    return result


def limits_of(manifest, xnnpack=False):
    """The default limits for an export: the manifest's, and what another number of threads may change.

    Args:
        manifest: as `read_manifest` gives it.
        xnnpack: XNNPACK runs every convolution. It comes closer to itself on another processor than other kernels do.
    """
    limits = dict(manifest["limits"])
    closest = limits.pop("xnnpack_psnr", None)
    if xnnpack and closest is not None:
        limits["golden_psnr"] = max(limits["golden_psnr"], closest)
    limits["threads_ulp"] = BUILT_IN_THREADS_ULP if manifest["mode"] == "int16x8" else THREADS_ULP
    return limits


def judge(report, manifest, flags):
    """Adds the gates to a report that holds what was measured."""
    fault = report["interface_fault"]
    _gate(report, "interface", not fault, fault or "shapes, types and quantisation as in the manifest")
    if fault:
        return
    ran = report["delegation"]
    delegated = ran["convolutions_delegated"] == ran["convolutions"]
    defaults = limits_of(manifest, xnnpack=delegated and ran["asked"] == "xnnpack")
    if report["same_kernels"]:
        defaults["golden_psnr"] = max(defaults["golden_psnr"], SAME_KERNELS_PSNR)
    if not delegated:
        defaults["threads_ulp"] = BUILT_IN_THREADS_ULP
    limits = {key: value if getattr(flags, key) is None else getattr(flags, key) for key, value in defaults.items()}
    _judge_numerics(report, limits)
    _judge_delegate(report, flags)
    speed, memory = report["speed"], report["memory"]
    for name, value, limit, unit in (
        ("p50", speed["p50_ms"], flags.max_p50_ms, "ms"),
        ("p95", speed["p95_ms"], flags.max_p95_ms, "ms"),
        ("throttling", speed["slowdown"], flags.max_slowdown, "times the first half"),
        ("memory", memory["peak_mb"], flags.max_peak_mb, "MB"),
    ):
        if limit is not None:
            _gate(report, name, value <= limit, f"{value:.4g} {unit}", f"<= {limit:g}")


def _judge_numerics(report, limits):
    found = report["numerics"]
    count = found["nan"] + found["infinite"]
    text = f"{found['nan']} NaN and {found['infinite']} infinite values in {', '.join(found['bad_cases'])}"
    _gate(report, "finite", not count, text if count else "no NaN, no infinity")
    if count:
        return

    golden, exact = found["against_golden"], found["against_float"]
    worst = golden["cases"][golden["worst"]]
    because = f": {golden['diagnosis']}" if "diagnosis" in golden else ""
    ok = worst["psnr"] >= limits["golden_psnr"]
    text = f"{worst['psnr']:.1f} dB at worst ({golden['worst']})"
    _gate(report, "golden", ok, text + ("" if ok else because), f">= {limits['golden_psnr']:g} dB")
    if limits["golden_ulp"] is not None:
        largest = golden["all"]["max_ulp"]
        text = f"largest difference {largest:.0f} units of the last place"
        _gate(report, "golden ulp", largest <= limits["golden_ulp"], text, f"<= {limits['golden_ulp']:g}")
    share = golden["all"]["differing_8bit"]
    text = f"{share:.2%} of the pixels differ in 8 bit, by {golden['all']['max_8bit']} at most"
    _gate(report, "golden pixels", share <= limits["golden_differing"], text, f"<= {limits['golden_differing']:.0%}")
    _judge_border(report, limits)

    name, value = ("real patches", exact["real"]) if "real" in exact else ("all cases", exact["all"])
    ok = value["psnr"] >= limits["float_psnr"]
    because = f": {exact['diagnosis']}" if "diagnosis" in exact else ""
    text = f"{value['psnr']:.1f} dB, {name}"
    _gate(report, "float model", ok, text + ("" if ok else because), f">= {limits['float_psnr']:g} dB")

    repeat = found["repeat_differing"]
    _gate(report, "repeat", not repeat, f"{repeat} values differ on a second run" if repeat else "twice the same")
    one, other = sorted(found["threads"])
    text = f"{one} and {other} threads: largest difference {found['threads_max_ulp']:.0f} units of the last place"
    _gate(report, "threads", found["threads_max_ulp"] <= limits["threads_ulp"], text, f"<= {limits['threads_ulp']:g}")


def _judge_border(report, limits):
    """Fails where the border is off and the centre is less so: against the golden output, or the float model's."""
    found = report["numerics"]
    for key, limit, whom in (
        ("against_golden", limits["golden_psnr"], "golden output"),
        ("against_float", limits["float_psnr"], "float model"),
    ):
        value = found[key].get("real", found[key]["all"])
        border, centre = value["border_psnr"], value["centre_psnr"]
        text = f"border {border:.1f} dB, centre {centre:.1f} dB against the {whom}"
        if border < limit and border < centre - BORDER_DB:
            _gate(report, "border", False, text + ": wrong padding?", f">= {limit:g} dB or centre - {BORDER_DB:g}")
            return
    _gate(report, "border", True, text)


def _judge_delegate(report, flags):
    """The delegate that was asked for must run every convolution: that is where all of the work is."""
    found = report["delegation"]
    text = f"asked {found['asked']}; ran {found['ran']}"
    if found["asked"] != "none":
        text += f"; {found['convolutions_delegated']} of {found['convolutions']} convolutions"
    fell_back = found["asked"] != "none" and found["convolutions_delegated"] < found["convolutions"]
    if fell_back:
        text = f"the delegate fell back: {text}"
    _gate(report, "delegate", not fell_back or flags.allow_fallback, text, "every convolution")


def _gate(report, name, passed, text, limit=""):
    report["gates"].append({"name": name, "passed": bool(passed), "measured": text, "limit": limit})


def render(device, reports):
    """The whole report as text."""
    lines = ["Device"]
    for key, value in device.items():
        lines.append(f"  {key:<14} {'not readable' if value is None else value}")
    for report in reports:
        lines += ["", report["file"], *_render_report(report)]
    lines += ["", *_render_summary(reports)]
    return "\n".join(lines)


def _render_report(report):
    if "error" in report:
        return [f"  could not be run: {report['error']}"]
    network = f"F={report['filters']}, D={report['recursions']}, {report['parameters']:,} parameters"
    lines = [f"  {report['mode']} {report['pipeline']} x{report['scale']}, {network}, {report['bytes']:,} bytes"]
    for gate in report["gates"]:
        limit = f"   [{gate['limit']}]" if gate["limit"] else ""
        lines.append(f"  {'ok  ' if gate['passed'] else 'FAIL'} {gate['name']:<14} {gate['measured']}{limit}")
    if "speed" in report:
        speed, memory = report["speed"], report["memory"]
        shape = " x ".join(str(side) for side in report["output"]["shape"])
        lines += [
            f"  load {speed['load_ms']:.1f} ms, first run {speed['first_ms']:.1f} ms; "
            f"warm least {speed['min_ms']:.2f}, p50 {speed['p50_ms']:.2f}, p95 {speed['p95_ms']:.2f}, "
            f"p99 {speed['p99_ms']:.2f} ms ({speed['runs']} runs, {report['numerics']['threads'][0]} threads)",
            f"  output {shape}: {speed['megapixels_per_second']:.3f} megapixels/s, {speed['gflops']:.1f} GFLOP/s; "
            f"second half / first half {speed['slowdown']:.2f}",
            f"  peak memory {memory['peak_mb']:.1f} MB, {memory['model_mb']:.1f} MB of it for the model",
        ]
        ratio = speed["p95_ms"] / speed["p50_ms"]
        if ratio > BUSY_RATIO:
            lines.append(
                f"  warning: p95 is {ratio:.1f} times p50: other work ran on this device; trust the least time alone"
            )
    return lines


def _render_summary(reports):
    columns = [
        "model",
        "verdict",
        "golden dB",
        "float dB",
        "least ms",
        "p50 ms",
        "p95 ms",
        "MP/s",
        "GFLOP/s",
        "peak MB",
    ]
    rows = [columns]
    for report in reports:
        verdict = "not run" if "error" in report else "pass" if report["passed"] else "FAIL"
        row = [report["file"], verdict]
        if "numerics" in report:
            golden, exact = report["numerics"]["against_golden"], report["numerics"]["against_float"]
            row += [f"{golden['cases'][golden['worst']]['psnr']:.1f}", f"{exact.get('real', exact['all'])['psnr']:.1f}"]
        else:
            row += ["-", "-"]
        if "speed" in report:
            speed = report["speed"]
            row += [f"{speed[key]:.2f}" for key in ("min_ms", "p50_ms", "p95_ms")]
            row.append(f"{speed['megapixels_per_second']:.3f}")
            row += [f"{speed['gflops']:.1f}", f"{report['memory']['peak_mb']:.1f}"]
        else:
            row += ["-"] * 6
        rows.append(row)
    widths = [max(len(row[index]) for row in rows) for index in range(len(columns))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), row[1].ljust(widths[1])]
        cells += [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    failed = sum(not report["passed"] for report in reports)
    lines.append(f"{len(reports) - failed} of {len(reports)} passed")
    return lines


if __name__ == "__main__":
    end(main)
