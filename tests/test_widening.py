import keras
import numpy as np
import pytest

from drcn_keras import DRCN
from drcn_keras.widening import widened


def grown(model, filters, recursions):
    """A DRCN of so many filters and recursions with the weights of `widened`."""
    network = DRCN(recursions=recursions, filters=filters)
    for name, weights in widened(model, filters, recursions).items():
        network.get_layer(name).set_weights(weights)
    return network


@pytest.mark.parametrize("filters", [4, 7, 8, 13])
def test_the_function_is_kept(random_drcn, filters):
    model = random_drcn(recursions=3, filters=4)
    image = np.random.default_rng(1).random((1, 20, 17, 1), dtype="float32")
    np.testing.assert_allclose(
        np.array(grown(model, filters, 3).reconstructions(image)), np.array(model.reconstructions(image)), atol=1e-6
    )


def test_more_recursions_of_the_same_filters_begin_with_the_same_bits(random_drcn):
    model = random_drcn(recursions=2, filters=4)
    deep = grown(model, 4, 5)
    image = np.random.default_rng(1).random((1, 20, 17, 1), dtype="float32")
    np.testing.assert_array_equal(np.array(deep.reconstructions(image))[:, :2], np.array(model.reconstructions(image)))
    np.testing.assert_array_equal(np.array(deep.ensemble_weights), [*np.array(model.ensemble_weights), 0, 0, 0])
    np.testing.assert_allclose(np.array(deep(image)), np.array(model(image)), atol=1e-6)


def test_the_copies_of_a_map_part_at_the_first_step(random_drcn):
    """Copies with equal weights would get equal gradients, and stay one map for ever."""
    model = random_drcn(filters=4)
    network = grown(model, 8, model.recursions)
    kernel = network.get_layer("embedding_1").get_weights()[0]
    np.testing.assert_array_equal(kernel[..., :4], kernel[..., 4:])
    network.compile(optimizer=keras.optimizers.SGD(0.01))
    network.alpha.assign(0.5)
    images = np.random.default_rng(2).random((4, 16, 16, 1), dtype="float32")
    network.train_on_batch(images, images[::-1])
    kernel = network.get_layer("embedding_1").get_weights()[0]
    assert np.abs(kernel[..., :4] - kernel[..., 4:]).max(axis=(0, 1, 2)).min() > 1e-6
