"""The pipeline that upscales images on Apache Beam, and what its workers do; `batch` runs it.

Images are read and written by Beam's own file systems, so a folder, gs://, s3:// and hdfs:// are alike.
"""

import io
import json
import os
import posixpath
import re
import tempfile
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.io.fileio import MatchFiles
from apache_beam.io.filesystems import FileSystems
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineRunner
from apache_beam.utils.shared import Shared

from drcn_keras.commands import prepare_tensorflow
from drcn_keras.errors import UserError
from drcn_keras.image_files import read_pixels
from drcn_keras.image_writing import write_pixels
from drcn_keras.inputs import loaded
from drcn_keras.sizes import enlargement
from drcn_keras.tiling import upscaled

COUNTERS = "drcn_keras"  # Their namespace.
PARTIAL = ".partial-"
_BAD = "bad"


class Upscale(beam.DoFn):
    """Upscales one image, unless its result is there.

    Elements: (path of the result, paths of the images that would become it). Yields nothing; for an image that
    cannot be upscaled a line of JSON, {"image", "reason"}, in the output "bad". Counts "upscaled", "present", "bad"
    and the results' "pixels".

    Args:
        model: the bytes of a `.keras` file.
        scale, tile, precision: as `drcn_keras.upscale` takes them.
    """

    def __init__(self, model: bytes, scale: float | None = None, tile: int | None = None, precision: str = "float32"):
        self.contents = model
        self.scale = scale
        self.tile = tile
        self.precision = precision
        self.shared = Shared()

    def setup(self):
        # One model for all threads of a process, whatever their number.
        self.network = self.shared.acquire(lambda: _Network(self.contents))

    def process(self, element: tuple[str, Any]) -> Iterator[Any]:
        target, sources = element[0], sorted(element[1])
        if len(sources) > 1:
            reason = f"{' and '.join(sources)} would all become {target}"
            yield from (_bad(source, reason) for source in sources)
        elif FileSystems.exists(target):
            _count("present")
        else:
            try:
                result = self._upscaled(sources[0])
            except Exception as error:  # Decoders and file systems raise many kinds; one image stops no other.
                kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
                yield _bad(sources[0], kind + str(error))
            else:
                write_whole(target, result)
                _count("upscaled")

    def _upscaled(self, source):
        """The PNG of an upscaled image, as bytes."""
        with tempfile.TemporaryDirectory() as folder:
            # Pictures are read from files: some readers go back and forth in them.
            copy = os.path.join(folder, posixpath.basename(source))
            with FileSystems.open(source) as remote, open(copy, "wb") as file:
                file.write(remote.read())
            try:
                pixels, profile = read_pixels(copy)
            except UserError as error:
                raise UserError(str(error).removeprefix(f"{copy}: ")) from error
        with self.network.lock:
            model = self.network.model
            factor = enlargement(model, pixels.shape, self.scale)
            result = upscaled(pixels, model, factor, self.tile, precision=self.precision)
        _count("pixels", result.shape[0] * result.shape[1])
        encoded = io.BytesIO()
        write_pixels(encoded, "result.png", result, profile)
        return encoded.getvalue()


class _Network:
    """A model out of its file's bytes; the lock is for whoever computes with it."""

    def __init__(self, contents):
        prepare_tensorflow()
        self.lock = threading.Lock()
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "model.keras")
            with open(path, "wb") as file:
                file.write(contents)
            self.model = loaded(path)


def _bad(source, reason):
    _count("bad")
    return beam.pvalue.TaggedOutput(_BAD, json.dumps({"image": source, "reason": " ".join(reason.split())}))


def _count(name, number=1):
    Metrics.counter(COUNTERS, name).inc(number)


def write_whole(path: str, contents: bytes) -> None:
    """Puts a file under its name in one step: another process may write the same one at the same time."""
    temporary = posixpath.join(posixpath.dirname(path), f"{PARTIAL}{uuid.uuid4().hex}")
    with FileSystems.create(temporary, mime_type="application/octet-stream") as file:
        file.write(contents)
    FileSystems.rename([temporary], [path])


def _write_lines(lines, path):
    if FileSystems.exists(path):  # Of an earlier run; not every file system renames over a file.
        FileSystems.delete([path])
    write_whole(path, "".join(f"{line}\n" for line in sorted(lines)).encode())


def target_of(source: str, pattern: str, output: str) -> str:
    """Where the result of an image goes: below `output` as the image lies below the pattern's fixed folders, as PNG."""
    fixed = posixpath.dirname(re.split(r"[*?\[]", pattern, maxsplit=1)[0])
    return posixpath.join(output, posixpath.splitext(posixpath.relpath(source, fixed or "."))[0] + ".png")


def pipeline(
    options: PipelineOptions,
    upscale: Upscale,
    pattern: str,
    output: str,
    bad_file: str,
    runner: PipelineRunner,
) -> beam.Pipeline:
    """The whole work as a Beam pipeline, ready to run.

    Args:
        options: Beam's.
        upscale: what is done to an image.
        pattern: of the images.
        output: folder of the results.
        bad_file: for the images that cannot be upscaled.
        runner: Beam's, where it runs.
    """
    work = beam.Pipeline(runner=runner, options=options)
    found = (
        work
        | "find" >> MatchFiles(pattern)
        | "name" >> beam.Map(lambda file: (target_of(file.path, pattern, output), file.path))
        # Two images of one result meet here; and the work is dealt out anew, not in the order of the listing.
        | "meet" >> beam.GroupByKey()
    )
    done = found | "upscale" >> beam.ParDo(upscale).with_outputs(_BAD)
    _ = done[_BAD] | "gather" >> beam.combiners.ToList() | "bad" >> beam.Map(_write_lines, bad_file)
    return work
