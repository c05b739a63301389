"""Runs the notebooks of examples/ from the first cell to the last.

python tests/notebooks.py      # writes the outputs into the notebooks, as they are to be committed
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ("quickstart", "your_own_data", "one_passage", "your_own_method")


def stored(name: str) -> nbformat.NotebookNode:
    return nbformat.read(path_of(name), as_version=4)


def path_of(name: str) -> Path:
    return ROOT / "examples" / f"{name}.ipynb"


def set_variables(notebook: nbformat.NotebookNode, variables: Mapping[str, str]) -> None:
    """Gives variables at the beginning of a line other values; each must be set exactly once."""
    for variable, value in variables.items():
        found = 0
        for cell in notebook.cells:
            lines = cell.source.split("\n")
            places = [
                i for i, line in enumerate(lines) if cell.cell_type == "code" and line.startswith(f"{variable} =")
            ]
            for i in places:
                lines[i] = f"{variable} = {value}"
            cell.source, found = "\n".join(lines), found + len(places)
        assert found == 1, f"{variable} is set {found} times"


def execute(notebook: nbformat.NotebookNode, folder: Path, cache: str | None = None) -> nbformat.NotebookNode:
    """The notebook with its outputs; what it writes lies in the folder, but for the caches if they have their own."""
    place = folder / "examples"
    place.mkdir(parents=True)
    known = {
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "MAW_CACHE": cache or str(folder / "cache"),
    }
    known |= {"IPYTHONDIR": str(folder / "ipython"), "MPLCONFIGDIR": str(folder / "matplotlib")}
    resources = {"metadata": {"path": str(place)}}
    with mock.patch.dict(os.environ, known):
        return NotebookClient(notebook, timeout=600, resources=resources, record_timing=False).execute()


if __name__ == "__main__":
    for each in sys.argv[1:] or NOTEBOOKS:
        with tempfile.TemporaryDirectory() as temporary:
            content = nbformat.writes(execute(stored(each), Path(temporary)))
            path_of(each).write_text(content.replace(f"{temporary}/", "../"), encoding="utf-8")  # as in a clone
