"""Latency, memory and exactness of an exported SavedModel by its tile: what the default of `--tile` was chosen by.

python tools/tile_table.py --model=mobile-x2 --tiles=256,512,768,1024 --sizes=64x64,256x256,1000x1500
"""

import json
import os
import subprocess
import sys
import tempfile
import time

import numpy as np
from absl import flags
from tqdm import tqdm

import drcn_keras
from drcn_keras import commands, errors
from drcn_keras.commands import FLAGS
from drcn_keras.inputs import load_at


def photograph(height, width):
    """A photograph that scikit-image ships, mirrored on to the size: uint8 (height, width, 3)."""
    import skimage
    from PIL import Image

    path = os.path.join(os.path.dirname(skimage.__file__), "data", "astronaut.png")
    pixels = np.asarray(Image.open(path).convert("RGB"))
    rows, columns = (max(0, wanted - there) for wanted, there in zip((height, width), pixels.shape, strict=False))
    return np.pad(pixels, ((0, rows), (0, columns), (0, 0)), mode="symmetric")[:height, :width]


def server(folder):
    """`upscale_uint8` of a SavedModel as a function of one image."""
    import tensorflow as tf

    loaded = tf.saved_model.load(folder)
    signature = loaded.signatures["upscale_uint8"]
    # The SavedModel lives as long as the function.
    return lambda pixels, loaded=loaded: signature(lr=tf.constant(pixels[None]))["sr"].numpy()


def latencies(functions, pixels, rounds):
    """The best of some calls of each function in seconds, taken in turn so that a busy moment meets all of them."""
    for function in functions:
        function(pixels)
    times = [[] for _ in functions]
    for _ in range(rounds):
        for function, taken in zip(functions, times, strict=True):
            start = time.perf_counter()
            function(pixels)
            taken.append(time.perf_counter() - start)
    return [min(taken) for taken in times]


def differences(functions, pixels):
    """How many values each function's image has apart from the first one's, and by how many levels at most."""
    first, *others = (function(pixels).astype(int) for function in functions)
    apart = [np.abs(other - first) for other in others]
    return ["", *(f"{np.count_nonzero(each)} of {each.size}, by {each.max()}" for each in apart)]


def peak(folder, height, width):
    """MiB that a process takes at most over one request, in a process of its own."""
    command = [sys.executable, os.path.abspath(__file__), "--peak_of", folder, str(height), str(width)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _print_peak(folder, height, width):
    server(folder)(photograph(int(height), int(width)))
    # Not getrusage's: that one counts what the parent process took when it forked.
    with open("/proc/self/status") as status:
        print(int(status.read().split("VmHWM:")[1].split()[0]) / 1024)


def main(argv):
    commands.refuse_arguments(argv)
    sizes = [tuple(map(int, size.split("x"))) for size in FLAGS.sizes]
    with errors.extra("serving"), errors.tensorflow_notices_hidden():
        from drcn_keras.export import servable
    model = load_at(FLAGS.model)
    with tempfile.TemporaryDirectory() as root:
        folders = [
            servable.export(model, os.path.join(root, tile), tile=int(tile), warmup_sizes=[(64, 64)])
            for tile in tqdm(FLAGS.tiles, unit="export")
        ]
        functions = [lambda pixels: drcn_keras.upscale(pixels, model), *map(server, folders)]
        rows = ["drcn_keras.upscale", *FLAGS.tiles]
        columns = [latencies(functions, photograph(*size), FLAGS.rounds) for size in sizes]
        memory = ["", *(f"{peak(folder, *max(sizes)):.0f}" for folder in folders)]
        apart = differences(functions, photograph(*max(sizes)))
    print("| tile | " + " | ".join(f"{size}, ms" for size in FLAGS.sizes) + " | peak MiB | values that differ |")
    print("| --- |" + " ---: |" * (len(sizes) + 2))
    for name, times, mib, share in zip(rows, zip(*columns, strict=True), memory, apart, strict=True):
        print(f"| {name} | " + " | ".join(f"{1000 * seconds:.0f}" for seconds in times) + f" | {mib} | {share} |")


def define_flags():
    flags.DEFINE_string("model", "mobile-x2", "a DRCN .keras file, or a preset")
    flags.DEFINE_list("tiles", "256,512,768,1024", "sides of windows in output pixels")
    flags.DEFINE_list("sizes", "64x64,256x256,1000x1500", "HEIGHTxWIDTH of the low-resolution images")
    flags.DEFINE_integer("rounds", 7, "calls of each; the best counts", lower_bound=1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak_of"]:
        _print_peak(*sys.argv[2:])
    else:
        commands.run(main, define_flags)
