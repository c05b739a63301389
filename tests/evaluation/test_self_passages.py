"""Queries that are passages too, through evaluation: BEIR's own formula, values by hand, and everything that ranks."""

from __future__ import annotations

import json

import numpy as np
import pytest
import pytrec_eval
from conftest import random_texts

from maw.config.methods import find_method
from maw.data.from_dicts import as_retrieval_data
from maw.data.self_passages import leave_out
from maw.evaluation.answer_match import answer_match
from maw.evaluation.evaluate import evaluate_retriever
from maw.evaluation.metrics import METRICS
from maw.evaluation.query_examples import Examples
from maw.models.retriever import BaselineRetriever
from maw.report.tables.trec import RunFiles

NAMES = {
    "ndcg_cut_10": "ndcg_cut.10",
    "map": "map",
    "recall_5": "recall.5",
    "P_10": "P.10",
    "recip_rank": "recip_rank",
}


def arguments():
    """An ArguAna in small: each argument is a query and a passage, its counter-argument is relevant. Ids that are only
    numbers collide: 3 and 4 are questions with the ids of other passages."""
    texts = list(dict.fromkeys(random_texts(90, seed=4)))[:44]
    docs = {f"topic{i // 2:02}{'ab'[i % 2]}": text for i, text in enumerate(texts[:30])}
    docs |= {str(i): text for i, text in enumerate(texts[30:40])}
    queries = {name: docs[name].upper() + "." for name in docs if name.endswith("a")}
    qrels = {name: {f"{name[:-1]}b": 1} for name in queries}
    queries |= {"3": texts[40], "4": texts[41]}
    return {"queries": queries, "docs": docs, "qrels": qrels | {"3": {"5": 1}, "4": {"6": 1, "topic00a": 1}}}


def everything(model, data):
    """Every query's score of every passage, as a run of BEIR."""
    docs, queries = list(data["docs"]), list(data["queries"])
    passages = model.encode(list(data["docs"].values()), "document").astype(np.float64)
    asked = model.encode(list(data["queries"].values()), "query").astype(np.float64)
    scores = (asked @ passages.T).astype(np.float32)
    return {q: dict(zip(docs, map(float, row), strict=True)) for q, row in zip(queries, scores, strict=True)}


def measured(run, qrels):
    """Means by pytrec_eval."""
    values = pytrec_eval.RelevanceEvaluator(qrels, set(NAMES.values())).evaluate(run)
    return {name: float(np.mean([each[name] for each in values.values()])) for name in NAMES}


def beir(run, qrels):
    """The formula of BEIR's `EvaluateRetrieval.evaluate`: drop by id, judgements as they are, then pytrec_eval."""
    dropped = {query: {p: score for p, score in found.items() if p != query} for query, found in run.items()}
    return measured(dropped, qrels)


@pytest.fixture
def ranked(tiny_settings):
    data = arguments()

    def run(data=data, **settings):
        config = tiny_settings(**({"top_k": 1000} | settings))
        model = BaselineRetriever(config)
        return model, evaluate_retriever(model, data, config), everything(model, data)

    return data, run


def near(values):
    return pytest.approx(values, abs=1e-6)


@pytest.mark.parametrize("top_k", [1000, 40, 39, 10])
def test_drop_is_beirs_formula(ranked, top_k):
    data, run = ranked
    _, result, scores = run(self_passages="drop", top_k=top_k)
    names = [name for name in NAMES if top_k >= 39 or name not in ("map", "recip_rank")]
    expected = beir(scores, data["qrels"])
    assert {name: result[name] for name in names} == near({name: expected[name] for name in names})
    assert result.facts["left_out"] == 17


def test_auto_leaves_out_only_what_is_the_query_and_keep_nothing(ranked):
    data, run = ranked
    _, kept, scores = run(self_passages="keep")
    assert {name: kept[name] for name in NAMES} == near(
        measured(scores, data["qrels"])
    ) and "left_out" not in kept.facts
    _, auto, _ = run()
    same = {query for query in data["queries"] if query.endswith("a")}
    without = {q: {p: s for p, s in found.items() if not (p == q and q in same)} for q, found in scores.items()}
    assert {name: auto[name] for name in NAMES} == near(measured(without, data["qrels"])) and auto.facts[
        "left_out"
    ] == 15
    assert auto["ndcg_cut_10"] > kept["ndcg_cut_10"]
    position = {q: i for i, q in enumerate(auto.query_ids)}
    for query in ("3", "4"):
        assert all(auto.per_query[name][position[query]] == kept.per_query[name][position[query]] for name in METRICS)


def test_by_hand(tiny_settings):
    """One query that is the passage p; r is relevant. Whatever the model, p is first; leaving it out moves r up."""
    config = tiny_settings()
    model = BaselineRetriever(config)
    docs = {"p": "open the file", "r": "close the file", "s": "parse json date"}
    first = {}
    for rule in ("auto", "drop", "keep"):
        data = {"queries": {"p": "Open the file!"}, "docs": docs, "qrels": {"p": {"r": 1}}}
        result = evaluate_retriever(model, data, tiny_settings(self_passages=rule, top_k=2))
        first[rule] = result.run["rows"].tolist(), result["recip_rank"], result["ndcg_cut_10"]
    (rows,) = first["keep"][0]
    assert rows[0] == 0, "the passage itself is first"
    r_before_s = model.encode(["close the file", "parse json date"]) @ model.encode(["Open the file!"], "query")[0]
    rank = 1 if r_before_s[0] > r_before_s[1] else 2
    expected = [1, 2] if rank == 1 else [2, 1]
    for rule in ("auto", "drop"):
        assert first[rule] == ([expected], 1 / rank, pytest.approx(1 / np.log2(1 + rank)))
    assert first["keep"][1] == (0.5 if rank == 1 else 0.0)


