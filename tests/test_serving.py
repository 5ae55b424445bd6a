"""The client against a server on loopback: the stand-in always, tensorflow_model_server where there is one."""

import base64
import collections
import concurrent.futures
import contextlib
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="the servers need TensorFlow")
pytest.importorskip("tensorflow_serving", reason="gRPC needs `pip install tensorflow-serving-api`")

import benchmark_serving  # noqa: E402
import requests  # noqa: E402
import stand_in_server  # noqa: E402
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2  # noqa: E402
from kit import ENVIRONMENT, PHOTOGRAPHS, ROOT  # noqa: E402
from PIL import Image  # noqa: E402
from serving_kit import MAX_PIXELS, exported  # noqa: E402
from tensorflow_serving.config import model_server_config_pb2  # noqa: E402

from drcn_keras import client  # noqa: E402
from drcn_keras.connections import Gone, check_server, connect, retried  # noqa: E402
from drcn_keras.errors import UserError  # noqa: E402

STAND_IN = [sys.executable, str(ROOT / "tests" / "stand_in_server.py")]
Server = collections.namedtuple("Server", "rest grpc rest_port grpc_port process")


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def running(command, *arguments):
    """The server that `command` starts, ready for requests."""
    grpc_port, rest_port = free_ports(2)
    given = [f"--port={grpc_port}", f"--rest_api_port={rest_port}", "--model_name=drcn"]
    given += [f"--model_base_path={exported()[1].parent}", *arguments]
    with subprocess.Popen([*command, *given], env=ENVIRONMENT, stdout=subprocess.DEVNULL) as process:
        server = Server(f"http://127.0.0.1:{rest_port}", f"grpc://127.0.0.1:{grpc_port}", rest_port, grpc_port, process)
        try:
            with contextlib.closing(connect(server.rest, "drcn")) as connection:
                check_server(connection, retries=14)
            yield server
        finally:
            process.terminate()


@pytest.fixture(scope="module", params=["stand-in", "tensorflow_model_server"])
def server(request):
    if request.param == "stand-in":
        command = STAND_IN
    else:
        binary = os.environ.get("DRCN_MODEL_SERVER") or shutil.which("tensorflow_model_server")
        if not binary:
            pytest.skip("no tensorflow_model_server on the PATH or named by DRCN_MODEL_SERVER")
        command = [binary]
    with running(command) as server:
        yield server


@pytest.fixture(params=["rest", "grpc"])
def connection(server, request):
    with contextlib.closing(connect(getattr(server, request.param), "drcn", timeout=60)) as connection:
        yield connection


def photograph(height, width):
    return np.asarray(Image.open(PHOTOGRAPHS / "astronaut.png"))[40 : 40 + height, 180 : 180 + width]


@functools.cache
def loaded():
    return tf.saved_model.load(str(exported()[1]))


def from_graph(pixels):
    """What the exported graph makes of a whole image, without any server."""
    signature = loaded().signatures["upscale_image"]
    contents = signature(image_bytes=tf.constant([client.encode_png(pixels)]))["sr_png_bytes"]
    return client.decode_png(contents.numpy()[0])


def test_status_and_signatures(connection):
    assert connection.status() == {1: "AVAILABLE"}
    assert [name for name in connection.signatures() if not name.startswith("__")] == [
        "serving_default",
        "upscale",
        "upscale_image",
        "upscale_uint8",
    ]


def test_a_model_or_version_that_is_not_there(server):
    for name, version in (("other", None), ("drcn", 9)):
        for address in (server.rest, server.grpc):
            connection = connect(address, name, version)
            with contextlib.closing(connection), pytest.raises(UserError, match=r"404|NOT_FOUND"):
                check_server(connection, retries=0)


