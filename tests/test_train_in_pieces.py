"""Training in pieces: the state crosses in parts, and the run is the one that was never broken off."""

import csv
import json
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import train_in_pieces
from kit import ROOT
from PIL import Image

from drcn_keras.errors import UserError

TINY = [
    "--filters=8",
    "--recursions=2",
    "--scale=2,3",
    "--patch_size=12",
    "--stride=6",
    "--batch_size=4",
    "--steps_per_epoch=3",
    "--holdout=1",
    "--optimizer=adam",
    "--learning_rate=0.001",
]


def command(*arguments):
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "train_in_pieces.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def images(tmp_path_factory, photographs):
    folder = tmp_path_factory.mktemp("images")
    (folder / "photographs").mkdir()
    with Image.open(photographs / "camera.png") as photo:
        for number in range(3):
            photo.crop((200, 100 + 30 * number, 230, 130 + 30 * number)).save(folder / "photographs" / f"{number}.png")
    command("pack", f"--train_dir={folder / 'photographs'}", f"--images={folder / 'images.npz'}")
    return folder / "images.npz"


def test_photographs_cross_as_they_are(images):
    with np.load(images) as packed:
        for name in packed.files:
            with Image.open(images.parent / "photographs" / name) as photo:
                assert np.array_equal(packed[name], np.asarray(photo))


def test_pieces_continue_one_run(images, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    command("piece", f"--images={images}", f"--output={one}", "--", *TINY, "--epochs=2")
    command("piece", f"--images={images}", f"--state={one}", f"--output={two}", "--", *TINY, "--epochs=3")
    train_in_pieces.join(str(two), str(tmp_path / "run"))
    rows = list(csv.DictReader((tmp_path / "run" / "log.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert json.loads((tmp_path / "run" / "best.json").read_text())["scale"] == [2, 3]


def test_large_states_are_cut_and_joined(tmp_path, monkeypatch):
    monkeypatch.setattr(train_in_pieces, "PART_BYTES", 5000)
    (tmp_path / "run").mkdir()
    content = np.random.default_rng(0).bytes(12_345)
    (tmp_path / "run" / "step.npz").write_bytes(content)
    (tmp_path / "parts").mkdir()
    train_in_pieces.split(str(tmp_path / "run"), str(tmp_path / "parts"))
    parts = sorted((tmp_path / "parts").glob("state-*"))
    assert len(parts) > 2
    assert max(part.stat().st_size for part in parts) <= 5000
    train_in_pieces.join(str(tmp_path / "parts"), str(tmp_path / "back"))
    assert (tmp_path / "back" / "step.npz").read_bytes() == content
    parts[1].write_bytes(parts[0].read_bytes())
    with pytest.raises(UserError, match="not those of one state"):
        train_in_pieces.join(str(tmp_path / "parts"), str(tmp_path / "other"))
    parts[1].unlink()
    with pytest.raises(UserError, match="not whole"):
        train_in_pieces.join(str(tmp_path / "parts"), str(tmp_path / "other"))


def test_a_state_cannot_write_elsewhere(tmp_path):
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        member = tarfile.TarInfo("../evil")
        archive.addfile(member)
    data = (tmp_path / "evil.tar").read_bytes()
    (tmp_path / "state-000").write_bytes(data)
    digest = train_in_pieces.hashlib.sha256(data).hexdigest()
    (tmp_path / "state.json").write_text(json.dumps({"parts": 1, "sha256": digest}))
    with pytest.raises(tarfile.OutsideDestinationError):
        train_in_pieces.join(str(tmp_path), str(tmp_path / "run"))
