"""Training patches and validation images, cut from photographs in NumPy for every backend.

A whole image is degraded first and cut afterwards: a patch that is degraded alone would carry a border of its
own. Which patches make up step t depends on the seed and on t alone, so a resumed run sees the data that the
uninterrupted run would have seen.
"""

import dataclasses
import itertools
import os
from collections.abc import Iterator, Sequence

import numpy as np
from absl import logging

from drcn_keras.errors import ArgumentError, UserError
from drcn_keras.image import as_scales, bicubic, enlarge, luma, mod_crop, shrink, turned
from drcn_keras.image_files import list_images, read_image
from drcn_keras.lr_files import alike, as_input, check_fit, matched
from drcn_keras.patch_weights import errors_of, hardest, image_weights, scale_weights, shares


@dataclasses.dataclass(frozen=True)
class Pair:
    """A photograph and its degraded copy, in the little memory that a thousand photographs need.

    Whole images in float would take eight bytes for each pixel; these take one and 4 / scale^2. What is asked for is
    enlarged and converted when it is asked for.

    Attributes:
        path: of the file.
        original: uint8 (height, width, channels); both sides are multiples of `scale`.
        lr: float32 (height / scale, width / scale, channels) about [0, 1], the original shrunk and not rounded, or an
            LR image as it was given.
        scale: 2, 3 or 4.
        lesson: float16 (height, width, channels), what a teacher adds to the ILR; None: there is no teacher.
    """

    path: str
    original: np.ndarray
    lr: np.ndarray
    scale: int
    lesson: np.ndarray | None = None

    @property
    def ilr(self) -> np.ndarray:
        """The enlarged `lr`: float32 (height, width, channels), not clipped."""
        return self.cut((slice(None), slice(None)))[0]

    @property
    def hr(self) -> np.ndarray:
        """The original in float: float32 (height, width, channels) in [0, 1]."""
        return self.cut((slice(None), slice(None)))[1]

    def cut(self, window: tuple[slice, slice]) -> tuple[np.ndarray, np.ndarray]:
        """The window of (ilr, hr) alone, in the time and memory of the window."""
        ilr = enlarge(self.lr, self.scale, window).astype(np.float32)
        return ilr, self.original[window].astype(np.float32) / np.float32(255)

    def example(self, window: tuple[slice, slice]) -> tuple[np.ndarray, np.ndarray]:
        """The window of (ilr, what is learnt from it): the teacher's answer, and hr where there is no teacher."""
        ilr, hr = self.cut(window)
        return ilr, hr if self.lesson is None else ilr + self.lesson[window]


def load_pairs(
    paths: str | os.PathLike | Sequence[str],
    scale: int | Sequence[int],
    channels: int = 1,
    min_side: int = 1,
    zooms: Sequence[float] = (1.0,),
    lr_paths: dict[tuple[str, int], str] | None = None,
) -> list[Pair]:
    """Reads photographs and degrades them.

    Args:
        paths: image files; one alone will do.
        scale: 2, 3 or 4, or several of them: each image is degraded for every one.
        channels: 1 for Y, 3 for RGB.
        min_side: pixels; an image with a shorter side (after mod-crop) is skipped with a warning.
        zooms: factors in (0, 1]; each image is also used bicubically shrunk by every one of them.
        lr_paths: of `list_lr`, LR images to take as they are; None: shrink the photographs.

    Returns:
        list of `Pair`, the zooms and scales of one image side by side.

    Raises:
        UserError: no image can be used, or an LR image is of a wrong size. Others are skipped with a warning.
    """
    pairs, skipped, lr_paths, files = [], 0, lr_paths or {}, _several(paths)
    for path in files:
        try:
            image = read_image(path)
            lrs = {factor: read_image(lr_paths[path, factor]) for factor in as_scales(scale)} if lr_paths else {}
        except UserError as error:
            if len(files) == 1:
                raise
            skipped += 1
            logging.warning("%s: skipped", error)
            continue
        for factor, lr in lrs.items():
            check_fit(lr_paths[path, factor], lr, image, factor)
        image, given = _in_channels(image, lrs, channels)
        for zoom, factor in itertools.product(zooms, as_scales(scale)):
            original = mod_crop(image if zoom == 1.0 else _zoomed(image, zoom), factor)
            if min(original.shape[:2]) < max(min_side, factor):
                skipped += 1
                size = f"{original.shape[0]} x {original.shape[1]}"
                logging.warning("%s at zoom %g is %s, smaller than %d: skipped", path, zoom, size, min_side)
                continue
            lr = given[factor] if given else shrink(original / 255.0, factor)
            pairs.append(Pair(path, original, lr.astype(np.float32), factor))
    return _told(pairs, skipped, len(files), min_side)


