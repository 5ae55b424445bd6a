"""Training processes that are killed, stopped, starved of disk and left alone."""

import json
import os
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="process tests fork a server that has TensorFlow imported")

import training_process

KILLS = 20


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return training_process.write_photographs(tmp_path_factory.mktemp("photographs") / "train")


def checkpoints(folder):
    return sorted(path.name for path in (folder / "checkpoints").glob("step-*.npz"))


def newest_arrays(folder):
    with np.load(folder / "checkpoints" / checkpoints(folder)[-1]) as file:
        return {name: file[name] for name in file.files if name != "meta"}


def assert_same_run(one, other):
    """Both folders end with the same weights, optimiser, best model and records, bit for bit."""
    assert checkpoints(one)[-1] == checkpoints(other)[-1]
    first, second = newest_arrays(one), newest_arrays(other)
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    cards = [json.loads((folder / "best.json").read_text()) for folder in (one, other)]
    assert cards[0]["epoch"] == cards[1]["epoch"]
    assert cards[0]["val_psnr"] == cards[1]["val_psnr"]
    assert best_weights(one) == best_weights(other)


def best_weights(folder):
    from drcn_keras import load

    return [weight.tobytes() for weight in load(str(folder / "best.keras")).get_weights()]


def wait_for(condition, process, seconds=60):
    """Returns once `condition()` is true; false when the process ended before."""
    limit = time.monotonic() + seconds
    while not condition():
        if not process.is_alive():
            return False
        assert time.monotonic() < limit, "waited too long"
        time.sleep(0.0005)
    return True


def kill(process):
    process.kill()
    process.join()


def test_killed_twenty_times_the_run_ends_as_if_it_had_never_been(photographs, tmp_path):
    # Validated now and then, so that the plateau rule does not end the run before it was killed often enough.
    settings = {"train_dir": photographs, "epochs": 120, "keep_checkpoints": 2, "tensorboard": False}
    settings["validate_every"] = 4
    assert training_process.run(tmp_path / "whole.log", model_dir=tmp_path / "whole", **settings)[0] == 0

    folder, log = tmp_path / "killed", tmp_path / "killed.log"
    random = np.random.default_rng(5)
    kills = inside_a_write = 0
    while kills < KILLS:
        before = set(checkpoints(folder))
        process = training_process.start(log, model_dir=folder, **settings)
        # In turn: at the moment when a file is half written, and at any moment after some progress.
        pattern = ".partial-*" if kills % 2 else "step-*"
        reached = wait_for(
            lambda before=before, pattern=pattern: (
                {path.name for path in folder.glob(f"checkpoints/{pattern}")} - before
            ),
            process,
        )
        assert reached, f"the run ended after {kills} kills: {log.read_text()}"
        if not kills % 2:
            time.sleep(random.uniform(0.0, 0.05))
        assert process.is_alive()
        kill(process)
        kills += 1
        inside_a_write += bool(list((folder / "checkpoints").glob(".partial-*")))

    code, output = training_process.run(log, model_dir=folder, **settings)
    assert code == 0, output
    assert inside_a_write >= 3
    assert not list(folder.rglob(".partial-*"))
    assert len(checkpoints(folder)) == 2
    assert_same_run(tmp_path / "whole", folder)


def test_sigterm_writes_a_checkpoint_in_the_middle_of_an_epoch_and_exits_with_0(photographs, tmp_path):
    settings = {"train_dir": photographs, "epochs": 2, "steps_per_epoch": 20, "validate_every": 2}
    assert training_process.run(tmp_path / "whole.log", model_dir=tmp_path / "whole", **settings)[0] == 0

    folder, log = tmp_path / "stopped", tmp_path / "stopped.log"
    process = training_process.start(log, model_dir=folder, **settings)
    assert wait_for(lambda: log.exists() and "Epoch 1/2" in log.read_text(), process)
    os.kill(process.pid, signal.SIGTERM)
    code, output = training_process.end(process, log)
    assert code == 0
    assert "stopped by SIGTERM: checkpoint written" in output
    step = int(checkpoints(folder)[-1][5:14])
    assert 0 < step < 20

    assert training_process.run(log, model_dir=folder, **settings)[0] == 0
    assert_same_run(tmp_path / "whole", folder)


