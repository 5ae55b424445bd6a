"""Upscales an image or a folder of images through a server, over REST or gRPC, tile by tile.

Each tile goes out as a PNG with enough of its surroundings that the tiles put together are the whole image's result;
so an image may be larger than what the server takes in one request. Finished files are complete files: an
interrupted run is continued by starting it again.
"""

import contextlib
import io
import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.pool import ThreadPool

import numpy as np
from absl import flags
from PIL import Image
from tqdm import tqdm

from drcn_keras import commands, jobs
from drcn_keras.commands import FLAGS
from drcn_keras.connections import Gone, check_server, connect, retried
from drcn_keras.errors import ArgumentError, UserError
from drcn_keras.files import make_folder
from drcn_keras.image_files import pixels_in, read_pixels
from drcn_keras.image_writing import write_image, write_pixels


def upscale(
    pixels: np.ndarray,
    send: Callable[[bytes], bytes],
    tile: int = 256,
    overlap: int = 16,
    connections: int = 4,
    on_tile: Callable[[], object] | None = None,
) -> np.ndarray:
    """Upscales one image through a server.

    Args:
        pixels: uint8 or uint16 (height, width) or (height, width, 2 to 4), as `read_pixels` gives it.
        send: function of PNG bytes to upscaled PNG bytes; may be called from several threads.
        tile: side of the squares that are asked for at once, in pixels of `pixels`.
        overlap: pixels on every side that go along and whose result is thrown away. Exact from
            ceil((recursions + 4) / scale) + 2 on: the network's halo and the bicubic kernel's.
        connections: most tiles under way at once.
        on_tile: function called after each tile.

    Returns:
        The same dtype and channels, `scale` times as high and wide.

    Raises:
        UserError: the server answers with something else than the enlarged tile.
    """
    height, width = pixels.shape[:2]
    corners = [(top, left) for top in range(0, height, tile) for left in range(0, width, tile)]
    result = np.empty(0, pixels.dtype)

    def answered(corner):
        return corner, *_upscaled(pixels, corner, send, tile, overlap)

    # Leaving this pool waits for no answer: Ctrl-C must not last as long as a server that is stuck.
    with ThreadPool(connections) as pool:
        for (top, left), scale, inner in _as_they_come(pool.imap_unordered(answered, corners)):
            if not result.size:
                result = np.empty((height * scale, width * scale, *pixels.shape[2:]), pixels.dtype)
            if result.shape[0] != height * scale:
                raise UserError(f"the server answered x{result.shape[0] // height} and x{scale} for one image.")
            result[top * scale : (top + tile) * scale, left * scale : (left + tile) * scale] = inner
            if on_tile:
                on_tile()
    return result


def _as_they_come(results):
    """The results of a pool's iterator.

    No wait is longer than a second: a signal between the interpreter's last look and a wait is seen only after it.
    """
    while True:
        try:
            yield results.next(timeout=1.0)
        except multiprocessing.TimeoutError:
            continue
        except StopIteration:
            return


def _upscaled(pixels, corner, send, tile, overlap):
    """(scale, the pixels of the result) of the tile at one corner."""
    top, left = corner
    y, x = max(top - overlap, 0), max(left - overlap, 0)
    part = pixels[y : top + tile + overlap, x : left + tile + overlap]
    received = decode_png(send(encode_png(part)))
    scale = received.shape[0] // part.shape[0]
    if received.shape != (part.shape[0] * scale, part.shape[1] * scale, *part.shape[2:]) or scale < 1:
        raise UserError(f"the server answered {received.shape} to a tile of {part.shape}.")
    if received.dtype != part.dtype:
        raise UserError(f"the server answered {received.dtype} to a tile of {part.dtype}.")
    inner = received[(top - y) * scale :, (left - x) * scale :]
    return scale, inner[: tile * scale, : tile * scale]


def encode_png(pixels: np.ndarray, icc_profile: bytes | None = None) -> bytes:
    """The bytes of a PNG: uint8 or uint16 (height, width) gray, or (height, width, 2 to 4) LA, RGB, RGBA."""
    file = io.BytesIO()
    write_pixels(file, "tile.png", pixels, icc_profile)
    return file.getvalue()


def decode_png(contents: bytes) -> np.ndarray:
    """What `encode_png` made bytes of.

    Raises:
        UserError: the bytes are no image that can be read.
    """
    return pixels_in(io.BytesIO(contents), "the server's answer")[0]


