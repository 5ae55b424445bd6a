"""The layout's one rule: imports run downward, and each folder keeps to itself."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# A module may import those that stand before it.
ORDER = [
    "errors",
    "entry",
    "process",
    "files",
    "card",
    "image",
    "transparency",
    "color",
    "netpbm",
    "tiff",
    "image_files",
    "image_metadata",
    "image_writing",
    "animation",
    "jobs",
    "lr_files",
    "metrics",
    "layers",
    "losses",
    "soap",
    "distribute",
    "distributed_model",
    "callbacks",
    "model",
    "presets",
    "inputs",
    "widening",
    "commands",
    "checkpoint",
    "safekeeping",
    "run_folder",
    "patch_weights",
    "data",
    "records",
    "settings",
    "precision",
    "inference",
    "graphs",
    "sizes",
    "tiling",
    "teaching",
    "validation",
    "upscaling",
    "upscale",
    "batch_pipeline",
    "batch",
    "beam",
    "published",
    "results",
    "measuring",
    "evaluation",
    "evaluate",
    "refit",
    "average",
    "thinning",
    "training_images",
    "trainer",
    "train",
    "connections",
    "client",
]
# Packages that the core never imports, nor one the other; their modules in the same way.
APART = {
    "export": [
        "names",
        "runner",
        "flatbuffer",
        "quantize",
        "pipeline",
        "metadata",
        "tune",
        "integer",
        "integer_luma",
        "integer_rgb",
        "samples",
        "fidelity",
        "limits",
        "manifest",
        "exporter",
        "tflite_files",
        "tflite",
        "server_images",
        "server_graph",
        "warmup",
        "servable",
        "saved_model",
        "onnx_file",
    ],
    "reporting": ["measured", "tables", "pictures", "plots", "page", "report", "studies", "study"],
}
PACKAGE = ROOT / "drcn_keras"
SOURCES = sorted(path for folder in (PACKAGE, ROOT / "tools", ROOT / "tflite") for path in folder.rglob("*.py"))
PLACES = [("", module) for module in ORDER] + [(home, module) for home, order in APART.items() for module in order]


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


@pytest.mark.parametrize(("home", "order"), [("", ORDER), *APART.items()])
def test_every_module_has_its_place(home, order):
    assert {path.stem for path in (PACKAGE / home).glob("*.py")} - {"__init__"} == set(order)


@pytest.mark.parametrize(("home", "module"), PLACES)
def test_imports_run_downward(home, module):
    order = APART.get(home, ORDER)
    name = f"drcn_keras.{home}" if home else "drcn_keras"
    assert not modules(PACKAGE / home / f"{module}.py", name, order) & set(order[order.index(module) :])


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_packages_apart_are_left_alone(path):
    """The core imports neither the report nor an exporter: it stays light, and trains where their extras are not."""
    home = path.relative_to(PACKAGE).parts[0]
    assert not modules(path, "drcn_keras", set(APART)) - {home}


def test_nothing_imports_the_tools():
    tools = {path.stem for path in (ROOT / "tools").glob("*.py")}
    for path in PACKAGE.rglob("*.py"):
        assert not {name.split(".")[0] for name in imported(path)} & ({"tools", "tests"} | tools), path


def test_importing_the_package_loads_neither_keras_nor_tensorflow():
    code = "import sys, drcn_keras; print(sorted({'keras', 'tensorflow', 'jax'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_modules_and_functions_stay_short(path):
    """350 lines a module, 50 a function."""
    text = path.read_text()
    assert len(text.splitlines()) <= 350
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno + 1 <= 50, node.name


def test_the_readme_stays_narrow_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    assert max(map(len, text.splitlines())) <= 120
    for place in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (ROOT / place).exists(), place