@pytest.mark.parametrize("kind", ["gray", "gray and alpha", "RGB", "RGBA", "16 bit gray", "16 bit RGBA"])
def test_tiles_put_together_are_the_whole_image(connection, kind):
    rgb = photograph(37, 43)
    alpha = np.uint8(255 - rgb[..., :1] // 2)
    images = {
        "gray": rgb[..., 1],
        "gray and alpha": np.concatenate([rgb[..., :1], alpha], axis=2),
        "RGB": rgb,
        "RGBA": np.concatenate([rgb, alpha], axis=2),
        "16 bit gray": rgb[..., 1] * np.uint16(257) - np.uint16(3),
        "16 bit RGBA": np.concatenate([rgb, alpha], axis=2).astype(np.uint16) * 255,
    }
    whole = from_graph(images[kind])
    ticks = []
    # The model's halo is 6: 6 / 2 + 2 = 5 pixels of overlap are enough and 4 would not be.
    tiled = client.upscale(images[kind], connection.upscale, 16, 5, on_tile=lambda: ticks.append(1))
    assert (tiled.dtype, tiled.shape) == (whole.dtype, whole.shape)
    assert len(ticks) == 9
    # Sums in float32 may differ in their last bit where the tile's size does, so a value near a half may be
    # rounded to the other side; at 16 bit such values are 257 times as common.
    difference = np.abs(tiled.astype(int) - whole)
    assert difference.max() <= 1
    assert np.mean(difference > 0) < (0.001 if whole.dtype == np.uint8 else 0.02)


def test_many_at_once_each_get_their_own_answer(server):
    """Eight threads, both protocols, refusals in between."""
    sizes = [(9 + index, 30 - index) for index in range(20)]
    connections = [connect(address, "drcn") for address in (server.rest, server.grpc)]

    def ask(index):
        if index % 5 == 4:
            with pytest.raises(UserError, match="not an image"):
                connections[index % 2].upscale(b"nothing")
            return None
        contents = client.encode_png(photograph(*sizes[index]))
        return client.decode_png(connections[index % 2].upscale(contents)).shape

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(20)))
    for connection in connections:
        connection.close()
    for index, (answer, (height, width)) in enumerate(zip(answers, sizes, strict=True)):
        assert answer == (None if index % 5 == 4 else (2 * height, 2 * width, 3))


def test_refusals_are_one_sentence_and_not_tried_again(connection, monkeypatch):
    monkeypatch.setattr("drcn_keras.connections.time.sleep", lambda _: pytest.fail("a refusal was tried again"))
    large = client.encode_png(np.zeros((65, 64), np.uint8))
    png = client.encode_png(photograph(20, 20))
    for contents, sentence in (
        (b"", "image 1 of 1 is not an image: expected a PNG or JPEG file; received 0 bytes$"),
        (b"GIF89a and so on", "image 1 of 1 is not an image: expected a PNG or JPEG file; received 16 bytes$"),
        (png[:300], r"Invalid PNG[\w ,]*$"),
        (b"\xff\xd8\xff\xe0 and so on", r"JPEG[\w ,]*$"),
        (large, f"too many pixels: at most {MAX_PIXELS} in one request; received 4160$"),
    ):
        with pytest.raises(UserError, match=f"(400|INVALID_ARGUMENT): .*{sentence}"):
            retried(lambda contents=contents: connection.upscale(contents), retries=3)
    assert client.decode_png(connection.upscale(png)).shape == (40, 40, 3)


def test_a_message_that_is_too_long(server):
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)
    for address in (server.rest, server.grpc):
        connection = connect(address, "drcn", max_bytes=5_000)
        with contextlib.closing(connection), pytest.raises(UserError, match=r"too long.*`max_message_mb`"):
            connection.upscale(client.encode_png(noise))


def test_bytes_that_are_no_protocol_do_not_disturb_the_server(server, connection):
    for port in (server.rest_port, server.grpc_port):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
            raw.sendall(bytes(range(256)) * 40 + b"\r\n\r\n")
    assert client.decode_png(connection.upscale(client.encode_png(photograph(5, 6)))).shape[:2] == (
        10,
        12,
    )


