"""Makes a preset of a finished training run: the weights alone, and a card with all that is needed to train it again.

python tools/make_preset.py --run=runs/mobile_x2 --name=mobile-x2 --command="python -m drcn_keras.train ..." \\
    --data_dir=../shared/datasets/Set5,../shared/datasets/Set14,../shared/datasets/B100
"""

import csv
import json
import os

from absl import flags

from drcn_keras import errors
from drcn_keras.callbacks import write_card
from drcn_keras.errors import UserError
from drcn_keras.evaluation import evaluate
from drcn_keras.model import DRCN
from drcn_keras.presets import load

flags.DEFINE_string("run", None, "a --model_dir of drcn_keras.train", required=True)
flags.DEFINE_string("name", None, "the preset's name, e.g. mobile-x2", required=True)
flags.DEFINE_string("command", None, "the command that trained it", required=True)
flags.DEFINE_list("data_dir", None, "benchmark folders to measure it on", required=True)
flags.DEFINE_string("output", os.path.join("drcn_keras", "weights"), "folder for the two files")


def make_preset(run, name, command, data_dir, output):
    """Writes `output`/<name>.keras, without the optimiser's state, and <name>.json.

    Raises:
        UserError: the run, or the model that it started from, has no best.keras or no card, or a folder cannot be
            measured.
    """
    trained = load(os.path.join(run, "best.keras"))
    card = _training(os.path.join(run, "best.json"))
    with open(os.path.join(run, "log.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    bare = DRCN(**{**trained.get_config(), "name": "drcn"})
    bare.set_weights(trained.get_weights())
    card["command"] = command
    card["val_curve"] = [[int(row["epoch"]), float(row["val_psnr"])] for row in rows if row["val_psnr"]]
    card["results"] = [
        {"dataset": result["dataset"], "scale": result["scale"], "images": len(result["images"]), **result["mean"]}
        for result in evaluate(trained, data_dir, progress=True)["results"]
    ]
    os.makedirs(output, exist_ok=True)
    bare.save(os.path.join(output, f"{name}.keras"))
    write_card(os.path.join(output, f"{name}.json"), card)


def _training(path):
    """The card at `path`, and under "init" that of the model the training started from, if it did."""
    if not os.path.isfile(path):
        raise UserError(f"no card at {path}; expected one beside the best.keras of a training run.")
    with open(path) as file:
        card = json.load(file)
    init = card["flags"].get("init")
    if init:
        card["init"] = _training(os.path.splitext(init)[0] + ".json")
    # Folders of the machine that trained are nobody's business; the command names the data sets.
    card["flags"] = {key: value for key, value in card["flags"].items() if not key.endswith("_dir") and key != "init"}
    return card


def main(argv):
    given = flags.FLAGS
    make_preset(given.run, given.name, given.command, given.data_dir, given.output)


if __name__ == "__main__":
    errors.run(main)
