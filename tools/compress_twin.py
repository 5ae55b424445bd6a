"""Fine-tunes a DRCN under a compression, in tf_keras, where tensorflow-model-optimization works.

A process of its own, started by tools/compress.py: `python compress_twin.py REQUEST.npz RESULT.npz`. Both files are
arrays and one JSON string; nothing else passes between the two Keras versions.
"""

import json
import math
import os
import sys

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras import quantize_wrapper
from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import default_8bit_quantizers
from tqdm import tqdm

from drcn_keras.data import PatchStream, load_pairs
from drcn_keras.export import names

TOLERANCE = 1e-5


class Ranged(tf_keras.layers.Layer):
    """A fake quantisation to 8 bit with a fixed range of its own; without a range it passes its input on."""

    def __init__(self, bounds=None, **kwargs):
        super().__init__(**kwargs)
        self.bounds = bounds

    def call(self, inputs):
        return tf.quantization.fake_quant_with_min_max_args(inputs, *self.bounds) if self.bounds else inputs

    def get_config(self):
        return {**super().get_config(), "bounds": self.bounds}


class KernelOnly(tfmot.quantization.keras.QuantizeConfig):
    """8 bit per output channel for the kernel; activations have their `Ranged` layers."""

    def get_weights_and_quantizers(self, layer):
        return [(layer.kernel, default_8bit_quantizers.Default8BitConvWeightsQuantizer())]

    def get_activations_and_quantizers(self, layer):
        return []

    def set_quantize_weights(self, layer, quantize_weights):
        layer.kernel = quantize_weights[0]

    def set_quantize_activations(self, layer, quantize_activations):
        pass

    def get_output_quantizers(self, layer):
        return []

    def get_config(self):
        return {}


class Ensemble(tf_keras.layers.Layer):
    """sum_d w_d * y_d over the stacked reconstructions (batch, D, ...)."""

    def build(self, input_shape):
        self.recursion_weights = self.add_weight(name="recursion_weights", shape=(input_shape[1],))
        # Sets `built`: a second build would throw the weights away.
        super().build(input_shape)

    def call(self, inputs):
        return tf.einsum("bdhwc,d->bhwc", inputs, self.recursion_weights)


def build_twin(filters, channels, used, ranges):
    """The training graph: ilr -> [stacked reconstructions, ensemble]; the identity is out of the recursion.

    Args:
        filters, channels: of the DRCN.
        used: the recursions that its ensemble draws on, sorted list of numbers from 1; only they are reconstructed.
        ranges: dict of tensor name to (low, high); tensors that are missing are not quantised.

    Returns:
        tf_keras.Model. Layers and fake quantisers bear the names that the exporter gives to its tensors.
    """

    def conv(units, name, activation=None):
        return tf_keras.layers.Conv2D(units, 3, padding="same", activation=activation, name=name)

    def ranged(features, name):
        return Ranged(ranges.get(name), name=f"{name}_range")(features)

    ilr = tf_keras.Input((None, None, channels), name="ilr")
    features = ilr
    for name in (names.EMBEDDING_1, names.EMBEDDING_2):
        features = ranged(conv(filters, name, "relu")(features), names.tensor(name, 1))
    inference = conv(filters, names.INFERENCE)
    reconstruct, project = conv(filters, names.RECONSTRUCTION_1, "relu"), conv(channels, names.RECONSTRUCTION_2)
    outputs = []
    for d in range(1, used[-1] + 1):
        change = ranged(inference(features), names.tensor(names.INFERENCE, d))
        features = tf_keras.layers.Add(name=f"add_{d}")([features, change])
        features = ranged(tf_keras.layers.ReLU(name=f"relu_{d}")(features), names.tensor(names.STATE, d))
        if d not in used:
            continue
        # The exporter counts the reconstructions, not the recursions that they are of.
        name = names.tensor(names.RECONSTRUCTION_1, len(outputs) + 1)
        residual = project(ranged(reconstruct(features), name))
        outputs.append(tf_keras.layers.Add(name=f"skip_{d}")([residual, ilr]))
    stacked = tf_keras.layers.Lambda(lambda images: tf.stack(images, axis=1), name="stack")(outputs)
    return tf_keras.Model(ilr, [stacked, Ensemble(name=names.ENSEMBLE)(stacked)])