def post(server, body):
    data = body if isinstance(body, bytes) else json.dumps(body)
    with requests.Session() as session:
        session.trust_env = False
        response = session.post(f"{server.rest}/v1/models/drcn:predict", data=data, timeout=60)
        return response.status_code, response.json()


def test_rest_rows_and_columns(server):
    pngs = [client.encode_png(photograph(*size)) for size in ((3, 5), (6, 4))]
    encoded = [{"b64": base64.b64encode(png).decode()} for png in pngs]
    status, rows = post(server, {"signature_name": "upscale_image", "instances": encoded})
    assert (status, list(rows)) == (200, ["predictions"])
    status, columns = post(server, {"signature_name": "upscale_image", "inputs": {"image_bytes": encoded}})
    assert (status, list(columns)) == (200, ["outputs"])
    assert rows["predictions"] == columns["outputs"]
    shapes = [client.decode_png(base64.b64decode(row["b64"])).shape for row in rows["predictions"]]
    assert shapes == [(6, 10, 3), (12, 8, 3)]
    status, numbers = post(server, {"instances": np.full((1, 2, 3, 1), 0.5).tolist()})
    assert (status, np.shape(numbers["predictions"])) == (200, (1, 2, 3, 1))


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        {"instances": [], "inputs": []},
        {"signature_name": "upscale_image", "instances": []},
        {"signature_name": "upscale_image", "instances": {}},
        {"signature_name": "enlarge", "instances": [1.0]},
        {"signature_name": "upscale", "instances": [[[["red", 0, 0]]]]},
        {"signature_name": "upscale", "instances": [[[[0.1, 0.2, 0.3]], [[0.1, 0.2]]]]},
        {"signature_name": "upscale", "instances": [[[[0.1, 0.2, 255]]]]},
        {"signature_name": "upscale_image", "instances": [{"b64": "***"}]},
    ],
    ids=[
        "cut short",
        "two formats",
        "no instance",
        "no list",
        "no such signature",
        "words",
        "ragged",
        "out of range",
        "no base64",
    ],
)
def test_rest_refuses_what_it_cannot_use(server, body):
    status, answer = post(server, body)
    assert status == 400
    assert answer["error"]


def test_stand_in_takes_64_connections_at_once():
    """They wait in the kernel; nobody accepts them here."""
    with stand_in_server.RestServer(("127.0.0.1", 0), None) as listening, contextlib.ExitStack() as stack:
        for _ in range(64):
            stack.enter_context(socket.create_connection(listening.server_address, timeout=0.5))


def test_stand_in_refuses_a_body_it_would_not_hold(server):
    """By the header: nothing of the 300 MB is sent."""
    if "stand_in" not in str(server.process.args):
        pytest.skip("a limit of the stand-in, not of tensorflow_model_server")
    with socket.create_connection(("127.0.0.1", server.rest_port), timeout=10) as raw:
        raw.sendall(b"POST /v1/models/drcn:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 300000000\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 429 ")


