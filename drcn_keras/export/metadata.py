"""What a .tflite file says of itself, inside itself, for whoever has the file and not the manifest beside it.

The file format has named metadata buffers; `NAME` is ours and holds one JSON object in UTF-8. `tflite-support`, the
library of Google's own TFLite Metadata, is no longer built for the Python versions that this package runs on.
"""

import json
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

import drcn_keras
from drcn_keras.export import flatbuffer
from drcn_keras.export.pipeline import Pipeline, input_digits
from drcn_keras.model import DRCN

NAME = b"drcn_keras"


def describe(model: DRCN, pipeline: Pipeline, mode: str, license_name: str) -> dict[str, Any]:
    """What the file is to say.

    Returns:
        dict: format (1), pipeline, mode, scale, channels; value_range, [black, white] at input and output; digits, in
        how many to base 256 an input's value comes, where that is not one; halo, pixels of the input around an output
        pixel that it depends on; filters, recursions; license, "" where it is unknown; made_by.
    """
    digits = input_digits(pipeline.kind, mode)
    return {
        "format": 1,
        "pipeline": pipeline.kind,
        "mode": mode,
        "scale": model.scale,
        "channels": pipeline.input_channels,
        "value_range": [0.0, 1.0] if pipeline.kind == "luma" else [0, 255],
        **({"digits": digits} if digits > 1 else {}),
        "halo": pipeline.halo,
        "filters": model.filters,
        "recursions": model.recursions,
        "license": license_name,
        "made_by": f"drcn_keras {drcn_keras.__version__}",
    }


def attach(content: bytes, about: dict[str, Any]) -> bytes:
    """A .tflite file with `about` in its metadata, and a line for those who open it in a viewer."""
    model = flatbuffer.read(content)
    model.description = (
        f"DRCN super-resolution x{about['scale']}, {about['pipeline']}, {about['mode']}; values from "
        f"{about['value_range'][0]:g} to {about['value_range'][1]:g}; halo {about['halo']} pixels of the input"
    ).encode()
    model.buffers.append(schema.BufferT(data=np.frombuffer(json.dumps(about).encode(), np.uint8)))
    entry = schema.MetadataT(name=NAME, buffer=len(model.buffers) - 1)
    model.metadata = [*(model.metadata or []), entry]
    return flatbuffer.write(model)


def read(content: bytes) -> dict[str, Any]:
    """What `attach` put into a file. Raises KeyError where there is nothing."""
    model = flatbuffer.read(content)
    for entry in model.metadata or []:
        if entry.name == NAME:
            return json.loads(bytes(np.asarray(model.buffers[entry.buffer].data, np.uint8)))
    raise KeyError(NAME.decode())
