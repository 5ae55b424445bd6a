import json
import os
import zipfile

import keras
import numpy as np
import pytest
from keras import ops

from drcn_keras import DRCN, load
from drcn_keras.errors import UserError


@pytest.fixture
def images():
    return np.random.default_rng(0).random((2, 9, 7, 1)).astype("float32")


def small(recursions=3, filters=4, **kwargs):
    keras.utils.set_random_seed(1)
    return DRCN(recursions=recursions, filters=filters, **kwargs)


def convolve(image, kernel, bias):
    """A 3x3 zero-padded correlation in NumPy: (height, width, in) to (height, width, out)."""
    height, width, _ = image.shape
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    result = np.zeros((height, width, kernel.shape[-1])) + bias
    for row in range(3):
        for column in range(3):
            result += padded[row : row + height, column : column + width] @ kernel[row, column]
    return result


def forward(model, ilr):
    """The paper's equations in NumPy, from the model's weights. Returns the D reconstructions of one image."""
    weights = {
        name: model.get_layer(name).get_weights()
        for name in ("embedding_1", "embedding_2", "inference", "reconstruction_1", "reconstruction_2")
    }

    def relu(name, features):
        return np.maximum(convolve(features, *weights[name]), 0.0)

    features = relu("embedding_2", relu("embedding_1", ilr))
    outputs = []
    for _ in range(model.recursions):
        features = relu("inference", features)
        outputs.append(convolve(relu("reconstruction_1", features), *weights["reconstruction_2"]) + ilr)
    return np.stack(outputs)


def disturbed(model):
    """Gives every weight, the zeros and the identity too, a random part."""
    random = np.random.default_rng(2)
    for weight in model.trainable_weights:
        weight.assign(weight + 0.1 * random.standard_normal(weight.shape))
    return model


@pytest.mark.parametrize("channels", [1, 3])
def test_model_computes_the_papers_equations(channels):
    model = disturbed(small(channels=channels))
    ilr = np.random.default_rng(0).random((2, 9, 7, channels)).astype("float32")
    expected = np.stack([forward(model, image.astype("float64")) for image in ilr])
    reconstructions = ops.convert_to_numpy(model.reconstructions(ilr))
    assert reconstructions.shape == (2, 3, 9, 7, channels)
    np.testing.assert_allclose(reconstructions, expected, atol=1e-5)
    weights = ops.convert_to_numpy(model.ensemble_weights)
    np.testing.assert_allclose(
        ops.convert_to_numpy(model(ilr)), np.einsum("d,bdhwc->bhwc", weights, expected), atol=1e-5
    )


def test_parameter_counts():
    assert DRCN().count_params() == 1_775_121
    assert DRCN(recursions=17).count_params() == 1_775_122
    assert DRCN(recursions=9, filters=32).count_params() == 28_362
    assert DRCN(recursions=9, filters=64).count_params() == 112_010
    # The network's own, without the loss's alpha: 9*4+4, three of 9*16+4, 9*4+1 and w.
    assert small().count_params() == 40 + 3 * 148 + 37 + 3


