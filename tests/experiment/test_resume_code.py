"""`--resume` names the file in which the code has changed, in whichever room of the package it lies."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_rooms import ROOMS

ROOT = Path(__file__).resolve().parents[2]

TRY = """
import contextlib, io, json, sys
from pathlib import Path
import tier_1
from maw.config.tier1_config import Tier1Config
from maw.experiment import run_state

config = Tier1Config.from_preset("offline", log_dir="run")
record = run_state.open_run(config, {}).record
found = {}
for name in json.loads(sys.argv[1]):
    path, content = Path(name), Path(name).read_bytes() if Path(name).exists() else None
    path.write_bytes((content or b"") + b"# one more line\\n")
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = tier_1.main(["--resume", "run"]) if run_state.changes(record, config) else 0
    found[name] = [code, [line.split(":")[0] for line in said.getvalue().splitlines() if line.startswith("  code ")]]
    path.write_bytes(content) if content is not None else path.unlink()
print(json.dumps(found))
"""
"""Starts a run, then for each file: adds a line to it, resumes, and takes the line away again."""


@pytest.fixture
def tree(tmp_path):
    """A copy of what a run executes."""
    shutil.copy(ROOT / "tier_1.py", tmp_path)
    shutil.copytree(ROOT / "maw", tmp_path / "maw", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def answers(tree, names):
    """File -> the exit code of `--resume` with one more line in that file, and the files that the refusal names."""
    command = [sys.executable, "-c", TRY, json.dumps(names)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def one_of_each_folder(tree):
    folders = sorted({path.parent for path in (tree / "maw").rglob("*.py")})
    files = [max(folder.glob("*.py"), key=lambda path: path.stat().st_size) for folder in folders]
    return [path.relative_to(tree).as_posix() for path in (*files, tree / "maw" / "errors.py")]


def rooms_of(names):
    return {Path(name).with_suffix("").parts[1] for name in names}


def test_a_changed_line_in_any_room_is_named(tree):
    names = one_of_each_folder(tree)
    assert rooms_of(names) >= set(ROOMS)
    assert answers(tree, names) == {name: [2, [f"  code {name}"]] for name in names}


def test_hashing_one_room_alone_would_be_noticed(tree):
    """Planted: the hashes are those of the folder in which their own file lies."""
    module = tree / "maw" / "experiment" / "run_state.py"
    text = module.read_text()
    assert text.count("Path(__file__).parents[1]") == 1
    module.write_text(text.replace("Path(__file__).parents[1]", "Path(__file__).parents[0]"))
    names = one_of_each_folder(tree)
    refused = [name for name, (code, _) in answers(tree, names).items() if code]
    assert rooms_of(refused) == {"experiment"}


def test_templates_and_style_sheets_change_no_result(tree):
    names = ["maw/report/page.j2", "maw/report/page.html", "maw/report/page.css"]
    assert answers(tree, names) == {name: [0, []] for name in names}
