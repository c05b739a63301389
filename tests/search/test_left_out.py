"""Leaving out one passage of each query: the ranking of a corpus without it, ties at the cut included."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from maw.search.exact import top_k
from maw.search.faiss_index import faiss_top_k, sampled_recall
from maw.search.left_out import leaving_out

QUERIES = 12


def numbers(seed, largest=2, count=90):
    """Embeddings of small whole numbers, whose products are exact and tie often, a tie order and rows to leave out."""
    random = np.random.default_rng(seed)
    queries = random.integers(-largest, largest + 1, (QUERIES, 4)).astype(np.float32)
    passages = random.integers(-largest, largest + 1, (count, 4)).astype(np.float32)
    ties = random.permutation(count)
    best = np.stack([np.lexsort((ties, -row)) for row in queries @ passages.T])
    left_out = best[np.arange(QUERIES), random.integers(0, count, QUERIES)]  # of any rank
    left_out[:3] = best[:3, 0]  # as with a query that is a passage
    left_out[-4:] = -1
    return torch.from_numpy(queries), passages, ties, left_out


def by_hand(queries, passages, k, ties, left_out):
    """Scores and rows of each query over a corpus that does not hold the passage."""
    for query, own in zip(queries.numpy(), left_out, strict=True):
        rows = np.flatnonzero(np.arange(len(passages)) != own)
        scores = passages[rows] @ query
        order = np.lexsort((ties[rows], -scores))[:k]
        yield scores[order].tolist(), rows[order].tolist()


SEARCHES = {"exact": top_k} | {kind: partial(faiss_top_k, kind) for kind in ("flat", "ivf", "hnsw")}
SIZES = {"exact": 90, "flat": 300, "ivf": 64, "hnsw": 64}  # ivf and hnsw are exact where they propose everything


@pytest.mark.parametrize("kind", SEARCHES)
@pytest.mark.parametrize("k", [1, 2, 10, 63, 64, 299, 300, 1000])
def test_it_is_as_if_the_corpus_did_not_hold_it(kind, k):
    if kind != "exact":
        pytest.importorskip("faiss")
    for seed in range(6):
        queries, passages, ties, left_out = numbers(seed, seed % 3, SIZES[kind])
        search = partial(SEARCHES[kind], queries, passages, tie_order=ties)
        scores, rows, *facts = leaving_out(lambda size, search=search: search(k=size), k, left_out)
        assert rows.shape == scores.shape == (QUERIES, min(k, len(passages))) and len(facts) == (kind != "exact")
        found = zip(scores.tolist(), rows.tolist(), strict=True)
        for got, expected in zip(found, by_hand(queries, passages, k, ties, left_out), strict=True):
            missing = min(k, len(passages)) - len(expected[0])
            assert got == (expected[0] + [-np.inf] * missing, expected[1] + [-1] * missing)


def test_without_anything_to_leave_out_the_search_is_asked_for_k_alone():
    asked = []
    assert leaving_out(lambda k: asked.append(k) or ("scores", "rows"), 5, None) == ("scores", "rows") and asked == [5]


def test_recall_is_that_of_the_rankings_without_it():
    queries, passages, ties, left_out = numbers(0)
    _, rows = leaving_out(lambda k: top_k(queries, passages, k, ties), 10, left_out)
    facts = sampled_recall(rows.numpy(), queries, passages, 10, ties, left_out)
    assert facts["recall"] == {"10": 1.0}
    assert sampled_recall(rows.numpy(), queries, passages, 10, ties)["recall"]["10"] < 1.0
