"""Puts a server under load: mixed sizes, some requests that are no image; counts, latencies and the server's memory."""

import contextlib
import os
import queue
import re
import subprocess
import sys
import threading
import time

import numpy as np
import skimage
from absl import flags
from PIL import Image
from tqdm import tqdm

from drcn_keras import client, commands
from drcn_keras.commands import FLAGS
from drcn_keras.connections import check_server, connect
from drcn_keras.errors import UserError

_REFUSED = re.compile(r": (400|INVALID_ARGUMENT): ")
_BOMB = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + (100_000).to_bytes(4, "big") * 2 + bytes(9)
_SAMPLING_SECONDS = 0.25


def benchmark(connections, good, bad, pid=None):
    """Sends every request once, through as many threads as connections.

    Args:
        connections: list of what `drcn_keras.connections.connect` returns, one per client.
        good: list of (PNG bytes, (height, width) of the answer).
        bad: list of bytes that the server must refuse.
        pid: of the server, to watch its memory, or None.

    Returns:
        dict: "seconds"; "latencies" in seconds of good requests; "wrong", texts of good requests without their image
        and of bad ones without their error; "memory", (share of requests done, resident MiB) samples.
    """
    waiting = queue.Queue()
    for request in _shuffled([*good, *((contents, None) for contents in bad)]):
        waiting.put(request)
    total, latencies, wrong, memory = waiting.qsize(), [], [], []
    done = threading.Event()

    def send_all(connection, bar):
        with contextlib.suppress(queue.Empty):
            while True:
                contents, shape = waiting.get_nowait()
                start = time.perf_counter()
                problem = _problem(connection, contents, shape)
                if shape is not None:
                    latencies.append(time.perf_counter() - start)
                if problem:
                    wrong.append(problem)
                bar.update()

    def watch(bar):
        while not done.wait(_SAMPLING_SECONDS):
            memory.append((bar.n / total, resident_mib(pid)))

    start = time.perf_counter()
    with tqdm(total=total, unit="request") as bar:
        threads = [threading.Thread(target=send_all, args=(connection, bar)) for connection in connections]
        watcher = threading.Thread(target=watch, args=(bar,))
        for thread in [*threads, *([watcher] if pid else [])]:
            thread.start()
        for thread in threads:
            thread.join()
        done.set()
    return {"seconds": time.perf_counter() - start, "latencies": latencies, "wrong": wrong, "memory": memory}


def _shuffled(requests):
    return [requests[index] for index in np.random.default_rng(0).permutation(len(requests))]


def _problem(connection, contents, shape):
    """What is wrong with the server's answer, or None."""
    try:
        answer = connection.upscale(contents)
    except UserError as error:
        return None if shape is None and _REFUSED.search(str(error)) else str(error)
    if shape is None:
        return "bytes that are no image were answered without an error"
    received = client.decode_png(answer).shape[:2]
    return None if received == shape else f"an answer of {received} where {shape} was expected"


def resident_mib(pid):
    """The memory in RAM of a process, MiB. Linux."""
    with open(f"/proc/{pid}/status") as file:
        return int(file.read().split("VmRSS:")[1].split()[0]) / 1024.0


def photographs(sizes):
    """PNG files cut from photographs that scikit-image ships, one of each (height, width)."""
    folder = os.path.join(os.path.dirname(skimage.__file__), "data")
    whole = np.asarray(Image.open(os.path.join(folder, "astronaut.png")))
    return [client.encode_png(whole[:height, :width]) for height, width in sizes]


