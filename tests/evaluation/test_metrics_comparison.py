"""The same ranking in other evaluators: ir_measures, and pytrec_eval by itself."""

from __future__ import annotations

import ir_measures
import numpy as np
import pytest
import pytrec_eval

from maw.evaluation.metrics import METRICS, compute_metrics

_IR_MEASURES_NAMES = {
    "ndcg_cut": "nDCG",
    "map_cut": "AP",
    "recip_rank": "RR",
    "recall": "R",
    "P": "P",
    "success": "Success",
    "ndcg": "nDCG",
    "map": "AP",
    "Rprec": "Rprec",
    "bpref": "Bpref",
}


def in_ir_measures(key: str, level: int = 1):
    name, _, cutoff = key.rpartition("_")
    ours = _IR_MEASURES_NAMES[name if cutoff.isdigit() else key]
    graded = f"{ours}(rel={level})" if level != 1 and ours != "nDCG" else ours
    return ir_measures.parse_measure(f"{graded}@{cutoff}" if cutoff.isdigit() else graded)


@pytest.fixture(scope="module", params=[0, 1, 2])
def case(request):
    """A run with ties, graded and missing judgements, and rankings of different depth."""
    random = np.random.default_rng(request.param)
    docs = [f"d{each}" for each in range(1300)]
    query_ids = [f"q{each}" for each in range(20)]
    rankings, scores, qrels = [], [], {}
    for query in query_ids:
        depth = int(random.choice([2, 9, 30, 1100]))
        rankings.append([docs[each] for each in random.permutation(1300)[:depth]])
        scores.append(random.integers(0, max(2, depth // 3), depth).astype(np.float32).tolist())
        found = random.permutation(depth)[: random.integers(1, 8)]
        qrels[query] = {rankings[-1][each]: int(random.integers(0, 4)) for each in found}
        qrels[query] |= {docs[each]: int(random.integers(0, 4)) for each in random.permutation(1300)[:5]}
        qrels[query]["d0"] = 1
    run = {query: dict(zip(found, values)) for query, found, values in zip(query_ids, rankings, scores)}
    return compute_metrics(query_ids, rankings, scores, qrels), run, qrels


def test_ir_measures_agrees(case):
    result, run, qrels = case
    measures = {in_ir_measures(key): key for key in METRICS if key != "F1_10"}
    assert len(measures) == 35
    position = {query: index for index, query in enumerate(result.query_ids)}
    compared = 0
    for each in ir_measures.iter_calc(list(measures), qrels, run):
        key = measures[each.measure]
        if key == "recip_rank_10":  # ir_measures' RR@10 breaks ties otherwise; see the next test
            continue
        assert result.per_query[key][position[each.query_id]] == pytest.approx(each.value, abs=1e-9), key
        compared += 1
    assert compared == 34 * len(position)
    means = ir_measures.calc_aggregate(
        [measure for measure, key in measures.items() if key != "recip_rank_10"], qrels, run
    )
    assert {measures[measure]: value for measure, value in means.items()} == pytest.approx(
        {key: result[key] for key in METRICS if key not in ("F1_10", "recip_rank_10")}, abs=1e-9
    )


@pytest.mark.parametrize("level", [2, 3])
def test_ir_measures_agrees_from_a_higher_grade(case, level):
    """Binary metrics count from the level; nDCG keeps the grades as gains."""
    first, run, qrels = case
    docs, scores = zip(*((list(found), list(found.values())) for found in run.values()))
    result = compute_metrics(list(run), docs, scores, qrels, relevance_level=level)
    measures = {in_ir_measures(key, level): key for key in METRICS if key not in ("F1_10", "recip_rank_10")}
    position = {query: index for index, query in enumerate(result.query_ids)}
    compared = 0
    for each in ir_measures.iter_calc(list(measures), qrels, run):
        key = measures[each.measure]
        assert result.per_query[key][position[each.query_id]] == pytest.approx(each.value, abs=1e-9), key
        compared += 1
    assert compared == 34 * len(position)
    binary = [key for key in METRICS if not key.startswith("ndcg")]
    assert all(result[key] == first[key] for key in METRICS if key not in binary)
    unequal = [key for key in binary if result[key] != first[key]]
    assert {"recip_rank_10", "F1_10", "success_1", "bpref", "Rprec", "map", "P_10", "recall_100"} <= set(unequal)


@pytest.mark.parametrize("level", [1, 2])
def test_our_two_agree_with_pytrec_eval_on_a_run_cut_to_ten(case, level):
    _, run, qrels = case
    docs, scores = zip(*((list(found), list(found.values())) for found in run.values()))
    result = compute_metrics(list(run), docs, scores, qrels, relevance_level=level)
    cut = {
        query: dict(sorted(found.items(), key=lambda pair: (pair[1], pair[0]), reverse=True)[:10])
        for query, found in run.items()
    }
    wanted = {"recip_rank", "P.10", "recall.10"}
    values = pytrec_eval.RelevanceEvaluator(qrels, wanted, relevance_level=level).evaluate(cut)
    for position, query in enumerate(result.query_ids):
        precision, recall = values[query]["P_10"], values[query]["recall_10"]
        f1 = 2 * precision * recall / (precision + recall) if precision else 0.0
        assert result.per_query["recip_rank_10"][position] == pytest.approx(values[query]["recip_rank"], abs=1e-9)
        assert result.per_query["F1_10"][position] == pytest.approx(f1, abs=1e-9)


def test_pytrec_eval_agrees_exactly(case):
    result, run, qrels = case
    values = pytrec_eval.RelevanceEvaluator(qrels, pytrec_eval.supported_measures).evaluate(run)
    shared = [key for key in METRICS if key in next(iter(values.values()))]
    assert {"map", "bpref", "Rprec", "ndcg", "P_10", "recall_100", "success_5"} <= set(shared)
    for key in shared:
        assert result.per_query[key].tolist() == [values[query][key] for query in result.query_ids]


def test_reciprocal_rank_at_ten_of_ir_measures_without_ties():
    docs = [f"d{each}" for each in range(30)]
    scores = [float(-each) for each in range(30)]
    for rank in (0, 4, 9, 10, 29):
        qrels = {"q": {docs[rank]: 1}}
        expected = ir_measures.calc_aggregate([ir_measures.RR @ 10], qrels, {"q": dict(zip(docs, scores))})
        assert compute_metrics(["q"], [docs], [scores], qrels)["recip_rank_10"] == expected[ir_measures.RR @ 10]


def test_a_dropped_query_would_inflate_the_mean():
    """What pytrec_eval does by itself, and the reason not to leave it alone."""
    qrels, run = {"p": {"a": 1}, "q": {"a": 1}}, {"p": {"a": 1.0}}
    alone = pytrec_eval.RelevanceEvaluator(qrels, {"map"}).evaluate(run)
    assert np.mean([values["map"] for values in alone.values()]) == 1.0
    assert compute_metrics(["p"], [["a"]], [[1.0]], qrels)["map"] == 0.5
