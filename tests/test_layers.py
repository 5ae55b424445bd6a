import keras
import numpy as np
import pytest
from keras import ops

from drcn_keras.layers import CenteredIdentity, RecursionWeighting


def test_identity_is_one_at_the_centre_tap_of_each_channel():
    kernel = ops.convert_to_numpy(CenteredIdentity()((3, 3, 2, 2)))
    expected = np.zeros((3, 3, 2, 2))
    expected[1, 1, 0, 0] = expected[1, 1, 1, 1] = 1.0
    np.testing.assert_array_equal(kernel, expected)


@pytest.mark.parametrize("shape", [(3, 3, 2, 4), (2, 3, 2, 2), (3, 4, 2, 2), (3, 3)])
def test_identity_refuses_a_kernel_without_a_centre_or_with_other_channels(shape):
    with pytest.raises(ValueError, match="odd, odd, channels, channels"):
        CenteredIdentity()(shape)


def test_weighting_starts_as_the_mean_and_is_neither_normalised_nor_softmaxed():
    layer = RecursionWeighting()
    images = [np.full((1, 1, 1, 1), value, "float32") for value in (1.0, 2.0, 6.0)]
    assert float(ops.squeeze(layer(images))) == pytest.approx(3.0)
    layer.recursion_weights.assign([1.0, -2.0, 3.0])
    assert float(ops.squeeze(layer(images))) == pytest.approx(1.0 - 4.0 + 18.0)


def test_weighting_has_one_trainable_weight_per_recursion():
    layer = RecursionWeighting()
    layer([np.zeros((1, 2, 2, 1), "float32")] * 5)
    assert [weight.shape for weight in layer.trainable_weights] == [(5,)]


def test_both_are_known_to_keras_by_name():
    for thing in (CenteredIdentity(), RecursionWeighting()):
        config = keras.saving.serialize_keras_object(thing)
        assert config["registered_name"] == f"drcn_keras>{type(thing).__name__}"
        assert type(keras.saving.deserialize_keras_object(config)) is type(thing)
