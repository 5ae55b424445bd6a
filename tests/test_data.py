import os

import numpy as np
import pytest
from PIL import Image

from drcn_keras import data
from drcn_keras.data import Pair, PatchStream
from drcn_keras.errors import UserError
from drcn_keras.image import enlarge, rgb_to_ycbcr, shrink


def numbered(height, width):
    """A pair whose every pixel is told apart, where the grid has fewer than 256 of them."""
    pixels = (np.arange(height * width) % 256).astype(np.uint8).reshape(height, width, 1)
    return Pair("numbered", pixels, np.zeros((height // 2 + 1, width // 2 + 1, 1), "float32"), 2)


def pixels(patches):
    return np.round(255 * patches).astype(int)


def corners(stream, steps):
    return [
        tuple(pixels(patch)[[0, 0, -1, -1], [0, -1, 0, -1], 0])
        for step in range(steps)
        for patch in stream.batch(step)[1]
    ]


def test_the_grid_has_every_patch_that_fits_and_no_other():
    stream = PatchStream([numbered(9, 7)], patch_size=4, stride=2, batch_size=6, augment=False)
    assert len(stream) == 3 * 2
    first_pixels = sorted(pixels(stream.batch(0)[1])[:, 0, 0, 0])
    assert first_pixels == [0, 2, 14, 16, 28, 30]


def test_patches_of_41_with_stride_21_as_the_paper():
    stream = PatchStream([numbered(41, 41 + 21 * 3 - 1)])
    assert len(stream) == 3


def test_ilr_and_hr_are_cut_and_turned_together():
    """Of a ramp of even steps bicubic interpolation makes the ramp again, away from the border."""
    ramp = np.add.outer(4 * np.arange(24), 1.0 * np.arange(24))[..., None]
    pair = Pair("ramp", ramp.astype(np.uint8), shrink(ramp / 255.0, 2).astype(np.float32), 2)
    stream = PatchStream([pair], patch_size=5, stride=1, batch_size=400, seed=3)
    ilr, hr = stream.batch(0)
    assert ilr.shape == hr.shape == (400, 5, 5, 1)
    assert ilr.dtype == hr.dtype == np.float32
    inside = [patch for patch in range(400) if pixels(hr[patch]).min() > 30 and pixels(hr[patch]).max() < 85]
    assert len(inside) > 100
    np.testing.assert_allclose(ilr[inside], hr[inside], atol=1.5e-3)


def test_a_patch_is_that_of_the_whole_enlarged_image(photographs):
    pair = data.load_pairs([str(photographs / "b.png")], scale=3)[0]
    stream = PatchStream([pair], patch_size=7, stride=4, batch_size=25, augment=False)
    whole = {tuple(patch.ravel()): patch for patch in _patches(pair.hr, pair.ilr, 7, 4)}
    assert len(whole) == len(stream) == 25
    for ilr, hr in zip(*stream.batch(0), strict=True):
        np.testing.assert_array_equal(np.stack([hr, ilr]), whole[tuple(np.stack([hr, ilr]).ravel())])


def _patches(hr, ilr, size, stride):
    starts = range(0, hr.shape[0] - size + 1, stride)
    return [np.stack([image[r : r + size, c : c + size] for image in (hr, ilr)]) for r in starts for c in starts]


def test_an_image_takes_a_byte_for_a_sample_and_its_quarter_in_float(photographs):
    pair = data.load_pairs([str(photographs / "b.png")], scale=2)[0]
    assert pair.original.nbytes == 24 * 24
    assert pair.lr.nbytes == 12 * 12 * 4
    several = data.load_pairs([str(photographs / "b.png")], scale=(2, 3, 4))
    assert all(np.shares_memory(pair.original, several[0].original) for pair in several)


def test_the_places_of_many_patches_take_no_memory_of_their_own():
    pixels = np.zeros((500, 400, 1), np.uint8)
    stream = PatchStream([Pair(str(number), pixels, pixels, 2) for number in range(50)], 4, 1)
    assert len(stream) == 50 * 497 * 397
    held = [value for value in vars(stream).values() if hasattr(value, "__len__")]
    assert sum(map(len, held)) <= 3 * 50


def test_augmentation_uses_all_eight_symmetries_and_nothing_else():
    stream = PatchStream([numbered(3, 3)], patch_size=3, stride=1, batch_size=200)
    # The four corners of 0..8, read in the eight orders that a square has.
    expected = {
        (0, 2, 6, 8),
        (2, 8, 0, 6),
        (8, 6, 2, 0),
        (6, 0, 8, 2),
        (2, 0, 8, 6),
        (8, 2, 6, 0),
        (6, 8, 0, 2),
        (0, 6, 2, 8),
    }
    assert set(corners(stream, 1)) == expected


def test_a_pass_takes_every_patch_once_before_any_comes_again():
    stream = PatchStream([numbered(8, 8)], patch_size=2, stride=2, batch_size=3, augment=False)
    seen = [int(patch[0, 0, 0]) for step in range(16) for patch in pixels(stream.batch(step)[1])]
    for start in (0, 16, 32):
        assert sorted(seen[start : start + 16]) == sorted({2 * r * 8 + 2 * c for r in range(4) for c in range(4)})
    assert seen[:16] != seen[16:32]


def test_a_batch_depends_on_seed_and_step_alone():
    pairs = [numbered(20, 20)]
    straight = PatchStream(pairs, patch_size=4, stride=3, batch_size=5, seed=7)
    batches = [straight.batch(step)[1] for step in range(40)]
    resumed = PatchStream(pairs, patch_size=4, stride=3, batch_size=5, seed=7)
    np.testing.assert_array_equal(next(resumed.batches(start=33))[1], batches[33])
    np.testing.assert_array_equal(straight.batch(2)[1], batches[2])
    other = PatchStream(pairs, patch_size=4, stride=3, batch_size=5, seed=8)
    assert not np.array_equal(other.batch(2)[1], batches[2])


@pytest.fixture
def photographs(tmp_path):
    random = np.random.default_rng(0)
    for name, size in {"a.png": (20, 31), "small.png": (8, 40), "b.png": (24, 24)}.items():
        Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)).save(tmp_path / name)
    return tmp_path


def test_a_pair_is_the_whole_image_degraded(photographs):
    pair = data.load_pairs([str(photographs / "a.png")], scale=3)[0]
    assert pair.path == str(photographs / "a.png")
    assert pair.hr.shape == (18, 30, 1)
    whole = enlarge(shrink(pair.hr[..., 0].astype("float64"), 3), 3)
    np.testing.assert_allclose(pair.ilr[..., 0], whole, atol=1e-6)
    # A patch degraded alone differs at its border.
    alone = enlarge(shrink(pair.hr[6:15, 6:15, 0].astype("float64"), 3), 3)
    assert np.abs(alone - pair.ilr[6:15, 6:15, 0]).max() > 0.01


def test_images_smaller_than_a_patch_are_skipped_and_counted(photographs, caplog):
    pairs = data.load_pairs(data.list_folders([str(photographs)]), scale=2, min_side=12)
    assert [os.path.basename(pair.path) for pair in pairs] == ["a.png", "b.png"]
    assert "small.png" in caplog.text
    assert "1 images skipped, 2 used" in caplog.text


def test_a_damaged_file_is_named_and_skipped_unless_it_is_alone(photographs, caplog):
    damaged = photographs / "damaged.png"
    damaged.write_bytes((photographs / "a.png").read_bytes()[:200])
    pairs = data.load_pairs(data.list_folders([str(photographs)]), scale=2)
    assert len(pairs) == 3
    assert "damaged.png" in caplog.text
    assert "1 images skipped, 3 used" in caplog.text
    with pytest.raises(UserError, match=r"damaged\.png"):
        data.load_pairs([str(damaged)], scale=2)


def test_no_image_large_enough_is_an_error(photographs):
    with pytest.raises(UserError, match=r"none of the 3 images can be used; expected 100 pixels or more"):
        data.load_pairs(data.list_folders([str(photographs)]), scale=2, min_side=100)


def test_zooms_add_smaller_copies(photographs):
    pairs = data.load_pairs([str(photographs / "b.png")], scale=2, zooms=(1.0, 0.5))
    assert [pair.hr.shape[0] for pair in pairs] == [24, 12]


def test_gray_images_serve_an_rgb_network(tmp_path):
    Image.fromarray(np.full((10, 10), 51, np.uint8)).save(tmp_path / "gray.png")
    pair = data.load_pairs([str(tmp_path / "gray.png")], scale=2, channels=3)[0]
    np.testing.assert_allclose(pair.hr, np.full((10, 10, 3), 0.2), atol=1e-6)


def test_one_path_does_for_several(photographs):
    assert data.list_folders(str(photographs)) == data.list_folders([photographs])
    path = data.list_folders(photographs)[0]
    assert [pair.path for pair in data.load_pairs(path, 2)] == [path]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        # Slices beyond the image would be shorter patches without a word.
        ({"patch_size": 11}, "^`patch_size` must be at most 10, the smallest side; received 11"),
        ({"patch_size": 0}, "^`patch_size` must be at least 1; received 0"),
        ({"stride": 0}, "^`stride` must be at least 1"),
        ({"batch_size": 0}, "^`batch_size` must be at least 1"),
    ],
)
def test_numbers_that_make_no_patches_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        PatchStream([numbered(20, 20), numbered(12, 10)], **{"patch_size": 10, **wrong})


