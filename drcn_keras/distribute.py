"""Spreading training over devices and machines with tf.distribute, and what workers must agree on.

A strategy of None is plain training on one device, the only one outside TensorFlow. Under several workers each
runs the same loop on its share of every batch; the chief alone writes files.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import zlib
from typing import Any

import keras
import numpy as np

from drcn_keras.errors import ArgumentError, UserError

STRATEGIES = ("auto", "default", "mirrored", "multi_worker")
_TASKS = ("chief", "worker")


def choose(name: str, timeout: float = 300.0) -> Any:
    """The strategy of that name. Must be called before TensorFlow has run an operation.

    Args:
        name: "auto": the machines of TF_CONFIG if it is set, else all GPUs, else one device; "default": one
            device; "mirrored": every GPU of this machine, or every logical CPU where there is no GPU;
            "multi_worker": the machines of TF_CONFIG.
        timeout: seconds to wait for the other workers.

    Returns:
        A tf.distribute.Strategy, or None for plain training on one device.

    Raises:
        UserError: the backend is not TensorFlow, or TF_CONFIG is missing or malformed.
    """
    if keras.backend.backend() != "tensorflow":
        if name in ("mirrored", "multi_worker"):
            raise ArgumentError(
                f"`strategy={name}` needs KERAS_BACKEND=tensorflow; received {keras.backend.backend()}."
            )
        return None
    if name == "default":
        return None
    cluster = _cluster()
    if name == "multi_worker" and not cluster:
        raise ArgumentError("`strategy=multi_worker` needs the environment variable TF_CONFIG (see docs/training.md).")

    import tensorflow as tf

    if cluster and name != "mirrored":
        addresses = ", ".join(address for task in _TASKS for address in cluster.get(task, ()))
        options = tf.distribute.experimental.CommunicationOptions(timeout_seconds=timeout)
        waiting = f"the workers {addresses} did not all start"
        with _lost_workers(None, waiting), _ended_from_outside(timeout, f"{waiting} within {timeout:g} s"):
            return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    gpus = tf.config.list_logical_devices("GPU")
    if name == "mirrored" or len(gpus) > 1:
        return tf.distribute.MirroredStrategy(gpus or tf.config.list_logical_devices("CPU"))
    return None


def _cluster():
    """The addresses in TF_CONFIG by task, or None when it is not set."""
    text = os.environ.get("TF_CONFIG", "").strip()
    if not text:
        return None
    try:
        config = json.loads(text)
        cluster, task = config["cluster"], config["task"]
        known = set(cluster) <= set(_TASKS) and 0 <= int(task["index"]) < len(cluster[task["type"]])
        # A text alone would be taken for a list of its letters.
        known = known and all(isinstance(addresses, list) for addresses in cluster.values())
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise UserError(
            'TF_CONFIG is malformed; expected {"cluster": {"worker": ["HOST:PORT", ...]}, '
            f'"task": {{"type": "worker", "index": 0}}}}, received {text[:200]}.'
        )
    return cluster


def scope(strategy: Any) -> contextlib.AbstractContextManager:
    """The context that variables must be made in."""
    return strategy.scope() if strategy else contextlib.nullcontext()


def replicas(strategy: Any) -> int:
    """How many devices share a batch, over all machines."""
    return strategy.num_replicas_in_sync if strategy else 1


def training_data(stream: Any, start: int, strategy: Any = None) -> Any:
    """What `model.fit` reads: every batch of a `data.PatchStream` from step `start` on, without end.

    Returns:
        Under TensorFlow a tf.data.Dataset, or its distributed twin in which each replica finds its slice of the
        batch; otherwise a generator of NumPy batches.

    Raises:
        UserError: the batch cannot be shared out evenly.
    """
    if keras.backend.backend() != "tensorflow":
        return stream.batches(start)
    if not strategy:
        return _dataset(lambda: stream.batches(start), stream, stream.batch_size)
    share, rest = divmod(stream.batch_size, replicas(strategy))
    if rest:
        raise ArgumentError(
            f"`batch_size` is global and must be a multiple of the {replicas(strategy)} replicas; "
            f"received {stream.batch_size}."
        )

    def local_dataset(context):
        local = context.num_replicas_in_sync // context.num_input_pipelines
        first = context.input_pipeline_id * local

        def slices():
            for batch in stream.batches(start):
                for replica in range(first, first + local):
                    part = slice(replica * share, (replica + 1) * share)
                    yield tuple(array[part] for array in batch)

        return _dataset(slices, stream, share)

    # Not experimental_distribute_dataset: its automatic sharding splits data by rules of its own.
    return strategy.distribute_datasets_from_function(local_dataset)


def _dataset(batches, stream, size):
    import tensorflow as tf

    image = tf.TensorSpec((size, stream.patch_size, stream.patch_size, stream.channels), tf.float32)
    weights = (tf.TensorSpec((size,), tf.float32),) if stream.weighted else ()
    return tf.data.Dataset.from_generator(batches, output_signature=(image, image, *weights)).prefetch(8)


class Workers:
    """The processes that train together, and what they tell each other. One process alone is a special case.

    Clocks and rounding differ between machines. Whatever steers training by them (the time limit, validation)
    is decided by the chief and told to the others, or their weights would part.

    Args:
        strategy: of `choose`.
        timeout: seconds without an answer after which the others are taken for lost.
    """

    def __init__(self, strategy: Any = None, timeout: float = 300.0) -> None:
        self.timeout = timeout
        self.alone = strategy is None or strategy.cluster_resolver is None
        self.is_chief = self.alone or strategy.extended.should_checkpoint
        if self.alone:
            return
        import tensorflow as tf

        local = len(strategy.extended.worker_devices)

        @tf.function(reduce_retracing=True)
        def total(values):
            def once_per_worker():
                replica = tf.distribute.get_replica_context().replica_id_in_sync_group
                return values if local == 1 else tf.where(replica % local == 0, values, tf.zeros_like(values))

            return strategy.reduce("SUM", strategy.run(once_per_worker), axis=None)

        self._total = total

    def any(self, flag: object) -> bool:
        """True on every worker when `flag` is true on one."""
        return bool(flag) if self.alone else bool(self._sum(np.array([bool(flag)], np.float64))[0])

    def from_chief(self, number: float) -> float:
        """The chief's `number`, a float, on every worker."""
        return number if self.alone else float(self._sum(np.array([number if self.is_chief else 0], np.float64))[0])

    def bytes_from_chief(self, data: bytes) -> bytes:
        """The chief's `data`, bytes, on every worker."""
        if self.alone:
            return data
        size = int(self.from_chief(len(data) if self.is_chief else 0))
        if not size:
            return b""  # TensorFlow 2.21 crashes when it sums nothing.
        # As whole numbers, which the sum with zeros leaves exactly as they are.
        words = np.zeros(-(-size // 4), np.int32)
        if self.is_chief:
            words.view(np.uint8)[:size] = np.frombuffer(data, np.uint8)
        return self._sum(words).tobytes()[:size]

    def require_same(self, text: str, what: str) -> None:
        """Raises UserError on every worker unless all of them have the chief's `text`."""
        checksum = zlib.crc32(text.encode())
        if self.any(self.from_chief(checksum) != checksum):
            self.part()
            raise UserError(f"the workers' {what} differ; each of them needs the same.")

    def part(self) -> None:
        """To be called by every worker before it ends: whoever leaves early takes the last answer from the others."""
        if not self.alone:
            # The others may have ended already: they had all that they needed.
            with contextlib.suppress(UserError):
                self._sum(np.zeros(1, np.float64))

    def _sum(self, values):
        with self.watch("a message to the other workers was not answered"):
            return self._total(values).numpy()

    def watch_errors(self) -> contextlib.AbstractContextManager:
        """A context in which an error of the collective operations becomes the message that a worker was lost."""
        return contextlib.nullcontext() if self.alone else _lost_workers(None, "a training step failed")

    def watch(self, what: str) -> contextlib.AbstractContextManager:
        """A context that ends the process, with one clear line, when a worker is lost while it lasts."""
        return contextlib.nullcontext() if self.alone else _lost_workers(self.timeout, what)


class StepWatch(keras.callbacks.Callback):
    """Ends the process when a training step waits too long for the other workers.

    Args:
        workers: `Workers`.
    """

    def __init__(self, workers: Workers) -> None:
        super().__init__()
        self.workers = workers
        self._step = contextlib.ExitStack()

    def on_train_batch_begin(self, batch, logs=None):
        self._step = contextlib.ExitStack()
        self._step.enter_context(self.workers.watch("a training step did not end"))

    def on_train_batch_end(self, batch, logs=None):
        self._step.close()


@contextlib.contextmanager
def _lost_workers(timeout, what):
    """Turns an error of the collective operations, or their silence, into the message that a worker was lost."""
    import tensorflow as tf

    # An operation that waits for a dead peer cannot be interrupted from Python.
    timer = threading.Timer(timeout, _give_up, [f"{what} within {timeout:g} s"]) if timeout else None
    if timer:
        timer.daemon = True
        timer.start()
    errors = (tf.errors.UnavailableError, tf.errors.DeadlineExceededError, tf.errors.AbortedError)
    try:
        yield
    except (*errors, tf.errors.CancelledError) as error:
        raise UserError(_lost(what)) from error
    finally:
        if timer:
            timer.cancel()


@contextlib.contextmanager
def _ended_from_outside(timeout, what):
    """As `_lost_workers`, by another process: TensorFlow holds Python's lock while it waits for workers to start."""
    watch = (
        "import os, select, signal, sys\n"
        "if not select.select([sys.stdin], [], [], float(sys.argv[1]))[0]:\n"
        "    print(sys.argv[2], file=sys.stderr, flush=True)\n"
        "    os.kill(int(sys.argv[3]), signal.SIGKILL)\n"
    )
    message = f"drcn_keras: error: {_lost(what)}"
    command = [sys.executable, "-S", "-c", watch, str(timeout), message, str(os.getpid())]
    # It ends by itself when its standard input closes, also when this process dies.
    watcher = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        yield
    finally:
        watcher.stdin.close()
        watcher.wait()


def _give_up(what):
    print(f"drcn_keras: error: {_lost(what)}", file=sys.stderr, flush=True)
    os._exit(1)


def _lost(what):
    return f"a worker was lost ({what}); start all workers again to go on from the last checkpoint."