# Keras says it of the model that is read back here, once a training in this process has switched XLA off.
@pytest.mark.filterwarnings("ignore:Model doesn't support `jit_compile=True`")
def test_xla_compiles_the_step_and_resumes_bit_for_bit(photographs, tmp_path):
    settings = {"train_dir": photographs, "epochs": 2, "xla": True, "strategy": "default"}
    code, output = training_process.run(tmp_path / "whole.log", model_dir=tmp_path / "whole", **settings)
    assert code == 0, output
    assert "jit_compile=False" not in output  # What Keras says when it does not.

    folder = tmp_path / "resumed"
    shutil.copytree(tmp_path / "whole", folder)
    (folder / "checkpoints" / checkpoints(folder)[-1]).unlink()
    assert training_process.run(tmp_path / "resumed.log", model_dir=folder, **settings)[0] == 0
    assert_same_run(tmp_path / "whole", folder)


def test_a_file_system_that_takes_no_more_bytes_ends_in_one_line(photographs, tmp_path):
    # The limit on a file's size: any user can set it, and the write fails half way as on a full disk.
    settings = {"train_dir": photographs, "model_dir": tmp_path / "run", "tensorboard": False}
    assert training_process.run(tmp_path / "first.log", epochs=1, **settings)[0] == 0
    before = newest_arrays(tmp_path / "run")

    code, output = training_process.run(tmp_path / "second.log", epochs=2, file_size=6000, **settings)
    assert code == 1
    assert_one_line(output, "could not be written: File too large; what was there is unchanged")
    assert len(checkpoints(tmp_path / "run")) == 1
    np.testing.assert_equal(newest_arrays(tmp_path / "run"), before)
    assert not list((tmp_path / "run").rglob(".partial-*"))


@pytest.mark.parametrize(
    ("remount", "reason"),
    [("size=80k", "No space left on device"), ("ro", "cannot be written to: Read-only file system")],
)
def test_a_full_disk_and_a_folder_turned_read_only(photographs, tmp_path, remount, reason):
    disk = tmp_path / "disk"
    disk.mkdir()
    if mount("-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)).returncode:
        pytest.skip("mounting a small file system needs the right to mount")
    try:
        settings = {"train_dir": photographs, "model_dir": disk / "run", "keep_checkpoints": 9, "tensorboard": False}
        assert training_process.run(tmp_path / "first.log", epochs=1, **settings)[0] == 0
        before = newest_arrays(disk / "run")
        assert mount("-o", f"remount,{remount}", str(disk)).returncode == 0
        code, output = training_process.run(tmp_path / "second.log", epochs=60, **settings)
        assert code == 1
        assert_one_line(output, reason)
        newest = newest_arrays(disk / "run")
        assert newest.keys() == before.keys()
        assert not list((disk / "run").rglob(".partial-*"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def mount(*arguments):
    return subprocess.run(["mount", *arguments], capture_output=True, check=False)


def assert_one_line(output, reason):
    """The process ended with one error line, which holds `reason`, and with no traceback."""
    errors = [line for line in output.splitlines() if line.startswith("train: error: ")]
    assert len(errors) == 1, output
    assert reason in errors[0]
    assert "Traceback" not in output


def test_when_one_of_two_workers_is_lost_the_other_ends_and_both_resume(photographs, tmp_path):
    settings = {"train_dir": photographs, "epochs": 20, "worker_timeout": 20, "tensorboard": False}
    assert training_process.run(tmp_path / "whole.log", model_dir=tmp_path / "whole", **settings)[0] == 0

    folder, logs = tmp_path / "run", [tmp_path / "0.log", tmp_path / "1.log"]
    chief, other = training_process.start_workers(logs, model_dir=folder, **settings)
    assert wait_for(lambda: folder.exists() and len(checkpoints(folder)) > 1, chief)
    kill(other)
    code, output = training_process.end(chief, logs[0], seconds=60)
    assert code == 1
    assert_one_line(output.replace("drcn_keras: error: ", "train: error: "), "a worker was lost")
    assert 0 < int(checkpoints(folder)[-1][5:14]) < 60

    for process, log in zip(training_process.start_workers(logs, model_dir=folder, **settings), logs, strict=True):
        code, output = training_process.end(process, log)
        assert code == 0, output
    whole, resumed = newest_arrays(tmp_path / "whole"), newest_arrays(folder)
    for name in whole:
        np.testing.assert_allclose(resumed[name], whole[name], atol=1e-6, err_msg=name)
