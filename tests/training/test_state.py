"""The state of a training: an evaluation comes back from JSON and tensors as it was."""

from __future__ import annotations

import json

import numpy as np
import pytest

from maw.evaluation.metrics import EvaluationResult
from maw.training.state import evaluation_state, joined, load_evaluation, separated


@pytest.mark.parametrize("ranking", [True, False])
def test_an_evaluation_comes_back_to_the_last_bit(ranking):
    values = {"ndcg_cut_10": np.array([0.1, 1 / 3]), "map": np.array([0.0, 1.0])}
    rows = np.arange(12).reshape(2, 6)[:, ::2]  # not contiguous
    run = {"rows": rows, "scores": np.float32([[3, 2, 1], [6, 5, 4]]) / 7} if ranking else None
    result = EvaluationResult(["q1", "q2"], values, run, {"search": {"index": "exact"}})
    facts, tensors = separated({"evaluation": evaluation_state(result)})
    found = load_evaluation(joined(json.loads(json.dumps(facts)), tensors)["evaluation"])
    assert dict(found) == dict(result) and list(found) == list(result)
    assert found.query_ids == result.query_ids and found.facts == result.facts
    for name in values:
        np.testing.assert_array_equal(found.per_query[name], values[name], strict=True)
    if not ranking:
        assert found.run is None
    for name in run or ():
        np.testing.assert_array_equal(found.run[name], run[name], strict=True)
