"""Minimal check: each method builds, trains a little, and ranks real text."""

from __future__ import annotations

import pytest

from maw.evaluation.evaluate import evaluate_retriever
from maw.evaluation.metrics import METRICS
from maw.models.retriever import BaselineRetriever, MAWRetriever
from maw.training.train import train_retriever


def test_zero_shot_ranks_every_query(tiny_settings, tiny_data):
    config = tiny_settings()
    result = evaluate_retriever(BaselineRetriever(config), tiny_data, config, "cpu")
    assert set(result) == set(METRICS) and len(METRICS) == 36
    assert all(0 <= value <= 1 for value in result.values())
    assert result.per_query["ndcg_cut_10"].shape == (len(tiny_data["queries"]),)
    assert result["ndcg_cut_10"] == pytest.approx(result.per_query["ndcg_cut_10"].mean())


@pytest.mark.parametrize(
    ("retriever", "changes"),
    [(BaselineRetriever, {"use_lora": True}), (MAWRetriever, {}), (MAWRetriever, {"router": "supervised"})],
)
def test_training_learns_the_task(tiny_settings, tiny_data, retriever, changes):
    config = tiny_settings(num_epochs=6, learning_rate=2e-2, patience=0, **changes)
    model = retriever(config)
    before = evaluate_retriever(model, tiny_data, config, "cpu")["ndcg_cut_10"]
    history = train_retriever(model, tiny_data, tiny_data, config, "cpu", "tiny", "test")
    after = evaluate_retriever(model, tiny_data, config, "cpu")["ndcg_cut_10"]
    assert [record["epoch"] for record in history] == list(range(1, 7))
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert after == pytest.approx(max(record["val_ndcg_cut_10"] for record in history))
    assert after > before
