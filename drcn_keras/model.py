"""DRCN itself: one convolution applied D times, every recursion reconstructed, the ensemble returned."""

import math

import keras
from keras import ops

from drcn_keras.distribute import DistributedModel
from drcn_keras.image import are_scales, as_scales
from drcn_keras.layers import CenteredIdentity, RecursionWeighting
from drcn_keras.losses import drcn_loss, weight_decay


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

    Call arguments:
        inputs: float32 (batch, height, width, channels) in [0, 1], the ILR.

    Returns:
        float32 (batch, height, width, channels), about [0, 1] and not clipped.

    Raises:
        ValueError: an argument is outside the range above.
    """

    def __init__(self, recursions=16, filters=256, channels=1, scale=2, beta=1e-4, **kwargs):
        _check("recursions", recursions, type(recursions) is int and recursions >= 1, "a whole number >= 1")
        _check("filters", filters, type(filters) is int and filters >= 1, "a whole number >= 1")
        _check("channels", channels, type(channels) is int and channels in (1, 3), "1 (luma) or 3 (RGB)")
        _check("scale", scale, are_scales(scale), "2, 3 or 4, or several of them, ascending")
        _check("beta", beta, beta >= 0, "a number >= 0")
        # A model is float32 at its ends whatever its inside computes in.
        dtype = kwargs.pop("dtype", None)

        def conv(filters, name, kernel_initializer="he_normal", activation="relu"):
            return keras.layers.Conv2D(
                filters,
                3,
                padding="same",
                activation=activation,
                kernel_initializer=kernel_initializer,
                name=name,
                dtype=dtype,
            )

        # === Layers ===
        embedding = [conv(filters, "embedding_1"), conv(filters, "embedding_2")]
        inference = conv(filters, "inference", kernel_initializer=CenteredIdentity())
        # No ReLU on the last convolution: a residual must be free to be negative.
        reconstruction = [
            conv(filters, "reconstruction_1"),
            conv(channels, "reconstruction_2", activation=None),
        ]
        skip = keras.layers.Add(name="skip", dtype="float32")
        weighting = RecursionWeighting(name="ensemble", dtype="float32")

        # === Functional model ===
        inputs = keras.Input((None, None, channels), name="ilr", dtype="float32")
        outputs = weighting(_reconstruct(inputs, embedding, inference, reconstruction, skip, recursions))
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)

        # === Config ===
        self.recursions = recursions
        self.filters = filters
        self.channels = channels
        self.scales = as_scales(scale)
        self.beta = beta
        # A variable, so that a traced graph sees the annealed value; the loss's, not the network's.
        self.alpha = self.add_weight(name="alpha", shape=(), initializer="ones", trainable=False)

    @property
    def ensemble_weights(self):
        """The trainable vector w, shape (D,), start 1/D."""
        return self.get_layer("ensemble").recursion_weights

    @property
    def scale(self):
        """The one enlargement that the weights are trained for; None where they are trained for several."""
        return self.scales[0] if len(self.scales) == 1 else None

    def at(self, scale):
        """This network for one of its enlargements: itself if it has no other, else a copy with equal weights.

        Args:
            scale: one of `scales`.

        Raises:
            ValueError: it is none of them.
        """
        _check("scale", scale, scale in self.scales, f"one of the model's, {self.scales}")
        if self.scale == scale:
            return self
        twin = type(self)(**{**self.get_config(), "scale": scale})
        twin.set_weights(self.get_weights())
        return twin

    @property
    def halo(self):
        """Pixels on every side that an output pixel depends on: one per 3x3 convolution, D + 4."""
        return self.recursions + 4

    def reconstructions(self, ilr):
        """Every recursion's own image.

        Args:
            ilr: float32 (batch, height, width, channels) in [0, 1].

        Returns:
            float32 (batch, D, height, width, channels), y_1 to y_D, not clipped.
        """
        return ops.stack(self._all_reconstructions(ilr), axis=1)

    def _all_reconstructions(self, ilr):
        return _reconstruct(
            ilr,
            [self.get_layer("embedding_1"), self.get_layer("embedding_2")],
            self.get_layer("inference"),
            [self.get_layer("reconstruction_1"), self.get_layer("reconstruction_2")],
            self.get_layer("skip"),
            self.recursions,
        )

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """alpha*l1 + (1-alpha)*l2 + beta*|theta|^2 of one batch: ilr `x` against hr `y`, a scalar.

        `y_pred` holds the ensemble alone and is not used: the supervision needs every recursion.
        """
        reconstructions = self._all_reconstructions(ops.convert_to_tensor(x, dtype="float32"))
        ensemble = self.get_layer("ensemble")(reconstructions)
        loss = drcn_loss(y, ops.stack(reconstructions, axis=1), ensemble, self.alpha)
        return loss + weight_decay(self.trainable_weights, self.beta)

    def count_params(self):
        """Trained parameters; `alpha` belongs to the loss and is not one."""
        return sum(math.prod(weight.shape) for weight in self.trainable_weights)

    def get_config(self):
        return {
            "recursions": self.recursions,
            "filters": self.filters,
            "channels": self.channels,
            "scale": self.scale or list(self.scales),
            "beta": self.beta,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**config)


def _reconstruct(ilr, embedding, inference, reconstruction, skip, recursions):
    """The paper's figure 1 as code: a list of D reconstructions y_d."""
    features = ilr
    for layer in embedding:
        features = layer(features)
    outputs = []
    for _ in range(recursions):
        features = inference(features)
        residual = features
        for layer in reconstruction:
            residual = layer(residual)
        outputs.append(skip([residual, ilr]))
    return outputs


def _check(name, value, holds, expected):
    if not holds:
        raise ValueError(f"{name} must be {expected}; received {value!r}.")