def test_every_recursion_is_deeper_than_the_one_before(images):
    # Seen elsewhere: D "recursions" that all read H_0, so that each is of depth 1.
    model = disturbed(small(recursions=4))
    impulse = np.zeros((1, 31, 31, 1), "float32")
    base = ops.convert_to_numpy(model.reconstructions(impulse))[0]
    impulse[0, 15, 15, 0] = 1.0
    reach = np.abs(ops.convert_to_numpy(model.reconstructions(impulse))[0] - base)[:, 15, :, 0] > 1e-9
    # Two embedding, d inference and two reconstruction convolutions see d + 4 pixels to each side.
    assert [int(row.sum() - 1) // 2 for row in reach] == [5, 6, 7, 8]
    assert model.halo == 8


def test_an_untrained_recursion_hands_features_through_unchanged():
    features = np.random.default_rng(0).random((1, 6, 5, 4)).astype("float32")
    model = small()
    np.testing.assert_array_equal(ops.convert_to_numpy(model.get_layer("inference")(features)), features)


def test_initialisation_reaches_the_kernels():
    # Seen elsewhere: an initialiser that was applied to nothing.
    model = DRCN(recursions=2, filters=64)
    for name, fan_in in (("embedding_2", 576), ("reconstruction_1", 576)):
        kernel, bias = model.get_layer(name).get_weights()
        assert np.std(kernel) == pytest.approx(np.sqrt(2 / fan_in), rel=0.03)
        assert not bias.any()


def test_the_skip_is_in_every_supervised_output(images):
    model = small()
    kernel, bias = model.get_layer("reconstruction_2").get_weights()
    model.get_layer("reconstruction_2").set_weights([0 * kernel, bias])
    np.testing.assert_allclose(
        ops.convert_to_numpy(model.reconstructions(images)), np.repeat(images[:, None], 3, axis=1), atol=1e-7
    )


def test_the_residual_can_be_negative(images):
    # Seen elsewhere: a ReLU on the last convolution.
    model = small()
    kernel, bias = model.get_layer("reconstruction_2").get_weights()
    model.get_layer("reconstruction_2").set_weights([0 * kernel, bias - 5.0])
    np.testing.assert_allclose(ops.convert_to_numpy(model(images)), images - 5.0, atol=1e-5)


def test_ensemble_weights_are_trained_and_start_at_one_over_d(images):
    model = small(recursions=4)
    np.testing.assert_allclose(ops.convert_to_numpy(model.ensemble_weights), 0.25)
    model.get_layer("inference").kernel.assign(disturbed(small(recursions=4)).get_layer("inference").kernel)
    model.alpha.assign(0.0)
    model.compile(optimizer=keras.optimizers.SGD(1e-3))
    model.fit(images, 1.0 - images, verbose=0)
    assert len(set(ops.convert_to_numpy(model.ensemble_weights).tolist())) == 4


@pytest.mark.filterwarnings("ignore:alpha is 1")
def test_alpha_is_seen_by_a_step_that_was_already_compiled(images):
    # A Python float would be frozen into the traced graph.
    model = small(beta=0.0)
    model.compile(optimizer=keras.optimizers.SGD(1e-3))
    model.fit(images, 1.0 - images, verbose=0)
    for alpha, moved in ((1.0, False), (0.0, True)):
        # With alpha 1 the ensemble is not in the loss, so its weights get no gradient.
        before = ops.convert_to_numpy(model.ensemble_weights)
        model.alpha.assign(alpha)
        model.fit(images, 1.0 - images, verbose=0)
        assert bool(np.any(ops.convert_to_numpy(model.ensemble_weights) != before)) is moved


@pytest.mark.parametrize("size", [(1, 1), (1, 8), (5, 2)])
def test_any_size(size):
    model = disturbed(small())
    image = np.random.default_rng(0).random((1, *size, 1)).astype("float32")
    expected = np.tensordot(ops.convert_to_numpy(model.ensemble_weights), forward(model, image[0].astype("float64")), 1)
    np.testing.assert_allclose(ops.convert_to_numpy(model(image))[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("recursions", 0),
        ("recursions", 1.5),
        ("recursions", True),
        ("filters", 0),
        ("channels", 2),
        ("scale", 5),
        ("scale", 2.0),
        ("beta", -1),
        ("beta", "0.1"),
        ("beta", None),
        ("beta", float("inf")),
    ],
)
def test_arguments_out_of_range_are_named(argument, value):
    with pytest.raises(ValueError, match=f"{argument} must be .*received {value!r}"):
        DRCN(**{argument: value})


def test_numpys_numbers_are_as_good_as_pythons(tmp_path):
    model = DRCN(recursions=np.int64(2), filters=np.int32(3), beta=np.float32(0.5))
    assert [type(model.get_config()[name]) for name in ("recursions", "filters", "beta")] == [int, int, float]
    model.save(tmp_path / "model.keras")
    assert load(tmp_path / "model.keras").filters == 3


def test_saved_file_restores_weights_alpha_optimiser_and_scale(images, tmp_path):
    model = small(scale=3, beta=0.5)
    model.compile(optimizer=keras.optimizers.SGD(1e-3, momentum=0.9))
    model.alpha.assign(0.25)
    model.fit(images, 1.0 - images, verbose=0)
    path = str(tmp_path / "model.keras")
    model.save(path)
    loaded = load(path)
    assert (loaded.scale, loaded.recursions, loaded.filters, loaded.channels, loaded.beta) == (3, 3, 4, 1, 0.5)
    assert float(ops.convert_to_numpy(loaded.alpha)) == 0.25
    np.testing.assert_array_equal(ops.convert_to_numpy(loaded(images)), ops.convert_to_numpy(model(images)))
    for ours, theirs in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(ours), ops.convert_to_numpy(theirs))
    for each in (model, loaded):
        each.fit(images, 1.0 - images, verbose=0)
    np.testing.assert_allclose(
        ops.convert_to_numpy(loaded(images)), ops.convert_to_numpy(model(images)), rtol=1e-6, atol=1e-6
    )


# Parameters by hand: 27*F*F + 22*F + 1 + D for one channel.
SIZES_BEYOND_BOUNDS = [
    ({"recursions": 10**6}, "1,000,000 recursions of 4 filters, 1,000,521 parameters"),
    ({"filters": 10**5}, "3 recursions of 100,000 filters, 270,002,200,004 parameters"),
    ({"filters": 1_025}, "3 recursions of 1,025 filters, 28,389,429 parameters"),
]


