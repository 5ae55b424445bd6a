"""Exact tiles: an image of any size through the network, window by window, equal to the untiled result."""

import concurrent.futures
import contextlib
import threading
import weakref

import numpy as np
from tqdm import tqdm

from drcn_keras.errors import UserError
from drcn_keras.graphs import frozen
from drcn_keras.image import Window, both, brightened, enlarge, luma_plane, resized_side, turned, unturned
from drcn_keras.precision import chosen
from drcn_keras.process import claim
from drcn_keras.transparency import extend_colors, reach

# What the feature maps of one tile may take. Larger tiles waste less on their halo, 512 pixels are enough for that.
_TILE_BYTES = 2 * 2**30
_LARGEST_TILE = 512
# oneDNN's bfloat16 convolutions for AMX take up to five times as long where a row of pixels does not divide well.
_ROW_UNIT = 16
_NETWORKS = weakref.WeakKeyDictionary()
# What one thread does at a time.
_COMPILING = threading.Lock()
_PREDICTING = threading.Lock()


def upscaled(pixels, model, factor, tile=None, progress=False, self_ensemble=False, precision="float32"):
    """The pixels of an image, any of the arrays that `drcn_keras.upscale` takes, through the model.

    `factor`: the enlargement, one number or one for height and one for width. The rest as `drcn_keras.upscale`.
    """
    from drcn_keras.inference import used_recursions

    claim()
    largest = _largest_value(pixels)
    network = restoring(_network(model, chosen(precision)[0]), self_ensemble)
    # The folded graph holds the features of every recursion in use until it sums them.
    tile = default_tile(model, len(used_recursions(model)) + 2) if tile is None else tile
    source = pixels.reshape(*pixels.shape[:2], -1)
    if source.shape[2] in (2, 4):
        source = extend_colors(source, reach(model.halo, min(both(factor))))
    height, width = (resized_side(side, along) for side, along in zip(source.shape, both(factor), strict=False))
    result = np.empty((height, width, source.shape[2]), pixels.dtype)
    places = tiles(height, width, tile, model.halo)

    def prepared(place):
        planes = [enlarge(source[..., index], factor, place[0]) / largest for index in range(source.shape[2])]
        return planes, _network_input(planes, model.channels)

    bar = _told(places, progress)
    for (_, inner, kept), (planes, ilr) in zip(bar, _ahead(prepared, places), strict=True):
        sr = network(ilr)
        if not np.isfinite(sr).all():
            raise UserError("the model gives NaN or infinity for this image; its weights are damaged.")
        for index, plane in enumerate(_restored(planes, sr)):
            # 16 bit are more than float32 can multiply by without a level's error here and there.
            plane = np.clip(plane[inner].astype(np.float64), 0.0, 1.0) * largest
            result[(*kept, index)] = plane if pixels.dtype.kind == "f" else np.rint(plane)
    return result.reshape(height, width, *pixels.shape[2:])


def _ahead(function, items):
    """function(item) of each item, the next one made by a thread while the caller works on the last."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        coming = pool.submit(function, items[0])
        for item in items[1:]:
            ready, coming = coming, pool.submit(function, item)
            yield ready.result()
        yield coming.result()


def _told(places, progress):
    """The places, one after the other, while `progress` is told how many are done."""
    if not callable(progress):
        yield from tqdm(places, unit="tile", leave=False, disable=not progress or len(places) == 1)
        return
    for done, place in enumerate(places):
        progress(done, len(places))
        yield place
    progress(len(places), len(places))


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


def _network_input(planes, channels):
    """What the network is to see of a window: float32 (height, width, channels).

    Args:
        planes: gray, gray and alpha, RGB, or RGB and alpha; each (height, width) in [0, 1].
        channels: of the network.
    """
    if channels == 3:
        colors = planes[:3] if len(planes) > 2 else planes[:1] * 3
    else:
        colors = [luma_plane(*planes[:3])] if len(planes) > 2 else planes[:1]
    return np.stack(colors, axis=2).astype(np.float32)


def _restored(planes, sr):
    """The planes of a window after what the network made of them: colour restored, alpha as it is."""
    colors, alpha = (planes[:1], planes[1:]) if len(planes) < 3 else (planes[:3], planes[3:])
    if len(colors) == sr.shape[2]:
        restored = list(np.moveaxis(sr, 2, 0))
    elif len(colors) == 1:
        restored = [sr.mean(axis=2)]
    else:
        restored = brightened(colors, sr[..., 0] - luma_plane(*colors))
    return [*restored, *alpha]


def _network(model, precision):
    """The compiled inference graph of a model, kept until the model's weights change."""
    from drcn_keras.inference import inference_model

    with _COMPILING:
        weights = model.get_weights()
        kept, networks = _NETWORKS.get(model, (None, None))
        if networks is None or not all(map(np.array_equal, kept, weights)):
            networks = {}
            _NETWORKS[model] = weights, networks
        if precision not in networks:
            networks[precision] = frozen(inference_model(model, precision=precision))
        return networks[precision]


