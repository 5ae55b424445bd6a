"""DRCN in Keras's own `fit`: the table of docs/keras.md, row by row, on every backend that the tests run under."""

import contextlib
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops
from PIL import Image

from drcn_keras import DRCN, AlphaAnnealing, load

ROOT = pathlib.Path(__file__).parent.parent
BACKEND = keras.backend.backend()
one_image = pytest.mark.skipif(BACKEND == "torch", reason="PyTorch's convolution fails on a batch of one image")


@pytest.fixture
def pairs():
    """Five ilr and hr, so that batches of two leave one over."""
    random = np.random.default_rng(0)
    ilr = random.random((5, 6, 7, 1), dtype="float32")
    return ilr, np.clip(ilr + random.normal(0, 0.1, ilr.shape), 0, 1).astype("float32")


def compiled(optimizer=None, alpha=0.5, seed=1, beta=1e-3, **kwargs):
    keras.utils.set_random_seed(seed)
    model = DRCN(recursions=2, filters=3, beta=beta)
    model.alpha.assign(alpha)
    model.compile(optimizer or keras.optimizers.SGD(0.01), **kwargs)
    return model


def weights_of(model):
    return [ops.convert_to_numpy(weight) for weight in model.trainable_weights]


def assert_equal(one, other, tolerance=1e-6):
    for first, second in zip(one, other, strict=True):
        np.testing.assert_allclose(first, second, rtol=0, atol=tolerance)


def loss_by_hand(model, ilr, hr, sample_weight=None):
    """The formula image by image in NumPy."""
    reconstructions = ops.convert_to_numpy(model.reconstructions(ilr)).astype("float64")
    ensemble = ops.convert_to_numpy(model(ilr)).astype("float64")
    alpha = float(ops.convert_to_numpy(model.alpha))
    total = 0.0
    for index in range(len(ilr)):
        recursions = [0.5 * np.sum((hr[index] - image) ** 2) for image in reconstructions[index]]
        error = alpha * np.mean(recursions) + (1 - alpha) * 0.5 * np.sum((hr[index] - ensemble[index]) ** 2)
        total += error * (1 if sample_weight is None else sample_weight[index]) / len(ilr)
    return total + model.beta * sum(np.sum(weight.astype("float64") ** 2) for weight in weights_of(model))


def mean_square(model, ilr, hr, weights=None):
    return np.average(((ops.convert_to_numpy(model(ilr)) - hr) ** 2).mean(axis=(1, 2, 3)), weights=weights)


# What is measured


@pytest.mark.parametrize("eagerly", [False, True])
def test_metrics_are_those_of_the_ensemble(pairs, eagerly):
    # A rate of 0 leaves the weights, so that every number can be taken again afterwards.
    ilr, hr = pairs
    model = compiled(
        keras.optimizers.SGD(0.0), metrics=["mse"], weighted_metrics=["mae"], run_eagerly=eagerly, jit_compile=False
    )
    history = model.fit(ilr, hr, batch_size=5, validation_data=(ilr[:2], hr[:2]), verbose=0).history
    assert history["mse"][0] == pytest.approx(mean_square(model, ilr, hr), rel=1e-5)
    assert history["val_mse"][0] == pytest.approx(mean_square(model, ilr[:2], hr[:2]), rel=1e-5)
    assert history["mae"][0] == pytest.approx(np.abs(ops.convert_to_numpy(model(ilr)) - hr).mean(), rel=1e-5)
    assert history["loss"][0] == pytest.approx(loss_by_hand(model, ilr, hr), rel=1e-5)
    assert history["val_loss"][0] == pytest.approx(loss_by_hand(model, ilr[:2], hr[:2]), rel=1e-5)


def test_evaluate_gives_loss_and_metrics(pairs):
    model = compiled(metrics=["mse"])
    loss, mse = model.evaluate(*pairs, batch_size=5, verbose=0)
    assert loss == pytest.approx(loss_by_hand(model, *pairs), rel=1e-5)
    assert mse == pytest.approx(mean_square(model, *pairs), rel=1e-5)
    with pytest.raises(ValueError, match="y must be given"):
        model.evaluate(pairs[0], verbose=0)


