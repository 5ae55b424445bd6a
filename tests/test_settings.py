import dataclasses
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from drcn_keras.errors import UserError
from drcn_keras.settings import Settings, as_json, check, spelled


def test_several_values_are_given_as_one_as_many_or_as_text(tmp_path):
    odd = tmp_path / "a,b"
    odd.mkdir()
    assert Settings(train_dir="T91, BSD200").train_dir == ("T91", "BSD200")
    assert Settings(train_dir=[str(odd), "T91,BSD200"]).train_dir == (str(odd), "T91", "BSD200")
    assert Settings(train_dir="").train_dir == ()
    assert Settings(scale=3).scale == Settings(scale="3").scale == Settings(scale=["3"]).scale == (3,)
    assert Settings(scale="2,3,4").scale == (2, 3, 4)
    assert Settings(zooms="1,0.5").zooms == (1.0, 0.5)


def test_what_json_and_flags_show_of_them():
    settings = Settings(train_dir="a,b", zooms="1,0.5")
    assert as_json(settings)["zooms"] == [1.0, 0.5]
    assert Settings(**as_json(settings)) == settings
    assert spelled(settings.train_dir) == "a,b"
    assert spelled(3) == "3"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"filters": "3"}, "^`filters` must be of type int; received '3'"),
        ({"filters": True}, "^`filters` must be of type int"),
        # Or a training would end with a file that `load` refuses.
        ({"filters": 1025}, "^`filters` must be at most 1024; received 1025"),
        ({"recursions": 257}, "^`recursions` must be at most 256; received 257"),
        ({"augment": 1}, "^`augment` must be of type bool"),
        ({"scale": (2, 5)}, "^`scale` must be one of 2, 3, 4; received 5"),
        ({"scale": (2.5,)}, "^`scale` must be of type int"),
        ({"scale": (3, 3)}, "^`scale` must be ascending, each once; received 3,3"),
        ({"scale": ()}, "^`scale` must be ascending, each once; received none"),
        ({"zooms": (0.0,)}, r"^`zooms` must be numbers in \(0, 1\]; received 0.0"),
        ({"beta": float("nan")}, "^`beta` must be a finite number"),
        ({"seed": 2**32}, "^`seed` must be at most 4294967295"),
        ({"learning_rate": 0}, "^`learning_rate` must be > 0"),
        ({"outputs": 17}, "^`outputs` must be at most 16, the recursions; received 17"),
        ({"outputs": 4, "alpha_end": 0.1}, "^`outputs` needs an `alpha_end` of 0; received 0.1"),
        (
            {"outputs": 4, "epochs": 4, "alpha_until": 0.8},
            "^`outputs` needs an epoch whose alpha is 0, an `alpha_until` of at most 0.75 with 4 `epochs`",
        ),
        ({"outputs": 4, "time_limit": 5.0, "alpha_until": 1.0}, "^`outputs` needs an epoch whose alpha is 0"),
        ({"precision": "float16"}, "^`precision` must be one of auto, float32, bfloat16; received float16"),
        ({"train_dir": ()}, "^`train_dir` is required"),
        ({"init": "mobile-x9"}, r"^`init`: no file at mobile-x9, and no preset of that name \(.*mobile-x2"),
    ],
)
def test_python_callers_are_told_the_argument(photographs, tmp_path, wrong, message):
    settings = Settings(train_dir=str(photographs), model_dir=str(tmp_path / "run"), init="mobile-x2")
    check(settings)
    for kind in (ValueError, UserError):
        with pytest.raises(kind, match=message):
            check(dataclasses.replace(settings, **wrong))


def test_the_clock_and_the_last_epoch_may_bring_alpha_to_0(photographs, tmp_path):
    settings = Settings(train_dir=photographs, model_dir=tmp_path / "run", outputs=4, epochs=4)
    check(dataclasses.replace(settings, alpha_until=0.75))
    check(dataclasses.replace(settings, alpha_until=0.9, time_limit=5))


def test_paths_and_numpys_numbers_are_as_good_as_text_and_pythons():
    settings = Settings(
        train_dir=pathlib.Path("a,b"), init=pathlib.Path("c"), learning_rate=1, scale=np.int64(3), filters=np.int32(4)
    )
    assert (settings.train_dir, settings.init, settings.scale) == (("a,b",), "c", (3,))
    json.dumps(as_json(settings))
    # What Keras wants as a float is one.
    assert [type(value) for value in (settings.learning_rate, settings.scale[0], settings.filters)] == [float, int, int]


def test_text_for_numbers_is_refused_where_it_is_given():
    with pytest.raises(ValueError, match=r"^`zooms` must be numbers, separated by commas; received '1,b'"):
        Settings(zooms="1,b")


def test_every_photograph_has_its_lr_image_or_none_is_meant_to(tmp_path):
    for name in ("HR", "LR"):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / name / f"a{'x2' if name == 'LR' else ''}.png")
    hr, lr = str(tmp_path / "HR"), str(tmp_path / "LR")
    settings = Settings(train_dir=hr, lr_dir=lr, model_dir=str(tmp_path / "run"))
    check(settings)
    check(dataclasses.replace(settings, val_dir=hr, val_lr_dir=lr))
    for wrong, message in [
        ({"lr_dir": (lr, lr)}, "^`lr_dir` must have a folder for each of 1 in `train_dir`; has 2"),
        ({"val_dir": hr}, "^`val_lr_dir` must have a folder for each of 1 in `val_dir`; has 0"),
        ({"lr_dir": (), "val_dir": hr, "val_lr_dir": lr}, "^`val_lr_dir` needs `lr_dir`"),
        ({"zooms": (1.0, 0.5)}, "^`zooms` shrinks photographs that have no LR image; received 1.0,0.5"),
        ({"scale": (3,)}, r"a\.png has no LR image in .*LR \(1 of 1 originals have none\); expected a, ax3"),
    ]:
        with pytest.raises(UserError, match=message):
            check(dataclasses.replace(settings, **wrong))
