"""Zero-shot ranking against sentence-transformers with the same weights, in float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maw.config.tier1_config import Tier1Config
from maw.data.datasets.pystdlib import library_files, library_folder, read_library
from maw.evaluation.evaluate import evaluate_retriever
from maw.evaluation.metrics import METRICS, compute_metrics
from maw.models.retriever import BaselineRetriever

PASSAGES = 120


@pytest.fixture(scope="module")
def task():
    """Real queries and passages: the shortest of a part of Python's own library."""
    library = library_folder()
    functions, _ = read_library(library, library_files(library)[::8])
    functions = sorted(functions, key=lambda each: len(each.passage))[:PASSAGES]
    assert len(functions) == PASSAGES
    return Tier1Config.from_preset("offline", device="cpu", precision="float32"), {
        "queries": {f"q-{each.id}": each.query for each in functions[::2]},
        "qrels": {f"q-{each.id}": {each.id: 1} for each in functions[::2]},
        "docs": {each.id: each.passage for each in functions},
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
