"""Experiment trackers: the sent values, no step twice after a resume, and that they stop nothing."""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from maw.config.tier1_config import Tier1Config
from maw.errors import ConfigError
from maw.experiment.benchmark import run_complete_benchmark
from maw.experiment.config_checks import validate
from maw.runtime import console, signals, trackers
from maw.training.trainer import Trainer

RUN = "0123456789abcdef"
STARTED = "2026-01-06 14:30:22"


def read(folder):
    """Tag -> [(step, value)] of one of TensorBoard's runs; and its texts."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), {"scalars": 0, "tensors": 0})
    found.Reload()
    values = {tag: [(e.step, pytest.approx(e.value)) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    texts = {tag: found.Tensors(tag) for tag in found.Tags()["tensors"]}
    return values, {tag: [each.tensor_proto.string_val[0].decode() for each in found] for tag, found in texts.items()}


def trainings(log_dir):
    """The folders of one benchmark's trainings, by name."""
    (group,) = (log_dir / "tracking" / "tensorboard").iterdir()
    return {path.name: path for path in group.iterdir()}


# ------------------------------------------------------------------------------------------------------ one training


def test_a_training_that_goes_on_reports_each_step_once(tmp_path):
    for turn, steps in enumerate(([1, 2, 3], [3, 4])):  # 3 was not saved when the first was killed
        with trackers.reporting("tensorboard", tmp_path, RUN, STARTED), trackers.training("nq_maw", {"lr": 0.1}):
            for step in steps:
                trackers.log(step, {"train/loss": 1 / step, "words": "none", "nan": float("nan"), "flag": True})
                if step != 3 or turn:
                    trackers.flush()
    with trackers.reporting("tensorboard", tmp_path, RUN, STARTED):
        trackers.results("nq_maw", {"ndcg_cut_10": 0.5}, 4)
    folder = tmp_path / "tracking" / "tensorboard" / f"{tmp_path.name}_20260106143022"
    values, texts = read(folder / "nq_maw")
    assert values == {"train/loss": [(step, 1 / step) for step in (1, 2, 3, 4)], "test/ndcg_cut_10": [(4, 0.5)]}
    assert len(texts["settings/text_summary"]) == 1 and "| lr | 0.1 |" in texts["settings/text_summary"][0]
    assert [path.name for path in folder.iterdir()] == ["nq_maw"]


def test_of_a_long_epoch_about_a_hundred_steps_are_reported():
    assert [trackers.every(count) for count in (1, 63, 100, 199, 200, 12_345)] == [1, 1, 1, 1, 2, 123]


def test_without_a_tracker_nothing_happens(tmp_path):
    with trackers.reporting("none", tmp_path, RUN, STARTED), trackers.training("nq_maw", {}):
        trackers.log(1, {"train/loss": 1.0})
        trackers.flush()
    trackers.results("nq_maw", {"ndcg_cut_10": 0.5}, 1)
    assert not list(tmp_path.iterdir())


def test_only_the_main_process_reports(tmp_path, monkeypatch):
    monkeypatch.setattr("maw.runtime.distributed._state.process", SimpleNamespace(rank=1, count=2))
    with trackers.reporting("tensorboard", tmp_path, RUN, STARTED), trackers.training("nq_maw", {}):
        trackers.log(1, {"train/loss": 1.0})
        trackers.flush()
    assert not list(tmp_path.iterdir())


def test_accelerate_takes_no_part_in_the_launcher_s_processes(monkeypatch):
    from accelerate import PartialState

    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    before = dict(PartialState._shared_state)
    PartialState._shared_state.clear()
    try:
        trackers._init_accelerate()
        assert PartialState().num_processes == 1
    finally:
        PartialState._shared_state.clear()
        PartialState._shared_state.update(before)


# ------------------------------------------------------------------------------------------------- the other trackers