def _told(pairs, skipped, given, min_side):
    if not pairs:
        raise UserError(f"none of the {given} images can be used; expected {min_side} pixels or more each way.")
    if skipped:
        logging.warning("%d images skipped, %d used", skipped, len(pairs))
    return pairs


def _in_channels(image, lrs, channels):
    """The original and its LR images by scale, as Y or RGB."""
    image, *same = alike(image, *lrs.values())
    given = {factor: as_input(lr, channels) for factor, lr in zip(lrs, same, strict=True)}
    if channels == 1:
        return luma(image)[..., None], given
    return np.repeat(image[..., None], 3, axis=-1) if image.ndim == 2 else image, given


def _zoomed(image, zoom):
    return np.round(255.0 * np.clip(bicubic(image / 255.0, zoom), 0.0, 1.0)).astype(np.uint8)


def split_holdout(paths: list[str], count: int) -> tuple[list[str], list[str]]:
    """Takes `count` files, evenly spread over the list, out for validation.

    Returns:
        (training files, validation files).

    Raises:
        UserError: nothing would be left to train on.
    """
    if not 0 < count < len(paths):
        raise ArgumentError(
            f"`holdout`: cannot hold out {count} of {len(paths)} training images; expected between 1 and "
            f"{len(paths) - 1}, or a folder of its own (`val_dir`)."
        )
    chosen = {round(index * len(paths) / count) for index in range(count)}
    return (
        [path for index, path in enumerate(paths) if index not in chosen],
        [path for index, path in enumerate(paths) if index in chosen],
    )


def list_folders(folders: str | os.PathLike | Sequence[str]) -> list[str]:
    """The image files of a folder or of several, in order. Raises UserError as `image_files.list_images` does."""
    return [path for folder in _several(folders) for path in list_images(folder)]


def _several(paths):
    """A list of the paths that are given, or of the one."""
    return [os.fspath(path) for path in ([paths] if isinstance(paths, (str, os.PathLike)) else paths)]


def list_lr(folders: Sequence[str], lr_folders: Sequence[str], scales: Sequence[int]) -> dict[tuple[str, int], str]:
    """The LR image of each (photograph, scale), folder by folder. Raises UserError as `lr_files.matched` does."""
    found = {}
    for scale, (folder, lr_folder) in itertools.product(scales, zip(folders, lr_folders, strict=True)):
        paths = list_images(folder)
        found |= {(path, scale): lr for path, lr in zip(paths, matched(paths, lr_folder, scale), strict=True)}
    return found


