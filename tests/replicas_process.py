"""Keras's own fit under a strategy, for tests that compare one device with several. Prints a line of JSON."""

import json
import os
import sys

import numpy as np
import tensorflow as tf


def strategies():
    """One device and two of one machine, or, where TF_CONFIG says so, this machine among others."""
    if "TF_CONFIG" in os.environ:
        return {"workers": tf.distribute.MultiWorkerMirroredStrategy()}
    device = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(device, [tf.config.LogicalDeviceConfiguration()] * 2)
    return {"one": tf.distribute.get_strategy(), "mirrored": tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])}


def fitted(strategy, **optimizer):
    """The history, what evaluate gives, and the sum of the weights' magnitudes."""
    import keras

    from drcn_keras import DRCN, AlphaAnnealing

    random = np.random.default_rng(0)
    ilr = random.random((8, 6, 7, 1), dtype="float32")
    hr = np.clip(ilr + 0.1, 0, 1)
    keras.utils.set_random_seed(1)
    with strategy.scope():
        model = DRCN(recursions=2, filters=3)
        model.compile(
            keras.optimizers.SGD(0.05, **optimizer), metrics=["mse"], weighted_metrics=["mae"], steps_per_execution=2
        )
    numbers = model.fit(
        ilr,
        hr,
        batch_size=8,
        epochs=3,
        shuffle=False,
        verbose=0,
        sample_weight=np.arange(8.0),
        validation_data=(ilr[:4], hr[:4]),
        callbacks=[AlphaAnnealing(epochs=2)],
    ).history
    numbers["evaluate"] = model.evaluate(ilr, hr, batch_size=8, verbose=0)
    numbers["weights"] = float(sum(np.abs(weight).sum() for weight in model.get_weights()))
    return numbers


if __name__ == "__main__":
    clip = {sys.argv[1]: 0.001}
    print(json.dumps({name: fitted(strategy, **clip) for name, strategy in strategies().items()}))
