"""Trains a DRCN: `python -m drcn_keras.train --flagfile=... --train_dir=... --model_dir=...`.

Running the same command again goes on where the last checkpoint stands.
"""

import dataclasses
import datetime
import json
import os
import platform
import shutil
import sys

# oneDNN makes a training step about three times as fast on CPUs where TensorFlow leaves it off; it must be set
# before TensorFlow is imported.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import keras
from absl import flags, logging

import drcn_keras
from drcn_keras import callbacks, checkpoint, data, distribute, errors
from drcn_keras.errors import UserError
from drcn_keras.model import DRCN, SCALES, load


def _setting(default, text, choices=None, low=None, high=None, resumable=False):
    """A field of Settings. A `resumable` one may differ between a run and its resumption."""
    metadata = {"help": text, "choices": choices, "low": low, "high": high, "resumable": resumable}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides a training run; every field is a flag of the same name.

    Defaults are the paper's (sections 3.3 and 4.1 of arXiv 1511.04491) where the help says so.
    """

    train_dir: str = _setting("", "folders of training photographs, separated by commas")
    val_dir: str = _setting("", "folders of validation photographs; empty: hold out training images, see --holdout")
    model_dir: str = _setting(
        "", "where best.keras, its card, log.csv, checkpoints and TensorBoard logs go", resumable=True
    )
    init: str = _setting("", "a DRCN .keras file whose weights training starts from, e.g. another scale's")
    holdout: int = _setting(8, "training images kept for validation when --val_dir is empty", low=1)
    scale: int = _setting(2, "enlargement", choices=SCALES)
    channels: int = _setting(1, "1: luma, as the paper; 3: RGB", choices=(1, 3))
    filters: int = _setting(256, "feature maps F (paper: 256)", low=1)
    recursions: int = _setting(16, "recursions D (paper: 16)", low=1)
    patch_size: int = _setting(41, "pixels (paper: 41)", low=3)
    stride: int = _setting(21, "pixels from patch to patch (paper: 21)", low=1)
    zooms: str = _setting("1", "multi-scale augmentation: shrink every image by these factors too, e.g. 1,0.8,0.6")
    augment: bool = _setting(True, "flip and rotate patches")
    batch_size: int = _setting(64, "patches a step over all replicas (paper: 64)", low=1)
    epochs: int = _setting(100, "planned epochs", low=1, resumable=True)
    steps_per_epoch: int = _setting(0, "0: one pass over the patches", low=0)
    time_limit: float = _setting(
        0.0,
        "minutes, restarts included; 0: none. Schedules follow epochs or clock, whichever is further",
        low=0.0,
        resumable=True,
    )
    optimizer: str = _setting("sgd", "sgd (paper) or adam", choices=("sgd", "adam"))
    momentum: float = _setting(0.9, "of sgd (paper: 0.9)", low=0.0, high=1.0)
    learning_rate: float = _setting(0.01, "of the first epoch (paper: 0.01)", low=0.0)
    schedule: str = _setting(
        "plateau", "plateau (paper), cosine or constant learning rate", choices=("plateau", "cosine", "constant")
    )
    clip_norm: float = _setting(0.0, "largest norm of the whole gradient; 0: no clipping", low=0.0)
    beta: float = _setting(1e-4, "weight decay (paper: 1e-4)", low=0.0)
    alpha_schedule: str = _setting("linear", "how alpha falls", choices=("linear", "cosine", "exponential"))
    alpha_start: float = _setting(1.0, "alpha of the first epoch", low=0.0, high=1.0)
    alpha_end: float = _setting(0.0, "alpha of the last epoch; must be > 0 for exponential", low=0.0, high=1.0)
    alpha_until: float = _setting(0.5, "share of the run at which alpha has reached --alpha_end", low=0.001, high=1.0)
    seed: int = _setting(0, "of weights, order, flips and rotations", low=0)
    precision: str = _setting("float32", "what the layers compute in", choices=("float32", "mixed_bfloat16"))
    xla: bool = _setting(False, "compile the step with XLA (TensorFlow; JAX always does)", resumable=True)
    strategy: str = _setting("default", "how training is spread", choices=distribute.STRATEGIES, resumable=True)
    validate_every: int = _setting(1, "epochs between validations", low=1)
    checkpoint_every: int = _setting(1, "epochs between checkpoints", low=1, resumable=True)
    keep_checkpoints: int = _setting(3, "checkpoints kept", low=1, resumable=True)
    tensorboard: bool = _setting(True, "write TensorBoard logs", resumable=True)
    fresh: bool = _setting(False, "delete the run in --model_dir and start over", resumable=True)


def train(settings):
    """Trains one DRCN, or goes on with the run that stands in `settings.model_dir`.

    Leaves there: best.keras, the model with the highest validation PSNR; best.json, its card; log.csv;
    checkpoints/; tensorboard/.

    Args:
        settings: a `Settings`.

    Returns:
        dict, the card of the best model.

    Raises:
        UserError: a setting, an image or a folder is wrong, or the loss became NaN.
        callbacks.Stopped: SIGTERM or SIGINT arrived; a checkpoint was written.
    """
    _check(settings)
    folder = _run_folder(settings)
    strategy = distribute.choose(settings.strategy)
    keras.utils.set_random_seed(settings.seed)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()

    resumed = checkpoint.newest(folder["checkpoints"])
    if resumed:
        _refuse_contradictions(settings, resumed[1]["settings"])
    stream, validation, sources = _load_data(settings)
    with distribute.scope(strategy):
        model = _build(settings)

    steps = settings.steps_per_epoch or max(1, len(stream) // settings.batch_size)
    progress = callbacks.Progress(settings.epochs, settings.time_limit)
    card = _Card(settings, sources, folder["best"], progress)
    validate = callbacks.Validation(validation, settings.validate_every, settings.epochs, card.save)
    stateful = {"progress": progress, "validation": validate}
    rules = [
        callbacks.AlphaAnnealing(
            1,
            settings.alpha_schedule,
            settings.alpha_start,
            settings.alpha_end,
            lambda epoch: progress(epoch) / settings.alpha_until,
        )
    ]
    if settings.schedule == "cosine":
        rules.append(callbacks.CosineLearningRate(settings.learning_rate, progress))
    rules += [callbacks.TimeLimit(progress), validate]
    if settings.schedule == "plateau":
        stateful["plateau"] = callbacks.Plateau()
        rules.append(stateful["plateau"])
    rules.append(callbacks.CSVLog(folder["log"], ["loss", "alpha", "lr", "val_psnr", "val_bicubic"]))
    if settings.tensorboard:
        rules.append(callbacks.TensorBoardLog(folder["tensorboard"], min(validation, key=lambda pair: pair.hr.size)))
    saver = callbacks.Checkpoints(
        folder["checkpoints"],
        _identity(settings),
        stateful,
        steps,
        settings.checkpoint_every,
        settings.keep_checkpoints,
    )

    step = 0
    if resumed:
        step = _restore(model, resumed, stateful)
        logging.info("resuming after step %d (epoch %d)", step, step // steps)
        if resumed[1]["finished"]:
            logging.info("this run has ended; --fresh starts over")
            return card.read()
    rules = [callbacks.NonFiniteGuard(step), *rules, saver]
    _fit(model, stream, step, steps, settings.epochs, rules, strategy)
    return card.read()


def _fit(model, stream, step, steps, epochs, rules, strategy):
    """Runs `fit` from any step on. An epoch that was broken off is first brought to its end."""
    epoch, offset = divmod(step, steps)
    common = {"callbacks": rules, "shuffle": False, "verbose": 1 if sys.stdout.isatty() else 2}
    if offset and epoch < epochs:
        batches = distribute.training_data(stream, step, strategy)
        model.fit(batches, initial_epoch=epoch, epochs=epoch + 1, steps_per_epoch=steps - offset, **common)
        epoch, step = epoch + 1, step + steps - offset
        if model.stop_training:
            return
    if epoch < epochs:
        batches = distribute.training_data(stream, step, strategy)
        model.fit(batches, initial_epoch=epoch, epochs=epochs, steps_per_epoch=steps, **common)


def _check(settings):
    """Raises UserError where a setting is out of its range; the flags' own checks see only the command line."""
    for field in dataclasses.fields(settings):
        value, rule = getattr(settings, field.name), field.metadata
        if rule["choices"] and value not in rule["choices"]:
            expected = ", ".join(str(choice) for choice in rule["choices"])
            raise UserError(f"--{field.name} must be one of {expected}; received {value}.")
        for bound, wrong in (("low", lambda a, b: a < b), ("high", lambda a, b: a > b)):
            if rule[bound] is not None and wrong(value, rule[bound]):
                word = "least" if bound == "low" else "most"
                raise UserError(f"--{field.name} must be at {word} {rule[bound]}; received {value}.")
    for name in ("train_dir", "model_dir"):
        if not getattr(settings, name):
            raise UserError(f"--{name} is required.")
    if settings.alpha_schedule == "exponential" and not (settings.alpha_start > 0 and settings.alpha_end > 0):
        raise UserError(f"--alpha_end must be > 0 with --alpha_schedule=exponential; received {settings.alpha_end}.")
    if settings.learning_rate <= 0:
        raise UserError(f"--learning_rate must be > 0; received {settings.learning_rate}.")


