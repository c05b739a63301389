"""The notebooks of examples/ run to the end, and their stored outputs come from one whole run."""

from __future__ import annotations

import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from notebooks import NOTEBOOKS, execute, path_of, set_variables, stored

SMALL = {
    "quickstart": {"TRAIN, VALIDATION, TEST": "16, 12, 24", "PASSAGES": "60", "TOKENS": "16", "EPOCHS": "1"},
    "your_own_data": {"PARAGRAPHS": "1", "TOKENS": "16"},
    "one_passage": {"TOKENS": "16", "EPOCHS": "1"},
    "your_own_method": {"TRAIN, VALIDATION, TEST": "16, 12, 24", "PASSAGES": "60", "TOKENS": "16", "EPOCHS": "1"},
}
BARS = """from maw.runtime import console, progress_bars
progress_bars.DELAY = 0
for _ in progress_bars.track(range(3), "training", "batch"):
    console.write_line("a message")
"""
WIDGET = "application/vnd.jupyter.widget-view+json"
MACHINE = re.compile(r"/(home|root|tmp|work|Users|usr|opt)/|[A-Z]:\\")


def outputs(notebook, cell=None):
    cells = [each for each in notebook.cells if each.cell_type == "code"]
    return [output for each in (cells if cell is None else [cells[cell]]) for output in each.outputs]


def text_of(found):
    return "\n".join(each.get("text", "") + each.get("data", {}).get("text/plain", "") for each in found)


@pytest.fixture(scope="module")
def done(tmp_path_factory, library_cache):
    """The notebooks, small, and one with a bar, after a run of all of them in one kernel, which forgets in between."""
    found = {name: stored(name) for name in NOTEBOOKS} | {"bars": new_notebook(cells=[new_code_cell(BARS)])}
    for name, variables in SMALL.items():
        set_variables(found[name], variables)
    for name, each in found.items():
        for cell in each.cells:
            cell.id = f"{name}-{cell.id}"  # which stands once in a notebook
    folder = tmp_path_factory.mktemp("notebooks")
    first = folder / "ipython" / "profile_default" / "startup" / "undrawn.py"  # which the kernel runs at its start
    first.parent.mkdir(parents=True)
    first.write_text("import maw.report.rebuild\nmaw.report.rebuild._draw = lambda *_: None  # takes long\n")
    cells = [cell for each in found.values() for cell in (new_code_cell("%reset -f"), *each.cells)]
    execute(new_notebook(cells=cells), folder, library_cache)
    return found


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_runs(name, done):
    found = outputs(done[name])
    assert "Warning" not in text_of(each for each in found if each.get("name") == "stderr"), "of a library"
    shown = text_of(found)
    if name == "one_passage":
        assert "texts, heads, queries, keys, depths: (1, 12, 16, 16, 8)" in shown
        rows = re.findall(r"^[0-7] +(?:[\d.]+ +){2}-?[\d.]+ +\d+ *$", text_of(outputs(done[name], -1)), re.M)
        assert len(rows) == 8, "depths"
        assert sum("image/png" in each.get("data", {}) for each in found) == 2
        return
    for words in ("Zero-shot (No Training)", "LoRA Fine-tuned", "MAW Fine-tuned (GRPO on last layer)", "ndcg_cut_10"):
        assert words in shown
    if name == "quickstart":
        assert "texts, heads, queries, keys, depths: (4, 12, 7, 7, 8)" in shown
        assert sum("image/png" in each.get("data", {}) for each in found) == 2
    elif name == "your_own_method":
        assert "Bottleneck" in shown and "DoRA (PEFT)" in shown and "bottleneck_vs_lora" in shown
    else:
        assert len(re.findall(r"^\d+ +[\w-]+-0 +\d", text_of(outputs(done[name], -1)), re.M)) == 5, "five passages"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_is_stored_is_one_whole_run(name):
    notebook = stored(name)
    nbformat.validate(notebook)
    code = [each for each in notebook.cells if each.cell_type == "code"]
    assert [each.execution_count for each in code] == list(range(1, len(code) + 1))
    found = outputs(notebook)
    assert found and not [each for each in found if each.output_type == "error" or each.get("name") == "stderr"]
    content = path_of(name).read_text()
    assert not MACHINE.search(content) and len(content) < 300_000
    assert "widgets" not in notebook.metadata and WIDGET not in content


def test_bars_are_widgets_in_a_notebook(done):
    found = outputs(done["bars"])
    (bar,) = [each for each in found if WIDGET in each.get("data", {})]
    assert "training:   0%|" in bar.data["text/plain"] and "0/3" in bar.data["text/plain"]
    assert text_of(each for each in found if each.output_type == "stream").count("a message\n") == 3
