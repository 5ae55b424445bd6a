"""Several replicas train as one does: in one process with two logical devices, and in two processes."""

import json
import os
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest
from kit import ROOT

from drcn_keras import distribute
from drcn_keras.data import Pair, PatchStream
from drcn_keras.errors import UserError

if keras.backend.backend() != "tensorflow":
    pytest.skip("tf.distribute needs the TensorFlow backend", allow_module_level=True)

import training_process

STEPS = 50
# Plain decay-free SGD would hide a wrong weight decay or clipping; both act here.
SETTINGS = {
    "epochs": 5,
    "steps_per_epoch": STEPS // 5,
    "optimizer": "sgd",
    "learning_rate": 0.001,
    "clip_norm": 0.5,
    "average": 0.9,
    "beta": 0.01,
    "validate_every": 5,
    "warmup": 2,
    "tensorboard": False,
}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return training_process.write_photographs(tmp_path_factory.mktemp("photographs") / "train")


@pytest.fixture(scope="module")
def one_replica(photographs, tmp_path_factory):
    """The weights that one process with one device ends with, and its log's rows."""
    folder = tmp_path_factory.mktemp("one")
    weights = folder / "weights.npz"
    arguments = {"train_dir": photographs, "model_dir": folder / "run", "weights": weights}
    code, output = training_process.run(folder / "log", **arguments, **SETTINGS)
    assert code == 0, output
    return training_process.saved_weights(weights), (folder / "run" / "log.csv").read_text()


def assert_equal_weights(one, other, tolerance):
    assert len(one) == len(other)
    for first, second in zip(one, other, strict=True):
        np.testing.assert_allclose(first, second, rtol=0, atol=tolerance)


def assert_equal_logs(one, other):
    rows = [[line.split(",") for line in text.splitlines()] for text in (one, other)]
    assert rows[0][0] == rows[1][0]
    numbers = [[[float(cell or 0) for cell in row] for row in table[1:]] for table in rows]
    np.testing.assert_allclose(*numbers, rtol=1e-4)


def test_two_logical_devices_end_with_the_weights_of_one(photographs, one_replica, tmp_path):
    weights, folder = tmp_path / "weights.npz", tmp_path / "run"
    arguments = {"train_dir": photographs, "model_dir": folder, "weights": weights, "strategy": "mirrored"}
    code, output = training_process.run(tmp_path / "log", cpus=2, **arguments, **SETTINGS)
    assert code == 0, output
    assert_equal_weights(training_process.saved_weights(weights), one_replica[0], 1e-5)
    assert_equal_logs((folder / "log.csv").read_text(), one_replica[1])


def test_two_workers_end_with_the_weights_of_one_and_the_chief_alone_writes(photographs, one_replica, tmp_path):
    logs = [tmp_path / "0.log", tmp_path / "1.log"]
    weights = [tmp_path / "0.npz", tmp_path / "1.npz"]
    processes = training_process.start_workers(
        logs, weights, train_dir=photographs, model_dir=tmp_path / "run", **SETTINGS
    )
    for process, log in zip(processes, logs, strict=True):
        code, output = training_process.end(process, log)
        assert code == 0, output
    chief, other = (training_process.saved_weights(path) for path in weights)
    assert_equal_weights(chief, other, 0.0)
    assert_equal_weights(chief, one_replica[0], 1e-5)
    assert_equal_logs((tmp_path / "run" / "log.csv").read_text(), one_replica[1])
    assert "best.keras" in logs[0].read_text()
    assert "Epoch" not in logs[1].read_text()


def test_workers_with_different_flags_all_end_with_a_message(photographs, tmp_path):
    logs = [tmp_path / "0.log", tmp_path / "1.log"]
    settings = {**SETTINGS, "train_dir": photographs, "worker_timeout": 60}
    processes = training_process.start_workers(
        logs, each=[{"model_dir": tmp_path / "a"}, {"model_dir": tmp_path / "b", "seed": 1}], **settings
    )
    for process, log in zip(processes, logs, strict=True):
        code, output = training_process.end(process, log)
        assert code == 1
        assert "train: error: the workers' flags or images differ" in output


def test_a_worker_leaves_only_once_the_others_have_the_last_answer(monkeypatch):
    """Under load the first to know of a difference was gone before the other knew, which then told of a lost worker."""
    workers = distribute.Workers()
    workers.alone = False
    asked = []

    def gone_after_two(values):
        asked.append(values)
        if len(asked) == 3:
            raise UserError("a worker was lost")
        return np.array([len(asked)], np.float64)

    monkeypatch.setattr(workers, "_sum", gone_after_two)
    with pytest.raises(UserError, match="the workers' flags differ"):
        workers.require_same("seed 1", "flags")
    assert len(asked) == 3