def _run_folder(settings):
    """Makes the run's folder, emptied first under --fresh. Returns its paths by purpose."""
    names = {"best": "best.keras", "log": "log.csv", "checkpoints": "checkpoints", "tensorboard": "tensorboard"}
    paths = {purpose: os.path.join(settings.model_dir, name) for purpose, name in names.items()}
    if settings.fresh:
        for path in (*paths.values(), _card_path(paths["best"])):
            if os.path.isdir(path):
                shutil.rmtree(path)
            elif os.path.exists(path):
                os.unlink(path)
    os.makedirs(paths["checkpoints"], exist_ok=True)
    return paths


def _load_data(settings):
    """Returns the patch stream, the validation pairs and what the card says of both."""
    folders = _split(settings.train_dir)
    train_paths = data.list_folders(folders)
    if settings.val_dir:
        val_folders = _split(settings.val_dir)
        val_paths = data.list_folders(val_folders)
    else:
        val_folders = folders
        train_paths, val_paths = data.split_holdout(train_paths, settings.holdout)
    pairs = data.load_pairs(
        train_paths, settings.scale, settings.channels, settings.patch_size, _numbers("zooms", settings.zooms)
    )
    validation = data.load_pairs(val_paths, settings.scale, settings.channels, 4 * settings.scale)
    stream = data.PatchStream(
        pairs, settings.patch_size, settings.stride, settings.batch_size, settings.seed, settings.augment
    )
    logging.info("%d patches of %d images; %d images to validate", len(stream), len(train_paths), len(validation))
    sources = {
        "train_sets": [os.path.basename(os.path.normpath(name)) for name in folders],
        "train_images": len(train_paths),
        "patches": len(stream),
        "val_sets": [os.path.basename(os.path.normpath(name)) for name in val_folders],
        "val_images": len(validation),
    }
    return stream, validation, sources


