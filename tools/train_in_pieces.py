"""Trains on a machine that is lent for minutes at a time and takes and gives back small files only.

    python tools/train_in_pieces.py pack --train_dir=T91,BSD200 --images=lent/images.npz
    python tools/train_in_pieces.py piece --images=lent/images.npz --state=lent --output=OUT --minutes=8 \\
        -- --flagfile=drcn_keras/flagfiles/paper_x234.cfg

`pack` writes the training photographs as one file of uint8 arrays. `piece` takes the run's state from the parts in
--state (none: a new run), trains with `drcn_keras.train` and the flags behind `--` for --minutes, and writes the state
to --output in parts of at most 15 MiB: a checkpoint of F=256, D=16 with Adam's slots is larger than what one file may
be. Bring the parts to --state and call it again: the run goes on at its next step. See docs/training.md.
"""

import hashlib
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import tarfile
import tempfile

import numpy as np
from absl import flags
from PIL import Image

from drcn_keras import commands
from drcn_keras.commands import FLAGS
from drcn_keras.data import list_folders
from drcn_keras.errors import UserError
from drcn_keras.files import make_folder, write_atomically
from drcn_keras.image_files import read_image

PART = "state-{:03d}"
PART_BYTES = 15 * 2**20
MANIFEST = "state.json"


def pack(folders, path):
    """Writes the images of `folders` to the file `path`, uint8 as `image_files.read_image` gives them."""
    images = {os.path.basename(name): read_image(name) for name in list_folders(folders)}
    packed = io.BytesIO()
    np.savez_compressed(packed, allow_pickle=False, **images)
    make_folder(os.path.dirname(path) or ".")
    write_atomically(path, lambda file: file.write(packed.getbuffer()))
    return len(images)


def piece(images, state, output, minutes, training):
    """Trains for some minutes from the state in `state`, and leaves the new one in `output`."""
    make_folder(output)
    with tempfile.TemporaryDirectory() as folder:
        photographs, run = os.path.join(folder, "photographs"), os.path.join(folder, "run")
        _unpack(images, photographs)
        os.makedirs(run)
        join(state, run)
        command = [
            sys.executable,
            "-m",
            "drcn_keras.train",
            *map(_rooted, training),
            "--keep_checkpoints=1",
            "--tensorboard=false",
        ]
        # Names that are the same in every piece: a run goes on only where its settings are.
        process = subprocess.Popen([*command, "--train_dir=photographs", "--model_dir=run"], cwd=folder)
        try:
            code = process.wait(60.0 * minutes)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)  # The step in progress ends, and a checkpoint is written.
            code = process.wait()
        if code:
            raise UserError(f"the training ended with exit code {code}; {output} is as it was.")
        split(run, output)


def _rooted(argument):
    name, _, path = argument.partition("=")
    return f"--flagfile={os.path.abspath(path)}" if name == "--flagfile" else argument


def _unpack(path, folder):
    os.makedirs(folder)
    with np.load(path, allow_pickle=False) as images:
        for name in images.files:
            Image.fromarray(images[name]).save(os.path.join(folder, os.path.splitext(name)[0] + ".png"))


def split(run, output):
    """Writes a run's folder as parts of at most PART_BYTES, and last what says that they are whole."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(run, arcname=".")
    data = packed.getvalue()
    parts = [data[start : start + PART_BYTES] for start in range(0, len(data), PART_BYTES)]
    for number, part in enumerate(parts):
        write_atomically(os.path.join(output, PART.format(number)), lambda file, part=part: file.write(part))
    manifest = {"parts": len(parts), "sha256": hashlib.sha256(data).hexdigest()}
    write_atomically(os.path.join(output, MANIFEST), lambda file: file.write(json.dumps(manifest).encode()))


def join(state, run):
    """Lays the parts in the folder `state` out as a run's folder; nothing where there is no state.

    Raises:
        UserError: a part is missing or is another state's.
    """
    path = os.path.join(state, MANIFEST)
    if not state or not os.path.exists(path):
        return
    try:
        with open(path) as file:
            manifest = json.load(file)
        parts = [pathlib.Path(state, PART.format(number)).read_bytes() for number in range(manifest["parts"])]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{state}: the state is not whole: {error}; bring every part of one piece.") from error
    data = b"".join(parts)
    if hashlib.sha256(data).hexdigest() != manifest["sha256"]:
        raise UserError(f"{state}: the parts are not those of one state; bring every part of one piece.")
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        archive.extractall(run, filter="data")


def define_flags():
    commands.define_folders("train_dir", "pack: folders of training photographs")
    flags.DEFINE_string("images", None, "file of the packed photographs")
    commands.require("images")
    flags.DEFINE_string("state", "", "piece: folder with the parts of the run's state; none there: a new run")
    flags.DEFINE_string("output", "", "piece: folder for the parts of the new state")
    flags.DEFINE_float("minutes", 8.0, "piece: how long to train", lower_bound=0.0)


def main(argv):
    if len(argv) < 2 or argv[1] not in ("pack", "piece"):
        raise UserError(f"expected pack or piece; received {' '.join(argv[1:]) or 'nothing'}.")
    if argv[1] == "pack":
        if not FLAGS.train_dir:
            raise UserError("--train_dir is required: folders of photographs to pack.")
        print(f"{pack(FLAGS.train_dir, FLAGS.images)} photographs in {FLAGS.images}")
        return
    if not FLAGS.output:
        raise UserError("--output is required: a folder for the new state.")
    piece(FLAGS.images, FLAGS.state, FLAGS.output, FLAGS.minutes, argv[2:])


if __name__ == "__main__":
    commands.run(main, define_flags)
