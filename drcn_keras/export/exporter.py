"""One model on its way to .tflite files: what its files share, and the bytes of each."""

import dataclasses
import functools

import keras
import numpy as np
import tensorflow as tf

from drcn_keras import inference
from drcn_keras.errors import UserError
from drcn_keras.export import fidelity, integer_luma, integer_rgb, metadata, names, quantize, runner, samples, tune
from drcn_keras.export.pipeline import Pipeline, lr_halo, to_tflite
from drcn_keras.inputs import load_at
from drcn_keras.model import DRCN


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What the files of an export are made for.

    Args:
        lr_height, lr_width: pixels of the low-resolution image.
        dynamic_shape: let the file take any size; they then size the golden vectors only.
        representative_dir: folder of photographs for the 8-bit modes, or "": dynamic is then made without.
        rgb_dtype: "uint8" or "float32", at the ends of the rgb pipeline.
        label: ends the files' names, for variants of one model: "qat".
        license: of the weights, such as "MIT"; it stands in the file. "" where it is unknown.
    """

    lr_height: int = 64
    lr_width: int = 64
    dynamic_shape: bool = False
    representative_dir: str = ""
    rgb_dtype: str = "uint8"
    label: str = ""
    license: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compressed:
    """A network that was trained for a compression: its weights are exported as they are.

    Args:
        network: residual network close to `inference.inference_model(model, residual=True, split_identity=True)`.
        ranges: dict of tensor name to (low, high) that it was trained in, for int8; None to measure them.
        baseline: `DRCN` before that training, which the drop on a test folder counts from and the last convolution of
            int8_full is fitted to.
    """

    network: keras.Model
    ranges: dict[str, tuple[float, float]] | None
    baseline: DRCN


class Exporter:
    """Everything that the files of one model share.

    Args:
        model: `DRCN` of one scale; of one of several, `model.at(scale)`.
        source: path of the model's file, for the manifest.
        options: `Options`.
        compressed: `Compressed`; None: the model's own network, its weights fitted to 8 bit without training (tune.py).

    Raises:
        UserError: the size is too small to be tiled, or the model is for several scales.
    """

    def __init__(
        self, model: DRCN, source: str, options: Options | None = None, compressed: Compressed | None = None
    ) -> None:
        self.model = model = load_at(model)
        self.source = source
        self.options = options = options or Options()
        self.network = inference.inference_model(model, residual=True, split_identity=True)
        self.reference = inference.inference_model(model, residual=True)
        self.ranges = None
        self.tuning = compressed is None
        self.baseline = model
        if compressed:
            self.network, self.ranges, self.baseline = compressed.network, compressed.ranges, compressed.baseline
        self._prepared = {}
        self._test_sets = {}
        halo = lr_halo(model)
        if min(options.lr_height, options.lr_width) <= 2 * halo:
            raise UserError(
                f"a file for {options.lr_height}x{options.lr_width} low-resolution pixels cannot be tiled: an output "
                f"pixel depends on the {halo} around it; expected `lr_height` and `lr_width` of {2 * halo + 1} or more."
            )

    def stem(self, pipeline: str, mode: str) -> str:
        """The name that a file and what lies beside it share."""
        dtype = "_float" if pipeline == "rgb" and self.options.rgb_dtype == "float32" else ""
        label = f"_{self.options.label}" if self.options.label else ""
        return f"drcn_x{self.model.scale}_{pipeline}{dtype}_{mode}{label}"

    def refuse(self, pipeline: str, mode: str) -> None:
        """Raises UserError where there is no such file of this model."""
        if mode != "int8_full":
            return
        if self.options.dynamic_shape:
            raise UserError("int8_full is made for one size, as NPUs want it; received dynamic_shape.")
        if pipeline == "rgb" and self.options.rgb_dtype != "uint8":
            raise UserError(
                "int8_full takes and gives integers; expected `rgb_dtype` uint8 (its pixels are int8, 128 lower), "
                f"received {self.options.rgb_dtype}."
            )

    def content(self, pipeline: str, mode: str) -> bytes:
        """The bytes of one .tflite file.

        Raises:
            UserError: no such file is made of this model.
        """
        self.refuse(pipeline, mode)
        if mode == "int8_full":
            return self._integer_content(pipeline)
        if mode not in self._prepared:
            self._prepared[mode] = self._prepare(mode)
        network, ranges = self._prepared[mode]
        size = (None, None) if self.options.dynamic_shape else (self.options.lr_height, self.options.lr_width)
        graph = self._pipeline(pipeline, network)
        content = quantize.to_mode(to_tflite(graph, *size), mode, ranges)
        return metadata.attach(content, metadata.describe(self.model, graph, mode, self.options.license))

    def _integer_content(self, pipeline):
        graph = self._pipeline(pipeline, self.network)
        network = self._integer_rgb if pipeline == "rgb" else self._integer
        _, *size, _ = graph.shape(self.options.lr_height, self.options.lr_width)
        about = metadata.describe(self.model, graph, "int8_full", self.options.license)
        return metadata.attach(network.file(network.last, *size), about)

    @functools.cached_property
    def _integer(self):
        """The network on integers from end to end."""
        network, ranges = self._on_grids
        return integer_luma.LumaNetwork(self.model, network, ranges, self.representative, self.baseline)

    @functools.cached_property
    def _integer_rgb(self):
        lr = samples.representative_lr(self.options.representative_dir, self.model.scale)
        network, ranges = self._on_grids
        return integer_rgb.RgbNetwork(self.model, network, ranges, lr)

    @functools.cached_property
    def _on_grids(self):
        """The network with its heavy kernels on 8-bit grids, and the ranges of its tensors in int8_full."""
        if self.tuning:
            network, content, _ = self._rounded
            return network, self._ranges(content, "int8_full")
        return self.network, self.ranges or self._ranges(self._luma(self.network), "int8_full")

    def _pipeline(self, kind, network):
        return Pipeline(self.model, kind, network, self.options.rgb_dtype)

    def _prepare(self, mode):
        """The network that a mode is made from, and the ranges of its tensors or None."""
        if self.tuning and mode in names.EIGHT_BIT and self.options.representative_dir:
            return self._tuned(mode)
        if mode == "int8" and self.ranges:
            return self.network, self.ranges
        return self.network, self._ranges(self._luma(self.network), mode) if mode in names.CALIBRATED else None

    def _tuned(self, mode):
        network, content, target = self._rounded
        ranges = self._ranges(content, mode)
        if mode in ("dynamic", "int8"):
            draft = quantize.to_mode(content, mode, ranges)
            network = tune.refit(network, draft, self.representative, target)
        return network, ranges

    @functools.cached_property
    def _rounded(self):
        """The network on its 8-bit grid, its luma file, and what the float network makes of the patches."""
        images = self.representative
        content = self._luma(self.network)
        (target,) = quantize.values(content, images, names.pattern(names.RECONSTRUCTION_2)).values()
        network = tune.equalize(self.network, quantize.observe(content, images))
        network = tune.round_kernels(network, self._luma(network), images)
        return network, self._luma(network), target

    def _ranges(self, content, mode):
        return quantize.calibrate(content, self.representative, mode) if mode in names.CALIBRATED else None

    def _luma(self, network):
        """A small float file of the luma pipeline: what the network's tensors are looked at in."""
        return to_tflite(self._pipeline("luma", network), 16, 16)

    @functools.cached_property
    def representative(self) -> np.ndarray:
        """Calibration patches, read once."""
        model = self.model
        found = samples.representative_patches(self.options.representative_dir, model.scale, model.channels)
        # Checked with pictures of the package's own: what calibration never saw must not pass for right.
        side = samples.CALIBRATION_SIDE
        cases, own = samples.golden_inputs(self._pipeline("luma", self.network), side, side)
        samples.refuse_narrow(found, own[[name.startswith("patch_") for name in cases]])
        return found

    def test_set(self, folder: str) -> fidelity.TestSet:
        """The `fidelity.TestSet` of a folder, made once."""
        if folder not in self._test_sets:
            self._test_sets[folder] = fidelity.TestSet(self.baseline, folder)
        return self._test_sets[folder]

    def golden(self, pipeline: str, content: bytes) -> dict[str, np.ndarray]:
        """Golden vectors of a file: names, inputs, the float model's outputs, the file's own."""
        reference = self._pipeline(pipeline, self.reference)
        cases, inputs = samples.golden_inputs(reference, self.options.lr_height, self.options.lr_width)
        run = runner.Runner(content)
        inputs = run.taken(inputs)
        floats = np.concatenate([np.asarray(reference(tf.constant(case[None]))) for case in run.meant(inputs)])
        floats = run.given(floats)
        return {
            "names": np.array(cases),
            "inputs": inputs,
            "float_outputs": floats,
            "outputs": np.stack([run(case) for case in inputs]),
        }
