"""A stand-in for TensorFlow Serving, to try and test a client where no tensorflow_model_server is at hand.

It is not TensorFlow Serving. It loads the newest version of one SavedModel with Python TensorFlow and answers, on
127.0.0.1 alone, the calls that a client of this project makes, with TF Serving's paths, messages and status codes:
predict, model status and model metadata over REST and over gRPC. It takes the same flags for the same things. It has
no batching, no polling for new versions and no version policies.
"""

import base64
import json
import os
import re
import signal
import threading
from concurrent import futures
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import numpy as np
import tensorflow as tf
from absl import flags
from google.protobuf import json_format
from stand_in_model import Refused, Servable
from tensorflow_serving.apis import (
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from drcn_keras import commands
from drcn_keras.commands import FLAGS
from drcn_keras.errors import UserError

HOST = "127.0.0.1"
REST_BODY_LIMIT = 256 * 2**20
_URL = re.compile(r"/v1/models/([^/:]+)(?:/versions/(\d+))?(/metadata|:predict)?")
_HTTP_STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.FAILED_PRECONDITION: HTTPStatus.PRECONDITION_FAILED,
    grpc.StatusCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    grpc.StatusCode.UNIMPLEMENTED: HTTPStatus.NOT_IMPLEMENTED,
    grpc.StatusCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
}


class _GrpcService(prediction_service_pb2_grpc.PredictionServiceServicer, model_service_pb2_grpc.ModelServiceServicer):
    """Predict, GetModelMetadata and GetModelStatus; every other method answers UNIMPLEMENTED."""

    def __init__(self, servable):
        self._servable = servable

    def Predict(self, request, context):
        try:
            self._check(request)
            inputs = {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
            outputs = self._servable.predict(request.model_spec.signature_name, inputs)
        except Refused as refused:
            context.abort(refused.code, str(refused))
        except (TypeError, ValueError) as error:  # From make_ndarray: contents that do not fit the shape.
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        response = predict_pb2.PredictResponse()
        self._servable.fill_spec(response.model_spec, request.model_spec.signature_name or "serving_default")
        for name, value in outputs.items():
            response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
        return response

    def GetModelMetadata(self, request, context):
        try:
            self._check(request)
        except Refused as refused:
            context.abort(refused.code, str(refused))
        return self._servable.metadata()

    def GetModelStatus(self, request, context):
        try:
            self._check(request)
        except Refused as refused:
            context.abort(refused.code, str(refused))
        return self._servable.status()

    def _check(self, request):
        spec = request.model_spec
        self._servable.check(spec.name, spec.version.value if spec.HasField("version") else None)


class _RestHandler(BaseHTTPRequestHandler):
    """GET status and metadata, POST predict, as TF Serving's REST page lays them out."""

    protocol_version = "HTTP/1.1"
    server_version = "drcn-stand-in"
    timeout = 60

    def do_GET(self):
        self._respond(self._get)

    def do_POST(self):
        self._respond(self._post)

    def _get(self):
        servable, what = self._target()
        if what == ":predict":
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "predict is a POST request")
        if what == "/metadata":
            content = json_format.MessageToDict(servable.metadata(), preserving_proto_field_name=True)
            del content["metadata"]["signature_def"]["@type"]
            return content
        message = servable.status()
        return json_format.MessageToDict(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )

    def _post(self):
        length = int(self.headers.get("Content-Length") or 0)
        if length > REST_BODY_LIMIT:
            # The body is not read, so the connection cannot be used again.
            self.close_connection = True
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, f"body of {length} bytes; at most {REST_BODY_LIMIT}")
        body = self.rfile.read(length)
        servable, what = self._target()
        if what != ":predict":
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"Malformed request: POST {self.path}")
        return _predict_json(servable, body)

    def _target(self):
        """(servable, "", "/metadata" or ":predict") of the request's path."""
        match = _URL.fullmatch(self.path)
        if not match:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"Malformed request: {self.command} {self.path}")
        name, version, what = match.groups()
        self.server.servable.check(name, int(version) if version else None)
        return self.server.servable, what

    def _respond(self, answer):
        try:
            status, content = HTTPStatus.OK, answer()
        except Refused as refused:
            status = _HTTP_STATUSES.get(refused.code, HTTPStatus.INTERNAL_SERVER_ERROR)
            content = {"error": str(refused)}
        except Exception as error:  # Whatever it is, the client gets an answer and the connection goes on.
            status, content = HTTPStatus.INTERNAL_SERVER_ERROR, {"error": repr(error)}
        body = json.dumps(content).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except ConnectionError:
            self.close_connection = True  # The client left; there is nobody to tell.

    def log_message(self, *_):
        """No line per request."""


class RestServer(ThreadingHTTPServer):
    """A thread for each connection; as many may wait for theirs as a load test opens at once."""

    daemon_threads = True
    request_queue_size = 128


