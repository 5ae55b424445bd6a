"""Measures one model in a process of its own, so that its peak memory is its own and its crash is not ours.

Started by check.py: `python measure.py REQUEST.json RESULT.json`.
"""

import json
import sys
import time

import numerics
import numpy as np
import runtime
from manifest import CannotRun, from_tensor, is_real, output_peak, read_golden, read_manifest


def main():
    """Reads the request, writes the result; what cannot be run becomes the result's "error"."""
    with open(sys.argv[1], encoding="utf-8") as file:
        request = json.load(file)
    try:
        result = measure(**request)
    except CannotRun as error:
        result = {"error": str(error)}
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(result, file)


def measure(model, delegate, threads, runs, warmup, max_seconds):
    """Everything that is measured of one model.

    Args:
        model: path of the .tflite file, its manifest and golden vectors beside it.
        delegate: as `runtime.Model` takes it.
        threads: int.
        runs: how many timed runs at most; warmup: how many untimed ones before.
        max_seconds: the timed runs end after this long, whatever their number.

    Returns:
        dict of numbers, strings, lists and dicts.
    """
    manifest = read_manifest(model)
    golden = read_golden(model)
    runtime.runtime_version()  # Imports the runtime: its memory is not the model's.
    before, _ = runtime.memory_of_this_process()

    started = time.perf_counter()
    loaded = runtime.Model(model, threads, delegate, golden_shape(manifest, golden))
    load_ms = 1000.0 * (time.perf_counter() - started)
    result = {
        "delegation": loaded.delegation,
        "same_kernels": delegate == "xnnpack" and same_kernels(manifest),
        "input": _public(loaded.input),
        "output": _public(loaded.output),
        "interface_fault": _interface_fault(loaded, manifest, golden),
    }
    if result["interface_fault"]:
        return result

    result["speed"] = _speed(loaded, golden["inputs"][:1], manifest, load_ms, runs, warmup, max_seconds)
    _, peak = runtime.memory_of_this_process()
    result["memory"] = {"before_load_mb": before, "peak_mb": peak, "model_mb": peak - before}
    result["numerics"] = _numerics(loaded, model, golden, manifest, threads, delegate)
    return result


def same_kernels(manifest):
    """Whether this runtime and this kind of processor are those that the golden outputs were made with."""
    version = manifest.get("tools", {}).get("ai_edge_litert")
    return runtime.runtime_version() == f"ai-edge-litert {version}" and runtime.kernels() == manifest.get("made_on")


def golden_shape(manifest, golden):
    """The shape that a file of any size takes for its golden vectors; None for a file of fixed size."""
    return (1, *golden["inputs"].shape[1:]) if -1 in manifest["input"]["shape"] else None


def _public(tensor):
    return {key: value for key, value in tensor.items() if key != "index"}


def _interface_fault(loaded, manifest, golden):
    """Why the file's input or output is not what the manifest and the golden vectors say, or ""."""
    for end, arrays in (("input", ("inputs",)), ("output", ("outputs", "float_outputs"))):
        found, said = getattr(loaded, end), manifest[end]
        for key, word, value in (("signature", "shape", tuple(said["shape"])), ("dtype", "dtype", said["dtype"])):
            if found[key] != value:
                return f"the {end}'s {word} is {found[key]}; the manifest says {value}"
        if not _same_quantization(found["quantization"], said.get("quantization")):
            return (
                f"wrong scale or zero point: the {end}'s is {found['quantization']}; "
                f"the manifest says {said.get('quantization')}"
            )
        for name in arrays:
            if golden[name].shape[1:] != found["shape"][1:] or golden[name].dtype != found["dtype"]:
                return (
                    f"the golden {name} are {golden[name].dtype} {golden[name].shape[1:]}; "
                    f"the {end} is {found['dtype']} {found['shape'][1:]}"
                )
    return ""


