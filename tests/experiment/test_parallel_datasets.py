"""Parallel datasets: the results of a sequence, reported failures, and no process that outlives the run."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time

import pytest
import torch
from conftest import user_method
from faults.runs import beir_folder

import tier_1
from maw.config.tier1_config import Tier1Config
from maw.errors import ConfigError, MAWError
from maw.experiment import parallel_datasets
from maw.experiment.parallel_datasets import divided, run_side_by_side, shares
from maw.runtime import signals
from maw.runtime.run_log import read_events
from maw.runtime.signals import Stopped
from maw.storage.run_record import is_unfinished

CUDA = torch.device("cuda")


def test_things_are_divided_evenly():
    for things in range(1, 9):
        for count in range(1, 9):
            groups = divided([str(number) for number in range(things)], count)
            assert [each for group in groups for each in group] == [str(number) for number in range(things)]
            assert len(groups) == min(count, things) and all(groups)
            assert max(map(len, groups)) - min(map(len, groups)) <= 1


@pytest.mark.parametrize(
    ("visible", "there", "changes", "expected"),
    [
        (None, 4, {}, ["0,1", "2,3"]),
        ("3,5,6", 3, {}, ["3", "5,6"]),
        ("GPU-aa,GPU-bb", 2, {}, ["GPU-aa", "GPU-bb"]),
        (None, 8, {"use_multi_gpu": False}, ["0", "4"]),
        ("2", 1, {}, ["2"]),
    ],
)
def test_each_dataset_has_gpus_of_its_own(tiny_settings, monkeypatch, visible, there, changes, expected):
    monkeypatch.setattr("torch.cuda.device_count", lambda: there)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    config = tiny_settings(datasets=["msmarco", "nq"], device=None, **changes)
    assert [share.environment["CUDA_VISIBLE_DEVICES"] for share in shares(config, CUDA)] == expected
    assert len(shares(config, torch.device("cuda:1"))) == 1


def test_on_a_cpu_threads_are_divided(tiny_settings, monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 5)
    config = tiny_settings(datasets=["msmarco", "nq"])
    found = shares(config, torch.device("cpu"))
    assert [share.environment for share in found] == [{"OMP_NUM_THREADS": "2"}, {"OMP_NUM_THREADS": "3"}]
    assert [share.words for share in found] == ["2 threads", "3 threads"]


def test_torchrun_has_its_own_way(tiny_settings, monkeypatch):
    from maw.experiment.config_checks import find_problems

    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    (problem,), _ = find_problems(tiny_settings(parallel_datasets=True), [])
    assert problem.name == "parallel_datasets" and "torchrun" in str(problem)


def test_a_class_that_no_other_process_can_load_is_refused(tiny_settings):
    from maw.config.methods import Lora
    from maw.experiment.config_checks import find_problems

    class Mine(Lora):
        name, label = "mine", "Mine"

    (problem,), _ = find_problems(tiny_settings(parallel_datasets=True, methods=[Mine]), [])
    assert problem.name == "parallel_datasets" and "cannot load python:Mine; put the class into a file" in str(problem)


# ------------------------------------------------------------------------------------------------------- whole runs


def results(logs):
    found = json.loads((logs / "summary" / "all_results.json").read_text())
    return {name: {key: each["metrics"] for key, each in one["results"].items()} for name, one in found.items()}


def words_of(models, folder, names):
    """Datasets of these names, and the flags of a run over them."""
    data = {name: beir_folder(folder / name) for name in names}
    words = ["--model", models("bert"), "--datasets", ",".join(f"beir:{each}" for each in data.values())]
    words += ["--device", "cpu", "--precision", "float32"]
    words += ["--methods", f"zero_shot,maw,peft:dora,{user_method(folder)}"]
    words += ["--num-epochs", 1, "--depth-dim", 4, "--batch-size", 8, "--permutations", 200]
    words += ["--cache-dir", folder / "cache"]
    return data, [str(word) for word in words]


@contextlib.contextmanager
def broken(data):
    """A dataset that no run can read."""
    judged = data / "qrels" / "train.tsv"
    good = judged.read_text()
    judged.write_text(good + "nonsense\n")
    yield
    judged.write_text(good)


def check_one_failure(words, logs, monkeypatch, capfd, good, bad):
    """Runs them side by side: the bad one is told, the results of the others are there and can be gone on from."""
    count = len(good) + 1
    with monkeypatch.context() as patch:
        patch.setattr("torch.get_num_threads", lambda: count)
        patch.setattr("maw.experiment.benchmark._check_data", lambda config: None)  # the file breaks after the check
        assert tier_1.main([*words, "--parallel-datasets", "--log-dir", str(logs)]) == 1
    said = capfd.readouterr()
    assert f"{count} datasets in parallel, {count} at a time" in said.err
    assert all(f"[{name}] starts on 1 thread" in said.err for name in (*good, bad))
    assert f"error: 1 of {count} datasets failed. {bad}: " in said.err and "train.tsv" in said.err
    assert f"--resume {logs} continues" in said.err and "Summary of the run" not in said.out
    lines = [line for line in said.out.splitlines() if "approach 1: " in line or "Written to" in line]
    assert len(lines) == 2 * len(good), lines
    assert all("approach" in line for line in lines[::2]) and all("Written" in line for line in lines[1::2]), lines
    assert set(results(logs)) == set(good) and is_unfinished(logs)
    (events,) = logs.glob("run_*.jsonl.gz")
    assert {each["dataset"] for each in read_events(events) if each["event"] == "method"} == set(good)


def test_one_that_fails_is_told_and_the_other_has_its_results(models, tmp_path, monkeypatch, capfd):
    data, words = words_of(models, tmp_path, ("one", "two"))
    with broken(data["two"]):
        check_one_failure(words, tmp_path / "logs", monkeypatch, capfd, ["beir_one"], "beir_two")
    alone = [word.split(",")[0] if word.startswith("beir:") else word for word in words]
    assert tier_1.main([*alone, "--log-dir", str(tmp_path / "alone")]) == 0
    assert results(tmp_path / "logs") == results(tmp_path / "alone")


@pytest.mark.faults
def test_three_side_by_side_and_resumed_are_as_in_sequence(models, tmp_path, monkeypatch, capfd):
    data, words = words_of(models, tmp_path, ("one", "two", "three"))
    logs = tmp_path / "logs"
    with broken(data["three"]):
        check_one_failure(words, logs, monkeypatch, capfd, ["beir_one", "beir_two"], "beir_three")
    with monkeypatch.context() as patch:
        patch.setattr("torch.get_num_threads", lambda: 3)
        assert tier_1.main(["--resume", str(logs)]) == 0
    said = capfd.readouterr()
    assert said.out.count("finished before the run was interrupted") == 2 and said.out.count("Summary of the run") == 1
    assert "1 dataset in parallel" in said.err and "[beir_one]" not in said.err
    assert tier_1.main([*words, "--log-dir", str(tmp_path / "sequence")]) == 0
    assert results(logs) == results(tmp_path / "sequence")
    assert list(results(logs)) == ["beir_one", "beir_two", "beir_three"]


# -------------------------------------------------------------------------------- processes that only play at it

PLAYER = """
import json, os, signal, sys, time
order = json.loads(sys.stdin.readline())
message = {"name": "maw", "levelno": 20, "levelname": "INFO"}
say = lambda words: print(json.dumps({"log": message | {"msg": words}, "where": {}}), flush=True)
def stop(*_):
    say("saved")
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGUSR1, lambda *_: say("kept"))
how = os.environ["HOW"]
if how == "refused":
    print(json.dumps({"failed": "no", "problems": ["--seed: no", f"--model: not {order['number']}"]}), flush=True)
    sys.exit(1)
