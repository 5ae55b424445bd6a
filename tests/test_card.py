import json

import pytest

from drcn_keras import card
from drcn_keras.errors import UserError


def test_a_card_is_found_beside_a_file_and_by_a_presets_name(tmp_path):
    path = str(tmp_path / "night.keras")
    assert card.read(path) == {}
    card.write(path, {"scale": 3})
    assert card.read(path) == json.loads((tmp_path / "night.json").read_text()) == {"scale": 3}
    assert card.read("mobile-x3")["scale"] == 3


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[1]"])
def test_what_is_no_card_is_named(tmp_path, content):
    (tmp_path / "best.json").write_bytes(content)
    with pytest.raises(UserError, match=r"best\.json is damaged"):
        card.read(str(tmp_path / "best.keras"))


def test_a_card_never_holds_what_json_has_no_number_for(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        card.write(str(tmp_path / "best.keras"), {"val_psnr": float("inf")})
    assert not list(tmp_path.iterdir())


def test_a_presets_card_tells_every_stage_and_no_folder_of_the_machine(tmp_path):
    stages = {
        "first": {"flags": {"init": "", "model_dir": "/home/me", "filters": 4}, "epoch": 9},
        "second": {"flags": {"init": str(tmp_path / "first" / "best.keras"), "train_dir": "x", "filters": 4}},
    }
    for name, made in stages.items():
        (tmp_path / name).mkdir()
        card.write(str(tmp_path / name / "best.keras"), made)
    (tmp_path / "second" / "log.csv").write_text("epoch,val_psnr\n1,\n2,30.5\n")
    result = {"dataset": "Set5", "scale": 2, "images": [{}, {}], "mean": {"psnr": 31.0}}
    assert card.of_preset(str(tmp_path / "second"), "train ...", [result]) == {
        "flags": {"filters": 4},
        "init": {"flags": {"filters": 4}, "epoch": 9},
        "command": "train ...",
        "val_curve": [[2, 30.5]],
        "results": [{"dataset": "Set5", "scale": 2, "images": 2, "psnr": 31.0}],
    }
    turned = result | {"mean": {"psnr": 31.5, "recursion_psnr": [30.0], "ensemble": [1]}}
    assert card.of_preset(str(tmp_path / "second"), "train ...", [result], [turned])["self_ensemble"] == [
        {"dataset": "Set5", "scale": 2, "images": 2, "psnr": 31.5}
    ]
    (tmp_path / "first" / "best.json").unlink()
    with pytest.raises(UserError, match=r"no card at .*first.best\.json"):
        card.of_preset(str(tmp_path / "second"), "train ...", [result])


def test_a_run_knows_what_it_started_from_though_the_name_has_gone_to_another_model(tmp_path):
    """Of two stages of a preset that started from it by name, the second's card told the first one's twice."""
    path = str(tmp_path / "best.keras")
    card.write(path, {"flags": {"init": "mobile-x2", "filters": 4}, "init": {"epoch": 7}})
    assert card.with_origin(path) == {"flags": {"filters": 4}, "init": {"epoch": 7}}


def test_a_model_without_a_card_may_be_trained_on(tmp_path):
    assert card.with_origin(str(tmp_path / "foreign.keras")) == {}
    card.write(str(tmp_path / "second.keras"), {"flags": {"init": str(tmp_path / "foreign.keras")}, "epoch": 3})
    assert card.with_origin(str(tmp_path / "second.keras")) == {"flags": {}, "epoch": 3}


def test_a_run_that_began_with_the_model_in_its_own_folder_ends(tmp_path):
    path = str(tmp_path / "best.keras")
    card.write(path, {"flags": {"init": path}, "epoch": 3})
    assert card.with_origin(path) == {"flags": {}, "epoch": 3}
