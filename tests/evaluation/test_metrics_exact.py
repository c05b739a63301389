"""The metrics against pytrec_eval on the full ranking, with every passage and score, to the last bit.

`maw.evaluation.metrics` gives pytrec_eval ranks in place of ids and scores, and no passage after the last judged one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

import maw.evaluation.metrics
from maw.evaluation.metrics import METRICS, compute_metrics

PLAIN = [key for key in METRICS if key not in ("recip_rank_10", "F1_10")]
MEASURES = {
    "ndcg", "map", "recip_rank", "Rprec", "bpref", "success.1,5,10", "map_cut.10,100",
    *(f"{name}.1,3,5,10,15,20,100,1000" for name in ("ndcg_cut", "recall", "P")),
}  # fmt: skip

Case = tuple[list[str], list[list[str]], list[list[float]], dict[str, dict[str, int]]]


def whole_run(query_ids, rankings, scores, qrels, level=1) -> dict[str, dict[str, float]]:
    """pytrec_eval alone, with a dictionary of all scores.

    It reads memory that is not its own where a query has no passage, or only grades below zero; such queries score 0.
    """
    run = {query: dict(zip(docs, map(float, row))) for query, docs, row in zip(query_ids, rankings, scores) if docs}
    run = {query: found for query, found in run.items() if max(qrels[query].values(), default=-1) >= 0}
    return pytrec_eval.RelevanceEvaluator(qrels, MEASURES, relevance_level=level).evaluate(run)


def differences(case: Case, level: int = 1) -> list[str]:
    """Metrics and queries whose values are not those of pytrec_eval, exactly."""
    expected = whole_run(*case, level)
    result = compute_metrics(*case, relevance_level=level)
    return [
        f"{key} of {query}"
        for key in PLAIN
        for query, got in zip(result.query_ids, result.per_query[key].tolist(), strict=True)
        if got != expected.get(query, {}).get(key, 0.0)
    ]


def random_case(seed: int, queries: int = 400) -> Case:
    """Rankings of 0 to 1,300 passages with ties, some in order and some not; grades from -2 to 4; much unjudged."""
    random = np.random.default_rng(seed)
    names = [f"d{number}" for number in range(1500)]
    query_ids, rankings, scores, qrels = [f"q{number}" for number in range(queries)], [], [], {}
    for query in query_ids:
        depth = int(random.choice([0, 1, 2, 7, 8, 9, 31, 32, 33, 120, 1300], p=[0.05, *[0.1] * 9, 0.05]))
        docs = [names[each] for each in random.permutation(1500)[:depth]]
        row = random.integers(0, random.choice([1, 3, 2000]), depth).astype(np.float32)
        if random.random() < 0.5:
            row = -np.sort(-row)
        judged = [*docs[: random.integers(0, 20)], *(names[each] for each in random.integers(0, 1500, 5))]
        rankings.append(docs)
        scores.append(row.tolist())
        qrels[query] = {doc: int(random.integers(-2, 5)) for doc in random.permutation(judged)}
    return query_ids, rankings, scores, qrels


@pytest.mark.parametrize("level", [1, 2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_thousands_of_random_rankings(seed, level):
    assert differences(random_case(seed), level) == []


IDS = st.text("ab-0é\U0001f600", min_size=1, max_size=3)
SCORES = st.sampled_from([-3.5, -0.0, 0.0, 1e-30, 1.0, 1.0000001, 3e38])


@st.composite
def one_ranking(draw: Callable) -> Case:
    docs = draw(st.lists(IDS, unique=True, max_size=12))
    row = draw(st.lists(SCORES, min_size=len(docs), max_size=len(docs)))
    grades = draw(st.dictionaries(st.one_of(IDS, *([st.sampled_from(docs)] if docs else [])), st.integers(-3, 5)))
    return ["q"], [docs], [row], {"q": grades}


@settings(max_examples=150, deadline=None)
@given(case=one_ranking(), level=st.integers(1, 3))
def test_any_small_ranking(case, level):
    assert differences(case, level) == []


def test_queries_without_a_run_and_with_no_passage_found():
    qrels = {
        "found": {"a": 1, "b": 0},
        "nothing": {"a": 1},
        "absent": {"a": 2},
        "unjudged": {},
        "below zero": {"a": -2},
    }
    found = [["b", "a"], [], ["a"], ["a", "b"]]
    scores = [[1.0, 1.0], [], [1.0], [1.0, 2.0]]
    assert differences((["found", "nothing", "unjudged", "below zero"], found, scores, qrels)) == []


@pytest.mark.parametrize(("docs", "grades"), [([], {"a": 1}), (["a", "b"], {"a": -2}), (["b"], {"a": -1, "b": -2})])
def test_what_pytrec_eval_would_crash_on_is_zero(docs, grades):
    for _ in range(200):  # it did not crash every time
        result = compute_metrics(["q"], [docs], [[1.0] * len(docs)], {"q": grades})
        assert set(result.values()) == {0.0}


@pytest.mark.parametrize(
    "wrong",
    [
        lambda docs, row: np.argsort(-row, kind="stable"),  # ties in the order of the run
        lambda docs, row: np.argsort(row, kind="stable"),  # the worst first
    ],
)
def test_another_order_would_be_noticed(monkeypatch, wrong):
    monkeypatch.setattr(maw.evaluation.metrics, "_order", wrong)
    assert differences(random_case(0, 50))


def test_a_ranking_cut_too_short_would_be_noticed(monkeypatch):
    monkeypatch.setattr(
        maw.evaluation.metrics, "_ranking", lambda length: {f"{rank:07}": -rank for rank in range(length // 2)}
    )
    assert differences(random_case(0, 50))


def test_passages_may_be_called_as_ranks_are():
    """Ids of the collection that look like the names which pytrec_eval sees."""
    docs = ["0000002", "0000000", "not found 0", "0000001"]
    qrels = {"q": {"not found 1": 1, "0000001": 2, "not found 0": 1, "0000000": 0}}
    assert differences((["q"], [docs], [[4.0, 3.0, 2.0, 1.0]], qrels)) == []
