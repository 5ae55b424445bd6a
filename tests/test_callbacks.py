import keras
import numpy as np
import pytest

from drcn_keras import DRCN, callbacks


@pytest.fixture(scope="module")
def model():
    model = DRCN(recursions=2, filters=2)
    model.compile(optimizer=keras.optimizers.SGD(0.01), jit_compile=False)
    return model


def attached(callback, model):
    callback.set_model(model)
    model.stop_training = False
    return callback


def rate(model):
    return float(np.array(model.optimizer.learning_rate))


# By hand, from 0.8 down to 0.2 over 4 epochs: cos(pi/4) = 0.70711; (0.2/0.8)^(1/4) = 0.70711.
@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [0.8, 0.65, 0.5, 0.35, 0.2, 0.2]),
        ("cosine", [0.8, 0.712132, 0.5, 0.287868, 0.2, 0.2]),
        ("exponential", [0.8, 0.565685, 0.4, 0.282843, 0.2, 0.2]),
    ],
)
def test_alpha_follows_its_schedule(model, schedule, expected):
    annealing = attached(callbacks.AlphaAnnealing(4, schedule, 0.8, 0.2), model)
    for epoch, alpha in enumerate(expected):
        logs = {}
        annealing.on_epoch_begin(epoch)
        assert float(np.array(model.alpha)) == pytest.approx(alpha, abs=1e-6)
        annealing.on_epoch_end(epoch, logs)
        assert logs["alpha"] == pytest.approx(alpha, abs=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"schedule": "cubic"},
        {"start": 1.5},
        {"end": -0.1},
        {"epochs": 0},
        {"schedule": "exponential", "end": 0.0},
    ],
)
def test_alpha_refuses_what_is_out_of_range(wrong):
    with pytest.raises(ValueError):
        callbacks.AlphaAnnealing(**{"epochs": 4, **wrong})


def test_alpha_reaches_the_traced_step(model):
    # A Python float would be frozen into the graph: both epochs would then see alpha 1.
    images = np.random.default_rng(0).random((2, 8, 8, 1), dtype="float32")
    still = DRCN(recursions=2, filters=2, beta=0.0)
    still.compile(optimizer=keras.optimizers.SGD(0.0))
    history = still.fit(
        images, images[::-1], epochs=2, verbose=0, shuffle=False, callbacks=[callbacks.AlphaAnnealing(1)]
    ).history
    reconstructions = np.array(still.reconstructions(images))
    errors = np.square(images[::-1][:, None] - reconstructions).sum(axis=(2, 3, 4))
    ensemble = np.square(images[::-1] - reconstructions.mean(axis=1)).sum(axis=(1, 2, 3))
    assert history["alpha"] == [1.0, 0.0]
    assert history["loss"] == pytest.approx([errors.mean() / 2, ensemble.mean() / 2], rel=1e-5)


def test_plateau_is_the_papers_rule(model):
    """Divided by 10 after 5 epochs without a better validation; done when it would fall below 1e-6."""
    model.optimizer.learning_rate.assign(0.01)
    plateau = attached(callbacks.Plateau(), model)
    rates = []
    for epoch, psnr in enumerate([30.0, 31.0] + [31.0, 30.9, 30.8, 31.0, 30.0] + [31.5] + [31.0] * 15):
        plateau.on_epoch_end(epoch, {"val_psnr": psnr})
        rates.append(rate(model))
    expected = [1e-2] * 6 + [1e-3] * 6 + [1e-4] * 5 + [1e-5] * 5 + [1e-6]
    assert rates == pytest.approx(expected, rel=1e-5)
    assert not model.stop_training
    for epoch in range(5):
        assert not plateau.done
        plateau.on_epoch_end(23 + epoch, {"val_psnr": 31.0})
    assert plateau.done
    assert model.stop_training
    assert rate(model) == pytest.approx(1e-6, rel=1e-5)


def test_plateau_counts_validated_epochs_only(model):
    model.optimizer.learning_rate.assign(0.01)
    plateau = attached(callbacks.Plateau(patience=2), model)
    plateau.on_epoch_end(0, {"val_psnr": 30.0})
    for epoch in range(1, 5):
        plateau.on_epoch_end(epoch, {})
    plateau.on_epoch_end(5, {"val_psnr": 30.0})
    assert rate(model) == pytest.approx(0.01)
    plateau.on_epoch_end(6, {"val_psnr": 29.0})
    assert rate(model) == pytest.approx(0.001)


def test_plateau_goes_on_where_its_state_stands(model):
    model.optimizer.learning_rate.assign(0.01)
    first = attached(callbacks.Plateau(patience=3), model)
    for epoch, psnr in enumerate([30.0, 29.0, 29.0]):
        first.on_epoch_end(epoch, {"val_psnr": psnr})
    second = attached(callbacks.Plateau(patience=3), model)
    second.restore(first.state())
    second.on_epoch_end(3, {"val_psnr": 29.9})
    assert rate(model) == pytest.approx(0.001)


def test_cosine_learning_rate_by_hand(model):
    cosine = attached(callbacks.CosineLearningRate(0.001, lambda epoch: epoch / 4), model)
    rates = []
    for epoch in range(5):
        cosine.on_epoch_begin(epoch)
        rates.append(rate(model))
    # 1e-6 + 0.000999 * (1 + cos) / 2 with cos = 1, 0.70711, 0, -0.70711, -1.
    assert rates == pytest.approx([1e-3, 8.53700e-4, 5.005e-4, 1.47300e-4, 1e-6], rel=1e-4)


def test_the_learning_rate_warms_up_in_equal_steps(model):
    cosine = attached(callbacks.CosineLearningRate(0.001, lambda epoch: epoch / 4), model)
    for first, whole in ((cosine, cosine.value), (None, lambda epoch: 0.01)):
        warm = attached(callbacks.WarmUp(2, whole), model)
        rates = []
        for epoch in range(3):
            for callback in filter(None, (first, warm)):
                callback.on_epoch_begin(epoch)
            rates.append(rate(model))
        expected = [1e-3 / 2, 8.53700e-4, 5.005e-4] if first else [0.005, 0.01, 0.01]
        assert rates == pytest.approx(expected, rel=1e-4)


def test_progress_follows_epochs_or_the_clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
    clock = callbacks.RunClock(epochs=10, minutes=20.0)
    assert clock(3) == pytest.approx(0.3)
    now[0] += 10 * 60
    assert clock(3) == pytest.approx(0.5)
    assert clock(7) == pytest.approx(0.7)

    resumed = callbacks.RunClock(epochs=10, minutes=20.0)
    resumed.restore(clock.state())
    now[0] += 5 * 60
    assert resumed(3) == pytest.approx(0.75)
    now[0] += 60 * 60
    assert resumed(3) == 1.0
    assert callbacks.RunClock(epochs=10)(3) == pytest.approx(0.3)


def test_progress_asks_the_chief_for_the_time():
    assert callbacks.RunClock(epochs=10, minutes=20.0, agree=lambda minutes: 15.0)(0) == pytest.approx(0.75)


def test_the_time_left_is_that_of_the_whole_run_restarts_included(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
    clock = callbacks.RunClock(epochs=10)
    clock.restore({"minutes": 3.0})
    now[0] += 60
    logs = {}
    callbacks.TimeLeft(clock).on_epoch_end(3, logs)
    # Four minutes for four of ten epochs.
    assert logs["minutes_left"] == pytest.approx(6.0)
