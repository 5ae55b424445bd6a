"""The layout's one rule: imports run downward, and each folder keeps to itself."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# A module may import those that stand before it.
ORDER = [
    "errors",
    "files",
    "card",
    "image",
    "transparency",
    "image_files",
    "lr_files",
    "metrics",
    "layers",
    "losses",
    "distribute",
    "model",
    "presets",
    "inputs",
    "commands",
    "checkpoint",
    "callbacks",
    "records",
    "run_folder",
    "data",
    "settings",
    "inference",
    "sizes",
    "tiling",
    "validation",
    "upscaling",
    "upscale",
    "published",
    "results",
    "measuring",
    "evaluation",
    "evaluate",
    "trainer",
    "train",
    "connections",
    "client",
]
# What the modules above never import, and what each of these packages needs of the others.
APART = {"export": set(), "reporting": set()}
# The package that writes models for others.
EXPORT_ORDER = [
    "names",
    "runner",
    "flatbuffer",
    "quantize",
    "pipeline",
    "tune",
    "samples",
    "fidelity",
    "limits",
    "manifest",
    "exporter",
    "tflite",
    "server_images",
    "server_graph",
    "warmup",
    "saved_model",
]
EXPORT = ROOT / "drcn_keras" / "export"


def imported(path):
    """Every module that a file imports, at its top or inside a function, as dotted names."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def modules(path, package, known):
    """Those of a package's modules that a file imports."""
    parts = [
        name.removeprefix(f"{package}.").split(".")[0] for name in imported(path) if name.startswith(f"{package}.")
    ]
    return set(parts) & set(known)


@pytest.mark.parametrize(("folder", "order"), [(EXPORT.parent, ORDER), (EXPORT, EXPORT_ORDER)])
def test_every_module_has_its_place(folder, order):
    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} == set(order)


@pytest.mark.parametrize("module", ORDER)
def test_imports_run_downward(module):
    above = set(ORDER[ORDER.index(module) :])
    assert not modules(EXPORT.parent / f"{module}.py", "drcn_keras", ORDER) & above


@pytest.mark.parametrize("module", EXPORT_ORDER)
def test_imports_of_export_run_downward(module):
    above = set(EXPORT_ORDER[EXPORT_ORDER.index(module) :])
    assert not modules(EXPORT / f"{module}.py", "drcn_keras.export", EXPORT_ORDER) & above


@pytest.mark.parametrize("path", sorted((ROOT / "drcn_keras").rglob("*.py")), ids=lambda path: path.stem)
def test_packages_apart_are_left_alone(path):
    """The core imports neither the report nor an exporter: it stays light, and trains where their extras are not."""
    home = path.relative_to(ROOT / "drcn_keras").parts[0]
    allowed = {home} | APART.get(home, set())
    assert not {name.split(".")[1] for name in imported(path) if name.startswith("drcn_keras.")} & (
        set(APART) - allowed
    )


def test_nothing_imports_the_tools():
    tools = {path.stem for path in (ROOT / "tools").glob("*.py")}
    for path in (ROOT / "drcn_keras").rglob("*.py"):
        assert not {name.split(".")[0] for name in imported(path)} & ({"tools", "tests"} | tools), path


def test_importing_the_package_loads_neither_keras_nor_tensorflow():
    code = "import sys, drcn_keras; print(sorted({'keras', 'tensorflow', 'jax'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"
