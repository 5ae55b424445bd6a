"""The paper's studies on networks of any size: a plot, its numbers and the command that made them.

drcn-study recursions --flagfile=FLAGS --train_dir=T91 --data_dir=Set5 --output=DIR
drcn-study ensemble --model=A.keras,B.keras --data_dir=Set5 --output=DIR
drcn-study weights --model=A.keras,B.keras --output=DIR

Every flag of drcn_keras.train is a flag here too, for the networks that a study trains. Running a command again goes
on with a training that was broken off.
"""

import dataclasses
import os

from absl import flags

from drcn_keras import commands, errors, train
from drcn_keras.commands import FLAGS
from drcn_keras.errors import UserError
from drcn_keras.files import make_folder
from drcn_keras.image_files import list_images
from drcn_keras.settings import Settings

STUDIES = ("recursions", "ensemble", "weights")
# Section 4.2 of arXiv 1511.04491 compares these depths on Set5 x3.
PAPER_DEPTHS = ["1", "6", "11", "16"]


def define_flags():
    """Defines this tool's flags and those of drcn_keras.train."""
    flags.DEFINE_string("output", "", "folder for the plot, the CSV and the JSON; trainings go to its subfolder runs/")
    commands.define_folders("data_dir", "folders of test images")
    flags.DEFINE_list(
        "model", [], "ensemble, weights: trained models, separated by commas; none: train one with the training flags"
    )
    flags.DEFINE_list("depths", PAPER_DEPTHS, "recursions: the numbers of recursions D to train")
    train.define_flags()
    commands.require("output")


def main(argv):
    if len(argv) != 2 or argv[1] not in STUDIES:
        raise UserError(f"expected one study of {', '.join(STUDIES)}; received {' '.join(argv[1:]) or 'none'}.")
    study = argv[1]
    training = _training_flags()
    if study != "weights" and not FLAGS.data_dir:
        raise UserError("--data_dir is required: folders of test images.")
    for folder in FLAGS.data_dir or []:
        list_images(folder)
    if FLAGS.model and (training or study == "recursions"):
        raise UserError("--model is trained already; it goes with ensemble and weights, and without training flags.")
    if not FLAGS.model and not FLAGS.train_dir:
        raise UserError("expected --model, or --train_dir and the flags of a training; received neither.")
    depths = sorted(set(commands.whole_numbers("depths", 1)))
    with errors.extra("report"):
        from drcn_keras.reporting import studies
    make_folder(FLAGS.output)
    if study == "recursions":
        studies.recursions(FLAGS.output, FLAGS.data_dir, depths, training)
        return
    models = FLAGS.model or [studies.train_model(os.path.join(FLAGS.output, "runs", "model"), training)]
    if study == "ensemble":
        studies.ensemble(FLAGS.output, FLAGS.data_dir, models)
    else:
        studies.weights(FLAGS.output, models)


def _training_flags():
    """The training flags that were given, here or in a flagfile, as arguments for drcn_keras.train."""
    given = [FLAGS[field.name] for field in dataclasses.fields(Settings) if FLAGS[field.name].present]
    if any(flag.name == "model_dir" for flag in given):
        raise UserError("--model_dir is not for a study: its trainings go to --output.")
    return [argument for flag in given for argument in flag.serialize().split("\n")]


def run():
    """The command `drcn-study`."""
    commands.run(main, define_flags)


if __name__ == "__main__":
    run()
