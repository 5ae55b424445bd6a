"""Writes a trained DRCN as .tflite files, each with golden vectors and a manifest, and proves each in LiteRT.

python tools/export_tflite.py --model=best.keras --output=export --mode=float32,int8 --representative_dir=photos
"""

import concurrent.futures
import functools
import hashlib
import importlib.metadata
import io
import json
import os
import subprocess
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
from absl import flags, logging
from litert import check, flatbuffer, graph, quantize, tune
from tqdm import tqdm

import drcn_keras
from drcn_keras import errors, image, image_files, inference, metrics
from drcn_keras.data import load_pairs
from drcn_keras.errors import UserError
from drcn_keras.files import write_atomically
from drcn_keras.presets import load, path_of

PIPELINES = ("luma", "rgb")
MIN_IMAGES = 4
PATCHES = 128
EXTREMES = 8
CALIBRATION_SIDE = 64
# A file below this against the float model is broken, not merely rounded. dB over the golden patches.
WORST_PSNR = {"float32": 90.0, "float16": 55.0, "dynamic": 40.0, "int8": 40.0, "int16x8": 40.0}
IDENTICAL = 200.0


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
        return quantize.quantized(graph.to_tflite(self._pipeline(pipeline, network), *size), mode, ranges)

    def _pipeline(self, kind, network):
        return graph.Pipeline(self.model, kind, network, self.rgb_dtype)

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
        return graph.to_tflite(self._pipeline("luma", network), 16, 16)

    def representative(self):
        """Calibration patches, read once."""
        if self._patches is None:
            self._patches = representative_patches(self.representative_dir, self.model.scale, self.model.channels)
        return self._patches

    def test_set(self, folder):
        """The `TestSet` of a folder, made once."""
        if folder not in self._test_sets:
            self._test_sets[folder] = TestSet(self.baseline, folder)
        return self._test_sets[folder]

    def golden(self, pipeline, content):
        """Golden vectors of a file: names, inputs, the float model's outputs, the file's own."""
        names, inputs = golden_inputs(self._pipeline(pipeline, self.reference), self.model.scale, *self.size)
        reference = self._pipeline(pipeline, self.reference)
        floats = np.concatenate([np.asarray(reference(tf.constant(case[None]))) for case in inputs])
        run = check.Runner(content)
        return {
            "names": np.array(names),
            "inputs": inputs,
            "float_outputs": floats,
            "outputs": np.stack([run(case) for case in inputs]),
        }


