"""Which precision is chosen on which machine, and what bfloat16 costs."""

import keras
import numpy as np
import pytest
from keras import ops
from PIL import Image

import drcn_keras
from drcn_keras import precision
from drcn_keras.image import enlarge, luma, shrink
from drcn_keras.inference import inference_model, recursions_model
from drcn_keras.metrics import psnr

# Keras 3.15 meets NumPy 2 inside convert_to_numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize(
    ("unit", "gain", "expected"),
    [("", 9.0, "float32"), ("amx_bf16", 1.1, "float32"), ("amx_bf16", 1.3, "bfloat16")],
)
def test_auto_wants_a_native_unit_and_a_measured_gain(monkeypatch, capsys, unit, gain, expected):
    monkeypatch.setattr(precision, "native", lambda: unit)
    monkeypatch.setattr(precision, "_measured_gain", lambda: gain)
    assert precision.chosen("auto")[0] == expected
    assert precision.chosen("bfloat16")[0] == "bfloat16"
    assert precision.chosen("float32")[0] == "float32"
    assert capsys.readouterr().err == ""
    precision.announced("auto")
    assert capsys.readouterr().err.startswith(f"precision {expected}: ")
    precision.announced("bfloat16")
    assert ("emulated" in capsys.readouterr().err) == (not unit)
    precision.announced("float32")
    assert capsys.readouterr().err == ""


def test_other_names_are_refused():
    with pytest.raises(ValueError, match="`precision` must be one of auto, float32, bfloat16; received 'half'"):
        precision.chosen("half")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor\t: 0\nflags\t\t: fpu sse avx512f avx512_bf16\n", "avx512_bf16"),
        ("flags : avx512_bf16 amx_bf16 amx_tile\n", "amx_bf16"),
        ("processor : 0\nFeatures : fp asimd bf16 i8mm\n", "bf16"),
        ("flags : fpu avx512f avx2\nmodel name : avx512_bf16\n", ""),
        (None, ""),
    ],
)
def test_processors(monkeypatch, tmp_path, text, expected):
    path = tmp_path / "cpuinfo"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(precision, "_CPU_FEATURES", str(path))
    monkeypatch.setattr(precision, "_gpu_capabilities", list)
    assert precision.native() == expected


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [([(8, 0)], "GPU of compute capability 8.0"), ([(7, 5)], ""), ([(9, 0), (7, 0)], ""), ([(12, 0)], "12.0")],
)
def test_with_a_gpu_the_processor_does_not_count(monkeypatch, tmp_path, capabilities, expected):
    (tmp_path / "cpuinfo").write_text("flags : amx_bf16\n")
    monkeypatch.setattr(precision, "_CPU_FEATURES", str(tmp_path / "cpuinfo"))
    monkeypatch.setattr(precision, "_gpu_capabilities", lambda: capabilities)
    assert precision.native().endswith(expected)
    assert bool(precision.native()) == bool(expected)


def test_the_gain_is_measured_on_this_machine():
    assert 0.01 < precision._measured_gain() < 100


def test_all_but_the_first_convolution_are_in_bfloat16(random_drcn):
    model = random_drcn(recursions=3)
    model.ensemble_weights.assign([0.5, 0.0, 0.75])
    network = inference_model(model, precision="bfloat16")
    computed = {layer.name: layer.compute_dtype for layer in network.layers if isinstance(layer, keras.layers.Conv2D)}
    inner = ("embedding_2", "inference", "reconstruction_1_1", "reconstruction_1_3", "reconstruction_2")
    assert computed == {"embedding_1": "float32", **dict.fromkeys(inner, "bfloat16")}
    assert {weight.dtype for weight in network.weights} == {"float32"}
    assert network(np.zeros((1, 4, 4, 1), np.float32)).dtype in ("float32", np.float32)


@pytest.mark.parametrize("weights", [[0.5, 0.0, 0.75], [-0.5, 0.9, 0.6], [0.7, -0.2, 0.0], [0.0, 0.0, 0.0]])
def test_the_ensembles_weights_may_be_in_the_kernels(random_drcn, weights, monkeypatch):
    model = random_drcn(recursions=3)
    model.ensemble_weights.assign(weights)
    ilr = np.random.default_rng(0).random((2, 7, 9, 1), np.float32)
    expected = ops.convert_to_numpy(model(ilr))
    np.testing.assert_allclose(inference_model(model, precision="bfloat16").predict_on_batch(ilr), expected, atol=0.03)
    # The same graph, computed in float32, is the ensemble itself.
    monkeypatch.setattr("drcn_keras.inference.layer_policy", lambda precision: "float32")
    exact = inference_model(model, precision="bfloat16").predict_on_batch(ilr)
    np.testing.assert_allclose(exact, expected, atol=1e-5)


def test_every_recursion_equals_the_model(random_drcn):
    model = random_drcn(recursions=3)
    model.ensemble_weights.assign([0.5, 0.0, 0.0])
    ilr = np.random.default_rng(0).random((2, 7, 9, 1), np.float32)
    expected = ops.convert_to_numpy(model.reconstructions(ilr))
    np.testing.assert_allclose(ops.convert_to_numpy(recursions_model(model)(ilr)), expected, atol=1e-5)
    rounded = ops.convert_to_numpy(recursions_model(model, "bfloat16")(ilr))
    assert 0 < np.abs(rounded - expected).max() < 0.05


def test_a_photograph_through_a_preset_loses_next_to_nothing(photographs):
    model = drcn_keras.load("mobile-x2")
    with Image.open(photographs / "coffee.png") as photo:
        y = luma(np.asarray(photo.convert("RGB").crop((150, 100, 278, 228)))) / 255
    ilr = enlarge(shrink(y, 2), 2)[None, ..., None].astype(np.float32)
    single, half = (inference_model(model, precision=name).predict_on_batch(ilr) for name in ("float32", "bfloat16"))
    # With the first convolution in bfloat16 too it is 63 dB, which is a level of 8 bit here and there.
    assert psnr(255 * single, 255 * half) > 75
    assert np.abs(psnr(255 * y, 255 * single[0, ..., 0]) - psnr(255 * y, 255 * half[0, ..., 0])) < 0.01


def test_upscale_in_bfloat16(random_drcn):
    model, pixels = random_drcn(), np.random.default_rng(0).random((9, 8, 3))
    single = drcn_keras.upscale(pixels, model)
    half = drcn_keras.upscale(pixels, model, precision="bfloat16")
    assert 0 < np.abs(single - half).max() < 0.05
    # One after the other, each keeps its own network.
    np.testing.assert_array_equal(drcn_keras.upscale(pixels, model, precision="float32"), single)
    with pytest.raises(ValueError, match="`precision` must be one of"):
        drcn_keras.upscale(pixels, model, precision="float16")
