"""The photographs of one training run: what is trained on, what is validated on, and what the card says of them."""

import os
import zlib
from typing import NamedTuple

from absl import logging

from drcn_keras import data
from drcn_keras.metrics import SSIM_WINDOW
from drcn_keras.settings import Settings


class TrainingImages(NamedTuple):
    """The patches, the validation images, what the card says of both, and a checksum of all of them."""

    stream: data.PatchStream
    validation: list[data.Pair]
    sources: dict
    checksum: int


def load_images(settings: Settings) -> TrainingImages:
    """Reads the photographs of a run.

    Raises:
        UserError: a folder has no image that can be used, or too few to hold any out.
    """
    folders = settings.train_dir
    train_paths = data.list_folders(folders)
    if settings.val_dir:
        val_folders = settings.val_dir
        val_paths = data.list_folders(val_folders)
    else:
        val_folders = folders
        train_paths, val_paths = data.split_holdout(train_paths, settings.holdout)
    scales, channels = settings.scale, settings.channels
    lr_paths = data.list_lr(folders, settings.lr_dir, scales) if settings.lr_dir else {}
    lr_paths |= data.list_lr(settings.val_dir, settings.val_lr_dir, scales) if settings.lr_dir else {}
    pairs = data.load_pairs(train_paths, scales, channels, settings.patch_size, settings.zooms, lr_paths)
    smallest = SSIM_WINDOW + 2 * max(scales)
    validation = data.load_pairs(val_paths, scales, channels, smallest, lr_paths=lr_paths)
    stream = data.PatchStream(
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
    used = len({pair.path for pair in pairs})
    logging.info("%d patches of %d images; %d images to validate", len(stream), used, len(validation))
    sources = {
        "train_sets": [os.path.basename(os.path.normpath(name)) for name in folders],
        "train_images": used,
        "patches": len(stream),
        "val_sets": [os.path.basename(os.path.normpath(name)) for name in val_folders],
        "val_images": len({pair.path for pair in validation}),
    }
    _warn_of_overlap(pairs, validation)
    checksum = 0
    for pair in pairs + validation:
        checksum = zlib.crc32(pair.original.tobytes(), checksum)
        # An LR image that the original does not determine is part of what was seen.
        checksum = zlib.crc32(pair.lr.tobytes(), checksum) if lr_paths else checksum
    return TrainingImages(stream, validation, sources, checksum)


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
