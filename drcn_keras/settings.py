"""What decides a training run, and the checks that need no Keras: a wrong path answers at once."""

import dataclasses
import math
import numbers
import os
import typing

from drcn_keras.card import MOST_FILTERS, MOST_RECURSIONS, path_of, presets
from drcn_keras.errors import ArgumentError
from drcn_keras.files import make_folder


def _setting(default, text, choices=None, low=None, high=None, resumable=False):
    """A field of Settings. A `resumable` one may differ between a run and its resumption."""
    metadata = {"help": text, "choices": choices, "low": low, "high": high, "resumable": resumable}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides a training run; every field is a flag of the same name.

    Defaults are the paper's (sections 3.3 and 4.1 of arXiv 1511.04491) where the help says so. Where several values
    are meant, one alone and a text with commas between them will do too; a text that names an existing folder is
    that folder, commas and all.

    Raises:
        ValueError: a text holds no such values.
    """

    train_dir: tuple[str, ...] = _setting((), "folders of training photographs, separated by commas")
    val_dir: tuple[str, ...] = _setting(
        (), "folders of validation photographs; none: hold out training images, see holdout"
    )
    lr_dir: tuple[str, ...] = _setting(
        (),
        "folders of LR images to train on as they are, one for each of train_dir: 0001.png or 0001x2.png belongs to "
        "0001.png; none: shrink the photographs",
    )
    val_lr_dir: tuple[str, ...] = _setting((), "the same for val_dir, where there are both it and lr_dir")
    model_dir: str = _setting(
        "", "where best.keras, its card, log.csv, checkpoints and TensorBoard logs go", resumable=True
    )
    init: str = _setting(
        "",
        "a preset or a DRCN .keras file to start from: of another scale, of fewer filters or recursions",
    )
    teacher: str = _setting(
        "",
        "a preset or a DRCN .keras file, such as a larger network: its answer, averaged over the eight flips and turns "
        "of each photograph, is learnt in place of the original; validation measures against originals as ever",
    )
    holdout: int = _setting(8, "training images kept for validation where val_dir names none", low=1)
    scale: tuple[int, ...] = _setting(
        (2,), "enlargement, or several that one network learns together, separated by commas", choices=(2, 3, 4)
    )
    channels: int = _setting(1, "1: luma, as the paper; 3: RGB", choices=(1, 3))
    filters: int = _setting(256, "feature maps F (paper: 256)", low=1, high=MOST_FILTERS)
    recursions: int = _setting(16, "recursions D (paper: 16)", low=1, high=MOST_RECURSIONS)
    patch_size: int = _setting(41, "pixels (paper: 41)", low=3)
    stride: int = _setting(21, "pixels from patch to patch (paper: 21)", low=1)
    zooms: tuple[float, ...] = _setting(
        (1.0,), "multi-scale augmentation: shrink every image by these factors too, e.g. 1,0.8,0.6"
    )
    augment: bool = _setting(True, "flip and rotate patches")
    skip_flat: float = _setting(
        0.0,
        "share of each scale's patches to leave out: those that bicubic enlargement restores best",
        low=0.0,
        high=0.99,
    )
    balance_scales: bool = _setting(
        False,
        "divide each scale's squared errors by bicubic's at that scale, so that the scales count alike",
    )
    balance_images: bool = _setting(
        False,
        "divide each photograph's squared errors by bicubic's of it at that scale, taken as a twentieth of the scale's "
        "mean at least: nearer to the mean PSNR; takes the place of balance_scales",
    )
    importance: float = _setting(
        0.0,
        "draw patches with a probability that grows with this power of bicubic's squared error, and weigh them by its "
        "inverse, so that the loss stays on the average; 0: each as often as any other",
        low=0.0,
        high=1.0,
    )
    batch_size: int = _setting(64, "patches a step over all replicas (paper: 64)", low=1)
    epochs: int = _setting(100, "planned epochs", low=1, resumable=True)
    steps_per_epoch: int = _setting(0, "0: one pass over the patches", low=0)
    time_limit: float = _setting(
        0.0,
        "minutes, restarts included; 0: none. Schedules follow epochs or clock, whichever is further",
        low=0.0,
        resumable=True,
    )
    optimizer: str = _setting(
        "sgd",
        "sgd (paper), adam, or soap: Adam in the eigenbasis of each kernel's gradients",
        choices=("sgd", "adam", "soap"),
    )
    momentum: float = _setting(0.9, "of sgd (paper: 0.9)", low=0.0, high=1.0)
    learning_rate: float = _setting(0.01, "of the first epoch (paper: 0.01)", low=0.0)
    schedule: str = _setting(
        "plateau", "plateau (paper), cosine or constant learning rate", choices=("plateau", "cosine", "constant")
    )
    warmup: int = _setting(
        0, "of so many first epochs the last has the whole learning rate, the others equal steps to it; 1: none", low=0
    )
    average: float = _setting(
        0.0,
        "decay of a moving average of the weights, which is validated and kept, e.g. 0.999; 0: none",
        low=0.0,
        high=0.99999,
    )
    clip_norm: float = _setting(0.0, "largest norm of the whole gradient; 0: no clipping", low=0.0)
    beta: float = _setting(1e-4, "weight decay (paper: 1e-4)", low=0.0)
    alpha_schedule: str = _setting("linear", "how alpha falls", choices=("linear", "cosine", "exponential"))
    alpha_start: float = _setting(1.0, "alpha of the first epoch", low=0.0, high=1.0)
    alpha_end: float = _setting(0.0, "alpha of the last epoch; must be > 0 for exponential", low=0.0, high=1.0)
    alpha_until: float = _setting(0.5, "share of the run at which alpha has reached alpha_end", low=0.001, high=1.0)
    outputs: int = _setting(
        0,
        "recursions that the ensemble keeps once alpha is 0, the last and the best others by least squares on training "
        "images; those left out are no longer computed; 0: all",
        low=0,
    )
    seed: int = _setting(0, "of weights, order, flips and rotations", low=0, high=2**32 - 1)
    precision: str = _setting(
        "float32",
        "what all convolutions but the first compute in; auto: bfloat16 where this machine multiplies it natively and "
        "is measured to be faster in it, else float32. A run goes on in the one that it began with",
        choices=("auto", "float32", "bfloat16"),
    )
    xla: bool = _setting(False, "compile the step with XLA (TensorFlow; JAX always does)", resumable=True)
    strategy: str = _setting(
        "auto",
        "auto: the machines of TF_CONFIG if it is set, else all GPUs, else one device; mirrored: all GPUs of this "
        "machine, or all logical CPUs; multi_worker: the machines of TF_CONFIG",
        choices=("auto", "default", "mirrored", "multi_worker"),
        resumable=True,
    )
    worker_timeout: float = _setting(
        300.0, "seconds to wait for the other workers before they are taken for lost", low=1.0, resumable=True
    )
    validate_every: int = _setting(1, "epochs between validations", low=1)
    checkpoint_every: int = _setting(1, "epochs between checkpoints", low=1, resumable=True)
    keep_checkpoints: int = _setting(3, "checkpoints kept", low=1, resumable=True)
    tensorboard: bool = _setting(True, "write TensorBoard logs", resumable=True)
    fresh: bool = _setting(False, "delete the run in model_dir and start over", resumable=True)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, element = getattr(self, field.name), element_type(field)
            value = _parts(field.name, value, element) if element else _plain(value, field.type)
            object.__setattr__(self, field.name, value)


def element_type(field: dataclasses.Field) -> type | None:
    """The type of the values of a field of `Settings` that takes several; None for any other field."""
    return next(iter(typing.get_args(field.type)), None)


def as_json(settings: Settings) -> dict:
    """The settings as JSON holds them: lists where they have tuples."""
    values = dataclasses.asdict(settings)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def spelled(value: object) -> str:
    """A setting's value as a flag spells it."""
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def check(settings: Settings) -> None:
    """Makes sure that a run can start with these settings; makes its folder.

    Raises:
        ValueError: a setting is out of its range, or a file or folder that it names cannot be used. It is a
            `UserError` too.
    """
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        for single in value if element_type(field) else (value,):
            _check_value(field, single)
    for name in ("train_dir", "model_dir"):
        if not getattr(settings, name):
            raise ArgumentError(f"`{name}` is required.")
    if settings.alpha_schedule == "exponential" and not (settings.alpha_start > 0 and settings.alpha_end > 0):
        raise ArgumentError(f"`alpha_end` must be > 0 with an exponential schedule; received {settings.alpha_end}.")
    if settings.learning_rate <= 0:
        raise ArgumentError(f"`learning_rate` must be > 0; received {settings.learning_rate}.")
    if settings.outputs > settings.recursions:
        raise ArgumentError(
            f"`outputs` must be at most {settings.recursions}, the recursions; received {settings.outputs}."
        )
    if settings.outputs and settings.alpha_end > 0:
        raise ArgumentError(f"`outputs` needs an `alpha_end` of 0; received {settings.alpha_end}.")
    last = (settings.epochs - 1) / settings.epochs
    if settings.outputs and last < settings.alpha_until and (settings.alpha_until == 1.0 or not settings.time_limit):
        raise ArgumentError(
            f"`outputs` needs an epoch whose alpha is 0, an `alpha_until` of at most {last:g} with {settings.epochs} "
            f"`epochs`; received {settings.alpha_until}."
        )
    if not settings.scale or list(settings.scale) != sorted(set(settings.scale)):
        raise ArgumentError(f"`scale` must be ascending, each once; received {spelled(settings.scale) or 'none'}.")
    if not settings.zooms or not all(0.0 < factor <= 1.0 for factor in settings.zooms):
        raise ArgumentError(f"`zooms` must be numbers in (0, 1]; received {spelled(settings.zooms) or 'none'}.")

    # NumPy and Pillow, whose loading Ctrl-C would end in a traceback before a command has begun.
    from drcn_keras.data import list_folders

    list_folders(settings.train_dir + settings.val_dir)
    _check_lr_dirs(settings)
    for name in ("init", "teacher"):
        model = getattr(settings, name)
        if model and not os.path.isfile(path_of(model)):
            raise ArgumentError(f"`{name}`: no file at {model}, and no preset of that name ({', '.join(presets())}).")
    make_folder(settings.model_dir)


