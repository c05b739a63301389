"""Examples of wins and losses: the right queries, both rankings, texts truncated and stored once."""

from __future__ import annotations

import json

import numpy as np
import pytest

from maw.config.methods import METHOD_NAMES
from maw.data.from_dicts import as_retrieval_data
from maw.evaluation.metrics import METRICS, EvaluationResult
from maw.evaluation.query_examples import LONGEST, PASSAGES, QUERIES, Examples, shown_pairs


def make_examples(gains, level=1):
    """MAW's gains over LoRA by query; MAW ranks the passages in order, LoRA and zero-shot in reverse."""
    count = len(gains)
    docs = {f"d{i}": f"text {i} " + "x" * (LONGEST if i == 0 else 3) for i in range(6)}
    qrels = {f"q{i}": {"d0": 2, "d1": 1, "d5": 0} for i in range(count)}
    queries = {f"q{i}": f"query {i}" for i in range(count)}
    data = as_retrieval_data({"queries": queries, "docs": docs, "qrels": qrels})
    data = data.__class__(**{**vars(data), "relevance_level": level})

    def evaluation(values, rows):
        scores = np.tile(np.linspace(1, 0, 6, dtype=np.float32), (count, 1))
        run = {"rows": np.tile(rows, (count, 1)), "scores": scores}
        return EvaluationResult(list(queries), dict.fromkeys(METRICS, np.asarray(values, float)), run=run)

    there, back = np.arange(6), np.arange(6)[::-1]
    found = {
        "zero_shot": evaluation(np.full(count, 0.5), back),
        "lora": evaluation(np.full(count, 0.5), back),
        "maw": evaluation(0.5 + np.asarray(gains), there),
    }
    return Examples(data, found, {name: {42: each} for name, each in found.items()})


def test_the_largest_gains_and_losses_are_kept():
    content = make_examples([0.1, -0.3, 0.0, 0.4, 0.1, -0.05, 0.2]).content()
    assert content["comparisons"]["maw_vs_lora"] == {"won": ["q3", "q6", "q0"], "lost": ["q1", "q5"]}
    assert list(content["comparisons"]) == ["maw_vs_lora", "maw_vs_zeroshot"], "lora and zero-shot do not differ"
    assert set(content["queries"]) == {"q0", "q1", "q3", "q5", "q6"}
    assert content["values"]["maw"]["q1"] == pytest.approx(0.2) and content["values"]["lora"]["q1"] == 0.5
    assert QUERIES == 3 and json.loads(json.dumps(content)) == content


def test_both_rankings_with_texts_and_grades():
    content = make_examples([0.1, -0.3], level=2).content()
    maw, lora = (content["rankings"][name]["q0"] for name in ("maw", "lora"))
    assert [each["passage"] for each in maw] == ["d0", "d1", "d2"]
    assert [each["passage"] for each in lora] == ["d5", "d4", "d3"]
    assert [each.get("grade") for each in maw] == [2, 1, None] and lora[0]["grade"] == 0
    assert [each["rank"] for each in maw] == [1, 2, 3] and maw[1]["score"] == pytest.approx(0.8)
    assert len(maw) == PASSAGES
    assert content["queries"]["q0"] == {
        "text": "query 0",
        "number_relevant": 1,
        "relevant": [{"passage": "d0", "grade": 2}],
    }
    assert set(content["texts"]) == {"d0", "d1", "d2", "d3", "d4", "d5"}
    assert content["texts"]["d0"]["cut"] and len(content["texts"]["d0"]["text"]) == LONGEST
    assert content["texts"]["d1"] == {"text": "text 1 xxx", "cut": False}


def test_nothing_where_nothing_differs(tmp_path):
    examples = make_examples([0.0, 1.2e-16])  # the second is rounding, as of a mean over seeds
    assert examples.content()["comparisons"] == {} and examples.content()["texts"] == {}
    path = examples.write(tmp_path)
    assert path == tmp_path / "examples.json" and json.loads(path.read_text()) == examples.content()


def test_maw_against_its_controls_comes_first():
    pairs = [(new.name, old.name) for new, old in shown_pairs(dict.fromkeys(("zero_shot", "lora", "full", "maw")))]
    assert pairs == [("maw", "lora"), ("maw", "full"), ("maw", "zero_shot")]
    pairs = [(new.name, old.name) for new, old in shown_pairs(dict.fromkeys(METHOD_NAMES))]
    assert pairs == [("maw", "lora"), ("maw", "lora_matched"), ("maw", "full")]
    pairs = [(new.name, old.name) for new, old in shown_pairs(dict.fromkeys(("zero_shot", "lora", "maw")))]
    assert pairs == [("maw", "lora"), ("maw", "zero_shot"), ("lora", "zero_shot")]
    assert shown_pairs({"maw": None}) == []
