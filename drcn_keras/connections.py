"""Connections to a server that upscales: TF Serving's REST and gRPC calls, and what is worth another try."""

import base64
import json
import random
import re
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from drcn_keras import errors
from drcn_keras.commands import prepare_tensorflow
from drcn_keras.errors import ArgumentError, UserError

SIGNATURE, INPUT, OUTPUT = "upscale_image", "image_bytes", "sr_png_bytes"
# HTTP statuses that pass: too many requests, bad gateway, unavailable, gateway timeout.
_PASSING_STATUSES = (429, 502, 503, 504)
_BACKOFF = 0.25  # Seconds before the first retry; doubled for each further one.
_LONGEST_BACKOFF = 10.0
_Answer = TypeVar("_Answer")


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

    def __init__(self, address: str, name: str, version: int | None, timeout: float, max_bytes: int) -> None:
        with errors.extra("serving"):
            import requests
        self._requests = requests
        self._address = address
        self._path = f"/v1/models/{name}" + (f"/versions/{version}" if version else "")
        self._timeout = timeout
        self._max_bytes = max_bytes
        # A session is for one thread.
        self._local = threading.local()
        self._sessions = []

    def close(self) -> None:
        for session in self._sessions:
            session.close()

    def status(self) -> dict[int, str]:
        """{version: state}, as {1: "AVAILABLE"}."""
        statuses = self._call("GET", "")["model_version_status"]
        return {int(status["version"]): status["state"] for status in statuses}

    def signatures(self) -> list[str]:
        """The names of the model's signatures, sorted."""
        return sorted(self._call("GET", "/metadata")["metadata"]["signature_def"]["signature_def"])

    def upscale(self, contents: bytes) -> bytes:
        """The bytes of a PNG or JPEG file -> those of the upscaled PNG."""
        encoded = base64.b64encode(contents).decode()
        body = {"signature_name": SIGNATURE, "instances": [{INPUT: {"b64": encoded}}]}
        return base64.b64decode(self._call("POST", ":predict", body)["predictions"][0]["b64"])

    def _call(self, method, what, body=None):
        if not hasattr(self._local, "session"):
            self._local.session = self._requests.Session()
            # Straight to the server that was named: a proxy of the environment is not asked.
            self._local.session.trust_env = False
            self._sessions.append(self._local.session)
        try:
            with self._local.session.request(
                method, self._address + self._path + what, json=body, timeout=self._timeout, stream=True
            ) as response:
                return self._answer(response)
        except self._requests.Timeout as error:
            raise Passing(f"{self._address}: no answer within {self._timeout:g} s.") from error
        except (self._requests.ConnectionError, self._requests.exceptions.ChunkedEncodingError) as error:
            raise Passing(f"{self._address}: the connection failed: {_reason(error)}.") from error
        except self._requests.RequestException as error:
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
        raise kind(f"{self._address}: {response.status_code}: {_sentence(text)}")


class GrpcConnection:
    """TF Serving's gRPC calls; arguments and methods are those of `RestConnection`, the address is HOST:PORT."""

    def __init__(self, address: str, name: str, version: int | None, timeout: float, max_bytes: int) -> None:
        # The messages need TensorFlow, which takes seconds to load: REST users do not wait for it.
        prepare_tensorflow()
        with errors.extra("serving"), errors.tensorflow_notices_hidden():
            import grpc
            from tensorflow_serving.apis import get_model_metadata_pb2 as metadata
            from tensorflow_serving.apis import get_model_status_pb2 as status
            from tensorflow_serving.apis import model_service_pb2_grpc as model_service
            from tensorflow_serving.apis import predict_pb2 as predict
            from tensorflow_serving.apis import prediction_service_pb2_grpc as prediction_service
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

    def close(self) -> None:
        self._channel.close()

    def status(self) -> dict[int, str]:
        request = self._addressed(self._status.GetModelStatusRequest())
        statuses = self._call(self._models.GetModelStatus, request).model_version_status
        state = self._status.ModelVersionStatus.State
        return {status.version: state.Name(status.state) for status in statuses}

    def signatures(self) -> list[str]:
        request = self._addressed(self._metadata.GetModelMetadataRequest(metadata_field=["signature_def"]))
        packed = self._call(self._predictions.GetModelMetadata, request).metadata["signature_def"]
        signatures = self._metadata.SignatureDefMap()
        packed.Unpack(signatures)
        return sorted(signatures.signature_def)

    def upscale(self, contents: bytes) -> bytes:
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
            raise (Passing if passing else UserError)(f"{self._address}: {code.name}: {_sentence(details)}") from error


def _sentence(text):
    """A refusal without what TensorFlow puts around it: the names of the graph's nodes."""
    text = re.sub(r"\s*\[\[\{\{.*|\{\{function_node [^}]*\}\} ?", "", text, flags=re.DOTALL).strip()
    return re.sub(r"^assertion failed: \[(.*)\]$", r"\1", text, flags=re.DOTALL)


def _reason(error):
    """The innermost cause of what requests and urllib3 wrap several times."""
    while error.__context__ is not None:
        error = error.__context__
    return getattr(error, "strerror", None) or str(error)


def _too_long(details):
    return f"message too long: {details}. Take a smaller `tile` or a larger `max_message_mb`."


def connect(
    server: str, name: str, version: int | None = None, timeout: float = 60.0, max_bytes: int = 64 * 2**20
) -> RestConnection | GrpcConnection:
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


def retried(call: Callable[[], _Answer], retries: int) -> _Answer:
    """call(), repeated up to `retries` times while it raises Passing; waits twice as long each time.

    Raises:
        Gone: it did to the end.
    """
    attempt = 0
    while True:
        try:
            return call()
        except Passing as error:
            if attempt >= retries:
                tries = f" (tried {retries + 1} times)" if retries else ""
                raise Gone(f"{error}{tries}") from error
        # A share of chance, so that many clients do not return at the same moment.
        time.sleep(min(_BACKOFF * 2**attempt, _LONGEST_BACKOFF) * random.uniform(0.5, 1.0))
        attempt += 1


def check_server(connection: RestConnection | GrpcConnection, retries: int) -> None:
    """Raises UserError unless the server has the model loaded, with the signature that this client uses."""

    def loaded():
        states = connection.status()
        if "AVAILABLE" not in states.values():
            raise Passing(f"the model is not available yet; its versions: {states}.")

    retried(loaded, retries)
    names = retried(connection.signatures, retries)
    if SIGNATURE not in names:
        raise UserError(f"the server's model has no signature {SIGNATURE}; it has {', '.join(names)}.")
