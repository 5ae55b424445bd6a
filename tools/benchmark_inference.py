"""What an image costs: DRCN in every precision and runtime, and what people would pick instead, in one run.

    python tools/benchmark_inference.py --model=mobile-x2 --representative_dir=../shared/datasets/T91

Everything takes its turn in every round, so that what else the machine does falls on all alike; the best and the median
round are told. What is not installed (pip install 'drcn_keras[benchmark]') is left out and named. Numbers depend on the
machine; this is no test.
"""

import os
import time

import numpy as np
from absl import flags

from drcn_keras import commands
from drcn_keras.commands import FLAGS
from drcn_keras.errors import UserError

TAPS = 9
MATRIX = 2048
LITERT_MODES = ("float32", "dynamic", "int8")


def drcn_macs(filters: int, channels: int, used: list[int]) -> int:
    """Multiply-accumulates of the folded network for one pixel, all taps counted.

    `used`: the recursions that the ensemble draws on; those after the last are not computed.
    """
    hidden = 1 + used[-1] + len(used)  # The second embedding, the recursions, a reconstruction for each in use.
    return TAPS * (2 * channels * filters + hidden * filters * filters)


def layer_macs(network) -> float:
    """Multiply-accumulates of a Keras network's convolutions for one pixel of its input.

    A transposed convolution reaches kernel_size outputs from each input; all of these networks end in the only layer
    that changes the size.
    """
    import keras

    kinds = (keras.layers.Conv2D, keras.layers.Conv2DTranspose)
    return sum(int(np.prod(layer.kernel.shape)) for layer in network.layers if isinstance(layer, kinds))


def fsrcnn(scale: int):
    """FSRCNN (56, 12, 4) of Dong, Loy, Tang, ECCV 2016, on luma, with random weights: for timing alone."""
    import keras
    from keras import layers

    def conv(filters, size):
        return [layers.Conv2D(filters, size, padding="same"), layers.PReLU(shared_axes=[1, 2])]

    stages = [*conv(56, 5), *conv(12, 1)]
    for _ in range(4):
        stages += conv(12, 3)
    stages += [*conv(56, 1), layers.Conv2DTranspose(1, 9, strides=scale, padding="same")]
    return keras.Sequential([keras.Input((None, None, 1)), *stages])


def anchor_network(scale: int, filters: int = 28, hidden: int = 5):
    """An anchor-based plain net (Du, Liu, Tang, Wu, CVPRW 2021) of some 40,000 parameters on RGB, random weights.

    3x3 convolutions in LR space, whose answer is added to the LR image repeated scale^2 times.
    """
    import keras
    from keras import layers, ops

    lr = keras.Input((None, None, 3))
    features = lr
    for _ in range(1 + hidden):
        features = layers.Conv2D(filters, 3, padding="same", activation="relu")(features)
    residual = layers.Conv2D(3 * scale * scale, 3, padding="same")(features)
    anchor = ops.concatenate([lr] * (scale * scale), axis=-1)
    return keras.Model(lr, ops.depth_to_space(ops.clip(residual + anchor, 0.0, 1.0), scale))


def with_ensemble(model, used: list[int]):
    """A copy of a DRCN whose ensemble is the mean of some recursions."""
    from drcn_keras.refit import refitted
    from drcn_keras.thinning import equal_weights

    return refitted(model, equal_weights(model.recursions, used))


def ensembles(model, outputs: int) -> dict[str, list[int]]:
    """{"full": all recursions, "thin": the model's own choice, or `outputs` of them as evenly spread as can be}."""
    from drcn_keras.inference import used_recursions
    from drcn_keras.thinning import evenly_spread

    used, every = used_recursions(model), list(range(1, model.recursions + 1))
    if used == every:
        used = evenly_spread(model.recursions, min(outputs, model.recursions))
    return {"full": every, "thin": used}


def keras_contenders(models: dict, ilr: np.ndarray) -> dict:
    """{name: (function without arguments, precision)} of the network alone, as `upscale` runs it."""
    from drcn_keras.graphs import frozen
    from drcn_keras.inference import inference_model

    contenders = {}
    for kind, model in models.items():
        for precision in ("float32", "bfloat16"):
            network = frozen(inference_model(model, precision=precision))
            run = lambda network=network: network.predict_on_batch(ilr)  # noqa: E731
            contenders[f"drcn {kind}, Keras {precision}"] = run
    return contenders