def lr_halo(model):
    """Low-resolution pixels around an output pixel that it depends on, the bicubic's two included."""
    return -(-model.halo // model.scale) + 2


def export(exporter, output, pipelines, modes, test_dir="", overwrite=False, inspect=None):
    """Writes one .tflite, .npz and .json for each pipeline and mode.

    Args:
        exporter: `Exporter`.
        output: folder, made when missing.
        pipelines: of PIPELINES.
        modes: of quantize.MODES.
        test_dir: folder of original photographs to measure luma files on, or "".
        overwrite: replace files that exist.
        inspect: function of (content, mode) that returns more for the manifest, or raises UserError.

    Returns:
        list of manifests (dicts), one for each .tflite.

    Raises:
        UserError: a mode needs representative images, a file exists, a file failed its check.
    """
    if set(modes) & set(quantize.CALIBRATED) and not (exporter.ranges and set(modes) <= {"int8"}):
        exporter.representative()
    refuse_existing(exporter, output, pipelines, modes, overwrite)
    os.makedirs(output, exist_ok=True)
    jobs = [(pipeline, mode) for pipeline in pipelines for mode in modes]
    manifests = []
    for pipeline, mode in tqdm(jobs, desc="export", unit="file", disable=None):
        manifests.append(_export_one(exporter, output, pipeline, mode, test_dir, inspect))
    return manifests


def refuse_existing(exporter, output, pipelines, modes, overwrite):
    """Raises UserError when a file would be replaced without leave."""
    for pipeline in pipelines:
        for mode in modes:
            for suffix in (".tflite", ".npz", ".json"):
                path = os.path.join(output, exporter.stem(pipeline, mode) + suffix)
                if os.path.exists(path) and not overwrite:
                    raise UserError(f"{path} exists; --overwrite replaces it.")


def _export_one(exporter, output, pipeline, mode, test_dir, inspect):
    stem = exporter.stem(pipeline, mode)
    content = exporter.content(pipeline, mode)
    golden = exporter.golden(pipeline, content)
    packed = io.BytesIO()
    np.savez_compressed(packed, **golden)
    manifest = _manifest(exporter, pipeline, mode, content, packed.getvalue(), golden)
    if inspect:
        manifest.update(inspect(content, mode))
    if manifest["psnr_vs_float"] < WORST_PSNR[mode]:
        raise UserError(
            f"{stem}: {manifest['psnr_vs_float']:.1f} dB against the float model; expected at least "
            f"{WORST_PSNR[mode]:.0f}. Nothing was written for it."
        )
    _prove(stem, content, packed.getvalue())
    if test_dir and pipeline == "luma":
        manifest["test"] = [exporter.test_set(test_dir).measure(content)]
    path = os.path.join(output, stem)
    write_atomically(f"{path}.npz", lambda file: file.write(packed.getvalue()))
    write_atomically(f"{path}.tflite", lambda file: file.write(content))
    # The manifest last: where it stands, the other two are whole.
    text = json.dumps(manifest, indent=2) + "\n"
    write_atomically(f"{path}.json", lambda file: file.write(text.encode()))
    logging.info("%s: %d bytes, %.2f dB against the float model", stem, len(content), manifest["psnr_vs_float"])
    return manifest


def _prove(stem, content, packed):
    """Runs the file in a process that never loads TensorFlow."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, name) for name in ("model.tflite", "golden.npz")]
        for path, data in zip(paths, (content, packed), strict=True):
            with open(path, "wb") as file:
                file.write(data)
        done = subprocess.run([sys.executable, check.__file__, *paths], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stdout + done.stderr).strip().splitlines() or ["no output"]
        raise UserError(f"{stem}: the file fails its check in LiteRT: {last[-1]}. Nothing was written for it.")


def _manifest(exporter, pipeline, mode, content, packed, golden):
    model, stem = exporter.model, exporter.stem(pipeline, mode)
    real = [index for index, name in enumerate(golden["names"]) if name.startswith("patch_")]
    return {
        "format": 1,
        "model": _file_entry(f"{stem}.tflite", content),
        "golden": {"file": f"{stem}.npz", "sha256": _sha256(packed), "cases": len(golden["names"])},
        "mode": mode,
        "pipeline": pipeline,
        "scale": model.scale,
        "filters": model.filters,
        "recursions": model.recursions,
        "channels": model.channels,
        "halo": model.halo,
        "lr_halo": lr_halo(model),
        **_boundaries(content, exporter.dynamic_shape),
        "operators": flatbuffer.operators(content),
        "integer_operators": flatbuffer.integer_operators(content),
        "macs": flatbuffer.macs(content),
        "parameters": model.count_params(),
        "psnr_vs_float": fidelity(golden["float_outputs"][real], golden["outputs"][real]),
        "test": [],
        "source": {"model": os.path.basename(exporter.source), "sha256": sha256_of_file(exporter.source)},
        "tools": _versions(),
    }


def _file_entry(name, content):
    return {"file": name, "sha256": _sha256(content), "bytes": len(content)}


def _boundaries(content, dynamic_shape):
    entries = {}
    interpreter = check.Runner(content).interpreter
    signature = interpreter.get_signature_list()["serving_default"]
    for key, names, details in (
        ("input", signature["inputs"], interpreter.get_input_details()[0]),
        ("output", signature["outputs"], interpreter.get_output_details()[0]),
    ):
        step, zero = details["quantization"]
        entries[key] = {
            "name": names[0],
            "shape": [int(n) for n in details["shape_signature" if dynamic_shape else "shape"]],
            "dtype": np.dtype(details["dtype"]).name,
            "quantization": {"scale": float(step), "zero_point": int(zero)} if step else None,
        }
    return entries


def _sha256(data):
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _versions():
    names = ("tensorflow", "keras", "ai-edge-litert", "ai-edge-quantizer")
    versions = {name.replace("-", "_"): importlib.metadata.version(name) for name in names}
    return {**versions, "drcn_keras": drcn_keras.__version__}


def fidelity(reference, outputs):
    """PSNR in dB of outputs against the float model's, peak 1 (or 255 for 8-bit images), IDENTICAL when equal."""
    eight_bit = reference.dtype == np.uint8 or reference.max() > 4.0
    peak = 255.0 if eight_bit else 1.0
    error = np.mean(np.square(reference.astype(np.float64) - outputs.astype(np.float64)))
    return float(min(IDENTICAL, 10.0 * np.log10(peak**2 / error))) if error else IDENTICAL


class TestSet:
    """Originals, their ILR and what the float model makes of it, computed once for many files.

    Args:
        model: `DRCN`.
        folder: of original photographs.
    """

    def __init__(self, model, folder):
        self.name = os.path.basename(os.path.normpath(folder))
        self.scale = model.scale
        self.pairs = load_pairs(image_files.list_images(folder), model.scale, model.channels)
        reference = inference.inference_model(model)
        self.expected = [
            np.asarray(reference(pair.ilr[None]))[0]
            for pair in tqdm(self.pairs, desc=self.name, unit="image", leave=False, disable=None)
        ]

    def measure(self, content):
        """A luma file by the field's protocol, next to the float model.

        Returns:
            dict for the manifest: dataset, scale, and in dB psnr, float_psnr, drop, fidelity.
        """
        # One image a thread: not every kernel shares its work among threads.
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            rows = list(
                pool.map(lambda pair, expected: self._compare(content, pair, expected), self.pairs, self.expected)
            )
        psnr, float_psnr, close = np.mean(rows, axis=0)
        return {
            "dataset": self.name,
            "scale": self.scale,
            "psnr": float(psnr),
            "float_psnr": float(float_psnr),
            "drop": float(float_psnr - psnr),
            "fidelity": float(close),
        }

    def _compare(self, content, pair, expected):
        received = check.Runner(content)(pair.ilr)
        return (
            metrics.measured_psnr(pair.hr, received, self.scale),
            metrics.measured_psnr(pair.hr, expected, self.scale),
            fidelity(np.clip(expected, 0.0, 1.0), np.clip(received, 0.0, 1.0)),
        )


def representative_patches(folder, scale, channels):
    """ILR patches that calibration looks at: random ones, the flattest, the darkest, the brightest, black and white.

    Args:
        folder: of at least MIN_IMAGES photographs that are CALIBRATION_SIDE pixels or longer on both sides.
        scale: 2, 3 or 4.
        channels: 1 or 3.

    Returns:
        float32 (count, CALIBRATION_SIDE, CALIBRATION_SIDE, channels).

    Raises:
        UserError: no folder was named, or it has too few images.
    """
    side = CALIBRATION_SIDE
    if not folder:
        raise UserError(
            "int8 and int16x8 measure the ranges of their tensors on photographs; expected --representative_dir, "
            "a folder of training images (never of test images)."
        )
    paths = image_files.list_images(folder)
    if len(paths) < MIN_IMAGES:
        raise UserError(f"{folder} has too few images to be representative: expected {MIN_IMAGES}, found {len(paths)}.")
    pairs = load_pairs(paths, scale, channels, side)
    if len(pairs) < MIN_IMAGES:
        raise UserError(
            f"{folder} has too few images of {side}x{side} pixels or more: expected {MIN_IMAGES}, found {len(pairs)}."
        )
    patches = np.stack(
        [
            pair.ilr[row : row + side, column : column + side]
            for pair in pairs
            for row in range(0, pair.ilr.shape[0] - side + 1, side // 2)
            for column in range(0, pair.ilr.shape[1] - side + 1, side // 2)
        ]
    )
    contrast, brightness = np.std(patches, axis=(1, 2, 3)), np.mean(patches, axis=(1, 2, 3))
    random = np.random.default_rng(0).permutation(len(patches))[:PATCHES]
    chosen = [
        random,
        np.argsort(contrast)[:EXTREMES],
        np.argsort(brightness)[:EXTREMES],
        np.argsort(brightness)[-EXTREMES:],
    ]
    real = patches[np.unique(np.concatenate(chosen))]
    constant = np.stack([np.full(real.shape[1:], level, np.float32) for level in (0.0, 0.5, 1.0)])
    return np.concatenate([real, constant])


def golden_inputs(pipeline, scale, height, width):
    """Test inputs of one file's size.

    Returns:
        (names, inputs): patches of scikit-image's photographs, black, white, a gradient, noise.
    """
    _, rows, columns, channels = pipeline.shape(height, width)
    random = np.random.default_rng(0)
    factor = scale if pipeline.kind == "rgb" else 1
    cases = {}
    for index, photograph in enumerate(_photographs(channels)):
        hr = _grown(photograph, factor * rows, factor * columns)
        if factor > 1:
            patch = image.shrink(hr, scale)
        else:
            patch = image.enlarge(image.shrink(image.mod_crop(hr, scale), scale), scale)
        cases[f"patch_{index}"] = np.clip(patch, 0.0, 1.0)
    ramp = np.linspace(0.0, 1.0, columns)[None, :, None] * np.linspace(0.25, 1.0, rows)[:, None, None]
    shape = (rows, columns, channels)
    cases["black"], cases["white"] = np.zeros(shape), np.ones(shape)
    cases["gradient"] = np.broadcast_to(ramp, shape)
    cases["noise"] = random.random(shape)
    inputs = np.stack(list(cases.values()))
    if pipeline.kind == "rgb":
        inputs = np.round(255.0 * inputs)
    return list(cases), inputs.astype(pipeline.dtype)


def _photographs(channels):
    """Real images that scikit-image's wheel holds, in [0, 1]: (height, width, channels)."""
    import skimage.data

    folder = os.path.dirname(skimage.data.__file__)
    for name, row, column in (("astronaut.png", 0, 150), ("chelsea.png", 60, 100), ("coffee.png", 100, 200)):
        pixels = image_files.read_image(os.path.join(folder, name))[row:, column:]
        yield (image.luma(pixels)[..., None] if channels == 1 else pixels) / 255.0


def _grown(photograph, height, width):
    """Its first height x width pixels, mirrored on where it is too small."""
    rows, columns = (max(0, wanted - there) for wanted, there in zip((height, width), photograph.shape, strict=False))
    return np.pad(photograph, ((0, rows), (0, columns), (0, 0)), mode="symmetric")[:height, :width]


def define_flags(values=flags.FLAGS):
    """Adds the command's flags to `values`."""

    def define(kind, *arguments, **options):
        getattr(flags, f"DEFINE_{kind}")(*arguments, flag_values=values, **options)

    define("string", "model", None, "a DRCN .keras file, or a preset such as mobile-x2", required=True)
    define("string", "output", None, "folder that the files are written to", required=True)
    define("list", "mode", ["float32"], f"comma-separated: {', '.join(quantize.MODES)}")
    define("list", "pipeline", ["luma"], "luma: ILR to SR; rgb: 8-bit LR to 8-bit SR, everything in the graph")
    define("integer", "lr_height", 64, "pixels of the low-resolution image", lower_bound=1)
    define("integer", "lr_width", 64, "pixels of the low-resolution image", lower_bound=1)
    define("bool", "dynamic_shape", False, "let the file take any size, for runtimes that resize")
    define("enum", "rgb_dtype", "uint8", ["uint8", "float32"], "ends of the rgb pipeline; browsers want float32")
    define("string", "representative_dir", "", "training photographs; int8 and int16x8 need them")
    define("string", "test_dir", "", "original photographs to measure the luma files on")
    define("bool", "overwrite", False, "replace files that exist")


def known(name, values, choices):
    """The values of a list flag without repetition. Raises UserError for one that is no choice."""
    unknown = [value for value in values if value not in choices]
    if unknown or not values:
        raise UserError(f"--{name} must be of {', '.join(choices)}; received {', '.join(unknown) or 'nothing'}.")
    return list(dict.fromkeys(values))


def main(argv):
    errors.refuse_arguments(argv)
    settings = flags.FLAGS
    if not settings["verbosity"].present:
        logging.set_verbosity(logging.ERROR)  # TensorFlow tells how it writes SavedModels.
    modes = known("mode", settings.mode, quantize.MODES)
    pipelines = known("pipeline", settings.pipeline, PIPELINES)
    exporter = Exporter(
        load(settings.model),
        path_of(settings.model),
        settings.lr_height,
        settings.lr_width,
        settings.dynamic_shape,
        settings.representative_dir,
        settings.rgb_dtype,
    )
    manifests = export(exporter, settings.output, pipelines, modes, settings.test_dir, settings.overwrite)
    for manifest in manifests:
        print(os.path.join(settings.output, manifest["model"]["file"]))


if __name__ == "__main__":
    define_flags()
    errors.run(main)
