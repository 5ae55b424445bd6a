"""Choosing a tf.distribute strategy and feeding it.

TensorFlow only; under another backend training runs on one process and its default device.
"""

import contextlib

import keras

from drcn_keras.errors import UserError

STRATEGIES = ("default",)


def choose(name):
    """The strategy of that name.

    Args:
        name: one of `STRATEGIES`.

    Returns:
        A tf.distribute.Strategy, or None for plain training on one device.
    """
    if name not in STRATEGIES:
        raise UserError(f"unknown strategy {name!r}; expected one of {', '.join(STRATEGIES)}.")
    return None


def scope(strategy):
    """The context that variables must be made in."""
    return strategy.scope() if strategy else contextlib.nullcontext()


def training_data(stream, start, strategy=None):
    """What `model.fit` reads: every batch of a `data.PatchStream` from step `start` on, without end.

    Returns:
        A tf.data.Dataset under TensorFlow, otherwise a generator of NumPy batches.
    """
    if keras.backend.backend() != "tensorflow":
        return stream.batches(start)
    import tensorflow as tf

    size = stream.patch_size
    spec = tf.TensorSpec((stream.batch_size, size, size, stream.channels), tf.float32)
    dataset = tf.data.Dataset.from_generator(lambda: stream.batches(start), output_signature=(spec, spec))
    return dataset.prefetch(8)
