"""The rgb file of integers from end to end: enlargement and colour to the level, and what an NPU's compiler takes."""

import subprocess
import sys

import numpy as np
import pytest
from kit import PHOTOGRAPHS, ROOT, small_drcn, vela_operators
from PIL import Image

import drcn_keras
from drcn_keras import image

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed (the tflite extra)")
pytest.importorskip("ai_edge_quantizer", reason="ai-edge-quantizer is not installed (the tflite extra)")

from drcn_keras.export import flatbuffer, integer, integer_rgb, runner, tflite_files
from drcn_keras.export.exporter import Exporter, Options

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ai_edge_litert"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ai_edge_quantizer"),
]


def lr_patches(count, side, scale=2):
    pixels = np.asarray(Image.open(PHOTOGRAPHS / "astronaut.png"), np.float64) / 255.0
    cuts = [pixels[40 * number :, 30 * number :][: scale * side, : scale * side] for number in range(count)]
    return np.stack([np.round(255 * np.clip(image.shrink(cut, scale), 0, 1)) for cut in cuts]).astype(np.float32)


def ilr_patches(lr, scale):
    return np.stack([image.enlarge(image.luma(one.astype(np.uint8))[..., None] / 255.0, scale) for one in lr])


def exporter_of(model, source="model.keras", **sizes):
    scale = model.scales[0]
    made = Exporter(model, source, Options(representative_dir="given", **sizes))
    lr = lr_patches(6, 64 // scale, scale)
    made.__dict__["representative"] = ilr_patches(lr, scale).astype(np.float32)
    made.__dict__["_integer_rgb"] = integer_rgb.RgbNetwork(model, *made._on_grids, lr)
    return made


@pytest.fixture(scope="module")
def made():
    """(model, exporter, bytes of its file): recursion 2 of 3 is not in use, the skip's gain is 1.05."""
    model = small_drcn(3, 4, 1, 2, kept=0.5, spread=0.05, ensemble=np.array([0.6, 0.0, 0.45]))
    exporter = exporter_of(model, lr_height=24, lr_width=20)
    return model, exporter, exporter.content("rgb", "int8_full")


def test_every_operator_and_both_ends_are_int8(made):
    content = made[2]
    assert {kind for _, _, kind, _ in flatbuffer.tensor_types(content)} == {"int8"}
    assert set(flatbuffer.operators(content)) == {"ADD", "CONCATENATION", "CONV_2D", "RESHAPE", "STRIDED_SLICE"}
    interpreter = runner.Runner(content).interpreter
    (given,), (taken,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert list(given["shape"]) == [1, 24, 20, 3]
    assert list(taken["shape"]) == [1, 48, 40, 3]
    # A pixel is its level less 128.
    assert given["quantization"] == taken["quantization"] == (1.0, -128)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_without_features_it_is_the_bicubic(scale):
    # Strong colours beside a photograph: overshoots beyond black and white, and the place of each of s x s pixels.
    model = small_drcn(2, 4, 1, scale, kept=0.5, spread=0.05, ensemble=np.array([0.5, 0.5]))
    network = exporter_of(model)._integer_rgb
    skip = np.zeros((3, 3, network.features + 9, 3))
    for group, share in ((0, 1.0), (3, 1 / integer_rgb.OVER), (6, -1 / integer_rgb.OVER)):
        skip[1, 1, network.features + group :][:3] = share * np.eye(3)
    last = integer.rounded(skip, np.zeros(3), np.eye(skip[..., 0].size), network.members)
    lr = lr_patches(2, 24, scale)[1]
    lr[3:16, 2:17] = 255.0, 0.0, 10.0
    received = runner.Runner(network.file(last, 24, 24)).real(lr)
    error = received - np.clip(255.0 * image.enlarge(lr / 255.0, scale), 0.0, 255.0)
    # One rounding alone is 0.29 levels; that of the ILR to whole levels beside it 0.41.
    assert np.sqrt(np.mean(np.square(error))) < 0.36
    assert np.abs(error).max() < 1.5
    # The mean of four levels is often just between two, and rounds up.
    assert abs(error.mean()) < 0.2


def test_it_computes_the_float_network(made):
    model, _, content = made
    lr = lr_patches(3, 24)[1:, :, :20]
    run = runner.Runner(content)
    for one in lr:
        expected = drcn_keras.upscale(one.astype(np.uint8), model).astype(float)
        assert 10 * np.log10(255**2 / np.mean(np.square(run.real(one) - expected))) > 51.0


def test_colours_of_its_own(made):
    # A network of three channels adds to each colour its own residual.
    model = small_drcn(2, 4, 3, 2, kept=0.5, spread=0.05, ensemble=np.array([0.5, 0.45]))
    exporter = Exporter(model, "model.keras", Options(representative_dir="given"))
    lr = lr_patches(6, 32)
    ilr = np.stack([image.enlarge(one / 255.0, 2) for one in lr]).astype(np.float32)
    exporter.__dict__["representative"] = ilr
    network = integer_rgb.RgbNetwork(model, *exporter._on_grids, lr)
    received = runner.Runner(network.file(network.last, 32, 32)).real(lr[1])
    expected = drcn_keras.upscale(lr[1].astype(np.uint8), model).astype(float)
    assert 10 * np.log10(255**2 / np.mean(np.square(received - expected))) > 49.0


def test_the_checker_and_upscale_take_it(made, tmp_path):
    model, known, _ = made
    model.save(tmp_path / "model.keras")
    exporter = exporter_of(model, str(tmp_path / "model.keras"), lr_height=24, lr_width=20)
    exporter.__dict__["_integer_rgb"] = known._integer_rgb
    (manifest,) = tflite_files.export(exporter, str(tmp_path), ["rgb"], ["int8_full"])
    assert manifest["input"]["quantization"] == {"scale": 1.0, "zero_point": -128}
    path = tmp_path / manifest["model"]["file"]
    command = [sys.executable, ROOT / "tflite" / "check.py", "--runs=1", "--warmup=0", "--threads=2", path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    Image.open(PHOTOGRAPHS / "astronaut.png").crop((150, 0, 200, 40)).save(tmp_path / "in.png")
    command = [sys.executable, ROOT / "tflite" / "upscale.py", path, tmp_path / "in.png", tmp_path / "out.png"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = drcn_keras.upscale(np.asarray(Image.open(tmp_path / "in.png")), model).astype(int)
    received = np.asarray(Image.open(tmp_path / "out.png"))
    assert 10 * np.log10(255**2 / np.mean(np.square(received - expected))) > 49.0


def test_vela_finds_no_operator_for_the_cpu(made, tmp_path):
    (tmp_path / "rgb.tflite").write_bytes(made[2])
    assert vela_operators(tmp_path / "rgb.tflite")["CPU"] == 0
