"""The network and its pipelines as float .tflite files."""

import tempfile
import typing

import keras
import tensorflow as tf

from drcn_keras import inference
from drcn_keras.export import flatbuffer
from drcn_keras.model import DRCN

# Channels that a value of the ILR is given in where the input is int8: whole steps of its grid, then 256ths of one.
LUMA_DIGITS = 2


def input_digits(kind: str, mode: str) -> int:
    """Digits to base 256 that each value of a file's input comes in, a channel each: 1 but for integer luma files."""
    return LUMA_DIGITS if kind == "luma" and mode == "int8_full" else 1


def lr_halo(model: DRCN) -> int:
    """Low-resolution pixels around an output pixel that it depends on, the bicubic's two included."""
    return -(-model.halo // model.scales[0]) + 2


class Graph(typing.Protocol):
    """What `to_tflite` needs to know of a tensor program."""

    network: keras.Model
    dtype: str
    input_name: str

    def __call__(self, images: tf.Tensor) -> tf.Tensor: ...

    def shape(self, height: int | None, width: int | None) -> tuple: ...


class Pipeline:
    """A tensor program around the folded residual network of a DRCN.

    luma: float32 ILR in [0, 1] -> float32 SR. rgb: LR of 8-bit RGB -> SR of 8-bit RGB, everything inside.

    Args:
        model: `DRCN`.
        kind: "luma" or "rgb".
        network: the folded residual graph, `inference.inference_model(model, residual=True, ...)` or one equal to it.
        rgb_dtype: "uint8" or "float32" (values 0 to 255), what the rgb pipeline takes and gives.
    """

    def __init__(self, model: DRCN, kind: str, network: keras.Model, rgb_dtype: str = "uint8") -> None:
        self.kind = kind
        self.network = network
        self.scale = model.scales[0]
        self.channels = model.channels
        self.gain = inference.skip_gain(model)
        self.dtype = "float32" if kind == "luma" else rgb_dtype
        self.input_name = "ilr" if kind == "luma" else "lr"
        # Pixels of the input around an output pixel that it depends on.
        self.halo = model.halo if kind == "luma" else lr_halo(model)
        self.input_channels = model.channels if kind == "luma" else 3

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        """Images (batch, height, width, channels) in the input's dtype -> (batch, height, width, channels)."""
        if self.kind == "luma":
            return self._enhanced(images)
        rgb = tf.cast(images, tf.float32) * (1.0 / 255.0)
        if self.channels == 3:
            rgb = self._enhanced(inference.enlarge(rgb, self.scale))
        else:
            ycbcr = inference.enlarge(inference.rgb_to_ycbcr(rgb), self.scale)
            luma = self._enhanced(ycbcr[..., :1])
            rgb = inference.ycbcr_to_rgb(tf.concat([luma, ycbcr[..., 1:]], axis=-1))
        # The cast cuts off, so half a step before it rounds: ROUND is one operator that fewer runtimes know.
        rgb = tf.clip_by_value(rgb * 255.0, 0.0, 255.0) + 0.5
        if self.dtype == "uint8":
            return tf.cast(rgb, tf.uint8)
        return tf.floor(rgb)

    def _enhanced(self, ilr):
        return self.network(ilr) + self.gain * ilr

    def shape(self, height: int | None, width: int | None) -> tuple[int | None, ...]:
        """Input shape for LR images of height x width pixels; None for any size."""
        factor = self.scale if self.kind == "luma" else 1
        sides = [None if side is None else factor * side for side in (height, width)]
        return (1, *sides, self.input_channels)


def to_tflite(pipeline: Graph, height: int | None, width: int | None) -> bytes:
    """Converts through a SavedModel, the one way that works in every mode.

    Args:
        pipeline: a `Pipeline`, or a `Graph` of its own.
        height, width: pixels of the low-resolution image, or None for any.

    Returns:
        bytes of the file.
    """
    signature = tf.TensorSpec(pipeline.shape(height, width), pipeline.dtype, name=pipeline.input_name)
    archive = keras.export.ExportArchive()
    archive.track(pipeline.network)
    archive.add_endpoint("serving_default", lambda images: {"sr": pipeline(images)}, input_signature=[signature])
    with tempfile.TemporaryDirectory() as folder:
        archive.write_out(folder, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=["serving_default"])
        content = converter.convert()
    return flatbuffer.tidy(content)
