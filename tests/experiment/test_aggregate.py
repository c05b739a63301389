"""Trainings of one method as one result: folds are joined, then seeds are averaged for each query before any test."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from maw.evaluation.metrics import METRICS, EvaluationResult
from maw.evaluation.significance import paired_test
from maw.experiment.aggregate import averaged, combine, joined, spread
from maw.experiment.method_trainer import TrainingResult


def evaluation(values, first=0, **facts):
    values = np.asarray(values, np.float64)
    about = {"split": "test", "queries": len(values), "documents": 9, "encode_seconds": 2.0, "search_seconds": 0.5}
    about["queries_per_second"] = len(values) / 0.5
    ids = [f"q{i}" for i in range(first, first + len(values))]
    return EvaluationResult(ids, dict.fromkeys(METRICS, values), facts=about | facts)


def run(seed, fold, test, validation=None, first=0, **more):
    record = {
        "seed": seed,
        **({} if fold is None else {"fold": fold}),
        "learning_rate": 0.1,
        "rates": {"learning_rate": 0.1},
        "training_history": [{"epoch": 1, "seed": seed}],
        "trained_parameters": 7,
        "best_epoch": seed,
        "steps": 10,
        "optimizer_steps": 5,
        "training_seconds": 1.0,
        "evaluation_seconds": 2.0,
        "runtime_seconds": 3.0,
        "energy": {"training_joules": 12.0, "evaluation_joules": 24.0, "measured_joules": 0.5},
        "metrics": {},
        "evaluation": {},
    }
    held = None if validation is None else evaluation(validation, first + 100)
    return TrainingResult(seed, fold, record | more, evaluation(test, first), held)


def test_one_run_is_what_it_was():
    one = run(42, None, [0.5, 1.0], [0.25])
    result = combine([one])
    assert result.evaluation is one.evaluation and result.validation is one.validation
    assert "spread" not in result.record and "seed" not in result.record
    assert result.record["runs"] == [one.record]
    assert result.record["metrics"]["map"] == 0.75 and result.record["val_ndcg_cut_10"] == 0.25
    assert (result.record["best_epoch"], result.record["steps"]) == (42, 10)


def test_folds_are_joined_and_seeds_averaged():
    runs = [
        run(43, 2, [0.2], [0.0], first=2),
        run(42, 1, [0.0, 1.0], [0.5, 0.5]),
        run(43, 1, [0.5, 0.5], [1.0, 0.0]),
        run(42, 2, [0.6], [1.0], first=2),
    ]
    result = combine(runs)
    assert result.evaluation.query_ids == ["q0", "q1", "q2"]
    np.testing.assert_allclose(result.evaluation.per_query["ndcg_cut_10"], [0.25, 0.75, 0.4])
    np.testing.assert_allclose(result.validation.per_query["ndcg_cut_10"], [0.75, 0.25, 0.5])
    seeds = [1.6 / 3, 1.2 / 3]
    assert result.record["metrics"]["ndcg_cut_10"] == pytest.approx(np.mean(seeds))
    assert result.record["spread"] == {
        "metric": "ndcg_cut_10",
        "seeds": 2,
        "mean": pytest.approx(np.mean(seeds)),
        "std": pytest.approx(abs(seeds[0] - seeds[1]) / np.sqrt(2)),
        "min": pytest.approx(0.4),
        "max": pytest.approx(1.6 / 3),
    }
    assert [(each["seed"], each["fold"]) for each in result.record["runs"]] == [(42, 1), (42, 2), (43, 1), (43, 2)]
    totals = {key: result.record[key] for key in ("steps", "optimizer_steps", "training_seconds", "runtime_seconds")}
    assert totals == {"steps": 40, "optimizer_steps": 20, "training_seconds": 4.0, "runtime_seconds": 12.0}
    assert result.record["energy"] == {"training_joules": 48, "evaluation_joules": 96, "measured_joules": 2}
    assert result.record["training_history"][0]["seed"] == 42 and result.record["trained_parameters"] == 7
    assert "best_epoch" not in result.record, "runs differ in it"
    facts = result.evaluation.facts
    assert facts["queries"] == 3 and facts["evaluations"] == 4 and facts["documents"] == 9
    assert facts["encode_seconds"] == 8.0 and facts["queries_per_second"] == pytest.approx(6 / 2)


def energy(joules, *devices):
    amounts = {"training_joules": joules, "evaluation_joules": joules, "measured_joules": joules}
    return {"energy": amounts | {"measured_devices": list(devices)}}


@pytest.mark.parametrize(
    "first, second, total",
    [
        (energy(1.5, "GPUs"), energy(2.0, "GPUs"), energy(3.5, "GPUs")),
        (energy(None), energy(None), energy(None)),
        (energy(1.5, "GPUs"), energy(None), energy(None)),
        (energy(None), energy(1.5, "GPUs"), energy(None)),
        (energy(1.5, "GPUs"), energy(2.0, "processors", "GPUs"), energy(None)),
    ],
)
def test_energy_is_summed_where_the_same_devices_were_measured(first, second, total):
    runs = [run(42, None, [0.5], **first), run(43, None, [0.5], **second)]
    assert combine(runs).record["energy"] == total["energy"]


def test_the_attention_shown_is_the_first_seeds():
    runs = [replace(run(seed, None, [0.5]), attention={"seed": seed}) for seed in (43, 42)]
    assert combine(runs).attention == {"seed": 42} and combine([run(42, None, [0.5])]).attention is None


def test_rankings_of_folds_are_joined_and_those_of_seeds_kept_apart():
    def ranked(seed, fold, first, width=3):
        one = run(seed, fold, [0.5, 0.25], first=first)
        rows = np.arange(2 * width).reshape(2, width) + 10 * first
        one.evaluation.run = {"rows": rows, "scores": rows / 8}
        return one

    runs = [ranked(42, 1, 0), ranked(42, 2, 2), ranked(43, 1, 0), ranked(43, 2, 2)]
    result = combine(runs)
    assert list(result.by_seed) == [42, 43] and result.evaluation.run is None, "seeds have no ranking in common"
    joined_run = result.by_seed[43].run
    np.testing.assert_array_equal(joined_run["rows"], [[0, 1, 2], [3, 4, 5], [20, 21, 22], [23, 24, 25]])
    np.testing.assert_array_equal(joined_run["scores"], joined_run["rows"] / 8)
    assert result.by_seed[43].query_ids == result.evaluation.query_ids
    assert combine([ranked(42, 1, 0), ranked(42, 2, 2, width=4)]).by_seed[42].run is None, "of other corpora"
    assert combine(runs[:1]).by_seed[42] is runs[0].evaluation


def test_seeds_are_no_further_observations_of_a_query():
    """The planted error: seeds of one query laid end to end make a small difference look certain."""
    random = np.random.default_rng(0)
    difference = random.normal(0, 0.2, 40)
    difference += 0.05 - difference.mean()
    base = random.random(40)
    noise = random.normal(0, 0.01, (2, 8, 40))
    new = combine([run(seed, None, base + difference + noise[0, seed]) for seed in range(8)]).evaluation
    old = combine([run(seed, None, base + noise[1, seed]) for seed in range(8)]).evaluation
    right = paired_test(new.per_query["map"], old.per_query["map"])
    assert right.n == 40
    laid_out = paired_test((base + difference + noise[0]).ravel(), (base + noise[1]).ravel())
    assert laid_out.n == 320 and laid_out.p_value < 0.001 < 0.05 < right.p_value
    assert right.mean_difference == pytest.approx(laid_out.mean_difference)
    assert (laid_out.ci_high - laid_out.ci_low) < 0.5 * (right.ci_high - right.ci_low)


def test_what_does_not_belong_together_is_refused():
    with pytest.raises(ValueError, match="seeds were tested on different queries"):
        averaged([evaluation([0.5]), evaluation([0.5], first=1)])
    with pytest.raises(ValueError, match="evaluated on two folds"):
        joined([evaluation([0.5]), evaluation([0.5])])


def test_answer_match_over_folds_and_seeds():
    def with_answers(share, queries, of, first):
        match = {"top_1": share, "top_5": share, "top_100": None, "queries": queries, "coverage": queries / of}
        return evaluation([0.5] * of, first, answer_match=match | {"first_hit": [1] * of})

    one = joined([with_answers(0.5, 2, 4, 0), with_answers(1.0, 6, 6, 4)])
    match = one.facts["answer_match"]
    assert match == {"top_1": 0.875, "top_5": 0.875, "top_100": None, "queries": 8, "coverage": 0.8}
    other = joined([with_answers(0.0, 2, 4, 0), with_answers(0.5, 6, 6, 4)])
    assert averaged([one, other]).facts["answer_match"]["top_1"] == pytest.approx((0.875 + 0.375) / 2)


def test_spread_by_hand():
    found = spread([0.2, 0.4, 0.9])
    assert (found["mean"], found["min"], found["max"]) == (pytest.approx(0.5), 0.2, 0.9)
    assert found["std"] == pytest.approx(np.sqrt((0.09 + 0.01 + 0.16) / 2))
