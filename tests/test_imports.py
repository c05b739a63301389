"""The public names, and lazy imports: torch and other heavy packages are loaded at first use."""

from __future__ import annotations

import gzip
import importlib
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tier_1
from maw.errors import MAWError

ROOT = Path(__file__).resolve().parents[1]
HEAVY = (
    "torch", "transformers", "datasets", "peft", "pytrec_eval", "sentence_transformers", "numpy", "yaml", "jinja2",
)  # fmt: skip
LIGHT = (
    "errors", "config.tier1_config", "models.pretrained", "cli.flags", "experiment.run_state", "runtime.console",
    "runtime.trackers", "cli.commands", "cli.completion", "data.dataset_table",
    "attention.architectures",
)  # fmt: skip
NAMES = [
    "Tier1Config", "run_complete_benchmark", "train_retriever", "evaluate_retriever", "BaselineRetriever",
    "MAWRetriever", "NonMAWEncoder", "MAWWithGRPOEncoder", "MAWAttentionLayer", "GRPORouter", "load_checkpoint",
    "cleanup_checkpoints",
]  # fmt: skip


def python(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh interpreter that knows the project and no network."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120, check=False)


def heavy_after(code: str, *words: str) -> list[str]:
    """The heavy modules that are loaded after `code`."""
    done = python(f"{code}\nimport sys, json\nprint(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))", *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_can_be_imported(name):
    value = getattr(tier_1, name)
    assert callable(value) and value.__name__ == name and value.__doc__


def test_the_public_names_are_listed():
    assert sorted(tier_1.__all__) == sorted(NAMES)
    assert set(NAMES) <= set(dir(tier_1))
    with pytest.raises(AttributeError, match="no attribute 'nosuch'"):
        _ = tier_1.nosuch


def test_importing_everything_gives_every_name(forks):
    code = "from tier_1 import *\nimport tier_1\nassert all(name in globals() for name in tier_1.__all__)"
    done = forks.run("-c", code, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["tier_1", "maw", *(f"maw.{name}" for name in LIGHT)])
def test_importing_loads_nothing_heavy(module):
    assert heavy_after(f"import {module}") == []


def test_the_configuration_is_had_without_anything_heavy():
    assert heavy_after("from tier_1 import Tier1Config\nTier1Config.from_preset('offline')") == []


def test_templates_are_loaded_when_a_page_is_written():
    assert "jinja2" not in heavy_after("import maw.report.html.page")


def test_help_answers_at_once_and_loads_nothing_heavy():
    started = time.perf_counter()
    done = python("import sys, tier_1\nsys.exit(tier_1.main(['--help']))")
    assert time.perf_counter() - started < 5  # under one second where nothing else runs
    assert done.returncode == 0
    assert "--maw-layers" in done.stdout


@pytest.mark.parametrize("command", ["compare", "completion", "export", "report", "search"])
def test_help_and_wrong_use_of_a_command_load_nothing_heavy(command):
    code = f"import sys, tier_1\ntry:\n    tier_1.main([{command!r}, '--help'])\nexcept SystemExit:\n    pass\n"
    code += f"assert tier_1.main([{command!r}, '--nosuch']) == 2\nassert 'shtab' not in sys.modules"
    assert heavy_after(code) == []


def test_wrong_flags_exit_with_2_before_anything_heavy_is_loaded():
    code = (
        "import sys, tier_1\n"
        "status = tier_1.main(['--preset', 'offline', '--seed', 'x', '--maw-layers', '7', '--bach-size', '2'])\n"
        f"print(status, [m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = python(code)
    assert done.stdout == "2 []\n"
    assert done.stderr.splitlines() == [
        "tier_1.py: cannot run:",
        "--bach-size: no such flag (did you mean --batch-size?)",
        "--seed: must be a whole number, got 'x'",
        "--maw-layers: no layer 7 in a model of 6 layers; use 1 to 6, or -1 to -6 from the end",
    ]


# ------------------------------------------------------------------------------------------------- the entrypoint


@pytest.fixture
def run(monkeypatch, tmp_path):
    """`run(benchmark)` runs the main command with that function in the benchmark's place: (exit code, log folder)."""
    logs = tmp_path / "logs"

    def main(benchmark, *words: str) -> tuple[int, Path]:
        monkeypatch.setattr(importlib.import_module("maw.experiment.benchmark"), "run_complete_benchmark", benchmark)
        return tier_1.main(["--preset", "offline", "--log-dir", str(logs), *words]), logs

    return main


def log_text(folder: Path) -> str:
    (path,) = folder.iterdir()
    assert path.name.startswith("run_") and path.name.endswith(".log.gz")
    return gzip.decompress(path.read_bytes()).decode()


def test_a_run_gets_its_configuration_and_leaves_a_compressed_log(run, capsys):
    def benchmark(config):
        assert config.seed == 5
        logging.getLogger("maw.training.trainer").info("epoch 1")
        logging.getLogger("maw.training.trainer").warning("slow disk")
        logging.getLogger("maw.training.trainer").debug("a detail")

    status, logs = run(benchmark, "--seed", "5")
    assert status == 0
    assert capsys.readouterr().err.splitlines() == ["epoch 1", "warning: slow disk"]
    assert all(words in log_text(logs) for words in ("INFO maw.training.trainer: epoch 1", "slow disk", "a detail"))
    assert logging.getLogger("maw").handlers == []


def test_logs_may_stay_plain(run):
    _, logs = run(lambda config: logging.getLogger("maw").info("here"), "--no-compress-logs")
    (path,) = logs.iterdir()
    assert path.suffix == ".log" and "INFO maw: here" in path.read_text()


def test_two_runs_of_one_second_have_two_logs(run):
    for _ in range(3):
        _, logs = run(lambda config: None, "--no-compress-logs")
    assert len(list(logs.iterdir())) == 3


def test_an_error_that_the_user_can_mend_is_one_line(run, capsys):
    def benchmark(config):
        raise MAWError("corpus.jsonl:3: is not JSON")

    status, logs = run(benchmark)
    assert status == 1
    assert capsys.readouterr().err == "error: corpus.jsonl:3: is not JSON\n"
    assert "corpus.jsonl:3" in log_text(logs)


def test_an_interrupted_run_says_so_in_one_line(run, capsys):
    def benchmark(config):
        raise KeyboardInterrupt

    status, logs = run(benchmark)
    assert status == 130
    assert capsys.readouterr().err.strip().startswith("interrupted")
    assert "interrupted" in log_text(logs)


def test_a_bug_keeps_its_traceback_and_the_log_is_whole(run):
    def benchmark(config):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(benchmark)


def test_a_log_folder_that_cannot_be_made(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    status = tier_1.main(["--preset", "offline", "--log-dir", str(tmp_path / "file" / "logs")])
    assert status == 1
    assert "--log-dir" in capsys.readouterr().err