def _build(settings):
    """A compiled DRCN whose optimiser has its slots, ready to be restored."""
    model = DRCN(
        recursions=settings.recursions,
        filters=settings.filters,
        channels=settings.channels,
        scale=settings.scale,
        beta=settings.beta,
        dtype=settings.precision,
    )
    clip = {"global_clipnorm": settings.clip_norm} if settings.clip_norm else {}
    if settings.optimizer == "sgd":
        optimizer = keras.optimizers.SGD(settings.learning_rate, momentum=settings.momentum, **clip)
    else:
        optimizer = keras.optimizers.Adam(settings.learning_rate, **clip)
    if settings.init:
        _start_from(model, load(settings.init), settings.init)
    model.compile(optimizer=optimizer, jit_compile=settings.xla or keras.backend.backend() == "jax")
    optimizer.build(model.trainable_variables)
    return model


def _start_from(model, other, path):
    """Copies another DRCN's weights; alpha stays at its start."""
    for name in ("filters", "recursions", "channels"):
        if getattr(other, name) != getattr(model, name):
            raise UserError(f"--init: {path} has {name} {getattr(other, name)}; this run has {getattr(model, name)}.")
    for ours, theirs in zip(model.trainable_weights, other.trainable_weights, strict=True):
        ours.assign(theirs)


