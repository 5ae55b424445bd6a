"""DRCN's training objective (section 3.3 of arXiv 1511.04491), in pure keras.ops."""

from collections.abc import Iterable
from typing import Any

from keras import ops


def drcn_loss(hr: Any, reconstructions: Any, ensemble: Any, alpha: Any, sample_weight: Any = None) -> Any:
    """Recursive supervision and the ensemble's error, balanced by alpha.

    With N images, D recursions and the squared norm summed over pixels and channels:

        l1 = sum_d sum_i 1/(2DN) |y_i - y_{d,i}|^2
        l2 = sum_i 1/(2N) |y_i - y^_i|^2
        loss = alpha * l1 + (1 - alpha) * l2

    The paper's third term, beta * |theta|^2, is `weight_decay`.

    Args:
        hr: (batch, height, width, channels), the original y, in [0, 1].
        reconstructions: (batch, D, height, width, channels), every y_d.
        ensemble: (batch, height, width, channels), the weighted y^.
        alpha: scalar in [0, 1].
        sample_weight: (batch,) or (batch, 1), the factor of each image's errors; None: 1. N stays the number of images.

    Returns:
        A scalar float32.
    """
    hr = ops.cast(hr, "float32")
    reconstructions = ops.cast(reconstructions, "float32")
    ensemble = ops.cast(ensemble, "float32")
    pixels = (-3, -2, -1)
    # Mean over batch and D of the summed squares is exactly sum_d sum_i 1/(DN).
    l1 = 0.5 * ops.mean(ops.sum(ops.square(ops.expand_dims(hr, 1) - reconstructions), axis=pixels), axis=1)
    l2 = 0.5 * ops.sum(ops.square(hr - ensemble), axis=pixels)
    alpha = ops.cast(alpha, "float32")
    errors = alpha * l1 + (1.0 - alpha) * l2
    if sample_weight is not None:
        errors = errors * ops.reshape(ops.cast(sample_weight, "float32"), (-1,))
    return ops.mean(errors)


def weight_decay(weights: Iterable, beta: float) -> Any:
    """The paper's `beta * |theta|^2` over every trainable weight.

    Args:
        weights: list of tensors or variables of any shape.
        beta: float >= 0; the paper uses 1e-4.

    Returns:
        A scalar float32; 0 when beta is 0.
    """
    if not beta:
        return ops.convert_to_tensor(0.0, dtype="float32")
    return beta * sum(ops.sum(ops.square(ops.cast(weight, "float32"))) for weight in weights)
