"""Fine-tunes a trained DRCN for 8 bit, zeros or shared weights with tensorflow-model-optimization, and exports it.

python tools/compress.py --model=best.keras --method=qat --train_dir=T91 --output=export
"""

import gzip
import json
import os
import subprocess
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from absl import flags, logging
from keras import ops

from drcn_keras import commands, inference
from drcn_keras.card import path_of
from drcn_keras.commands import FLAGS
from drcn_keras.data import list_folders
from drcn_keras.errors import UserError
from drcn_keras.export import flatbuffer, names, quantize, tflite, tflite_files, tune
from drcn_keras.export.exporter import Compressed, Exporter, Options
from drcn_keras.export.pipeline import Pipeline, to_tflite
from drcn_keras.files import make_folder
from drcn_keras.inputs import load_at
from drcn_keras.layers import CenteredIdentity
from drcn_keras.model import DRCN

METHODS = ("qat", "prune", "cluster", "qat+prune")
# Pruning's polynomial ends below the wish by what rounding to whole weights costs.
SPARSITY_SLACK = 0.01


def compress(model, method, paths, representative, settings):
    """Fine-tunes under a compression, in a process with tf_keras.

    Args:
        model: `DRCN`.
        method: one of METHODS.
        paths: training photographs.
        representative: ILR patches that the 8-bit ranges start from.
        settings: dict with steps, learning_rate, alpha_start, batch_size, patch_size, stride, seed, sparsity, clusters.

    Returns:
        (tuned, network, ranges): the `DRCN` with the new weights, its residual network with the identity taken out
        (exactly the weights that were trained), and for qat the dict of the 8-bit ranges that it trained in, else None.

    Raises:
        UserError: the other process failed, or its network is not the same function.
    """
    network = inference.inference_model(model, residual=True, split_identity=True)
    ranges = {}
    if "qat" in method:
        network = tune.equalize(network, quantize.observe(_luma(model, network), representative))
        ranges = quantize.calibrate(_luma(model, network), representative, "int8")
    request = {**_weights(model, network), **_probe(model)}
    if ranges:
        inside = {name: bounds for name, bounds in ranges.items() if names.role_of(name) in names.QUANTIZED}
        request.update({f"range/{name}": np.array(limits) for name, limits in inside.items()})
    about = {name: getattr(model, name) for name in ("filters", "channels", "scale")}
    about["used"] = inference.used_recursions(model)
    request["settings"] = np.array(json.dumps({**settings, **about, "method": method, "paths": list(paths)}))
    arrays = _run_twin(request)
    logging.info("the tf_keras twin equals the model to %.2g", arrays["difference"])
    return _rebuilt(model, arrays)


def _luma(model, network):
    return to_tflite(Pipeline(model, "luma", network), 16, 16)


def _weights(model, network):
    arrays = {names.ENSEMBLE: ops.convert_to_numpy(model.ensemble_weights)[_used(model)]}
    for name in names.CONVOLUTIONS:
        arrays[names.kernel(name)], arrays[names.bias(name)] = network.get_layer(name).get_weights()
    # The folded network's last bias carries the ensemble's sum.
    last = names.RECONSTRUCTION_2
    arrays[names.bias(last)] = ops.convert_to_numpy(model.get_layer(last).bias)
    return arrays


def _used(model):
    """Indices into the ensemble's weights."""
    return np.array(inference.used_recursions(model)) - 1


def _probe(model):
    ilr = np.random.default_rng(0).random((2, 24, 20, model.channels), np.float32)
    return {
        "probe": ilr,
        "probe_stacked": ops.convert_to_numpy(model.reconstructions(ilr))[:, _used(model)],
        "probe_ensemble": ops.convert_to_numpy(model(ilr)),
    }


def _run_twin(request):
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "compress_twin.py")
    root = os.path.dirname(os.path.dirname(script))
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = os.path.join(folder, "request.npz"), os.path.join(folder, "result.npz")
        np.savez(asked, **request)
        with open(os.path.join(folder, "errors.txt"), "w+") as complaints:
            # The progress bar is the user's; all else is kept for the case of failure.
            stderr = None if sys.stderr.isatty() else complaints
            done = subprocess.run(
                [sys.executable, script, asked, answered],
                stderr=stderr,
                env={**os.environ, "PYTHONPATH": path},
                check=False,
            )
            complaints.seek(0)
            last = complaints.read().strip().splitlines()[-1:]
        if done.returncode:
            raise UserError(f"fine-tuning in tf_keras failed: {' '.join(last) or 'see above'}")
        return dict(np.load(answered, allow_pickle=False))


def _rebuilt(model, arrays):
    tuned = DRCN.from_config(model.get_config())
    identity = ops.convert_to_numpy(CenteredIdentity()(arrays[names.kernel(names.INFERENCE)].shape))
    for name in names.CONVOLUTIONS:
        kernel = arrays[names.kernel(name)] + (identity if name == names.INFERENCE else 0.0)
        tuned.get_layer(name).set_weights([kernel, arrays[names.bias(name)]])
    ensemble = np.zeros(model.recursions, np.float32)
    ensemble[_used(model)] = arrays[names.ENSEMBLE]
    tuned.ensemble_weights.assign(ensemble)
    network = inference.inference_model(tuned, residual=True, split_identity=True)
    # Adding and taking away the identity rounds; the trained values are put back as they are.
    trained = [arrays[part(names.INFERENCE)] for part in (names.kernel, names.bias)]
    network.get_layer(names.INFERENCE).set_weights(trained)
    ranges = {name.removeprefix("range/"): tuple(value) for name, value in arrays.items() if name.startswith("range/")}
    return tuned, network, ranges or None


