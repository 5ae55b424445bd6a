"""A .tflite file as an object: short names, a frugal order of operators, and what the file holds."""

import collections
import copy
import re
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from drcn_keras.export import names

_LAYER = re.compile(rf"drcn_inference(?:_\d+)?/({'|'.join(names.LAYERS)})(?:_\d+)?(?:/|$)")
_OPERATORS = {
    code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int) and name.isupper()
}
_TYPES = {code: name.lower() for name, code in vars(schema.TensorType).items() if isinstance(code, int)}

# The first version of the operator that takes float16.
_FLOAT16_DEQUANTIZE = 3


def read(content: bytes) -> Any:
    """The flatbuffer as a tree of objects. `content`: bytes of a .tflite file."""
    return flatbuffer_utils.read_model_from_bytearray(bytearray(content))


def write(model: Any) -> bytes:
    """The bytes of a tree that `read` returned."""
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def operator_name(model: Any, operator: Any) -> str:
    """ "CONV_2D", "ADD", ..., or the name of a custom operator."""
    code = model.operatorCodes[operator.opcodeIndex]
    if code.customCode:
        return code.customCode.decode()
    return _OPERATORS[max(code.builtinCode, code.deprecatedBuiltinCode)]


def operators(content: bytes) -> dict[str, int]:
    """dict of operator name to how often it stands in the file, sorted by name."""
    model = read(content)
    counts = collections.Counter(operator_name(model, op) for graph in model.subgraphs for op in graph.operators)
    return dict(sorted(counts.items()))


def tensor_types(content: bytes) -> list[tuple[str, str, str, int]]:
    """For each operator in order: (name, output tensor's name, its type, its rank)."""
    model = read(content)
    graph = model.subgraphs[0]
    rows = []
    for operator in graph.operators:
        tensor = graph.tensors[operator.outputs[0]]
        rows.append((operator_name(model, operator), tensor.name.decode(), _TYPES[tensor.type], len(tensor.shape)))
    return rows


def macs(content: bytes) -> int:
    """Multiply-accumulates of the convolutions for the shapes in the file."""
    model = read(content)
    graph = model.subgraphs[0]
    total = 0
    for operator in graph.operators:
        if operator_name(model, operator) == "CONV_2D":
            kernel = graph.tensors[operator.inputs[1]].shape
            output = graph.tensors[operator.outputs[0]].shape
            total += int(np.prod(output)) * int(np.prod(kernel[1:]))
    return total


def kernels(content: bytes) -> dict[str, np.ndarray]:
    """The convolution kernels of the file: dict of tensor name to array (out, height, width, in), as stored."""
    model = read(content)
    graph = model.subgraphs[0]
    found = {}
    for operator in graph.operators:
        if operator_name(model, operator) != "CONV_2D":
            continue
        tensor = graph.tensors[_stored(model, graph, operator.inputs[1])]
        dtype = {"float32": np.float32, "float16": np.float16, "int8": np.int8}[_TYPES[tensor.type]]
        data = np.asarray(model.buffers[tensor.buffer].data, np.uint8).tobytes()
        found[tensor.name.decode()] = np.frombuffer(data, dtype).reshape(tensor.shape)
    return found


def _stored(model, graph, index):
    """The tensor with the data: behind a DEQUANTIZE when float16 is stored."""
    for operator in graph.operators:
        if index in operator.outputs and operator_name(model, operator) == "DEQUANTIZE":
            return operator.inputs[0]
    return index


def tidy(content: bytes) -> bytes:
    """The same graph with short tensor names and with operators in an order that keeps few feature maps alive.

    The converter's names are up to 200 characters long, a sixth of an 8-bit file; its order computes every
    recursion before the first reconstruction, so that all D feature maps wait in memory.

    Args:
        content: bytes of a float .tflite file of one subgraph, just converted.

    Returns:
        bytes. Tensors are named as names.py says, after the operator where it says nothing. The signature's names
        stand for the inputs and outputs.
    """
    model = read(content)
    graph = model.subgraphs[0]
    graph.operators = _frugal_order(model, graph)
    _rename(model, graph)
    return write(model)


def _rename(model, graph):
    counts = collections.Counter()
    chosen = _boundary_names(model)
    for operator in graph.operators:
        kind, layer = operator_name(model, operator), _layer(model, graph, operator)
        role = layer or kind.lower()
        if kind == "ADD" and not layer and "/Relu" in graph.tensors[operator.outputs[0]].name.decode():
            role = names.STATE
        elif kind == "MUL" and layer == names.ENSEMBLE:
            role = names.WEIGHTED
        counts[role] += 1
        own = names.tensor(role, counts[role])
        chosen.setdefault(operator.outputs[0], own)
        owner = layer or own
        parts = (names.kernel(owner), names.bias(owner)) if kind == "CONV_2D" else [f"{own}/{part}" for part in "abc"]
        constants = [i for i in operator.inputs if i >= 0 and model.buffers[graph.tensors[i].buffer].data is not None]
        for index, name in zip(constants, parts, strict=False):
            chosen.setdefault(index, name)
    for index, tensor in enumerate(graph.tensors):
        tensor.name = chosen.get(index, f"unused_{index}").encode()


