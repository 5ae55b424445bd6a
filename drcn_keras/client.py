"""Upscales an image or a folder of images through a server, over REST or gRPC, tile by tile.

Each tile goes out as a PNG with enough of its surroundings that the tiles put together are the whole image's result;
so an image may be larger than what the server takes in one request. Finished files are complete files: an
interrupted run is continued by starting it again.
"""

import base64
import contextlib
import io
import json
import os
import random
import sys
import threading
import time
from concurrent import futures

import numpy as np
import png
import requests
from absl import flags
from PIL import Image
from tqdm import tqdm

from drcn_keras import commands
from drcn_keras.commands import FLAGS
from drcn_keras.errors import ArgumentError, UserError
from drcn_keras.image_files import list_images, pixels_of, read_pixels, write_image, write_pixels

SIGNATURE, INPUT, OUTPUT = "upscale_image", "image_bytes", "sr_png_bytes"
# HTTP statuses that pass: too many requests, bad gateway, unavailable, gateway timeout.
_PASSING_STATUSES = (429, 502, 503, 504)
_BACKOFF = 0.25  # Seconds before the first retry; doubled for each further one.
_LONGEST_BACKOFF = 10.0


class Passing(UserError):
    """A failure that may have gone when the request is sent again."""


class Gone(UserError):
    """A failure that should have passed and did not: the server is not there."""


class RestConnection:
    """TF Serving's REST calls.

    Args:
        address: as http://127.0.0.1:8501.
        name: the model's name on the server.
        version: int, or None for the newest.
        timeout: seconds without an answer after which a request has failed.
        max_bytes: longest message that is sent or taken.
    """

    def __init__(self, address, name, version, timeout, max_bytes):
        self._address = address
        self._path = f"/v1/models/{name}" + (f"/versions/{version}" if version else "")
        self._timeout = timeout
        self._max_bytes = max_bytes
        # A session is for one thread.
        self._local = threading.local()
        self._sessions = []

    def close(self):
        for session in self._sessions:
            session.close()

    def status(self):
        """{version: state}, as {1: "AVAILABLE"}."""
        statuses = self._call("GET", "")["model_version_status"]
        return {int(status["version"]): status["state"] for status in statuses}

    def signatures(self):
        """The names of the model's signatures, sorted."""
        return sorted(self._call("GET", "/metadata")["metadata"]["signature_def"]["signature_def"])

    def upscale(self, contents):
        """The bytes of a PNG or JPEG file -> those of the upscaled PNG."""
        encoded = base64.b64encode(contents).decode()
        body = {"signature_name": SIGNATURE, "instances": [{INPUT: {"b64": encoded}}]}
        return base64.b64decode(self._call("POST", ":predict", body)["predictions"][0]["b64"])

    def _call(self, method, what, body=None):
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
            # Straight to the server that was named: a proxy of the environment is not asked.
            self._local.session.trust_env = False
            self._sessions.append(self._local.session)
        try:
            with self._local.session.request(
                method, self._address + self._path + what, json=body, timeout=self._timeout, stream=True
            ) as response:
                return self._answer(response)
        except requests.Timeout as error:
            raise Passing(f"{self._address}: no answer within {self._timeout:g} s.") from error
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
            raise Passing(f"{self._address}: the connection failed: {_reason(error)}.") from error
        except requests.RequestException as error:
            raise UserError(f"{self._address}: {error}") from error
        except (LookupError, TypeError, ValueError) as error:
            raise UserError(f"{self._address}: the answer is not TF Serving's: {error!r}.") from error

    def _answer(self, response):
        content = bytearray()
        for part in response.iter_content(2**16):
            content += part
            if len(content) > self._max_bytes:
                raise UserError(_too_long(f"the answer has more than {self._max_bytes} bytes"))
        if response.ok:
            return json.loads(content)
        try:
            text = json.loads(content)["error"]
        except (LookupError, TypeError, ValueError):
            text = response.reason
        kind = Passing if response.status_code in _PASSING_STATUSES else UserError
        raise kind(f"{self._address}: {response.status_code}: {text}")


