"""Trains a DRCN: `python -m drcn_keras.train --flagfile=... --train_dir=... --model_dir=...`.

Running the same command again goes on where the last checkpoint stands.
"""

import dataclasses
import os

from absl import flags, logging

from drcn_keras import commands
from drcn_keras.commands import FLAGS
from drcn_keras.settings import Settings, check, element_type


def train(settings: Settings) -> dict:
    """Trains one DRCN, or goes on with the run that stands in `settings.model_dir`.

    Leaves there: best.keras, the model with the highest validation PSNR; best.json, its card; log.csv;
    checkpoints/; tensorboard/.

    Args:
        settings: a `Settings`.

    Returns:
        dict, the card of the best model; empty in a worker that is not the chief.

    Raises:
        UserError: a setting (then it is a ValueError too), an image or a folder is wrong, or the loss became NaN.
        errors.Stopped: SIGTERM or SIGINT arrived; a checkpoint was written.
    """
    check(settings)
    commands.prepare_tensorflow()
    # Imported here, so that --help and a wrong path do not wait for TensorFlow, and Ctrl-C finds a command to end.
    from drcn_keras.inputs import import_keras

    import_keras(start=False)
    from drcn_keras import trainer

    return trainer.run(settings)


def define_flags() -> None:
    """Defines a flag for every field of `Settings`, and --preset_flags."""
    commands.define_preset_flags()
    for field in dataclasses.fields(Settings):
        text = field.metadata["help"]
        if field.metadata["choices"]:
            text += f" ({' | '.join(str(choice) for choice in field.metadata['choices'])})"
        _define(field)(field.name, _flag_default(field), text)


def _define(field):
    element = element_type(field)
    if element is None:
        return {
            bool: flags.DEFINE_boolean,
            int: flags.DEFINE_integer,
            float: flags.DEFINE_float,
            str: flags.DEFINE_string,
        }[field.type]
    # Folders are repeated, numbers in a later flag replace those of a flagfile.
    return flags.DEFINE_multi_string if element is str else flags.DEFINE_list


def _flag_default(field):
    return [str(part) for part in field.default] if element_type(field) else field.default


def main(argv: list[str]) -> None:
    commands.refuse_arguments(argv)
    settings = Settings(**{field.name: FLAGS[field.name].value for field in dataclasses.fields(Settings)})
    card = train(settings)
    if card:
        best = os.path.join(settings.model_dir, "best.keras")
        print(f"{best}: {card['val_psnr']:.2f} dB (bicubic {card['val_bicubic_psnr']:.2f} dB)")


def run() -> None:
    """The command `drcn-train`."""
    logging.set_verbosity(logging.INFO)
    commands.run(main, define_flags)


if __name__ == "__main__":
    run()
