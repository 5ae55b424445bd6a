"""One training run: images, model, callbacks, Keras's fit, and going on where a checkpoint stands."""

import dataclasses
import datetime
import json
import os
import platform
import shutil
import sys
import tempfile
import zlib

import keras
from absl import logging

import drcn_keras
from drcn_keras import callbacks, checkpoint, data, distribute
from drcn_keras.errors import UserError
from drcn_keras.files import remove_partial, write_atomically
from drcn_keras.model import DRCN
from drcn_keras.presets import load
from drcn_keras.settings import Settings, split, zooms


def run(settings):
    """Does what `train.train` says, with settings that were checked."""
    strategy = distribute.choose(settings.strategy, settings.worker_timeout)
    if strategy and settings.xla:
        raise UserError("--xla compiles for one device; it goes with --strategy=default only.")
    workers = distribute.Workers(strategy, settings.worker_timeout)
    keras.utils.set_random_seed(settings.seed)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()

    stream, validation, sources, images = _load_data(settings)
    steps = settings.steps_per_epoch or max(1, len(stream) // settings.batch_size)
    identity = {**_identity(settings), "images": images}
    workers.require_same(json.dumps(identity), "flags or images")
    with distribute.scope(strategy):
        model = _build(settings)

    paths = _run_paths(settings)
    resumed = b""
    if workers.is_chief:
        _prepare_folder(paths, settings.fresh)
        resumed = checkpoint.newest(paths["checkpoints"], lambda meta: _contradiction(identity, meta["settings"]))
    resumed = workers.bytes_from_chief(resumed)

    progress = callbacks.Progress(settings.epochs, settings.time_limit, workers.from_chief)
    card = _Card(settings, sources, paths["best"], progress)
    validate = callbacks.Validation(
        validation,
        settings.validate_every,
        settings.epochs,
        card.save if workers.is_chief else None,
        workers.from_chief,
    )
    plateau = callbacks.Plateau()
    stateful = {"progress": progress, "validation": validate}
    if settings.schedule == "plateau":
        stateful["plateau"] = plateau

    step = 0
    if resumed:
        step = _restore(model, resumed, stateful)
        logging.info("resuming after step %d (epoch %d)", step, step // steps)
        if plateau.done or progress(step // steps) >= 1.0:
            logging.info("this run has ended; --epochs or --time_limit extends it, --fresh starts over")
            return card.read()

    saver = callbacks.Checkpoints(
        paths["checkpoints"],
        identity,
        stateful,
        settings.epochs,
        settings.checkpoint_every,
        settings.keep_checkpoints,
        workers,
    )
    # In this order: nothing is measured or kept after a NaN, records see what was measured, the state comes last.
    rules = [callbacks.NonFiniteGuard(step), *_schedules(settings, progress), callbacks.TimeLimit(progress), validate]
    if settings.schedule == "plateau":
        rules.append(plateau)
    if workers.is_chief:
        rules += _records(settings, paths, min(validation, key=lambda pair: pair.hr.size))
    if not workers.alone:
        rules.insert(0, distribute.StepWatch(workers))
    rules.append(saver)
    verbose = (1 if sys.stdout.isatty() else 2) if workers.is_chief else 0
    with saver.signals(), workers.watch_errors():
        _fit(model, stream, step, steps, settings.epochs, rules, strategy, verbose)
    return card.read() if workers.is_chief else {}


def _fit(model, stream, step, steps, epochs, rules, strategy, verbose):
    """Runs `fit` from any step on. An epoch that was broken off is first brought to its end."""
    epoch, offset = divmod(step, steps)
    common = {"callbacks": rules, "shuffle": False, "verbose": verbose}
    if offset:
        batches = distribute.training_data(stream, step, strategy)
        model.fit(batches, initial_epoch=epoch, epochs=epoch + 1, steps_per_epoch=steps - offset, **common)
        epoch, step = epoch + 1, step + steps - offset
        if model.stop_training:
            return
    if epoch < epochs:
        batches = distribute.training_data(stream, step, strategy)
        model.fit(batches, initial_epoch=epoch, epochs=epochs, steps_per_epoch=steps, **common)


def _schedules(settings, progress):
    """The callbacks that move alpha and the learning rate by the share of the run that is done."""
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
    return rules


def _records(settings, paths, sample):
    """The callbacks that write what happened."""
    rules = [callbacks.CSVLog(paths["log"], ["loss", "alpha", "lr", "val_psnr", "val_bicubic"])]
    if settings.tensorboard:
        rules.append(callbacks.TensorBoardLog(paths["tensorboard"], sample))
    return rules


def _run_paths(settings):
    """What a run leaves in its folder, by purpose."""
    names = {
        "best": "best.keras",
        "card": "best.json",
        "log": "log.csv",
        "checkpoints": "checkpoints",
        "tensorboard": "tensorboard",
    }
    return {purpose: os.path.join(settings.model_dir, name) for purpose, name in names.items()}


def _prepare_folder(paths, fresh):
    """Makes the run's folder, without what an earlier run left under `fresh` and what a killed one half wrote."""
    if fresh:
        for path in paths.values():
            if os.path.isdir(path):
                shutil.rmtree(path)
            elif os.path.exists(path):
                os.unlink(path)
    os.makedirs(paths["checkpoints"], exist_ok=True)
    remove_partial(paths["checkpoints"])
    remove_partial(os.path.dirname(paths["best"]))


def _load_data(settings):
    """Returns the patch stream, the validation pairs, what the card says of both, and a checksum of the images."""
    folders = split(settings.train_dir)
    train_paths = data.list_folders(folders)
    if settings.val_dir:
        val_folders = split(settings.val_dir)
        val_paths = data.list_folders(val_folders)
    else:
        val_folders = folders
        train_paths, val_paths = data.split_holdout(train_paths, settings.holdout)
    pairs = data.load_pairs(train_paths, settings.scale, settings.channels, settings.patch_size, zooms(settings))
    validation = data.load_pairs(val_paths, settings.scale, settings.channels, 4 * settings.scale)
    stream = data.PatchStream(
        pairs, settings.patch_size, settings.stride, settings.batch_size, settings.seed, settings.augment
    )
    used = len({pair.path for pair in pairs})
    logging.info("%d patches of %d images; %d images to validate", len(stream), used, len(validation))
    sources = {
        "train_sets": [os.path.basename(os.path.normpath(name)) for name in folders],
        "train_images": used,
        "patches": len(stream),
        "val_sets": [os.path.basename(os.path.normpath(name)) for name in val_folders],
        "val_images": len(validation),
    }
    checksum = 0
    for pair in pairs + validation:
        checksum = zlib.crc32(pair.hr.tobytes(), checksum)
    return stream, validation, sources, checksum


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
    arrays, meta = checkpoint.unpack(resumed)
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


def _contradiction(identity, saved):
    """Why a checkpoint made with the settings `saved` does not fit this run, or None."""
    defaults = {field.name: field.default for field in dataclasses.fields(Settings)}
    for name, value in identity.items():
        # A setting that the checkpoint does not know had its default's effect when it was written.
        before = saved.get(name, defaults.get(name, value))
        if before == value:
            continue
        if name == "images":
            clash = "the images of --train_dir or --val_dir are not those that the checkpoint in --model_dir saw"
        else:
            clash = f"--{name}={value} contradicts the checkpoint in --model_dir, made with --{name}={before}"
        return f"{clash}; use the same, another --model_dir, or --fresh to start over."
    return None


class _Card:
    """Writes the best model and, beside it, the JSON card that says what it is and how it was made."""

    def __init__(self, settings, sources, path, progress):
        self.settings = settings
        self.sources = sources
        self.path = path
        self.progress = progress

    def save(self, model, logs, epoch):
        packed = _packed(model, self.path)
        write_atomically(self.path, lambda file: file.write(packed))
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


def _packed(model, path):
    """The bytes of the model's .keras file; Keras writes one by name only."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            temporary = os.path.join(folder, "best.keras")
            model.save(temporary)
            with open(temporary, "rb") as file:
                return file.read()
    except OSError as error:
        raise UserError(
            f"{path} could not be written: {error.strerror or error}; what was there is unchanged."
        ) from error


def _card_path(path):
    return os.path.splitext(path)[0] + ".json"
