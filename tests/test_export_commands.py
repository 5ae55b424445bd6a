"""The export commands: what they need, and what they say of it."""

import subprocess
import sys

import pytest

COMMANDS = {"tflite": ("ai_edge_litert", "tflite"), "saved_model": ("tensorflow_serving", "serving")}


def command(name, *arguments, missing=None):
    """Runs one in a process of its own, where the package `missing` cannot be imported."""
    code = f"""
import sys
class Missing:
    def find_spec(name, path=None, target=None):
        if name == {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing)
sys.argv[0] = "drcn-export"
from drcn_keras.export.{name} import run
try:
    run()
finally:
    print(sorted({{"keras", "tensorflow"}} & set(sys.modules)))
"""
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_missing_extra_is_one_line_that_names_it(name, tmp_path):
    module, extra = COMMANDS[name]
    if name == "saved_model":
        pytest.importorskip("tensorflow", reason="a SavedModel needs TensorFlow")
    done = command(name, "--model=mobile-x2", f"--output={tmp_path / 'out'}", missing=module)
    assert done.returncode == 1
    assert done.stderr == f"drcn-export: error: {module} is not installed: pip install 'drcn_keras[{extra}]'.\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_quick_and_names_presets(name):
    done = command(name, "--help")
    assert "a preset such as mobile-x2" in " ".join(done.stdout.split())
    assert done.stdout.strip().endswith("[]"), "help loads neither Keras nor TensorFlow"
    assert done.stderr == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_wrong_is_told_as_a_flag(name, tmp_path):
    wrong = {"tflite": "--mode=int4", "saved_model": "--warmup_sizes=64"}[name]
    done = command(name, "--model=mobile-x2", f"--output={tmp_path / 'out'}", wrong)
    assert done.returncode == 1
    assert done.stderr.startswith(f"drcn-export: error: {wrong.partition('=')[0]} must be ")
    assert done.stderr.count("\n") == 1
    empty = command(name, "--model=mobile-x2", "--output=")
    assert (empty.returncode, empty.stderr) == (
        2,
        "drcn-export: error: --output is required (--help lists every flag)\n",
    )
    # The memory of that size is not to be had.
    huge = command(
        name, "--model=mobile-x2", "--output=x", {"tflite": "--lr_width", "saved_model": "--tile"}[name], "9999"
    )
    assert huge.returncode == 2
    assert "is not an integer in the range [1, 4096]" in huge.stderr
