"""A Keras model with a loss of its own whose `fit` and `evaluate` work on one device, on many, and on many machines."""

import warnings
from typing import Any

import keras
import numpy as np

from drcn_keras.process import claim


class DistributedModel(keras.Model):
    """A functional Keras model that brings its own loss. A subclass gives `loss_and_prediction`.

    Metrics, sample weights, frozen layers and what the optimiser does (clipping, accumulation, moving averages) are
    Keras's. What would be ignored, or would end in something that is not this model, is refused with a ValueError.
    """

    def loss_and_prediction(self, x: Any, y: Any, sample_weight: Any = None) -> tuple[Any, Any]:
        """The loss, a scalar, the mean over the batch `x`, and what the metrics see: `self(x)`."""
        raise NotImplementedError

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """The loss of one batch, a scalar. `y_pred` is not used: the loss may need more than the model returns."""
        return self.loss_and_prediction(x, y, sample_weight)[0]

    def compile(
        self, optimizer: Any = "rmsprop", loss: Any = None, loss_weights: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        """Keras's, without a loss. Raises ValueError where one is given."""
        for name, value in (("loss", loss), ("loss_weights", loss_weights)):
            if value is not None:
                raise ValueError(
                    f"{name} must be left out: {type(self).__name__} brings its own loss (compute_loss); "
                    f"received {value!r}."
                )
        super().compile(optimizer, None, None, *args, **kwargs)

    def compile_from_config(self, config: dict) -> None:
        """As Keras does it for a model that leaves `compile` as it is."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer:
            self.optimizer.build(self.trainable_variables)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        claim()
        return super().__call__(*args, **kwargs)

    def fit(self, *args: Any, class_weight: Any = None, **kwargs: Any) -> Any:
        """Keras's. Raises ValueError for `class_weight`."""
        claim()
        if class_weight is not None:
            raise ValueError("class_weight must be left out: images have no classes; sample_weight weighs each image.")
        return super().fit(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Keras's."""
        claim()
        return super().evaluate(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Keras's."""
        claim()
        return super().predict(*args, **kwargs)

    def save(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Keras's. Raises ValueError for HDF5, which Keras does not read back."""
        if str(filepath).endswith((".h5", ".hdf5")):
            raise ValueError(
                f"filepath must end in .keras: Keras does not read a {type(self).__name__} back from HDF5 "
                f"(save_weights to .weights.h5 works); received {str(filepath)!r}."
            )
        super().save(filepath, *args, **kwargs)

    def _run_through_graph(self, *args, **kwargs):
        """Refuses `keras.models.clone_model`, which would make of this a Functional without the loss."""
        if getattr(kwargs.get("operation_fn"), "__module__", "").endswith("models.cloning"):
            raise ValueError(
                "clone_model would give a Functional without the loss; a copy is "
                "type(model).from_config(model.get_config()), then set_weights."
            )
        return super()._run_through_graph(*args, **kwargs)

    def train_step(self, *args: Any, **kwargs: Any) -> Any:
        """One optimiser step. TensorFlow takes the step written here, the other backends the one Keras builds."""
        if keras.backend.backend() != "tensorflow":
            return super().train_step(*args, **kwargs)
        return self._tensorflow_train_step(*args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """Loss and metrics of one batch. Under TensorFlow written here: one pass, and the mean over all replicas."""
        if keras.backend.backend() != "tensorflow":
            return super().test_step(*args, **kwargs)
        return self._tensorflow_test_step(*args, **kwargs)

    def _tensorflow_train_step(self, data):
        import tensorflow as tf

        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        _require_equal_sizes(x, y)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        if replicas > 1 and self.optimizer.gradient_accumulation_steps:
            raise ValueError(f"gradient_accumulation_steps must be left out under {replicas} replicas.")
        share = _share_of_batch(x, replicas)
        with tf.GradientTape() as tape:
            loss, prediction = self.loss_and_prediction(x, y, sample_weight)
            # Replicas sum their gradients: each contributes its share of the global batch's mean.
            scaled = self.optimizer.scale_loss(share * loss)
        gradients = tape.gradient(scaled, self.trainable_weights)
        if replicas > 1 and _clips(self.optimizer):
            # Keras clips the gradient of each replica; what must be clipped is their sum.
            gradients = tf.distribute.get_replica_context().all_reduce("SUM", gradients)
            gradients = [gradient / replicas for gradient in self.optimizer._clip_gradients(gradients)]
        if gradients:
            self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        else:
            warnings.warn("The model does not have any trainable weights.", stacklevel=2)  # As Keras says it.
        return self._logs(loss, x, y, prediction, sample_weight)

    def _tensorflow_test_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        _require_equal_sizes(x, y)
        loss, prediction = self.loss_and_prediction(x, y, sample_weight)
        return self._logs(loss, x, y, prediction, sample_weight)

    def _logs(self, loss, x, y, prediction, sample_weight):
        self._loss_tracker.update_state(loss, sample_weight=keras.ops.shape(x)[0])
        return self.compute_metrics(x, y, prediction, sample_weight)

    # Keras 3's fit fails on several machines in two places (keras-team/keras issue 20585). Each has a hook. They serve
    # several devices of one machine too, where Keras fails with steps_per_execution.

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Builds optimiser and metrics. The layers are built already; Keras would reduce a whole batch to find out."""
        if not _shares_batches(self):
            super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)
            return
        with self.distribute_strategy.scope():
            pixel = np.zeros((1, 1, 1, self.input_shape[-1]), "float32")
            self._symbolic_build(data_batch=(pixel, pixel))

    def _make_function(self, step_function, **kwargs):
        """What `fit` and `evaluate` call. Keras would reduce the scalars of its logs along an axis they do not have."""
        if not _shares_batches(self):
            return super()._make_function(step_function, **kwargs)
        import tensorflow as tf

        strategy = self.distribute_strategy

        @tf.autograph.experimental.do_not_convert
        def step(data):
            logs = strategy.run(step_function, args=(data,))
            return {name: strategy.reduce("MEAN", value, axis=None) for name, value in logs.items()}

        if not self.run_eagerly:
            step = tf.function(step, reduce_retracing=True)

        def steps(iterator):
            logs = step(next(iterator))
            for _, data in zip(range(self.steps_per_execution - 1), iterator, strict=False):
                logs = step(data)
            return logs

        return steps


def _require_equal_sizes(x, y):
    """Fails, once the graph runs, where sizes that it does not know in advance differ: they would be broadcast."""
    import tensorflow as tf

    if y is not None and not (x.shape.is_fully_defined() and y.shape.is_fully_defined()):
        tf.debugging.assert_equal(tf.shape(x), tf.shape(y), message="ilr and hr differ in shape")


def _share_of_batch(x, replicas):
    """This replica's part of the global batch, summing to 1. An epoch's last batch may not be shared out evenly."""
    import tensorflow as tf

    if replicas == 1 or x.shape[0] is not None:
        return 1.0 / replicas
    count = tf.cast(tf.shape(x)[0], tf.float32)
    return count / tf.distribute.get_replica_context().all_reduce("SUM", count)


def _clips(optimizer):
    return optimizer.clipnorm or optimizer.global_clipnorm or optimizer.clipvalue


def _shares_batches(model):
    """True under a tf.distribute strategy of several replicas, or of several machines."""
    if keras.backend.backend() != "tensorflow":
        return False
    strategy = model.distribute_strategy
    return strategy.num_replicas_in_sync > 1 or strategy.cluster_resolver is not None