@pytest.mark.parametrize("shape", [(5,), (5, 1)])
def test_a_sample_weight_counts_each_image(pairs, shape):
    ilr, hr = pairs
    weights = np.array([0.0, 1.0, 2.0, 0.5, 3.0], "float32")
    model = compiled(keras.optimizers.SGD(0.0), weighted_metrics=["mse"])
    history = model.fit(ilr, hr, batch_size=5, sample_weight=weights.reshape(shape), verbose=0).history
    assert history["loss"][0] == pytest.approx(loss_by_hand(model, ilr, hr, weights), rel=1e-5)
    assert history["mse"][0] == pytest.approx(mean_square(model, ilr, hr, weights), rel=1e-5)
    assert model.evaluate(ilr, hr, batch_size=5, sample_weight=weights, verbose=0)[0] == pytest.approx(
        loss_by_hand(model, ilr, hr, weights), rel=1e-5
    )


@one_image
def test_an_image_of_weight_0_trains_nothing(pairs):
    ilr, hr = pairs
    one, other = compiled(), compiled()
    one.fit(ilr[:2], hr[:2], sample_weight=np.array([2.0, 0.0]), verbose=0)
    other.fit(ilr[:1], hr[:1], verbose=0)
    assert_equal(weights_of(one), weights_of(other))


# What is refused


@pytest.mark.parametrize("given", [{"loss": "mse"}, {"loss_weights": [1.0]}])
def test_a_loss_is_refused(given):
    with pytest.raises(ValueError, match=f"{next(iter(given))} must be left out: DRCN brings its own loss"):
        DRCN(recursions=1, filters=1).compile("adam", **given)


@pytest.mark.parametrize("shape", [(5, 1, 1, 1), (1, 6, 7, 1), (5, 6, 7), (5, 6, 1, 1), (5, 7, 6, 1)])
def test_an_hr_of_another_shape_is_refused(pairs, shape):
    batch = (pairs[0], np.zeros(shape, "float32"))
    with pytest.raises(ValueError, match=r"y \(the hr\) must be of the ilr's shape, \(5, 6, 7, 1\); received"):
        compiled().compute_loss(*batch)
    if shape[0] == 5:
        with pytest.raises(ValueError, match=r"y \(the hr\) must be of the ilr's shape"):
            compiled().fit(*batch, batch_size=5, verbose=0)


def test_one_channel_is_not_compared_with_three():
    model = DRCN(recursions=1, filters=1, channels=3)
    with pytest.raises(ValueError, match=r"of the ilr's shape, \(1, 4, 4, 3\); received \(1, 4, 4, 1\)"):
        model.compute_loss(np.zeros((1, 4, 4, 3), "float32"), np.zeros((1, 4, 4, 1), "float32"))


def test_whole_numbers_are_no_images(pairs):
    with pytest.raises(ValueError, match=r"y \(the hr\) must be floating point in \[0, 1\]; received 'uint8'"):
        compiled().compute_loss(pairs[0], (255 * pairs[1]).astype(np.uint8))


def test_a_sample_weight_for_each_pixel_is_refused(pairs):
    with pytest.raises(ValueError, match="sample_weight must be one number for each image"):
        compiled().compute_loss(*pairs, sample_weight=np.ones(pairs[0].shape, "float32"))


def test_a_class_weight_is_refused(pairs):
    with pytest.raises(ValueError, match="class_weight must be left out: images have no classes"):
        compiled().fit(*pairs, class_weight={0: 1.0}, verbose=0)


def test_hdf5_is_refused_before_anything_is_written(tmp_path):
    for suffix in ("h5", "hdf5"):
        with pytest.raises(ValueError, match=r"filepath must end in \.keras"):
            compiled().save(tmp_path / f"model.{suffix}")
    assert not list(tmp_path.iterdir())


def test_clone_model_is_refused():
    with pytest.raises(ValueError, match="clone_model would give a Functional without the loss"):
        keras.models.clone_model(compiled())


def test_quantize_is_refused():
    with pytest.raises(ValueError, match="Keras quantises no convolution"):
        compiled().quantize("int8")


@pytest.mark.parametrize("how", ["__call__", "predict_on_batch", "predict"])
def test_what_is_no_batch_of_images_is_refused(pairs, how):
    """An image of one channel alone would be taken for a batch of its rows, levels from 0 to 255 for brightness."""
    use = getattr(compiled(), how)
    with pytest.raises(ValueError, match=r"inputs must be \(batch, height, width, channels\); received \("):
        use(pairs[0][0])
    with pytest.raises(ValueError, match=r"inputs must be floating point in \[0, 1\]; received 'uint8'"):
        use((255 * pairs[0]).astype("uint8"))


