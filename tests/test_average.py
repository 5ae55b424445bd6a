"""The mean of networks' weights, and which of them held-out photographs choose."""

import json
import subprocess
import sys

import numpy as np
import pytest

import drcn_keras
from drcn_keras import DRCN, card
from drcn_keras.average import MOST_SHARES, average, best_shares, mean_weights
from drcn_keras.errors import UserError
from drcn_keras.validation import Validation, held_out_pairs


def paths(folder):
    return sorted(map(str, folder.iterdir()))


def test_the_mean_of_weights_is_that_of_equal_shares_of_each():
    ours, theirs = [np.float32([1, 2]), np.float32([[8]])], [np.float32([4, -1]), np.float32([[2]])]
    vector, matrix = mean_weights([ours, theirs], (2, 1))
    np.testing.assert_array_equal(vector, np.float32([2, 1]))
    np.testing.assert_array_equal(matrix, np.float32([[6]]))
    assert vector.dtype == matrix.dtype == np.float32
    np.testing.assert_array_equal(mean_weights([ours, theirs], (0, 3))[0], theirs[0])


def test_the_best_begins_and_whoever_gains_most_joins():
    # A parabola in the mean of 0, 6 and 9, whose peak is at 4: 6 is nearest; (6+0)/2 = 3, then (6+6+0)/3 = 4.
    places, tried = np.array([0.0, 6.0, 9.0]), []

    def measured(shares):
        tried.append(shares)
        return -((places @ shares / sum(shares) - 4) ** 2)

    assert best_shares(3, measured) == ((1, 2, 0), 0.0)
    assert tried[:3] == [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert tried[3:6] == [(1, 1, 0), (0, 2, 0), (0, 1, 1)]
    # A fourth gains nothing.
    assert tried[-1] == (1, 2, 1)


def test_a_gain_too_small_to_be_one_ends_it():
    assert best_shares(2, lambda shares: 30.0 + 0.00009 * sum(shares)) == ((1, 0), pytest.approx(30.00009))
    shares, _ = best_shares(2, lambda shares: 30.0 + 0.0002 * sum(shares))
    assert sum(shares) == MOST_SHARES


def test_the_mean_is_measured_as_the_networks_are_and_in_float32(bicubic_drcn, photos):
    # One is as much too bright as the other is too dark: their mean is the bicubic image.
    models = [bicubic_drcn(offset=offset, scale=(2, 3)).computing_in("mixed_bfloat16") for offset in (0.02, -0.02)]
    pairs = held_out_pairs(paths(photos), (2, 3), 1)
    mean, shares, logs = average(models, pairs)
    assert shares == (1, 1)
    assert mean.scales == (2, 3)
    assert mean.get_layer("inference").dtype_policy.name == "float32"
    assert logs["val_psnr"] == pytest.approx(logs["val_bicubic"], abs=1e-3)
    for model in models:
        alone = Validation(pairs)
        alone.set_model(model)
        assert alone.measured()["val_psnr"] < logs["val_psnr"] - 0.5
    # Left as they were.
    assert models[0].get_layer("reconstruction_2").get_weights()[1][0] == pytest.approx(0.02)


def test_what_brings_nothing_is_not_taken(bicubic_drcn, photos):
    models = [bicubic_drcn(offset=offset) for offset in (0.05, 0.0, 0.08)]
    mean, shares, _ = average(models, held_out_pairs(paths(photos), (2,), 1))
    assert shares == (0, 1, 0)
    for kept, own in zip(mean.get_weights(), models[1].get_weights(), strict=True):
        np.testing.assert_array_equal(kept, own)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"filters": 5}, "same filters; received 4 and 5"),
        ({"recursions": 3}, "same recursions; received 2 and 3"),
        ({"scale": 3}, r"same scales; received \(2,\) and \(3,\)"),
        ({"channels": 3}, "same channels; received 1 and 3"),
    ],
)
def test_networks_of_another_shape_are_refused(other, message):
    shape = {"recursions": 2, "filters": 4, "scale": 2}
    with pytest.raises(UserError, match=message):
        average([DRCN(**shape), DRCN(**(shape | other))], [])
    with pytest.raises(UserError, match="at least two networks to average; received 1"):
        average([DRCN(**shape)], [])
    for shares in ((1,), (1, -1), (0, 0), (1, 1, 1), (1, 10**400)):
        with pytest.raises(
            UserError, match="`shares` must be 2 whole numbers, one for each network, from 0 to 1,000,000"
        ):
            average([DRCN(**shape)] * 2, [], shares)


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "drcn_keras.average", *map(str, arguments)], capture_output=True, text=True
    )


