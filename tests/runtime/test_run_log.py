"""Log files of runs: which are kept and which removed, their content, and that they stop nothing."""

from __future__ import annotations

import gzip
import importlib
import json
import logging
import multiprocessing
import os
import time
from pathlib import Path

import pytest

import tier_1
from maw.runtime import run_log
from maw.runtime.run_log import RunLogs, log_event, read_events


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def old_run(folder: Path, stamp: str, *suffixes: str) -> None:
    for suffix in suffixes or (".log.gz",):
        (folder / f"run_{stamp}{suffix}").write_bytes(b"")


@pytest.fixture
def run(monkeypatch, tmp_path):
    """`run(benchmark, *words)` runs the main command with that function in the benchmark's place: the log folder."""
    folder = tmp_path / "logs"

    def main(benchmark=lambda config: None, *words: str) -> Path:
        monkeypatch.setattr(importlib.import_module("maw.experiment.benchmark"), "run_complete_benchmark", benchmark)
        assert tier_1.main(["--preset", "offline", "--log-dir", str(folder), *words]) == 0
        return folder

    return main


def test_events_are_a_file_of_their_own(run):
    def benchmark(config):
        log_event(logging.getLogger("maw.training.trainer"), "epoch", epoch=1, loss=0.5)
        logging.getLogger("maw.training.trainer").info("epoch one")

    folder = run(benchmark)
    (log,) = folder.glob("*.log.gz")
    (events,) = folder.glob("*.jsonl.gz")
    assert "epoch one" in gzip.decompress(log.read_bytes()).decode() and len(names(folder)) == 2
    (event,) = read_events(events)
    assert (event["event"], event["epoch"], event["loss"]) == ("epoch", 1, 0.5) and event["time"][:2] == "20"


def test_old_runs_go_and_nothing_else(run, tmp_path):
    folder = tmp_path / "logs"
    folder.mkdir()
    for day in range(10, 20):
        old_run(folder, f"202501{day}_120000", ".log.gz", ".jsonl.gz")
    old_run(folder, "20250119_120000_2")
    others = {
        "notes.txt",
        "run_2025.log",
        "run_20250101_120000.log.bak",
        "xrun_20250101_120000.log",
        "summary",
        "tiny",
    }
    for name in others - {"summary", "tiny"}:
        (folder / name).write_text("mine")
    for name in ("summary", "tiny", "run_20250102_120000.log"):  # the last a folder of a log's name
        (folder / name).mkdir()
    outside = tmp_path / "run_20250103_120000.log"
    outside.write_text("outside")
    (folder / "run_20250103_120000.log").symlink_to(outside)
    (folder / "tiny" / "run_20250104_120000.log").write_text("inside")
    run(lambda config: None, "--max-log-files", "3")
    left = names(folder)
    kept = {"run_20250119_120000.log.gz", "run_20250119_120000.jsonl.gz", "run_20250119_120000_2.log.gz"}
    new = {name for name in left if name.startswith(f"run_{time.strftime('%Y')}")}
    assert len(new) == 1
    assert left - new == kept | others | {"summary", "tiny", "run_20250102_120000.log", "run_20250103_120000.log"}
    assert outside.read_text() == "outside" and (folder / "tiny" / "run_20250104_120000.log").exists()


@pytest.mark.parametrize(("keep", "left"), [(0, 6), (1, 1), (2, 2), (5, 5), (6, 6), (100, 6)])
def test_so_many_runs_are_kept(run, tmp_path, keep, left):
    (tmp_path / "logs").mkdir()
    for day in range(10, 15):
        old_run(tmp_path / "logs", f"202501{day}_120000")
    assert len(names(run(lambda config: None, "--max-log-files", str(keep)))) == left


def test_by_default_a_hundred_runs_are_kept(run, tmp_path):
    (tmp_path / "logs").mkdir()
    for number in range(120):
        old_run(tmp_path / "logs", f"20250110_12{number // 60:02}{number % 60:02}")
    assert len(names(run())) == 100


def _in_progress(folder: Path, parent) -> None:
    files = RunLogs(folder, keep=0, compress=False)
    files.log.write_text("at work")
    parent.send(str(files.log))
    parent.poll(60)
    os._exit(0)  # as a run that is killed, which compresses nothing


def test_a_run_in_progress_keeps_its_files_and_a_killed_one_does_not(run, tmp_path):
    folder = tmp_path / "logs"
    context = multiprocessing.get_context("fork")
    paths, processes, pipes = [], [], []
    for _ in range(2):
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=_in_progress, args=(folder, theirs)))
        processes[-1].start()
        paths.append(Path(ours.recv()))
        pipes.append(ours)
    processes[1].kill()
    processes[1].join(10)
    run(lambda config: None, "--max-log-files", "1")
    assert paths[0].read_text() == "at work", "neither removed nor compressed"
    assert not paths[1].exists() and not list(folder.glob(f"{paths[1].stem}.*"))
    pipes[0].send("leave")
    processes[0].join(30)
    run(lambda config: None, "--max-log-files", "10")
    assert gzip.decompress(paths[0].with_suffix(".log.gz").read_bytes()) == b"at work", "left over, and compressed"
    assert not list(folder.glob("*.lock"))


def test_plain_logs_of_earlier_runs_stay_plain_where_that_is_wanted(run, tmp_path):
    (tmp_path / "logs").mkdir()
    old_run(tmp_path / "logs", "20250110_120000", ".log")
    assert "run_20250110_120000.log" in names(run(lambda config: None, "--no-compress-logs"))


def test_a_log_that_cannot_be_opened_is_said_once_and_stops_nothing(monkeypatch, tmp_path, capsys):
    file = run_log.LogFile(tmp_path / "missing" / "run.log")
    target = logging.getLogger("maw.tests.logs")
    target.addHandler(file)
    try:
        for _ in range(3):
            target.warning("something")
    finally:
        target.removeHandler(file)
        file.close()
    assert capsys.readouterr().err.count("cannot be written (No such file or directory); the run goes on") == 1


def test_what_the_system_refuses_is_one_line(monkeypatch, tmp_path, capsys):
    import errno

    errors = {
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/x"): "error: /data/x: the disk is full (No space left",
        PermissionError(errno.EACCES, "Permission denied", "/data/x"): "error: /data/x: Permission denied;",
        MemoryError(): "error: out of memory",
        RuntimeError("DefaultCPUAllocator: can't allocate memory"): "error: out of memory",
    }
    for error, words in errors.items():

        def benchmark(config, error=error):
            raise error

        monkeypatch.setattr(importlib.import_module("maw.experiment.benchmark"), "run_complete_benchmark", benchmark)
        assert tier_1.main(["--preset", "offline", "--log-dir", str(tmp_path / "logs")]) == 1
        assert capsys.readouterr().err.startswith(words)
    monkeypatch.setattr(
        importlib.import_module("maw.experiment.benchmark"), "run_complete_benchmark", lambda config: [][0] or json
    )
    with pytest.raises(IndexError):
        tier_1.main(["--preset", "offline", "--log-dir", str(tmp_path / "logs")])
