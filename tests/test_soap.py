"""SOAP against a second implementation of the paper's algorithm, and against what it must equal."""

import keras
import numpy as np
import pytest
from keras import ops

from drcn_keras import DRCN, AlphaAnnealing
from drcn_keras.soap import Soap


def reference(start, gradients, rate=0.1, refresh=50):
    """The kernel after all gradients, in float64: algorithm 3 of arXiv 2409.11321 for one matrix."""
    kernel = start.astype(np.float64)
    first, second = np.zeros_like(kernel), np.zeros_like(kernel)
    left, right = np.zeros((len(kernel),) * 2), np.zeros((kernel.shape[1],) * 2)
    left_basis, right_basis = np.eye(len(left)), np.eye(len(right))
    for step, gradient in enumerate(gradients):
        gradient = gradient.astype(np.float64)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * (left_basis.T @ gradient @ right_basis) ** 2
        turned = left_basis.T @ (first / (1 - 0.9 ** (step + 1))) @ right_basis
        turned = turned / (np.sqrt(second / (1 - 0.999 ** (step + 1))) + 1e-8)
        kernel = kernel - rate * left_basis @ turned @ right_basis.T
        left = 0.95 * left + 0.05 * gradient @ gradient.T
        right = 0.95 * right + 0.05 * gradient.T @ gradient
        if step < 10 or step % refresh == 0:
            left_basis, right_basis = np.linalg.eigh(left)[1], np.linalg.eigh(right)[1]
    return kernel


@pytest.mark.parametrize("refresh", [1, 4])
def test_a_kernel_goes_as_the_papers_algorithm_says(refresh):
    random = np.random.default_rng(0)
    start = random.normal(size=(5, 1, 1, 4)).astype(np.float32)
    variable = keras.Variable(start)
    optimizer = Soap(0.1, refresh=refresh)
    # One row more than columns: where two eigenvalues are both 0, eigenvectors are anyone's choice.
    gradients = [np.diag([1.0, 2, 3, 4, 5])[:, :4] + random.normal(size=(5, 4)) for _ in range(14)]
    for gradient in gradients:
        optimizer.apply([ops.convert_to_tensor(gradient.reshape(5, 1, 1, 4), "float32")], [variable])
    expected = reference(start.reshape(5, 4), gradients, refresh=refresh)
    np.testing.assert_allclose(ops.convert_to_numpy(variable).reshape(5, 4), expected, atol=1e-4)
    assert np.abs(expected - start.reshape(5, 4)).max() > 0.5


def test_a_vector_goes_as_adams():
    gradients = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    ours, adams = keras.Variable(np.ones(3)), keras.Variable(np.ones(3))
    soap, adam = Soap(0.01), keras.optimizers.Adam(0.01, epsilon=1e-8)
    for gradient in gradients:
        soap.apply([ops.convert_to_tensor(gradient)], [ours])
        adam.apply([ops.convert_to_tensor(gradient)], [adams])
    np.testing.assert_allclose(ops.convert_to_numpy(ours), ops.convert_to_numpy(adams), rtol=1e-6)


def test_a_turned_problem_takes_turned_steps():
    """What sets it apart from Adam: rotating the maps that go in rotates the path, and changes nothing else."""
    random = np.random.default_rng(2)
    turn = np.linalg.qr(random.normal(size=(4, 4)))[0].astype(np.float32)
    gradients = random.normal(size=(20, 4, 3)).astype(np.float32)
    ends = []
    for matrix in (np.eye(4, dtype=np.float32), turn):
        variable = keras.Variable(np.zeros((4, 3), np.float32))
        optimizer = Soap(0.01)
        for gradient in gradients:
            optimizer.apply([ops.convert_to_tensor(matrix @ gradient)], [variable])
        ends.append(matrix.T @ ops.convert_to_numpy(variable))
    # Not in the first steps, whose rank leaves the fourth direction open.
    assert np.abs(ends[0] - ends[1]).max() < 0.02
    assert np.abs(ends[0]).max() > 0.05


def test_a_gradient_that_is_not_finite_ends_in_no_error_of_linear_algebra():
    variable = keras.Variable(np.zeros((4, 3), np.float32))
    optimizer = Soap(0.01)
    optimizer.apply([ops.convert_to_tensor(np.full((4, 3), np.nan, np.float32))], [variable])
    assert np.isnan(ops.convert_to_numpy(variable)).all()


def test_a_model_trains_with_it_and_comes_back_with_it(tmp_path):
    keras.utils.set_random_seed(3)
    random = np.random.default_rng(3)
    ilr = random.random((8, 9, 9, 1), dtype="float32")
    model = DRCN(recursions=2, filters=4)
    model.compile(Soap(1e-3, refresh=3, global_clipnorm=1.0, use_ema=True))
    losses = model.fit(ilr, 0.8 * ilr, batch_size=4, epochs=9, verbose=0, callbacks=[AlphaAnnealing(2)]).history["loss"]
    assert losses[-1] < 0.7 * losses[0]
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.optimizer.get_config() == model.optimizer.get_config()
    for ours, theirs in zip(again.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(ours), ops.convert_to_numpy(theirs))
