"""The command that writes a trained DRCN as a SavedModel for TensorFlow Serving.

drcn-export-saved-model --model=mobile-x2 --output=models/drcn
"""

import re

from absl import flags, logging

from drcn_keras import commands, errors
from drcn_keras.commands import FLAGS
from drcn_keras.errors import UserError
from drcn_keras.inputs import load_at
from drcn_keras.precision import announced, define_precision

_SIZE = re.compile(r"([1-9]\d*)x([1-9]\d*)")


def _sizes(texts):
    matches = [match for text in texts if (match := _SIZE.fullmatch(text))]
    if not matches or len(matches) < len(texts):
        raise UserError(f"`warmup_sizes` must be HEIGHTxWIDTH, comma-separated; received {','.join(texts)!r}.")
    return [(int(match[1]), int(match[2])) for match in matches]


def main(argv):
    commands.refuse_arguments(argv)
    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.ERROR)  # TensorFlow tells how it writes SavedModels.
    sizes = _sizes(FLAGS.warmup_sizes)
    with errors.extra("serving"), errors.tensorflow_notices_hidden():
        from drcn_keras.export import servable
    model = load_at(FLAGS.model, FLAGS.scale and int(FLAGS.scale))
    precision = announced(FLAGS.precision)
    folder = servable.export(model, FLAGS.output, FLAGS.version, FLAGS.max_pixels, FLAGS.tile, sizes, precision)
    print(folder)


def define_flags():
    flags.DEFINE_string("model", None, "a DRCN .keras file, or a preset such as mobile-x2")
    flags.DEFINE_enum("scale", None, ["2", "3", "4"], "the one to export of a model of several scales")
    flags.DEFINE_string("output", None, "folder of the numbered versions that a server polls")
    commands.require("model", "output")
    flags.DEFINE_integer("version", None, "version number; the next free one by default", lower_bound=1)
    flags.DEFINE_integer("max_pixels", 2**24, "most low-resolution pixels in one request", lower_bound=1)
    flags.DEFINE_integer(
        "tile", 512, "side in output pixels of the windows computed at once", lower_bound=1, upper_bound=4096
    )
    flags.DEFINE_list("warmup_sizes", "64x64,256x256", "HEIGHTxWIDTH of warm-up images, low-resolution pixels")
    define_precision("float32")


def run():
    """The command `drcn-export-saved-model`."""
    commands.run(main, define_flags)


if __name__ == "__main__":
    run()