def load_weights(twin, arrays):
    """Puts the DRCN's weights, as arrays by layer name, into a twin."""
    for name in names.CONVOLUTIONS:
        twin.get_layer(name).set_weights([arrays[names.kernel(name)], arrays[names.bias(name)]])
    twin.get_layer(names.ENSEMBLE).set_weights([arrays[names.ENSEMBLE]])


def check_equality(twin, arrays):
    """Ends with an error unless the twin answers as the Keras 3 model did.

    Args:
        twin: from `build_twin`, without ranges.
        arrays: with "probe" (ilr), "probe_stacked" and "probe_ensemble" (that model's outputs).

    Returns:
        The largest difference.
    """
    received = twin.predict(arrays["probe"], verbose=0)
    expected = (arrays["probe_stacked"], arrays["probe_ensemble"])
    difference = max(float(np.max(np.abs(a - b))) for a, b in zip(received, expected, strict=True))
    if not difference <= TOLERANCE:
        sys.exit(f"the tf_keras twin differs from the model by {difference:.2g}; expected at most {TOLERANCE:g}")
    return difference


def wrap_layers(twin, wrap):
    """A clone of the twin, weights included, with the heavy layers wrapped.

    Returns:
        (model, kernels): kernels holds these layers' own variables by layer name, which wrappers hide.
    """
    kernels = {}

    def clone(layer):
        fresh = layer.__class__.from_config(layer.get_config())
        if layer.weights:
            fresh.build(layer.get_input_shape_at(0))
            fresh.set_weights(layer.get_weights())
        if layer.name not in names.HEAVY:
            return fresh
        kernels[layer.name] = fresh.kernel
        return wrap(fresh)

    return tf_keras.models.clone_model(twin, clone_function=clone), kernels


def convolution(model, name):
    """A layer of that name, out of its wrapper if it has one."""
    for layer in model.layers:
        inner = getattr(layer, "layer", layer)
        if inner.name == name:
            return inner
    raise KeyError(name)


def fine_tune(model, batches, settings, after_step=None, callback=None):
    """Adam on the annealed loss of the paper: the rate falls along half a cosine, alpha in a line to 0 by half-time.

    Args:
        model: outputs [stacked reconstructions, ensemble].
        batches: iterator of (ilr, hr).
        settings: dict with steps, learning_rate, alpha_start, name.
        after_step: function called after each step.
        callback: tf_keras callback that wants to know of steps.
    """
    steps = settings["steps"]
    optimizer = tf_keras.optimizers.Adam(
        tf_keras.optimizers.schedules.CosineDecay(settings["learning_rate"], max(1, steps))
    )
    if callback:
        model.optimizer = optimizer
        callback.set_model(model)
        callback.on_train_begin()

    @tf.function
    def step(ilr, hr, alpha):
        with tf.GradientTape() as tape:
            stacked, ensemble = model(ilr, training=True)
            pixels = (-3, -2, -1)
            supervised = 0.5 * tf.reduce_mean(tf.reduce_sum(tf.square(hr[:, None] - stacked), axis=pixels))
            final = 0.5 * tf.reduce_mean(tf.reduce_sum(tf.square(hr - ensemble), axis=pixels))
            loss = alpha * supervised + (1.0 - alpha) * final
        variables = model.trainable_variables
        optimizer.apply_gradients(
            (gradient, variable)
            for gradient, variable in zip(tape.gradient(loss, variables), variables, strict=True)
            if gradient is not None
        )
        return loss

    for number in tqdm(range(steps), desc=settings["name"], unit="step", disable=None):
        if callback:
            callback.on_train_batch_begin(number)
        alpha = settings["alpha_start"] * max(0.0, 1.0 - 2.0 * number / steps)
        loss = step(*map(tf.constant, next(batches)), tf.constant(alpha, tf.float32))
        if not math.isfinite(float(loss)):
            sys.exit(f"the loss is {float(loss)} at step {number}; lower --learning_rate")
        if after_step:
            after_step()
    if callback:
        callback.on_epoch_end(0)


