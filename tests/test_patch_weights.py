"""Which patches are drawn and how much they weigh, by hand."""

import numpy as np
import pytest

from drcn_keras import patch_weights
from drcn_keras.data import Pair, PatchStream


def flat_pair(error, scale=2):
    """A black photograph of 12x12 whose ILR is wrong by the root of `error` everywhere."""
    lr = np.full((12 // scale, 12 // scale, 1), error**0.5, np.float32)
    return Pair("a", np.zeros((12, 12, 1), np.uint8), lr, scale)


def test_the_errors_of_a_pair_are_those_of_the_image_and_of_its_patches():
    """By hand: 1/100 everywhere, in nine patches of 4x4 pixels."""
    mean, patches = patch_weights.errors_of(flat_pair(0.01), patch_size=4, stride=4)
    assert mean == pytest.approx(0.01, rel=1e-5)
    np.testing.assert_allclose(patches, [0.16] * 9, rtol=1e-5)


def test_photographs_that_count_alike_have_weights_by_their_errors():
    """By hand: scales of the mean errors 4 and 8, so 6 in the middle; 0.1 counts as a twentieth of its scale's 4."""
    errors, scales = np.array([7.9, 0.1, 4.0, 8.0]), np.array([2, 2, 2, 3])
    np.testing.assert_allclose(patch_weights.image_weights(errors, scales), [6 / 7.9, 6 / 0.2, 1.5, 0.75])
    np.testing.assert_allclose(patch_weights.scale_weights(errors, scales), [1.5, 1.5, 1.5, 0.75])
    assert np.isfinite(patch_weights.image_weights(np.zeros(2), np.array([2, 3]))).all()


def test_photographs_that_count_alike_lose_alike():
    pairs = [flat_pair(error / 1000, scale) for scale, error in ((2, 1), (2, 3), (3, 7))]
    options = {"balance_images": True, "balance_scales": True}
    ilr, hr, weights = PatchStream(pairs, patch_size=12, stride=12, batch_size=3, **options).batch(0)
    np.testing.assert_allclose(weights * np.square(ilr - hr).mean(axis=(1, 2, 3)), 0.0045, rtol=1e-5)
    drawn = PatchStream(pairs, patch_size=12, stride=12, batch_size=3, importance=0.75, **options).batch(0)
    np.testing.assert_allclose(sorted(drawn[2]), sorted(weights), rtol=1e-4)


def test_scales_that_count_alike_have_weights_by_their_errors():
    """By hand: squared errors of 1, 4 and 7 thousandths have the mean 4, so the weights 4, 1 and 4/7."""
    pairs = [flat_pair(error / 1000, scale) for scale, error in ((2, 1), (3, 4), (4, 7))]
    stream = PatchStream(pairs, patch_size=12, stride=12, batch_size=3, balance_scales=True)
    ilr, hr, weights = stream.batch(0)
    errors = np.square(ilr - hr).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(sorted(weights), [4 / 7, 1, 4], rtol=1e-5)
    np.testing.assert_allclose(weights * errors, 0.004, rtol=1e-5)
    assert weights.dtype == np.float32
    assert len(PatchStream(pairs, patch_size=12, stride=12).batch(0)) == 2


def test_patches_drawn_by_their_error_weigh_its_inverse():
    """By hand: squared errors of 1, 4, 9 and 2 have the mean 4, a twentieth of which comes on top: 16.8 in all."""
    errors = np.array([1, 4, 9, 2])
    pairs = [flat_pair(error / 1e4) for error in errors]
    shares = (errors + 0.2) / 16.8
    stream = PatchStream(pairs, patch_size=12, stride=12, batch_size=4, importance=1.0)
    drawn = [stream.batch(step) for step in range(2000)]
    measured = np.concatenate([np.square(ilr - hr).mean(axis=(1, 2, 3)) for ilr, hr, _ in drawn]) * 1e4
    weights = np.concatenate([weights for _, _, weights in drawn])
    assert weights.dtype == np.float32
    for error, share in zip(errors, shares, strict=True):
        chosen = np.isclose(measured, error, rtol=1e-3)
        assert chosen.mean() == pytest.approx(share, abs=0.01)
        np.testing.assert_allclose(weights[chosen], 1 / (4 * share), rtol=1e-3)
    assert np.mean(weights * measured) == pytest.approx(4.0, rel=0.01)


def test_patches_are_drawn_by_their_error_as_the_scale_weighs_it():
    """With scales that count alike, three flat errors of 1, 4 and 7 are drawn equally and weigh as they do alone."""
    pairs = [flat_pair(error / 1000, scale) for scale, error in ((2, 1), (3, 4), (4, 7))]
    stream = PatchStream(pairs, patch_size=12, stride=12, batch_size=3, balance_scales=True, importance=0.75)
    np.testing.assert_allclose(sorted(stream.batch(0)[2]), [4 / 7, 1, 4], rtol=1e-4)
    left = PatchStream(pairs, patch_size=12, stride=12, batch_size=1, skip_flat=0.5, importance=0.75)
    assert len(left) == 3, "of one patch nothing is left out"
