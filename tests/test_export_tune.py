"""8 bit without training: what must stay the same function, and what is fitted against numbers worked by hand."""

import numpy as np
import pytest
from kit import small_drcn

from drcn_keras import inference

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed (the tflite extra)")
pytest.importorskip("ai_edge_quantizer", reason="ai-edge-quantizer is not installed (the tflite extra)")

from drcn_keras.export import names, quantize, tune
from drcn_keras.export.pipeline import Pipeline, to_tflite

pytestmark = [
    # LiteRT's quantizer meets NumPy 2.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ai_edge_litert"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ai_edge_quantizer"),
]


def test_equalize_is_the_same_function():
    model = small_drcn(filters=8, kept=0.5, spread=0.03, ensemble=[0.4, 0.7])
    network = inference.inference_model(model, residual=True, split_identity=True)
    # Channels of very different strength.
    kernel, bias = network.get_layer("embedding_2").get_weights()
    strength = np.geomspace(0.01, 1.0, 8).astype(np.float32)
    network.get_layer("embedding_2").set_weights([kernel * strength, bias * strength])
    images = np.random.default_rng(0).random((3, 16, 16, 1), np.float32)
    content = to_tflite(Pipeline(model, "luma", network), 8, 8)
    twin = tune.equalize(network, quantize.observe(content, images))
    np.testing.assert_allclose(twin(images), network(images), atol=2e-6)
    after = quantize.observe(to_tflite(Pipeline(model, "luma", twin), 8, 8), images)
    # The strongest channel is allowed 1 / 0.3 times the weakest at most, unless it was more than that stronger still.
    before = _spread(quantize.observe(content, images))
    assert before > 4.0
    assert _spread(after) == pytest.approx(max(1.0, 0.3 * before), rel=0.01)


def _spread(observed):
    inside = ("embedding_2", "inference", "state")
    channels = np.max([seen["channels"] for name, seen in observed.items() if names.role_of(name) in inside], axis=0)
    return channels.max() / channels.min()


def test_rounding_makes_up_for_its_own_error():
    random = np.random.default_rng(0)
    # Inputs that go together, as neighbouring pixels do: errors of one weight can be undone by another.
    rows = random.normal(size=(2000, 3)) @ random.normal(size=(3, 18)) + 0.05 * random.normal(size=(2000, 18))
    kernel = random.normal(size=(3, 3, 2, 4)).astype(np.float32)
    step = np.abs(kernel).max(axis=(0, 1, 2)) / 127
    plain = np.round(kernel / step) * step
    fitted = tune.round_kernel(kernel, rows.T @ rows)
    on_grid = fitted / step
    np.testing.assert_allclose(on_grid, np.round(on_grid), atol=1e-3)
    error = [np.mean(np.square(rows @ (k - kernel).reshape(18, 4))) for k in (plain, fitted)]
    assert error[1] < error[0] / 2


def test_every_patch_counts_for_the_rounding():
    model = small_drcn(filters=8, kept=0.5, spread=0.03, ensemble=[0.4, 0.7])
    network = inference.inference_model(model, residual=True, split_identity=True)
    content = to_tflite(Pipeline(model, "luma", network), 8, 8)
    images = np.random.default_rng(0).random((4, 16, 16, 1), np.float32) ** np.array([1, 9, 1, 3])[:, None, None, None]
    images = images.astype(np.float32)
    one, other = (tune.round_kernels(network, content, some) for some in (images, np.roll(images, 1, axis=0)))
    for name in names.HEAVY:
        kernels = [each.get_layer(name).get_weights()[0] for each in (one, other)]
        assert not np.array_equal(kernels[0], network.get_layer(name).get_weights()[0])
        # A sum in another order may turn a tie, and with it a few weights that follow.
        assert np.mean(kernels[0] == kernels[1]) > 0.98


def test_best_range_cuts_an_outlier():
    sample = np.concatenate([np.random.default_rng(0).uniform(0, 1, 100_000), [1.6]])
    low, high = quantize.best_range({"low": 0.0, "high": 1.6, "sample": sample})
    assert low == 0.0
    # Rounding costs h^2 / (12 * 255^2), the cut (1.6 - h)^2 / 100001: least at h = 1.418.
    assert high == pytest.approx(1.418, abs=0.06)
    # One of a million alone would have it cut at 0.88; what comes in other photographs must find room.
    many = np.concatenate([np.random.default_rng(0).uniform(0, 1, 1_000_000), [2.0]])
    assert quantize.best_range({"low": 0.0, "high": 2.0, "sample": many}) == pytest.approx((0.0, 0.85 * 2.0))
    assert quantize.best_range({"low": 0.0, "high": 0.0, "sample": np.zeros(5)}) == (0.0, 1.0)