def plan(source: str, output: str, overwrite: bool) -> list[tuple[str, str]]:
    """What to upscale and where to.

    Args:
        source: an image file or a folder of them.
        output: a .png path for a file; a folder for a folder.
        overwrite: take files again whose result is there.

    Returns:
        list of (source path, output path).

    Raises:
        UserError: no such file, one whose result is there, or two sources with one output.
    """
    if not os.path.isdir(source):
        if not output.lower().endswith(".png"):
            raise ArgumentError(f"`output` must be a .png file for one image; received {output!r}.")
        planned = jobs.plan([source], output)
        if not os.path.exists(source):
            # Before a server is asked, which may take its time not to answer.
            raise UserError(f"{source}: no such file.")
        if os.path.exists(output) and not overwrite:
            raise UserError(f"{output} exists; `overwrite` replaces it.")
        return planned
    return [job for job in jobs.plan([source], output) if overwrite or not os.path.exists(job[1])]


def upscale_files(
    jobs: list[tuple[str, str]], send: Callable[[bytes], bytes], tile: int, overlap: int, connections: int
) -> None:
    """Upscales files; one that is damaged, or that the server refuses, is reported and passed over.

    Args:
        jobs: list of (source path, output path).
        send, tile, overlap, connections: as in `upscale`.

    Raises:
        UserError: at the end, when a file failed. At once when the server is gone.
    """
    failed = 0
    with tqdm(total=sum(_tiles(path, tile) for path, _ in jobs), unit="tile", desc="upscaling") as bar:
        for path, target in jobs:
            bar.set_postfix_str(os.path.basename(path))
            try:
                pixels, icc_profile = read_pixels(path)
                write_image(target, upscale(pixels, send, tile, overlap, connections, bar.update), icc_profile)
            except Gone:
                raise
            except UserError as error:
                if len(jobs) == 1:
                    raise
                failed += 1
                bar.write(f"{path}: {error}", file=sys.stderr)
    if failed:
        raise UserError(f"{failed} of {len(jobs)} images were not upscaled; the reasons are above.")


def _tiles(path, tile):
    """How many tiles an image makes, from its header; 0 for what is no image."""
    try:
        with Image.open(path) as image:
            return -(-image.height // tile) * -(-image.width // tile)
    except Exception:  # Its turn will come, and with it the error that says why.
        return 0


def main(argv):
    if len(argv) != 2:
        raise UserError(f"expected one image or one folder of images; received {len(argv) - 1} arguments.")
    jobs = plan(argv[1], FLAGS.output, FLAGS.overwrite)
    if not jobs:
        print(f"{FLAGS.output} is complete; --overwrite makes it again.")
        return
    max_bytes = FLAGS.max_message_mb * 2**20
    connection = connect(FLAGS.server, FLAGS.model_name, FLAGS.version, FLAGS.timeout, max_bytes)
    with contextlib.closing(connection):
        check_server(connection, FLAGS.retries)
        make_folder(os.path.dirname(jobs[0][1]) or ".")
        upscale_files(
            jobs,
            lambda contents: retried(lambda: connection.upscale(contents), FLAGS.retries),
            FLAGS.tile,
            FLAGS.overlap,
            FLAGS.connections,
        )
    print(f"{len(jobs)} upscaled into {FLAGS.output}")


def define_flags():
    flags.DEFINE_string("server", "http://127.0.0.1:8501", "http://HOST:PORT for REST, grpc://HOST:PORT for gRPC")
    flags.DEFINE_string("model_name", "drcn", "the model's name on the server")
    flags.DEFINE_integer("version", None, "the model's version; the newest by default", lower_bound=1)
    flags.DEFINE_string("output", None, "a .png file for an image, a folder for a folder")
    commands.require("output")
    flags.DEFINE_boolean("overwrite", False, "replace results that are there; a folder's are passed over otherwise")
    flags.DEFINE_integer("tile", 256, "side of the tiles sent, low-resolution pixels", lower_bound=16)
    flags.DEFINE_integer(
        "overlap", 16, "surroundings sent along; exact from (recursions + 4) / scale + 2 on", lower_bound=0
    )
    flags.DEFINE_integer("connections", 4, "tiles under way at once", lower_bound=1, upper_bound=64)
    flags.DEFINE_integer("retries", 5, "times to repeat what failed for a passing reason", lower_bound=0)
    flags.DEFINE_float("timeout", 60.0, "seconds to wait for one answer", lower_bound=0.001)
    flags.DEFINE_integer("max_message_mb", 64, "longest message, MiB", lower_bound=1, upper_bound=2047)


def run():
    """The command `drcn-serving-client`."""
    commands.run(main, define_flags)


if __name__ == "__main__":
    run()
