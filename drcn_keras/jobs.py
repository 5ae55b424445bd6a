"""Which files become which: the plan of the upscale command, made before anything is read."""

import collections
import os
from collections.abc import Sequence

from drcn_keras.errors import UserError
from drcn_keras.image_files import SUFFIXES, list_images
from drcn_keras.image_writing import check_writable

STANDARD = "-"  # Standard input and output.
# Suffixes of images that are not written here: a name with one is a file's all the same, and refused.
_OTHERS = (".exr", ".hdr", ".heic", ".heif", ".jp2", ".jxl", ".pdf", ".psd", ".tga")

Job = tuple[str, str]


def plan(inputs: Sequence[str], output: str, recursive: bool = False) -> list[Job]:
    """The list of (source, target) paths.

    Args:
        inputs: paths of images and folders; "-" is standard input.
        output: a folder unless `inputs` is one image and this has an image's suffix; "-" is standard output, as PNG.
        recursive: take folders with all below them, and keep their tree.

    Raises:
        UserError: no image, an output that is not written here, a target that is an input, two of one name.
    """
    if not inputs:
        raise UserError("no image given; expected paths of images or folders.")
    sources = [pair for given in inputs for pair in _listed(given, recursive)]
    alone = len(sources) == 1 and not os.path.isdir(inputs[0])
    suffix = os.path.splitext(output)[1].lower()
    if output == STANDARD:
        if not alone:
            raise UserError(f"`output`: standard output takes one image; received {len(sources)}.")
        return [(sources[0][0], STANDARD)]
    if suffix in (*SUFFIXES, *_OTHERS) and not os.path.isdir(output):
        if not alone:
            raise UserError(f"`output`: {output} is a file name; expected a folder for {len(sources)} images.")
        check_writable(output)
        jobs = [(sources[0][0], output)]
    else:
        jobs = _apart([(path, os.path.join(output, relative)) for path, relative in sources])
    _check(jobs)
    return jobs


def _listed(given, recursive):
    """(path, path relative to the output) of every image that an argument stands for."""
    if given == STANDARD:
        return [(given, "standard-input")]
    if not os.path.isdir(given):
        return [(given, os.path.basename(given))]
    return [(path, os.path.relpath(path, given)) for path in list_images(given, recursive)]


def _apart(jobs):
    """a.jpg becomes a.png; where an a.tif is beside it, they become a.jpg.png and a.tif.png."""
    stems = collections.Counter(os.path.splitext(target)[0] for _, target in jobs)
    return [
        (path, f"{target}.png" if stems[os.path.splitext(target)[0]] > 1 else f"{os.path.splitext(target)[0]}.png")
        for path, target in jobs
    ]


def _check(jobs):
    owners, originals = {}, {os.path.realpath(path) for path, _ in jobs if path != STANDARD}
    for source, target in jobs:
        if target in owners:
            raise UserError(f"{owners[target]} and {source} would both become {target}; upscale them one by one.")
        owners[target] = source
        if os.path.realpath(target) in originals:
            raise UserError(f"{target} is an input; the result must not replace it. Choose another `output`.")


def undone(jobs: Sequence[Job], overwrite: bool, skip_existing: bool) -> list[Job]:
    """The jobs that are to be done. Raises UserError where a result exists and neither flag says what to do."""
    done = [job for job in jobs if job[1] != STANDARD and os.path.exists(job[1])]
    if skip_existing:
        return [job for job in jobs if job not in done]
    if done and not overwrite:
        raise UserError(
            f"{done[0][1]} exists ({len(done)} of {len(jobs)} results do); `overwrite` replaces, `skip_existing` keeps."
        )
    return list(jobs)
