"""DRCN itself: one convolution applied D times, every recursion reconstructed, the ensemble returned."""

import math
import numbers
import warnings
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from drcn_keras.callbacks import AlphaAnnealing
from drcn_keras.distributed_model import DistributedModel
from drcn_keras.image import are_scales, as_scales
from drcn_keras.layers import CenteredIdentity, RecursionWeighting
from drcn_keras.losses import drcn_loss, weight_decay
from drcn_keras.process import claim


@keras.saving.register_keras_serializable("drcn_keras")
class DRCN(DistributedModel):
    """Deeply-Recursive Convolutional Network for image super-resolution.

    Kim, Lee, Lee: "Deeply-Recursive Convolutional Network for Image Super-Resolution", CVPR 2016,
    arXiv 1511.04491. With x the low-resolution image enlarged by bicubic interpolation:

        H_0 = relu(conv(relu(conv(x))))             embedding
        H_d = relu(conv_rec(H_{d-1})), d = 1..D     inference: one convolution, called D times
        y_d = conv_b(relu(conv_a(H_d))) + x         reconstruction, shared, with the skip
        y^  = sum_d w_d * y_d                       the ensemble, w trained

    `model(ilr)` is y^ alone; `model.reconstructions(ilr)` is every y_d. Any height and width will do,
    1x1 included; a pixel of the output depends on the `halo` pixels around it and on no others.

    Args:
        recursions: D >= 1. The paper's is 16.
        filters: feature maps F >= 1 of every hidden convolution. The paper's is 256.
        channels: 1 (luma) or 3 (RGB).
        scale: 2, 3 or 4, or several of them, ascending, such as (2, 3, 4): the enlargements that the weights are
            trained for. The graph does not depend on it: one network may serve them all, as VDSR's does.
        beta: weight decay >= 0, the factor of |theta|^2 in the loss. The paper's is 1e-4.
        dtype: Keras's policy for the convolutions, "float32" or "mixed_bfloat16"; None: Keras's own default. The first
            one, the skip and the ensemble compute in float32 in any case.

    Call arguments:
        inputs: float32 (batch, height, width, channels) in [0, 1], the ILR.

    Returns:
        float32 (batch, height, width, channels), about [0, 1] and not clipped.

    Raises:
        ValueError: an argument is outside the range above, or what the model is called with is no such batch.
        UserError: this process is a fork of one that had a DRCN.
    """

    def __init__(
        self,
        recursions: int = 16,
        filters: int = 256,
        channels: int = 1,
        scale: int | Sequence[int] = 2,
        beta: float = 1e-4,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        claim()
        _check("recursions", recursions, _is_whole(recursions) and recursions >= 1, "a whole number >= 1")
        _check("filters", filters, _is_whole(filters) and filters >= 1, "a whole number >= 1")
        _check("channels", channels, type(channels) is int and channels in (1, 3), "1 (luma) or 3 (RGB)")
        _check("scale", scale, are_scales(scale), "2, 3 or 4, or several of them, ascending")
        _check("beta", beta, isinstance(beta, numbers.Real) and 0 <= beta < math.inf, "a number >= 0")
        # What NumPy computed is as good as what was typed; files hold Python's own numbers.
        recursions, filters, beta = int(recursions), int(filters), float(beta)
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        _check("dtype", policy.name, policy.compute_dtype != "float16", "a policy without float16, which overflows")

        # === Layers ===
        embedding = [_convolution("embedding_1", filters), _convolution("embedding_2", filters, policy)]
        inference = _convolution("inference", filters, policy, kernel_initializer=CenteredIdentity())
        # No ReLU on the last convolution: a residual must be free to be negative.
        reconstruction = [
            _convolution("reconstruction_1", filters, policy),
            _convolution("reconstruction_2", channels, policy, activation=None),
        ]
        skip = keras.layers.Add(name="skip", dtype="float32")
        weighting = RecursionWeighting(name="ensemble", dtype="float32")

        # === Functional model ===
        inputs = keras.Input((None, None, channels), name="ilr", dtype="float32")
        every = range(1, recursions + 1)
        outputs = weighting(_reconstruct(inputs, embedding, inference, reconstruction, skip, every))
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)

        # === Config ===
        self.recursions = recursions
        self.filters = filters
        self.channels = channels
        self.scales = as_scales(scale)
        self.beta = beta
        #: The recursions d that the loss draws on; the others are not computed, as far as those do not need them.
        self.supervised = tuple(every)
        # A variable, so that a traced graph sees the annealed value; the loss's, not the network's.
        self.alpha = self.add_weight(name="alpha", shape=(), initializer="ones", trainable=False)

    def call(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        # Not in __call__, which JAX's `fit` and `predict` pass by.
        for images in keras.tree.flatten(inputs):
            _check_images(images)
        return super().call(inputs, *args, **kwargs)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Keras's. Raises ValueError as the call does; before it begins, for JAX's has then given the weights away."""
        _check_images(x)
        return super().predict(x, *args, **kwargs)

    @property
    def ensemble_weights(self) -> Any:
        """The trainable vector w, shape (D,), start 1/D."""
        return self.get_layer("ensemble").recursion_weights

    @property
    def scale(self) -> int | None:
        """The one enlargement that the weights are trained for; None where they are trained for several."""
        return self.scales[0] if len(self.scales) == 1 else None

    def at(self, scale: int) -> "DRCN":
        """This network for one of its enlargements: itself if it has no other, else a copy with equal weights.

        Args:
            scale: one of `scales`.

        Raises:
            ValueError: it is none of them.
        """
        _check("scale", scale, scale in self.scales, f"one of the model's, {self.scales}")
        return self if self.scale == scale else self.copy(scale=scale)

    def computing_in(self, dtype: str) -> "DRCN":
        """This network with all convolutions but the first in `dtype`: itself, or a copy with equal weights."""
        return self if self._inner_policy == dtype else self.copy(dtype=dtype)

    def copy(self, **changes: Any) -> "DRCN":
        """A DRCN with equal weights, whose arguments are this one's but for `changes`: the scale, dtype or name."""
        twin = self.from_config({**self.get_config(), **changes})
        twin.set_weights(self.get_weights())
        return twin

    @property
    def _inner_policy(self):
        return self.get_layer("inference").dtype_policy.name

    @property
    def halo(self) -> int:
        """Pixels on every side that an output pixel depends on: one per 3x3 convolution, D + 4."""
        return self.recursions + 4

    def reconstructions(self, ilr: Any) -> Any:
        """Every recursion's own image.

        Args:
            ilr: float32 (batch, height, width, channels) in [0, 1].

        Returns:
            float32 (batch, D, height, width, channels), y_1 to y_D, not clipped.
        """
        claim()
        return ops.stack(self._reconstructions(ilr, range(1, self.recursions + 1)), axis=1)

    def _reconstructions(self, ilr, wanted):
        return _reconstruct(
            ilr,
            [self.get_layer("embedding_1"), self.get_layer("embedding_2")],
            self.get_layer("inference"),
            [self.get_layer("reconstruction_1"), self.get_layer("reconstruction_2")],
            self.get_layer("skip"),
            wanted,
        )

    def loss_and_prediction(self, x: Any, y: Any, sample_weight: Any = None) -> tuple[Any, Any]:
        """alpha*l1 + (1-alpha)*l2 + beta*|theta|^2 of one batch, a scalar, and the ensemble.

        Args:
            x: the ilr, floating point (batch, height, width, channels) in [0, 1].
            y: the hr, of the same shape.
            sample_weight: a number for each image, (batch,) or (batch, 1), or None. As with Keras's own losses the
                weighted errors are divided by the number of images, not by the sum of the weights.

        Raises:
            ValueError: a shape or a type is another.
        """
        _check_batch(x, y, sample_weight)
        reconstructions = self._reconstructions(ops.convert_to_tensor(x, dtype="float32"), self.supervised)
        weights = ops.unstack(ops.convert_to_tensor(self.ensemble_weights), self.recursions)
        ensemble = sum(weights[d - 1] * y for d, y in zip(self.supervised, reconstructions, strict=True))
        loss = drcn_loss(y, ops.stack(reconstructions, axis=1), ensemble, self.alpha, sample_weight)
        return loss + weight_decay(self.trainable_weights, self.beta), ensemble

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Keras's, of ilr `x` and hr `y`. Warns where alpha would stay 1, so that w would not be trained."""
        given = keras.tree.flatten(getattr(callbacks, "callbacks", callbacks) or [])
        annealed = any(isinstance(callback, AlphaAnnealing) for callback in given)
        if not annealed and self.ensemble_weights.trainable and float(ops.convert_to_numpy(self.alpha)) == 1.0:
            half = epochs // 2
            annealing = f"callbacks=[drcn_keras.AlphaAnnealing(epochs={half})] lowers it over the first {half} epochs"
            warnings.warn(
                "alpha is 1: the loss does not see the ensemble, and its weights are not trained; "
                f"{annealing + ', ' if half else ''}model.alpha.assign(0.5) sets it.",
                stacklevel=2,
            )
        return super().fit(x, y, batch_size, epochs, verbose, callbacks, *args, **kwargs)

    def count_params(self) -> int:
        """The network's parameters; `alpha` belongs to the loss and is not one."""
        return sum(math.prod(weight.shape) for weight in self.weights if weight is not self.alpha)

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        """Refused: Keras quantises no convolution, and would leave the model as it was."""
        raise ValueError("Keras quantises no convolution; drcn_keras.export writes int8 models, see docs/tflite.md.")

    def get_config(self) -> dict[str, Any]:
        return {
            "recursions": self.recursions,
            "filters": self.filters,
            "channels": self.channels,
            "scale": self.scale or list(self.scales),
            "beta": self.beta,
            "dtype": self._inner_policy,
            "name": self.name,
            "trainable": self.trainable,
            "frozen": [layer.name for layer in self.layers if layer.weights and not layer.trainable],
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "DRCN":
        arguments = {name: value for name, value in config.items() if name != "frozen"}
        model = cls(**arguments)
        for name in config.get("frozen", ()):
            model.get_layer(name).trainable = False
        return model


def _convolution(name, filters, policy="float32", kernel_initializer="he_normal", activation="relu"):
    return keras.layers.Conv2D(
        filters,
        3,
        padding="same",
        # Whatever Keras's default is: images are (height, width, channels) everywhere here.
        data_format="channels_last",
        activation=activation,
        kernel_initializer=kernel_initializer,
        name=name,
        dtype=policy,
    )


def _reconstruct(ilr, embedding, inference, reconstruction, skip, wanted):
    """The paper's figure 1 as code: a list of the reconstructions y_d, d in `wanted`, ascending."""
    features = ilr
    for layer in embedding:
        features = layer(features)
    outputs = []
    for recursion in range(1, max(wanted) + 1):
        features = inference(features)
        if recursion not in wanted:
            continue
        residual = features
        for layer in reconstruction:
            residual = layer(residual)
        outputs.append(skip([residual, ilr]))
    return outputs


def _check_batch(ilr, hr, sample_weight):
    """Raises ValueError where Keras would broadcast, or compute with what is no image."""
    if hr is None:
        raise ValueError("y must be given: the loss compares ilr x with hr y.")
    for name, images in (("x (the ilr)", ilr), ("y (the hr)", hr)):
        dtype = keras.backend.standardize_dtype(images.dtype)
        _check(name, dtype, keras.backend.is_float_dtype(dtype), "floating point in [0, 1]")
    _check("y (the hr)", tuple(hr.shape), _may_be_equal(hr.shape, ilr.shape), f"of the ilr's shape, {tuple(ilr.shape)}")
    if sample_weight is not None:
        shape = tuple(sample_weight.shape)
        _check("sample_weight", shape, len(shape) == 1 or shape[1:] == (1,), "one number for each image, (batch,)")


def _check_images(images):
    """Raises ValueError where Keras would take one image's rows for a batch, or compute with levels from 0 to 255."""
    shape = getattr(images, "shape", None)
    if shape is None or getattr(shape, "rank", 4) is None:  # A Python number; a size that tf.data does not tell.
        return
    _check("inputs", tuple(shape), len(shape) == 4, "(batch, height, width, channels)")
    dtype = keras.backend.standardize_dtype(images.dtype)
    _check("inputs", dtype, keras.backend.is_float_dtype(dtype), "floating point in [0, 1]")


def _is_whole(value):
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _may_be_equal(one, other):
    """False where two shapes differ; a side that is not known yet may be any."""
    return len(one) == len(other) and all(a == b or None in (a, b) for a, b in zip(one, other, strict=True))


def _check(name, value, holds, expected):
    if not holds:
        raise ValueError(f"{name} must be {expected}; received {value!r}.")
