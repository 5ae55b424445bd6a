"""The benchmark's counts by hand, and that every row comes out; no times."""

import keras
import numpy as np
import pytest

from drcn_keras.model import DRCN
from tools import benchmark_inference

# Keras 3.15 meets NumPy 2 inside convert_to_numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize(
    ("filters", "channels", "used", "expected"),
    [
        # One pixel, one filter: the embedding, the recursion, its reconstruction in two convolutions; nine taps each.
        (1, 1, [1], 9 * (2 + 3)),
        # Three channels, two filters; three recursions, two of them reconstructed, the fourth not computed.
        (2, 3, [1, 3], 9 * (2 * 6 + 4 * (1 + 3 + 2))),
    ],
)
def test_multiplications_of_a_pixel_by_hand(filters, channels, used, expected):
    assert benchmark_inference.drcn_macs(filters, channels, used) == expected


def test_the_thin_mobile_preset_saves_a_quarter():
    full, thin = (benchmark_inference.drcn_macs(32, 1, used) for used in (list(range(1, 10)), [1, 3, 6, 9]))
    assert thin / full == pytest.approx(14 / 19, abs=1e-3)


def test_other_networks_are_the_ones_they_are_called():
    small, plain = benchmark_inference.fsrcnn(2), benchmark_inference.anchor_network(2)
    # FSRCNN's paper: 25 * 56 + 56 * 12 + 4 * 9 * 12 * 12 + 12 * 56 + 81 * 56 products for an LR pixel.
    assert benchmark_inference.layer_macs(small) == 12464
    assert plain.count_params() == pytest.approx(40_000, rel=0.03)
    for network, channels in ((small, 1), (plain, 3)):
        lr = np.random.default_rng(0).random((1, 5, 7, channels), np.float32)
        assert network(lr).shape == (1, 10, 14, channels)
    # Without its convolutions the anchor is the nearest neighbour.
    last = plain.layers[max(i for i, layer in enumerate(plain.layers) if isinstance(layer, keras.layers.Conv2D))]
    last.set_weights([0 * weight for weight in last.get_weights()])
    np.testing.assert_allclose(plain(lr)[0], np.repeat(np.repeat(lr[0], 2, 0), 2, 1), atol=1e-7)


def test_every_row_is_there(random_drcn):
    model = random_drcn(recursions=4, filters=2)
    text = benchmark_inference.benchmark(model, 64, (20, 12), rounds=1, outputs=2, representative_dir="")
    for name in ("drcn full, Keras float32", "drcn thin, Keras bfloat16", "FSRCNN", "anchor-based plain net"):
        assert name in text
    assert "thin: recursions [1, 4]" in text
    assert "drcn thin, upscale bfloat16" in text
    for module, row in (
        ("onnxruntime", "ONNX Runtime"),
        ("openvino", "OpenVINO"),
        ("ai_edge_litert", "LiteRT dynamic"),
    ):
        assert row in text or "is not installed" in text, module


def test_a_thin_model_keeps_its_choice():
    model = DRCN(recursions=4, filters=2)
    model.ensemble_weights.assign([0.5, 0.5, 0.0, 0.0])
    assert benchmark_inference.ensembles(model, 4) == {"full": [1, 2, 3, 4], "thin": [1, 2]}


@pytest.mark.parametrize(("outputs", "thin"), [(1, [4]), (2, [1, 4]), (3, [1, 2, 4]), (9, [1, 2, 3, 4])])
def test_a_full_model_is_thinned_as_a_training_from_nothing_is(outputs, thin):
    assert benchmark_inference.ensembles(DRCN(recursions=4, filters=2), outputs)["thin"] == thin


def test_shares_are_of_the_matrix_product_in_the_same_precision():
    products = {f"matrix product 2048^3, Keras {name}": 2048**3 for name in ("float32", "bfloat16")}
    macs = {"net, Keras bfloat16": 2048**3 / 4, **products}
    seconds = dict(zip(macs, ([0.5, 0.7, 2.0], [1.0], [0.25]), strict=True))
    rows = benchmark_inference.table(seconds, macs).splitlines()
    # Half a second for a quarter of what takes a quarter of a second: an eighth of the peak. 2 * 2048^3 / 4 / 0.5 s.
    assert rows[1].split() == ["net,", "Keras", "bfloat16", "500.0", "700.0", "1.00", "9", "12%"]
    assert rows[2].split()[-2:] == ["17", "100%"]
