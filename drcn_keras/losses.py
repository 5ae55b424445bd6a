"""DRCN's training objective (section 3.3 of arXiv 1511.04491), in pure keras.ops."""

from keras import ops


def drcn_loss(hr, reconstructions, ensemble, alpha):
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

    Returns:
        A scalar float32.
    """
    hr = ops.cast(hr, "float32")
    reconstructions = ops.cast(reconstructions, "float32")
    ensemble = ops.cast(ensemble, "float32")
    pixels = (-3, -2, -1)
    # Mean over batch and D of the summed squares is exactly sum_d sum_i 1/(DN).
    l1 = 0.5 * ops.mean(ops.sum(ops.square(ops.expand_dims(hr, 1) - reconstructions), axis=pixels))
    l2 = 0.5 * ops.mean(ops.sum(ops.square(hr - ensemble), axis=pixels))
    alpha = ops.cast(alpha, "float32")
    return alpha * l1 + (1.0 - alpha) * l2


def weight_decay(weights, beta):
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
