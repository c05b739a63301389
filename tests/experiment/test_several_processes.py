"""Runs of several processes from the command line: their files, refused settings, and how they end together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import user_method, write_model
from faults.runs import ROOT, beir_folder, stray_files
from processes import launch, start

import tier_1
from maw.config.tier1_config import Tier1Config
from maw.experiment import run_state

COMMON = [
    "--device",
    "cpu",
    "--precision",
    "float32",
    "--batch-size",
    "5",
    "--depth-dim",
    "4",
    "--permutations",
    "200",
]
LIMIT = 30
"""Seconds in which the others must have ended."""


def model_without_dropout(folder: Path) -> Path:
    """A tiny model that computes the same however its texts are divided."""
    path = write_model(folder) / "config.json"
    settings = json.loads(path.read_text())
    settings |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    path.write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model and a dataset, and the flags of a run over them."""
    folder = tmp_path_factory.mktemp("processes")
    model, data = model_without_dropout(folder / "model"), beir_folder(folder / "small")
    return folder, [*COMMON, "--model", str(model), "--datasets", f"beir:{data}"]


def run_many(forks, place, count, name, *flags, light=False):
    """What so many processes leave and say."""
    folder, common = place
    work = folder / name
    work.mkdir()
    flags = [*common, "--log-dir", str(work / "logs"), "--cache-dir", str(work / "cache"), *flags]
    (work / "settings.json").write_text(json.dumps({"flags": flags, "light": light}))
    return launch(forks, count, "main", work), work


def metrics_of(logs: Path) -> dict[str, dict[str, list[float]]]:
    (path,) = logs.glob("beir_small_*/dataset.json")
    (results,) = json.loads((logs / "summary" / "all_results.json").read_text()).values()
    assert json.loads(path.read_text())["results"] == results["results"]
    return {name: each["metrics"] for name, each in results["results"].items()}


def check_a_run(forks, place, count, *flags):
    done, work = run_many(forks, place, count, f"many{count}", *flags)
    assert done.returncode == 0, done.stderr
    assert json.loads((work / "codes.json").read_text()) == [0] * count
    assert done.stdout.count("Summary of the run:") == 1 and done.stdout.count("Runtime Summary:") == 1
    assert f"{count} processes, {count} of them on this machine" in done.stderr
    assert stray_files(work / "logs") == [] and len(list((work / "logs").glob("run_*.log.gz"))) == 1
    folder, common = place
    one = folder / f"one{count}"
    alone = [*common, "--log-dir", str(one / "logs"), "--cache-dir", str(one / "cache"), *flags]
    assert tier_1.main(alone) == 0
    expected, found = metrics_of(one / "logs"), metrics_of(work / "logs")
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_allclose(list(found[name].values()), list(expected[name].values()), atol=1e-4, err_msg=name)
    return one, work


def test_a_run_of_two_processes_leaves_what_one_leaves(forks, place):
    methods = f"zero_shot,maw,peft:pissa,{user_method(place[0])}"
    one, two = check_a_run(forks, place, 2, "--methods", methods, "--num-epochs", "1")
    names = [
        sorted(str(p.relative_to(w)) for p in (w / "logs" / "checkpoints").rglob("checkpoint.json"))
        for w in (one, two)
    ]
    assert names[0] == names[1] != []


def test_training_goes_on_with_as_many_processes_only(tiny_settings):
    for methods, refused in ((["zero_shot", "lora"], True), (["zero_shot"], False)):
        config = tiny_settings(methods=methods)
        record = {"config": config.to_dict(), "code": run_state.code_hashes(), "libraries": run_state._libraries()}
        assert run_state.changes(record, config) == run_state.changes(record | {"processes": 1}, config) == []
        lines = run_state.changes(record | {"processes": 2}, config)
        assert lines == (["  processes that train: was 2, is 1"] if refused else [])
    assert Tier1Config().methods != ["zero_shot"]


def test_a_wrong_setting_is_said_by_each_and_ends_all(forks, place):
    done, work = run_many(forks, place, 2, "wrong", "--maw-layers", "9", light=True)
    assert json.loads((work / "codes.json").read_text()) == [2, 2]
    assert done.stderr.count("no layer 9") == 2 and "process 1: tier_1.py: cannot run:" in done.stderr
    assert not (work / "logs").exists()


def killed(forks, folder, count, victim, how, others):
    folder.mkdir()
    (folder / "settings.json").write_text(json.dumps({"victim": victim, "how": how, "others": others, "light": True}))
    done = launch(forks, count, "killed", folder)
    at = float((folder / "killed_at").read_text())
    for rank in set(range(count)) - {victim}:
        ended = folder / f"ended-{rank}"
        assert not ended.exists() or float(ended.read_text()) - at < LIMIT
    return done, time.time() - at, json.loads((folder / "codes.json").read_text())


def check_the_end(forks, folder, count, victim, how, others):
    done, seconds, codes = killed(forks, folder, count, victim, how, others)
    assert seconds < LIMIT and all(codes), (codes, done.stderr)
    cause = "ended without a word" if how == "kill" else "RuntimeError: the planted failure"
    said = [line for line in done.stderr.splitlines() if f"process {victim} of {count}" in line and cause in line]
    assert len(said) == count - 1, done.stderr


