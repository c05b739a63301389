"""Trials: the exact number, drawn by seed, refined around the best, without test data, and all reported."""

from __future__ import annotations

import logging
import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import qmc

from maw.config.methods import find_method, in_order
from maw.data.collection import RetrievalData
from maw.data.from_dicts import as_retrieval_data
from maw.errors import MAWError, NotFiniteError
from maw.experiment.method_trainer import MethodTrainer
from maw.experiment.tuning import RateSearch, Trial, at_edge, best_of, tune
from maw.training.optimizer import rates

CPU = torch.device("cpu")
DEFAULTS = {"learning_rate": 1e-3, "kernel_learning_rate": 1e-2}


def search(score, trials, defaults=None, seed=0):
    """All trials of a search over a function of the rates; a score of None is a training that diverged."""
    plan, done = RateSearch(defaults or DEFAULTS, trials, seed), []
    for number in range(1, trials + 1):
        found, how = plan.next(done)
        done.append(Trial(number, found, how, score(found), {"seconds": 0.0}))
    return done


def peak(at: float, name: str = "learning_rate"):
    """A score that is highest where a rate has the value `at`."""
    return lambda found: 1 - 0.1 * abs(math.log10(found[name] / at))


# ------------------------------------------------------------------------------------------------------ what is tried


@pytest.mark.parametrize("trials", range(1, 13))
def test_two_thirds_are_drawn_and_the_rest_refined(trials):
    done = search(peak(1e-3), trials)
    assert [trial.number for trial in done] == list(range(1, trials + 1))
    assert done[0].rates == DEFAULTS and done[0].how == "default"
    drawn = [trial for trial in done if trial.how in ("default", "drawn")]
    assert len(drawn) == trials - trials // 3 == math.ceil(2 * trials / 3)
    for trial in drawn:
        assert all(default / 10.01 <= trial.rates[name] <= default * 10.01 for name, default in DEFAULTS.items())
    assert {trial.how for trial in done[len(drawn) :]} <= {"between", "beyond"}


def test_drawn_points_are_quasi_random_and_belong_to_the_seed():
    points = np.array([[trial.rates[name] for name in DEFAULTS] for trial in search(peak(1), 48)[1:32]])
    unit = (np.log10(points) - np.log10([1e-3, 1e-2]) + 1) / 2
    uniform = np.random.default_rng(0).random((200, *unit.shape))
    worse = np.mean([qmc.discrepancy(each) > qmc.discrepancy(unit) for each in uniform])
    assert worse > 0.95, "more even than random points"
    again, other = search(peak(1), 48), search(peak(1), 48, seed=1)
    assert [t.rates for t in again] == [t.rates for t in search(peak(1), 48)]
    assert again[1].rates != other[1].rates


@pytest.mark.parametrize("at", [1e-5, 1.0])
def test_a_winner_at_the_edge_extends_the_range(at):
    done = search(peak(at), 12, {"learning_rate": 1e-3})
    sign = 1 if at == 1.0 else -1
    steps = done[8:]
    assert {trial.how for trial in steps} == {"beyond"}
    values = [best_of(done[:8]).rates["learning_rate"], *(trial.rates["learning_rate"] for trial in steps)]
    assert all(sign * (math.log(b) - math.log(a)) > 0 for a, b in pairwise(values))
    drawn = sorted(math.log(trial.rates["learning_rate"]) for trial in done[:8])
    spacing = (drawn[-1] - drawn[0]) / 7
    assert abs(math.log(values[1] / values[0])) == pytest.approx(spacing, rel=1e-3)
    assert at_edge(best_of(done), done) == {"learning_rate": "highest" if sign > 0 else "lowest"}


def test_a_winner_inside_is_closed_in_on():
    done = search(peak(1.3e-3), 15, {"learning_rate": 1e-3})
    distances = [abs(math.log10(best_of(done[:n]).rates["learning_rate"] / 1.3e-3)) for n in (10, 15)]
    assert {trial.how for trial in done[10:]} == {"between"} and distances[1] <= distances[0]
    assert distances[1] < 0.05 and at_edge(best_of(done), done) == {}
    best, first = best_of(done[:10]), done[10]
    values = sorted({trial.rates["learning_rate"] for trial in done[:10]})
    place = values.index(best.rates["learning_rate"])
    score = {trial.rates["learning_rate"]: trial.score for trial in done[:10]}
    better = max(values[place - 1], values[place + 1], key=score.get)
    assert first.rates["learning_rate"] == pytest.approx(math.sqrt(values[place] * better), rel=1e-3)