def changed(path, compile_config=None, **config):
    """A copy of a model file whose config.json says something else. Returns its path."""
    target = path.replace(".keras", ".changed.keras")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as file:
        for name in source.namelist():
            content = source.read(name)
            if name == "config.json":
                content = json.loads(content)
                content["config"].update(config)
                content["compile_config"] = compile_config
                content = json.dumps(content)
            file.writestr(name, content)
    return target


class TestLoadRefuses:
    def test_a_missing_file(self, tmp_path):
        with pytest.raises(UserError, match=r"no model .*none.keras"):
            load(str(tmp_path / "none.keras"))

    def test_a_file_that_is_no_zip(self, tmp_path):
        path = tmp_path / "text.keras"
        path.write_text("hello")
        with pytest.raises(UserError, match="not a readable DRCN model"):
            load(str(path))

    def test_another_keras_model(self, tmp_path):
        path = str(tmp_path / "dense.keras")
        keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(path)
        with pytest.raises(UserError, match="holds a Sequential, not a DRCN"):
            load(path)

    def test_a_lambda_that_could_run_code(self, tmp_path):
        path = str(tmp_path / "lambda.keras")
        keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x + 1)]).save(path)
        with pytest.raises(UserError, match="holds a Sequential, not a DRCN"):
            load(path)

    def test_a_lambda_inside_a_drcn(self, tmp_path):
        path = str(tmp_path / "lambda.keras")
        small().save(path)
        code = keras.saving.serialize_keras_object(keras.layers.Lambda(lambda x: x + 1))
        with pytest.raises(UserError, match="not a readable DRCN model"):
            load(changed(path, compile_config={"optimizer": "adam", "metrics": [code]}))

    def test_a_truncated_file(self, tmp_path):
        path = tmp_path / "model.keras"
        small().save(str(path))
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(UserError, match="not a readable DRCN model"):
            load(str(path))

    def test_nan_weights(self, tmp_path):
        model = small()
        model.ensemble_weights.assign([1.0, np.nan, 1.0])
        path = str(tmp_path / "model.keras")
        model.save(path)
        with pytest.raises(UserError, match=r"NaN or infinity in .*recursion_weights"):
            load(path)

    def test_a_configuration_out_of_range(self, tmp_path):
        path = str(tmp_path / "model.keras")
        small().save(path)
        with pytest.raises(UserError, match="recursions must be a whole number >= 1"):
            load(changed(path, recursions=0))

    @pytest.mark.parametrize(("size", "received"), SIZES_BEYOND_BOUNDS)
    def test_a_file_that_asks_for_too_much_before_it_is_built(self, tmp_path, size, received):
        # A million recursions would be built for hours.
        path = str(tmp_path / "model.keras")
        small().save(path)
        with pytest.raises(UserError, match=f"asks for {received}; at most 256, 1,024 and 100,000,000 are loaded"):
            load(changed(path, **size))

    def test_a_config_that_would_fill_the_memory(self, tmp_path):
        path = str(tmp_path / "model.keras")
        small().save(path)
        with pytest.raises(UserError, match=r"config\.json has more than 1000000 bytes"):
            load(changed(path, name="x" * 10**6))

    def test_a_pipe(self, tmp_path):
        path = str(tmp_path / "pipe.keras")
        os.mkfifo(path)
        with pytest.raises(UserError, match="is no regular file"):
            load(path)


def test_a_network_beyond_the_bounds_is_loaded_when_asked_for(tmp_path):
    path = str(tmp_path / "deep.keras")
    small(recursions=257, filters=1).save(path)
    with pytest.raises(UserError, match=r"asks for 257 recursions of 1 filters, 307 parameters"):
        load(path)
    assert load(path, any_size=True).recursions == 257


def test_one_network_of_several_scales(tmp_path):
    model = DRCN(recursions=2, filters=3, scale=[2, 4])
    assert (model.scales, model.scale) == ((2, 4), None)
    model.save(tmp_path / "several.keras")
    again = load(tmp_path / "several.keras")
    assert again.scales == (2, 4)
    twin = again.at(4)
    assert (twin.scales, twin.scale) == ((4,), 4)
    image = np.random.default_rng(0).random((1, 5, 6, 1)).astype(np.float32)
    assert np.array_equal(ops.convert_to_numpy(twin(image)), ops.convert_to_numpy(again(image)))
    assert twin.at(4) is twin
    with pytest.raises(ValueError, match="scale must be one of the model's"):
        again.at(3)


@pytest.mark.parametrize("scale", [(), (3, 2), (2, 2), (2, 5), "23", (2, True)])
def test_scales_that_cannot_be(scale):
    with pytest.raises(ValueError, match="scale must be 2, 3 or 4, or several"):
        DRCN(recursions=1, filters=1, scale=scale)