def test_a_model_that_is_frozen_as_a_whole_is_measured_and_stays(pairs):
    model = compiled()
    model.trainable = False
    model.compile(keras.optimizers.SGD(0.01), metrics=["mse"])
    before = model.get_weights()
    warns = pytest.warns(UserWarning, match="does not have any trainable weights")
    with warns if BACKEND == "tensorflow" else contextlib.nullcontext():
        history = model.fit(*pairs, batch_size=5, verbose=0)
    assert_equal(model.get_weights(), before, 0)
    assert history.history["mse"][0] == pytest.approx(mean_square(model, *pairs), rel=1e-5)


def test_float16_is_refused():
    with pytest.raises(ValueError, match="dtype must be a policy without float16"):
        DRCN(recursions=1, filters=1, dtype="mixed_float16")


# alpha


def test_fit_warns_where_alpha_would_stay_1(pairs):
    model = compiled(alpha=1.0)
    with pytest.warns(UserWarning, match=r"its weights are not trained; callbacks=\[drcn_keras.AlphaAnnealing\(epoch"):
        model.fit(*pairs, epochs=2, verbose=0)
    with pytest.warns(UserWarning, match=r"not trained; model.alpha.assign\(0.5\) sets it"):
        model.fit(*pairs, verbose=0)


def test_alpha_annealing_trains_the_ensemble_without_a_warning(pairs):
    model = compiled(alpha=1.0)
    history = model.fit(*pairs, epochs=3, callbacks=[AlphaAnnealing(epochs=2)], verbose=0).history
    assert history["alpha"] == [1.0, 0.5, 0.0]
    assert not np.allclose(ops.convert_to_numpy(model.ensemble_weights), 0.5, atol=1e-7)


# What the optimiser does


def test_frozen_layers_stay_as_they_are(pairs):
    model = compiled()
    model.get_layer("inference").trainable = False
    model.compile("adam")
    before = model.get_layer("inference").get_weights()
    others = model.get_layer("embedding_1").get_weights()
    model.fit(*pairs, verbose=0)
    assert_equal(model.get_layer("inference").get_weights(), before, 0)
    assert not np.array_equal(model.get_layer("embedding_1").get_weights()[0], others[0])


def test_accumulated_gradients_equal_one_large_batch(pairs):
    ilr, hr = pairs[0][:4], pairs[1][:4]
    one = compiled(keras.optimizers.SGD(0.01, gradient_accumulation_steps=2))
    other = compiled(keras.optimizers.SGD(0.01))
    one.fit(ilr, hr, batch_size=2, shuffle=False, verbose=0)
    other.fit(ilr, hr, batch_size=4, shuffle=False, verbose=0)
    assert_equal(weights_of(one), weights_of(other))


def test_moving_averages_are_what_stays(pairs):
    momentum = 0.75
    one = compiled(keras.optimizers.SGD(0.01, use_ema=True, ema_momentum=momentum))
    other = compiled()
    average = None
    for _ in range(3):
        other.fit(*pairs, batch_size=5, shuffle=False, verbose=0)
        now = weights_of(other)
        average = (
            now if average is None else [momentum * a + (1 - momentum) * b for a, b in zip(average, now, strict=True)]
        )
    one.fit(*pairs, batch_size=5, epochs=3, shuffle=False, verbose=0)
    assert_equal(weights_of(one), average)


@pytest.mark.parametrize("clip", ["global_clipnorm", "clipnorm", "clipvalue"])
def test_clipping_bounds_the_step(pairs, clip):
    model = compiled(keras.optimizers.SGD(1.0, **{clip: 1e-3}))
    before = weights_of(model)
    model.fit(*pairs, batch_size=5, verbose=0)
    steps = [after - start for after, start in zip(weights_of(model), before, strict=True)]
    largest = {
        "global_clipnorm": np.sqrt(sum(np.sum(step**2) for step in steps)),
        "clipnorm": max(np.sqrt(np.sum(step**2)) for step in steps),
        "clipvalue": max(np.abs(step).max() for step in steps),
    }[clip]
    assert largest == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.skipif(BACKEND == "torch", reason="Keras has no steps_per_execution on PyTorch")
def test_several_steps_in_one_execution(pairs):
    one, other = compiled(steps_per_execution=2), compiled()
    for model in (one, other):
        model.fit(*pairs, batch_size=2, epochs=2, shuffle=False, verbose=0)
        assert int(ops.convert_to_numpy(model.optimizer.iterations)) == 6
    assert_equal(weights_of(one), weights_of(other))


