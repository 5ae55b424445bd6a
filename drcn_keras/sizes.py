"""How much larger an image becomes: the model's own scale, a real factor, or a width and a height in pixels."""

from drcn_keras.errors import UserError

# Ours. Below, there is nothing to restore; above, no network was trained.
SMALLEST, LARGEST = 1.1, 4.0
# Ours: a width and a height may differ in their factors by rounding and a crop's odd pixel, no more.
STRETCH = 0.02


def check_factor(factor: float | None) -> None:
    """Raises UserError unless `factor`, where it is not None, is one that some network enlarges by."""
    if factor is not None and not SMALLEST <= factor <= LARGEST:
        raise UserError(f"expected an enlargement from {SMALLEST} to {LARGEST:g}; received x{factor:.4g}.")


def enlargement(model, shape, scale=None, width=None, height=None):
    """The factors that bring an image to the size that is asked for.

    A network of one scale enlarges by that alone: its weights know no other blur. One of several scales has only
    ever seen the enlarged image, and takes any factor from 1.1 to 4.

    Args:
        model: a `DRCN`.
        shape: the image's (height, width, ...), pixels.
        scale: the factor; None: the model's scale, the smallest where it has several.
        width, height: pixels of the result, instead of `scale`; one of them keeps the proportions.

    Returns:
        (factor of the height, factor of the width).

    Raises:
        UserError: the model does not go that far, or the proportions would change.
    """
    if width is None and height is None:
        scale = min(model.scales) if scale is None else scale
        factors = (scale, scale)
    elif scale is not None:
        raise UserError("scale and a width or height say the same thing twice; expected one of them.")
    else:
        asked = [None if side is None else side / old for side, old in zip((height, width), shape, strict=False)]
        factors = (asked[0] or asked[1], asked[1] or asked[0])
    for factor in factors:
        check_factor(factor)
        if factor not in model.scales and model.scale is not None:
            raise UserError(f"the model's weights are for x{model.scale} alone; received x{factor:.4g}.")
    if abs(factors[0] / factors[1] - 1) > STRETCH:
        raise UserError(
            f"{width} x {height} would stretch an image of {shape[1]} x {shape[0]}; expected one of width and height."
        )
    return factors
