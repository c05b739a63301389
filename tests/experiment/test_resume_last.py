"""`--resume last` takes the right run."""

from __future__ import annotations

import os

import pytest

import tier_1
from maw.config.tier1_config import Tier1Config
from maw.errors import ConfigError
from maw.experiment import run_state
from maw.storage import run_record


def unfinished(folder, written, work=False):
    """A run's state in a folder, last written at a time; with `work`, trials that are done."""
    run_state.open_run(Tier1Config.from_preset("offline", log_dir=str(folder)), {})
    state = folder / run_record.STATE
    if work:
        (state / "01").mkdir()
        (state / "01" / "trials_maw.json").write_text("{}")
    for path in state.rglob("*"):
        os.utime(path, (written, written))


def test_the_last_one_with_work_in_it(tmp_path):
    unfinished(tmp_path / "older", 1_000, work=True)
    unfinished(tmp_path / "newer", 2_000, work=True)
    unfinished(tmp_path / "failed", 3_000)
    assert run_state.find_run("last", str(tmp_path)) == tmp_path / "newer"


def test_without_any_work_the_last_one(tmp_path):
    unfinished(tmp_path / "a", 1_000)
    unfinished(tmp_path / "b", 2_000)
    assert run_state.find_run("last", str(tmp_path)) == tmp_path / "b"


def test_none_is_an_error_of_one_line(tmp_path, capsys):
    with pytest.raises(ConfigError, match="no unfinished run"):
        run_state.find_run("last", str(tmp_path))
    assert tier_1.main(["--resume", "last", "--log-dir", str(tmp_path)]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_the_command_line_takes_it_up(tmp_path):
    from maw.cli.flags import parse_command_line

    unfinished(tmp_path / "a", 1_000, work=True)
    assert parse_command_line(["--resume", "last", "--log-dir", str(tmp_path)]).log_dir == str(tmp_path / "a")