def test_train_on_batch_and_test_on_batch(pairs):
    one, other = compiled(metrics=["mse"]), compiled()
    expected = loss_by_hand(one, *pairs)
    assert one.test_on_batch(*pairs, return_dict=True)["loss"] == pytest.approx(expected, rel=1e-5)
    assert one.train_on_batch(*pairs, return_dict=True)["loss"] == pytest.approx(expected, rel=1e-5)
    other.fit(*pairs, batch_size=5, verbose=0)
    assert_equal(weights_of(one), weights_of(other))


# What is read


class Batches(keras.utils.PyDataset):
    def __init__(self, pairs):
        super().__init__()
        self.pairs = pairs

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return tuple(images[2 * index : 2 * index + 2] for images in self.pairs)


def tf_data(pairs):
    tf = pytest.importorskip("tensorflow", reason="tf.data is TensorFlow's")
    return tf.data.Dataset.from_tensor_slices(pairs).batch(2)


def generator(pairs):
    while True:
        yield from (Batches(pairs)[index] for index in range(3))


@one_image
@pytest.mark.parametrize("source", [tf_data, Batches, generator])
def test_data_of_ones_own(pairs, source):
    model, other = compiled(), compiled()
    model.fit(source(pairs), steps_per_epoch=3, shuffle=False, verbose=0)
    other.fit(*pairs, batch_size=2, shuffle=False, verbose=0)
    assert_equal(weights_of(model), weights_of(other))


def test_sizes_that_tf_data_does_not_tell_are_checked_all_the_same(pairs):
    tf = pytest.importorskip("tensorflow", reason="tf.data is TensorFlow's")
    if BACKEND != "tensorflow":
        pytest.skip("the other backends know every size")
    unknown = tf.TensorSpec((None, None, None, None), tf.float32)
    for hr, fits in ((pairs[1], True), (pairs[1][:, :1, :1], False)):
        data = tf.data.Dataset.from_generator(lambda hr=hr: [(pairs[0], hr)], output_signature=(unknown, unknown))
        if fits:
            compiled().fit(data.repeat(), steps_per_epoch=1, shuffle=False, verbose=0)
            continue
        with pytest.raises(tf.errors.InvalidArgumentError, match="ilr and hr differ in shape"):
            compiled().fit(data.repeat(), steps_per_epoch=1, shuffle=False, verbose=0)


# Callbacks


class Interrupted(Exception):
    pass


def interrupt(epoch):
    def stop(now, logs):
        if now == epoch:
            raise Interrupted

    return keras.callbacks.LambdaCallback(on_epoch_begin=stop)


def test_backup_and_restore_goes_on_where_it_was(pairs, tmp_path):
    def callbacks():
        return [AlphaAnnealing(epochs=3), keras.callbacks.BackupAndRestore(tmp_path / "backup")]

    settings = {"batch_size": 5, "epochs": 4, "shuffle": False, "verbose": 0}
    whole = compiled("adam", alpha=1.0)
    whole.fit(*pairs, callbacks=[AlphaAnnealing(epochs=3)], **settings)
    with pytest.raises(Interrupted):
        compiled("adam", alpha=1.0).fit(*pairs, callbacks=[*callbacks(), interrupt(2)], **settings)
    resumed = compiled("adam", alpha=1.0, seed=7)
    history = resumed.fit(*pairs, callbacks=callbacks(), **settings)
    assert history.epoch == [2, 3]
    assert_equal(weights_of(resumed), weights_of(whole))


def test_model_checkpoint_keeps_the_best(pairs, tmp_path):
    model = compiled(metrics=["mse"])
    best = keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", monitor="val_mse", save_best_only=True)
    weights = keras.callbacks.ModelCheckpoint(tmp_path / "last.weights.h5", save_weights_only=True)
    history = model.fit(*pairs, epochs=3, validation_data=pairs, callbacks=[best, weights], verbose=0).history
    kept = load(tmp_path / "best.keras")
    assert mean_square(kept, *pairs) == pytest.approx(min(history["val_mse"]), rel=1e-5)
    again = compiled(seed=7)
    again.load_weights(tmp_path / "last.weights.h5")
    assert_equal(weights_of(again), weights_of(model), 0)


def test_early_stopping_ends_the_run_and_restores_the_best(pairs):
    model = compiled(keras.optimizers.SGD(1e-4), metrics=["mse"])
    # As if a large error were good: what is learnt makes the validation worse from the first epoch on.
    rule = keras.callbacks.EarlyStopping(monitor="val_mse", mode="max", patience=1, restore_best_weights=True)
    history = model.fit(*pairs, epochs=9, validation_data=pairs, callbacks=[rule], verbose=0).history
    assert len(history["val_mse"]) < 9
    assert mean_square(model, *pairs) == pytest.approx(max(history["val_mse"]), rel=1e-5)