def test_a_judged_query_is_left_out_of_its_judgements(ranked):
    """BEIR keeps the judgement, as a relevant passage that nothing can find; here it does not count."""
    data, run = ranked
    judged = data | {"qrels": {q: each | ({q: 1} if q.endswith("a") else {}) for q, each in data["qrels"].items()}}
    _, found, scores = run(judged, self_passages="drop")
    assert {name: found[name] for name in NAMES} == near(beir(scores, data["qrels"]))
    assert beir(scores, judged["qrels"])["recall_5"] < found["recall_5"], "in BEIR the judgement costs recall"


@pytest.mark.parametrize("search", ["flat", "ivf", "hnsw"])
def test_faiss_ranks_the_same(ranked, search):
    pytest.importorskip("faiss")
    run = ranked[1]
    for top_k in (1000, 10):
        _, exact, _ = run(top_k=top_k)
        _, found, _ = run(top_k=top_k, search=search)
        np.testing.assert_array_equal(found.run["rows"], exact.run["rows"])
        assert dict(found) == dict(exact)
        assert found.facts["search"].get("recall", {"10": 1.0})["10"] == 1.0


def test_where_no_id_is_shared_nothing_changes(tiny_settings, tiny_data, monkeypatch):
    asked = []
    real = evaluate_retriever.__globals__["sharded_top_k"]
    monkeypatch.setitem(
        evaluate_retriever.__globals__,
        "sharded_top_k",
        lambda *given, **more: asked.append(given[2]) or real(*given, **more),
    )
    named = {key: {f"{key}{i}": text for i, text in enumerate(tiny_data[key])} for key in ("queries", "docs")}
    named["qrels"] = {f"queries{i}": {f"docs{i}": 1} for i in tiny_data["qrels"]}
    model = BaselineRetriever(tiny_settings())
    found = {
        rule: evaluate_retriever(model, named, tiny_settings(self_passages=rule)) for rule in ("auto", "drop", "keep")
    }
    assert asked == [20, 20, 20] and not any("left_out" in each.facts for each in found.values())
    for rule in ("auto", "drop"):
        for name in ("rows", "scores"):
            np.testing.assert_array_equal(found[rule].run[name], found["keep"].run[name], strict=True)
        assert dict(found[rule]) == dict(found["keep"])


# -------------------------------------------------------------------------------------------- what reads a ranking


@pytest.mark.parametrize("top_k", [1000, 10])
def test_written_runs_give_the_same_values_to_trec_eval(tiny_settings, tmp_path, top_k):
    config = tiny_settings(top_k=top_k)
    data = as_retrieval_data(arguments(), "test", 1, "auto")
    result = evaluate_retriever(BaselineRetriever(config), data, config)
    RunFiles("tiny", data, {"zero_shot": {42: result}}).write(tmp_path)
    lines = [line.split() for line in (tmp_path / "runs" / "tiny_zero_shot.trec").read_text().splitlines()]
    run: dict[str, dict[str, float]] = {}
    for query, _, passage, _, score, _ in lines:
        run.setdefault(query, {})[passage] = float(score)
    same = {query for query in data.query_ids if query.endswith("a")}
    assert same and all(query not in run[query] for query in same)
    most = min(top_k, 40)
    assert {query: len(found) for query, found in run.items()} == {
        query: min(top_k, 39) if query in same else most for query in run
    }, "each query still has as many as it can"
    assert {name: result[name] for name in NAMES} == near(measured(run, data.qrels))


def test_examples_and_answers_do_not_name_what_is_left_out(tiny_settings):
    config = tiny_settings(top_k=1000)
    few = {"queries": {"p": "open the file", "q": "lower text"}, "docs": {"p": "open the file", "r": "lower the text"}}
    few |= {"qrels": {"p": {"r": 1}, "q": {"r": 1}}, "answers": {"p": ["open"], "q": ["open"]}}
    data = as_retrieval_data(few, "test", 1, "auto")
    result = evaluate_retriever(BaselineRetriever(config), data, config)
    assert result.run["rows"].tolist()[0] == [1, -1] and result.run["scores"][0, 1] == -np.inf
    rank = result.run["rows"][1].tolist().index(0) + 1
    assert answer_match(data, result.run["rows"])["first_hit"] == [0, rank], "the passage itself holds the answer of p"
    examples = Examples(data, {"zero_shot": result}, {"zero_shot": {42: result}})
    shown = examples._rankings(find_method("zero_shot"), ["p", "q"])
    assert [each["passage"] for each in shown["p"]] == ["r"] and len(shown["q"]) == 2
    assert json.dumps(shown)


def test_mteb_drops_by_id_where_a_task_says_so():
    """What `drop` agrees with: the results lose the id, the judgements do not."""
    pytest.importorskip("mteb")
    from mteb._evaluators.retrieval_evaluator import RetrievalEvaluator

    run, qrels = {"a": {"a": 3.0, "b": 2.0}, "c": {"b": 1.0}}, {"a": {"b": 1, "a": 1}, "c": {"b": 1}}
    found = RetrievalEvaluator.evaluate(None, qrels, json.loads(json.dumps(run)), [10], ignore_identical_ids=True)
    assert found.recall["Recall@10"] == pytest.approx(beir(run, qrels)["recall_5"]) == 0.75
    data = {"queries": {"a": "x", "c": "y"}, "docs": {"a": "x", "b": "z"}, "qrels": qrels}
    assert leave_out(as_retrieval_data(data), "drop")[0].qrels == {"a": {"b": 1}, "c": {"b": 1}}
