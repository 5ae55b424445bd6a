"""Upscales any number of images on Apache Beam: `python -m drcn_keras.beam --input='PATTERN' --output=DIR`.

Every flag that is not one of these goes to Beam: --direct_num_workers=2 takes two processes of this machine,
--runner=FlinkRunner and the like other machines. Needs `pip install 'drcn_keras[beam]'`.
"""

import logging
import posixpath

from absl import flags

from drcn_keras import commands, errors
from drcn_keras.commands import FLAGS
from drcn_keras.errors import UserError
from drcn_keras.precision import define_precision


def define_flags():
    flags.DEFINE_string("input", None, "pattern of the images, as Beam matches files: 'photos/*', 'gs://bucket/**.jpg'")
    flags.DEFINE_string("output", None, "folder for the results, PNG files; none of the images may lie in it")
    flags.DEFINE_string("model", None, "a preset or the .keras file of a DRCN (default: the preset for --scale)")
    flags.DEFINE_float("scale", None, "the enlargement (default: the model's)")
    flags.DEFINE_integer("tile", None, "as of drcn_keras.upscale: less takes less memory and more time")
    flags.DEFINE_string(
        "bad_file",
        None,
        "for the names of files that cannot be upscaled, with the reason (default: bad_images.jsonl in --output)",
    )
    define_precision("auto")
    commands.require("input", "output")


def main(argv):
    # Beam's remarks about what else could be installed are for its developers.
    logging.getLogger().setLevel(logging.ERROR)
    with errors.extra("beam"):
        from drcn_keras.batch import batch
    settings = (FLAGS.input, FLAGS.output, FLAGS.model, FLAGS.scale, FLAGS.tile, FLAGS.precision, FLAGS.bad_file)
    counters = batch(*settings, tuple(argv[1:]))
    bad_file = FLAGS.bad_file or posixpath.join(FLAGS.output, "bad_images.jsonl")
    bad = f"{counters['bad']} bad: {bad_file}" if counters["bad"] else "none bad"
    print(f"{counters['upscaled']} upscaled, {counters['present']} were there, {bad}")
    if not counters["upscaled"] + counters["present"]:
        raise UserError(f"no image could be upscaled; {bad_file} has the reasons.")


def run():
    """The command."""
    commands.run(main, define_flags, known_only=True)


if __name__ == "__main__":
    run()
