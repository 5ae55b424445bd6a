import math

import keras
import numpy as np
import pytest

from drcn_keras import DRCN
from drcn_keras.data import Pair
from drcn_keras.errors import UserError
from drcn_keras.image import shrink
from drcn_keras.metrics import comparable, measured_psnr, psnr, ssim
from drcn_keras.validation import Validation


def attached(pairs, model, **options):
    callback = Validation(pairs, **options)
    model.compile(optimizer=keras.optimizers.SGD(0.01), jit_compile=False)
    callback.set_model(model)
    model.stop_training = False
    return callback


def photograph(scale, side=48, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 1), dtype=np.uint8)
    return Pair(f"noise_{seed}", pixels, shrink(pixels / 255.0, scale).astype(np.float32), scale)


def flat(scale, level=100):
    pixels = np.full((24, 24, 1), level, np.uint8)
    return Pair("flat", pixels, shrink(pixels / 255.0, scale).astype(np.float32), scale)


def measured(validation, epoch=0):
    logs = {}
    validation.on_epoch_end(epoch, logs)
    return logs


def test_the_first_of_equals_is_kept_and_the_ensemble_measured():
    # With w = 0 the ensemble is black, whatever the single recursions show.
    model = DRCN(recursions=2, filters=2)
    model.ensemble_weights.assign([0.0, 0.0])
    pair = Pair("a", np.full((16, 16, 1), 51, np.uint8), np.zeros((8, 8, 1), np.float32), 2)
    saved = []
    validation = attached([pair], model, every=2, epochs=5, save_best=lambda model, logs, epoch: saved.append(epoch))
    seen = [measured(validation, epoch) for epoch in range(5)]
    assert ["val_psnr" in logs for logs in seen] == [False, True, False, True, True]
    assert seen[-1]["val_psnr"] == pytest.approx(20 * math.log10(255 / 51))
    assert saved == [1]
    assert validation.state() == {"best": seen[-1]["val_psnr"]}


def test_a_flat_image_is_named_and_left_out(bicubic_drcn, caplog):
    """Restored exactly, its PSNR is infinite: so was the mean, and no later epoch could be better."""
    model = bicubic_drcn()
    pair = photograph(2)
    logs = measured(attached([flat(2), pair], model))
    assert logs["val_psnr"] == logs["val_bicubic"] == pytest.approx(measured_psnr(pair.hr, pair.ilr, 2))
    assert "1 of 2 validation images have no finite PSNR and are left out of the mean: flat" in caplog.text
    with pytest.raises(UserError, match="no validation image can be compared at x2"):
        measured(attached([flat(2), flat(2, 7)], model))


def test_several_scales_count_alike_however_many_images_each_has(bicubic_drcn):
    pairs = [photograph(2), photograph(2, seed=1), photograph(3)]
    logs = measured(attached(pairs, bicubic_drcn(offset=0.1, scale=(2, 3))))
    single = {
        scale: np.mean([measured_psnr(pair.hr, pair.ilr + 0.1, scale) for pair in pairs if pair.scale == scale])
        for scale in (2, 3)
    }
    assert logs["val_psnr_x2"] == pytest.approx(single[2], abs=1e-3)
    assert logs["val_psnr_x3"] == pytest.approx(single[3], abs=1e-3)
    assert logs["val_psnr"] == pytest.approx((single[2] + single[3]) / 2, abs=1e-3)


def test_tiles_give_what_the_whole_image_gives(random_drcn, monkeypatch):
    model, pair = random_drcn(), photograph(2)
    whole = np.array(model(pair.ilr[None]))[0]
    monkeypatch.setattr("drcn_keras.validation.default_tile", lambda model, maps: 20)
    logs = measured(attached([pair], model))
    hr, sr = (comparable(image, 2) for image in (pair.hr, whole))
    assert logs["val_psnr"] == pytest.approx(psnr(hr, sr), abs=1e-4)
    assert logs["val_ssim"] == pytest.approx(ssim(hr, sr), abs=1e-5)


def test_later_weights_are_measured_not_those_of_the_first_time(bicubic_drcn):
    model, pair = bicubic_drcn(), photograph(2)
    validation = attached([pair], model)
    before = measured(validation)["val_psnr"]
    model.get_layer("reconstruction_2").bias.assign([0.2])
    expected = measured_psnr(pair.hr, pair.ilr + 0.2, 2)
    assert measured(validation)["val_psnr"] == pytest.approx(expected, abs=1e-3) != before
