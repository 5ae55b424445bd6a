import math

import keras
import numpy as np
import pytest

from drcn_keras import DRCN
from drcn_keras.data import Pair
from drcn_keras.validation import Validation


@pytest.fixture(scope="module")
def model():
    model = DRCN(recursions=2, filters=2)
    model.compile(optimizer=keras.optimizers.SGD(0.01), jit_compile=False)
    return model


def attached(callback, model):
    callback.set_model(model)
    model.stop_training = False
    return callback


def test_validation_keeps_the_first_of_equals_and_measures_the_ensemble(model):
    # With w = 0 the ensemble is black, whatever the single recursions show.
    model.ensemble_weights.assign([0.0, 0.0])
    hr = np.full((8, 8, 1), 51 / 255, "float32")
    saved = []
    validation = Validation(
        [Pair("a", hr, hr, 2)], every=2, epochs=5, save_best=lambda model, logs, epoch: saved.append(epoch)
    )
    attached(validation, model)
    seen = []
    for epoch in range(5):
        logs = {}
        validation.on_epoch_end(epoch, logs)
        seen.append("val_psnr" in logs)
    assert seen == [False, True, False, True, True]
    assert logs["val_psnr"] == pytest.approx(20 * math.log10(255 / 51))
    assert saved == [1]
    assert validation.state() == {"best": logs["val_psnr"]}