if how != "deaf":
    print(json.dumps({"ready": True}), flush=True)
say(f"at work as {os.getpid()}")
if how == "torn":
    os.write(1, b'{"log": {"na')
if order["number"] == int(os.environ["KILLED"]):
    os.kill(os.getpid(), signal.SIGKILL)
sys.stdin.read()
"""


class NoState:
    """A run of which nothing is done, and whose datasets leave nothing."""

    def __init__(self, log_dir):
        self.log_dir, self.folder, self.resumed = log_dir, log_dir / "state", False

    def dataset(self, number):
        return self.folder / str(number)


@pytest.fixture
def play(tmp_path, monkeypatch, caplog):
    """Two datasets whose processes wait for a signal; the one of that number is killed at its start."""
    caplog.set_level(logging.INFO, "maw")

    def run(killed=0, how=""):
        monkeypatch.setenv("HOW", how)
        monkeypatch.setattr(parallel_datasets, "COMMAND", (sys.executable, "-c", PLAYER))
        monkeypatch.setenv("KILLED", str(killed))
        config = Tier1Config(datasets=["msmarco", "nq"], log_dir=str(tmp_path))
        parts = [parallel_datasets.Share({}, "a thread")] * 2
        return run_side_by_side(config, NoState(tmp_path), parts)

    return run


def wait_for(condition):
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def messages(caplog, part):
    return [record.getMessage() for record in caplog.records if part in record.getMessage()]


def test_signals_reach_every_process_and_all_have_ended_when_the_run_does(play, caplog):
    def ask():
        wait_for(lambda: len(messages(caplog, "at work as")) == 2)
        os.kill(os.getpid(), signal.SIGUSR1)
        wait_for(lambda: len(messages(caplog, "kept")) == 2)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask, daemon=True).start()
    with signals.handlers(), pytest.raises(Stopped):
        play()
    assert sorted(messages(caplog, "saved")) == ["[beir_nq] saved", "[msmarco] saved"]
    assert len(messages(caplog, "] stopped")) == 2
    for message in messages(caplog, "at work as"):
        with pytest.raises(ProcessLookupError):
            os.kill(int(message.split()[-1]), 0)


def test_a_process_that_is_killed_is_told(play, caplog):
    def end_the_other():
        wait_for(lambda: messages(caplog, "failed"))
        (message,) = messages(caplog, "[msmarco] at work")
        os.kill(int(message.split()[-1]), signal.SIGTERM)

    threading.Thread(target=end_the_other, daemon=True).start()
    with pytest.raises(MAWError, match=r"2 of 2 .* beir_nq: its process was killed by SIGKILL; msmarco: .* code 143"):
        play(killed=2)


def test_a_line_that_a_killed_process_did_not_end_is_passed_over(play, caplog):
    test_a_process_that_is_killed_is_told(lambda killed: play(killed, "torn"), caplog)


def test_what_no_dataset_can_run_with_is_refused_once(play):
    with pytest.raises(ConfigError) as caught:
        play(how="refused")
    assert sorted(caught.value.problems) == ["--model: not 1", "--model: not 2", "--seed: no"]


def test_a_process_that_is_not_ready_is_not_asked_to_save(play, caplog):
    def ask():
        wait_for(lambda: len(messages(caplog, "at work as")) == 2)
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(3 * parallel_datasets.LOOK_EVERY)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask, daemon=True).start()
    with signals.handlers(), pytest.raises(Stopped):
        play(how="deaf")
    assert len(messages(caplog, "saved")) == 2 and not messages(caplog, "kept")
