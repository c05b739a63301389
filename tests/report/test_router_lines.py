"""The sentence on what a router has learnt."""

from __future__ import annotations

import pytest

from maw.report.text.router import router_lines


def side(reward, p_value, *, ndcg=0.001, distance=0.02, changed=0.5):
    test = {"mean_difference": reward, "p_value": p_value}
    learnt = {"reward_against_start": test, "against_start": {"mean_difference": ndcg, "p_value": 0.7}}
    return {"depth_distance": distance, "changed_share": [changed], "learnt": learnt}


def record(query, document, flat=0.5):
    history = [{"epoch": 1, "flat_group_share": flat, "val_routing": {}}]
    history.append({"epoch": 2, "val_routing": {"query": query, "document": document}})
    return {"seed": 42, "training_history": history, "best_epoch": 2}


def test_what_was_learnt_is_named_with_its_side_reward_and_ranking():
    (line,) = router_lines(record(side(0.03, 0.6), side(0.046, 0.004)))
    assert line.startswith("Router: it learnt to pick better depths for documents; ")
    assert "queries +0.0300 nats of reward (p = 0.6000; nDCG@10 +0.0010)" in line
    assert "documents +0.0460 nats of reward (p = 0.0080; nDCG@10 +0.0010)" in line, "Holm's correction over two sides"


def test_a_worse_router_and_one_that_is_better_before_correction_have_learnt_nothing():
    (line,) = router_lines(record(side(-0.05, 0.001), side(0.046, 0.2)))
    assert line.startswith("Router: it has learnt nothing that validation shows; ")
    (line,) = router_lines(record(side(0.05, 0.03), side(0.0, 1.0)))
    assert line.startswith("Router: it has learnt nothing that validation shows; ")


@pytest.mark.parametrize(
    ("options", "flat", "advice"),
    [
        ({"distance": 0.0002}, 0.5, "--kernel-learning-rate"),
        ({}, 0.95, "--grpo-group distinct"),
        ({"changed": 0.01}, 0.5, "--router-learning-rate"),
        ({}, 0.5, "More training queries"),
    ],
)
def test_a_run_that_learnt_nothing_says_what_to_try(options, flat, advice):
    each = side(0.0, 0.9, **options)
    (line,) = router_lines(record(each, each, flat))
    assert advice in line


def test_several_depths_are_compared_in_ndcg_and_trainings_have_names():
    each = side(0.0, 0.9)
    each["learnt"]["reward_against_start"] = None
    each["learnt"]["against_start"] = {"mean_difference": 0.02, "p_value": 0.00001}
    runs = [record(each, each) | {"fold": 1}, record(each, each) | {"seed": 43, "fold": 2}]
    lines = router_lines({"runs": runs})
    assert [line.split(":")[0] for line in lines] == ["Router, seed 42, fold 1", "Router, seed 43, fold 2"]
    assert "queries and documents" in lines[0] and "+0.0200 nDCG@10 (p <0.0001)" in lines[0]


def test_other_methods_and_old_results_have_no_sentence():
    old = record({}, {})
    assert router_lines({}) == router_lines(old) == router_lines({"runs": [old, {"steps": 9}]}) == []
