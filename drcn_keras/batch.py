"""Upscales any number of images on Apache Beam; the command is in `beam`, what its workers do in `batch_pipeline`.

A result appears under its name once it is whole, and what is there is not made again: after an interruption the same
command does what is missing. An image that cannot be upscaled is named in a file, with the reason, and stops no other.
"""

import contextlib
import io
import json
import os
import posixpath
import sys
import threading
import time
import zlib

from apache_beam.io.filesystems import FileSystems
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_provision_api_pb2
from apache_beam.runners.portability.fn_api_runner.fn_runner import ExtendedProvisionInfo, FnApiRunner
from apache_beam.runners.portability.portable_runner import JobServiceHandle
from apache_beam.runners.runner import PipelineState, create_runner
from tqdm import tqdm

from drcn_keras.batch_pipeline import COUNTERS, PARTIAL, Upscale, pipeline, target_of, write_whole
from drcn_keras.card import path_of
from drcn_keras.commands import default_model
from drcn_keras.errors import UserError
from drcn_keras.inputs import check_tile, loaded
from drcn_keras.precision import announced
from drcn_keras.sizes import enlargement

_RECORD = ".batch.json"
# A worker that is killed fails the whole run of Beam's local runner. What was made stays, and the next run goes on; so
# many in a row that make nothing are taken for a fault that stays.
_FRUITLESS_RUNS = 2
_LOCAL_RUNNERS = ("DirectRunner", "FnApiRunner")


def batch(
    pattern: str,
    output: str,
    model: str | None = None,
    scale: float | None = None,
    tile: int | None = None,
    precision: str = "float32",
    bad_file: str | None = None,
    beam_flags: tuple[str, ...] = (),
) -> dict[str, int]:
    """Upscales every file that matches a pattern.

    Args:
        pattern: as Beam matches files: * within a folder, ** across folders.
        output: folder of the results, PNG files in a tree like that of the images. No image may lie in it.
        model: what `drcn_keras.load` takes; None: the preset for `scale`.
        scale: the enlargement; None: the model's.
        tile: as in `drcn_keras.upscale`.
        precision: too; "auto" is decided here, for all workers.
        bad_file: for a line of JSON, {"image", "reason"}, for each file that cannot be upscaled; None:
            bad_images.jsonl in `output`. Each run writes it anew.
        beam_flags: Beam's own, such as "--runner=FlinkRunner" or "--direct_num_workers=2".

    Returns:
        {"upscaled", "present", "bad", "pixels"}: images made by the last run, there before, refused; pixels made.

    Raises:
        UserError: no file matches, a setting is wrong, `output` holds results of other settings, or Beam fails.
    """
    options, runner = _options(beam_flags)
    pattern, output = _whole(pattern), _whole(output)
    sources = _sources(pattern, output)
    name = model or default_model(scale)
    network = loaded(name)
    enlargement(network, (1, 1), scale)
    check_tile(tile, network)
    with open(path_of(name), "rb") as file:
        contents = file.read()
    precision = announced(precision)
    record = {"model": zlib.crc32(contents), "scale": scale or min(network.scales), "precision": precision}
    _check_record(output, record)
    bad_file = bad_file or posixpath.join(output, "bad_images.jsonl")
    targets = {target_of(source, pattern, output) for source in sources}
    counters = _run_to_end(
        lambda: pipeline(options, Upscale(contents, scale, tile, precision), pattern, output, bad_file, runner),
        _Progress(targets, output),
        isinstance(runner, FnApiRunner),
    )
    _remove_partial(output)
    return counters


def _run_to_end(make, shown, local):
    """Runs pipelines of `make` until one ends well. A local one that got anywhere goes on with what is missing."""
    fruitless = 0
    with shown as progress:
        while True:
            before = progress.done
            try:
                return _finished(make())
            except Exception as error:  # Of Beam's own kinds, and whatever a worker raised, as text.
                progress.update()
                fruitless = fruitless + 1 if progress.done == before else 0
                reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
                if not local or fruitless >= _FRUITLESS_RUNS:
                    raise UserError(f"Beam failed; the same command goes on with what is missing: {reason}") from error
                tqdm.write(f"a worker failed ({reason}); going on with what is missing", file=sys.stderr)


def _finished(work):
    """Runs a pipeline to its end and returns its counters."""
    result = work.run()
    state = result.wait_until_finish()
    if state not in (PipelineState.DONE, None):
        raise UserError(f"the job ended as {state}.")
    counters = dict.fromkeys(("upscaled", "present", "bad", "pixels"), 0)
    for counter in result.metrics().query(MetricsFilter().with_namespace(COUNTERS))["counters"]:
        counters[counter.key.metric.name] = counter.result
    return counters


