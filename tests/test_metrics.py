"""PSNR and SSIM against numbers computed by hand."""

import math

import numpy as np
import pytest

from drcn_keras import metrics


def test_psnr_by_hand():
    # Every pixel off by 1: 20 * log10(255) = 48.1308 dB. Half of them off by 2: twice that error, 3.0103 dB less.
    zeros = np.zeros((4, 4), np.uint8)
    assert metrics.psnr(zeros, zeros + 1) == pytest.approx(48.130804, abs=1e-6)
    half = zeros.copy()
    half[:2] = 2
    assert metrics.psnr(zeros, half) == pytest.approx(48.130804 - 3.010300, abs=1e-6)
    # uint8 would wrap around: 0 - 255 is not 1.
    assert metrics.psnr(zeros, zeros + 255) == 0.0
    assert metrics.psnr(zeros, zeros) == math.inf


def test_psnr_of_unlike_or_empty_images_is_refused():
    with pytest.raises(ValueError, match="one shape"):
        metrics.psnr(np.zeros((4, 4)), np.zeros((4, 5)))
    with pytest.raises(ValueError, match="with pixels"):
        metrics.psnr(np.zeros((0, 4)), np.zeros((0, 4)))


def test_mean_leaves_images_out_that_any_method_restored_exactly():
    inf, nan = math.inf, math.nan
    means, infinite = metrics.mean_psnr([[30.0, 20.0], [inf, 50.0], [40.0, 21.0], [60.0, inf]])
    assert means.tolist() == [35.0, 20.5]
    assert infinite == [1, 3]
    # Nothing finite to take a mean of; and NaN is damage, not a perfect image.
    means, infinite = metrics.mean_psnr([[inf, 50.0], [inf, 40.0]])
    assert means.tolist() == [inf, 45.0]
    assert infinite == [0, 1]
    assert math.isnan(metrics.mean_psnr([[nan], [30.0]])[0][0])


def test_eight_bit_rounds_and_clips():
    values = np.array([[-0.2, 0.49 / 255, 0.51 / 255, 100.6 / 255, 254.9 / 255, 1.3]])
    assert metrics.eight_bit(values).tolist() == [[0, 0, 1, 101, 255, 255]]
    assert metrics.eight_bit(values[..., None]).shape == (1, 6)


def test_protocol_clips_rounds_and_leaves_the_border_out():
    hr = np.full((12, 12), 200 / 255)
    hr[5, 5] = 1.0
    sr = hr + 0.4 / 255  # Rounds back.
    sr[5, 5] = 1.5  # Clips back.
    sr[:2] = sr[-2:] = sr[:, :2] = sr[:, -2:] = 0  # Border.
    assert metrics.measured_psnr(hr, sr, 2) == math.inf
    sr[2, 2] += 1 / 255
    # One of 8 x 8 pixels off by 1.
    assert metrics.measured_psnr(hr, sr, 2) == pytest.approx(48.130804 + 10 * math.log10(64), abs=1e-6)
    assert metrics.measured_psnr(hr[..., None], sr, 2) == metrics.measured_psnr(hr, sr, 2)


def test_rgb_is_measured_on_y():
    black, white = np.zeros((8, 8, 3)), np.ones((8, 8, 3))
    # Y runs from 16 to 235.
    assert metrics.measured_psnr(black, white, 2) == pytest.approx(20 * math.log10(255 / 219), abs=1e-9)
    # Two colours of one Y: 81.48 and 81.03 before rounding.
    red, green = np.zeros((8, 8, 3)), np.zeros((8, 8, 3))
    red[..., 0], green[..., 1] = 1.0, 129 / 255
    assert metrics.comparable(red, 2).tolist() == np.full((4, 4), 81).tolist()
    assert metrics.measured_psnr(red, green, 2) == math.inf


def test_ssim_of_one_window_by_hand():
    random = np.random.default_rng(0)
    hr, sr = random.integers(0, 256, (2, 11, 11), np.uint8)
    axis = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(axis, axis) / axis.sum() ** 2
    x, y = hr.astype(float), sr.astype(float)
    mean_x, mean_y = (window * x).sum(), (window * y).sum()
    variance_x, variance_y = (window * (x - mean_x) ** 2).sum(), (window * (y - mean_y) ** 2).sum()
    covariance = (window * (x - mean_x) * (y - mean_y)).sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    )
    assert metrics.ssim(hr, sr) == pytest.approx(expected, abs=1e-12)
    assert metrics.ssim(hr, hr) == 1.0


def test_ssim_below_its_window_is_refused():
    with pytest.raises(ValueError):
        metrics.ssim(np.zeros((10, 30), np.uint8), np.zeros((10, 30), np.uint8))