def restoring(network, self_ensemble=False):
    """What a compiled network makes of one image, as a function of (height, width, channels).

    Args:
        network: of `graphs`; its output is (batch, ..., height, width, channels).
        self_ensemble: average over the eight flips and quarter turns of the image, the field's "+" results.
    """

    import keras

    # Under JAX Keras's predict hands the weights themselves over and takes them back: other threads must wait.
    lock = _PREDICTING if keras.backend.backend() == "jax" else contextlib.nullcontext()

    def run(ilr):
        with lock:
            return network.predict_on_batch(np.ascontiguousarray(ilr)[None])[0]

    def averaged(ilr):
        # Height and width first, as `unturned` wants them; a network may put other axes before them.
        answers = (np.moveaxis(run(turned(ilr, turn)), (-3, -2), (0, 1)) for turn in range(8))
        mean = np.asarray(sum(unturned(answer, turn) for turn, answer in enumerate(answers))) / np.float32(8)
        return np.moveaxis(mean, (0, 1), (-3, -2))

    return averaged if self_ensemble else run


def recursions_of(network, ilr, tile, halo):
    """Every recursion's own image, tile by tile.

    Args:
        network: `inference.recursions_model` behind `restoring`.
        ilr: float32 (height, width, channels).
        tile, halo: as for `tiles`.

    Returns:
        float32 (D, height, width, channels).
    """
    height, width = ilr.shape[:2]
    whole = None
    for window, inner, kept in tiles(height, width, tile, halo):
        recursions = network(ilr[window])
        if whole is None:
            whole = np.empty((len(recursions), *ilr.shape), np.float32)
        whole[:, *kept] = recursions[:, *inner]
    return whole


def restored_pair(network, pair, tile, halo):
    """What a network makes of the ILR of a `data.Pair`, tile by tile: float32 (height, width, channels).

    Args:
        network: a compiled one behind `restoring`.
        pair: the photograph.
        tile, halo: as for `tiles`.
    """
    sr = np.empty(pair.original.shape, np.float32)
    height, width = sr.shape[:2]
    for window, inner, kept in tiles(height, width, tile, halo):
        sr[kept] = network(pair.cut(window)[0])[inner]
    return sr


def default_tile(model, maps):
    """The side of a tile whose feature maps, `maps` of them at once, stay within 2 GiB; at most 512 pixels."""
    side = int((_TILE_BYTES / (4 * model.filters * maps)) ** 0.5)
    return max(min(side, _LARGEST_TILE), 4 * model.halo)


def tiles(height: int, width: int, tile: int, halo: int) -> list[tuple[Window, Window, Window]]:
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
        for columns in _spans(width, tile, halo, _ROW_UNIT)
    ]


def _spans(length, tile, halo, unit=1):
    """(window, inner, kept) along one axis; windows are multiples of `unit` where there is room for it."""
    overlap = 2 * halo
    count = max(1, -(-(length - overlap) // (tile - overlap)))
    # All windows have one size, the smallest that `count` of them cover the axis with: a graph is compiled once.
    smallest = -(-(length + (count - 1) * overlap) // count)
    tile = min(-(-smallest // unit) * unit, tile, length)
    begin = 0
    while begin < length:
        start = max(0, min(begin - halo, length - tile))
        stop = min(start + tile, length)
        end = length if stop == length else stop - halo
        yield slice(start, stop), slice(begin - start, end - start), slice(begin, end)
        begin = end
