"""The best subset by least squares, against sums done otherwise, and the command's files."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest

import drcn_keras
from drcn_keras import card
from drcn_keras.data import load_pairs
from drcn_keras.errors import ArgumentError
from drcn_keras.graphs import compiled
from drcn_keras.inference import recursions_model
from drcn_keras.metrics import psnr
from drcn_keras.refit import best_subset, ensemble_psnr, refit, statistics
from drcn_keras.tiling import restoring

# Keras 3.15 meets NumPy 2 inside convert_to_numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def sums_of(rows, hr):
    return (rows @ rows.T, rows @ hr, float(hr @ hr), hr.size)


@pytest.mark.parametrize("to_the_last", [False, True])
@pytest.mark.parametrize("outputs", [1, 2, 4, 5])
def test_best_subset_is_that_of_lstsq(outputs, to_the_last):
    random = np.random.default_rng(0)
    hr = random.random(400)
    images = [(hr + random.normal(0, 0.1 + 0.05 * np.arange(5)[:, None], (5, 400)), hr) for _ in range(2)]
    rows, target = np.concatenate([rows for rows, _ in images], axis=1), np.concatenate([hr for _, hr in images])

    def error(subset):
        return np.linalg.lstsq(rows[list(subset)].T, target)[1][0]

    subsets = itertools.combinations(range(5), outputs)
    best = min((subset for subset in subsets if 4 in subset or not to_the_last), key=error)
    weights = best_subset([sums_of(*image) for image in images], outputs, to_the_last)
    assert np.flatnonzero(weights).tolist() == list(best)
    np.testing.assert_allclose(weights[list(best)], np.linalg.lstsq(rows[list(best)].T, target)[0], rtol=1e-8)


def test_equal_recursions_have_an_answer():
    hr = np.random.default_rng(0).random(50)
    weights = best_subset([sums_of(np.stack([hr / 2, hr / 2, hr / 2]), hr)], 2)
    assert np.sum(weights) == pytest.approx(2)
    assert np.count_nonzero(weights) == 2


def test_wrong_numbers_of_outputs():
    sums = [sums_of(np.eye(3), np.ones(3))]
    for outputs in (0, 4):
        with pytest.raises(ArgumentError, match=f"`outputs` must be from 1 to 3, .* received {outputs}"):
            best_subset(sums, outputs)
    with pytest.raises(ArgumentError, match="`outputs`: 20 of 40 recursions are 137,846,528,820 subsets"):
        best_subset([sums_of(np.eye(40), np.ones(40))], 20)


def test_psnr_from_the_sums_is_that_of_the_images(random_drcn, photos):
    model = random_drcn(recursions=3)
    pairs = load_pairs(sorted(map(str, photos.iterdir())), 2)
    network = restoring(compiled(recursions_model(model)))
    sums = statistics(pairs, network, tile=30, halo=model.halo)
    weights = np.array([0.9, 0.0, 0.3])
    expected = []
    for pair in pairs:
        ensemble = np.tensordot(weights, network(pair.ilr), 1)
        expected.append(psnr(255 * pair.hr[2:-2, 2:-2], 255 * ensemble[2:-2, 2:-2]))
    assert ensemble_psnr(sums, weights) == pytest.approx(np.mean(expected), abs=1e-3)


def test_a_model_of_several_scales_is_fitted_on_all(photos):
    from drcn_keras import DRCN

    model = DRCN(recursions=3, filters=4, scale=(2, 3))
    # One of these recursions is the bicubic image itself, the others are darker.
    kernel, bias = model.get_layer("reconstruction_2").get_weights()
    model.get_layer("reconstruction_2").set_weights([0 * kernel, bias])
    new, found = refit(model, sorted(map(str, photos.iterdir())), outputs=1, holdout=2)
    assert new.scales == (2, 3)
    assert len(found["outputs"]) == 1
    assert (found["train_images"], found["val_images"]) == (4, 2)
    # y_d are all the bicubic image: its best share is near 1, where that of a third each is 1 too.
    assert found["val_psnr"] == pytest.approx(found["val_psnr_before"], abs=0.1)


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "drcn_keras.refit", *map(str, arguments)], capture_output=True, text=True
    )


def test_command(random_drcn, photos, tmp_path):
    model = random_drcn(recursions=4)
    model.save(tmp_path / "whole.keras")
    card.write(str(tmp_path / "whole.keras"), {"epoch": 7, "results": [{"psnr": 99.0}]})
    new = tmp_path / "new" / "thin.keras"
    arguments = [f"--model={tmp_path / 'whole.keras'}", f"--train_dir={photos}", f"--output={new}", "--outputs=2"]
    done = run(*arguments, "--holdout=2")
    assert done.returncode == 0, done.stderr
    thin = drcn_keras.load(str(new))
    weights = np.asarray(thin.get_layer("ensemble").get_weights()[0])
    made = json.loads(new.with_suffix(".json").read_text())
    assert (np.flatnonzero(weights) + 1).tolist() == made["refit"]["outputs"]
    assert len(made["refit"]["outputs"]) == 2
    assert made["refit"]["train_sets"] == ["photos"]
    # What was measured was another model.
    assert (made["epoch"], "results" in made) == (7, False)
    # Random weights are far from the best for their recursions.
    assert made["refit"]["val_psnr"] > made["refit"]["val_psnr_before"]
    assert f"{made['refit']['val_psnr']:.3f} dB on 2 held-out images" in done.stdout
    for name in ("embedding_1", "inference", "reconstruction_2"):
        for old, kept in zip(model.get_layer(name).get_weights(), thin.get_layer(name).get_weights(), strict=True):
            np.testing.assert_array_equal(old, kept)
    again = run(*arguments)
    assert again.returncode == 1
    assert "thin.keras exists; --overwrite replaces it." in again.stderr
    few = run(*arguments, "--overwrite", "--outputs=9", "--holdout=2")
    assert (
        few.stderr.strip()
        .splitlines()[-1]
        .endswith("--outputs must be from 1 to 4, the model's recursions; received 9.")
    )
    assert len(few.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train_dir=a", "--output=b.keras"], "--model is required"),
        (["--model=mobile-x2", "--output=b.keras"], "--train_dir is required"),
        (["--model=mobile-x2", "--train_dir=a", "--output=b.h5"], "--output: expected a name that ends in .keras"),
        (["--model=mobile-x2", "--train_dir=/nowhere", "--output=b.keras"], "/nowhere"),
    ],
)
def test_what_is_wrong_is_one_line(arguments, message):
    done = run(*arguments)
    assert done.returncode != 0
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert message in done.stderr
