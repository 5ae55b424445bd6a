"""Training patches and validation images, cut from photographs in NumPy for every backend.

A whole image is degraded first and cut afterwards: a patch that is degraded alone would carry a border of its
own. Which patches make up step t depends on the seed and on t alone, so a resumed run sees the data that the
uninterrupted run would have seen.
"""

import collections
import itertools

import numpy as np
from absl import logging

from drcn_keras.errors import ArgumentError, UserError
from drcn_keras.image import as_scales, bicubic, enlarge, luma, mod_crop, shrink, turned
from drcn_keras.image_files import list_images, read_image

Pair = collections.namedtuple("Pair", ["path", "ilr", "hr", "scale"])
Pair.__doc__ = (
    "A file, the ILR and the HR, float32 (height, width, channels) in [0, 1], and the enlargement of the ILR."
)


def load_pairs(paths, scale, channels=1, min_side=1, zooms=(1.0,)):
    """Reads photographs and degrades them.

    Args:
        paths: image files.
        scale: 2, 3 or 4, or several of them: each image is degraded for every one.
        channels: 1 for Y, 3 for RGB.
        min_side: pixels; an image with a shorter side (after mod-crop) is skipped with a warning.
        zooms: factors in (0, 1]; each image is also used bicubically shrunk by every one of them.

    Returns:
        list of `Pair`, the zooms and scales of one image side by side.

    Raises:
        UserError: no image can be read and is large enough. Others that cannot be used are skipped with a warning.
    """
    pairs, skipped = [], 0
    for path in paths:
        try:
            image = read_image(path)
        except UserError as error:
            if len(paths) == 1:
                raise
            skipped += 1
            logging.warning("%s: skipped", error)
            continue
        if channels == 1:
            image = luma(image)[..., None]
        elif image.ndim == 2:
            image = np.repeat(image[..., None], 3, axis=-1)
        for zoom, factor in itertools.product(zooms, as_scales(scale)):
            original = image / 255.0
            if zoom != 1.0:
                original = np.round(255.0 * np.clip(bicubic(original, zoom), 0.0, 1.0)) / 255.0
            hr = mod_crop(original, factor)
            if min(hr.shape[:2]) < max(min_side, factor):
                skipped += 1
                size = f"{hr.shape[0]} x {hr.shape[1]}"
                logging.warning("%s at zoom %g is %s, smaller than %d: skipped", path, zoom, size, min_side)
                continue
            ilr = enlarge(shrink(hr, factor), factor)
            pairs.append(Pair(path, ilr.astype(np.float32), hr.astype(np.float32), factor))
    if not pairs:
        raise UserError(
            f"none of the {len(paths)} images can be used; expected photographs of {min_side} pixels or more each way."
        )
    if skipped:
        logging.warning("%d images skipped, %d used", skipped, len(pairs))
    return pairs


def split_holdout(paths, count):
    """Takes `count` files, evenly spread over the list, out for validation.

    Returns:
        (training files, validation files).

    Raises:
        UserError: nothing would be left to train on.
    """
    if not 0 < count < len(paths):
        raise ArgumentError(
            f"holdout: cannot hold out {count} of {len(paths)} training images; expected between 1 and "
            f"{len(paths) - 1}, or a folder of its own (val_dir)."
        )
    chosen = {round(index * len(paths) / count) for index in range(count)}
    return (
        [path for index, path in enumerate(paths) if index not in chosen],
        [path for index, path in enumerate(paths) if index in chosen],
    )


def list_folders(folders):
    """The image files of several folders, in order. Raises UserError as `image_files.list_images` does."""
    return [path for folder in folders for path in list_images(folder)]


class PatchStream:
    """An endless, reproducible sequence of training batches.

    Each pass takes every patch once, in an order and with flips and rotations that the seed and the number of
    the pass decide.

    Args:
        pairs: list of `Pair`, each side at least `patch_size` long.
        patch_size: pixels; the paper's is 41 (section 4.1).
        stride: pixels between patches; the paper's is 21 (section 4.1).
        batch_size: patches a step, over all replicas.
        seed: any whole number >= 0.
        augment: also flip and rotate by quarter turns.
    """

    def __init__(self, pairs, patch_size=41, stride=21, batch_size=64, seed=0, augment=True):
        self.pairs = pairs
        self.patch_size = patch_size
        self.batch_size = batch_size
        self.seed = seed
        self.augment = augment
        self.positions = [
            (index, row, column)
            for index, pair in enumerate(pairs)
            for row in range(0, pair.hr.shape[0] - patch_size + 1, stride)
            for column in range(0, pair.hr.shape[1] - patch_size + 1, stride)
        ]
        self._pass = None

    def __len__(self):
        """Patches in one pass."""
        return len(self.positions)

    @property
    def channels(self):
        return self.pairs[0].hr.shape[-1]

    def batch(self, step):
        """The batch of training step `step` >= 0.

        Returns:
            (ilr, hr), both float32 (batch_size, patch_size, patch_size, channels).
        """
        patches = [self._patch(step * self.batch_size + offset) for offset in range(self.batch_size)]
        return np.stack([ilr for ilr, _ in patches]), np.stack([hr for _, hr in patches])

    def batches(self, start=0):
        """Every batch from step `start` on, without end."""
        return (self.batch(step) for step in itertools.count(start))

    def _patch(self, number):
        order, turns = self._plan(number // len(self))
        index, row, column = self.positions[order[number % len(self)]]
        window = (slice(row, row + self.patch_size), slice(column, column + self.patch_size))
        turn = turns[number % len(self)]
        return tuple(turned(image[window], turn) for image in (self.pairs[index].ilr, self.pairs[index].hr))

    def _plan(self, number):
        if self._pass is None or self._pass[0] != number:
            random = np.random.default_rng((self.seed, number))
            order = random.permutation(len(self))
            turns = random.integers(8, size=len(self)) if self.augment else np.zeros(len(self), int)
            self._pass = (number, order, turns)
        return self._pass[1:]
