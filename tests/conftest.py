"""What several test files share."""

import logging
import pathlib

import pytest
from kit import PHOTOGRAPHS, small_drcn
from PIL import Image


@pytest.fixture(autouse=True)
def audible():
    """Tools quieten absl for their process, which here is that of every test: `caplog` would hear nothing any more."""
    logging.getLogger("absl").setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def photographs():
    """The folder of photographs inside scikit-image's wheel."""
    return PHOTOGRAPHS


@pytest.fixture
def photos(photographs, tmp_path):
    """A folder of six small photographs."""
    folder = tmp_path / "photos"
    folder.mkdir()
    with Image.open(photographs / "astronaut.png") as photo:
        for index in range(6):
            photo.convert("RGB").crop((60 * index, 90, 60 * index + 50, 140)).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def benchmark_set():
    """Function of a data set's name to its folder; skips where the images are not there."""

    def find(name):
        folder = pathlib.Path(__file__).parents[2] / "shared" / "datasets" / name
        if not folder.is_dir():
            pytest.skip(f"needs the images of {name} in ../shared/datasets/{name}, which is not there")
        return str(folder)

    return find


@pytest.fixture
def random_drcn():
    """Function that builds a small DRCN, see `kit.small_drcn`."""
    return small_drcn


@pytest.fixture
def bicubic_drcn():
    """Function that builds a small DRCN that adds `offset` to its input and does nothing else."""

    def build(offset=0.0, channels=1, scale=2):
        from drcn_keras.model import DRCN

        model = DRCN(recursions=2, filters=2, channels=channels, scale=scale)
        kernel, bias = model.get_layer("reconstruction_2").get_weights()
        model.get_layer("reconstruction_2").set_weights([0 * kernel, 0 * bias + offset])
        return model

    return build
