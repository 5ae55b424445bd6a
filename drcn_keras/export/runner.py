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
        self._entry_grid = self.interpreter.get_input_details()[0]["quantization"]
        self._exit_grid = self.interpreter.get_output_details()[0]["quantization"]

    def taken(self, images):
        """Images in real numbers as what the file takes: rounded where its input has an integer grid."""
        return _stepped(images, *self._entry_grid)

    def meant(self, images):
        """What the file's input stands for, in real numbers."""
        return _unstepped(images, *self._entry_grid)

    def given(self, images):
        """Images in real numbers as the file would give them."""
        return _stepped(images, *self._exit_grid)

    def real(self, image):
        """One image in real numbers through the file, to real numbers."""
        return _unstepped(self(self.taken(image)), *self._exit_grid)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """One image (height, width, channels) through the file."""
        if image.shape != self.shape:
            self.interpreter.resize_tensor_input(self.entry, (1, *image.shape))
            self.interpreter.allocate_tensors()
            self.shape = image.shape
        self.interpreter.set_tensor(self.entry, image[None])
        self.interpreter.invoke()
        return self.interpreter.get_tensor(self.exit)[0]


def _stepped(images, step, zero):
    return np.clip(np.round(images / step) + zero, -128, 127).astype(np.int8) if step else images


def _unstepped(images, step, zero):
    return np.float32(step) * (images.astype(np.float32) - zero) if step else images


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