class GrpcConnection:
    """TF Serving's gRPC calls; arguments and methods are those of `RestConnection`, the address is HOST:PORT."""

    def __init__(self, address, name, version, timeout, max_bytes):
        try:
            # The messages need TensorFlow, which takes seconds to load: REST users do not wait for it.
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
            import grpc
            from tensorflow_serving.apis import get_model_metadata_pb2 as metadata
            from tensorflow_serving.apis import get_model_status_pb2 as status
            from tensorflow_serving.apis import model_service_pb2_grpc as model_service
            from tensorflow_serving.apis import predict_pb2 as predict
            from tensorflow_serving.apis import prediction_service_pb2_grpc as prediction_service
        except ImportError as error:
            raise UserError(f"gRPC needs `pip install tensorflow-serving-api` ({error}); REST does not.") from error
        self._grpc, self._metadata, self._status, self._predict = grpc, metadata, status, predict
        self._address, self._name, self._version, self._timeout = address, name, version, timeout
        options = [
            ("grpc.max_send_message_length", max_bytes),
            ("grpc.max_receive_message_length", max_bytes),
            ("grpc.enable_http_proxy", 0),
        ]
        channel = self._channel = grpc.insecure_channel(address, options=options)
        self._predictions = prediction_service.PredictionServiceStub(channel)
        self._models = model_service.ModelServiceStub(channel)

    def close(self):
        self._channel.close()

    def status(self):
        request = self._addressed(self._status.GetModelStatusRequest())
        statuses = self._call(self._models.GetModelStatus, request).model_version_status
        state = self._status.ModelVersionStatus.State
        return {status.version: state.Name(status.state) for status in statuses}

    def signatures(self):
        request = self._addressed(self._metadata.GetModelMetadataRequest(metadata_field=["signature_def"]))
        packed = self._call(self._predictions.GetModelMetadata, request).metadata["signature_def"]
        signatures = self._metadata.SignatureDefMap()
        packed.Unpack(signatures)
        return sorted(signatures.signature_def)

    def upscale(self, contents):
        from tensorflow.core.framework import types_pb2

        request = self._addressed(self._predict.PredictRequest())
        request.model_spec.signature_name = SIGNATURE
        tensor = request.inputs[INPUT]
        tensor.dtype = types_pb2.DT_STRING
        tensor.tensor_shape.dim.add(size=1)
        tensor.string_val.append(contents)
        outputs = self._call(self._predictions.Predict, request).outputs
        if OUTPUT not in outputs or not outputs[OUTPUT].string_val:
            raise UserError(f"{self._address}: the answer holds no {OUTPUT}.")
        return outputs[OUTPUT].string_val[0]

    def _addressed(self, request):
        request.model_spec.name = self._name
        if self._version:
            request.model_spec.version.value = self._version
        return request

    def _call(self, method, request):
        codes = self._grpc.StatusCode
        try:
            return method(request, timeout=self._timeout)
        except self._grpc.RpcError as error:
            code, details = error.code(), error.details()
            if code == codes.RESOURCE_EXHAUSTED and "larger than max" in details:
                raise UserError(_too_long(details)) from error
            passing = code in (codes.UNAVAILABLE, codes.DEADLINE_EXCEEDED, codes.RESOURCE_EXHAUSTED)
            raise (Passing if passing else UserError)(f"{self._address}: {code.name}: {details}") from error


def _reason(error):
    """The innermost cause of what requests and urllib3 wrap several times."""
    while error.__context__ is not None:
        error = error.__context__
    return getattr(error, "strerror", None) or str(error)


def _too_long(details):
    return f"message too long: {details}. Take a smaller `tile` or a larger `max_message_mb`."


def connect(server, name, version=None, timeout=60.0, max_bytes=64 * 2**20):
    """The connection for an address such as http://127.0.0.1:8501 (REST) or grpc://127.0.0.1:8500.

    Raises:
        UserError: an address of neither kind.
    """
    kind, separator, address = server.rstrip("/").partition("://")
    if separator and address and kind in ("http", "https"):
        return RestConnection(f"{kind}://{address}", name, version, timeout, max_bytes)
    if separator and address and kind == "grpc":
        return GrpcConnection(address, name, version, timeout, max_bytes)
    raise ArgumentError(
        f"`server` must be http://HOST:PORT, https://HOST:PORT or grpc://HOST:PORT; received {server!r}."
    )


