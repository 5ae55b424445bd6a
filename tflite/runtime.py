"""The LiteRT runtime: loading a model, running it, and which delegate really runs it; and facts about the device.

ai-edge-litert, or tflite-runtime where that is what the device has.
"""

import contextlib
import ctypes
import glob
import importlib.metadata
import os
import platform
import sys

import numpy as np
from manifest import CannotRun

# Beginnings of the names of processor features that change how LiteRT adds up.
_KERNEL_FEATURES = ("avx", "fma", "f16c", "amx", "asimd", "sve", "i8mm", "bf16", "fphp")
_CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED")


def _interpreter_module():
    """(module, package name) of the runtime on this device."""
    with contextlib.suppress(ImportError):
        from ai_edge_litert import interpreter

        return interpreter, "ai-edge-litert"
    with contextlib.suppress(ImportError):
        from tflite_runtime import interpreter

        return interpreter, "tflite-runtime"
    raise CannotRun(
        f"no LiteRT runtime for {sys.executable}; install one: pip install ai-edge-litert (or tflite-runtime)."
    )


def runtime_version():
    """The runtime's package and version, such as "ai-edge-litert 2.3.0"."""
    _, package = _interpreter_module()
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return f"{package} {importlib.metadata.version(package)}"
    return package


class Model:
    """A .tflite file ready to run.

    Args:
        path: of the file.
        threads: int, at least 1.
        delegate: "xnnpack"; "none" for the built-in kernels; or an external delegate's library, options after
            commas: "libgpu.so,precision=fp32".
        shape: another input shape than the file's own, or None.

    Attributes:
        input, output: dicts of index, name, shape (tuple), signature (the shape in the file, -1 for any size), dtype
            (NumPy's name), quantization (dict of scale and zero_point, or None).
        delegation: dict, see `_delegation`.

    Raises:
        CannotRun: the runtime refuses the file, the delegate or the shape.
    """

    def __init__(self, path, threads, delegate, shape=None):
        module, _ = _interpreter_module()
        resolvers = module.OpResolverType
        external = _load_delegate(module, delegate)
        try:
            self._interpreter = module.Interpreter(
                model_path=os.fspath(path),
                num_threads=threads,
                experimental_delegates=external,
                experimental_op_resolver_type=(
                    resolvers.BUILTIN_WITHOUT_DEFAULT_DELEGATES if delegate == "none" else resolvers.AUTO
                ),
            )
            before = self._count_delegate_nodes()
            inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
            if len(inputs) != 1 or len(outputs) != 1:
                raise CannotRun(
                    f"{path}: expected one input and one output; the model has {len(inputs)} and {len(outputs)}."
                )
            if shape is not None:
                self._interpreter.resize_tensor_input(inputs[0]["index"], shape)
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise CannotRun(f"{path}: the runtime cannot load this model: {_first_line(error)}") from error
        self.input = _details(self._interpreter.get_input_details()[0])
        self.output = _details(self._interpreter.get_output_details()[0])
        self.delegation = _delegation(self._interpreter, delegate, before)

    def run(self, image):
        """image: of the input's shape and dtype. Returns a copy of the output. Raises CannotRun where a run fails."""
        self._interpreter.set_tensor(self.input["index"], image)
        try:
            self._interpreter.invoke()
        except RuntimeError as error:
            raise CannotRun(f"the runtime cannot run this model: {_first_line(error)}") from error
        return self._interpreter.get_tensor(self.output["index"])

    def invoke(self):
        """Runs on the input that was last set, and leaves the output where it is: what timing measures."""
        self._interpreter.invoke()

    def run_all(self, images):
        """(N, h, w, channels) one image at a time, to (N, height, width, channels)."""
        return np.concatenate([self.run(image[None]) for image in images])

    def _count_delegate_nodes(self):
        return sum(op["op_name"] == "DELEGATE" for op in self._interpreter._get_ops_details())


def chosen_delegate(delegate, mode):
    """What "auto" means: XNNPACK, and the built-in kernels for int16x8, which XNNPACK does not compute."""
    if delegate != "auto":
        return delegate
    return "none" if mode == "int16x8" else "xnnpack"


def _load_delegate(module, delegate):
    if delegate in ("xnnpack", "none"):
        return None
    library, *options = delegate.split(",")
    for option in options:
        if "=" not in option:
            raise CannotRun(f"{delegate}: expected a delegate's options as key=value; received {option!r}.")
    try:
        # The runtime's own attempt would leave a traceback where this is no delegate's library.
        if not library or not hasattr(ctypes.CDLL(library), "tflite_plugin_create_delegate"):
            raise CannotRun(f"{library!r} is no delegate; expected xnnpack, none or an external delegate's library.")
        return [module.load_delegate(library, dict(option.split("=", 1) for option in options))]
    except (ValueError, OSError) as error:
        raise CannotRun(f"{library}: cannot load this delegate: {_first_line(error)}") from error


def _details(tensor):
    scales = tensor["quantization_parameters"]["scales"]
    zero_points = tensor["quantization_parameters"]["zero_points"]
    quantization = {"scale": float(scales[0]), "zero_point": int(zero_points[0])} if len(scales) else None
    return {
        "index": tensor["index"],
        "name": tensor["name"],
        "shape": tuple(int(side) for side in tensor["shape"]),
        "signature": tuple(int(side) for side in tensor["shape_signature"]),
        "dtype": np.dtype(tensor["dtype"]).name,
        "quantization": quantization,
    }


