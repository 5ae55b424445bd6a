"""The photographs of one training run: what is trained on, what is validated on, and what the card says of them."""

import os
import zlib
from typing import NamedTuple

from absl import logging

from drcn_keras import card, data
from drcn_keras.settings import Settings
from drcn_keras.teaching import Teacher
from drcn_keras.validation import held_out_pairs


class TrainingImages(NamedTuple):
    """The patches, the validation images, what the card says of both, a checksum of all of them, and the teacher."""

    stream: data.PatchStream
    validation: list[data.Pair]
    sources: dict
    checksum: int
    teacher: Teacher | None


def load_images(settings: Settings) -> TrainingImages:
    """Reads the photographs of a run.

    Raises:
        UserError: a folder has no image that can be used, or too few to hold any out; or the teacher does not fit.
    """
    # First, so that one that does not fit is told at once.
    teacher = _teacher(settings) if settings.teacher else None
    folders, scales, channels = settings.train_dir, settings.scale, settings.channels
    train_paths = data.list_folders(folders)
    if settings.val_dir:
        val_folders = settings.val_dir
        val_paths = data.list_folders(val_folders)
    else:
        val_folders = folders
        train_paths, val_paths = data.split_holdout(train_paths, settings.holdout)
    lr_paths = data.list_lr(folders, settings.lr_dir, scales) if settings.lr_dir else {}
    lr_paths |= data.list_lr(settings.val_dir, settings.val_lr_dir, scales) if settings.lr_dir else {}
    pairs = data.load_pairs(train_paths, scales, channels, settings.patch_size, settings.zooms, lr_paths)
    validation = held_out_pairs(val_paths, scales, channels, lr_paths)
    _warn_of_overlap(pairs, validation)
    # An LR image that the original does not determine is part of what was seen.
    checksum = _checksum(pairs + validation, bool(lr_paths), teacher.checksum if teacher else 0)
    stream = _stream(pairs, settings)
    used = len({pair.path for pair in pairs})
    logging.info("%d patches of %d images; %d images to validate", len(stream), used, len(validation))
    sources = {
        "train_sets": [os.path.basename(os.path.normpath(name)) for name in folders],
        "train_images": used,
        "patches": len(stream),
        "val_sets": [os.path.basename(os.path.normpath(name)) for name in val_folders],
        "val_images": len({pair.path for pair in validation}),
    }
    if teacher:
        sources["teacher"] = card.brief(settings.teacher)
    return TrainingImages(stream, validation, sources, checksum, teacher)


def _teacher(settings):
    return Teacher(settings.teacher, settings.channels, settings.scale, settings.precision)


def _stream(pairs, settings):
    return data.PatchStream(
        pairs,
        settings.patch_size,
        settings.stride,
        settings.batch_size,
        settings.seed,
        settings.augment,
        settings.skip_flat,
        settings.balance_scales,
        settings.importance,
        settings.balance_images,
    )


def _checksum(pairs, of_lr, start):
    for pair in pairs:
        start = zlib.crc32(pair.original.tobytes(), start)
        start = zlib.crc32(pair.lr.tobytes(), start) if of_lr else start
    return start


def _warn_of_overlap(pairs, validation):
    """Says which validation images are training images too, whatever their names."""
    seen = {zlib.crc32(pair.original.tobytes()) for pair in pairs}
    known = sorted({pair.path for pair in validation if zlib.crc32(pair.original.tobytes()) in seen})
    if known:
        logging.warning(
            "%d of %d validation images are training images too, so val_psnr says less of other photographs: %s",
            len(known),
            len({pair.path for pair in validation}),
            ", ".join(known),
        )