def prune(twin, batches, settings):
    """Magnitude pruning to settings["sparsity"], reached at half-time."""
    schedule = tfmot.sparsity.keras.PolynomialDecay(
        0.0, settings["sparsity"], 0, max(1, settings["steps"] // 2), frequency=max(1, settings["steps"] // 50)
    )
    model, kernels = wrap_layers(twin, lambda layer: tfmot.sparsity.keras.prune_low_magnitude(layer, schedule))
    fine_tune(model, batches, settings, callback=tfmot.sparsity.keras.UpdatePruningStep())
    return result(model, kernels)


def cluster(twin, batches, settings):
    """Weight sharing: settings["clusters"] different values per kernel."""
    centroids = tfmot.clustering.keras.CentroidInitialization.KMEANS_PLUS_PLUS
    model, _ = wrap_layers(
        twin, lambda layer: tfmot.clustering.keras.cluster_weights(layer, settings["clusters"], centroids)
    )
    fine_tune(model, batches, settings)
    model = tfmot.clustering.keras.strip_clustering(model)
    return result(model, {name: model.get_layer(name).kernel for name in names.HEAVY})


def train_quantized(twin, batches, settings, keep_zeros=False):
    """8-bit kernels and feature maps in the forward pass.

    `batches`: what they aim at is the float network's image. Aiming at originals, a few thousand steps of small batches
    undo some of a long training: 500 cost mobile-x2 0.02 dB.
    """
    model, kernels = wrap_layers(twin, lambda layer: quantize_wrapper.QuantizeWrapperV2(layer, KernelOnly()))
    masks = {name: tf.cast(kernel != 0.0, tf.float32) for name, kernel in kernels.items()}

    def hold_zeros():
        for name, kernel in kernels.items():
            kernel.assign(kernel * masks[name])

    fine_tune(model, batches, settings, after_step=hold_zeros if keep_zeros else None)
    return result(model, kernels)


def result(model, kernels):
    """Weights and ranges of a fine-tuned model as arrays, `kernels` in place of the heavy layers' attributes."""
    arrays = {names.ENSEMBLE: np.asarray(model.get_layer(names.ENSEMBLE).recursion_weights)}
    for name in names.CONVOLUTIONS:
        layer = convolution(model, name)
        arrays[names.kernel(name)] = np.asarray(kernels.get(name, layer.kernel))
        arrays[names.bias(name)] = np.asarray(layer.bias)
    for layer in model.layers:
        if isinstance(layer, Ranged) and layer.bounds:
            arrays[f"range/{layer.name.removesuffix('_range')}"] = np.array(layer.bounds)
    return arrays


def main(request, target):
    arrays = dict(np.load(request, allow_pickle=False))
    settings = json.loads(str(arrays["settings"]))
    shape = (settings["filters"], settings["channels"], settings["used"])
    twin = build_twin(*shape, ranges={})
    load_weights(twin, arrays)
    difference = check_equality(twin, arrays)
    pairs = load_pairs(settings["paths"], settings["scale"], settings["channels"], settings["patch_size"])
    stream = PatchStream(pairs, settings["patch_size"], settings["stride"], settings["batch_size"], settings["seed"])
    batches = stream.batches()
    tf_keras.utils.set_random_seed(settings["seed"])
    method = settings["method"]
    found = arrays
    if method in ("prune", "qat+prune"):
        found = prune(twin, batches, {**settings, "name": "prune"})
    if method == "cluster":
        found = cluster(twin, batches, {**settings, "name": "cluster"})
    if method in ("qat", "qat+prune"):
        ranges = {
            name.removeprefix("range/"): tuple(map(float, bounds))
            for name, bounds in arrays.items()
            if name.startswith("range/")
        }
        teacher, twin = twin, build_twin(*shape, ranges)
        load_weights(twin, found)
        load_weights(teacher, arrays)
        aims = ((ilr, teacher(ilr)[1]) for ilr, _ in batches)
        settings = {**settings, "name": "qat", "alpha_start": 0.0}
        found = train_quantized(twin, aims, settings, keep_zeros=method == "qat+prune")
    np.savez(target, difference=difference, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