def _restore(model, resumed, stateful):
    """Puts a checkpoint into the model and the callbacks. Returns the step it was written at."""
    arrays, meta = resumed
    checkpoint.restore(model, arrays)
    for name, owner in stateful.items():
        owner.restore(meta["state"][name])
    return meta["step"]


def _identity(settings):
    """The settings that a resumed run must share with its checkpoint."""
    return {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(settings)
        if not field.metadata["resumable"]
    }


def _refuse_contradictions(settings, saved):
    for name, value in _identity(settings).items():
        if saved.get(name) != value:
            raise UserError(
                f"--{name}={value} contradicts the checkpoint in --model_dir, made with --{name}={saved.get(name)}; "
                "use the same value, another --model_dir, or --fresh to start over."
            )


class _Card:
    """Writes the best model and, beside it, the JSON card that says what it is and how it was made."""

    def __init__(self, settings, sources, path, progress):
        self.settings = settings
        self.sources = sources
        self.path = path
        self.progress = progress

    def save(self, model, logs, epoch):
        partial = os.path.join(os.path.dirname(self.path), ".partial-best.keras")
        model.save(partial)
        os.replace(partial, self.path)
        card = {
            "package_version": drcn_keras.__version__,
            "keras": keras.__version__,
            "backend": keras.backend.backend(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "date": datetime.date.today().isoformat(),
            "scale": model.scale,
            "filters": model.filters,
            "recursions": model.recursions,
            "channels": model.channels,
            "parameters": model.count_params(),
            "epoch": epoch + 1,
            "minutes": round(self.progress.elapsed, 1),
            "val_psnr": round(logs["val_psnr"], 4),
            "val_bicubic_psnr": round(logs["val_bicubic"], 4),
            "flags": dataclasses.asdict(self.settings),
            **self.sources,
        }
        callbacks.write_card(_card_path(self.path), card)

    def read(self):
        if not os.path.exists(_card_path(self.path)):
            return {}
        with open(_card_path(self.path)) as file:
            return json.load(file)


def _card_path(path):
    return os.path.splitext(path)[0] + ".json"


def _split(text):
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(name, text):
    try:
        numbers = tuple(float(part) for part in _split(text))
    except ValueError:
        raise UserError(f"--{name} must be numbers separated by commas; received {text!r}.") from None
    if not numbers or not all(0.0 < number <= 1.0 for number in numbers):
        raise UserError(f"--{name} must be numbers in (0, 1]; received {text!r}.")
    return numbers


def _define_flags():
    define = {
        bool: flags.DEFINE_boolean,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        str: flags.DEFINE_string,
    }
    for field in dataclasses.fields(Settings):
        text = field.metadata["help"]
        if field.metadata["choices"]:
            text += f" ({' | '.join(str(choice) for choice in field.metadata['choices'])})"
        define[field.type](field.name, field.default, text)


def main(argv):
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; every setting is a --flag (--help lists them).")
    settings = Settings(**{field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(Settings)})
    try:
        card = train(settings)
    except callbacks.Stopped as stopped:
        logging.info("%s", stopped)
        return
    print(f"{settings.model_dir}/best.keras: {card['val_psnr']:.2f} dB (bicubic {card['val_bicubic_psnr']:.2f} dB)")


def run():
    """The command `drcn-train`."""
    _define_flags()
    logging.set_verbosity(logging.INFO)
    errors.run(main)


if __name__ == "__main__":
    run()
