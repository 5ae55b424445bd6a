import keras
import numpy as np
import pytest

from drcn_keras import DRCN, checkpoint
from drcn_keras.errors import UserError


@pytest.fixture
def model():
    return trained(seed=1)


def trained(seed, filters=2):
    """A small model whose weights and optimiser slots all differ from those of another seed."""
    model = DRCN(recursions=2, filters=filters)
    model.compile(optimizer=keras.optimizers.Adam(0.01))
    model.optimizer.build(model.trainable_variables)
    random = np.random.default_rng(seed)
    for variable in (*model.weights, *model.optimizer.variables):
        variable.assign(random.integers(0, 1000, variable.shape).astype(variable.dtype))
    return model


def everything(model):
    return [np.array(variable) for variable in (*model.weights, *model.optimizer.variables)]


def save(folder, model, *steps, **meta):
    for step in steps:
        checkpoint.save(str(folder), model, {"step": step, **meta}, keep=3)


def steps(folder):
    return sorted(int(path.name[5:14]) for path in folder.glob("step-*.npz"))


def test_everything_comes_back_bit_for_bit(tmp_path, model):
    save(tmp_path, model, 2, note="x")
    other = trained(seed=7)
    assert any(np.any(a != b) for a, b in zip(everything(model), everything(other), strict=True))
    arrays, meta = checkpoint.unpack(checkpoint.newest(str(tmp_path)))
    checkpoint.restore(other, arrays)
    assert meta == {"step": 2, "note": "x"}
    for restored, saved in zip(everything(other), everything(model), strict=True):
        np.testing.assert_array_equal(restored, saved)


def test_a_set_number_is_kept(tmp_path, model):
    save(tmp_path, model, 9, 100, 20, 3000)
    assert steps(tmp_path) == [20, 100, 3000]


def test_no_checkpoint_is_empty(tmp_path):
    assert checkpoint.newest(str(tmp_path)) == b""


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_one_cut_short_is_named_and_the_previous_used(tmp_path, model, caplog, share):
    save(tmp_path, model, 1, 2)
    path = tmp_path / "step-000000002.npz"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert checkpoint.unpack(checkpoint.newest(str(tmp_path)))[1]["step"] == 1
    assert f"{path} is cut short or damaged" in caplog.text


def test_one_changed_byte_is_noticed(tmp_path, model):
    save(tmp_path, model, 1, 2)
    path = tmp_path / "step-000000002.npz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert checkpoint.unpack(checkpoint.newest(str(tmp_path)))[1]["step"] == 1


def test_one_of_another_configuration_is_named_and_the_previous_used(tmp_path, model, caplog):
    save(tmp_path, model, 1, kind="ours")
    save(tmp_path, model, 2, kind="theirs")
    data = checkpoint.newest(str(tmp_path), lambda meta: None if meta["kind"] == "ours" else "kind differs")
    assert checkpoint.unpack(data)[1]["step"] == 1
    assert "step-000000002.npz is of another configuration: kind differs" in caplog.text


def test_when_every_one_is_of_another_configuration_the_reason_is_the_error(tmp_path, model):
    save(tmp_path, model, 1, 2)
    with pytest.raises(UserError, match="kind differs"):
        checkpoint.newest(str(tmp_path), lambda meta: "kind differs")


def test_damaged_ones_alone_are_an_error_not_a_new_start(tmp_path):
    (tmp_path / "step-000000001.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"none of the 1 checkpoints in .* is whole; `fresh` starts over"):
        checkpoint.newest(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001.npz"]


def test_another_models_arrays_are_named(tmp_path, model):
    save(tmp_path, model, 1)
    arrays, _ = checkpoint.unpack(checkpoint.newest(str(tmp_path)))
    assert checkpoint.mismatch(model, arrays) is None
    assert "in the checkpoint" in checkpoint.mismatch(trained(seed=1, filters=3), arrays)
    del arrays["model/000"]
    assert "model/000" in checkpoint.mismatch(model, arrays)


def test_one_that_lacks_a_part_is_set_aside_and_the_previous_used(tmp_path, model, caplog):
    save(tmp_path, model, 1, 2)
    path = tmp_path / "step-000000002.npz"
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files if name != "optimizer/000"}
    np.savez(path, **arrays)
    data = checkpoint.newest(str(tmp_path), flaw=lambda arrays, meta: checkpoint.mismatch(model, arrays))
    assert checkpoint.unpack(data)[1]["step"] == 1
    assert "it lacks or adds optimizer/000" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000001.npz", "step-000000002.npz.damaged"]


def test_those_of_later_steps_do_not_drive_the_new_ones_out(tmp_path, model):
    """They are of another configuration; the checkpoint just written was the oldest, and pruned."""
    save(tmp_path, model, 7, 8, 9)
    save(tmp_path, model, 1, 2)
    assert steps(tmp_path) == [1, 2, 7, 8, 9]


def test_nan_is_never_written(tmp_path, model):
    save(tmp_path, model, 1)
    before = (tmp_path / "step-000000001.npz").read_bytes()
    model.get_layer("inference").bias.assign([np.nan, 0.0])
    with pytest.raises(UserError, match="no checkpoint is written at step 2"):
        save(tmp_path, model, 2)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]
