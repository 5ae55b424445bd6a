import math

import keras
import numpy as np
import pytest

from drcn_keras import DRCN, callbacks, safekeeping
from drcn_keras.errors import UserError


@pytest.fixture(scope="module")
def model():
    model = DRCN(recursions=2, filters=2)
    model.compile(optimizer=keras.optimizers.SGD(0.01), jit_compile=False)
    return model


def attached(callback, model):
    callback.set_model(model)
    model.stop_training = False
    return callback


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_step_rate_and_advice(model, loss):
    model.optimizer.learning_rate.assign(0.25)
    guard = attached(safekeeping.NonFiniteGuard(), model)
    model.optimizer.iterations.assign(40)
    guard.on_train_batch_begin(0)
    guard.on_train_batch_end(0, {"loss": 1.0})
    with pytest.raises(UserError, match=rf"loss is {loss} at step 42 with learning rate 0\.25; clip .*clip_norm"):
        guard.on_train_batch_end(1, {"loss": loss})


def test_a_weight_that_is_not_finite_ends_the_epoch_before_it_is_measured():
    model = DRCN(recursions=2, filters=2)
    model.compile(optimizer=keras.optimizers.SGD(0.01))
    model.get_layer("inference").bias.assign([0.0, np.inf])
    with pytest.raises(UserError, match="inference/bias holds NaN or infinity"):
        attached(safekeeping.NonFiniteGuard(), model).on_epoch_end(0, {"loss": 1.0})


def test_averages_are_there_for_a_while_only():
    model = DRCN(recursions=1, filters=1)
    optimizer = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.75)
    safekeeping.average_weights(optimizer)
    model.compile(optimizer=optimizer, jit_compile=False)
    model.alpha.assign(0.0)
    images = np.random.default_rng(0).random((1, 4, 4, 1), dtype="float32")
    seen = []
    for _ in range(2):
        model.fit(images, images[:, ::-1], verbose=0)
        seen.append(np.array(model.ensemble_weights)[0])
    assert seen[0] != seen[1]
    with safekeeping.averaged(model):
        # By hand: the first step's weight, then a quarter of the way to the second's.
        assert np.array(model.ensemble_weights)[0] == pytest.approx(0.75 * seen[0] + 0.25 * seen[1], rel=1e-6)
    assert np.array(model.ensemble_weights)[0] == seen[1]


def test_no_callback_makes_keras_wait_for_a_step(model, monkeypatch):
    """Keras reads the loss after every step, and so waits for the device, where a callback is not safe to run late.

    Under TensorFlow it does so in any case.
    """
    from keras.src.callbacks.callback_list import CallbackList

    monkeypatch.setattr("keras.src.backend.IS_THREAD_SAFE", True)
    clock = callbacks.RunClock(epochs=2)
    saver = safekeeping.Checkpoints("folder", {}, {}, 2, 1, 1, workers=None)
    rules = [safekeeping.NonFiniteGuard(), callbacks.TimeLimit(clock), callbacks.TimeLeft(clock), saver]
    assert CallbackList(rules, model=model)._async_train
