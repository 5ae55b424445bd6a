"""The protocol's numbers against the published ones and against the network itself, image by image."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from keras import ops
from kit import ROOT
from PIL import Image

from drcn_keras.errors import UserError
from drcn_keras.evaluation import evaluate
from drcn_keras.image import enlarge, luma, shrink
from drcn_keras.image_files import read_image
from drcn_keras.layers import CenteredIdentity
from drcn_keras.metrics import measured_psnr
from drcn_keras.published import PUBLISHED, complaints
from drcn_keras.results import table, to_json


@pytest.fixture
def originals(photographs, tmp_path):
    """A folder with an RGB and a gray photograph, small and of odd size."""
    folder = tmp_path / "originals"
    folder.mkdir()
    with Image.open(photographs / "coffee.png") as photo:
        photo.convert("RGB").crop((200, 100, 243, 137)).save(folder / "coffee.png")
    with Image.open(photographs / "camera.png") as photo:
        photo.crop((200, 100, 241, 139)).save(folder / "camera.png")
    return folder


# === Numbers ===


@pytest.mark.parametrize(
    ("scale", "decibels", "similarity"), [(2, 33.66, 0.9299), (3, 30.39, 0.8682), (4, 28.42, 0.8104)]
)
def test_published_bicubic_of_set5(benchmark_set, scale, decibels, similarity):
    (result,) = evaluate("bicubic", benchmark_set("Set5"), scale)["results"]
    assert len(result["images"]) == 5
    assert round(result["mean"]["bicubic_psnr"], 2) == decibels
    assert round(result["mean"]["bicubic_ssim"], 4) == similarity
    assert not complaints([result])


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_published_bicubic_of_set14(benchmark_set, scale):
    (result,) = evaluate("bicubic", benchmark_set("Set14"), scale)["results"]
    assert len(result["images"]) == 14
    assert not complaints([result])
    assert result["mean"]["bicubic_ssim"] == pytest.approx(PUBLISHED["Set14"]["bicubic"][scale - 2][1], abs=2e-3)


def test_schema(random_drcn, originals):
    measured = evaluate(random_drcn(recursions=3), str(originals))
    assert list(measured) == ["results"]
    (result,) = measured["results"]
    assert list(result) == ["dataset", "scale", "images", "mean", "infinite"]
    assert result["infinite"] == []
    assert (result["dataset"], result["scale"]) == ("originals", 2)
    assert [image["name"] for image in result["images"]] == ["camera.png", "coffee.png"]
    numbers = ["psnr", "ssim", "bicubic_psnr", "bicubic_ssim"]
    for image in result["images"]:
        assert list(image) == ["name", *numbers]
    assert list(result["mean"]) == [*numbers, "recursion_psnr", "ensemble"]
    assert len(result["mean"]["recursion_psnr"]) == 3
    for number in numbers:
        values = [image[number] for image in result["images"]]
        assert result["mean"][number] == pytest.approx(sum(values) / 2)
    assert json.loads(to_json(measured)) == measured


@pytest.mark.parametrize("scale", [2, 3])
def test_psnr_is_the_ensembles_and_each_recursion_has_its_own(random_drcn, originals, scale):
    model = random_drcn(recursions=3, scale=scale)
    (result,) = evaluate(model, originals)["results"]
    expected, single = [], []
    for name in ("camera.png", "coffee.png"):
        y = luma(read_image(originals / name)) / 255
        y = y[: y.shape[0] // scale * scale, : y.shape[1] // scale * scale]
        ilr = enlarge(shrink(y, scale), scale)[None, ..., None].astype(np.float32)
        expected.append(measured_psnr(y, ops.convert_to_numpy(model(ilr))[0], scale))
        recursions = ops.convert_to_numpy(model.reconstructions(ilr))[0]
        single.append([measured_psnr(y, recursion, scale) for recursion in recursions])
    assert [image["psnr"] for image in result["images"]] == pytest.approx(expected, abs=1e-3)
    assert result["mean"]["recursion_psnr"] == pytest.approx(np.mean(single, axis=0).tolist(), abs=1e-3)
    assert abs(result["mean"]["psnr"] - result["mean"]["recursion_psnr"][-1]) > 0.1, "a weak test: both are the same"


def test_a_network_that_adds_nothing_is_bicubic(bicubic_drcn, originals):
    for channels in (1, 3):
        (result,) = evaluate(bicubic_drcn(channels=channels), originals)["results"]
        gray, color = result["images"]
        assert gray["psnr"] == pytest.approx(gray["bicubic_psnr"], abs=0.01)
        # Y of rounded RGB is a rounding away from rounded Y.
        assert color["psnr"] == pytest.approx(color["bicubic_psnr"], abs=0.01 if channels == 1 else 0.2)


def test_rgb_networks_are_measured_on_y_of_their_rgb(random_drcn, originals):
    model = random_drcn(channels=3)
    (originals / "camera.png").unlink()
    (result,) = evaluate(model, originals)["results"]
    rgb = read_image(originals / "coffee.png")[:36, :42] / 255
    sr = ops.convert_to_numpy(model(enlarge(shrink(rgb, 2), 2)[None].astype(np.float32)))[0]
    y = luma((255 * np.clip(sr, 0, 1) + 0.5).astype(np.uint8)) / 255
    assert result["mean"]["psnr"] == pytest.approx(
        measured_psnr(luma((255 * rgb).round().astype(np.uint8)) / 255, y, 2)
    )


def test_tiles_change_nothing(random_drcn, originals):
    model = random_drcn()
    (whole,), (tiled,) = (evaluate(model, originals, tile=tile)["results"] for tile in (100, 20))
    assert tiled["mean"]["psnr"] == pytest.approx(whole["mean"]["psnr"], abs=1e-3)
    assert tiled["mean"]["recursion_psnr"] == pytest.approx(whole["mean"]["recursion_psnr"], abs=1e-3)


def test_equal_images_are_null_in_json(tmp_path):
    Image.new("L", (20, 20), 7).save(tmp_path / "flat.png")
    measured = evaluate("bicubic", tmp_path, 2)
    assert measured["results"][0]["mean"]["psnr"] == float("inf")
    assert json.loads(to_json(measured))["results"][0]["mean"]["psnr"] is None


def test_a_flat_image_does_not_make_the_mean_infinite(bicubic_drcn, originals, caplog):
    (plain,) = evaluate(bicubic_drcn(), originals)["results"]
    Image.new("L", (20, 20), 7).save(originals / "flat.png")
    (result,) = evaluate(bicubic_drcn(), originals)["results"]
    assert result["infinite"] == ["flat.png"]
    assert result["images"][2]["psnr"] == float("inf")
    for number in ("psnr", "bicubic_psnr", "recursion_psnr"):
        assert result["mean"][number] == pytest.approx(plain["mean"][number])
    assert result["mean"]["ssim"] == pytest.approx((2 * plain["mean"]["ssim"] + 1) / 3)
    assert "left out of its means: 1 (flat.png)" in table(result, "mine")
    # A model that is off by a level everywhere is not averaged over one image more than bicubic is.
    (result,) = evaluate(bicubic_drcn(offset=1 / 255), originals)["results"]
    assert result["images"][2]["psnr"] == pytest.approx(48.13, abs=0.01)
    assert result["infinite"] == ["flat.png"]
    assert result["mean"]["psnr"] < 40


# === The published rows ===


def published(dataset, scale, decibels):
    mean = {"psnr": decibels, "ssim": 0.9, "bicubic_psnr": decibels, "bicubic_ssim": 0.9, "recursion_psnr": []}
    return {"dataset": dataset, "scale": scale, "images": [], "mean": mean}


def test_bicubic_is_held_against_the_paper():
    assert not complaints([published("Set5", 2, 33.641), published("B100", 4, 25.979)])
    assert len(complaints([published("Set5", 2, 33.639), published("B100", 4, 25.981)])) == 2
    # By either name and any spelling; a folder of another name has no published row.
    assert complaints([published("BSD100", 3, 27.3)])
    assert complaints([published("urban100", 2, 26.9)]) == []
    assert complaints([published("set14", 3, 27.0)])
    assert not complaints([published("holiday", 3, 27.0)])
    assert complaints([published("Set5", 2, float("nan"))])


def test_published_table_by_other_sums():
    # The paper's gains over bicubic, subtracted by hand.
    gains = {
        "Set5": (3.97, 3.43, 3.11),
        "Set14": (2.80, 2.21, 2.02),
        "B100": (2.29, 1.59, 1.27),
        "Urban100": (3.87, 2.69, 2.0),
    }
    for name, expected in gains.items():
        rows = zip(PUBLISHED[name]["DRCN"], PUBLISHED[name]["bicubic"], strict=True)
        assert [drcn[0] - bicubic[0] for drcn, bicubic in rows] == pytest.approx(expected, abs=1e-6)


def test_table_shows_bicubic_the_model_the_paper_and_recursions(random_drcn, originals):
    folder = originals.rename(originals.parent / "B100")
    (result,) = evaluate(random_drcn(recursions=2), folder)["results"]
    text = table(result, "mine")
    assert "B100 x2, 2 images" in text
    assert f"{result['mean']['psnr']:.2f} dB" in text
    assert "paper: DRCN" in text
    assert "31.85 dB  0.8942" in text
    assert "recursions 1 to 2: " in text
    assert "their ensemble: " in text
    assert "mine" not in table(evaluate("bicubic", folder, 2)["results"][0], "bicubic")


def test_a_thin_ensemble_is_measured_as_it_is_and_named(random_drcn, originals):
    model = random_drcn(recursions=4)
    model.ensemble_weights.assign([0.6, 0.0, 0.3, 0.0])
    (result,) = evaluate(model, originals)["results"]
    assert result["mean"]["ensemble"] == [1, 3]
    assert len(result["mean"]["recursion_psnr"]) == 4
    assert "the ensemble of 1, 3 alone: " in table(result, "mine")
    # What is not in use has no say, whatever it holds: the fourth recursion overflows, the third does not.
    kernel, bias = model.get_layer("inference").get_weights()
    model.get_layer("inference").set_weights([1e11 * CenteredIdentity()(kernel.shape), 0 * bias])
    assert not np.isfinite(ops.convert_to_numpy(model(np.ones((1, 9, 9, 1), np.float32)))).all()
    assert np.isfinite(evaluate(model, originals)["results"][0]["mean"]["psnr"])


# === Saved images, bad input ===


@pytest.mark.parametrize("channels", [1, 3])
def test_saved_images_are_the_measured_ones(random_drcn, originals, tmp_path, channels):
    model = random_drcn(channels=channels)
    out = tmp_path / "restored"
    (result,) = evaluate(model, originals, save_images=str(out))["results"]
    assert sorted(os.listdir(out / "originals")) == ["camera_x2.png", "coffee_x2.png"]
    for measured in result["images"]:
        stem = measured["name"].removesuffix(".png")
        saved, original = read_image(out / "originals" / f"{stem}_x2.png"), read_image(originals / measured["name"])
        assert saved.shape[2:] == original.shape[2:]
        original = original[: saved.shape[0], : saved.shape[1]]
        psnr = measured_psnr(luma(original) / 255, luma(saved) / 255, 2)
        # Colours beyond RGB are clipped in the saved image, its Y is rounded twice.
        assert psnr == pytest.approx(measured["psnr"], abs=0.3)
    with pytest.raises(UserError, match="`overwrite` replaces them"):
        evaluate(model, originals, save_images=str(out))
    evaluate(model, originals, save_images=str(out), overwrite=True)


def test_what_cannot_be_measured_is_skipped_and_named(originals, caplog):
    (originals / "fake.png").write_text("no image")
    Image.new("L", (14, 40)).save(originals / "small.png")
    Image.new("L", (16, 40)).save(originals / "smallest.png")
    (result,) = evaluate("bicubic", originals, 2)["results"]
    assert [image["name"] for image in result["images"]] == ["camera.png", "coffee.png", "smallest.png"]
    assert "fake.png" in caplog.text
    assert "small.png: 14 x 40, smaller than 15 pixels" in caplog.text


def test_bad_input(random_drcn, originals, tmp_path):
    with pytest.raises(UserError, match="missing: expected a folder"):
        evaluate("bicubic", tmp_path / "missing", 2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no image in this folder"):
        evaluate("bicubic", [originals, tmp_path / "empty"], 2)
    (tmp_path / "empty" / "a.png").write_text("no image")
    with pytest.raises(UserError, match="empty: no image in this folder can be measured"):
        evaluate("bicubic", tmp_path / "empty", 2)
    with pytest.raises(UserError, match="bicubic has no scale of its own"):
        evaluate("bicubic", originals)
    with pytest.raises(UserError, match="`scale` must be 2, 3 or 4; received 8"):
        evaluate("bicubic", originals, 8)
    with pytest.raises(UserError, match="`scale=4`, but the model's weights are for x2"):
        evaluate(random_drcn(), originals, 4)
    with pytest.raises(UserError, match="must be more than 12"):
        evaluate(random_drcn(), originals, tile=12)
    with pytest.raises(UserError, match="no model"):
        evaluate(str(tmp_path / "none.keras"), originals)


# === The command ===


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "drcn_keras.evaluate", *map(str, arguments)], capture_output=True, text=True, cwd=ROOT
    )


def test_command_writes_json_and_is_loud_about_bicubic(originals, tmp_path):
    folder = originals.rename(tmp_path / "Set5")
    arguments = ["--model=bicubic", f"--data_dir={folder}", "--scale=2", f"--json={tmp_path / 'out.json'}"]
    done = command(*arguments)
    assert done.returncode != 0
    assert "paper: bicubic" in done.stdout
    assert "BICUBIC IS OFF" in done.stderr.splitlines()[-1]
    assert done.stderr.count("BICUBIC IS OFF") == 1
    measured = json.loads((tmp_path / "out.json").read_text())
    (result,) = evaluate("bicubic", folder, 2)["results"]
    assert measured == {"results": [{"model": "bicubic", **result}]}
    # Never silently overwritten; and the folder of another name has nothing to be held against.
    folder.rename(tmp_path / "mine")
    arguments[1] = f"--data_dir={tmp_path / 'mine'}"
    done = command(*arguments)
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1
    assert "out.json exists; --overwrite replaces it" in done.stderr
    assert json.loads((tmp_path / "out.json").read_text()) == measured
    done = command(*arguments, "--overwrite")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out.json").read_text())["results"][0]["dataset"] == "mine"


def test_command_measures_several_models(random_drcn, originals, tmp_path):
    models = [str(tmp_path / f"{scale}.keras") for scale in (2, 3)]
    for scale, path in zip((2, 3), models, strict=True):
        random_drcn(scale=scale, seed=scale).save(path)
    done = command(f"--model={','.join(models)}", f"--data_dir={originals}", f"--json={tmp_path / 'out.json'}")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    assert [(result["model"], result["scale"]) for result in results] == [(models[0], 2), (models[1], 3)]
    for path, result in zip(models, results, strict=True):
        assert result["mean"]["psnr"] == pytest.approx(evaluate(path, originals)["results"][0]["mean"]["psnr"])
    # The second is wrong: nothing is measured, nothing is written.
    done = command(f"--model={models[0]},none.keras", f"--data_dir={originals}", f"--json={tmp_path / 'other.json'}")
    assert done.returncode != 0
    assert "none.keras" in done.stderr.splitlines()[-1]
    assert done.stdout == ""
    assert not (tmp_path / "other.json").exists()


def test_folders_below_are_data_sets_of_their_own(originals, tmp_path):
    (tmp_path / "all" / "B100" / "deep").mkdir(parents=True)
    (tmp_path / "all" / ".hidden").mkdir()
    (originals / "camera.png").rename(tmp_path / "all" / "B100" / "deep" / "camera.png")
    (tmp_path / "all" / ".hidden" / "x.png").write_text("no image")
    (originals / "coffee.png").rename(tmp_path / "all" / "B100" / "coffee.png")
    Image.new("L", (20, 20), 7).save(tmp_path / "all" / "top.png")
    results = evaluate("bicubic", tmp_path / "all", 2, recursive=True, save_images=str(tmp_path / "sr"))["results"]
    names = {result["dataset"]: [image["name"] for image in result["images"]] for result in results}
    assert names == {"all": ["top.png"], "B100": ["coffee.png"], os.path.join("B100", "deep"): ["camera.png"]}
    assert (tmp_path / "sr" / "B100" / "deep" / "camera_x2.png").is_file()
    # A name that has published rows has them here too.
    assert len(complaints(results)) == 1
    with pytest.raises(UserError, match="no image in this folder or below"):
        evaluate("bicubic", originals, 2, recursive=True)


def test_command_writes_a_line_of_csv_for_every_image(bicubic_drcn, originals, tmp_path):
    bicubic_drcn(scale=(2, 3)).save(tmp_path / "m.keras")
    Image.new("L", (20, 20), 7).save(originals / "flat, and gray.png")
    arguments = [f"--model={tmp_path / 'm.keras'},bicubic", f"--data_dir={originals}", "--scale=2,3"]
    done = command(*arguments, f"--csv={tmp_path / 'out' / 'all.csv'}")
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "out" / "all.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["model", "dataset", "scale", "image", "psnr", "ssim", "bicubic_psnr", "bicubic_ssim"]
    assert len(rows) == 2 * 2 * 3
    results = {result["scale"]: result for result in evaluate("bicubic", originals, [2, 3])["results"]}
    for row in rows:
        image = next(entry for entry in results[int(row["scale"])]["images"] if entry["name"] == row["image"])
        assert row["dataset"] == "originals"
        assert float(row["bicubic_psnr"]) == image["bicubic_psnr"]
        assert float(row["psnr"]) == pytest.approx(image["psnr"], abs=0.01)
    assert [row["psnr"] for row in rows if row["image"] == "flat, and gray.png"] == ["inf"] * 4
    done = command(*arguments, f"--csv={tmp_path / 'out' / 'all.csv'}")
    assert done.returncode != 0
    assert "all.csv exists; --overwrite replaces it" in done.stderr


def test_command_ends_in_one_line(tmp_path):
    for arguments, message in [
        ([], "--data_dir is required"),
        (["--model=bicubic", f"--data_dir={tmp_path}", "--scale=2"], "no image in this folder"),
        ([f"--data_dir={tmp_path}", "--scale=8"], "--scale must be 2, 3 or 4; received 8"),
        (["--model=none.keras", f"--data_dir={tmp_path / 'missing'}"], "missing: expected a folder"),
        (["--data_dir=any", f"--csv={tmp_path}"], "is a folder; expected a file"),
        (["--data_dir=any", f"--csv={tmp_path}/a", f"--json={tmp_path}/b/../a"], "--json and --csv are the same file"),
    ]:
        done = command(*arguments)
        assert done.returncode != 0
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert message in done.stderr


def test_every_scale_of_a_network_of_several(bicubic_drcn, originals):
    model = bicubic_drcn(scale=(2, 3))
    both = evaluate(model, originals)["results"]
    assert [result["scale"] for result in both] == [2, 3]
    assert evaluate(model, originals, 3)["results"] == both[1:]
    assert evaluate(bicubic_drcn(scale=3), originals)["results"] == both[1:]
    with pytest.raises(UserError, match="weights are for x2 and x3"):
        evaluate(model, originals, 4)


def test_self_ensemble_is_a_row_of_its_own(random_drcn, originals, tmp_path):
    random_drcn(scale=(2, 3)).save(tmp_path / "m.keras")
    result = command(f"--model={tmp_path / 'm.keras'}", f"--data_dir={originals}", "--scale=3", "--self_ensemble")
    assert result.returncode == 0, result.stderr
    assert f"{tmp_path / 'm.keras'}+" in result.stdout
    assert "x2" not in result.stdout


def test_a_network_that_gives_no_numbers_is_refused(random_drcn, originals):
    model = random_drcn(recursions=2)
    kernel, bias = model.get_layer("inference").get_weights()
    model.get_layer("inference").set_weights([1e30 * kernel, bias])
    with pytest.raises(UserError, match="NaN or infinity"):
        evaluate(model, originals)
