"""One model on its way to .tflite files: what its files share, and the bytes of each."""

import functools

import numpy as np
import tensorflow as tf

from drcn_keras import inference
from drcn_keras.errors import UserError
from drcn_keras.export import fidelity, quantize, runner, samples, tune
from drcn_keras.export.manifest import lr_halo
from drcn_keras.export.pipeline import Pipeline, to_tflite


class Exporter:
    """Everything that the files of one model share.

    Args:
        model: `DRCN`.
        source: path of the model's file, for the manifest.
        height, width: pixels of the low-resolution image that the files are made for.
        dynamic_shape: let the file take any size; height and width then size the golden vectors only.
        representative_dir: folder of photographs for the 8-bit modes, or "": dynamic is then made without.
        rgb_dtype: "uint8" or "float32", at the ends of the rgb pipeline.
        network: a residual network equal or close to `inference.inference_model(model, residual=True,
            split_identity=True)`; None for that one.
        ranges: dict of tensor name to (low, high) for int8, from quantisation-aware training; None to measure them.
        tuning: fit the weights to 8 bit without training, see tune.py. Not for weights that were trained for it.
        baseline: `DRCN` that the drop on a test folder counts from; None for `model`.
        label: ends the files' names, for variants of one model: "qat".

    Raises:
        UserError: the size is too small to be tiled.
    """

    def __init__(
        self,
        model,
        source,
        height=64,
        width=64,
        dynamic_shape=False,
        representative_dir="",
        rgb_dtype="uint8",
        network=None,
        ranges=None,
        tuning=True,
        baseline=None,
        label="",
    ):
        self.model = model
        self.source = source
        self.size = (height, width)
        self.dynamic_shape = dynamic_shape
        self.representative_dir = representative_dir
        self.rgb_dtype = rgb_dtype
        self.network = network or inference.inference_model(model, residual=True, split_identity=True)
        self.reference = inference.inference_model(model, residual=True)
        self.ranges = ranges
        self.tuning = tuning
        self.baseline = baseline or model
        self.label = label
        self._patches = None
        self._prepared = {}
        self._test_sets = {}
        halo = lr_halo(model)
        if min(height, width) <= 2 * halo:
            raise UserError(
                f"a file for {height}x{width} low-resolution pixels cannot be tiled: an output pixel depends on the "
                f"{halo} around it; expected --lr_height and --lr_width of at least {2 * halo + 1}."
            )

    def stem(self, pipeline, mode):
        """The name that a file and what lies beside it share."""
        dtype = "_float" if pipeline == "rgb" and self.rgb_dtype == "float32" else ""
        label = f"_{self.label}" if self.label else ""
        return f"drcn_x{self.model.scale}_{pipeline}{dtype}_{mode}{label}"

    def content(self, pipeline, mode):
        """The bytes of one .tflite file."""
        if mode not in self._prepared:
            self._prepared[mode] = self._prepare(mode)
        network, ranges = self._prepared[mode]
        size = (None, None) if self.dynamic_shape else self.size
        return quantize.quantized(to_tflite(self._pipeline(pipeline, network), *size), mode, ranges)

    def _pipeline(self, kind, network):
        return Pipeline(self.model, kind, network, self.rgb_dtype)

    def _prepare(self, mode):
        """The network that a mode is made from, and the ranges of its tensors or None."""
        if self.tuning and mode in quantize.EIGHT_BIT and self.representative_dir:
            return self._tuned(mode)
        if mode == "int8" and self.ranges:
            return self.network, self.ranges
        return self.network, self._ranges(self._luma(self.network), mode) if mode in quantize.CALIBRATED else None

    def _tuned(self, mode):
        network, content, target = self._rounded
        ranges = self._ranges(content, mode)
        if mode in ("dynamic", "int8"):
            draft = quantize.quantized(content, mode, ranges)
            network = tune.refitted(network, draft, self.representative(), target)
        return network, ranges

    @functools.cached_property
    def _rounded(self):
        """The network on its 8-bit grid, its luma file, and what the float network makes of the patches."""
        images = self.representative()
        content = self._luma(self.network)
        target = quantize.values(content, images, ("reconstruction_2_",))["reconstruction_2_1"]
        network = tune.equalized(self.network, quantize.observe(content, images))
        network = tune.rounded(network, self._luma(network), images)
        return network, self._luma(network), target

    def _ranges(self, content, mode):
        return quantize.calibrated_ranges(content, self.representative(), mode) if mode in quantize.CALIBRATED else None

    def _luma(self, network):
        """A small float file of the luma pipeline: what the network's tensors are looked at in."""
        return to_tflite(self._pipeline("luma", network), 16, 16)

    def representative(self):
        """Calibration patches, read once."""
        if self._patches is None:
            self._patches = samples.representative_patches(
                self.representative_dir, self.model.scale, self.model.channels
            )
        return self._patches

    def test_set(self, folder):
        """The `fidelity.TestSet` of a folder, made once."""
        if folder not in self._test_sets:
            self._test_sets[folder] = fidelity.TestSet(self.baseline, folder)
        return self._test_sets[folder]

    def golden(self, pipeline, content):
        """Golden vectors of a file: names, inputs, the float model's outputs, the file's own."""
        names, inputs = samples.golden_inputs(self._pipeline(pipeline, self.reference), self.model.scale, *self.size)
        reference = self._pipeline(pipeline, self.reference)
        floats = np.concatenate([np.asarray(reference(tf.constant(case[None]))) for case in inputs])
        run = runner.Runner(content)
        return {
            "names": np.array(names),
            "inputs": inputs,
            "float_outputs": floats,
            "outputs": np.stack([run(case) for case in inputs]),
        }
