"""The table of cases: the library's reader and the device's, each file pixel by pixel against a third one's."""

import importlib
import warnings

import numpy as np
import pytest
from kit import ROOT
from picture_cases import CASES

from drcn_keras.errors import UserError
from drcn_keras.image_files import eight_bit, read_pixels


@pytest.fixture(scope="module")
def device():
    """The modules of tflite/ that read pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "tflite")
        yield importlib.import_module("pictures"), importlib.import_module("manifest")


@pytest.fixture
def path(request, tmp_path):
    """The file of a case."""
    path = tmp_path / f"case{request.param.suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of the writers.
        request.param.write(path)
    return path


def cases():
    return pytest.mark.parametrize(("case", "path"), [(case, case) for case in CASES], indirect=["path"],
                                   ids=[case.name for case in CASES])  # fmt: skip


def test_the_table_is_large_enough():
    assert len({case.name for case in CASES}) == len(CASES) >= 120


def assert_within(pixels, expected, tolerance):
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected.astype(int)).max() <= tolerance


@cases()
def test_the_library(case, path):
    if case.judge is None:
        with pytest.raises(UserError, match="expected"):
            read_pixels(path)
        return
    expected = case.judge(path)
    pixels, _ = read_pixels(path)
    assert pixels.dtype == expected.dtype
    assert_within(pixels, expected, case.tolerance)


@cases()
def test_the_device(device, case, path):
    pictures, manifest = device
    if case.device == "refused":
        with pytest.raises(manifest.CannotRun, match=r"are not read here|not a readable image"):
            pictures.read(path)
        return
    expected = case.judge(path)
    high = case.device == "high"
    expected = (expected >> 8).astype(np.uint8) if high else eight_bit(expected)
    pixels, alpha, _ = pictures.read(path)
    assert pixels.dtype == np.uint8
    if high and expected.shape[2] == 2:
        expected = expected[..., [0, 0, 0, 1]]  # Pillow has no 16-bit gray with alpha.
    received = pixels if alpha is None else np.dstack([pixels, alpha])
    # Netpbm's colours of 16 bit are rounded by Pillow.
    assert_within(received, expected, max(case.tolerance, 1 if high else 0))