def retried(call, retries):
    """call(), repeated up to `retries` times while it raises Passing; waits twice as long each time.

    Raises:
        Gone: it did to the end.
    """
    for attempt in range(retries + 1):
        try:
            return call()
        except Passing as error:
            if attempt == retries:
                tries = f" (tried {retries + 1} times)" if retries else ""
                raise Gone(f"{error}{tries}") from error
        # A share of chance, so that many clients do not return at the same moment.
        time.sleep(min(_BACKOFF * 2**attempt, _LONGEST_BACKOFF) * random.uniform(0.5, 1.0))


def check_server(connection, retries):
    """Raises UserError unless the server has the model loaded, with the signature that this client uses."""

    def loaded():
        states = connection.status()
        if "AVAILABLE" not in states.values():
            raise Passing(f"the model is not available yet; its versions: {states}.")

    retried(loaded, retries)
    names = retried(connection.signatures, retries)
    if SIGNATURE not in names:
        raise UserError(f"the server's model has no signature {SIGNATURE}; it has {', '.join(names)}.")


def upscale(pixels, send, tile=256, overlap=16, connections=4, on_tile=None):
    """Upscales one image through a server.

    Args:
        pixels: uint8 or uint16 (height, width) or (height, width, 2 to 4), as `read_pixels` gives it.
        send: function of PNG bytes to upscaled PNG bytes; may be called from several threads.
        tile: side of the squares that are asked for at once, in pixels of `pixels`.
        overlap: pixels on every side that go along and whose result is thrown away. Exact from
            ceil((recursions + 4) / scale) + 2 on: the network's halo and the bicubic kernel's.
        connections: most tiles under way at once.
        on_tile: function called after each tile.

    Returns:
        The same dtype and channels, `scale` times as high and wide.

    Raises:
        UserError: the server answers with something else than the enlarged tile.
    """
    height, width = pixels.shape[:2]
    corners = [(top, left) for top in range(0, height, tile) for left in range(0, width, tile)]
    result = None

    def one(corner):
        top, left = corner
        y, x = max(top - overlap, 0), max(left - overlap, 0)
        part = pixels[y : top + tile + overlap, x : left + tile + overlap]
        received = decode_png(send(encode_png(part)))
        scale = received.shape[0] // part.shape[0]
        if received.shape != (part.shape[0] * scale, part.shape[1] * scale, *part.shape[2:]) or scale < 1:
            raise UserError(f"the server answered {received.shape} to a tile of {part.shape}.")
        if received.dtype != part.dtype:
            raise UserError(f"the server answered {received.dtype} to a tile of {part.dtype}.")
        inner = received[(top - y) * scale :, (left - x) * scale :]
        return scale, inner[: tile * scale, : tile * scale]

    with futures.ThreadPoolExecutor(max_workers=connections) as pool:
        waiting = {pool.submit(one, corner): corner for corner in corners}
        try:
            for done in futures.as_completed(waiting):
                top, left = waiting[done]
                scale, inner = done.result()
                if result is None:
                    result = np.empty((height * scale, width * scale, *pixels.shape[2:]), pixels.dtype)
                bottom, right = min(top + tile, height), min(left + tile, width)
                result[top * scale : bottom * scale, left * scale : right * scale] = inner
                if on_tile:
                    on_tile()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return result


def encode_png(pixels, icc_profile=None):
    """The bytes of a PNG: uint8 or uint16 (height, width) gray, or (height, width, 2 to 4) LA, RGB, RGBA."""
    file = io.BytesIO()
    write_pixels(file, "tile.png", pixels, icc_profile)
    return file.getvalue()


def decode_png(contents):
    """What `encode_png` made bytes of.

    Raises:
        UserError: the bytes are no such PNG.
    """
    try:
        with Image.open(io.BytesIO(contents), formats=["PNG"]) as image:
            image.load()
            if contents[24] != 16 or contents[25] == 0:
                return pixels_of(image)[0]
        width, _, rows, info = png.Reader(bytes=contents).asDirect()
        return np.array([np.reshape(row, (width, info["planes"])) for row in rows], np.uint16)
    except Exception as error:  # Decoders raise many kinds.
        raise UserError(f"the server's answer is not a PNG that can be read: {error}") from error


