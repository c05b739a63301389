"""Miners of hard negatives: BM25 and the pretrained retriever rank the training corpus for each training query."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch

from maw.config.tier1_config import Tier1Config, cache_folder
from maw.data.bm25 import Bm25Index
from maw.data.collection import RetrievalData
from maw.data.corpus import Corpus
from maw.data.corpus_sampling import sample_corpus
from maw.encoding.activation_cache import ActivationStore
from maw.encoding.embedding_cache import Embedder
from maw.models.retriever import BaselineRetriever
from maw.models.tokenized import ListTexts
from maw.runtime.profiler import stage
from maw.runtime.progress_bars import track
from maw.search.exact import top_k

RANKED_PASSAGES = 100
"""Passages that a miner ranks for each query."""


class Miner(Protocol):
    """Ranks the training corpus for the queries of a split."""

    corpus: Corpus

    def search(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows (Q, 100), -1 where there are no more, and scores, best first."""

    def scores(self, query: int, rows: np.ndarray) -> np.ndarray:
        """The scores of rows for the query at position `query` of the split."""


class Bm25Miner:
    """Ranks with BM25."""

    def __init__(self, data: RetrievalData, config: Tier1Config):
        self.corpus, self.queries = data.corpus, data.queries
        self.index = Bm25Index.cached(self.corpus, cache_folder(config) / "bm25")

    def search(self) -> tuple[np.ndarray, np.ndarray]:
        return self.index.search(self.queries, RANKED_PASSAGES, "hard negatives")

    def scores(self, query: int, rows: np.ndarray) -> np.ndarray:
        return self.index.scores(self.queries[query], rows)


class DenseMiner:
    """Ranks with the pretrained retriever, in a sample of the corpus if that is larger than `corpus_size`."""

    def __init__(
        self,
        data: RetrievalData,
        config: Tier1Config,
        retriever: BaselineRetriever,
        activations: ActivationStore | None,
    ):
        self.corpus, _ = sample_corpus(data, config.corpus_size, config)
        embedder = Embedder(retriever, config, retriever.device, activations)
        self.queries, self.passages = (
            embedder.encode(texts, kind, f"hard negatives: {kind} texts", fill=True).embeddings
            for texts, kind in ((ListTexts(data.queries), "query"), (self.corpus, "document"))
        )
        self.device = retriever.device

    def search(self) -> tuple[np.ndarray, np.ndarray]:
        queries = torch.from_numpy(self.queries).to(self.device)
        scores, rows = top_k(queries, self.passages, RANKED_PASSAGES, self.corpus.tie_order())
        return rows.numpy(), scores.numpy()

    def scores(self, query: int, rows: np.ndarray) -> np.ndarray:
        return self.passages[rows] @ self.queries[query]


def candidates_of(
    data: RetrievalData, miner: Miner, margin: float, kept_out: Counter[str]
) -> Iterator[np.ndarray | None]:
    """Rows of each query's best passages whose score is not too close to the positive's; None if it finds nothing."""
    with stage("search"):
        rows, scores = miner.search()
    for number, query_id in enumerate(track(data.query_ids, "hard negatives", "query")):
        if (rows[number] < 0).all():
            yield None
            continue
        positives = miner.corpus.rows_of(relevant(data, query_id))
        positives = positives[positives >= 0]
        other = (rows[number] >= 0) & ~np.isin(rows[number], positives)
        fits = scores[number] <= limit(miner.scores(number, positives), margin)
        kept_out["score above the margin"] += int((other & ~fits).sum())
        yield rows[number][other & fits]


def limit(positive_scores: np.ndarray, margin: float) -> float:
    """The highest score that a mined negative may have, given the scores of the positives."""
    highest = float(positive_scores.max())
    return highest - (1 - margin) * abs(highest)


def relevant(data: RetrievalData, query_id: str) -> list[str]:
    """Ids of the passages that are judged relevant to a query."""
    return [passage for passage, grade in data.qrels[query_id].items() if grade >= 1]
