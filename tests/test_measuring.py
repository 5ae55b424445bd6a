"""LR images of one's own, measured as they are."""

import numpy as np
import pytest
from PIL import Image

import drcn_keras
from drcn_keras.errors import UserError
from drcn_keras.evaluation import evaluate
from drcn_keras.image import luma, mod_crop, shrink
from drcn_keras.image_files import read_image
from drcn_keras.measuring import measure
from drcn_keras.metrics import eight_bit, measured_psnr
from drcn_keras.results import table


@pytest.fixture
def pairs(photographs, tmp_path):
    """A folder of HR photographs of odd size and one of LR images, shrunk by Pillow; (HR, LR) paths."""
    for name in ("HR", "LR"):
        (tmp_path / name).mkdir()
    with Image.open(photographs / "coffee.png") as photo:
        hr = photo.convert("RGB").crop((200, 100, 243, 137))
    hr.save(tmp_path / "HR" / "0801.png")
    hr.resize((21, 18), Image.Resampling.BOX).save(tmp_path / "LR" / "0801x2.png")
    return tmp_path / "HR", tmp_path / "LR"


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_measured_is_what_upscale_gives(random_drcn, pairs, tmp_path, channels):
    model = random_drcn(channels=channels)
    hr, lr = pairs
    (result,) = evaluate(model, hr, lr_dir=lr, save_images=str(tmp_path / "out"))["results"]
    assert result["lr_dir"] == str(lr)
    sr = drcn_keras.upscale(read_image(lr / "0801x2.png"), model)
    original = read_image(hr / "0801.png")[:36, :42]
    expected = measured_psnr(luma(original) / 255, luma(sr) / 255, 2)
    # Y of rounded and clipped RGB against the network's own Y.
    assert result["mean"]["psnr"] == pytest.approx(expected, abs=0.3 if channels == 1 else 1e-3)
    saved = read_image(tmp_path / "out" / "HR" / "0801_x2.png")
    assert np.abs(saved.astype(int) - sr).max() <= 1
    # Another degradation, other numbers: the LR image is looked at.
    assert abs(result["mean"]["bicubic_psnr"] - evaluate("bicubic", hr, 2)["results"][0]["mean"]["psnr"]) > 0.5


def test_lr_images_by_the_protocol_give_the_protocols_numbers(bicubic_drcn, photographs, pairs):
    hr, lr = pairs
    original = read_image(hr / "0801.png")
    small = shrink(mod_crop(luma(original), 2) / 255, 2)
    # Gray files, so that Y is not rounded once more on its way through RGB; 8 bit cost little.
    Image.fromarray(luma(original)).save(hr / "0801.png")
    Image.fromarray(eight_bit(small)).save(lr / "0801x2.png")
    given, shrunk = (evaluate(bicubic_drcn(), hr, lr_dir=folder)["results"][0]["mean"] for folder in (lr, None))
    assert given["psnr"] == pytest.approx(shrunk["psnr"], abs=0.05)
    assert given["ssim"] == pytest.approx(shrunk["ssim"], abs=1e-3)


def test_a_gray_lr_image_of_a_color_original_is_no_darker(pairs, tmp_path):
    hr, _ = pairs
    gray = luma(read_image(hr / "0801.png"))
    Image.fromarray(np.dstack([gray] * 3)).save(tmp_path / "color.png")
    Image.fromarray(gray).save(tmp_path / "gray.png")
    Image.fromarray(eight_bit(shrink(mod_crop(gray, 2) / 255, 2))).save(tmp_path / "small.png")
    numbers = [
        measure(str(tmp_path / name), 2, lr_path=str(tmp_path / "small.png")) for name in ("color.png", "gray.png")
    ]
    # Y of RGB spans 219 of 255 levels, so its errors are smaller by 1.32 dB; an offset of 16 would cost 10 dB and more.
    assert numbers[0]["psnr"] - numbers[1]["psnr"] == pytest.approx(20 * np.log10(255 / 219), abs=0.05)


def test_a_size_that_does_not_fit_is_refused_before_anything_is_measured(random_drcn, pairs, tmp_path):
    hr, lr = pairs
    with Image.open(hr / "0801.png") as photo:
        photo.save(hr / "0802.png")
        photo.save(hr / "0803.png")
        photo.save(lr / "0802.png")
    (lr / "0803.png").write_text("no image")
    with pytest.raises(UserError, match=r"0802\.png is 43 x 37 pixels; expected 21 x 18, its original of 43 x 37"):
        evaluate(random_drcn(), hr, lr_dir=lr, save_images=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    # A damaged one is skipped and named, as a damaged original is.
    (hr / "0802.png").unlink()
    (result,) = evaluate("bicubic", hr, 2, lr_dir=lr)["results"]
    assert [image["name"] for image in result["images"]] == ["0801.png"]
    with pytest.raises(UserError, match="`lr_dir` must name as many folders as `data_dir`, 1; has 2"):
        evaluate("bicubic", hr, 2, lr_dir=[lr, lr])


def test_folders_of_several_scales_and_sets(bicubic_drcn, pairs):
    hr, lr = pairs
    with Image.open(hr / "0801.png") as photo:
        photo.resize((14, 12), Image.Resampling.BOX).save(lr / "0801x3.png")
    results = evaluate(bicubic_drcn(scale=(2, 3)), hr, lr_dir=lr)["results"]
    assert [result["scale"] for result in results] == [2, 3]
    assert results[0]["mean"]["psnr"] > results[1]["mean"]["psnr"]
    (alone,) = evaluate("bicubic", hr, 3, lr_dir=lr)["results"]
    assert results[1]["mean"]["bicubic_psnr"] == alone["mean"]["bicubic_psnr"]
    # A tree of LR folders beside a tree of originals.
    for folder in (hr, lr):
        (folder / "deep").mkdir()
        for path in list(folder.glob("*.png")):
            path.rename(folder / "deep" / path.name)
    (deep,) = evaluate("bicubic", hr, 3, lr_dir=lr, recursive=True)["results"]
    assert (deep["dataset"], deep["mean"]) == ("deep", alone["mean"])


def test_published_rows_stand_beside_ones_own_lr_images_only_where_bicubic_agrees(pairs):
    hr, lr = pairs
    (result,) = evaluate("bicubic", hr.rename(hr.parent / "Set5"), 2, lr_dir=lr)["results"]
    assert "paper" not in table(result, "bicubic")
    result["mean"]["bicubic_psnr"] = 33.65
    assert "paper: DRCN" in table(result, "bicubic")
