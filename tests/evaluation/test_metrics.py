"""The 36 metrics against a reference written out here, and against values by hand."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from maw.errors import DataError, MAWError
from maw.evaluation.metrics import (
    FAMILIES,
    METRIC_LABELS,
    METRICS,
    PRIMARY,
    bpref_warning,
    compute_metrics,
    cutoff_warning,
)

CUTOFFS = (1, 3, 5, 10, 15, 20, 100, 1000)


def by_hand(scored: dict[str, float], grades: dict[str, int]) -> dict[str, float]:
    """All 36 for one query, straight from their definitions; scores must differ from one another."""
    ranking = sorted(scored, key=scored.get, reverse=True)
    gains = [max(grades.get(doc, 0), 0) for doc in ranking]
    hits = [gain >= 1 for gain in gains]
    relevant = sum(grade >= 1 for grade in grades.values())
    ideal = sorted((grade for grade in grades.values() if grade > 0), reverse=True)

    def dcg(values):
        return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(values, 1))

    def ndcg(cutoff):
        return dcg(gains[:cutoff]) / dcg(ideal[:cutoff]) if ideal else 0.0

    def average_precision(cutoff):
        found = [sum(hits[:rank]) / rank for rank in range(1, min(cutoff, len(hits)) + 1) if hits[rank - 1]]
        return sum(found) / relevant if relevant else 0.0

    def reciprocal_rank(cutoff):
        return next((1 / rank for rank, hit in enumerate(hits[:cutoff], 1) if hit), 0.0)

    judged_not = sum(grade == 0 for grade in grades.values())
    total = 0.0
    for rank, doc in enumerate(ranking):
        if grades.get(doc, 0) >= 1:
            above = sum(grades.get(other) == 0 for other in ranking[:rank])
            total += 1 - min(above, relevant) / min(relevant, judged_not) if above else 1
    everything = len(ranking)
    values = {"ndcg": ndcg(everything + len(ideal)), "map": average_precision(everything)}
    values |= {"recip_rank": reciprocal_rank(everything), "recip_rank_10": reciprocal_rank(10)}
    values |= {f"map_cut_{cutoff}": average_precision(cutoff) for cutoff in (10, 100)}
    values |= {f"success_{cutoff}": float(any(hits[:cutoff])) for cutoff in (1, 5, 10)}
    for cutoff in CUTOFFS:
        values[f"ndcg_cut_{cutoff}"] = ndcg(cutoff)
        values[f"P_{cutoff}"] = sum(hits[:cutoff]) / cutoff
        values[f"recall_{cutoff}"] = sum(hits[:cutoff]) / relevant if relevant else 0.0
    precision, recall = values["P_10"], values["recall_10"]
    values["F1_10"] = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    values["Rprec"] = sum(hits[:relevant]) / relevant if relevant else 0.0
    values["bpref"] = total / relevant if relevant else 0.0
    return values


def one(docs: list[str], grades: dict[str, int], **options: int):
    """Metrics of a single query whose passages come in this order."""
    return compute_metrics(["q"], [docs], [[float(-rank) for rank in range(len(docs))]], {"q": grades}, **options)


def test_names():
    assert len(METRICS) == len(set(METRICS)) == 36
    assert {family: len(keys) for family, keys in FAMILIES.items()} == {
        "ranking": 12,
        "recall": 8,
        "precision": 8,
        "other": 8,
    }
    assert [METRIC_LABELS[key] for key in PRIMARY] == [
        "nDCG@10", "MAP", "Recall@100", "MRR@10", "Precision@10", "F1@10", "R-Precision", "bpref",
        "Success@5", "nDCG",
    ]  # fmt: skip
    assert METRIC_LABELS["map_cut_100"] == "MAP@100" and METRIC_LABELS["recip_rank"] == "MRR"
    assert len(set(METRIC_LABELS.values())) == 36


def test_one_relevant_passage_at_rank_two():
    result = one(["b", "a", "c"], {"a": 1})
    half, log = 0.5, 1 / math.log2(3)
    expected = dict.fromkeys(METRICS, 0.0)
    expected |= {f"ndcg_cut_{cutoff}": log for cutoff in CUTOFFS[1:]} | {"ndcg": log}
    expected |= {f"recall_{cutoff}": 1.0 for cutoff in CUTOFFS[1:]} | {
        f"P_{cutoff}": 1 / cutoff for cutoff in CUTOFFS[1:]
    }
    expected |= {"map": half, "map_cut_10": half, "map_cut_100": half, "recip_rank": half, "recip_rank_10": half}
    expected |= {"bpref": 1.0, "success_5": 1.0, "success_10": 1.0, "F1_10": 2 * 0.1 * 1 / 1.1}
    assert dict(result) == pytest.approx(expected, abs=1e-12)
    assert list(result) == list(METRICS)


def test_grades_are_gains():
    result = one(["c", "a", "b"], {"a": 3, "b": 1, "c": 0})
    dcg = 3 / math.log2(3) + 1 / 2
    ideal = 3 + 1 / math.log2(3)
    assert result["ndcg_cut_10"] == pytest.approx(dcg / ideal, abs=1e-12)
    assert result["bpref"] == 0.0  # the one judged non-relevant passage stands above both
    assert result["Rprec"] == 0.5


def test_relevance_level_moves_the_binary_metrics_only():
    lenient, strict = one(["a", "b"], {"a": 1, "b": 2}), one(["a", "b"], {"a": 1, "b": 2}, relevance_level=2)
    assert (lenient["recip_rank"], strict["recip_rank"], strict["recip_rank_10"]) == (1.0, 0.5, 0.5)
    assert lenient["ndcg_cut_10"] == strict["ndcg_cut_10"]


@pytest.mark.parametrize(("rank", "expected"), [(1, 1.0), (2, 0.5), (10, 0.1), (11, 0.0), (300, 0.0)])
def test_reciprocal_rank_of_a_run_cut_to_ten(rank, expected):
    docs = [f"x{each}" for each in range(1, rank)] + ["a", "z"]
    assert one(docs, {"a": 1})["recip_rank_10"] == expected


@pytest.mark.parametrize("seed", range(25))
def test_random_runs_against_the_reference(seed):
    random = np.random.default_rng(seed)
    docs = [f"d{each}" for each in range(1500)]
    query_ids = [f"q{each}" for each in range(4)]
    rankings, scores, qrels = [], [], {}
    for query in query_ids:
        depth = int(random.choice([1, 3, 8, 12, 50, 1200]))
        rankings.append([docs[each] for each in random.permutation(1500)[:depth]])
        scores.append(random.permutation(depth).astype(np.float32).tolist())
        judged = random.permutation(1500 if seed % 2 else 40)[: random.integers(1, 30)]
        qrels[query] = {docs[each]: int(random.integers(0, 4)) for each in judged}
        qrels[query] |= {rankings[-1][0]: int(random.integers(0, 2))}
    result = compute_metrics(query_ids, rankings, scores, qrels)
    assert result.query_ids == query_ids
    for position, query in enumerate(query_ids):
        expected = by_hand(dict(zip(rankings[position], scores[position])), qrels[query])
        got = {key: result.per_query[key][position] for key in METRICS}
        assert got == pytest.approx(expected, abs=1e-9), f"seed {seed}, {query}"


def test_a_query_missing_from_the_run_scores_zero():
    full = compute_metrics(["q1"], [["a"]], [[1.0]], {"q1": {"a": 1}})
    half = compute_metrics(["q1"], [["a"]], [[1.0]], {"q0": {"a": 1}, "q1": {"a": 1}})
    assert half.query_ids == ["q1", "q0"]
    for key in METRICS:
        assert half[key] == full[key] / 2
        np.testing.assert_array_equal(half.per_query[key], [full[key], 0.0])


def test_a_query_that_found_nothing_or_has_nothing_to_find_scores_zero():
    result = compute_metrics(
        ["empty", "none", "unjudged", "good"],
        [[], ["a"], ["a"], ["a"]],
        [[], [1.0], [1.0], [1.0]],
        {"empty": {"a": 1}, "none": {"a": 0}, "unjudged": {}, "good": {"a": 1}},
    )
    assert all(not values[:3].any() for values in result.per_query.values())
    assert result["recip_rank"] == 0.25


def test_an_empty_run():
    result = compute_metrics([], [], np.empty((0, 10)), {"q": {"a": 1}})
    assert set(result.values()) == {0.0}


def test_equal_scores_are_ranked_by_id_descending():
    assert compute_metrics(["q"], [["a", "b", "c"]], [[1.0] * 3], {"q": {"c": 1}})["recip_rank"] == 1.0
    assert compute_metrics(["q"], [["a", "b", "c"]], [[1.0] * 3], {"q": {"a": 1}})["recip_rank"] == 1 / 3
    assert compute_metrics(["q"], [["z", "é"]], [[1.0] * 2], {"q": {"é": 1}})["recip_rank"] == 1.0  # by bytes


def test_scores_are_compared_in_float32():
    scores = np.array([[1.0 + 1e-12, 1.0]])
    assert compute_metrics(["q"], [["a", "b"]], scores, {"q": {"b": 1}})["recip_rank"] == 1.0


def test_a_negative_grade_is_not_relevant():
    result = one(["a", "b"], {"a": -1, "b": 1})
    assert result["recip_rank"] == 0.5 and result["recall_1"] == 0.0


def test_fewer_passages_than_the_cutoff():
    result = one(["a", "b"], {"a": 1, "b": 1, "c": 1})
    assert (result["P_10"], result["P_5"], result["recall_10"]) == (0.2, 0.4, 2 / 3)
    assert result["F1_10"] == pytest.approx(2 * 0.2 * (2 / 3) / (0.2 + 2 / 3), abs=1e-12)


def test_f1_is_averaged_over_queries_not_computed_from_averages():
    result = compute_metrics(["p", "q"], [["a"], ["b"]], [[1.0], [1.0]], {"p": {"a": 1}, "q": {"a": 1}})
    assert result["F1_10"] == pytest.approx((2 * 0.1 / 1.1) / 2, abs=1e-12)


def test_bpref_warning():
    assert bpref_warning({"p": {"a": 1}, "q": {"b": 2}}).startswith("bpref has no meaning here")
    assert bpref_warning({"q": {"a": 1, "b": -1}}) is not None
    assert bpref_warning({"q": {"a": 1, "b": 0}}) is None
    assert bpref_warning({"q": {"a": 1, "b": 2}}, relevance_level=2) is None


@pytest.mark.parametrize(("top_k", "passages"), [(1000, 8_841_823), (20, 20), (1000, 5)])
def test_nothing_is_said_of_a_ranking_that_is_long_enough(top_k, passages):
    assert cutoff_warning(top_k, passages) is None


@pytest.mark.parametrize(("top_k", "count"), [(999, 3), (100, 3), (99, 7), (15, 10), (5, 20), (1, 27)])
def test_metrics_beyond_the_ranking_are_named(top_k, count):
    warning = cutoff_warning(top_k, 5000)
    assert warning.startswith(f"only {top_k} of 5,000 passages were ranked for each query")
    beyond = warning.partition(": ")[2].partition(", and all metrics")[0].split(", ")
    assert warning.endswith("; top_k 1000 avoids it") and cutoff_warning(1, 7).endswith("; top_k 7 avoids it")
    assert len(beyond) == count and set(beyond) <= set(METRIC_LABELS.values())
    assert {"nDCG@1000", "Recall@1000", "Precision@1000"} <= set(beyond)
    assert ("Recall@100" in beyond) is (top_k < 100) and ("MRR@10" in beyond) is (top_k < 10)


@pytest.mark.parametrize("level", [0, -1, 2**31])
def test_a_relevance_level_that_is_no_grade(level):
    with pytest.raises(ValueError, match=f"relevance_level must be between 1 and 1000, not {level}"):
        one(["a", "b"], {"a": 0, "b": 1}, relevance_level=level)


def test_grades_of_numpy_are_whole_numbers_too():
    assert one(["a"], {"a": np.int64(1)})["map"] == 1.0


@pytest.mark.parametrize("grade", [1.0, "1", True, None, 1001, -1001, 2**40])
def test_grades_that_cannot_be_evaluated(grade):
    with pytest.raises(DataError, match="query 'q', passage 'a': grade"):
        one(["a"], {"a": grade})


@pytest.mark.parametrize("doc", ["a\0b", "\udc80", 7])
def test_ids_that_would_crash_the_evaluator(doc):
    with pytest.raises(DataError, match="query 'q': ids must be text"):
        one([doc], {"a": 1})
    with pytest.raises(DataError, match="query 'q': ids must be text"):
        one(["a"], {doc: 1})


@pytest.mark.parametrize(
    ("query_ids", "docs", "scores", "error", "message"),
    [
        (["x"], [["a"]], [[1.0]], DataError, "query 'x' of the run has no judgement"),
        (["q", "q"], [["a"], ["a"]], [[1.0], [1.0]], DataError, "query 'q' occurs twice"),
        (["q"], [["a", "b", "a"]], [[3.0, 2.0, 1.0]], DataError, "passage 'a' occurs twice"),
        (["q"], [["a"]], [[float("nan")]], MAWError, "query 'q': a score is NaN"),
        (["q"], [["a"]], [[1e300]], MAWError, "query 'q': a score is NaN or infinite"),
        (["q"], [["a"]], [[1.0, 2.0]], ValueError, "1 passages but 2 scores"),
        (["q"], [], [], ValueError, "must have the same number"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_runs_that_cannot_be_measured(query_ids, docs, scores, error, message):
    with pytest.raises(error, match=message):
        compute_metrics(query_ids, docs, scores, {"q": {"a": 1}})


def test_nothing_at_all():
    with pytest.raises(DataError, match="no query"):
        compute_metrics([], [], [], {})


def test_a_thousand_queries_by_a_thousand_passages_take_seconds():
    random = np.random.default_rng(0)
    docs = np.array([f"d{each}" for each in range(3000)])
    rankings = [docs[random.permutation(3000)[:1000]].tolist() for _ in range(1000)]
    scores = -np.sort(-random.standard_normal((1000, 1000)).astype(np.float32), axis=1)
    qrels = {f"q{each}": {rankings[each][each % 100]: 1} for each in range(1000)}
    started = time.process_time()
    result = compute_metrics(list(qrels), rankings, scores, qrels)
    assert time.process_time() - started < 5  # under half a second where nothing else runs
    assert result["recip_rank"] == pytest.approx(np.mean([1 / (each % 100 + 1) for each in range(1000)]))
