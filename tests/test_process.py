"""Upscaling from several threads and in forked processes."""

import concurrent.futures
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import drcn_keras
from drcn_keras import process
from drcn_keras.errors import UserError

ROOT = Path(__file__).parent.parent
# Forks, waits half a minute at most for the child, and prints what it says; one that does not refuse waits for ever.
FORK = """
import os, select, signal, sys, numpy as np, drcn_keras
from drcn_keras.errors import UserError
import drcn_keras.model
image = np.zeros((6, 5), np.uint8)
def use(what):
    model = drcn_keras.DRCN(recursions=1, filters=1) if what == "build" else inherited
    if what == "call":
        return model(np.zeros((1, 4, 4, 1), "float32"))
    if what == "name":
        return drcn_keras.upscale(image, "mobile-x2")
    if what == "fit":
        model.compile("sgd")
        return model.fit(np.zeros((1, 4, 4, 1), "float32"), np.zeros((1, 4, 4, 1), "float32"), verbose=0)
    if what == "predict":
        return model.predict(np.zeros((1, 4, 4, 1), "float32"), verbose=0)
    if what == "load":
        return drcn_keras.load("mobile-x2")
    return drcn_keras.upscale(image, model)
inherited = None
if sys.argv[1] == "after":
    inherited = drcn_keras.DRCN(recursions=1, filters=1)
    drcn_keras.upscale(image, inherited)
for what in sys.argv[2:]:
    ends = os.pipe()
    child = os.fork()
    if not child:
        try:
            use(what)
            text = "worked"
        except UserError as error:
            text = str(error)
        os.write(ends[1], text.encode())
        os._exit(0)
    ready = select.select([ends[0]], [], [], 30)[0]
    print(what, os.read(ends[0], 1000).decode() if ready else "hangs", flush=True)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


def forked(*arguments):
    """What each forked child printed, in order."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", FORK, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    return result.stdout.strip().splitlines()


def test_a_fork_with_a_model_says_so_instead_of_hanging():
    uses = ["upscale", "call", "fit", "predict", "build", "load", "name"]
    sentence = "this process was forked from one that had a DRCN already, and would hang; start it by"
    lines = forked("after", *uses)
    assert [line[: len(use) + 1 + len(sentence)] for line, use in zip(lines, uses, strict=True)] == [
        f"{use} {sentence}" for use in uses
    ]


def test_a_fork_that_builds_the_first_model_works():
    assert forked("before", "build") == ["build worked"]


def test_one_process_may_claim_again_and_again(monkeypatch):
    process.claim()
    process.claim()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(UserError, match="was forked"):
        process.claim()


@pytest.mark.parametrize("by_name", [False, True])
def test_threads_share_a_model(by_name, random_drcn):
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (8 + number % 5, 9 + number % 3), np.uint8) for number in range(12)]
    model = "mobile-x2" if by_name else random_drcn()
    alone = [drcn_keras.upscale(image, drcn_keras.load(model) if by_name else model) for image in images]
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda image: drcn_keras.upscale(image, model), images))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)