def plan(source, output, overwrite):
    """What to upscale and where to.

    Args:
        source: an image file or a folder of them.
        output: a .png path for a file; a folder for a folder.
        overwrite: take files again whose result is there.

    Returns:
        list of (source path, output path).

    Raises:
        UserError: nothing to do, or two sources with one output.
    """
    if not os.path.isdir(source):
        if not output.lower().endswith(".png"):
            raise ArgumentError(f"`output` must be a .png file for one image; received {output!r}.")
        if os.path.exists(output) and not overwrite:
            raise UserError(f"{output} exists; `overwrite` replaces it.")
        return [(source, output)]
    jobs, sources = [], {}
    for path in list_images(source):
        target = os.path.join(output, os.path.splitext(os.path.basename(path))[0] + ".png")
        if target in sources:
            raise UserError(f"{sources[target]} and {path} would both become {target}; rename one of them.")
        sources[target] = path
        if overwrite or not os.path.exists(target):
            jobs.append((path, target))
    os.makedirs(output, exist_ok=True)
    return jobs


def upscale_files(jobs, send, tile, overlap, connections):
    """Upscales files; one that is damaged, or that the server refuses, is reported and passed over.

    Args:
        jobs: list of (source path, output path).
        send, tile, overlap, connections: as in `upscale`.

    Raises:
        UserError: at the end, when a file failed. At once when the server is gone.
    """
    failed = 0
    with tqdm(total=sum(_tiles(path, tile) for path, _ in jobs), unit="tile", desc="upscaling") as bar:
        for path, target in jobs:
            bar.set_postfix_str(os.path.basename(path))
            try:
                pixels, icc_profile = read_pixels(path)
                write_image(target, upscale(pixels, send, tile, overlap, connections, bar.update), icc_profile)
            except Gone:
                raise
            except UserError as error:
                if len(jobs) == 1:
                    raise
                failed += 1
                bar.write(f"{path}: {error}", file=sys.stderr)
    if failed:
        raise UserError(f"{failed} of {len(jobs)} images were not upscaled; the reasons are above.")


def _tiles(path, tile):
    """How many tiles an image makes, from its header; 0 for what is no image."""
    try:
        with Image.open(path) as image:
            return -(-image.height // tile) * -(-image.width // tile)
    except Exception:  # Its turn will come, and with it the error that says why.
        return 0


def main(argv):
    if len(argv) != 2:
        raise UserError(f"expected one image or one folder of images; received {len(argv) - 1} arguments.")
    jobs = plan(argv[1], FLAGS.output, FLAGS.overwrite)
    if not jobs:
        print(f"{FLAGS.output} is complete; --overwrite makes it again.")
        return
    max_bytes = FLAGS.max_message_mb * 2**20
    connection = connect(FLAGS.server, FLAGS.model_name, FLAGS.version, FLAGS.timeout, max_bytes)
    with contextlib.closing(connection):
        check_server(connection, FLAGS.retries)
        upscale_files(
            jobs,
            lambda contents: retried(lambda: connection.upscale(contents), FLAGS.retries),
            FLAGS.tile,
            FLAGS.overlap,
            FLAGS.connections,
        )
    print(f"{len(jobs)} upscaled into {FLAGS.output}")


def define_flags():
    flags.DEFINE_string("server", "http://127.0.0.1:8501", "http://HOST:PORT for REST, grpc://HOST:PORT for gRPC")
    flags.DEFINE_string("model_name", "drcn", "the model's name on the server")
    flags.DEFINE_integer("version", None, "the model's version; the newest by default", lower_bound=1)
    flags.DEFINE_string("output", None, "a .png file for an image, a folder for a folder")
    commands.require("output")
    flags.DEFINE_boolean("overwrite", False, "replace results that are there; a folder's are passed over otherwise")
    flags.DEFINE_integer("tile", 256, "side of the tiles sent, low-resolution pixels", lower_bound=16)
    flags.DEFINE_integer(
        "overlap", 16, "surroundings sent along; exact from (recursions + 4) / scale + 2 on", lower_bound=0
    )
    flags.DEFINE_integer("connections", 4, "tiles under way at once", lower_bound=1, upper_bound=64)
    flags.DEFINE_integer("retries", 5, "times to repeat what failed for a passing reason", lower_bound=0)
    flags.DEFINE_float("timeout", 60.0, "seconds to wait for one answer", lower_bound=0.001)
    flags.DEFINE_integer("max_message_mb", 64, "longest message, MiB", lower_bound=1, upper_bound=2047)


def run():
    """The command `drcn-serving-client`."""
    commands.run(main, define_flags)


if __name__ == "__main__":
    run()
