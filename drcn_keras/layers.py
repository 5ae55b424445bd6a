"""The two pieces of DRCN that Keras has no name for."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("drcn_keras")
class CenteredIdentity(keras.initializers.Initializer):
    """A convolution kernel that passes its input through unchanged.

    Zero except the centre tap, which joins each channel to itself. DRCN starts its recursive layer this
    way (section 3.3 of arXiv 1511.04491), so that at first every recursion hands on the same features.

    Raises:
        ValueError: the kernel is not (odd, odd, channels, channels).
    """

    def __call__(self, shape, dtype=None):
        if len(shape) != 4 or shape[0] % 2 == 0 or shape[1] % 2 == 0 or shape[2] != shape[3]:
            raise ValueError(
                f"CenteredIdentity fits a kernel of shape (odd, odd, channels, channels); received {tuple(shape)}."
            )
        height, width, channels, _ = shape
        tap = ops.reshape(ops.eye(channels, dtype=dtype), (1, 1, channels, channels))
        rows, columns = height // 2, width // 2
        return ops.pad(tap, ((rows, rows), (columns, columns), (0, 0), (0, 0)))


@keras.saving.register_keras_serializable("drcn_keras")
class RecursionWeighting(keras.layers.Layer):
    """The ensemble of the D reconstructions: `sum_d w_d * y_d`.

    The D weights are trained, start at 1/D, and are neither normalised nor passed through a softmax
    (section 3.2 of arXiv 1511.04491).

    Call arguments:
        inputs: list of D tensors of one shape, the reconstructions y_1 to y_D.

    Returns:
        A tensor of that shape.
    """

    def build(self, input_shape):
        recursions = len(input_shape)
        self.recursion_weights = self.add_weight(
            name="recursion_weights",
            shape=(recursions,),
            initializer=keras.initializers.Constant(1.0 / recursions),
        )

    def call(self, inputs):
        weights = ops.unstack(ops.cast(self.recursion_weights, self.compute_dtype), len(inputs))
        # A running sum, not stack-and-reduce: stacked, D images would stand in memory at once.
        ensemble = weights[0] * inputs[0]
        for weight, reconstruction in zip(weights[1:], inputs[1:], strict=True):
            ensemble = ensemble + weight * reconstruction
        return ensemble

    def compute_output_shape(self, input_shape):
        return input_shape[0]