def test_the_others_end_when_one_is_killed(forks, tmp_path):
    check_the_end(forks, tmp_path / "killed", 2, 1, "kill", "wait")


@pytest.mark.faults
@pytest.mark.parametrize("others", ["wait", "work"])
@pytest.mark.parametrize("how", ["kill", "raise"])
@pytest.mark.parametrize("victim", [0, 2])
def test_the_others_end_whatever_they_do(forks, tmp_path, victim, how, others):
    check_the_end(forks, tmp_path / "killed", 4, victim, how, others)


@pytest.mark.faults
@pytest.mark.parametrize("count", [2, 4])
def test_runs_of_more_processes_and_methods(forks, place, count):
    check_a_run(forks, place, count, "--methods", "zero_shot,lora,full,maw", "--num-epochs", "3", "--seed", str(count))


@pytest.mark.faults
@pytest.mark.parametrize("victim", [None, 0, 1])
def test_under_torchrun(place, tmp_path, victim):
    """A whole run; or one of its processes is killed while it trains, and all end with the launcher."""
    _, flags = place
    epochs = "2" if victim is None else "400"
    run = ["--log-dir", str(tmp_path / "logs"), "--cache-dir", str(tmp_path / "cache"), "--num-epochs", epochs]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", str(ROOT / "tier_1.py")]
    command += [*flags, *run, "--patience", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path) as process:
        if victim is not None:
            while not list((tmp_path / "logs" / "checkpoints").glob("*_latest/checkpoint.json")):
                assert process.poll() is None
                time.sleep(0.05)
            children = workers(str(tmp_path / "logs"))
            os.kill(children[victim], signal.SIGKILL)
            killed_at = time.monotonic()
        _, said = process.communicate(timeout=300)
    if victim is None:
        assert process.returncode == 0, said
        assert len(metrics_of(tmp_path / "logs")) == 3
        return
    assert process.returncode and time.monotonic() - killed_at < LIMIT + 10, said  # the launcher's own end is in it
    assert not any(Path(f"/proc/{pid}").exists() for pid in children.values())
    assert "SIGKILL" in said or f"process {victim} of 2 ended without a word" in said


@pytest.mark.faults
def test_a_signal_to_one_saves_in_all_and_the_run_goes_on(forks, place):
    folder, common = place
    work = folder / "stopped"
    work.mkdir()
    logs, accumulate = work / "logs", ["--gradient-accumulation-steps", "2"]  # half gathered gradients are saved too
    own = ["--log-dir", str(logs), "--cache-dir", str(work / "cache"), "--methods", "zero_shot,maw", "--patience", "0"]
    flags = [*common, *own, *accumulate, "--num-epochs", "60"]
    (work / "settings.json").write_text(json.dumps({"flags": flags}))
    with start(2, "main", work) as process:
        while not list((logs / "checkpoints").glob("*_latest/checkpoint.json")):
            assert process.poll() is None
            time.sleep(0.02)
        os.kill(json.loads((logs / "run.holder.json").read_text())["pid"], signal.SIGTERM)
        _, said = process.communicate(timeout=300)
    codes = json.loads((work / "codes.json").read_text())
    assert codes in ([143, 143], [143, 1]), said  # the second where it came while nothing was trained
    record = json.loads(next((logs / "checkpoints").glob("*_latest/checkpoint.json")).read_text())
    assert 0 < record["step"] < 240
    assert tier_1.main(["--resume", str(logs)]) == 2, "one process would train on otherwise"
    (work / "settings.json").write_text(json.dumps({"flags": ["--resume", str(logs)]}))
    done = launch(forks, 2, "main", work)
    assert done.returncode == 0 and "goes on in epoch" in done.stderr, done.stderr
    assert [len(each["training_history"]) for each in trained(logs)] == [60]
    whole = [*common, *own[4:], *accumulate, "--num-epochs", "60", "--log-dir", str(work / "whole")]
    (work / "settings.json").write_text(json.dumps({"flags": [*whole, "--cache-dir", str(work / "cache")]}))
    assert launch(forks, 2, "main", work).returncode == 0
    for name, values in metrics_of(work / "whole").items():
        np.testing.assert_allclose(
            list(metrics_of(logs)[name].values()), list(values.values()), atol=1e-4, err_msg=name
        )


def trained(logs: Path) -> list[dict]:
    (results,) = json.loads((logs / "summary" / "all_results.json").read_text()).values()
    return [each for each in results["results"].values() if "training_history" in each]


def workers(log_dir: str) -> dict[int, int]:
    """The processes of a run by rank."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            words = (path.parent / "cmdline").read_text().split("\0")
            values = dict(each.split("=", 1) for each in path.read_text().split("\0") if "=" in each)
        except OSError:
            continue
        if log_dir in words and "RANK" in values:
            found[int(values["RANK"])] = int(path.parent.name)
    return found