def test_every_rate_is_refined_and_the_others_stay_at_the_best():
    done = search(lambda found: peak(9e-4)(found) + peak(1.1e-2, "kernel_learning_rate")(found), 30)
    moved = set()
    for number, trial in enumerate(done):
        if trial.how in ("between", "beyond"):
            best = best_of(done[:number]).rates
            changed = {name for name in DEFAULTS if trial.rates[name] != best[name]}
            assert len(changed) == 1
            moved |= changed
    assert moved == set(DEFAULTS)


def test_no_rate_passes_the_highest_that_a_configuration_takes():
    done = search(peak(100.0), 30, {"learning_rate": 0.5})
    assert max(trial.rates["learning_rate"] for trial in done) == 1.0


def test_a_trial_that_diverges_counts_and_bounds_the_range():
    """Everything above 2e-3 diverges, and the rest gets better towards it."""
    done = search(
        lambda found: None if found["learning_rate"] > 2e-3 else peak(1.0)(found), 12, {"learning_rate": 1e-3}
    )
    failed = [trial for trial in done if trial.score is None]
    assert failed and len(done) == 12
    best = best_of(done)
    assert best.score is not None and 1e-3 <= best.rates["learning_rate"] <= 2e-3
    assert at_edge(best, done) == {}, "the values above were tried"


def test_if_all_have_diverged_the_rates_go_down():
    done = search(lambda found: None if found["learning_rate"] > 5e-5 else 0.5, 9)
    assert [trial.how for trial in done[6:]][:1] == ["lower"] and best_of(done).score == 0.5
    lowest = min(trial.rates["learning_rate"] for trial in done[:6])
    assert done[6].rates["learning_rate"] == pytest.approx(lowest / 10, rel=1e-3)


def test_equal_scores_keep_the_first():
    assert best_of(search(lambda found: 0.5, 9)).number == 1
    assert best_of([]) is None


# --------------------------------------------------------------------------------------------------------- real arms


@pytest.fixture
def data(tiny_data):
    return as_retrieval_data(tiny_data, "train"), as_retrieval_data(tiny_data, "validation")


def arm_of(name, config):
    return MethodTrainer(find_method(name), config, CPU)


def test_what_an_arm_has_to_tune(tiny_settings):
    config = tiny_settings(tune=3)
    assert set(arm_of("lora", config).default_rates(42)) == {"learning_rate"}
    maw = arm_of("maw", config).default_rates(42)
    assert maw == {"learning_rate": 2e-4, "kernel_learning_rate": 0.01, "router_learning_rate": 3e-3}
    without = arm_of("maw", tiny_settings(router="random", finetune_layers="none")).default_rates(42)
    assert without == {"kernel_learning_rate": 0.01}, "a rate by which nothing is trained is not tuned"
    set_by_hand = arm_of("maw", tiny_settings(kernel_learning_rate=0.2)).default_rates(42)
    assert set_by_hand["kernel_learning_rate"] == 0.2


def test_the_rates_reach_the_optimizers(tiny_settings):
    arm = arm_of("maw", tiny_settings())
    wanted = {"learning_rate": 0.5, "kernel_learning_rate": 0.25, "router_learning_rate": 0.125}
    config = arm.configure(7, wanted)
    assert (config.seed, config.tune, config.seeds, config.folds) == (7, 0, 1, 0)
    assert rates(arm.build(config), config) == wanted


@pytest.mark.parametrize("trials", [1, 3, 4])
def test_every_arm_gets_exactly_as_many_trainings(tiny_settings, data, trials, monkeypatch):
    """Failures count: an arm that diverges often gets no more trials than another."""
    calls = {}
    real = MethodTrainer.train

    def counted(self, model, *rest, **options):
        calls.setdefault(self.method.name, []).append(model.config)
        if self.method.name == "maw" and len(calls["maw"]) == 2:
            raise NotFiniteError("loss nan")
        return real(self, model, *rest, **options)

    monkeypatch.setattr(MethodTrainer, "train", counted)
    config = tiny_settings(tune=trials, num_epochs=1)
    for method in in_order(config.methods):
        if method.trained:
            found = tune(MethodTrainer(method, config, CPU), *data, "tiny", trials, config.seed)
            assert len(found.trials) == len(found.record["trials"]) == trials
            assert found.rates == found.record["chosen"] == found.trials[found.record["chosen_trial"] - 1].rates
            assert best_of(found.trials).rates == found.rates
    assert {name: len(each) for name, each in calls.items()} == {"lora": trials, "maw": trials}
    assert {each.seed for configs in calls.values() for each in configs} == {config.seed}


