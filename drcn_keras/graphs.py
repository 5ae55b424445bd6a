"""Networks made ready to be asked again and again: `predict_on_batch` of whatever size, quick on this backend."""

import concurrent.futures
import os

import numpy as np

# What oneDNN itself keeps, in place of 1,024. A network has four or five convolutions for each size of image.
_CONVOLUTIONS_KEPT = "64"


def compiled(network):
    """A functional keras.Model whose `predict_on_batch` follows its weights, as training changes them.

    JAX compiles every new size with XLA. TensorFlow's own graph takes any size once it has seen two, and is
    as quick as XLA on a CPU.
    """
    import keras

    jax = keras.backend.backend() == "jax"
    network.compile(jit_compile=jax)
    for side in () if jax else (1, 2):
        # TensorFlow sums the recursions of the first size in an order of its own: other last bits than later.
        network.predict_on_batch(np.zeros((1, side, side, network.input_shape[-1]), np.float32))
    return network


def frozen(network):
    """The same for a network whose weights stay as they are: less memory and time where TensorFlow runs on a CPU."""
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        if not tf.config.list_logical_devices("GPU"):
            return _FrozenGraph(network)
    return compiled(network)


class _FrozenGraph:
    """A network's graph on the CPU, with its weights as constants.

    TensorFlow keeps up to 1,024 of oneDNN's convolutions for each of its threads, one for each size that the thread
    has seen, and frees them when the thread ends. A session can do without threads of its own: every call has one here
    that ends with it, and memory stays as it is however many sizes of image come (docs/speed.md).
    """

    def __init__(self, network):
        import keras
        import tensorflow as tf

        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _CONVOLUTIONS_KEPT)
        weights = [
            [keras.ops.convert_to_numpy(variable) for variable in variables]
            for variables in (network.trainable_variables, network.non_trainable_variables)
        ]
        graph = tf.Graph()
        with graph.as_default():
            ilr = tf.compat.v1.placeholder(tf.float32, network.input_shape)
            sr, _ = network.stateless_call(*(list(map(tf.constant, each)) for each in weights), ilr)
        # Less than 0: TensorFlow's steps are taken by the thread that calls.
        config = tf.compat.v1.ConfigProto(inter_op_parallelism_threads=-1)
        self._run = tf.compat.v1.Session(graph=graph, config=config).make_callable(sr, [ilr])

    def predict_on_batch(self, ilr):
        """float32 (batch, height, width, channels) -> what the network makes of it, a float32 array."""
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            return thread.submit(self._run, ilr).result()
