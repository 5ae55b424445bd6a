"""The table of modes: what its cells are, and that a file is timed at the size that was asked for."""

import numpy as np
import pytest

for module in ("ai_edge_litert", "ai_edge_quantizer"):
    pytest.importorskip(module, reason=f"{module} is not installed (the tflite extra)")

import tflite_table  # noqa: E402


def row(mode, size, drop, least):
    latency = {str(side): {"least": least * side / 64, "p50": 2.0 * side / 64} for side in tflite_table.SIDES}
    test = {"dataset": "Set5", "psnr": 37.0 - drop, "drop": drop, "fidelity": 60.0}
    return {"mode": mode, "bytes": size, "tests": [test], "latency": latency}


def test_cells_are_of_float32_by_the_least_time_and_missed_targets_are_told():
    lines = tflite_table.markdown([row("float32", 1000, 0.0, 1.6), row("int8", 250, 0.04, 0.4)]).splitlines()
    assert lines[0].startswith("| mode | bytes | of float32 | Set5 dB | Set5 drop | Set5 Q dB | 64 px least ms |")
    assert lines[3] == ("| int8 | 250 | 0.25 | 36.960 | 0.040 | 60.0 | 0.40 | 2.00 | 0.25 | 1.60 | 8.00 | 0.25 |")
    assert lines[-1] == "Missed: int8 on Set5, drop 0.0400 dB, target 0.03."


def test_files_are_timed_at_another_size(monkeypatch):
    seen = []

    class Runner:
        def __init__(self, path):
            self.interpreter = self

        def get_input_details(self):
            return [{"shape": np.array([1, 128, 128, 3])}]

        def taken(self, image):
            return image

        def __call__(self, image):
            seen.append(image.shape)

    monkeypatch.setattr(tflite_table.runner, "Runner", Runner)
    (times,) = tflite_table._latencies(["one.tflite"], 40)
    assert set(seen) == {(40, 40, 3)}
    assert 0.0 <= times["least"] <= times["p50"]
