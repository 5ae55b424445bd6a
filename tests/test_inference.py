"""The folded inference graph against the network that it is made from."""

import numpy as np
import pytest
from keras import ops

from drcn_keras.inference import inference_model, used_recursions


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("recursions", [1, 4])
@pytest.mark.parametrize("size", [(1, 1), (9, 12)])
def test_folded_equals_unfolded(random_drcn, channels, recursions, size):
    model = random_drcn(recursions=recursions, channels=channels)
    weights = ops.convert_to_numpy(model.ensemble_weights)
    assert abs(weights.sum() - 1) > 0.01, "the skip's and the bias's factor would go unseen"
    assert np.abs(model.get_layer("reconstruction_2").get_weights()[1]).min() > 0.001
    ilr = np.random.default_rng(0).random((2, *size, channels), np.float32)
    np.testing.assert_allclose(
        ops.convert_to_numpy(inference_model(model)(ilr)), ops.convert_to_numpy(model(ilr)), atol=1e-5
    )


@pytest.mark.parametrize("split_identity", [False, True])
@pytest.mark.parametrize(
    ("weights", "used", "inferences"),
    [
        ([0.5, 0, 0.2, 0, 0], [1, 3], 3),
        ([0, 0, 0, 0, 1.1], [5], 5),
        ([0.7, 0, 0, 0, 1e-30], [1, 5], 5),
        ([0, 0, 0, 0, 0], [1], 1),
    ],
)
def test_a_thin_ensemble_computes_what_it_uses(random_drcn, weights, used, inferences, split_identity):
    model = random_drcn(recursions=5)
    model.ensemble_weights.assign(weights)
    ilr = np.random.default_rng(0).random((1, 9, 12, 1), np.float32)
    thin = inference_model(model, split_identity=split_identity)
    np.testing.assert_allclose(ops.convert_to_numpy(thin(ilr)), ops.convert_to_numpy(model(ilr)), atol=1e-5)
    assert used_recursions(model) == used
    calls = [node.operation.name for depth in thin._nodes_by_depth.values() for node in depth]
    assert calls.count("inference") == inferences
    assert calls.count("reconstruction_1") == len(used)


def test_folding_copies_and_leaves_the_original_alone(random_drcn):
    model = random_drcn()
    before = [weight.copy() for weight in model.get_weights()]
    folded = inference_model(model)
    folded.set_weights([np.zeros_like(weight) for weight in folded.get_weights()])
    for weight, kept in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, kept)


def test_one_recursive_kernel(random_drcn):
    # The shared convolution is one layer: the graph's weights do not grow with D but for the ensemble's.
    few, many = (inference_model(random_drcn(recursions=recursions)) for recursions in (2, 5))
    assert many.count_params() - few.count_params() == 3
