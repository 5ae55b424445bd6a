"""Two images that should be equal: how far apart they are, and what kind of fault would explain it."""

import itertools

import numpy as np

# Identical images have no finite PSNR; JSON has no infinity.
PSNR_CAP = 200.0

# A diagnosis must explain this many decibels, or this share of the squared error, to be named.
_CLEARLY_BETTER_DB = 10.0
_EXPLAINED = 0.75


def psnr(actual, expected, peak):
    """PSNR in dB of arrays of one shape, at most 200; not-a-number anywhere gives 0."""
    error = np.mean(np.square(np.asarray(actual, np.float64) - np.asarray(expected, np.float64)))
    if not np.isfinite(error):
        return 0.0
    return float(min(PSNR_CAP, 10.0 * np.log10(peak**2 / error))) if error > 0 else PSNR_CAP


def unit(dtype, peak):
    """The unit of the last place: 1 for integers, for float32 the spacing of numbers just below `peak`."""
    return 1.0 if np.issubdtype(dtype, np.integer) else float(np.spacing(np.float32(0.75 * peak)))


def compare(actual, expected, peak, border):
    """How far apart two batches of images are.

    Args:
        actual, expected: (N, height, width, channels), one shape and dtype.
        peak: the full range, 1 or 255.
        border: width in pixels of the ring that counts as border.

    Returns:
        dict: psnr (dB); max_ulp, the largest difference in units of the last place; differing and differing_8bit,
        shares of pixels that differ at all and after rounding to 8 bit; max_8bit, the largest difference then;
        border_psnr and centre_psnr (dB).
    """
    ring = border_mask(actual.shape[1:3], border)
    difference = np.abs(np.asarray(actual, np.float64) - np.asarray(expected, np.float64))
    finite = np.where(np.isfinite(difference), difference, np.inf)
    levels = np.abs(eight_bit(actual, peak) - eight_bit(expected, peak))
    largest = float(finite.max() / unit(actual.dtype, peak))
    return {
        "psnr": psnr(actual, expected, peak),
        "max_ulp": largest if np.isfinite(largest) else None,
        "differing": float(np.mean(np.any(finite > 0, axis=-1))),
        "differing_8bit": float(np.mean(np.any(levels > 0, axis=-1))),
        "max_8bit": int(levels.max()),
        "border_psnr": psnr(actual[:, ring], expected[:, ring], peak),
        "centre_psnr": psnr(actual[:, ~ring], expected[:, ~ring], peak),
    }


def border_mask(shape, border):
    """bool (height, width): True within `border` pixels of the edge, but never beyond a quarter of a side."""
    width = max(1, min(border, min(shape) // 4))
    mask = np.ones(shape, bool)
    mask[width:-width, width:-width] = False
    return mask


def eight_bit(image, peak):
    """int16 0 to 255, clipped and rounded; not-a-number becomes 0."""
    image = np.nan_to_num(np.asarray(image, np.float64), nan=0.0, posinf=peak, neginf=0.0)
    return np.round(np.clip(image / peak, 0.0, 1.0) * 255.0).astype(np.int16)


def diagnose(inputs, actual, expected, peak, run=None):
    """Names the fault that explains the difference of two batches of images, if one does.

    Args:
        inputs: (N, h, w, channels), what both came from.
        actual, expected: (N, height, width, channels), finite.
        peak: the full range, 1 or 255.
        run: function of `inputs` that gives `actual`, for trying another order of channels; None leaves that out.

    Returns:
        A clause, such as "the channels are swapped ...".
    """
    now = psnr(actual, expected, peak)
    return (
        _swapped_channels(inputs, actual, expected, peak, now, run)
        or _shift(actual, expected, peak, now)
        or _border(actual, expected, peak, now)
        or _gain_and_offset(inputs, actual, expected, peak)
        or "the error is spread over the whole image: changed weights, another model's weights, or wrong arithmetic"
    )


def _swapped_channels(inputs, actual, expected, peak, now, run):
    if actual.shape[-1] != 3:
        return ""
    for order in itertools.permutations(range(3)):
        if order == (0, 1, 2):
            continue
        candidates = [actual[..., order]]
        if run is not None and inputs.shape[-1] == 3:
            swapped = run(np.ascontiguousarray(inputs[..., order]))
            candidates += [swapped, swapped[..., np.argsort(order)]]
        best = max(psnr(candidate, expected, peak) for candidate in candidates)
        if best > now + _CLEARLY_BETTER_DB:
            names = "".join("RGB"[i] for i in order)
            return f"the channels are swapped: as {names} the images agree to {best:.1f} dB instead of {now:.1f}"
    return ""


def _shift(actual, expected, peak, now):
    for down, right in itertools.product((-1, 0, 1), repeat=2):
        if (down, right) == (0, 0):
            continue
        moved = np.roll(actual, (down, right), axis=(1, 2))[:, 2:-2, 2:-2]
        best = psnr(moved, expected[:, 2:-2, 2:-2], peak)
        if best > now + _CLEARLY_BETTER_DB:
            return f"the image is shifted: moved by ({down}, {right}) pixels it agrees to {best:.1f} dB"
    return ""


def _border(actual, expected, peak, now):
    # The narrowest ring that holds nearly all of the error.
    error = np.sum(np.square(np.asarray(actual, np.float64) - np.asarray(expected, np.float64)), axis=(0, 3))
    total = error.sum()
    for width in range(1, min(error.shape) // 4 + 1):
        centre = slice(width, -width)
        if error[centre, centre].sum() < (1 - _EXPLAINED) * total:
            inside = psnr(actual[:, centre, centre], expected[:, centre, centre], peak)
            # By chance a ring holds its share of the pixels.
            share = 1 - error[centre, centre].size / error.size
            ring = error.copy()
            ring[centre, centre] = 0
            if np.mean(ring > 0) < 0.1 * share:
                return ""  # A few stray pixels.
            if share < 0.5 or inside > now + _CLEARLY_BETTER_DB:
                return (
                    f"the border is wrong: the outermost {width} pixels hold "
                    f"{1 - error[centre, centre].sum() / total:.0%} of the error (wrong padding?)"
                )
    return ""


def _gain_and_offset(inputs, actual, expected, peak):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    error = (actual - expected).ravel()
    bases = [("image", expected)]
    if inputs.shape == expected.shape:
        bases.append(("residual", expected - inputs))
    best = ("", 1.0)
    for name, base in bases:
        design = np.stack([base.ravel(), np.ones(base.size)], axis=1)
        solution = np.linalg.lstsq(design, error, rcond=None)[0]
        left = np.sum(np.square(error - design @ solution)) / np.sum(np.square(error))
        if left < min(best[1], 1 - _EXPLAINED):
            gain, offset = 1 + solution[0], solution[1] / peak
            best = (f"the {name} is {gain:.3f} times what it should be, offset {offset:+.4f} of full range", left)
    return f"{best[0]}: a wrong scale or zero point" if best[0] else ""