def test_holdout_takes_evenly_spread_images_and_leaves_the_rest():
    train, held = data.split_holdout(list("abcdefghij"), 2)
    assert held == ["a", "f"]
    assert train == list("bcdeghij")
    for count in (0, 10, 11):
        with pytest.raises(UserError, match=f"^`holdout`: cannot hold out {count} of 10"):
            data.split_holdout(list("abcdefghij"), count)


def test_every_photograph_is_degraded_for_every_scale(photographs):
    path = str(photographs / "a.png")
    pairs = data.load_pairs([path], scale=(2, 3, 4))
    assert [pair.scale for pair in pairs] == [2, 3, 4]
    for pair in pairs:
        alone = data.load_pairs([path], scale=pair.scale)[0]
        assert np.array_equal(pair.ilr, alone.ilr)
        assert np.array_equal(pair.hr, alone.hr)
        assert all(side % pair.scale == 0 for side in pair.hr.shape[:2])


def test_the_patches_that_bicubic_restores_best_are_left_out(photographs):
    pairs = data.load_pairs(data.list_folders([str(photographs)]), scale=2, min_side=6)
    whole = PatchStream(pairs, 6, 5, batch_size=1, augment=False)
    thinned = PatchStream(pairs, 6, 5, batch_size=1, augment=False, skip_flat=0.4)
    errors = {hr.tobytes(): np.square(ilr - hr).sum() for ilr, hr in (whole.batch(step) for step in range(len(whole)))}
    assert len(errors) == len(whole)
    expected = sorted(errors, key=errors.get)[int(0.4 * len(whole)) :]
    kept = {thinned.batch(step)[1].tobytes() for step in range(len(thinned))}
    assert len(thinned) == len(kept) == len(whole) - int(0.4 * len(whole))
    assert kept == set(expected)


