"""The folded graph, the in-graph bicubic and the in-graph colours against the NumPy originals."""

import keras
import numpy as np
import pytest
from keras import ops
from kit import small_drcn

from drcn_keras import image, inference
from drcn_keras.model import DRCN


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("split_identity", [False, True])
def test_residual_and_split_identity_are_exact_rewrites(channels, split_identity):
    model = small_drcn(recursions=3, filters=6, channels=channels)
    ilr = np.random.default_rng(1).random((2, 7, 9, channels), dtype=np.float32)
    expected = model(ilr)
    whole = inference.inference_model(model, split_identity=split_identity)(ilr)
    part = inference.inference_model(model, residual=True, split_identity=split_identity)(ilr)
    np.testing.assert_allclose(whole, expected, rtol=1e-5, atol=1e-5)
    # The ensemble weights do not sum to 1 here, so a skip of plain ilr would be seen.
    assert abs(inference.skip_gain(model) - 1.0) > 0.05
    np.testing.assert_allclose(part + inference.skip_gain(model) * ilr, expected, rtol=1e-5, atol=1e-5)


def test_split_identity_takes_the_identity_out_of_the_kernel():
    model = DRCN(recursions=2, filters=4)  # The recursive kernel starts as the identity.
    kernel, _ = inference.inference_model(model, split_identity=True).get_layer("inference").get_weights()
    assert not np.any(kernel)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 1), (2, 2), (3, 2), (13, 9)])
def test_enlarge_equals_the_matlab_bicubic(scale, size):
    lr = np.random.default_rng(2).random((*size, 3))
    enlarged = ops.convert_to_numpy(inference.enlarge(lr[None].astype(np.float32), scale))[0]
    np.testing.assert_allclose(enlarged, image.enlarge(lr, scale), atol=2e-6)


def test_enlarge_of_unknown_size():
    lr = keras.Input((None, None, 1))
    model = keras.Model(lr, inference.enlarge(lr, 2))
    for size in [(1, 1), (2, 5)]:
        pixels = np.random.default_rng(3).random((*size, 1), dtype=np.float32)
        np.testing.assert_allclose(model(pixels[None])[0], image.enlarge(pixels, 2), atol=2e-6)


def test_colours_equal_the_numpy_ones_and_return():
    rgb = np.random.default_rng(4).random((1, 5, 6, 3), dtype=np.float32)
    ycbcr = inference.rgb_to_ycbcr(rgb)
    np.testing.assert_allclose(ycbcr, image.rgb_to_ycbcr(rgb), atol=1e-6)
    np.testing.assert_allclose(inference.ycbcr_to_rgb(ycbcr), rgb, atol=2e-6)
    white = inference.rgb_to_ycbcr(np.ones((1, 1, 1, 3), np.float32))
    np.testing.assert_allclose(np.ravel(white), np.array([235, 128, 128]) / 255.0, atol=1e-6)
