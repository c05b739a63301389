"""Rows 3, 14 and 19: signals, two runs in one folder, and a run that cannot resume since something has changed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest

from faults.runs import ROOT, beir_folder, outcome
from maw.config.tier1_config import RESULT_NEUTRAL, Tier1Config, kinds
from maw.errors import ConfigError
from maw.experiment import run_state
from maw.storage.checksummed import read_signed, write_signed

TERM, INT, USR1 = signal.SIGTERM, signal.SIGINT, signal.SIGUSR1
CODES = {TERM: 143, INT: 130}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return beir_folder(tmp_path_factory.mktemp("data") / "tiny", 50)


@pytest.fixture(scope="module")
def flags(data, models, tmp_path_factory):
    """`flags(log_dir)` is the command line of a run of a second or two."""
    cache = tmp_path_factory.mktemp("cache")

    def make(log_dir: Path, *more) -> list:
        small = ["--num-epochs", 5, "--patience", 0, "--batch-size", 4, "--depth-dim", 4, "--grpo-group-size", 3]
        where = ["--device", "cpu", "--log-dir", log_dir, "--cache-dir", cache, "--methods", "maw", "--top-k", 20]
        return [
            "--datasets",
            f"beir:{data}",
            "--model",
            models("bert"),
            "--precision",
            "float32",
            *small,
            *where,
            *more,
        ]

    return make


@pytest.fixture(scope="module")
def whole(server, flags, tmp_path_factory):
    """How an uninterrupted run ended, its outcome and its folder."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = server.run(flags(folder))
    assert done.code == 0, done.output
    return done, outcome(folder), folder


# ----------------------------------------------------------------------------------------------------- row 3: signals


@pytest.fixture
def stopped(server, flags, whole):
    """`stopped(folder, share, [TERM])` is a run that gets signals at about that share of its time, 0.4 s apart.

    A run that is faster than the whole one was may be over before: then it is made again, and stopped earlier.
    """

    def run(folder, share, numbers):
        for _ in range(6):
            when = share * whole[0].seconds
            done = server.run(flags(folder), signals=[[when + 0.4 * i, each] for i, each in enumerate(numbers)])
            if done.code != 0:
                return done
            shutil.rmtree(folder)
            share /= 2
        raise AssertionError("no signal came in time")

    return run