def _check_lr_dirs(settings):
    """Raises an error unless every photograph has its LR image, or none is meant to have one."""
    if settings.val_lr_dir and not settings.lr_dir:
        raise ArgumentError("`val_lr_dir` needs `lr_dir`: validation measures what is trained.")
    if not settings.lr_dir:
        return
    from drcn_keras.data import list_lr

    for name, lr_name in (("train_dir", "lr_dir"), ("val_dir", "val_lr_dir")):
        folders, lr_folders = getattr(settings, name), getattr(settings, lr_name)
        if len(folders) != len(lr_folders):
            raise ArgumentError(
                f"`{lr_name}` must have a folder for each of {len(folders)} in `{name}`; has {len(lr_folders)}."
            )
        list_lr(folders, lr_folders, settings.scale)
    if settings.zooms != (1.0,):
        raise ArgumentError(f"`zooms` shrinks photographs that have no LR image; received {spelled(settings.zooms)}.")


def _check_value(field, value):
    """Raises ArgumentError where one value of a setting has another type or is out of range."""
    kind, rule = element_type(field) or field.type, field.metadata
    fits = isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)
    if not fits:
        raise ArgumentError(f"`{field.name}` must be of type {kind.__name__}; received {value!r}.")
    if rule["choices"] and value not in rule["choices"]:
        expected = ", ".join(str(choice) for choice in rule["choices"])
        raise ArgumentError(f"`{field.name}` must be one of {expected}; received {value}.")
    if kind is float and not math.isfinite(value):
        raise ArgumentError(f"`{field.name}` must be a finite number; received {value}.")
    if rule["low"] is not None and value < rule["low"]:
        raise ArgumentError(f"`{field.name}` must be at least {rule['low']}; received {value}.")
    if rule["high"] is not None and value > rule["high"]:
        raise ArgumentError(f"`{field.name}` must be at most {rule['high']}; received {value}.")


def _plain(value, kind):
    """A path as text, a whole number where a fraction may stand as float, and NumPy's numbers as Python's."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, bool):
        return value
    if kind is float and isinstance(value, numbers.Real):
        return float(value)
    return int(value) if isinstance(value, numbers.Integral) else value


def _parts(name, given, element):
    """The tuple of values that one value, several, or a text with commas stands for."""
    parts: list = []
    for part in given if isinstance(given, (list, tuple)) else (given,):
        if not isinstance(part, str) or (element is str and os.path.isdir(part)):
            parts.append(_plain(part, element))
        else:
            parts += [text.strip() for text in part.split(",") if text.strip()]
    try:
        return tuple(element(part) if isinstance(part, str) else part for part in parts)
    except ValueError as error:
        raise ArgumentError(f"`{name}` must be numbers, separated by commas; received {spelled(given)!r}.") from error
