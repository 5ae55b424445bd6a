"""Training in processes of their own, for tests that kill them or that need devices set up before TensorFlow starts.

A server imports TensorFlow once and forks, so that a process starts in a blink instead of seconds.
"""

import json
import multiprocessing
import os
import resource
import socket
import sys

import numpy as np
from PIL import Image

from drcn_keras.image import bicubic

TINY = {
    "filters": 2,
    "recursions": 2,
    "patch_size": 12,
    "stride": 6,
    "batch_size": 4,
    "steps_per_epoch": 3,
    "holdout": 1,
    "learning_rate": 0.001,
}
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["drcn_keras.trainer"])


def write_photographs(folder, count=3, side=24):
    """Smooth random colour images, a different one for each number. Returns the folder as text."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        coarse = np.random.default_rng(number).uniform(40, 215, (6, 6, 3))
        image = np.clip(bicubic(coarse, side / 6), 0, 255).astype(np.uint8)
        Image.fromarray(image).save(folder / f"{number}.png")
    return str(folder)


def start(log, environment=None, cpus=1, file_size=None, weights=None, without=None, **settings):
    """Starts `python -m drcn_keras.train` with TINY and `settings` as flags; its output goes to the file `log`.

    Args:
        environment: variables to set in the process.
        cpus: logical devices that TensorFlow shall see.
        file_size: bytes; the process cannot make a file larger.
        weights: a path where the process saves the final weights with numpy.savez.
        without: name of a method of DistributedModel; the process has its parent's instead.

    Returns:
        A running multiprocessing.Process.
    """
    flags = [f"--{name}={value}" for name, value in {**TINY, **settings}.items()]
    process = _SERVER.Process(
        target=_train, args=(flags, str(log), environment or {}, cpus, file_size, weights, without)
    )
    process.start()
    return process


def start_workers(logs, weights=(None, None), each=({}, {}), **settings):
    """Starts a worker on this machine for each of `logs`, the chief first.

    Args:
        logs, weights: as for `start`, one for each worker.
        each: settings of each worker alone.
    """
    held = [socket.create_server(("127.0.0.1", 0)) for _ in logs]
    addresses = [f"127.0.0.1:{server.getsockname()[1]}" for server in held]
    for server in held:
        server.close()
    return [
        start(
            log,
            environment={
                "TF_CONFIG": json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}})
            },
            weights=weights[index],
            **{**settings, **each[index]},
        )
        for index, log in enumerate(logs)
    ]


def run(log, seconds=120, **arguments):
    """`start`, waited for. Returns (exit code, output)."""
    process = start(log, **arguments)
    return end(process, log, seconds)


def end(process, log, seconds=120):
    """Waits for a process of `start`. Returns (exit code, output); fails when it does not end in `seconds`."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        raise AssertionError(f"still training after {seconds} s: {log.read_text()}")
    return process.exitcode, log.read_text()


def saved_weights(path):
    """The list of arrays that a process of `start` saved."""
    with np.load(path) as file:
        return [file[name] for name in file.files]


def _train(flags, log, environment, cpus, file_size, weights, without):
    os.environ.update(environment)
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["train", *flags]
    if cpus > 1:
        import tensorflow as tf

        device = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(device, [tf.config.LogicalDeviceConfiguration()] * cpus)
    from drcn_keras import model, train, trainer

    fit = trainer._fit

    def fit_and_save(drcn, *arguments):
        fit(drcn, *arguments)
        if weights:
            np.savez(weights, *drcn.get_weights())

    trainer._fit = fit_and_save
    if without:
        delattr(next(parent for parent in model.DRCN.__mro__ if without in vars(parent)), without)
    if file_size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    train.run()
