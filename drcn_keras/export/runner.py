"""Runs a written .tflite file against its golden vectors with nothing but NumPy and ai-edge-litert.

`python drcn_keras/export/runner.py MODEL.tflite GOLDEN.npz` prints one line of JSON and ends with 0 when the file gives
what the golden file says it gave.
"""

import json
import sys
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

# The same file on the same machine; threads and tiles may change the order of a float sum.
TOLERANCE = 1e-4


class Runner:
    """One file, ready to run at its own size or at another.

    Args:
        model: path of a .tflite file, or its bytes.
        threads: CPU threads.
    """

    def __init__(self, model: str | bytes, threads: int = 1) -> None:
        source = {"model_path": model} if isinstance(model, str) else {"model_content": model}
        self.interpreter = Interpreter(num_threads=threads, **source)
        self.entry = self.interpreter.get_input_details()[0]["index"]
        self.exit = self.interpreter.get_output_details()[0]["index"]
        self.shape = None
        given, taken = self.interpreter.get_input_details()[0], self.interpreter.get_output_details()[0]
        self._entry_grid, self._exit_grid = given["quantization"], taken["quantization"]
        # Images go in and come out with as many channels, but for the digits.
        self.channels = int(taken["shape"][-1])
        self._digits = int(given["shape"][-1]) // self.channels

    def taken(self, images):
        """Images in real numbers as what the file takes: rounded where its input has an integer grid."""
        return stepped(images, *self._entry_grid, digits=self._digits)

    def meant(self, images):
        """What the file's input stands for, in real numbers."""
        return real_numbers(images, *self._entry_grid, digits=self._digits)

    def given(self, images):
        """Images in real numbers as the file would give them."""
        return stepped(images, *self._exit_grid)

    def real(self, image):
        """One image in real numbers through the file, to real numbers."""
        return real_numbers(self(self.taken(image)), *self._exit_grid)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """One image (height, width, channels) through the file."""
        if image.shape != self.shape:
            self.interpreter.resize_tensor_input(self.entry, (1, *image.shape))
            self.interpreter.allocate_tensors()
            self.shape = image.shape
        self.interpreter.set_tensor(self.entry, image[None])
        self.interpreter.invoke()
        return self.interpreter.get_tensor(self.exit)[0]


def stepped(images: np.ndarray, step: float, zero: int, digits: int = 1) -> np.ndarray:
    """Images in real numbers on an int8 grid, rounded and clipped; as they are where `step` is 0.

    With several digits a value is so many int8, whole steps first, then 256ths of one: the channels of an image stand
    once for each digit, one after the other.
    """
    if not step:
        return images
    base = 256 ** (digits - 1)
    steps = np.round(images / np.float64(step) * base) + (zero + 128) * base
    steps = np.clip(steps, 0, 256 * base - 1).astype(np.int64)
    parts = [(steps // 256**place) % 256 - 128 for place in reversed(range(digits))]
    return np.concatenate(parts, axis=-1).astype(np.int8)


def unstepped(values: np.ndarray, step: float, zero: int) -> np.ndarray:
    """int8 values as the real numbers that they stand for on their grid; as they are where `step` is 0."""
    return np.float32(step) * (values.astype(np.float32) - zero) if step else values


def real_numbers(values: np.ndarray, step: float, zero: int, digits: int = 1) -> np.ndarray:
    """The inverse of `stepped`."""
    if digits == 1:
        return unstepped(values, step, zero)
    whole, *rest = np.split(values.astype(np.float32), digits, axis=-1)
    places = [(part + 128.0) / 256.0**place for place, part in enumerate(rest, 1)]
    return np.float32(step) * (whole - zero + sum(places))


def check(model_path: str, golden_path: str) -> dict[str, Any]:
    """Compares a file with its golden vectors.

    Returns:
        dict: "cases", "difference" (largest, from the recorded outputs, in units of the output's dtype) and
        "tensorflow" (whether TensorFlow is in this process).
    """
    golden = np.load(golden_path, allow_pickle=False)
    run = Runner(model_path)
    outputs = np.stack([run(image) for image in golden["inputs"]])
    difference = np.max(np.abs(outputs.astype(np.float64) - golden["outputs"]))
    return {"cases": len(outputs), "difference": float(difference), "tensorflow": "tensorflow" in sys.modules}


if __name__ == "__main__":
    report = check(sys.argv[1], sys.argv[2])
    print(json.dumps(report))
    sys.exit(0 if report["difference"] <= TOLERANCE and not report["tensorflow"] else 1)