@pytest.mark.parametrize("number", [TERM, INT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_saves_and_ends(server, stopped, whole, tmp_path, number, repeats, trial):
    for seed in range(repeats(1, 20)):
        with trial(3, f"{number.name}, then --resume", seed):
            folder = tmp_path / f"run{seed}"
            done = stopped(folder, random.Random(seed).uniform(0.02, 0.9), [number])
            assert done.code == CODES[number], done.output
            assert done.after_signal < 10
            assert "Traceback" not in done.output
            last = done.output.splitlines()[-1]
            assert last.startswith(f"stopped by {number.name}")
            if (folder / "state").exists():
                assert f"python tier_1.py --resume {folder}" in last
                assert server.run(["--resume", folder]).code == 0
                assert outcome(folder) == whole[1]


@pytest.mark.parametrize("number", [TERM, INT], ids=["SIGTERM", "SIGINT"])
def test_a_second_signal_leaves_at_once(server, stopped, whole, tmp_path, number, repeats, trial):
    for seed in range(repeats(1, 20)):
        with trial(3, f"{number.name} twice, then --resume", seed):
            folder = tmp_path / f"run{seed}"
            done = stopped(folder, random.Random(seed).uniform(0.1, 0.8), [number, number])
            assert done.code in (CODES[number], -number), done.output
            assert done.after_signal < 2
            if (folder / "state" / "run.json").exists():
                assert server.run(["--resume", folder]).code == 0
                assert outcome(folder) == whole[1]


def test_a_warning_saves_and_the_run_goes_on(server, flags, whole, tmp_path):
    folder, seconds = tmp_path / "run", whole[0].seconds
    when = [[share * seconds, USR1] for share in (0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6)]
    done = server.run(flags(folder), signals=when)
    assert done.code == 0, done.output
    assert outcome(folder) == whole[1]
    assert done.in_saves > whole[0].in_saves, "there was a save more than without the warnings"


def test_nothing_is_installed_by_importing(forks):
    code = (
        "import signal\nnumbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)\n"
        "before = [signal.getsignal(each) for each in numbers]\n"
        "import maw.runtime.signals, tier_1\nfrom tier_1 import run_complete_benchmark\n"
        "print([signal.getsignal(each) for each in numbers] == before)"
    )
    done = forks.run("-c", code, cwd=ROOT)
    assert done.stdout == "True\n", done.stderr


# -------------------------------------------------------------------------------------------- row 14: one at a time


def command(*flags):
    return [sys.executable, str(ROOT / "tier_1.py"), *map(str, flags)]


@pytest.fixture
def holder(tmp_path):
    """`holder()` is a process that holds tmp_path/run."""
    code = (
        "import sys, time\nfrom maw.storage.locks import run_lock\n"
        "with run_lock(sys.argv[1]):\n    print('held', flush=True)\n    time.sleep(120)"
    )
    started = []

    def start():
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        arguments = [sys.executable, "-c", code, str(tmp_path / "run")]
        started.append(subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment))
        assert started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_second_run_names_the_first_and_a_dead_ones_folder_is_free(holder, flags, tmp_path, repeats, trial):
    for seed in range(repeats(1, 20)):
        with trial(14, "two runs in one folder; the first then killed", seed):
            first, started = holder(), time.monotonic()
            second = subprocess.run(command(*flags(tmp_path / "run")), capture_output=True, text=True, timeout=60)
            assert time.monotonic() - started < 2
            assert second.returncode == 1
            assert f"process {first.pid} on {socket.gethostname()}, since 20" in second.stderr
            assert not list((tmp_path / "run").glob("*.log*")), "it left nothing behind"
            first.kill()
            first.wait()
            third = holder()
            third.kill()
            third.wait()


def test_without_a_lock_the_second_run_would_begin(tmp_path, monkeypatch):
    """Planted: the test above fails if runs do not look."""
    from contextlib import nullcontext

    from maw.storage import locks

    with locks.run_lock(tmp_path):
        assert locks.is_held(tmp_path)
        monkeypatch.setattr(locks, "run_lock", lambda folder: nullcontext())
        with locks.run_lock(tmp_path):
            pass
    assert not locks.is_held(tmp_path) and not list(tmp_path.iterdir())


# ----------------------------------------------------------------------------------- row 19: not as it was


def another(name: str) -> str | None:
    """A value, as typed, that a setting does not have in `flags`; None for a switch."""
    kind, default = kinds()[name], getattr(Tier1Config(), name)
    special = {
        "datasets": "pystdlib", "methods": "lora", "distractors": str(ROOT), "model": "packaged:all-MiniLM-L6-v2",
        "maw_layers": "2", "finetune_layers": "2", "device": "cuda", "hidden_dim": "16", "num_heads": "2",
        "num_layers": "3", "folds": "3", "corpus_size": "50", "val_corpus_size": "50", "router_start": "uniform",
        "encoder_update": "mcl", "query_prefix": "query: ", "document_prefix": "passage: ", "tune": "2",
    }  # fmt: skip
    if name in special:
        return special[name]
    if kind.base is bool:
        return None
    if kind.choices:
        return next(choice for choice in kind.choices if choice not in (default, "float32"))
    if kind.base is int:
        return str((default or 5) + 1 if name != "batch_size" else 7)
    if kind.base is float:
        return str(default / 2 if default else 0.5)
    return "something else"


SETTINGS = [each.name for each in fields(Tier1Config) if each.name not in RESULT_NEUTRAL]
TRIED = {"num_epochs": "5", "top_k": "10", "grpo_group_size": "5", "depth_dim": "5", "patience": "2"}


@pytest.fixture(scope="module")
def interrupted(server, flags, tmp_path_factory):
    """A folder with an unfinished run."""
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    done = server.run(flags(folder), signals=[[0.05, TERM]], await_file=[str(folder), "checkpoints/*_latest"])
    assert done.code == 143, done.output
    return folder


def test_every_setting_either_changes_no_result_or_is_compared(interrupted, trial):
    """A configuration of Python's, one setting after the other."""
    record = read_signed(interrupted / "state" / "run.json")
    config = Tier1Config.from_run(interrupted)
    assert run_state.changes(record, config) == []
    for name in SETTINGS:
        with trial(19, "a changed setting", name):
            changed = Tier1Config.from_run(interrupted)
            value = getattr(config, name)
            setattr(changed, name, not value if isinstance(value, bool) else "something else")
            (line,) = run_state.changes(record, changed)
            assert line.strip().startswith(f"{name}: was ")
    for name in RESULT_NEUTRAL:
        changed = Tier1Config.from_run(interrupted)
        setattr(changed, name, "something else")
        assert run_state.changes(record, changed) == []


def test_flags_beside_resume_that_differ_are_refused_with_the_difference(interrupted, capsys, repeats, trial):
    """From the command line, before torch is imported: in the suite a few settings, in the full count each."""
    import tier_1

    tried = SETTINGS if repeats(0, 1) else ["seed", "learning_rate", "use_lora", "methods", "model"]
    for name in tried:
        with trial(19, "a changed flag", name):
            flag = f"--{name.replace('_', '-')}"
            value = TRIED.get(name, another(name))
            default = getattr(Tier1Config(), name)
            words = [flag, value] if value is not None else [flag if not default else f"--no-{flag[2:]}"]
            assert tier_1.main(["--resume", str(interrupted), *words]) == 2
            error = capsys.readouterr().err
            assert name in error.replace("-", "_")


@pytest.mark.parametrize("change", ["code", "libraries", "model", "data", "negatives"])
def test_other_code_libraries_weights_and_data_are_refused(server, interrupted, flags, tmp_path, change, trial):
    folder = tmp_path / "run"
    shutil.copytree(interrupted, folder)
    path = {"model": "model.json", "data": "01/data.json", "negatives": "01/data.json"}.get(change, "run.json")
    record = read_signed(folder / "state" / path)
    if change == "code":
        record["code"]["maw/experiment/method_trainer.py"], named = (
            "0" * 16,
            "code maw/experiment/method_trainer.py: was 0000",
        )
    elif change == "libraries":
        record["libraries"]["torch"], named = "1.0", "libraries torch: was 1.0"
    elif change == "model":
        record["found"]["weights"], named = "f" * 64, "model weights: was ffff"
    else:
        part = {"data": "passages", "negatives": "negatives"}[change]
        record["found"]["round 1"]["train"][part], named = "e" * 64, f"data round 1 train {part}: was eeee"
    write_signed(folder / "state" / path, record)
    before = {each: each.read_bytes() for each in folder.rglob("*.json")}
    with trial(19, f"changed {change}", 0):
        done = server.run(["--resume", folder])
        assert done.code == 2, done.output
        assert "the run cannot continue" in done.output and named in done.output
        assert all(each.read_bytes() == content for each, content in before.items()), "and nothing was changed"


@pytest.mark.faults
def test_changed_queries_are_refused(server, flags, data, tmp_path, trial):
    """The real thing: a file of the collection is edited between the two."""
    collection = tmp_path / "tiny"
    shutil.copytree(data, collection)
    folder = tmp_path / "run"
    words = ["--datasets", f"beir:{collection}", *flags(folder)[2:]]
    assert server.run(words, signals=[[0.05, TERM]], await_file=[str(folder), "checkpoints/*_latest"]).code == 143
    queries = collection / "queries.jsonl"
    queries.write_text(queries.read_text().replace('"q1"', '"q1x"').replace("q1x", "q1").replace("file", "files"))
    text = queries.read_text().splitlines()
    row = json.loads(text[2])
    text[2] = json.dumps(row | {"text": row["text"] + " error"})
    queries.write_text("\n".join(text) + "\n")
    with trial(19, "a query edited", 0):
        done = server.run(["--resume", folder])
        assert done.code == 2 and "data round 1 train queries: was" in done.output


@pytest.mark.faults
def test_settings_that_change_no_result_may_be_others(server, interrupted, flags, whole, tmp_path):
    folder = tmp_path / "moved"
    shutil.copytree(interrupted, folder)
    done = server.run(
        ["--resume", folder, "--save-every", 0.001, "--no-compress-logs", "--max-log-files", 7]
        + ["--no-keep-only-best-checkpoint"]
    )
    assert done.code == 0, done.output
    latest = folder / "checkpoints" / "beir_tiny_maw_latest"
    assert latest.is_dir() and list(folder.glob("run_*.log"))


def test_a_new_run_does_not_replace_an_unfinished_one(server, interrupted, flags, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(interrupted, folder)
    done = server.run(flags(folder))
    assert done.code == 2 and f"--resume {folder}" in done.output and "--restart" in done.output
    shutil.rmtree(folder / "state" / "01", ignore_errors=True)  # else it is there before the next run has begun
    done = server.run([*flags(folder), "--restart"], signals=[[0, TERM]], await_file=[str(folder), "state/01/*"])
    assert done.code == 143, done.output
    done = server.run(["--resume", folder])
    assert done.code == 0, done.output


def test_a_first_trial_is_work_too(server, flags, tmp_path):
    """Hours may be in it, and nothing else is there yet."""
    folder = tmp_path / "run"
    words = flags(folder, "--tune", 2)
    done = server.run(words, signals=[[0, TERM]], await_file=[str(folder), "state/01/trial_latest"])
    assert done.code == 143, done.output
    assert not list(folder.glob("state/01/trials_*")) and not list(folder.glob("checkpoints/*_latest"))
    done = server.run(words)
    assert done.code == 2 and f"--resume {folder}" in done.output


def test_what_cannot_be_resumed_is_said(server, tmp_path, whole):
    done = server.run(["--resume", tmp_path / "nowhere"])
    assert done.code == 2 and "no unfinished run" in done.output
    done = server.run(["--resume", "last", "--log-dir", tmp_path])
    assert done.code == 2 and "no unfinished run" in done.output
    done = server.run(["--resume", whole[2]])
    assert done.code == 0 and "has finished" in done.output
    with pytest.raises(ConfigError, match="no unfinished run"):
        Tier1Config.from_run(whole[2])