@contextlib.contextmanager
def breaking_proxy(port, broken):
    """A port that drops its first `broken` connections after their first bytes, then hands on to `port`."""
    listener = socket.create_server(("127.0.0.1", 0))
    taken = []

    def pump(source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def accept():
        with contextlib.suppress(OSError):
            while True:
                accepted, _ = listener.accept()
                taken.append(accepted)
                if len(taken) <= broken:
                    accepted.recv(1)
                    accepted.close()
                    continue
                upstream = socket.create_connection(("127.0.0.1", port))
                taken.append(upstream)
                for pair in ((accepted, upstream), (upstream, accepted)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], taken
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        for connection in taken:
            connection.close()


def test_a_broken_connection_is_tried_again(server):
    png = client.encode_png(photograph(6, 7))
    with breaking_proxy(server.rest_port, broken=2) as (port, taken):
        connection = connect(f"http://127.0.0.1:{port}", "drcn")
        answer = retried(lambda: connection.upscale(png), retries=3)
        connection.close()
        assert len(taken) >= 3
    assert client.decode_png(answer).shape == (12, 14, 3)


def test_a_server_that_is_gone(tmp_path):
    """Nobody listens: one line, exit code 1, no file."""
    port = free_ports(1)[0]
    (tmp_path / "in").mkdir()
    Image.fromarray(photograph(4, 4)).save(tmp_path / "in" / "a.png")
    done = run_client(
        "--server", f"http://127.0.0.1:{port}", tmp_path / "in", "--output", tmp_path / "out", "--retries=1"
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "Connection refused. (tried 2 times)" in done.stderr
    assert not (tmp_path / "out").exists()


def run_client(*arguments):
    command = [sys.executable, "-m", "drcn_keras.client", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)


def test_the_command_upscales_a_folder_and_goes_on_where_it_stopped(server, tmp_path):
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    Image.fromarray(photograph(20, 30)).save(source / "one.png")
    Image.fromarray(photograph(12, 9)[..., 0]).save(source / "two.jpg")
    (source / "three.png").write_bytes(b"damaged")
    first = run_client("--server", server.rest, source, "--output", output, "--tile=16")
    assert first.returncode == 1
    assert "three.png: " in first.stderr
    assert "1 of 3 images were not upscaled" in first.stderr.splitlines()[-1]
    assert client.decode_png((output / "one.png").read_bytes()).shape == (40, 60, 3)
    assert client.decode_png((output / "two.png").read_bytes()).shape == (24, 18)
    assert sorted(os.listdir(output)) == ["one.png", "two.png"]
    (source / "three.png").unlink()
    before = (output / "one.png").stat().st_mtime_ns
    again = run_client("--server", server.rest, source, "--output", output)
    assert again.returncode == 0
    assert (output / "one.png").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--output=x.png"], "expected one image or one folder"),
        (["missing.png", "--output=x.jpg"], "--output must be a .png file"),
        ([str(PHOTOGRAPHS / "astronaut.png"), "--output=x.png", "--server=localhost:8501"], "--server must be http://"),
        (["missing.png", "--output=x.png"], "missing.png: no such file"),
        (["mine.png", "--output=./mine.png", "--overwrite"], "is an input; the result must not replace it"),
        (["missing.png", "--output=x.png", "--timeout=nan"], "flag --timeout=nan: expected a finite number"),
    ],
)
def test_wrong_arguments(arguments, sentence, tmp_path):
    done = run_client(*arguments)
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1
    assert sentence in done.stderr


def test_an_interrupted_client_waits_for_no_answer():
    """It once lasted as long as a stuck server's time limits, times the retries.

    The signal comes to another thread than the one that waits, as good as just before a wait: it ends no wait.
    """
    asked, release, answered = threading.Event(), threading.Event(), []

    def stuck(contents):
        asked.set()
        release.wait(60)
        answered.append(contents)
        return contents

    def interrupt():
        asked.wait(30)
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        client.upscale(photograph(20, 30), stuck, tile=16, connections=2)
    assert not answered
    release.set()


def test_two_images_of_one_name_get_results_apart(tmp_path):
    for name in ("a.png", "a.jpg"):
        Image.fromarray(photograph(4, 4)).save(tmp_path / name)
    planned = client.plan(str(tmp_path), str(tmp_path / "out"), overwrite=False)
    assert [os.path.basename(target) for _, target in planned] == ["a.jpg.png", "a.png.png"]


def test_benchmark_counts_what_goes_wrong():
    """A server that answers one size wrongly and takes garbage for an image."""
    good = client.encode_png(np.zeros((4, 4), np.uint8))

    class Wrong:
        def upscale(self, contents):
            return good

    result = benchmark_serving.benchmark([Wrong(), Wrong()], [(good, (4, 4))] * 5 + [(good, (8, 8))] * 2, [b"", b"x"])
    assert len(result["latencies"]) == 7
    assert len(result["wrong"]) == 4


