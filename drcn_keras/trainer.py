"""One training run: images, model, callbacks, Keras's fit, and going on where a checkpoint stands."""

import contextlib
import dataclasses
import json
import math
import os
import sys

import keras
from absl import logging

from drcn_keras import callbacks, card, checkpoint, distribute, records, safekeeping
from drcn_keras.errors import ArgumentError, UserError
from drcn_keras.files import write_model
from drcn_keras.image import as_scales
from drcn_keras.model import DRCN
from drcn_keras.precision import announced, layer_policy
from drcn_keras.presets import load
from drcn_keras.run_folder import RunFolder
from drcn_keras.settings import Settings, as_json, spelled
from drcn_keras.soap import Soap
from drcn_keras.thinning import Thinning
from drcn_keras.training_images import load_images
from drcn_keras.validation import Validation
from drcn_keras.widening import widened


def run(settings: Settings) -> dict:
    """Does what `train.train` says, with settings that were checked."""
    strategy = distribute.choose(settings.strategy, settings.worker_timeout)
    if strategy and settings.xla:
        raise ArgumentError("`xla` compiles for one device; it goes with `strategy=default` only.")
    workers = distribute.Workers(strategy, settings.worker_timeout)
    folder = RunFolder(settings.model_dir)
    with folder.locked() if workers.is_chief else contextlib.nullcontext():
        return _run(settings, strategy, workers, folder)


