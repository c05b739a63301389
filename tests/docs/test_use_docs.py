"""Every command and every line of Python in docs/use.md works as written, after a run, without a network."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import textwrap
from pathlib import Path

import pytest

import tier_1

DOCS = Path(__file__).parents[2] / "docs" / "use.md"
SHELL = ("python tier_1.py ", "pip install ")
NO_NETWORK = "needs a network"


def blocks():
    """The indented blocks of the page, in order."""
    parts = re.split(r"\n(?! {4}|\n)", DOCS.read_text())
    found = []
    for part in parts:
        lines = [line for line in part.split("\n") if line.startswith("    ") or not line.strip()]
        if any(line.strip() for line in lines):
            found.append(textwrap.dedent("\n".join(lines)).strip())
    return found


@pytest.fixture
def place(tiny_run, models, tmp_path, monkeypatch):
    """A folder in which a run has been done, and where the page's names of models and data mean tiny ones."""
    shutil.copytree(tiny_run, tmp_path / "logs" / "tier1")
    checkpoints = tmp_path / "logs" / "tier1" / "checkpoints"
    (checkpoints / "beir_small_maw_best").rename(checkpoints / "pystdlib_maw_best")
    (checkpoints / "beir_small_maw_best").symlink_to(checkpoints / "pystdlib_maw_best")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAW_CACHE", str(tmp_path / "maw-cache"))
    return {'"facebook/contriever"': repr(str(models("bert")))}


def test_all_of_the_page_runs(place, capsys):
    commands, names = [], {}
    for block in blocks():
        if block.startswith(SHELL):
            for line in block.splitlines():
                assert line.startswith(SHELL)
                if NO_NETWORK in line:
                    continue
                words = shlex.split(line)[2:]
                commands.append(words[0])
                status = tier_1.main(words)
                # The default model and datasets are not on every machine; the doctor then says so.
                assert status == 0 or words == ["doctor"], capsys.readouterr()
            continue
        if "import mteb" in block and importlib.util.find_spec("mteb") is None:
            block = block.replace("import mteb\n", "")
        for written, meant in place.items():
            block = block.replace(written, meant)
        exec(compile(block, str(DOCS), "exec"), names)
    assert commands == ["doctor", "doctor", "search", "search", "export", "export", "completion", "completion"]
    assert names["scores"].shape == (1, 2) and names["maps"].shape[:2] == (2, 2)
    assert Path("my-export", "modeling_maw.py").is_file() and Path("my-depths", "maw.json").is_file()


def test_a_command_that_does_not_work_would_be_noticed(place, monkeypatch, capsys):
    monkeypatch.setattr(f"{__name__}.blocks", lambda: ["python tier_1.py search logs/tier1 word --method nosuch"])
    with pytest.raises(AssertionError):
        test_all_of_the_page_runs(place, capsys)


def test_what_needs_a_network_is_said_where_it_stands():
    installs = [line for block in blocks() for line in block.splitlines() if line.startswith("pip install")]
    assert installs and all(NO_NETWORK in line for line in installs)