def test_a_worker_that_waits_for_one_that_never_starts_ends_with_a_message(photographs, tmp_path):
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    addresses = [f"127.0.0.1:{server.getsockname()[1]}" for server in held]
    for server in held:
        server.close()
    cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": 1}}
    code, output = training_process.run(
        tmp_path / "log",
        environment={"TF_CONFIG": json.dumps(cluster)},
        train_dir=photographs,
        model_dir=tmp_path / "run",
        worker_timeout=3,
    )
    assert code != 0
    assert f"a worker was lost (the workers {', '.join(addresses)} did not all start within 3 s)" in output


def test_a_batch_that_cannot_be_shared_out_is_refused(photographs, tmp_path):
    arguments = {"train_dir": photographs, "model_dir": tmp_path / "run", "strategy": "mirrored", "batch_size": 3}
    code, output = training_process.run(tmp_path / "log", cpus=2, **arguments)
    assert code == 1
    assert "--batch_size is global and must be a multiple of the 2 replicas; received 3." in output


def test_keras_still_needs_the_two_hooks(photographs, tmp_path):
    """When this fails, Keras has mended its issue 20585: the hooks in distributed_model.py can go."""
    logs = [tmp_path / "0.log", tmp_path / "1.log"]
    for hook in ("_maybe_symbolic_build", "_make_function"):
        assert any(hook in vars(parent) for parent in keras.Model.__mro__)
        processes = training_process.start_workers(
            logs, without=hook, train_dir=photographs, model_dir=tmp_path / "run", epochs=1, worker_timeout=60
        )
        outputs = [training_process.end(process, log) for process, log in zip(processes, logs, strict=True)]
        assert all(code != 0 for code, _ in outputs), hook
        assert any("axis" in output or "PerReplica" in output for _, output in outputs), outputs


def test_slices_of_a_step_are_its_batch(photographs):
    import tensorflow as tf

    pair = Pair("ramp", np.ones((20, 20, 1), np.uint8), np.arange(100, dtype="float32").reshape(10, 10, 1), 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    for options in ({}, {"balance_scales": True}, {"importance": 0.75}):
        stream = PatchStream([pair], patch_size=4, stride=3, batch_size=6, **options)
        batches = iter(distribute.training_data(stream, 3, strategy))
        for step in (3, 4):
            for ours, theirs in zip(next(batches), stream.batch(step), strict=True):
                np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "config",
    [
        '{"cluster": {"worker": "a:1"}, "task": {"type": "worker", "index": 0}}',
        "{",
        "[]",
        '{"cluster": {"worker": ["a:1"]}}',
        '{"cluster": {"ps": ["a:1"]}, "task": {"type": "ps"}}',
    ],
)
def test_a_malformed_tf_config_is_named(monkeypatch, config):
    monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(UserError, match="TF_CONFIG is malformed"):
        distribute.choose("auto")


def test_multi_worker_without_tf_config_is_refused(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(UserError, match="TF_CONFIG"):
        distribute.choose("multi_worker")


def test_auto_without_a_cluster_or_gpus_is_plain(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert distribute.choose("auto") is None
    assert distribute.choose("default") is None


def test_one_process_agrees_with_itself():
    workers = distribute.Workers()
    assert workers.is_chief
    assert workers.from_chief(0.25) == 0.25
    assert workers.any("SIGTERM") is True
    assert workers.any(None) is False
    assert workers.bytes_from_chief(b"abc") == b"abc"


def test_the_launcher_gives_each_worker_its_task_and_reports_their_exit_codes():
    command = [sys.executable, "tools/launch_workers.py", "--workers=2", "--", "--no_such_flag"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert result.returncode == 1
    assert "workers ended with exit codes [2, 2]" in result.stderr
    code = "import json; from tools import launch_workers as l; print(l.tf_config(['a:1', 'b:2'], 1))"
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert json.loads(text) == {"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 1}}


def test_plain_fit_and_evaluate_of_replicas_are_those_of_one_device():
    """Metrics, sample weights, clipping, validation data, steps_per_execution; on two devices and in two processes."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    addresses = [f"127.0.0.1:{server.getsockname()[1]}" for server in held]
    for server in held:
        server.close()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environments = [environment]
    for index in range(2):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        environments.append({**environment, "TF_CONFIG": json.dumps(task)})
    command = [sys.executable, str(ROOT / "tests" / "replicas_process.py"), "clipnorm"]
    processes = [
        subprocess.Popen(command, env=each, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for each in environments
    ]
    results = {}
    for process in processes:
        output, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors[-2000:]
        results |= json.loads(output.strip().splitlines()[-1])
    one = results.pop("one")
    assert set(results) == {"mirrored", "workers"}
    for numbers in results.values():
        assert numbers.keys() == one.keys()
        for name, expected in one.items():
            np.testing.assert_allclose(numbers[name], expected, rtol=1e-4, err_msg=name)