def _delegation(interpreter, asked, external_partitions):
    """Which nodes a delegate took over.

    The runtime keeps the nodes that a delegate replaced and adds one DELEGATE node per partition: what it
    replaced lies between its inputs and its outputs. Delegates given by hand act before the tensors are
    allocated, XNNPACK when they are.

    Returns:
        dict: asked; ran, such as "xnnpack", "built-in kernels"; nodes and convolutions, counts in the graph;
        nodes_delegated and convolutions_delegated, those that run in the delegate that was asked for; partitions.
    """
    every = interpreter._get_ops_details()
    nodes = [op for op in every if op["op_name"] != "DELEGATE"]
    partitions = [op for op in every if op["op_name"] == "DELEGATE"]
    names = [asked] * external_partitions + ["xnnpack"] * (len(partitions) - external_partitions)
    taken = {}
    for partition, name in zip(partitions, names, strict=True):
        taken.setdefault(name, set()).update(_replaced(nodes, partition))
    mine = taken.get(asked, set())
    rest = len(nodes) - len(set().union(*taken.values()))
    ran = [f"{os.path.basename(name)} ({len(indices)} of {len(nodes)} nodes)" for name, indices in taken.items()]
    if rest:
        ran.append(f"built-in kernels ({rest} of {len(nodes)} nodes)")
    return {
        "asked": asked,
        "ran": ", ".join(ran),
        "nodes": len(nodes),
        "nodes_delegated": len(mine),
        "convolutions": sum(op["op_name"] in _CONVOLUTIONS for op in nodes),
        "convolutions_delegated": sum(op["op_name"] in _CONVOLUTIONS and op["index"] in mine for op in nodes),
        "partitions": len(partitions),
        "not_delegated": sorted({op["op_name"] for op in nodes if op["index"] not in mine}),
    }


def _replaced(nodes, partition):
    """The indices of the nodes from which the partition's outputs are computed, back to its inputs."""
    producer = {tensor: op for op in nodes for tensor in op["outputs"]}
    given = set(partition["inputs"])
    found, todo = set(), list(partition["outputs"])
    while todo:
        op = producer.get(todo.pop())
        if op is not None and op["index"] not in found:
            found.add(op["index"])
            todo += [tensor for tensor in op["inputs"] if tensor not in given]
    return found


def device_facts():
    """What can be read of the device: dict of strings and numbers; what cannot be read is None."""
    uname = platform.uname()
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "cores_allowed": usable_cores(),
        "abi": f"{uname.machine}, {'64' if sys.maxsize > 2**32 else '32'} bit, {' '.join(platform.libc_ver())}".strip(),
        "system": f"{uname.system} {uname.release}",
        "memory_mb": _memory_mb(),
        "governor": _governor(),
        "temperature_c": temperature(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "runtime": runtime_version(),
    }


def kernels():
    """What decides which of LiteRT's kernels run, spelled as the manifest's "made_on": processor and features."""
    fields = _fields("/proc/cpuinfo")
    words = (fields.get("flags") or fields.get("Features") or "").split()
    return " ".join([platform.machine(), *(word for word in sorted(set(words)) if word.startswith(_KERNEL_FEATURES))])


def usable_cores():
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def temperature():
    """The hottest thermal zone in degrees Celsius, or None."""
    readings = [_number(path) for path in glob.glob("/sys/class/thermal/thermal_zone*/temp")]
    readings = [reading / 1000.0 for reading in readings if reading]
    return max(readings) if readings else None


def memory_of_this_process():
    """(resident now, peak resident) in MB.

    From /proc where it exists: getrusage's peak begins with that of the process that started this one.
    """
    status = _fields("/proc/self/status")
    if "VmHWM" in status:
        return tuple(int(status[key].split()[0]) / 1024.0 for key in ("VmRSS", "VmHWM"))
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak /= 1024.0 * 1024.0 if sys.platform == "darwin" else 1024.0
    return peak, peak


def _processor():
    fields = _fields("/proc/cpuinfo")
    name = fields.get("Hardware") or fields.get("model name") or fields.get("Model") or platform.processor() or None
    emulated = name and "vendor_id" in fields and platform.machine() not in ("x86_64", "i686", "AMD64")
    return f"{name} (emulating {platform.machine()})" if emulated else name


def _memory_mb():
    total = _fields("/proc/meminfo").get("MemTotal")
    return round(int(total.split()[0]) / 1024) if total else None


def _governor():
    found = set()
    for path in glob.glob("/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"):
        with contextlib.suppress(OSError), open(path) as file:
            found.add(file.read().strip())
    return ", ".join(sorted(found)) or None


def _number(path):
    try:
        with open(path) as file:
            return float(file.read())
    except (OSError, ValueError):
        return None


def _fields(path):
    """The first value of each "key: value" line of a file under /proc."""
    fields = {}
    with contextlib.suppress(OSError), open(path, errors="replace") as file:
        for line in file:
            key, colon, value = line.partition(":")
            if colon:
                fields.setdefault(key.strip(), value.strip())
    return fields


def _first_line(error):
    return (str(error).strip().splitlines() or ["no reason given"])[0]