def findings(content):
    """What compression left in a written file.

    Returns:
        dict: "sparsity", the share of zeros in the heavy kernels; "unique_weights", by layer the number of different
        values; "gzip_bytes".
    """
    kernels = {name.split("/")[0]: kernel for name, kernel in flatbuffer.kernels(content).items()}
    heavy = {name: kernels[name] for name in names.HEAVY}
    zeros = sum(int(np.sum(kernel == 0)) for kernel in heavy.values())
    return {
        "sparsity": zeros / sum(kernel.size for kernel in heavy.values()),
        "unique_weights": {name: len(np.unique(kernel)) for name, kernel in heavy.items()},
        "gzip_bytes": len(gzip.compress(content, mtime=0)),
    }


def check_findings(found, method, settings, mode):
    """Raises UserError when the written file does not hold what the method promised."""
    if "prune" in method and found["sparsity"] < settings["sparsity"] - SPARSITY_SLACK:
        raise UserError(f"the {mode} file is {found['sparsity']:.1%} zeros; expected {settings['sparsity']:.1%}.")
    most = max(found["unique_weights"].values())
    if method == "cluster" and mode in ("float32", "float16") and most > settings["clusters"]:
        raise UserError(
            f"the {mode} file has {most} different weights in a kernel; expected {settings['clusters']}. "
            "Nothing was written."
        )


def define_flags():
    flags.DEFINE_string("model", None, "a DRCN .keras file, or a preset such as mobile-x2")
    flags.DEFINE_enum("scale", None, ["2", "3", "4"], "the one to export of a model of several scales")
    flags.DEFINE_string("output", None, "folder that the files are written to")
    flags.DEFINE_enum("method", None, METHODS, "what to fine-tune for")
    commands.define_folders("train_dir", "folders of training photographs")
    commands.require("model", "output", "method", "train_dir")
    flags.DEFINE_list("mode", [], f"of {', '.join(names.MODES)}; default: int8 after qat, float32 and int8 else")
    flags.DEFINE_list("pipeline", ["luma"], "luma, rgb")
    flags.DEFINE_integer("steps", 1500, "of fine-tuning, for each stage of the method", lower_bound=1)
    flags.DEFINE_float("learning_rate", 1e-4, "of the first step", lower_bound=1e-9)
    flags.DEFINE_float(
        "alpha_start", 0.1, "alpha at first, 0 by half-time; not for qat", lower_bound=0.0, upper_bound=1.0
    )
    flags.DEFINE_integer("batch_size", 16, "patches a step", lower_bound=1)
    flags.DEFINE_integer("patch_size", 41, "pixels", lower_bound=8)
    flags.DEFINE_integer("stride", 21, "pixels from patch to patch", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "of the patches' order", lower_bound=0)
    flags.DEFINE_float("sparsity", 0.5, "share of zeros that pruning reaches", lower_bound=0.0, upper_bound=0.99)
    flags.DEFINE_integer("clusters", 32, "different weights per kernel", lower_bound=2, upper_bound=256)
    tflite.define_size()
    commands.define_folders("data_dir", "folders of original photographs to measure the luma files on")
    flags.DEFINE_bool("overwrite", False, "replace files that exist")


_TRAINING = (
    "steps", "learning_rate", "alpha_start", "batch_size", "patch_size", "stride", "seed", "sparsity", "clusters"
)  # fmt: skip


def main(argv):
    commands.refuse_arguments(argv)
    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.ERROR)
    method = FLAGS.method
    modes = tflite.choose("mode", FLAGS.mode or (["int8"] if "qat" in method else ["float32", "int8"]), names.MODES)
    pipelines = tflite.choose("pipeline", FLAGS.pipeline, names.PIPELINES)
    source = path_of(FLAGS.model)
    model = load_at(source, FLAGS.scale and int(FLAGS.scale))
    training = {name: FLAGS[name].value for name in _TRAINING}
    options = Options(
        lr_height=FLAGS.lr_height,
        lr_width=FLAGS.lr_width,
        representative_dir=FLAGS.train_dir[0],
        label=method.replace("+", "-"),
    )
    first = Exporter(model, source, options)
    tflite_files.refuse_existing(first, FLAGS.output, pipelines, modes, FLAGS.overwrite)
    make_folder(FLAGS.output)  # What would fail at the end fails before the training.
    if FLAGS.data_dir:
        list_folders(FLAGS.data_dir)
    paths = list_folders(FLAGS.train_dir)
    tuned, network, ranges = compress(model, method, paths, first.representative, training)
    exporter = Exporter(tuned, source, options, Compressed(network=network, ranges=ranges, baseline=model))

    def inspect(content, mode):
        found = findings(content)
        check_findings(found, method, training, mode)
        return {**found, "compression": {"method": method, **training}}

    measured_on = FLAGS.data_dir or ()
    manifests = tflite_files.export(exporter, FLAGS.output, pipelines, modes, measured_on, FLAGS.overwrite, inspect)
    for manifest in manifests:
        path = os.path.join(FLAGS.output, manifest["model"]["file"])
        print(
            f"{path}: {manifest['model']['bytes']} bytes, gzip {manifest['gzip_bytes']}, "
            f"{manifest['sparsity']:.1%} zeros, up to {max(manifest['unique_weights'].values())} different weights"
        )


if __name__ == "__main__":
    commands.run(main, define_flags)
