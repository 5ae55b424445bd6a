"""The requests that a server answers to itself before it counts a version of a model as loaded."""

import os
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2
from tqdm import tqdm

from drcn_keras.errors import UserError

Request = tuple[str, dict[str, Any]]
FILE = "assets.extra/tf_serving_warmup_requests"


def write(folder: str, requests: Sequence[Request]) -> None:
    """Writes requests where a server looks for them.

    Args:
        folder: of a SavedModel.
        requests: list of (signature name, {input name: array}).
    """
    path = os.path.join(folder, FILE)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with tf.io.TFRecordWriter(path) as writer:
        for signature_name, inputs in requests:
            log = prediction_log_pb2.PredictionLog()
            request = log.predict_log.request
            request.model_spec.signature_name = signature_name
            for name, value in inputs.items():
                request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
            writer.write(log.SerializeToString())


def read(folder: str | os.PathLike[str]) -> list[Request]:
    """The warm-up requests in the SavedModel `folder`, as `write` takes them."""
    requests = []
    for record in tf.data.TFRecordDataset(os.path.join(folder, FILE)):
        request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
        inputs = {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
        requests.append((request.model_spec.signature_name, inputs))
    return requests


def replay(loaded: Any, folder: str) -> None:
    """Runs every warm-up request, as a server does before it counts a version as loaded.

    Args:
        loaded: the SavedModel of `folder`, loaded.
        folder: path.

    Raises:
        UserError: a request fails; with it in place no server would load the version.
    """
    requests = tqdm(read(folder), desc="warm-up", unit="request", disable=None)
    for number, (signature_name, inputs) in enumerate(requests, start=1):
        try:
            signature = loaded.signatures[signature_name]
            signature(**{name: tf.constant(value) for name, value in inputs.items()})
        except (tf.errors.OpError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"warm-up request {number} for signature {signature_name!r} fails, so a server would not load this "
                f"version: {error}"
            ) from error
