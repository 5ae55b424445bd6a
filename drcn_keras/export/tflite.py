"""The command that writes a trained DRCN as .tflite files.

drcn-export-tflite --model=mobile-x2 --output=export --mode=float32,int8 --representative_dir=photos
"""

import os

from absl import flags, logging

from drcn_keras import commands, errors
from drcn_keras.card import path_of, presets
from drcn_keras.commands import FLAGS
from drcn_keras.errors import UserError
from drcn_keras.export import names
from drcn_keras.inputs import load_at

PRESETS_LICENSE = "MIT"
# Pixels a side of a file's input: ten golden cases of that size, enlarged, are held at once.
_LARGEST = 4096


def define_size(values=FLAGS):
    """--lr_height and --lr_width."""
    for name in ("lr_height", "lr_width"):
        flags.DEFINE_integer(
            name,
            64,
            "pixels of the low-resolution image",
            lower_bound=1,
            upper_bound=_LARGEST,
            flag_values=values,
        )


def define_flags(values=FLAGS):
    """Adds the command's flags to `values`."""

    def define(kind, *arguments, **options):
        getattr(flags, f"DEFINE_{kind}")(*arguments, flag_values=values, **options)

    define("string", "model", None, "a DRCN .keras file, or a preset such as mobile-x2")
    define("enum", "scale", None, ["2", "3", "4"], "the one to export of a model of several scales")
    define("string", "output", None, "folder that the files are written to")
    commands.require("model", "output", values=values)
    define("list", "mode", ["float32"], f"comma-separated: {', '.join(names.MODES)}")
    define("list", "pipeline", ["luma"], "luma: ILR to SR; rgb: 8-bit LR to 8-bit SR, everything in the graph")
    define_size(values)
    define("bool", "dynamic_shape", False, "let the file take any size, for runtimes that resize")
    define("enum", "rgb_dtype", "uint8", ["uint8", "float32"], "ends of the rgb pipeline; browsers want float32")
    define("string", "representative_dir", "", "training photographs; int8, int8_full and int16x8 need them")
    commands.define_folders("data_dir", "folders of original photographs to measure the luma files on", values)
    define("string", "license", "", f"of the weights, written into the file; the presets' is {PRESETS_LICENSE}")
    define("bool", "overwrite", False, "replace files that exist")


def choose(name, values, choices):
    """The values of a list flag without repetition. Raises UserError for one that is no choice."""
    unknown = [value for value in values if value not in choices]
    if unknown or not values:
        raise UserError(f"`{name}` must be of {', '.join(choices)}; received {', '.join(unknown) or 'nothing'}.")
    return list(dict.fromkeys(values))


def main(argv):
    commands.refuse_arguments(argv)
    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.ERROR)  # TensorFlow tells how it writes SavedModels.
    modes = choose("mode", FLAGS.mode, names.MODES)
    pipelines = choose("pipeline", FLAGS.pipeline, names.PIPELINES)
    with errors.extra("tflite"), errors.tensorflow_notices_hidden():
        from drcn_keras.export import tflite_files
        from drcn_keras.export.exporter import Exporter, Options
    options = Options(
        lr_height=FLAGS.lr_height,
        lr_width=FLAGS.lr_width,
        dynamic_shape=FLAGS.dynamic_shape,
        representative_dir=FLAGS.representative_dir,
        rgb_dtype=FLAGS.rgb_dtype,
        license=FLAGS.license or (PRESETS_LICENSE if FLAGS.model in presets() else ""),
    )
    model = load_at(FLAGS.model, FLAGS.scale and int(FLAGS.scale))
    exporter = Exporter(model, path_of(FLAGS.model), options)
    manifests = tflite_files.export(exporter, FLAGS.output, pipelines, modes, FLAGS.data_dir or (), FLAGS.overwrite)
    for manifest in manifests:
        print(os.path.join(FLAGS.output, manifest["model"]["file"]))


def run():
    """The command `drcn-export-tflite`."""
    commands.run(main, define_flags)


if __name__ == "__main__":
    run()
