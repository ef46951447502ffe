"""The notebook runs to its end, draws its pictures, and is committed without outputs."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "masking_and_decoding.ipynb"
PNG_START = b"\x89PNG"
LEAST_BYTES = 3000  # an empty pair of axes is smaller
PICTURES = 7  # one for each cell with a figure


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def pictures_of(notebook: nbformat.NotebookNode) -> list[bytes]:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [base64.b64decode(o.data["image/png"]) for o in outputs if "image/png" in o.get("data", {})]


def test_no_outputs_are_committed(notebook):
    nbformat.validate(notebook)
    assert not any(
        cell.outputs or cell.execution_count for cell in notebook.cells if cell.cell_type == "code"
    )


@pytest.mark.slow
def test_notebook_runs(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("MPLBACKEND", raising=False)  # else the cells would have no pictures
    # Its working directory is empty: the notebook must not need the repository's files. An error in a cell raises.
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()

    pictures = pictures_of(notebook)
    assert len(pictures) == PICTURES
    assert all(picture.startswith(PNG_START) and len(picture) > LEAST_BYTES for picture in pictures)
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    loss, guess = map(float, re.search(r"last 25 steps: (.+) nats.*guess: (.+)", printed).groups())
    assert 1 < loss < guess - 1  # else the curve is outside the picture
    assert list(tmp_path.iterdir()) == []
