"""Networks made ready to be asked again and again."""

import concurrent.futures
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from kit import ENVIRONMENT

from drcn_keras.graphs import compiled, frozen
from drcn_keras.inference import inference_model, recursions_model
from drcn_keras.tiling import restoring

IN_TENSORFLOW = keras.backend.backend() == "tensorflow"
MEMORY = """
import numpy as np
from drcn_keras import DRCN, upscale

def resident():
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("VmRSS")).split()[1]) / 1024

model = DRCN(recursions=9, filters=32, scale=2)
sizes = [(8 + number % 20, 8 + number // 20) for number in range(240)]
for number, size in enumerate(sizes):
    upscale(np.zeros(size, np.uint8), model)
    if number == 80:
        before = resident()
print(resident() - before)
"""


@pytest.fixture
def ilr():
    return np.random.default_rng(1).random((2, 17, 23, 1), np.float32)


@pytest.mark.parametrize("make", [frozen, compiled])
@pytest.mark.parametrize("network", [inference_model, recursions_model])
def test_it_gives_what_the_network_gives(random_drcn, ilr, make, network):
    model = network(random_drcn())
    ready = make(model)
    for part in (ilr, ilr[:1], ilr[:, :1, :1]):
        expected = keras.ops.convert_to_numpy(model(part))
        np.testing.assert_allclose(ready.predict_on_batch(part), expected, atol=2e-6)


def test_a_frozen_one_keeps_its_weights_and_a_compiled_one_follows(random_drcn, ilr):
    if not IN_TENSORFLOW:
        pytest.skip("only TensorFlow's graph is frozen")
    network = inference_model(random_drcn())
    still, live = frozen(network), compiled(network)
    before = still.predict_on_batch(ilr)
    network.set_weights([0.5 * weight for weight in network.get_weights()])
    np.testing.assert_array_equal(still.predict_on_batch(ilr), before)
    after = keras.ops.convert_to_numpy(network(ilr))
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(live.predict_on_batch(ilr), after, atol=2e-6)


def test_every_call_and_every_thread_gives_the_same_bits(random_drcn, ilr):
    network = restoring(frozen(inference_model(random_drcn())))
    first = network(ilr[0])
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        for answer in threads.map(network, [ilr[0]] * 12):
            np.testing.assert_array_equal(answer, first)


def test_an_error_of_the_graph_reaches_the_caller(random_drcn):
    network = frozen(inference_model(random_drcn()))
    with pytest.raises(Exception, match=r"channel|depth|shape|Cannot feed"):
        network.predict_on_batch(np.zeros((1, 8, 8, 2), np.float32))


def test_memory_does_not_grow_with_the_number_of_sizes():
    """160 sizes more took 75 MB while TensorFlow's own threads kept a convolution for every one."""
    if not (IN_TENSORFLOW and pathlib.Path("/proc/self/status").is_file()):
        pytest.skip("TensorFlow's cache, as Linux tells the memory of a process")
    command = [sys.executable, "-c", MEMORY]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT)
    assert float(result.stdout) < 25
