"""The notebook runs from its first cell to its last, and what it shows came from such a run."""

import os
import pathlib

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOK = pathlib.Path(__file__).parent.parent / "docs" / "first_network.ipynb"
# Minutes become seconds: a network of a few hundred numbers, two steps, one photograph to measure.
SMALL = """
minutes, epochs, steps_per_epoch = 1, 1, 2
filters, recursions = 4, 2
patch_size, batch_size = 16, 2
train_names = ["camera.png", "coins.png", "moon.png"]
test_names = ["coffee.png"]
"""


def test_it_runs_to_an_exported_file(tmp_path, monkeypatch):
    pytest.importorskip("ai_edge_litert", reason="needs pip install 'drcn_keras[tflite]'")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(NOTEBOOK.parents[1]), os.getenv("PYTHONPATH")))))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    parameters.source = SMALL
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    said = "\n".join(output.text for cell in notebook.cells for output in cell.get("outputs", ()) if "text" in output)
    assert "train 3 photographs" in said
    assert "recursions 1 to 2: " in said
    assert "float32.tflite: " in said


def test_what_it_shows_is_a_whole_run():
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    text = "\n".join(output.get("text", "") for cell in cells for output in cell.outputs)
    assert "float16.tflite: " in text
    assert "Error" not in text
