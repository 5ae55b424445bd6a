"""The SavedModel that the stand-in server serves, with TensorFlow Serving's errors."""

import os

import grpc
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2

from drcn_keras.errors import UserError
from drcn_keras.export import warmup

_GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}


class Refused(Exception):
    """A request that ends in a status instead of an answer."""

    def __init__(self, code, text):
        super().__init__(text)
        self.code = code


class Servable:
    """One loaded version of one model, and the answers about it that REST and gRPC share.

    Args:
        name: the model's name in requests.
        base_path: folder of numbered SavedModels; the highest number is loaded.

    Raises:
        UserError: no numbered SavedModel there, or one whose warm-up requests fail.
    """

    def __init__(self, name, base_path):
        versions = [int(entry) for entry in os.listdir(base_path) if entry.isdigit()]
        if not versions:
            raise UserError(f"{base_path}: expected folders named by version numbers, as 1; there is none.")
        self.name = name
        self.version = max(versions)
        path = os.path.join(base_path, str(self.version))
        self._model = tf.saved_model.load(path, tags=["serve"])
        if os.path.exists(os.path.join(path, warmup.FILE)):
            warmup.replay(self._model, path)
        self._definition = _read_graph(path)

    def check(self, name, version):
        """Raises Refused unless this is the servable that was asked for; version None is the newest."""
        if name != self.name or version not in (None, self.version):
            wanted = f"Latest({name})" if version is None else f"Specific({name}, {version})"
            raise Refused(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {wanted}")

    def signature(self, name):
        """The signature's (function, {input name: tf.TensorSpec}); the empty name is serving_default."""
        name = name or "serving_default"
        if name not in self._model.signatures:
            raise Refused(
                grpc.StatusCode.INVALID_ARGUMENT, f'Serving signature name: "{name}" not found in signature def'
            )
        function = self._model.signatures[name]
        return function, function.structured_input_signature[1]

    def predict(self, signature_name, inputs):
        """Runs a signature.

        Args:
            signature_name: string, "" for serving_default.
            inputs: {name: NumPy array}.

        Returns:
            {name: NumPy array}.

        Raises:
            Refused: the inputs do not fit the signature, or the graph itself refused them.
        """
        function, specs = self.signature(signature_name)
        if set(inputs) != set(specs):
            raise Refused(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"input names do not match signature: sent {sorted(inputs)}, expected {sorted(specs)}",
            )
        for name, spec in specs.items():
            value = inputs[name]
            if tf.as_dtype(value.dtype) != spec.dtype or not spec.shape.is_compatible_with(value.shape):
                raise Refused(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"input {name} is {tf.as_dtype(value.dtype).name} {value.shape}; "
                    f"expected {spec.dtype.name} {spec.shape}",
                )
        try:
            outputs = function(**{name: tf.constant(inputs[name], spec.dtype) for name, spec in specs.items()})
        except tf.errors.OpError as error:
            # Python's own wrapping of the message is left out: a C++ server has none.
            text = error.message.rpartition("<stack traces unavailable>\n")[2]
            raise Refused(_GRPC_CODES[error.error_code], text) from error
        return {name: value.numpy() for name, value in outputs.items()}

    def status(self):
        response = get_model_status_pb2.GetModelStatusResponse()
        state = get_model_status_pb2.ModelVersionStatus.AVAILABLE
        response.model_version_status.add(version=self.version, state=state).status.SetInParent()
        return response

    def metadata(self):
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        self.fill_spec(response.model_spec)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for name, definition in self._definition.signature_def.items():
            signatures.signature_def[name].CopyFrom(definition)
        response.metadata["signature_def"].Pack(signatures)
        return response

    def fill_spec(self, spec, signature_name=""):
        spec.name = self.name
        spec.version.value = self.version
        spec.signature_name = signature_name


def _read_graph(path):
    with open(os.path.join(path, "saved_model.pb"), "rb") as file:
        return saved_model_pb2.SavedModel.FromString(file.read()).meta_graphs[0]
