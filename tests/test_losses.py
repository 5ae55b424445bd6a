import numpy as np
import pytest

from drcn_keras.losses import drcn_loss, weight_decay


def reference(hr, reconstructions, ensemble, alpha):
    """The paper's formula, image by image and recursion by recursion, in float64."""
    images, recursions = reconstructions.shape[:2]
    l1 = l2 = 0.0
    for i in range(images):
        for d in range(recursions):
            l1 += np.linalg.norm((hr[i] - reconstructions[i, d]).ravel()) ** 2 / (2 * recursions * images)
        l2 += np.linalg.norm((hr[i] - ensemble[i]).ravel()) ** 2 / (2 * images)
    return alpha * l1 + (1 - alpha) * l2


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("channels", [1, 3])
def test_loss_is_the_papers_formula(alpha, channels):
    random = np.random.default_rng(0)
    hr = random.random((3, 5, 4, channels))
    reconstructions = random.random((3, 2, 5, 4, channels))
    ensemble = random.random((3, 5, 4, channels))
    loss = float(drcn_loss(hr, reconstructions, ensemble, alpha))
    assert loss == pytest.approx(reference(hr, reconstructions, ensemble, alpha), rel=1e-5)


def test_loss_of_a_case_worked_by_hand():
    hr = np.zeros((1, 1, 2, 1))
    reconstructions = np.array([[1.0, 1.0], [3.0, 0.0]]).reshape(1, 2, 1, 2, 1)
    ensemble = np.array([2.0, 0.0]).reshape(1, 1, 2, 1)
    # l1 = (2 + 9) / (2*2*1) = 2.75; l2 = 4 / 2 = 2; half of each.
    assert float(drcn_loss(hr, reconstructions, ensemble, 0.5)) == pytest.approx(2.375)


def test_low_precision_inputs_are_summed_in_float32():
    hr = np.zeros((1, 64, 64, 1), "float16")
    off = np.full((1, 64, 64, 1), 8.0, "float16")
    # 64 * 4096 / 2 is beyond float16's 65504.
    assert float(drcn_loss(hr, off[:, None], off, 0.5)) == pytest.approx(131072.0)


def test_weight_decay_is_beta_times_the_squared_norm():
    weights = [np.array([1.0, 2.0]), np.array([[3.0]])]
    assert float(weight_decay(weights, 0.1)) == pytest.approx(1.4)
    assert float(weight_decay(weights, 0.0)) == 0.0