def _predict_json(servable, body):
    """TF Serving's JSON predict call: row ("instances") or columnar ("inputs") format, bytes as {"b64": ...}."""
    try:
        request = json.loads(body)
        rows = "instances" in request
        if rows == ("inputs" in request):
            raise ValueError("expected one of 'instances' and 'inputs'")
        signature_name = request.get("signature_name", "")
        _, specs = servable.signature(signature_name)
        values = request["instances" if rows else "inputs"]
        columns = _columns(values, list(specs)) if rows else _named(values, list(specs))
        inputs = {name: _from_json(columns[name], spec) for name, spec in specs.items() if name in columns}
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"JSON Parse error: {error}") from error
    outputs = {name: _to_json(name, value) for name, value in servable.predict(signature_name, inputs).items()}
    if not rows:
        return {"outputs": next(iter(outputs.values())) if len(outputs) == 1 else outputs}
    if len(outputs) == 1:
        return {"predictions": next(iter(outputs.values()))}
    return {"predictions": [dict(zip(outputs, row, strict=True)) for row in zip(*outputs.values(), strict=True)]}


def _is_named(value):
    return isinstance(value, dict) and set(value) != {"b64"}


def _columns(instances, names):
    if not instances:
        raise ValueError("'instances' must hold one or more")
    if _is_named(instances[0]):
        return {name: [instance[name] for instance in instances] for name in instances[0]}
    return {names[0]: instances}


def _named(inputs, names):
    return inputs if _is_named(inputs) else {names[0]: inputs}


def _from_json(value, spec):
    if spec.dtype == tf.string:
        return np.array(_decode(value), dtype=object)
    array = np.array(value)
    if spec.dtype.is_integer and array.size and array.dtype.kind not in "iu":
        raise ValueError(f"expected whole numbers for {spec.name}")
    if array.dtype.kind not in "iuf" and array.size:
        raise ValueError(f"expected a rectangular list of numbers for {spec.name}")
    if spec.dtype == tf.uint8 and array.size and not (array.min() >= 0 and array.max() <= 255):
        raise ValueError(f"a value of {spec.name} is out of range for uint8")
    return array.astype(spec.dtype.as_numpy_dtype)


def _decode(value):
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if isinstance(value, dict):
        return base64.b64decode(value["b64"], validate=True)
    return value.encode()


def _to_json(name, value):
    if value.dtype != object:
        return value.tolist()
    encode = (lambda item: {"b64": base64.b64encode(item).decode()}) if name.endswith("_bytes") else bytes.decode
    return [encode(item) for item in value.tolist()]


def serve(servable, port, rest_api_port, channel_arguments=()):
    """Listens on loopback until the process gets SIGINT or SIGTERM.

    Args:
        servable: `Servable`.
        port: of gRPC; 0 takes a free one.
        rest_api_port: of REST; 0 takes a free one.
        channel_arguments: list of (name, value) for the gRPC server.

    Raises:
        UserError: a port is taken.
    """
    grpc_server = grpc.server(
        futures.ThreadPoolExecutor(os.cpu_count()),
        # TF Serving's own limit; channel_arguments come later and win.
        options=[("grpc.max_receive_message_length", 2**31 - 1), ("grpc.so_reuseport", 0), *channel_arguments],
    )
    service = _GrpcService(servable)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(service, grpc_server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(service, grpc_server)
    try:
        rest_server = RestServer((HOST, rest_api_port), _RestHandler)
        port = grpc_server.add_insecure_port(f"{HOST}:{port}")
    except (OSError, RuntimeError) as error:
        raise UserError(f"ports {port} and {rest_api_port} on {HOST} must be free: {error}") from error
    rest_server.servable = servable
    grpc_server.start()
    threading.Thread(target=rest_server.serve_forever, daemon=True).start()
    print(
        f"Stand-in server (not TensorFlow Serving): {servable.name} version {servable.version}, "
        f"gRPC {HOST}:{port}, REST http://{HOST}:{rest_server.server_port}",
        flush=True,
    )
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()
    rest_server.shutdown()
    grpc_server.stop(grace=5).wait()


def define_flags():
    flags.DEFINE_integer("port", 8500, "port of gRPC on 127.0.0.1; 0 takes a free one")
    flags.DEFINE_integer("rest_api_port", 8501, "port of REST on 127.0.0.1; 0 takes a free one")
    flags.DEFINE_string("model_name", "drcn", "the model's name in requests")
    flags.DEFINE_string("model_base_path", None, "folder of numbered SavedModels", required=True)
    flags.DEFINE_string("grpc_channel_arguments", "", "as grpc.max_receive_message_length=1000000, comma-separated")


def main(argv):
    commands.refuse_arguments(argv)
    arguments = []
    for pair in FLAGS.grpc_channel_arguments.split(","):
        name, _, value = pair.partition("=")
        if name:
            arguments.append((name, int(value) if re.fullmatch(r"-?\d+", value) else value))
    servable = Servable(FLAGS.model_name, FLAGS.model_base_path)
    serve(servable, FLAGS.port, FLAGS.rest_api_port, arguments)


if __name__ == "__main__":
    commands.run(main, define_flags)