def onnx_contenders(models: dict, ilr: np.ndarray) -> dict:
    """The same weights in ONNX Runtime, and in OpenVINO with its default precision and with float32."""
    import onnxruntime
    import openvino

    from drcn_keras.export.onnx_file import to_onnx

    image, contenders = np.ascontiguousarray(ilr.transpose(0, 3, 1, 2)), {}
    core = openvino.Core()
    for kind, model in models.items():
        content = to_onnx(model)
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        contenders[f"drcn {kind}, ONNX Runtime float32"] = lambda session=session: session.run(None, {"ilr": image})
        for label, options in (("default", {}), ("float32", {"INFERENCE_PRECISION_HINT": "f32"})):
            options = {"PERFORMANCE_HINT": "LATENCY", **options}
            ready = core.compile_model(core.read_model(content), "CPU", options)
            hint = ready.get_property("INFERENCE_PRECISION_HINT").to_string()
            label = f"{label} ({hint})" if label == "default" else label
            contenders[f"drcn {kind}, OpenVINO {label}"] = lambda ready=ready: ready([image])
    return contenders


def litert_contenders(models: dict, ilr: np.ndarray, representative_dir: str) -> dict:
    """The .tflite files of the same weights; int8 needs photographs."""
    from drcn_keras.export import exporter, runner

    contenders = {}
    for kind, model in models.items():
        sides = [side // model.scale for side in ilr.shape[1:3]]
        options = exporter.Options(lr_height=sides[0], lr_width=sides[1], representative_dir=representative_dir)
        maker = exporter.Exporter(model, "", options)
        for mode in LITERT_MODES if representative_dir else LITERT_MODES[:2]:
            run = runner.Runner(maker.content("luma", mode), threads=os.cpu_count() or 1)
            contenders[f"drcn {kind}, LiteRT {mode}"] = lambda run=run: run(ilr[0])
    return contenders


def other_contenders(scale: int, side: int) -> tuple[dict, dict]:
    """({name: function}, {name: multiply-accumulates of one run}) of networks that work on the LR image."""
    from drcn_keras.graphs import frozen

    contenders, macs = {}, {}
    for name, network in (("FSRCNN", fsrcnn(scale)), ("anchor-based plain net", anchor_network(scale))):
        lr = np.random.default_rng(0).random((1, side // scale, side // scale, network.input_shape[-1]), np.float32)
        ready = frozen(network)
        label = f"{name}, {network.count_params():,} parameters, Keras float32"
        contenders[label] = lambda ready=ready, lr=lr: ready.predict_on_batch(lr)
        macs[label] = layer_macs(network) * (side // scale) ** 2
    return contenders, macs


def upscale_contenders(models: dict, width: int, height: int) -> dict:
    """`drcn_keras.upscale` of a photograph in memory, bicubic, colour, tiles and all."""
    import drcn_keras

    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return {
        f"drcn {kind}, upscale {precision}": lambda model=model, precision=precision: drcn_keras.upscale(
            pixels, model, precision=precision
        )
        for kind, model in models.items()
        for precision in ("float32", "bfloat16")
    }


def interleaved(contenders: dict, rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round, after one run that does not count."""
    for run in contenders.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def matrix_contenders() -> dict:
    """{name of a precision: a large matrix product in it}, to hold the networks against."""
    from keras import ops

    def product(dtype):
        matrix = ops.ones((MATRIX, MATRIX), dtype=dtype)
        return lambda: np.asarray(ops.cast(ops.matmul(matrix, matrix)[0, 0], "float32"))

    return {f"matrix product {MATRIX}^3, Keras {dtype}": product(dtype) for dtype in ("float32", "bfloat16")}


def table(seconds: dict, macs: dict) -> str:
    """Lines of text: best and median, the ratio to the first row's best, GFLOP/s and the share of the matrix product's.

    Args:
        seconds: of `interleaved`.
        macs: {name: multiply-accumulates of one run}, where they are known; the share is told where the matrix products
            of `matrix_contenders` ran too.
    """
    first = min(next(iter(seconds.values())))
    products = [name for name in seconds if name.startswith("matrix product")]
    peaks = {name.rsplit(" ", 1)[1]: 2 * macs[name] / min(seconds[name]) for name in products}
    lines = [f"{'':52} {'best ms':>8} {'median':>8} {'ratio':>6} {'GFLOP/s':>8} {'of peak':>7}"]
    for name, times in seconds.items():
        best = min(times)
        line = f"{name:52} {1e3 * best:8.1f} {1e3 * np.median(times):8.1f} {best / first:6.2f}"
        if name in macs:
            rate = 2 * macs[name] / best
            share = next((rate / peak for kind, peak in peaks.items() if f"Keras {kind}" in name), None)
            line += f" {rate / 1e9:8.0f} {'' if share is None else f'{share:7.0%}'}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def benchmark(model, side: int, photograph: tuple[int, int], rounds: int, outputs: int, representative_dir: str) -> str:
    """Everything that the command prints, as text.

    Args:
        model: a `DRCN` of one scale.
        side: pixels of the result, of the square that the networks alone restore.
        photograph: width and height in LR pixels of what `upscale` enlarges; (0, 0) leaves it out.
        rounds: that everything takes its turn in.
        outputs: recursions of the thin ensemble where the model's is full.
        representative_dir: folder of photographs for int8, or "".
    """
    kinds = ensembles(model, outputs)
    models = {kind: with_ensemble(model, used) for kind, used in kinds.items()}
    ilr = np.random.default_rng(0).random((1, side, side, model.channels), np.float32)
    contenders, missing = keras_contenders(models, ilr), []
    for make in (
        lambda: onnx_contenders(models, ilr),
        lambda: litert_contenders(models, ilr, representative_dir),
    ):
        try:
            contenders |= make()
        except ModuleNotFoundError as error:
            missing.append(f"{error.name} is not installed: its rows are left out")
    macs = {
        name: drcn_macs(model.filters, model.channels, used) * side * side
        for kind, used in kinds.items()
        for name in contenders
        if name.startswith(f"drcn {kind},")
    }
    others, other_macs = other_contenders(model.scale, side)
    products = matrix_contenders()
    macs |= other_macs | dict.fromkeys(products, MATRIX**3)
    said = [f"the network alone, {side}x{side} pixels of the result; thin: recursions {kinds['thin']}"]
    said += [table(interleaved(contenders | others | products, rounds), macs), *missing]
    if all(photograph):
        whole = upscale_contenders(models, *photograph)
        said += ["", f"drcn_keras.upscale, {photograph[0]}x{photograph[1]} RGB, x{model.scale}, end to end"]
        said += [table(interleaved(whole, max(1, rounds // 3)), {})]
    return "\n".join(said)


def define_flags() -> None:
    flags.DEFINE_string("model", "mobile-x2", "a trained DRCN of one scale: a preset, or a .keras file")
    flags.DEFINE_integer("side", 512, "pixels of the result, of the square for the networks alone", lower_bound=64)
    flags.DEFINE_string("photograph", "1500x1000", "WIDTHxHEIGHT that upscale enlarges; 0x0 leaves it out")
    flags.DEFINE_integer("rounds", 10, "that everything takes its turn in", lower_bound=1)
    flags.DEFINE_integer("outputs", 4, "recursions of the thin ensemble, of a model whose own is full", lower_bound=1)
    flags.DEFINE_string("representative_dir", "", "photographs for LiteRT's int8; none: int8 is left out")


def main(argv: list[str]) -> None:
    commands.refuse_arguments(argv)
    from drcn_keras.inputs import load_at

    try:
        width, height = map(int, FLAGS.photograph.split("x"))
    except ValueError:
        raise UserError(f"--photograph must be WIDTHxHEIGHT; received {FLAGS.photograph!r}.") from None
    model = load_at(FLAGS.model)
    print(benchmark(model, FLAGS.side, (width, height), FLAGS.rounds, FLAGS.outputs, FLAGS.representative_dir))


if __name__ == "__main__":
    commands.run(main, define_flags)