def test_of_each_scale_the_same_share_is_left_out():
    """Bicubic's errors grow with the scale: counted together, they would leave out the patches of x2 alone."""
    hr = np.zeros((12, 24, 1), np.uint8)
    pairs = [
        Pair("a", hr, np.full((12 // scale, 24 // scale, 1), 0.01 * scale, np.float32), scale) for scale in (2, 3, 4)
    ]
    for pair in pairs:
        pair.lr[:, : pair.lr.shape[1] // 2] /= 4
    stream = PatchStream(pairs, patch_size=12, stride=12, batch_size=1, augment=False, skip_flat=0.5)
    assert len(stream) == 3
    kept = sorted(float(stream.batch(step)[0][0, 6, 9, 0]) for step in range(3))
    np.testing.assert_allclose(kept, [0.02, 0.03, 0.04], rtol=1e-3)


@pytest.fixture
def pairs_of_files(tmp_path):
    """Function that writes an HR and an LR image under one name; returns ([HR path], the mapping of `list_lr`)."""

    def write(hr, lr, scale=2):
        for folder, pixels in (("HR", hr), ("LR", lr)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / folder / "a.png")
        folders = [str(tmp_path / "HR")], [str(tmp_path / "LR")]
        return data.list_folders(folders[0]), data.list_lr(*folders, (scale,))

    return write


@pytest.mark.parametrize("channels", [1, 3])
def test_lr_images_are_taken_as_they_are(pairs_of_files, channels):
    random = np.random.default_rng(0)
    hr, lr = random.integers(0, 256, (13, 17, 3), np.uint8), random.integers(0, 256, (6, 8, 3), np.uint8)
    paths, lr_paths = pairs_of_files(hr, lr)
    (pair,) = data.load_pairs(paths, 2, channels, lr_paths=lr_paths)
    expected = rgb_to_ycbcr(lr / 255)[..., :1] if channels == 1 else lr / 255
    assert pair.lr == pytest.approx(expected, abs=1e-6)
    assert pair.original.shape == (12, 16, channels)
    assert pair.ilr == pytest.approx(enlarge(expected, 2), abs=1e-5)


def test_a_gray_lr_image_of_a_color_photograph_has_its_levels(pairs_of_files):
    gray = np.full((6, 8), 100, np.uint8)
    paths, lr_paths = pairs_of_files(np.full((12, 16, 3), 100, np.uint8), gray)
    (pair,) = data.load_pairs(paths, 2, lr_paths=lr_paths)
    # 16 + 219 * 100 / 255 = 101.9 for both.
    assert pair.lr * 255 == pytest.approx(101.88, abs=0.01)
    assert pair.original.max() == pair.original.min() == 102


def test_an_lr_image_of_another_size_is_refused_by_name(pairs_of_files):
    paths, lr_paths = pairs_of_files(np.zeros((12, 16), np.uint8), np.zeros((6, 7), np.uint8))
    with pytest.raises(UserError, match=r"LR.a\.png is 7 x 6 pixels; expected 8 x 6"):
        data.load_pairs(paths, 2, lr_paths=lr_paths)