def _run(settings, strategy, workers, folder):
    settings = _with_precision(settings, workers, folder)
    _make_repeatable(settings)
    inputs = load_images(settings)
    steps = settings.steps_per_epoch or max(1, len(inputs.stream) // settings.batch_size)
    identity = {**_identity(settings), "images": inputs.checksum}
    workers.require_same(json.dumps(identity), "flags or images")
    with distribute.scope(strategy):
        model = _build(settings)
    if workers.is_chief:
        folder.prepare(settings.fresh)

    clock = callbacks.RunClock(settings.epochs, settings.time_limit, workers.from_chief)
    save_best = _best_saver(settings, inputs.sources, folder.best, clock) if workers.is_chief else None
    validate = Validation(inputs.validation, settings.validate_every, settings.epochs, save_best, workers.from_chief)
    stateful = {"progress": clock, "validation": validate}
    if settings.schedule == "plateau":
        stateful["plateau"] = callbacks.Plateau()
    if settings.outputs:
        stateful["thinning"] = Thinning(
            settings.outputs, inputs.stream.pairs, workers.bytes_from_chief, untrained=not settings.init
        )
    resumed = _newest(model, folder, identity, stateful) if workers.is_chief else b""
    resumed = workers.bytes_from_chief(resumed)
    step = _restore(model, resumed, stateful) if resumed else 0
    if resumed:
        logging.info("resuming after step %d (epoch %d)", step, step // steps)
        missing = workers.is_chief and not os.path.isfile(folder.best)
        if _has_ended(stateful, step // steps):
            workers.part()
            if missing:
                raise UserError(f"this run has ended, and {folder.best} is missing; extend it by epochs or time_limit.")
            logging.info("this run has ended; epochs or time_limit extends it, fresh starts over")
            return card.read(folder.best)
        if missing:
            logging.warning("%s is missing; the next validated epoch writes it, whatever came before", folder.best)
            validate.best = -math.inf

    # Not before: a run that is refused or has ended needs none of them, and they take long.
    if inputs.teacher:
        inputs.stream.pairs = inputs.teacher.lessons(inputs.stream.pairs, folder.lessons)
    saver = _saver(settings, folder, identity, stateful, workers)
    rules = _rules(settings, stateful, inputs, folder, workers)
    with saver.signals(), workers.watch_errors():
        _fit(model, inputs.stream, step, steps, settings.epochs, [*rules, saver], strategy, _verbosity(workers))
    workers.part()
    return card.read(folder.best) if workers.is_chief else {}


def _with_precision(settings, workers, folder):
    """The settings with what `precision` "auto" comes to: in a run that goes on, what it began with."""
    name = ""
    if workers.is_chief:
        asked = settings.precision
        began = checkpoint.newest_settings(folder.checkpoints) if asked == "auto" and not settings.fresh else {}
        name = began.get("precision") or announced(asked)
    return dataclasses.replace(settings, precision=workers.bytes_from_chief(name.encode()).decode())


def _make_repeatable(settings):
    keras.utils.set_random_seed(settings.seed)
    # Keras compiles nothing with XLA once TensorFlow was told this; XLA's own code is repeatable on a CPU.
    if keras.backend.backend() == "tensorflow" and not settings.xla:
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()


def _has_ended(stateful, epoch):
    """Whether a restored run has nothing left to do."""
    return stateful["progress"](epoch) >= 1.0 or ("plateau" in stateful and stateful["plateau"].done)


def _saver(settings, folder, identity, stateful, workers):
    return safekeeping.Checkpoints(
        folder.checkpoints,
        identity,
        stateful,
        settings.epochs,
        settings.checkpoint_every,
        settings.keep_checkpoints,
        workers,
    )


def _verbosity(workers):
    """Keras's: a progress bar in a terminal, a line per epoch elsewhere, nothing from workers that are no chief."""
    if not workers.is_chief:
        return 0
    return 1 if sys.stdout.isatty() else 2


def _rules(settings, stateful, inputs, folder, workers):
    """Every callback but the one that saves the state."""
    clock = stateful["progress"]
    # In this order: nothing is measured or kept after a NaN, records see what was measured, the state comes last.
    rules = [
        safekeeping.NonFiniteGuard(),
        *_schedules(settings, clock),
        *([stateful["thinning"]] if "thinning" in stateful else []),
        callbacks.TimeLimit(clock),
        callbacks.TimeLeft(clock),
        stateful["validation"],
    ]
    if "plateau" in stateful:
        rules.append(stateful["plateau"])
    if workers.is_chief:
        rules += _records(settings, folder, min(inputs.validation, key=lambda pair: pair.original.size))
    if not workers.alone:
        rules.insert(0, distribute.StepWatch(workers))
    return rules


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


def _schedules(settings, clock):
    """The callbacks that move alpha and the learning rate by the share of the run that is done."""
    rules = [
        callbacks.AlphaAnnealing(
            1,
            settings.alpha_schedule,
            settings.alpha_start,
            settings.alpha_end,
            lambda epoch: clock(epoch) / settings.alpha_until,
        )
    ]
    if settings.schedule == "cosine":
        rules.append(callbacks.CosineLearningRate(settings.learning_rate, clock))
    if settings.warmup:
        rate = rules[-1].value if settings.schedule == "cosine" else lambda epoch: settings.learning_rate
        rules.append(callbacks.WarmUp(settings.warmup, rate))
    return rules


def _records(settings, folder, sample):
    """The callbacks that write what happened."""
    columns = ["loss", "alpha", "lr", "val_psnr", "val_bicubic"]
    if len(settings.scale) > 1:
        columns += [f"val_psnr_x{scale}" for scale in settings.scale]
    rules = [records.CSVLog(folder.log, columns)]
    if settings.tensorboard:
        rules.append(records.TensorBoardLog(folder.tensorboard, sample))
    return rules


def _build(settings):
    """A compiled DRCN whose optimiser has its slots, ready to be restored."""
    model = DRCN(
        recursions=settings.recursions,
        filters=settings.filters,
        channels=settings.channels,
        scale=settings.scale,
        beta=settings.beta,
        dtype=layer_policy(settings.precision),
    )
    optimizer = _optimizer(settings)
    if settings.init:
        _start_from(model, load(settings.init), settings)
    model.compile(optimizer=optimizer, jit_compile=settings.xla or keras.backend.backend() == "jax")
    if settings.xla and not model.jit_compile:
        raise ArgumentError("`xla` needs a process of its own: a training without it was here before.")
    optimizer.build(model.trainable_variables)
    return model


def _optimizer(settings):
    options: dict = {"global_clipnorm": settings.clip_norm} if settings.clip_norm else {}
    if settings.average:
        options |= {"use_ema": True, "ema_momentum": settings.average}
    if settings.optimizer == "sgd":
        optimizer = keras.optimizers.SGD(settings.learning_rate, momentum=settings.momentum, **options)
    else:
        kind = {"adam": keras.optimizers.Adam, "soap": Soap}[settings.optimizer]
        optimizer = kind(settings.learning_rate, **options)
    safekeeping.average_weights(optimizer)
    return optimizer


def _start_from(model, other, settings):
    """Takes another DRCN's weights, grown where it has fewer filters or recursions; alpha stays at its start."""
    if other.channels != model.channels:
        raise ArgumentError(f"`init`: {settings.init} has channels {other.channels}; this run has {model.channels}.")
    for name in ("filters", "recursions"):
        theirs, ours = getattr(other, name), getattr(model, name)
        if theirs > ours:
            raise ArgumentError(
                f"`init`: {settings.init} has {theirs} {name}; this run has {ours}, expected as many or more."
            )
    for name, weights in widened(other, model.filters, model.recursions, settings.seed).items():
        model.get_layer(name).set_weights(weights)


def _newest(model, folder, identity, stateful):
    """The bytes of the checkpoint to go on from; empty where there is none."""

    def flaw(arrays, meta):
        parts = {"step", *stateful} - {"step", *meta["state"]} if type(meta["step"]) is int else {"step"}
        for name in stateful.keys() - parts:
            stateful[name].restore(meta["state"][name])  # Fails as a damaged file does where a part lacks its own.
        return checkpoint.mismatch(model, arrays) or (f"it lacks {', '.join(sorted(parts))}" if parts else None)

    return checkpoint.newest(folder.checkpoints, lambda meta: _contradiction(identity, meta["settings"]), flaw)


def _restore(model, resumed, stateful):
    """Puts a checkpoint into the model and the callbacks. Returns the step it was written at."""
    arrays, meta = checkpoint.unpack(resumed)
    checkpoint.restore(model, arrays)
    for name, owner in stateful.items():
        owner.restore(meta["state"][name])
    return meta["step"]


def _identity(settings):
    """The settings that a resumed run must share with its checkpoint, as JSON holds them."""
    values = as_json(settings)
    return {field.name: values[field.name] for field in dataclasses.fields(settings) if not field.metadata["resumable"]}


def _contradiction(identity, saved):
    """Why a checkpoint made with the settings `saved` does not fit this run, or None."""
    defaults = as_json(Settings())
    for name, value in identity.items():
        # A setting that the checkpoint does not know had its default's effect when it was written.
        before = saved.get(name, defaults.get(name, value))
        if name == "scale":
            # A tuple, which JSON gives back as a list; a number in the checkpoints of earlier versions.
            before, value = as_scales(before), as_scales(value)
        if before == value:
            continue
        if name == "images":
            clash = "`train_dir`, `val_dir` or `teacher`: not what the checkpoint in `model_dir` was made with"
        else:
            clash = f"`{name}={spelled(value)}` contradicts the checkpoint in `model_dir`, made with {spelled(before)}"
        return f"{clash}; use the same, another `model_dir`, or `fresh` to start over."
    return None


def _best_saver(settings, sources, path, clock):
    """A function of (model, logs, epoch) that writes the best model and, beside it, its card."""
    origin = card.read(path).get("init") or (card.with_origin(settings.init) if settings.init else {})
    told = {**sources, "init": origin} if origin else sources

    def save(model, logs, epoch):
        write_model(path, model)
        made = card.of_training(model, epoch, clock.elapsed, logs, as_json(settings), told)
        card.write(path, made)

    return save
