"""Writes a trained DRCN as an ONNX file: `drcn-export-onnx --model=mobile-x2 --output=mobile-x2.onnx`.

The network alone, as `serving_default` of a SavedModel: the bicubic enlargement goes in, the restored image comes out.
ONNX lays images out with the channels first: float32 (batch, channels, height, width) in [0, 1], any size.
"""

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

from drcn_keras import commands, errors
from drcn_keras.commands import FLAGS
from drcn_keras.errors import UserError
from drcn_keras.files import write_atomically
from drcn_keras.inputs import load_for

if TYPE_CHECKING:
    from drcn_keras.model import DRCN

TOLERANCE = 1e-4
# The oldest that says all this, and the file format of its time: what old runtimes read.
_OPERATORS, _FORMAT = 13, 7


class _Graph:
    """Nodes and constants of an ONNX graph in the making."""

    def __init__(self) -> None:
        self.nodes: list = []
        self.constants: dict = {}

    def constant(self, name: str, values: Any) -> str:
        from onnx import numpy_helper

        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name)
        return name

    def add(self, kind: str, *inputs: str, name: str, **attributes) -> str:
        """Appends a node; its output bears its name."""
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def convolution(self, features: str, layer, name: str) -> str:
        """A 3x3 Keras Conv2D. Its weights are stored once, however often it is called."""
        kernel, bias = layer.get_weights()
        weights = [
            self.constant(f"{layer.name}/kernel", kernel.transpose(3, 2, 0, 1)),
            self.constant(f"{layer.name}/bias", bias),
        ]
        return self.add("Conv", features, *weights, name=name, kernel_shape=[3, 3], pads=[1, 1, 1, 1])


def to_onnx(model: "DRCN") -> bytes:
    """The folded network of a DRCN as an ONNX file's bytes, thin where the ensemble is.

    Input "ilr" and output "sr": float32 (batch, channels, height, width), all but the channels free.
    """
    import onnx
    from onnx import TensorProto, helper

    from drcn_keras.inference import inference_model, skip_gain, used_recursions

    network, graph = inference_model(model), _Graph()
    weights = network.get_layer("ensemble").get_weights()[0]
    used = used_recursions(model)

    def hidden(features: str, layer: str, name: str) -> str:
        return graph.add("Relu", graph.convolution(features, network.get_layer(layer), f"{name}/conv"), name=name)

    features = hidden(hidden("ilr", "embedding_1", "embedding_1"), "embedding_2", "embedding_2")
    ensemble = ""
    for d in range(1, used[-1] + 1):
        features = hidden(features, "inference", f"inference_{d}")
        if d not in used:
            continue
        factor = graph.constant(f"ensemble/{d}", weights[used.index(d)])
        residual = hidden(features, "reconstruction_1", f"reconstruction_1_{d}")
        residual = graph.add("Mul", residual, factor, name=f"weighted_{d}")
        ensemble = graph.add("Add", ensemble, residual, name=f"ensemble_{d}") if ensemble else residual
    residual = graph.convolution(ensemble, network.get_layer("reconstruction_2"), "reconstruction_2")
    skip = graph.add("Mul", "ilr", graph.constant("skip_gain", np.float32(skip_gain(model))), name="skip")
    graph.add("Add", residual, skip, name="sr")

    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", model.channels, "height", "width"])
        for name in ("ilr", "sr")
    ]
    whole = helper.make_graph(graph.nodes, "drcn", ends[:1], ends[1:], list(graph.constants.values()))
    operators = [helper.make_opsetid("", _OPERATORS)]
    file = helper.make_model(whole, opset_imports=operators, ir_version=_FORMAT, producer_name="drcn_keras")
    onnx.checker.check_model(file, full_check=True)
    return file.SerializeToString()


def check_equality(content: bytes, model: "DRCN") -> float:
    """The largest difference of an ONNX file, in ONNX's own reference evaluator, from the Keras model on noise.

    Raises:
        UserError: it is more than TOLERANCE.
    """
    import onnx
    from onnx.reference import ReferenceEvaluator

    ilr = np.random.default_rng(0).random((2, 19, 24, model.channels), np.float32)
    (received,) = ReferenceEvaluator(onnx.load_from_string(content)).run(None, {"ilr": ilr.transpose(0, 3, 1, 2)})
    difference = float(np.max(np.abs(received.transpose(0, 2, 3, 1) - np.asarray(model(ilr)))))
    # Not "greater than": NaN is no agreement either.
    if not difference <= TOLERANCE:
        raise UserError(
            f"the ONNX graph differs from the Keras model by {difference:.2g}; expected at most {TOLERANCE:g}. "
            "Nothing was written."
        )
    return difference


def define_flags() -> None:
    flags.DEFINE_string("model", None, "a trained DRCN: a preset such as mobile-x2, or a .keras file")
    commands.define_output("the .onnx file to write")
    commands.require("model")


def main(argv: list[str]) -> None:
    commands.refuse_arguments(argv)
    with errors.extra("onnx"):
        importlib.import_module("onnx")
    output = commands.checked_output(".onnx")
    model = load_for(FLAGS.model)
    content = to_onnx(model)
    difference = check_equality(content, model)
    write_atomically(output, lambda file: file.write(content))
    print(f"{output}: {len(content)} bytes, {difference:.2g} from the Keras model on noise")


def run() -> None:
    """The command `drcn-export-onnx`."""
    commands.run(main, define_flags)


if __name__ == "__main__":
    run()