def test_command(bicubic_drcn, photos, tmp_path):
    names = [str(tmp_path / f"{name}.keras") for name in ("bright", "dark", "white")]
    for name, offset in zip(names, (0.02, -0.02, 0.5), strict=True):
        bicubic_drcn(offset=offset).save(name)
    card.write(names[0], {"epoch": 7, "flags": {"model_dir": "/home/me", "seed": 3}})
    # The first was trained from the second.
    card.write(names[1], {"epoch": 2, "val_psnr": 30.5, "filters": 2, "recursions": 2, "flags": {}})
    card.write(names[0], {**card.read(names[0]), "init": card.with_origin(names[1])})
    output = tmp_path / "new" / "best.keras"
    arguments = [f"--model={','.join(names)}", f"--output={output}"]
    done = command(*arguments, f"--train_dir={photos}", "--holdout=2")
    assert done.returncode == 0, done.stderr
    mean = drcn_keras.load(str(output))
    assert mean.get_layer("reconstruction_2").get_weights()[1][0] == pytest.approx(0, abs=1e-7)
    made = json.loads(output.with_suffix(".json").read_text())
    assert (made["scale"], made["filters"], made["recursions"]) == (2, 2, 2)
    assert (made["val_sets"], made["val_images"]) == (["photos"], 2)
    assert made["val_psnr"] == pytest.approx(made["val_bicubic_psnr"], abs=1e-3)
    assert made["average"] == [
        {
            "share": 1,
            "epoch": 7,
            "flags": {"seed": 3},
            "init": {"epoch": 2, "val_psnr": 30.5, "filters": 2, "recursions": 2, "flags": {}},
        },
        {"share": 1, "name": "dark", "val_psnr": 30.5, "filters": 2, "recursions": 2},
    ]
    assert f"1 x {names[0]}, 1 x {names[1]}; {made['val_psnr']:.4f} dB on 2 held-out images" in done.stdout
    # Training from it, and a preset of it, tell the whole of it.
    assert card.with_origin(str(output)) == made
    preset = card.of_preset(str(output.parent), "drcn-average ...", [])
    assert preset == {**made, "command": "drcn-average ...", "results": []}

    again = command(*arguments, f"--train_dir={photos}", "--holdout=2")
    assert (again.returncode, again.stderr.count("\n")) == (1, 1)
    assert "best.keras exists; --overwrite replaces it." in again.stderr
    # What is said counts, whatever the photographs favour.
    said = command(*arguments, f"--train_dir={photos}", "--holdout=2", "--shares=1,3,0", "--overwrite")
    assert said.returncode == 0, said.stderr
    mean = drcn_keras.load(str(output))
    assert mean.get_layer("reconstruction_2").get_weights()[1][0] == pytest.approx(-0.01, abs=1e-7)
    assert [inner["share"] for inner in json.loads(output.with_suffix(".json").read_text())["average"]] == [1, 3]
    # Folders of their own choose where they are named, all of their photographs.
    whole = command(*arguments, f"--val_dir={photos}", "--overwrite")
    assert whole.returncode == 0, whole.stderr
    assert json.loads(output.with_suffix(".json").read_text())["val_images"] == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=mobile-x2,mobile-x2", "--output=m.keras"], "--train_dir or --val_dir is required"),
        (["--model=mobile-x2", "--output=m.keras", "--val_dir=."], "--model must name at least two networks"),
        (["--model=mobile-x2,mobile-x2", "--output=m.keras", "--val_dir=.", "--shares=1"], "--shares must be 2 whole"),
        (["--model=mobile-x2,mobile-x2", "--output=m.keras", "--val_dir=.", "--shares=1,a"], "--shares must be whole"),
        (
            ["--model=mobile-x2,mobile-x2", "--output=m.keras", "--val_dir=.", f"--shares=1,{'9' * 5000}"],
            "whole numbers >= 0",
        ),
        (["--model=mobile-x2,none.keras", "--output=m.keras", "--val_dir=."], "none.keras"),
        (["--model=mobile-x2,mobile-x3", "--output=m.keras", "--val_dir=."], "--model: all must have the same scales"),
        (["--model=mobile-x2,mobile-x2", "--output=m.h5", "--val_dir=."], "ends in .keras; received m.h5"),
        (["--model=mobile-x2,mobile-x2", "--output=m.keras", "--val_dir=nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line(arguments, message, photos):
    done = subprocess.run(
        [sys.executable, "-m", "drcn_keras.average", *arguments], capture_output=True, text=True, cwd=photos
    )
    assert done.returncode == 1
    assert message in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in photos.iterdir()) == [f"{index}.png" for index in range(6)]
