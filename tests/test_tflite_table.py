"""The table of modes: what its cells are, and that a file is timed at the size that was asked for."""

import pytest

for module in ("ai_edge_litert", "ai_edge_quantizer"):
    pytest.importorskip(module, reason=f"{module} is not installed (the tflite extra)")

import tflite_table  # noqa: E402


def row(mode, size, drop, least):
    latency = {str(side): {"least": least * side / 64, "p50": 2.0 * side / 64} for side in tflite_table.SIDES}
    test = {"dataset": "Set5", "psnr": 37.0 - drop, "drop": drop, "fidelity": 60.0}
    return {"mode": mode, "bytes": size, "tests": [test], "latency": latency}


def test_cells_are_of_float32_by_the_least_time_and_missed_targets_are_told():
    slow = {**row("int16x8", 300, 0.001, 60.0), "tests": []}
    del slow["latency"]["256"]
    rows = [row("float32", 1000, 0.0, 1.6), row("int8", 250, 0.04, 0.4), slow]
    lines = tflite_table.markdown({row["mode"]: row for row in rows}).splitlines()
    assert lines[0] == (
        "| mode | bytes | Set5 dB | Set5 drop | 64 px ms | 64 px of float32 | 256 px ms | 256 px of float32 |"
    )
    assert lines[3] == "| int8 | 250 | 36.960 | 0.040 | 0.40 | 0.25 | 1.60 | 0.25 |"
    assert lines[4] == "| int16x8 | 300 |  |  | 60.00 | 37.50 |  |  |"
    assert lines[-1] == "Missed: int8 on Set5, drop 0.0400 dB, target 0.03."


def test_a_mode_with_reference_kernels_alone_is_timed_at_the_smaller_size(monkeypatch, tmp_path):
    seen = []

    def latencies(paths, side):
        seen.append((len(paths), side))
        return [{"least": 1.0, "p50": 1.0}] * len(paths)

    monkeypatch.setattr(tflite_table, "_latencies", latencies)
    rows = {mode: {"mode": mode, "file": f"{mode}.tflite"} for mode in ("float32", "int16x8")}
    tflite_table.add_times(rows, str(tmp_path), 3)
    assert seen == [(2, 192), (1, 768)]
    assert list(rows["float32"]["latency"]) == ["64", "256"]
    assert list(rows["int16x8"]["latency"]) == ["64"]


def test_files_are_timed_at_another_size(monkeypatch):
    seen = []

    class Runner:
        def __init__(self, path):
            self.channels = 3

        def taken(self, image):
            return image

        def __call__(self, image):
            seen.append(image.shape)

    monkeypatch.setattr(tflite_table.runner, "Runner", Runner)
    (times,) = tflite_table._latencies(["one.tflite"], 40)
    assert set(seen) == {(40, 40, 3)}
    assert 0.0 <= times["least"] <= times["p50"]
