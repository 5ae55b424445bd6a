"""The names of modes, layers and tensors of the TFLite files: one spelling for all who write or read them.

What the n-th operator of a kind writes is named after its layer ("inference_3"), `STATE` for relu(h + conv(h)),
`WEIGHTED` and `ENSEMBLE` for the sum over recursions. A layer's weights are "<layer>/kernel" and "<layer>/bias".
"""

PIPELINES = ("luma", "rgb")
MODES = ("float32", "float16", "dynamic", "int8", "int8_full", "int16x8")
CALIBRATED = ("int8", "int8_full", "int16x8")
EIGHT_BIT = ("dynamic", *CALIBRATED)

EMBEDDING_1 = "embedding_1"
EMBEDDING_2 = "embedding_2"
INFERENCE = "inference"
RECONSTRUCTION_1 = "reconstruction_1"
RECONSTRUCTION_2 = "reconstruction_2"
ENSEMBLE = "ensemble"
STATE = "state"
WEIGHTED = "weighted"

# Nearly all of the work, and what the 8-bit modes store in 8 bit; the first and the last convolution stay in float.
HEAVY = (EMBEDDING_2, INFERENCE, RECONSTRUCTION_1)
CONVOLUTIONS = (EMBEDDING_1, *HEAVY, RECONSTRUCTION_2)
LAYERS = (*CONVOLUTIONS, ENSEMBLE)
# Whose outputs have an integer grid in int8.
QUANTIZED = (EMBEDDING_1, *HEAVY, STATE)


def tensor(role: str, number: int) -> str:
    """The name of what the `number`-th operator of a role writes, counted from 1: "state_2"."""
    return f"{role}_{number}"


def role_of(name: str) -> str:
    """What stands before a tensor's number: "state" of "state_2"."""
    return name.rpartition("_")[0]


def number_of(name: str) -> int:
    """A tensor's number: 2 of "state_2"."""
    return int(name.rpartition("_")[2])


def pattern(*roles: str) -> str:
    """A regular expression that the names of these roles' tensors match."""
    return f"^({'|'.join(roles)})_"


def kernel(layer: str) -> str:
    """The name of a layer's kernel."""
    return f"{layer}/kernel"


def bias(layer: str) -> str:
    """The name of a layer's bias."""
    return f"{layer}/bias"
