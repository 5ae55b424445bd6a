"""Writes a trained DRCN as a SavedModel for TensorFlow Serving: checked, warm, and complete or not there at all."""

import io
import math
import os
import sys
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from PIL import Image

from drcn_keras.errors import UserError
from drcn_keras.export import server_graph, warmup
from drcn_keras.files import folder_being_built, make_folder, sync
from drcn_keras.inputs import load_at
from drcn_keras.model import DRCN
from drcn_keras.precision import chosen

# Largest difference of a written graph from the Keras model in float32, on noise: bfloat16 must be rounded, not wrong.
TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-2}


def export(
    source: DRCN,
    output: str,
    version: int | None = None,
    max_pixels: int = 2**24,
    tile: int = 512,
    warmup_sizes: Sequence[tuple[int, int]] = ((64, 64), (256, 256)),
    precision: str = "float32",
) -> str:
    """Writes `output`/<version>/ as a server loads it.

    It is built beside, under a name that a server passes over, and renamed once every signature has answered the
    warm-up requests and `serving_default` has equalled the Keras model.

    Args:
        source: `DRCN` of one scale; of one of several, `source.at(scale)`.
        output: folder of the versions; made when missing.
        version: int >= 1; the next free number when None.
        max_pixels: most low-resolution pixels that one request may hold, >= 1.
        tile: side in output pixels of the windows that the server computes at once, more than twice the model's halo.
        warmup_sizes: (height, width) of the low-resolution images of the warm-up requests.
        precision: "float32" or "bfloat16", of all convolutions but the first, whatever machine serves them; "auto":
            what is faster on this one.

    Returns:
        The folder's path.

    Raises:
        UserError: the version exists, or the written graph does not answer as it must.
    """
    precision, _ = chosen(precision)
    source = load_at(source)
    checked = _checked(source, max_pixels, tile, warmup_sizes)
    make_folder(output)
    version = _next_version(output) if version is None else version
    final = os.path.join(output, str(version))
    if os.path.exists(final):
        raise UserError(f"{final} exists; a version that a server may hold is never replaced. Take another `version`.")
    with folder_being_built(output) as building:
        upscaler = server_graph.Upscaler(source, max_pixels, tile, precision)
        tf.saved_model.save(upscaler, building, signatures=upscaler.signatures())
        warmup.write(building, warmup_requests(source, warmup_sizes))
        loaded = tf.saved_model.load(building, tags=["serve"])
        check_equality(loaded, source, checked, TOLERANCE[precision])
        warmup.replay(loaded, building)
        _finish(building)
        os.rename(building, final)
        sync(output)
    return final


def _checked(source, max_pixels, tile, warmup_sizes):
    """The enlarged sizes at which the graph is compared. Raises UserError where a tile or a request is too small."""
    if tile <= 2 * source.halo:
        raise UserError(f"`tile` must be more than {2 * source.halo}, twice the model's halo; received {tile}.")
    checked = [(1, 1), (23, 41), (tile + 5, tile // 2 + 3)]
    lr = [(height / source.scale, width / source.scale) for height, width in checked]
    largest = math.ceil(max(height * width for height, width in [*warmup_sizes, *lr]))
    if max_pixels < largest:
        raise UserError(
            f"`max_pixels` must be {largest} or more, for the export tries images of that size (`warmup_sizes` and "
            f"`tile` say which); received {max_pixels}."
        )
    return checked


def _next_version(output):
    return max((int(name) for name in os.listdir(output) if name.isdigit()), default=0) + 1


def check_equality(loaded, source, sizes, tolerance):
    """Raises UserError unless `serving_default` equals the Keras model to a tolerance on noise of these sizes."""
    random = np.random.default_rng(0)
    for height, width in sizes:
        ilr = random.random((1, height, width, source.channels), np.float32)
        expected = np.asarray(source(ilr))
        received = loaded.signatures["serving_default"](ilr=tf.constant(ilr))["sr"].numpy()
        difference = np.max(np.abs(received - expected))
        # Not "greater than": NaN is no agreement either.
        if not difference <= tolerance:
            raise UserError(
                f"the exported graph differs from the Keras model by {difference:.2g} at {height}x{width} pixels; "
                f"expected at most {tolerance:g}. Nothing was written."
            )
        print(f"serving_default at {height}x{width}: {difference:.2g} from the Keras model", file=sys.stderr)


def warmup_requests(source, sizes):
    """One request per signature and size.

    Args:
        source: `DRCN`.
        sizes: list of (height, width) in low-resolution pixels.

    Returns:
        list of (signature name, {input name: array}).
    """
    random = np.random.default_rng(0)
    requests = []
    for height, width in sizes:
        ilr = random.random((1, height * source.scale, width * source.scale, source.channels), np.float32)
        rgb = random.integers(0, 256, (1, height, width, 3), np.uint8)
        requests += [
            ("serving_default", {"ilr": ilr}),
            ("upscale", {"lr": np.float32(rgb / 255.0)}),
            ("upscale_uint8", {"lr": rgb}),
            ("upscale_image", {"image_bytes": np.array([_png(rgb[0])], dtype=object)}),
        ]
    return requests


def _png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _finish(folder):
    """Makes the tree readable for a server's own user and leaves it on disk, not in caches alone."""
    # mkdtemp's folders are the owner's alone.
    for root, _, names in os.walk(folder):
        os.chmod(root, 0o755)
        for name in names:
            path = os.path.join(root, name)
            os.chmod(path, 0o644)
            sync(path)
        sync(root)