def test_benchmark_against_the_server(server):
    connections = [connect(address, "drcn") for address in (server.rest, server.grpc) * 2]
    png = client.encode_png(photograph(8, 8))
    bad = benchmark_serving.damaged(png)
    result = benchmark_serving.benchmark(connections, [(png, (16, 16))] * 15, bad, server.process.pid)
    for connection in connections:
        connection.close()
    assert result["wrong"] == []
    assert len(result["latencies"]) == 15


def test_a_server_that_is_killed(server):
    """One clear error over either protocol. The last test that needs a server: it ends it."""
    png = client.encode_png(photograph(8, 8))
    with contextlib.ExitStack() as stack:
        connections = [connect(address, "drcn", timeout=20) for address in (server.rest, server.grpc)]
        for connection in connections:
            stack.callback(connection.close)
            connection.upscale(png)
        server.process.kill()
        server.process.wait()
        for connection in connections:
            with pytest.raises(Gone, match="tried 2 times"):
                retried(lambda connection=connection: connection.upscale(png), retries=1)


# === The kit for the real server ===


def message(name, *fields):
    """A message class for a text proto whose package has no Python module; fields are (name, number, type, kind)."""
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{name}.proto", syntax="proto3", dependency=["google/protobuf/wrappers.proto"]
    )
    pool = descriptor_pool.DescriptorPool()
    wrappers = descriptor_pb2.FileDescriptorProto()
    wrappers_pb2.DESCRIPTOR.CopyToProto(wrappers)
    pool.Add(wrappers)
    outer = file.message_type.add(name=name)
    for field, number, kind, parts in fields:
        described = outer.field.add(name=field, number=number, label=1, type=11, type_name=kind)
        if parts:
            inner = outer.nested_type.add(name=kind.rpartition(".")[2])
            for part, part_number, part_type in parts:
                inner.field.add(name=part, number=part_number, label=1, type=part_type)
        assert described.name
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


def test_text_protos_parse():
    folder = ROOT / "tools" / "serving"
    models = text_format.Parse((folder / "models.config").read_text(), model_server_config_pb2.ModelServerConfig())
    assert [(model.name, model.base_path) for model in models.model_config_list.config] == [("drcn", "/models/drcn")]
    # Field names and numbers of TF Serving's session_bundle_config.proto and monitoring_config.proto.
    names = ["max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads"]
    fields = [(name, number, ".google.protobuf.Int64Value", None) for number, name in enumerate(names, start=1)]
    batching = text_format.Parse((folder / "batching.config").read_text(), message("BatchingParameters", *fields)())
    assert batching.max_batch_size.value == 1
    prometheus = ("prometheus_config", 1, ".MonitoringConfig.PrometheusConfig", [("enable", 1, 8), ("path", 2, 9)])
    monitoring = text_format.Parse(
        (folder / "monitoring.config").read_text(), message("MonitoringConfig", prometheus)()
    )
    assert monitoring.prometheus_config.enable


def test_compose_names_files_that_are_there_and_a_fixed_image():
    text = (ROOT / "tools" / "serving" / "compose.yaml").read_text()
    image = next(line.split()[1] for line in text.splitlines() if "image:" in line)
    name, _, tag = image.partition(":")
    assert name == "tensorflow/serving"
    assert tag[0].isdigit()
    mounted = [line.split(":")[0].strip(" -") for line in text.splitlines() if ".config:/config/" in line]
    assert len(mounted) == 3
    assert all((ROOT / "tools" / "serving" / path).is_file() for path in mounted)
    assert all(
        "127.0.0.1:" in line for line in text.splitlines() if line.strip().startswith("- 127") or ":8500:" in line
    )
