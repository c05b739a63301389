"""Zero-shot ranking against sentence-transformers with the same weights, in float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maw.config.tier1_config import Tier1Config
from maw.data.registry import load_collection
from maw.evaluation.evaluate import evaluate_retriever
from maw.evaluation.metrics import METRICS, compute_metrics
from maw.models.retriever import BaselineRetriever

PASSAGES = 300


@pytest.fixture(scope="module")
def task(library_cache):
    """Real queries and passages: the first of Python's own library."""
    places = {"cache_dir": library_cache, "device": "cpu"}
    config = Tier1Config.from_preset("offline", test_samples=400, precision="float32", **places)
    collection = load_collection("pystdlib", config)
    rows = np.argsort(collection.test.corpus.lengths(), kind="stable")[:PASSAGES]
    ids = collection.test.corpus.id_of(rows)
    kept = {q: {d: g for d, g in judged.items() if d in set(ids)} for q, judged in collection.test.qrels.items()}
    queries = dict(zip(collection.test.query_ids, collection.test.queries))
    kept = {q: judged for q, judged in kept.items() if judged}
    assert len(kept) > 20
    return config, {
        "queries": {q: queries[q] for q in kept},
        "qrels": kept,
        "docs": dict(zip(ids, collection.test.corpus.take(rows))),
    }


def test_rankings_and_metrics_equal_those_of_sentence_transformers(task):
    from sentence_transformers import SentenceTransformer

    config, data = task
    model = BaselineRetriever(config)
    ours = evaluate_retriever(model, data, config, "cpu")
    peer = SentenceTransformer(str(model.spec.folder), device="cpu")
    query, passage = (
        peer.encode(list(data[part].values()), convert_to_numpy=True, show_progress_bar=False)
        for part in ("queries", "docs")
    )
    theirs = query @ passage.T
    own = np.empty_like(theirs)
    np.put_along_axis(own, ours.run["rows"], ours.run["scores"], axis=1)
    assert np.abs(own - theirs).max() < 1e-5
    order = np.argsort(-theirs, axis=1, kind="stable")
    swapped = order != ours.run["rows"]
    gaps = np.abs(np.take_along_axis(theirs, order, 1) - np.take_along_axis(theirs, ours.run["rows"], 1))
    assert gaps[swapped].size == 0 or gaps[swapped].max() < 1e-5

    ids = np.array(list(data["docs"]))
    scores = np.take_along_axis(theirs, order, 1).astype(np.float32)
    expected = compute_metrics(list(data["queries"]), [list(ids[row]) for row in order], scores, data["qrels"])
    for metric in METRICS:
        assert ours[metric] == pytest.approx(expected[metric], abs=1e-4)


def test_a_wrong_pooling_would_be_noticed(task):
    config, data = task
    texts = list(data["docs"].values())[:20]
    right = BaselineRetriever(config).encode(texts)
    wrong = BaselineRetriever(Tier1Config.from_dict(config.to_dict() | {"pooling": "cls"})).encode(texts)
    assert np.abs(right - wrong).max() > 1e-2
    assert torch.get_default_dtype() == torch.float32