def test_a_test_embedding_that_is_not_finite_is_said_of_dataset_and_method(tiny_settings, data, monkeypatch):
    def evaluate(*words, **options):
        raise NotFiniteError("the embedding of text 3 (test documents) is not finite")

    monkeypatch.setattr("maw.experiment.method_trainer.evaluate_retriever", evaluate)
    collection = SimpleNamespace(name="tiny", train=data[0], validation=data[1], test=data[1])
    with pytest.raises(NotFiniteError, match=r"^tiny zero_shot: the embedding of text 3"):
        arm_of("zero_shot", tiny_settings()).run(collection, 42)


def test_the_account_says_what_was_tried(tiny_settings, data, caplog):
    shown = []
    caplog.set_level(logging.DEBUG, "maw")
    config = tiny_settings(tune=3, num_epochs=1)
    found = tune(arm_of("lora", config), *data, "tiny", 3, 42, lambda *each: shown.append(each)).record
    assert [(trial.number, total) for trial, total, _ in shown] == [(1, 3), (2, 3), (3, 3)]
    assert [trial.record for trial, *_ in shown] == found["trials"] and shown[0][2] is True
    events = [each.event for each in caplog.records if hasattr(each, "event") and each.event["event"] == "trial"]
    assert events == [{"event": "trial", "training": "tiny lora"} | trial for trial in found["trials"]]
    tried = [trial["rates"]["learning_rate"] for trial in found["trials"]]
    assert found["tried"] == {"learning_rate": [min(tried), max(tried)]}
    assert found["range"]["learning_rate"] == (pytest.approx(3e-4), pytest.approx(3e-2))
    assert found["seconds"] == pytest.approx(sum(trial["seconds"] for trial in found["trials"]))
    assert all({"steps", "optimizer_steps", "best_epoch"} <= trial.keys() for trial in found["trials"])
    inside = min(tried) >= 2.9999e-4 and max(tried) <= 3.0001e-2
    assert found["extended"] == ([] if inside else ["learning_rate"])


@pytest.mark.parametrize("measured, joules", [({"GPUs": 2.0, "processors": 1.0}, 3.0), ({}, None)])
def test_a_trial_says_what_energy_was_measured(measured, joules, tiny_settings, data, monkeypatch):
    monkeypatch.setattr("maw.runtime.energy.EnergyMeter.joules", lambda self: measured)
    (trial,) = tune(arm_of("lora", tiny_settings(tune=1, num_epochs=1)), *data, "tiny", 1, 42).record["trials"]
    found = {key: trial[key] for key in ("joules", "measured_joules", "measured_devices")}
    assert found == {"joules": joules, "measured_joules": joules, "measured_devices": list(measured)}


def test_a_training_that_diverges_is_a_failed_trial_and_all_of_them_an_error(tiny_settings, data, monkeypatch):
    arm = arm_of("lora", tiny_settings(num_epochs=1))
    real = torch.nn.utils.clip_grad_norm_

    def broken(parameters, limit):
        real(parameters, limit)
        return torch.tensor(math.nan)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", broken)
    with pytest.raises(MAWError, match=r"tiny lora: all 3 trials diverged \(.*not finite"):
        tune(arm, *data, "tiny", 3, 42)
    monkeypatch.setattr(MethodTrainer, "train", lambda *_, **__: (_ for _ in ()).throw(MAWError("the disk is full")))
    with pytest.raises(MAWError, match="the disk is full"):
        tune(arm, *data, "tiny", 3, 42)


class Untouchable(RetrievalData):
    """A test split that must not be looked at."""

    def __init__(self):
        pass

    def __getattribute__(self, name):
        if not name.startswith("__"):
            raise AssertionError(f"the test data were touched: {name}")
        return super().__getattribute__(name)


def test_tuning_never_reads_test_data_and_writes_no_checkpoint(tiny_settings, data, tmp_path):
    from maw.experiment.dataset_result import Outcome
    from maw.experiment.method_run import MethodRunner
    from maw.models.pretrained import model_spec

    config = tiny_settings(tune=3, num_epochs=1)
    collection = SimpleNamespace(name="tiny", train=data[0], validation=data[1], test=Untouchable())
    run = MethodRunner(Outcome(collection, config, model_spec(config), CPU), [collection], None)
    arm = arm_of("maw", config)
    chosen, account = run._tune(arm, collection, None)
    assert len(account["trials"]) == 3 and chosen == account["chosen"]
    assert not (tmp_path / "logs").exists()
    with pytest.raises(AssertionError, match="the test data were touched"):
        arm.run(collection, 42, chosen)