def test_wandb_gets_a_run_of_the_same_id_when_a_training_goes_on(tmp_path, monkeypatch):
    calls = []

    class Run:
        def log(self, values, step):
            calls.append(("log", values, step))

        def finish(self):
            calls.append(("finish",))

    wandb = ModuleType("wandb")
    wandb.init = lambda **given: calls.append(("init", given)) or Run()
    wandb.config = SimpleNamespace(update=lambda values, allow_val_change: calls.append(("config", values)))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    with trackers.reporting("wandb", tmp_path, RUN, STARTED), trackers.training("nq_maw", {"datasets": ["nq", "x"]}):
        trackers.log(7, {"train/loss": 1.0})
        trackers.flush()
    (_, given), *rest = calls
    assert given["id"] == f"{RUN}-nq_maw" and given["resume"] == "allow" and given["project"] == "mine"
    assert given["dir"] == str(tmp_path / "tracking") and given["name"] == "nq_maw"
    assert rest == [("config", {"datasets": "nq,x"}), ("log", {"train/loss": 1.0}, 7), ("finish",)]


def test_mlflow_takes_up_the_run_that_it_has(tmp_path, monkeypatch):
    calls, runs = [], []
    mlflow = ModuleType("mlflow")
    mlflow.is_tracking_uri_set = lambda: False
    mlflow.set_tracking_uri = lambda uri: calls.append(("uri", uri))
    mlflow.get_experiment_by_name = lambda name: SimpleNamespace(experiment_id="3")
    mlflow.search_experiments = lambda filter_string: [SimpleNamespace(experiment_id="3")]
    mlflow.search_runs = lambda ids, filter_string, output_format: calls.append(("find", filter_string)) or runs
    mlflow.start_run = lambda **given: calls.append(("start", given["run_id"]))
    mlflow.log_params = lambda values: calls.append(("params", values))
    mlflow.log_metrics = lambda values, step: calls.append(("metrics", values, step))
    limits = SimpleNamespace(MAX_PARAM_VAL_LENGTH=500, MAX_PARAMS_TAGS_PER_BATCH=100)
    mlflow.utils = SimpleNamespace(validation=limits)
    mlflow.end_run = lambda: calls.append(("end",))
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    for _ in range(2):
        with trackers.reporting("mlflow", tmp_path, RUN, STARTED), trackers.training("nq_maw", {"lr": 0.1}):
            trackers.log(7, {"train/loss": 1.0})
            trackers.flush()
        runs[:] = [SimpleNamespace(info=SimpleNamespace(run_id="abc"))]
    names = [each[0] for each in calls]
    assert names == ["uri", "find", "start", "params", "metrics", "end", "uri", "find", "start", "metrics", "end"]
    assert [each[1] for each in calls if each[0] == "start"] == [None, "abc"]
    assert calls[0][1] == f"sqlite:///{tmp_path}/tracking/mlflow.db"
    assert f"tags.`maw.run` = '{RUN}'" in calls[1][1] and "tags.`maw.training` = 'nq_maw'" in calls[1][1]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_one_that_is_not_installed_is_refused_at_once(name, monkeypatch, tmp_path):
    config = Tier1Config.from_preset("offline", report_to=name)
    (tmp_path / name).mkdir()  # as trackers leave behind, and no package
    monkeypatch.delitem(sys.modules, name, raising=False)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [str(tmp_path)])
        with pytest.raises(
            ConfigError, match=f"{name} is not installed: pip install {trackers.PACKAGES[name]}; or set none"
        ):
            validate(config)


# --------------------------------------------------------------------------------------------------------- whole runs


@pytest.fixture
def settings(tiny_beir, models, tmp_path):
    def make(name, **changes):
        given = {"depth_dim": 4, "num_epochs": 2, "batch_size": 4, "permutations": 200, "precision": "float32"}
        given |= {"model": str(models("bert")), "datasets": [f"beir:{tiny_beir}"], "methods": ["zero_shot", "maw"]}
        places = {"log_dir": str(tmp_path / name), "cache_dir": str(tmp_path / "cache"), "device": "cpu"}
        return Tier1Config(**(given | places | changes))

    return make