class PatchStream:
    """An endless, reproducible sequence of training batches.

    Each pass takes every patch once, or as `importance` draws them, in an order and with flips and rotations that the
    seed and the number of the pass decide.

    Args:
        pairs: list of `Pair`, each side at least `patch_size` long.
        patch_size: pixels; the paper's is 41 (section 4.1).
        stride: pixels between patches; the paper's is 21 (section 4.1).
        batch_size: patches a step, over all replicas.
        seed: any whole number >= 0.
        augment: also flip and rotate by quarter turns.
        skip_flat: share in [0, 1) of each scale's patches to leave out, those with the least squared error of bicubic
            enlargement: flat ones teach nothing.
        balance_scales: give each patch a weight, the inverse of bicubic's mean squared error at its scale (1 on the
            average over the scales' errors): else the loss is mostly the largest scale's.
        balance_images: give each patch the inverse of bicubic's mean squared error of its photograph at its scale
            instead, at most twenty times the scale's; takes the place of `balance_scales`.
        importance: exponent in [0, 1]. Above 0 the patches are drawn, with replacement, with a probability that grows
            with this power of bicubic's squared error, and weigh its inverse: the same loss on the average, of which a
            batch shows more. Ours, not the paper's.

    Raises:
        ValueError: a number is less than 1, or a side is shorter than `patch_size`.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        patch_size: int = 41,
        stride: int = 21,
        batch_size: int = 64,
        seed: int = 0,
        augment: bool = True,
        skip_flat: float = 0.0,
        balance_scales: bool = False,
        importance: float = 0.0,
        balance_images: bool = False,
    ):
        for name, value in (("patch_size", patch_size), ("stride", stride), ("batch_size", batch_size)):
            if value < 1:
                raise ArgumentError(f"`{name}` must be at least 1; received {value}.")
        smallest = min(min(pair.original.shape[:2]) for pair in pairs)
        if smallest < patch_size:
            raise ArgumentError(f"`patch_size` must be at most {smallest}, the smallest side; received {patch_size}.")
        self.pairs = pairs
        self.patch_size = patch_size
        self.stride = stride
        self.batch_size = batch_size
        self.seed = seed
        self.augment = augment
        # Rows and columns of each pair's grid; a list of all places would outweigh the images.
        self._grids = np.array(
            [[(side - patch_size) // stride + 1 for side in pair.original.shape[:2]] for pair in pairs]
        )
        self._ends = np.cumsum(self._grids.prod(axis=1))
        self._weights: np.ndarray | None = None
        self._kept: np.ndarray | None = None
        self._shares: np.ndarray | None = None
        if balance_scales or balance_images or skip_flat or importance:
            balance = image_weights if balance_images else scale_weights if balance_scales else None
            self._weigh(balance, skip_flat, importance)
        self._pass: tuple | None = None

    def __len__(self) -> int:
        """Patches in one pass."""
        return int(self._ends[-1]) if self._kept is None else len(self._kept)

    @property
    def channels(self) -> int:
        return self.pairs[0].original.shape[-1]

    @property
    def weighted(self) -> bool:
        """Whether a batch has weights."""
        return self._weights is not None or self._shares is not None

    def batch(self, step: int) -> tuple[np.ndarray, ...]:
        """The batch of training step `step` >= 0.

        Returns:
            (ilr, hr), both float32 (batch_size, patch_size, patch_size, channels), the teacher's answer in place of hr
            where the pairs have a `lesson`; with `balance_scales`,
            `balance_images` or `importance` the weights too, float32 (batch_size,), as `fit` takes them.
        """
        patches = [self._patch(step * self.batch_size + offset) for offset in range(self.batch_size)]
        images = np.stack([ilr for ilr, _, _ in patches]), np.stack([hr for _, hr, _ in patches])
        if not self.weighted:
            return images
        return *images, np.array([weight for _, _, weight in patches], np.float32)

    def batches(self, start: int = 0) -> Iterator[tuple[np.ndarray, ...]]:
        """Every batch from step `start` on, without end."""
        return (self.batch(step) for step in itertools.count(start))

    def _patch(self, number):
        order, turns = self._plan(number // len(self))
        index = order[number % len(self)]
        owner, window = self._place(index)
        ilr, hr = (turned(patch, turns[number % len(self)]) for patch in self.pairs[owner].example(window))
        weight = 1.0 if self._weights is None else self._weights[owner]
        return ilr, hr, weight if self._shares is None else weight / (len(self) * self._shares[index])

    def _weigh(self, balance, skip_flat, importance):
        """Weighs every image, leaves out flat patches, and gives the rest their probabilities, as far as asked."""
        measured = [errors_of(pair, self.patch_size, self.stride) for pair in self.pairs]
        scales, places = np.array([pair.scale for pair in self.pairs]), self._grids.prod(axis=1)
        errors = np.concatenate([patches for _, patches in measured])
        if skip_flat:
            self._kept = hardest(errors, np.repeat(scales, places), skip_flat)
        if balance:
            self._weights = balance(np.array([mean for mean, _ in measured]), scales)
        if importance:
            weighted = errors.astype(np.float64)
            if self._weights is not None:
                weighted *= np.repeat(self._weights, places)
            self._shares = shares(weighted if self._kept is None else weighted[self._kept], importance)

    def _place(self, index):
        """The index of the pair and the window of a patch, counted pair by pair and row by row."""
        index = index if self._kept is None else self._kept[index]
        owner = int(np.searchsorted(self._ends, index, side="right"))
        index = int(index) - (int(self._ends[owner - 1]) if owner else 0)
        corner = (self.stride * along for along in divmod(index, int(self._grids[owner, 1])))
        return owner, tuple(slice(start, start + self.patch_size) for start in corner)

    def _plan(self, number):
        if self._pass is None or self._pass[0] != number:
            random = np.random.default_rng((self.seed, number))
            order = random.permutation(len(self))
            if self._shares is not None:
                # At even steps through the shares: a patch comes as often as it should, up to one.
                places = (np.arange(len(self)) + random.random()) / len(self)
                order = np.searchsorted(np.cumsum(self._shares), places).clip(max=len(self) - 1)[order]
            turns = random.integers(8, size=len(self)) if self.augment else np.zeros(len(self), int)
            self._pass = (number, order, turns)
        return self._pass[1:]
