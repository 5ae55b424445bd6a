"""Exact tiles: an image of any size through the network, window by window, equal to the untiled result."""

import weakref

import numpy as np
from tqdm import tqdm

from drcn_keras.errors import UserError
from drcn_keras.image import both, enlarge, resized_side, rgb_to_ycbcr, turned, unturned, ycbcr_to_rgb
from drcn_keras.process import claim
from drcn_keras.transparency import extend_colors, reach

# What the feature maps of one tile may take. Larger tiles waste less on their halo, 512 pixels are enough for that.
_TILE_BYTES = 2 * 2**30


_LARGEST_TILE = 512


_NETWORKS = weakref.WeakKeyDictionary()


def upscaled(pixels, model, factor, tile=None, progress=False, self_ensemble=False):
    """The pixels of an image, any of the arrays that `drcn_keras.upscale` takes, through the model.

    `factor`: the enlargement, one number or one for height and one for width. The rest as `drcn_keras.upscale`.
    """
    from drcn_keras.inference import used_recursions

    claim()
    largest = _largest_value(pixels)
    network = restoring(_network(model), self_ensemble)
    # The folded graph holds the features of every recursion in use until it sums them.
    tile = default_tile(model, len(used_recursions(model)) + 2) if tile is None else tile
    source = pixels.reshape(*pixels.shape[:2], -1)
    if source.shape[2] in (2, 4):
        source = extend_colors(source, reach(model.halo, min(both(factor))))
    height, width = (resized_side(side, along) for side, along in zip(source.shape, both(factor), strict=False))
    result = np.empty((height, width, source.shape[2]), pixels.dtype)
    places = tiles(height, width, tile, model.halo)
    for window, inner, kept in tqdm(places, unit="tile", leave=False, disable=not progress or len(places) == 1):
        ilr = enlarge(source, factor, window) / largest
        sr = _through(network, ilr, model.channels)[inner]
        if not np.isfinite(sr).all():
            raise UserError("the model gives NaN or infinity for this image; its weights are damaged.")
        sr = np.clip(sr, 0.0, 1.0) * largest
        result[kept] = sr if pixels.dtype.kind == "f" else np.round(sr)
    return result.reshape(height, width, *pixels.shape[2:])


def _largest_value(pixels):
    """What stands for white. Raises ValueError for an array that is no image."""
    if pixels.ndim not in (2, 3) or pixels.size == 0 or (pixels.ndim == 3 and pixels.shape[2] > 4):
        raise ValueError(
            f"expected (height, width) or (height, width, 1 to 4) with at least one pixel; received {pixels.shape}."
        )
    if pixels.dtype in (np.uint8, np.uint16):
        return np.iinfo(pixels.dtype).max
    if pixels.dtype.kind != "f":
        raise ValueError(f"expected uint8, uint16 or floating point; received {pixels.dtype}.")
    if not (pixels.min() >= 0.0 and pixels.max() <= 1.0):
        raise ValueError(f"floating point must be in [0, 1]; received {pixels.min()} to {pixels.max()}.")
    return 1.0


def _through(network, ilr, channels):
    """One window (height, width, 1 to 4) in [0, 1]: colour through the network, alpha as it is."""
    colors, alpha = (ilr[..., :1], ilr[..., 1:]) if ilr.shape[2] < 3 else (ilr[..., :3], ilr[..., 3:])

    def sr(x):
        return network(x.astype(np.float32))

    if colors.shape[2] == channels:
        colors = sr(colors)
    elif channels == 3:
        colors = sr(np.repeat(colors, 3, axis=2)).mean(axis=2, keepdims=True)
    else:
        ycbcr = rgb_to_ycbcr(colors)
        ycbcr[..., :1] = sr(ycbcr[..., :1])
        colors = ycbcr_to_rgb(ycbcr)
    return np.concatenate([colors, alpha], axis=2)


def _network(model):
    """The compiled inference graph of a model, kept until the model's weights change."""
    from drcn_keras.inference import inference_model

    weights = model.get_weights()
    kept, network = _NETWORKS.get(model, (None, None))
    if network is None or not all(map(np.array_equal, kept, weights)):
        network = compiled(inference_model(model))
        _NETWORKS[model] = weights, network
    return network


def restoring(network, self_ensemble=False):
    """What a compiled network makes of one image, as a function of (height, width, channels).

    Args:
        network: of `compiled`; its output is (batch, ..., height, width, channels).
        self_ensemble: average over the eight flips and quarter turns of the image, the field's "+" results.
    """

    def run(ilr):
        return network.predict_on_batch(np.ascontiguousarray(ilr)[None])[0]

    def averaged(ilr):
        # Height and width first, as `unturned` wants them; a network may put other axes before them.
        answers = (np.moveaxis(run(turned(ilr, turn)), (-3, -2), (0, 1)) for turn in range(8))
        mean = sum(unturned(answer, turn) for turn, answer in enumerate(answers)) / np.float32(8)
        return np.moveaxis(mean, (0, 1), (-3, -2))

    return averaged if self_ensemble else run


def compiled(network):
    """Makes `network.predict_on_batch` quick on this backend, and returns the network.

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


def default_tile(model, maps):
    """The side of a tile whose feature maps, `maps` of them at once, stay within 2 GiB; at most 512 pixels."""
    side = int((_TILE_BYTES / (4 * model.filters * maps)) ** 0.5)
    return max(min(side, _LARGEST_TILE), 4 * model.halo)


def tiles(height, width, tile, halo):
    """Cuts an image into overlapping windows of one size.

    The network pads with zeros at the border of what it is given. A window therefore ends at the image's own
    border, where those zeros belong, or `halo` pixels beyond what is kept of it: then the kept parts equal those
    of the whole image.

    Args:
        height, width: of the image, pixels.
        tile: largest side of a window, more than 2 * halo.
        halo: pixels on every side that an output pixel depends on.

    Returns:
        list of (window, inner, kept), each a pair of slices: the window in the image, what of the window is
        kept, and where that is in the image. The kept parts cover every pixel once.

    Raises:
        ValueError: `tile` is too small.
    """
    if tile <= 2 * halo:
        raise ValueError(
            f"a tile must be larger than twice the halo, {2 * halo} pixels for this model; received {tile}."
        )
    return [
        tuple(zip(rows, columns, strict=True))
        for rows in _spans(height, tile, halo)
        for columns in _spans(width, tile, halo)
    ]


def _spans(length, tile, halo):
    """(window, inner, kept) along one axis."""
    overlap = 2 * halo
    count = max(1, -(-(length - overlap) // (tile - overlap)))
    # All windows have one size, the smallest that `count` of them cover the axis with: a graph is compiled once.
    tile = -(-(length + (count - 1) * overlap) // count)
    begin = 0
    while begin < length:
        start = max(0, min(begin - halo, length - tile))
        stop = min(start + tile, length)
        end = length if stop == length else stop - halo
        yield slice(start, stop), slice(begin - start, end - start), slice(begin, end)
        begin = end