@pytest.fixture
def run(settings):
    """`run("a", report_to="tensorboard")`: the numbers of a quiet benchmark, and its folder."""

    def go(name, **changes):
        config = settings(name, quiet=True, **changes)
        results = run_complete_benchmark(config)
        return json.loads(json.dumps({key: each["metrics"] for key, each in results["beir_small"]["results"].items()}))

    return go


def test_curves_settings_and_results_and_the_same_numbers(run, tmp_path):
    plain = run("plain")
    assert not (tmp_path / "plain" / "tracking").exists()
    assert run("tracked", report_to="tensorboard") == plain
    found = trainings(tmp_path / "tracked")
    assert set(found) == {"beir_small_zero_shot", "beir_small_maw"}
    values, texts = read(found["beir_small_maw"])
    assert [step for step, _ in values["train/loss"]] == list(range(1, 9))
    assert [step for step, _ in values["epoch/val_ndcg_cut_10"]] == [4, 8] == [step for step, _ in values["epoch"]]
    assert "epoch/val_routing/query/effective_depths/0" in values and not any("histogram" in tag for tag in values)
    metrics = plain["3_maw_fine_tuned_retriever"]
    assert {tag: each for tag, each in values.items() if tag.startswith("test/")} == {
        f"test/{key}": [(8, value)] for key, value in metrics.items()
    }
    (text,) = texts["settings/text_summary"]
    assert "| method | maw |" in text and "| seed | 42 |" in text and "log_dir" not in text
    values, _ = read(found["beir_small_zero_shot"])
    assert values["test/ndcg_cut_10"] == [(0, plain["1_normal_retriever"]["ndcg_cut_10"])]


def test_a_run_that_was_stopped_goes_on_without_a_step_twice(run, settings, tmp_path, monkeypatch):
    real = Trainer._run_batch

    def stopping(self, *given):
        loss = real(self, *given)
        if self.step == 6:
            raise KeyboardInterrupt  # at once: what came after the last save is lost
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_run_batch", stopping)
        with pytest.raises(KeyboardInterrupt), signals.handlers():
            run("stopped", report_to="tensorboard")
    values, _ = read(trainings(tmp_path / "stopped")["beir_small_maw"])
    assert [step for step, _ in values["train/loss"]] == [1, 2, 3, 4]
    with console.configured(quiet=True):
        run_complete_benchmark(Tier1Config.from_run(tmp_path / "stopped"))
    values, texts = read(trainings(tmp_path / "stopped")["beir_small_maw"])
    assert [step for step, _ in values["train/loss"]] == list(range(1, 9))
    assert [step for step, _ in values["epoch"]] == [4, 8] and len(texts["settings/text_summary"]) == 1
    assert all(len(each) == 1 for tag, each in values.items() if tag.startswith("test/"))


@pytest.mark.parametrize("moment", ["start", "log", "finish"])
def test_a_tracker_that_fails_stops_nothing(tmp_path, monkeypatch, caplog, moment):
    from accelerate.tracking import TensorBoardTracker

    def fail(*given, **named):
        raise RuntimeError("the network\nis down")

    monkeypatch.setattr(TensorBoardTracker, moment, fail)
    with trackers.reporting("tensorboard", tmp_path, RUN, STARTED):
        for name in ("nq_lora", "nq_maw"):
            with trackers.training(name, {}):
                trackers.log(1, {"train/loss": np.float64(1.0)})
                trackers.flush()
        trackers.results("nq_maw", {"ndcg_cut_10": 0.5}, 1)
    text = "--report-to tensorboard: RuntimeError: the network is down; the run continues without it"
    assert [record.getMessage() for record in caplog.records if record.name == "maw.runtime.trackers"] == [text]


def test_an_error_inside_a_training_is_not_the_tracker_s(tmp_path):
    with (
        pytest.raises(ValueError, match="mine"),
        trackers.reporting("tensorboard", tmp_path, RUN, STARTED),
        trackers.training("nq_maw", {}),
    ):
        raise ValueError("mine")
