"""Starts several training workers on this machine, to try --strategy=multi_worker without a second one.

    python tools/launch_workers.py --workers=2 -- --flagfile=... --train_dir=... --model_dir=...

What follows `--` goes to drcn_keras.train. On real machines, start one worker on each with its own TF_CONFIG.
"""

import json
import os
import signal
import socket
import subprocess
import sys

from absl import flags

from drcn_keras import commands
from drcn_keras.commands import FLAGS
from drcn_keras.errors import UserError


def launch(count, arguments):
    """Runs `count` workers of one cluster until all have ended.

    Args:
        count: processes, >= 1.
        arguments: list of drcn_keras.train's flags.

    Returns:
        list of exit codes, the chief's first. SIGTERM and SIGINT are passed on to the workers.
    """
    addresses = [f"127.0.0.1:{port}" for port in _free_ports(count)]
    command = [sys.executable, "-m", "drcn_keras.train", *arguments, "--strategy=multi_worker"]
    processes = [
        subprocess.Popen(command, env={**os.environ, "TF_CONFIG": tf_config(addresses, index)})
        for index in range(count)
    ]

    def pass_on(number, frame):
        for process in processes:
            process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    return [process.wait() for process in processes]


def tf_config(addresses, index):
    """The environment variable TF_CONFIG of worker `index`: a JSON text."""
    return json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}})


def _free_ports(count):
    # Held together, or the same port could come twice.
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [held.getsockname()[1] for held in sockets]
    for held in sockets:
        held.close()
    return ports


def define_flags():
    flags.DEFINE_integer("workers", 2, "processes to start; worker 0 is the chief")


def main(argv):
    if FLAGS.workers < 1:
        raise UserError(f"--workers must be at least 1; received {FLAGS.workers}.")
    codes = launch(FLAGS.workers, argv[1:])
    if any(codes):
        raise UserError(f"workers ended with exit codes {codes}; expected 0 of each.")


if __name__ == "__main__":
    commands.run(main, define_flags)
