"""Training speed: patches and counted operations per second, and the share of time spent waiting for data.

    python tools/benchmark_training.py --presets=mobile,paper --mode=eager,graph,xla

One line per preset and mode: patches/s and TFLOP/s of the training step, the share of its time in which it waits
for the next batch, and what the input pipeline alone delivers. Numbers depend on the machine and on what else it
does; this is no test.
"""

import itertools
import os
import time

from absl import flags

from drcn_keras import commands
from drcn_keras.commands import FLAGS
from drcn_keras.errors import UserError
from drcn_keras.precision import chosen, define_precision, layer_policy

# Shape and patches a step, as in the flagfiles.
PRESETS = {
    "mobile": ({"filters": 32, "recursions": 9}, 16),
    "medium": ({"filters": 64, "recursions": 9}, 16),
    "paper": ({"filters": 256, "recursions": 16}, 64),
}
MODES = ("eager", "graph", "xla")
PATCH_SIZE = 41


def training_operations(filters, recursions, channels=1, patch_size=PATCH_SIZE, outputs=()):
    """Floating-point operations of one training step on one patch: two for each multiply-accumulate.

    Counts the 3x3 convolutions: forward once, backward twice (towards the input and the kernel; the first layer
    has no gradient towards its input). All taps count, those on the zero border too, as is usual.

    Args:
        outputs: the recursions that are reconstructed, where it is not all of them.

    Returns:
        int.
    """
    reconstructed, computed = (len(outputs), max(outputs)) if outputs else (recursions, recursions)
    first = channels * filters
    hidden = filters * filters * (1 + computed + reconstructed)  # The second embedding, inference, reconstruction.
    last = filters * channels * reconstructed
    return 2 * 9 * patch_size**2 * (2 * first + 3 * (hidden + last))


def measure(name, mode, batch_size, seconds, precision, outputs=()):
    """Trains a preset on noise for `seconds`, at least one step.

    Returns:
        (patches per second of training, share of the time that waits for data, patches per second that the
        input pipeline alone delivers).
    """
    import keras
    import numpy as np

    from drcn_keras import DRCN, distribute
    from drcn_keras.data import Pair, PatchStream

    random = np.random.default_rng(0)
    pairs = [
        Pair(
            str(number),
            random.integers(256, size=(256, 256, 1), dtype="uint8"),
            random.random((128, 128, 1), dtype="float32"),
            2,
        )
        for number in range(20)
    ]
    stream = PatchStream(pairs, PATCH_SIZE, 21, batch_size)
    model = DRCN(**PRESETS[name][0], dtype=layer_policy(precision))
    model.supervised = outputs or model.supervised
    model.compile(
        optimizer=keras.optimizers.SGD(1e-6, momentum=0.9), run_eagerly=mode == "eager", jit_compile=mode == "xla"
    )

    batches = iter(distribute.training_data(stream, 0))
    model.train_on_batch(*next(batches))  # Traces and compiles.
    steps, waited, start = 0, 0.0, time.perf_counter()
    while steps == 0 or time.perf_counter() - start < seconds:
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        model.train_on_batch(*batch)
        steps += 1
    elapsed = time.perf_counter() - start

    start, delivered = time.perf_counter(), 0
    for batch in distribute.training_data(stream, steps):
        delivered += len(batch[0])
        if time.perf_counter() - start > 3.0:
            break
    return steps * batch_size / elapsed, waited / elapsed, delivered / (time.perf_counter() - start)


def define_flags():
    flags.DEFINE_list("presets", "mobile,paper", f"of {', '.join(PRESETS)}")
    flags.DEFINE_list("mode", "eager,graph,xla", f"of {', '.join(MODES)}; JAX has eager and xla")
    flags.DEFINE_integer("batch_size", 0, "patches a step; 0: the preset's")
    flags.DEFINE_float("seconds", 15.0, "to measure each for, at least one step", lower_bound=0.0)
    define_precision("float32")
    flags.DEFINE_list(
        "outputs", [], "train these recursions alone, e.g. 1,3,6,9, as --outputs of a training does at its end"
    )


def main(argv):
    commands.refuse_arguments(argv)
    for kind, given, known in (("presets", FLAGS.presets, PRESETS), ("mode", FLAGS.mode, MODES)):
        for name in given:
            if name not in known:
                raise UserError(f"--{kind} must be of {', '.join(known)}; received {name!r}.")
    outputs = tuple(sorted(set(commands.whole_numbers("outputs", 1)))) if FLAGS.outputs else ()
    import keras

    precision, _ = chosen(FLAGS.precision)
    print(f"Keras {keras.__version__} on {keras.backend.backend()}, {precision}, {os.cpu_count()} CPU cores")
    print("preset  mode   batch  patches/s  TFLOP/s  waiting for data  pipeline alone, patches/s")
    for preset, mode in itertools.product(FLAGS.presets, FLAGS.mode):
        if keras.backend.backend() == "jax" and mode == "graph":
            continue  # JAX compiles with XLA or not at all.
        shape, batch_size = PRESETS[preset]
        batch_size = FLAGS.batch_size or batch_size
        patches, waiting, pipeline = measure(preset, mode, batch_size, FLAGS.seconds, precision, outputs)
        tflops = patches * training_operations(**shape, outputs=outputs) / 1e12
        print(
            f"{preset:7} {mode:6} {batch_size:5} {patches:10.1f} {tflops:8.3f} {waiting:17.2%} {pipeline:26.0f}",
            flush=True,
        )


if __name__ == "__main__":
    commands.run(main, define_flags)