def _options(given):
    """Beam's options and the runner that they mean. Raises UserError where one is wrong or unknown."""
    arguments = list(given)
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if not argument.startswith("--") and (not before.startswith("--") or "=" in before):
            raise UserError(f"unexpected argument {argument!r}; every setting is a --flag (--help lists them).")
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            options = PipelineOptions(arguments)
            chosen = options.get_all_options(retain_unknown_options=True)
            known = PipelineOptions([]).get_all_options()
    except SystemExit as error:
        raise UserError(message.getvalue().strip().splitlines()[-1]) from error
    name = chosen["runner"] or _LOCAL_RUNNERS[0]
    if name not in _LOCAL_RUNNERS:
        # Flags that Beam does not know may be the runner's.
        try:
            return options, create_runner(name)
        except (ValueError, ImportError) as error:
            raise UserError(str(error)) from error
    for name in chosen.keys() - known.keys():
        raise UserError(f"unknown flag --{name} (--help lists every flag; Beam has some more of its own).")
    workers = chosen["direct_num_workers"]
    # Workers tell every step of theirs on standard error.
    settings = {} if chosen["default_sdk_harness_log_level"] else {"default_sdk_harness_log_level": "ERROR"}
    if workers != 1 and chosen["direct_running_mode"] == "in_memory":
        settings["direct_running_mode"] = "multi_processing"
    # Each worker's share of the processor: more threads than cores would wait for each other.
    cores = len(os.sched_getaffinity(0))
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(max(1, cores // (workers or cores))))
    options = PipelineOptions(arguments, **settings)
    return options, _local_runner(options)


def _local_runner(options):
    """What Beam's DirectRunner runs on, made as it makes it: that one would try to fetch a program from the network."""
    settings = JobServiceHandle.encode_pipeline_options(options.get_all_options())
    provision = beam_provision_api_pb2.ProvisionInfo(pipeline_options=settings)
    return FnApiRunner(provision_info=ExtendedProvisionInfo(provision))


def _whole(path):
    """A path from the root on, so that one name has one spelling; those of other file systems are whole."""
    return path if "://" in path else os.path.abspath(path)


def _sources(pattern, output):
    """The files that match. Raises UserError where there are none, or results would become images."""
    if os.path.isdir(pattern):
        raise UserError(f"{pattern} is a folder; expected a pattern: {pattern}/* or {pattern}/**.")
    try:
        (match,) = FileSystems.match([pattern])
    except Exception as error:  # A scheme without a file system, a server that does not answer.
        raise UserError(f"{pattern} cannot be searched: {error}") from error
    sources = [file.path for file in match.metadata_list]
    if not sources:
        raise UserError(f"no file matches {pattern}.")
    inside = [source for source in sources if source.startswith(output.rstrip("/") + "/")]
    if inside:
        raise UserError(f"{inside[0]} matches --input and lies in --output; choose another folder for the results.")
    return sources


def _check_record(output, record):
    """Notes how the results are made. Raises UserError where the folder holds those of other settings."""
    path = posixpath.join(output, _RECORD)
    if not FileSystems.exists(path):
        with contextlib.suppress(OSError):  # It is there.
            FileSystems.mkdirs(output)
        write_whole(path, json.dumps(record).encode())
        return
    with FileSystems.open(path) as file:
        there = json.loads(file.read())
    if there != record:
        raise UserError(
            f"{output} holds results of another model, scale or precision (x{there.get('scale')}, "
            f"{there.get('precision')}); choose another folder."
        )


def _remove_partial(output):
    """Deletes what workers that were killed left half written."""
    (match,) = FileSystems.match([posixpath.join(output, "**")])
    partial = [file.path for file in match.metadata_list if posixpath.basename(file.path).startswith(PARTIAL)]
    if partial:
        FileSystems.delete(partial)


class _Progress:
    """A bar on standard error that counts the results that are there: it works alike for every runner."""

    def __init__(self, targets, output):
        self.targets = targets
        self.pattern = posixpath.join(output, "**")
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        self.bar = tqdm(total=len(self.targets), unit="image", initial=self._there())
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()
        self.update()
        self.bar.close()

    @property
    def done(self):
        return self.bar.n

    def update(self):
        self.bar.update(self._there() - self.bar.n)

    def _there(self):
        (match,) = FileSystems.match([self.pattern])
        return len(self.targets.intersection(file.path for file in match.metadata_list))

    def _watch(self):
        wait = 0.0
        while not self.ended.wait(2.0 + 20.0 * wait):  # A twentieth of the time at most goes into listing.
            started = time.monotonic()
            self.update()
            wait = time.monotonic() - started
