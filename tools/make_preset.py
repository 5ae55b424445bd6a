"""Makes a preset of a finished training run: the weights alone, and a card with all that is needed to train it again.

python tools/make_preset.py --run=runs/mobile_x2 --name=mobile-x2 --command="python -m drcn_keras.train ..." \\
    --data_dir=../shared/datasets/Set5,../shared/datasets/Set14,../shared/datasets/B100 \\
    --self_ensemble_dir=../shared/datasets/Set5,../shared/datasets/Set14
"""

import os

from absl import flags

from drcn_keras import card, commands
from drcn_keras.commands import FLAGS
from drcn_keras.evaluation import evaluate
from drcn_keras.inputs import loaded


def make_preset(run, name, command, data_dir, self_ensemble_dir, output):
    """Writes `output`/<name>.keras, without the optimiser's state, and <name>.json.

    Raises:
        UserError: the run, or the model that it started from, has no best.keras or no card, or a folder cannot be
            measured.
    """
    trained = loaded(os.path.join(run, "best.keras"))
    # Whatever it was trained in: whoever loads a preset gets float32.
    bare = trained.copy(name="drcn", dtype="float32")
    results = evaluate(trained, data_dir, progress=True)["results"]
    turned = evaluate(trained, self_ensemble_dir, progress=True, self_ensemble=True)["results"]
    made = card.of_preset(run, command, results, turned)
    os.makedirs(output, exist_ok=True)
    path = os.path.join(output, f"{name}.keras")
    bare.save(path)
    card.write(path, made)


def define_flags():
    flags.DEFINE_string("run", None, "a --model_dir of drcn_keras.train", required=True)
    flags.DEFINE_string("name", None, "the preset's name, e.g. mobile-x2", required=True)
    flags.DEFINE_string("command", None, "the command that trained it", required=True)
    commands.define_folders("data_dir", "benchmark folders to measure it on")
    commands.define_folders("self_ensemble_dir", "those to measure it on turned eight ways too")
    commands.require("data_dir", "self_ensemble_dir")
    flags.DEFINE_string("output", os.path.join("drcn_keras", "weights"), "folder for the two files")


def main(argv):
    make_preset(FLAGS.run, FLAGS.name, FLAGS.command, FLAGS.data_dir, FLAGS.self_ensemble_dir, FLAGS.output)


if __name__ == "__main__":
    commands.run(main, define_flags)