def _same_quantization(found, said):
    if found is None or said is None:
        return found is None and said is None
    return np.isclose(found["scale"], said["scale"], rtol=1e-6) and found["zero_point"] == said["zero_point"]


def _speed(loaded, image, manifest, load_ms, runs, warmup, max_seconds):
    cool = runtime.temperature()
    started = time.perf_counter()
    loaded.run(image)
    first_ms = 1000.0 * (time.perf_counter() - started)
    for _ in range(warmup):
        loaded.invoke()
    times = []
    begun = time.perf_counter()
    while len(times) < runs and (not times or time.perf_counter() - begun < max_seconds):
        started = time.perf_counter()
        loaded.invoke()
        times.append(1000.0 * (time.perf_counter() - started))
    p50, p95, p99 = (float(value) for value in np.percentile(times, (50, 95, 99)))
    half = len(times) // 2
    halves = [float(np.median(part)) for part in (times[:half], times[half:])] if half else [p50, p50]
    pixels = loaded.output["shape"][1] * loaded.output["shape"][2]
    # Of a file of any size the manifest counts the work for one pixel.
    macs = manifest["macs"] * (pixels if -1 in manifest["input"]["shape"] else 1)
    return {
        "load_ms": load_ms,
        "first_ms": first_ms,
        "runs": len(times),
        "min_ms": min(times),
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "megapixels_per_second": pixels / p50 / 1000.0,
        "gflops": 2.0 * macs / p50 / 1e6,
        "first_half_ms": halves[0],
        "second_half_ms": halves[1],
        "slowdown": halves[1] / halves[0],
        "temperature_before_c": cool,
        "temperature_after_c": runtime.temperature(),
    }


def _numerics(loaded, model, golden, manifest, threads, delegate):
    peak = output_peak(manifest)
    names = [str(name) for name in golden["names"]]

    def run_all(chosen, model=loaded):
        return from_tensor(model.run_all(chosen), manifest["output"])

    golden = {**golden, **{key: from_tensor(golden[key], manifest["output"]) for key in ("outputs", "float_outputs")}}
    actual = run_all(golden["inputs"])
    # Twice, and with other threads: the first and the last case, so that a slow device is done in time.
    some = sorted({0, len(names) - 1})
    again = run_all(golden["inputs"][some])
    other_threads = 1 if threads > 1 else 2
    twin = runtime.Model(model, other_threads, delegate, golden_shape(manifest, golden))
    other = run_all(golden["inputs"][some], twin)
    bad = ~np.isfinite(actual)

    def against(key):
        def compare(chosen):
            return numerics.compare(actual[chosen], golden[key][chosen], peak, manifest["halo"])

        cases = {name: compare([index]) for index, name in enumerate(names)}
        worst = min(cases, key=lambda name: cases[name]["psnr"])
        report = {"all": compare(list(range(len(names)))), "worst": worst, "cases": cases}
        real = [index for index, name in enumerate(names) if is_real(name)]
        if real:
            report["real"] = compare(real)
        return report

    result = {
        "nan": int(np.isnan(actual).sum()),
        "infinite": int(np.isinf(actual).sum()),
        "bad_cases": [name for name, flags in zip(names, bad, strict=True) if flags.any()],
        "against_golden": against("outputs"),
        "against_float": against("float_outputs"),
        "repeat_differing": int(np.sum(~((again == actual[some]) | (np.isnan(again) & np.isnan(actual[some]))))),
        "threads": [threads, other_threads],
        "threads_max_ulp": numerics.compare(other, actual[some], peak, manifest["halo"])["max_ulp"],
    }
    if not bad.any():
        for key, report in (("outputs", "against_golden"), ("float_outputs", "against_float")):
            if result[report]["all"]["psnr"] < numerics.PSNR_CAP:
                result[report]["diagnosis"] = numerics.diagnose(
                    golden["inputs"], actual, golden[key], peak, run_all if key == "outputs" else None
                )
    return result


if __name__ == "__main__":
    main()
