"""Equal scores at the cutoff: evaluation keeps the passages that trec_eval would rank first."""

from __future__ import annotations

from maw.evaluation.evaluate import evaluate_retriever
from maw.models.retriever import BaselineRetriever


def test_among_copies_the_last_ids_make_the_cut(tiny_settings):
    copies = [f"d{i}" for i in (7, 2, 9, 4, 0, 8, 1, 3, 6, 5)]
    docs = dict.fromkeys(copies, "open the file") | {"x": "parse json"}
    config = tiny_settings(top_k=3)
    model = BaselineRetriever(config)
    for wanted, found in (("d9", 1.0), ("d8", 0.5), ("d7", 1 / 3), ("d6", 0.0)):
        data = {"queries": {"q": "open file"}, "docs": docs, "qrels": {"q": {wanted: 1}}}
        assert evaluate_retriever(model, data, config, "cpu")["recip_rank"] == found
