"""The tutorial notebook: its committed outputs, and its execution."""

import json
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"


def printed_texts(notebook):
    """Yield the printed output of all cells."""
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            yield "".join(output.get("text", ()))


def test_committed_outputs_have_no_errors_or_machine_paths():
    notebook = json.loads(NOTEBOOK.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(code) >= 8
    for cell in code[1:]:
        assert cell["outputs"], "".join(cell["source"])
        assert not {output["output_type"] for output in cell["outputs"]} & {"error"}
        assert not [o for o in cell["outputs"] if o.get("name") == "stderr"]
    shown = "\n".join(printed_texts(notebook))
    for trace in ("/root", "/home", "/tmp", "Warning", "\x1b"):
        assert trace not in shown
    assert NOTEBOOK.stat().st_size < 600_000
    for line in "\n".join("".join(c["source"]) for c in notebook["cells"]).split("]("):
        link = line.split(")")[0]
        if link.endswith(".md") and " " not in link:
            assert (NOTEBOOK.parent / link).is_file(), link


@pytest.mark.slow
def test_notebook_runs(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    nbformat = pytest.importorskip("nbformat")
    # The notebook's `ssd-jax` is the program of this interpreter.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    monkeypatch.setenv("PATH", path)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    notebook = nbformat.read(NOTEBOOK, 4)
    client = nbclient.NotebookClient(
        notebook,
        timeout=900,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    for cell in notebook.cells:
        assert not [o for o in cell.get("outputs", ()) if o.get("name") == "stderr"]
    lines = [
        json.loads(line)
        for line in (tmp_path / "runs/tutorial/metrics.jsonl").read_text().splitlines()
    ]
    # Usually 0.69; an untrained network has 0.
    assert lines[-1]["mAP"] > 0.5
    assert (tmp_path / "runs/tutorial/eval/400/report.html").is_file()
    assert "costs" in "\n".join(printed_texts(notebook))