def damaged(png):
    """Bytes that are no image, each in a way of its own."""
    return [b"", b"no image at all", png[: len(png) // 2], b"\xff\xd8\xff" + png, _BOMB]


@contextlib.contextmanager
def stand_in(base_path):
    """Runs the stand-in server on free ports: (process id, gRPC address, REST address)."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    script = os.path.join(root, "tests", "stand_in_server.py")
    command = [sys.executable, script, f"--model_base_path={base_path}", "--port=0", "--rest_api_port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            addresses = re.search(r"gRPC (\S+), REST http://(\S+)", line)
            if not addresses:
                raise UserError(f"the stand-in server did not start with --model_base_path={base_path}.")
            print(line, end="", flush=True)
            yield process.pid, f"grpc://{addresses[1]}", f"http://{addresses[2]}"
        finally:
            process.terminate()


def report(result, clients, good, bad):
    """The figures, a line each."""
    p50, p95 = np.percentile(result["latencies"], [50, 95])
    total = good + bad
    print(f"{total} requests, {clients} clients: {result['seconds']:.1f} s, {total / result['seconds']:.1f} a second")
    print(f"wrong or lost: {len(result['wrong'])} (of {good} images, {bad} that are none)")
    print(f"latency of images: p50 {1000 * p50:.0f} ms, p95 {1000 * p95:.0f} ms")
    if result["memory"]:
        shares, values = np.array(result["memory"]).T
        first, last = values[(shares >= 0.1) & (shares < 0.4)], values[shares >= 0.7]
        if len(first) and len(last):
            print(
                f"server's memory: {np.median(first):.0f} MiB at 10-40 % of the requests, {np.median(last):.0f} MiB at "
                f"70-100 %, {values.max():.0f} MiB at most"
            )


def _sizes(texts):
    try:
        return [tuple(int(side) for side in re.fullmatch(r"(\d+)x(\d+)", text).groups()) for text in texts]
    except AttributeError:
        raise UserError(f"--sizes must be HEIGHTxWIDTH, comma-separated; received {','.join(texts)!r}.") from None


def define_flags():
    flags.DEFINE_list("servers", None, "http://HOST:PORT and/or grpc://HOST:PORT of a server that runs")
    flags.DEFINE_integer("pid", None, "process id of that server, on this machine, to watch its memory")
    flags.DEFINE_string("model_base_path", None, "instead: start the stand-in server with this folder of versions")
    flags.DEFINE_string("model_name", "drcn", "the model's name on the server")
    flags.DEFINE_integer("requests", 500, "requests in all", lower_bound=1)
    flags.DEFINE_integer("clients", 8, "requests under way at once", lower_bound=1)
    flags.DEFINE_float("bad_share", 0.05, "share of requests that are no image", lower_bound=0.0, upper_bound=0.9)
    flags.DEFINE_list("sizes", "24x24,48x64,64x64,96x80,128x128", "HEIGHTxWIDTH, at most 512x512")
    flags.DEFINE_float("timeout", 120.0, "seconds to wait for one answer", lower_bound=0.001)


def main(argv):
    commands.refuse_arguments(argv)
    if bool(FLAGS.servers) == bool(FLAGS.model_base_path):
        raise UserError("one of --servers (one that runs) and --model_base_path (to start the stand-in) is needed.")
    with contextlib.ExitStack() as stack:
        pid, servers = FLAGS.pid, FLAGS.servers
        if not servers:
            pid, *servers = stack.enter_context(stand_in(FLAGS.model_base_path))
        # Half of the clients on each protocol where both are given.
        connections = [
            connect(servers[index % len(servers)], FLAGS.model_name, timeout=FLAGS.timeout)
            for index in range(FLAGS.clients)
        ]
        for connection in connections:
            stack.callback(connection.close)
        for connection in connections[: len(servers)]:
            check_server(connection, retries=8)
        files = photographs(_sizes(FLAGS.sizes))
        # One by one before the clock starts: this also tells the scale.
        shapes = [client.decode_png(connections[0].upscale(file)).shape[:2] for file in files]
        bad = round(FLAGS.bad_share * FLAGS.requests)
        good = FLAGS.requests - bad
        result = benchmark(
            connections,
            [(files[index % len(files)], shapes[index % len(files)]) for index in range(good)],
            [damaged(files[0])[index % 5] for index in range(bad)],
            pid,
        )
    report(result, FLAGS.clients, good, bad)
    if result["wrong"]:
        raise UserError(f"{len(result['wrong'])} requests went wrong; the first: {result['wrong'][0]}")


if __name__ == "__main__":
    commands.run(main, define_flags)
