import keras
import numpy as np
import pytest

from drcn_keras.data import Pair
from drcn_keras.image import shrink
from drcn_keras.safekeeping import average_weights
from drcn_keras.thinning import Thinning


@pytest.fixture
def model(random_drcn):
    model = random_drcn(recursions=3, filters=4)
    optimizer = keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.5)
    average_weights(optimizer)
    model.compile(optimizer=optimizer)
    return model


def pairs(count=2):
    pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 1), dtype=np.uint8)
    return [Pair(str(n), image, shrink(image / 255.0, 2).astype(np.float32), 2) for n, image in enumerate(pixels)]


def train(model, thinning, epochs):
    ilr, hr = (np.stack(images) for images in zip(*((pair.ilr, pair.hr) for pair in pairs()), strict=True))
    model.fit(ilr, hr, epochs=epochs, verbose=0, callbacks=[thinning])


def begun(model, thinning):
    thinning.set_model(model)
    thinning.on_epoch_begin(0)
    return thinning


def test_nothing_is_left_out_while_alpha_is_above_0(model):
    thinning = Thinning(1, pairs())
    model.alpha.assign(0.1)
    train(model, thinning, 1)
    assert thinning.state() == {"kept": None}
    assert model.supervised == (1, 2, 3)


def test_the_best_are_kept_and_the_others_stay_exactly_0(model):
    model.alpha.assign(0.5)
    train(model, Thinning(2, pairs()), 2)  # Adam has a memory of every w now.
    model.alpha.assign(0.0)
    thinning = Thinning(2, pairs())
    train(model, thinning, 3)
    weights = np.array(model.ensemble_weights)
    kept = np.flatnonzero(weights) + 1
    assert kept.tolist() == thinning.state()["kept"] == list(model.supervised)
    assert len(kept) == 2
    averages = [v for v in model.optimizer.variables if "recursion_weights" in v.path and v.path.endswith("average")]
    assert [np.flatnonzero(np.array(average)).tolist() for average in averages] == [(kept - 1).tolist()]


def test_the_last_recursion_is_kept_even_if_others_are_better(model):
    """A deeper network that starts from a shallower one begins with last recursions that are good for nothing."""
    pair, *_ = pairs()
    model.alpha.assign(0.0)
    reconstructions = np.array(model.reconstructions(pair.ilr[None]))[0]
    hr = np.clip(reconstructions[0], 0.0, 1.0)
    exact = Pair("first", np.round(255 * hr).astype(np.uint8), pair.lr, 2)
    thinning = Thinning(1, [exact])
    train(model, thinning, 1)
    assert thinning.state() == {"kept": [3]}


def test_an_ensemble_that_is_thin_already_stays_as_it_was_trained(model):
    """Least squares over 16 photographs cost `drcn-x234` 0.006 dB at the start of every further training."""
    model.alpha.assign(0.0)
    model.ensemble_weights.assign([0.7, 0.0, 0.2])
    thinning = begun(model, Thinning(2, pairs()))
    assert np.array(model.ensemble_weights).tolist() == pytest.approx([0.7, 0.0, 0.2])
    assert thinning.state() == {"kept": [1, 3]}
    assert model.supervised == (1, 3)


@pytest.mark.parametrize("weights", [[0.7, 0.2, 0.0], [0.0, 0.0, 0.9], [0.3, 0.3, 0.3]])
def test_an_ensemble_without_the_last_or_of_another_count_is_chosen_anew(model, weights):
    model.alpha.assign(0.0)
    model.ensemble_weights.assign(weights)
    begun(model, Thinning(2, pairs()))
    chosen = np.array(model.ensemble_weights)
    assert np.count_nonzero(chosen) == 2
    assert chosen[2]
    assert not np.allclose(chosen, weights)


def test_what_a_step_leaves_out_changes_no_gradient(model):
    """With w = 0 and alpha = 0 the full loss does not see the third recursion either."""
    ilr, hr = (np.stack(images) for images in zip(*((pair.ilr, pair.hr) for pair in pairs()), strict=True))
    model.alpha.assign(0.0)
    model.ensemble_weights.assign([0.4, 0.6, 0.0])
    full = float(model.compute_loss(ilr, hr))
    model.supervised = (1, 2)
    inference = model.get_layer("inference")
    calls, call = [], inference.call
    inference.call = lambda *arguments: (calls.append(1), call(*arguments))[1]
    assert float(model.compute_loss(ilr, hr)) == pytest.approx(full, rel=1e-6)
    assert len(calls) == 2


def test_a_resumed_run_goes_on_with_those_that_were_kept(model):
    thinning = Thinning(1, pairs())
    thinning.restore({"kept": [2]})
    model.alpha.assign(0.0)
    model.ensemble_weights.assign([0.0, 1.0, 0.0])
    train(model, thinning, 1)
    assert model.supervised == (2,)
    assert np.flatnonzero(np.array(model.ensemble_weights)).tolist() == [1]


@pytest.mark.parametrize(("outputs", "kept"), [(1, [3]), (2, [1, 3]), (3, [1, 2, 3])])
def test_before_anything_is_learned_recursions_far_apart_count_alike(outputs, kept, model):
    """Squares fitted to an untrained network gave weights from which a run needed 2,500 steps back to bicubic."""
    model.alpha.assign(0.0)
    model.optimizer.learning_rate.assign(0.0)
    thinning = Thinning(outputs, pairs(), untrained=True)
    train(model, thinning, 1)
    assert thinning.state()["kept"] == kept
    np.testing.assert_allclose(np.array(model.ensemble_weights)[np.array(kept) - 1], 1 / outputs, rtol=1e-6)


def test_squares_choose_once_something_was_learned(model):
    model.alpha.assign(0.5)
    train(model, Thinning(2, pairs(), untrained=True), 1)
    model.alpha.assign(0.0)
    model.optimizer.learning_rate.assign(0.0)
    train(model, Thinning(2, pairs(), untrained=True), 1)
    weights = np.array(model.ensemble_weights)
    assert np.count_nonzero(weights) == 2
    assert not np.allclose(weights[weights != 0], 0.5, atol=1e-3)
