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


def test_no_two_maps_are_alike_and_the_added_ones_are_read_from_the_first_step_on(random_drcn):
    """Maps with equal weights would get equal gradients, and stay one map for ever."""
    model = random_drcn(filters=4)
    network = grown(model, 9, model.recursions)
    maps = network.get_layer("embedding_1").get_weights()[0].reshape(9, 9)
    assert np.abs(np.corrcoef(maps.T) - np.eye(9)).max() < 0.999
    network.compile(optimizer=keras.optimizers.SGD(0.01))
    network.alpha.assign(0.5)
    images = np.random.default_rng(2).random((4, 16, 16, 1), dtype="float32")
    network.train_on_batch(images, images[::-1])
    for layer in ("embedding_2", "inference", "reconstruction_1", "reconstruction_2"):
        read = network.get_layer(layer).get_weights()[0][:, :, 4:]
        assert np.abs(read[..., :4]).max(axis=(0, 1, 3)).min() > 0, layer


def test_an_added_map_is_a_mixture_of_its_layers_maps_with_a_norm_of_a_quarter(random_drcn):
    model = random_drcn(filters=4)
    kernel, bias = (np.float64(weight) for weight in model.get_layer("inference").get_weights())
    wide, wide_bias = (np.float64(weight) for weight in widened(model, 6, model.recursions)["inference"])
    np.testing.assert_array_equal(wide[:, :, :4, :4], kernel)
    np.testing.assert_array_equal(wide[:, :, 4:], 0)
    for added in (4, 5):
        mixture, *_ = np.linalg.lstsq(kernel.reshape(-1, 4), wide[:, :, :4, added].ravel(), rcond=None)
        np.testing.assert_allclose(kernel @ mixture, wide[:, :, :4, added], atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(mixture), 0.25, rtol=1e-5)
        np.testing.assert_allclose(wide_bias[added], bias @ mixture, atol=1e-6)