# Saving and copying


def test_frozen_layers_and_dtype_survive_the_file(pairs, tmp_path):
    model = DRCN(recursions=2, filters=3, dtype="mixed_bfloat16")
    model.get_layer("inference").trainable = False
    model.get_layer("ensemble").trainable = False
    model.save(tmp_path / "model.keras")
    for again in (load(tmp_path / "model.keras"), DRCN.from_config(model.get_config())):
        assert [layer.name for layer in again.layers if not layer.trainable] == ["inference", "ensemble"]
        assert len(again.trainable_weights) == 8
        policies = {layer.name: layer.dtype_policy.name for layer in again.layers}
        inner = {"embedding_2", "inference", "reconstruction_1", "reconstruction_2"}
        assert {name for name, policy in policies.items() if policy == "mixed_bfloat16"} == inner
    model.trainable = False
    assert not DRCN.from_config(model.get_config()).trainable_weights


def test_the_dtype_that_keras_has_as_default_survives_the_file(tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = DRCN(recursions=1, filters=1)
    finally:
        keras.config.set_dtype_policy("float32")
    assert DRCN.from_config(model.get_config()).get_layer("inference").dtype_policy.name == "mixed_bfloat16"


def test_a_copy_in_another_dtype_has_equal_weights(pairs):
    model = compiled()
    assert model.computing_in("float32") is model
    twin = model.computing_in("mixed_bfloat16")
    assert_equal(twin.get_weights(), model.get_weights(), 0)
    difference = np.abs(ops.convert_to_numpy(twin(pairs[0])) - ops.convert_to_numpy(model(pairs[0]))).max()
    assert 0 < difference < 0.05


def test_pickle_and_deepcopy(pairs):
    import copy
    import pickle

    model = compiled()
    model.fit(*pairs, verbose=0)
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert isinstance(twin, DRCN)
        assert_equal(twin.get_weights(), model.get_weights(), 0)


def test_channels_first_as_kerass_default_changes_nothing(pairs):
    expected = ops.convert_to_numpy(compiled()(pairs[0]))
    keras.config.set_image_data_format("channels_first")
    try:
        np.testing.assert_array_equal(ops.convert_to_numpy(compiled()(pairs[0])), expected)
    finally:
        keras.config.set_image_data_format("channels_last")


LOOKED_FOR = "import drcn_keras, importlib.util; importlib.util.find_spec('keras'); import keras"


@pytest.mark.parametrize("order", ["import drcn_keras, keras", "import keras, drcn_keras", LOOKED_FOR])
def test_keras_itself_loads_a_model_once_the_package_is_imported(order, tmp_path):
    compiled().save(tmp_path / "model.keras")
    code = f"{order}; print(type(keras.saving.load_model({str(tmp_path / 'model.keras')!r})).__name__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "DRCN"


# The page


def test_every_row_of_the_table_names_its_test():
    rows = [line.split("|") for line in (ROOT / "docs" / "keras.md").read_text().splitlines() if line.startswith("| `")]
    assert len(rows) > 20
    named = [name for row in rows for name in re.findall(r"`(test_\w+)`", row[-2])]
    assert len(named) >= len(rows)
    tests = "".join((ROOT / "tests" / f"test_{name}.py").read_text() for name in ("distributed_model", "process"))
    assert [name for name in named if f"def {name}(" not in tests] == []


@pytest.mark.parametrize("page", ["README.md", "docs/keras.md"])
def test_the_recipe_runs_as_it_is_written(page, tmp_path, monkeypatch, photographs):
    (recipe,) = re.findall(r"```python\n(import keras\n.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert len(recipe.strip().splitlines()) <= 10
    (tmp_path / "photos").mkdir()
    with Image.open(photographs / "coffee.png") as photo:
        photo.convert("RGB").crop((150, 80, 270, 200)).save(tmp_path / "photos" / "coffee.png")
    monkeypatch.chdir(tmp_path)
    # The same lines on a network and a number of patches that take a second.
    for large, small in (("filters=32", "filters=2"), ("recursions=9", "recursions=2"), ("=2000", "=32")):
        assert large in recipe
        recipe = recipe.replace(large, small)
    exec(recipe, {})
    assert load("mine.keras").filters == 2