def _boundary_names(model):
    signature = model.signatureDefs[0]
    return {entry.tensorIndex: entry.name.decode() for entry in [*signature.inputs, *signature.outputs]}


def _layer(model, graph, operator):
    """The Keras layer that an operator came from, or None."""
    convolution = operator_name(model, operator) == "CONV_2D"
    # The graph's output hides the last convolution's name; its kernel still bears it.
    for index in [operator.outputs[0], *operator.inputs[1 : 2 if convolution else 1]]:
        found = _LAYER.search(graph.tensors[index].name.decode())
        if found:
            return found[1]
    return None


def _frugal_order(model, graph):
    """A topological order that always takes the ready operator after which the fewest bytes are alive."""
    readers = collections.Counter(i for op in graph.operators for i in op.inputs if i >= 0)
    made = {i for op in graph.operators for i in op.outputs}
    readers.update(graph.outputs)
    waiting, ordered, done = list(graph.operators), [], set()
    size = {i: int(np.prod(np.abs(graph.tensors[i].shape))) for i in made}
    while waiting:

        def growth(operator):
            inputs = [i for i in operator.inputs if i in made]
            freed = sum(size[i] for i in set(inputs) if readers[i] == inputs.count(i))
            return sum(size[i] for i in operator.outputs) - freed

        ready = [op for op in waiting if all(i in done or i not in made for i in op.inputs)]
        # A recursion is reconstructed before the next begins.
        chosen = min(ready, key=lambda op: (growth(op), _layer(model, graph, op) == names.INFERENCE))
        waiting.remove(chosen)
        ordered.append(chosen)
        done.update(chosen.outputs)
        readers.subtract(i for i in chosen.inputs if i >= 0)
    return ordered


def halve(content: bytes) -> bytes:
    """The same graph with the weights of the network's convolutions in float16, each behind one DEQUANTIZE.

    What the rgb pipeline adds around the network stays in float32: it is few weights, and they work on 0 to 255.
    XNNPACK computes such a convolution in float32, from weights that it expands once. ai-edge-litert 1.4 gives it the
    convolution only when the bias is float16 too; ai-edge-quantizer 0.10's float_casting leaves it in float32.

    Args:
        content: bytes of a float .tflite file of one subgraph, as `tidy` names its tensors.

    Returns:
        bytes. The weights keep their names; what they are expanded to is "<name>/float32".
    """
    model = read(content)
    graph = model.subgraphs[0]
    weights = {part(layer).encode() for layer in names.CONVOLUTIONS for part in (names.kernel, names.bias)}
    buffers = {tensor.buffer for tensor in graph.tensors if tensor.name in weights}
    for index in buffers:
        values = np.asarray(model.buffers[index].data, np.uint8).view(np.float32)
        model.buffers[index].data = values.astype(np.float16).view(np.uint8)
    # Not these names alone: equal constants may share a buffer.
    stored = [index for index, tensor in enumerate(graph.tensors) if tensor.buffer in buffers]
    expanded = {index: len(graph.tensors) + count for count, index in enumerate(stored)}
    for operator in graph.operators:
        operator.inputs = [expanded.get(index, index) for index in operator.inputs]
    for index in stored:
        tensor = graph.tensors[index]
        graph.tensors.append(copy.copy(tensor))
        graph.tensors[-1].name = tensor.name + b"/float32"
        graph.tensors[-1].buffer = 0
        tensor.type = schema.TensorType.FLOAT16
    dequantize = schema.BuiltinOperator.DEQUANTIZE
    model.operatorCodes.append(
        schema.OperatorCodeT(builtinCode=dequantize, deprecatedBuiltinCode=dequantize, version=_FLOAT16_DEQUANTIZE)
    )
    # Behind the rgb pipeline's CAST, which XNNPACK does not take: the delegate then has one part, not two.
    first = next(n for n, op in enumerate(graph.operators) if set(op.inputs) & set(expanded.values()))
    graph.operators[first:first] = [
        schema.OperatorT(
            opcodeIndex=len(model.operatorCodes) - 1,
            inputs=[index],
            outputs=[expanded[index]],
            builtinOptionsType=schema.BuiltinOptions.DequantizeOptions,
            builtinOptions=schema.DequantizeOptionsT(),
        )
        for index in stored
    ]
    return write(model)


def integer_operators(content: bytes) -> dict[str, int]:
    """dict of operator name to how many of them compute in integers: their first input and output are."""
    model = read(content)
    graph = model.subgraphs[0]
    counts = collections.Counter()
    for operator in graph.operators:
        name = operator_name(model, operator)
        ends = [graph.tensors[i].type for i in (operator.inputs[0], operator.outputs[0])]
        if name not in ("QUANTIZE", "DEQUANTIZE") and all(_TYPES[end] in ("int8", "int16") for end in ends):
            counts[name] += 1
    return dict(sorted(counts.items()))
