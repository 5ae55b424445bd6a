"""The inference graph that fast inference and every export share.

The last convolution is linear, so the ensemble of D reconstructions is one reconstruction of a weighted
feature map: sum_d w_d * (conv_b(r_d) + x) = conv_b(sum_d w_d * r_d) + (sum_d w_d) * x. With conv_b's bias b,
conv_b(sum_d w_d * r_d) must carry sum_d w_d * b. Exact, and D - 1 convolutions fewer.
"""

import keras
import numpy as np
from keras import ops

from drcn_keras.layers import RecursionWeighting


def inference_model(model):
    """The folded twin of a DRCN.

    Args:
        model: a built `DRCN`.

    Returns:
        A functional keras.Model: ilr float32 (batch, height, width, channels) -> sr of the same shape, equal to
        `model(ilr)` up to rounding.
    """
    weights = ops.convert_to_numpy(model.ensemble_weights)
    total = float(np.sum(weights))

    def copy(name, **changes):
        source = model.get_layer(name)
        layer = keras.layers.Conv2D.from_config(
            {**source.get_config(), "kernel_initializer": "zeros", "dtype": "float32", **changes}
        )
        layer.build((None, None, None, source.kernel.shape[2]))
        layer.set_weights(source.get_weights())
        return layer

    embedding = [copy("embedding_1"), copy("embedding_2")]
    inference = copy("inference")
    reconstruct = copy("reconstruction_1")
    weighting = RecursionWeighting(name="ensemble")
    project = copy("reconstruction_2")

    ilr = keras.Input((None, None, model.channels), name="ilr")
    features = ilr
    for layer in embedding:
        features = layer(features)
    residuals = []
    for _ in range(model.recursions):
        features = inference(features)
        residuals.append(reconstruct(features))
    sr = project(weighting(residuals)) + total * ilr

    weighting.set_weights([weights])
    kernel, bias = project.get_weights()
    project.set_weights([kernel, total * bias])
    return keras.Model(ilr, sr, name="drcn_inference")
