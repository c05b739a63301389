"""nDCG@10 and reward of each text at each depth: the matrices that `maw.evaluation.routing.headroom` analyses.

    scorer = DepthScorer(data, document_embeddings, ...)
    matrix = scorer.of_queries(rows, every_QDC)             # each query at every depth, documents at greedy depths
    matrix = scorer.of_documents(queries, rows, every_QDC)  # each positive at every depth, all others at greedy depths

nDCG@10 is exact, over the whole corpus and over two random halves of it; each half holds all relevant passages of a
query and half of the others. The best 100 passages of a ranking nearly always contain 10 of each half; if not, more
are ranked.

Letters: Q texts (queries, or pairs of a query and a positive); D depths; E = D + 1, the depths and the greedy depth;
G any number of embeddings; C embedding size; N passages; K passages of a ranking; P positives; S parts of the corpus:
all, one half, the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from maw.data.collection import RetrievalData
from maw.evaluation.reward import task_reward
from maw.search.exact import top_k
from maw.search.left_out import leaving_out

CUTOFF = 10
LISTED = 100
MOST_POSITIVES = 10  # most positives of a query in its reward
ROWS_AT_ONCE = 16_384  # rankings in memory
QUERIES_AT_ONCE = 64  # queries whose candidates' embeddings are in memory
_SAME_SCORE = 1e-6  # scores with a smaller difference, relative to at least 1, differ by rounding


@dataclass(frozen=True)
class DepthMatrix:
    """Retrieval quality of each text at each depth.

    Args:
        ndcg_QD: nDCG@10 of the text's query, float64.
        greedy_Q: the same at the router's greedy depth.
        halves_2QD: `ndcg_QD` over each half of the corpus.
        noise_2QD: the same, where each text moves between depths like another text (see `_moved`).
        reward_QD: the training reward, among the passages nearest to the query at greedy depths.
        greedy_reward_Q: the same at the router's greedy depth.
    """

    ndcg_QD: np.ndarray
    greedy_Q: np.ndarray
    halves_2QD: np.ndarray
    noise_2QD: np.ndarray
    reward_QD: np.ndarray
    greedy_reward_Q: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[DepthMatrix]) -> DepthMatrix:
        """Concatenates the texts of all parts."""
        arrays = {each.name: [getattr(part, each.name) for part in parts] for each in fields(cls)}
        return cls(**{name: np.concatenate(each, axis=1 if each[0].ndim == 3 else 0) for name, each in arrays.items()})


class Relevance:
    """The relevant passages of a split: pairs of a query and a corpus row."""

    def __init__(self, data: RetrievalData):
        self.passages = len(data.corpus)
        judged = [
            (number, doc, grade)
            for number, query in enumerate(data.query_ids)
            for doc, grade in data.qrels[query].items()
            if grade >= 1
        ]
        query = np.array([each[0] for each in judged])
        grade = np.array([each[2] for each in judged], dtype=np.float64)
        row = data.corpus.rows_of([each[1] for each in judged])
        best = np.lexsort((-grade, query))  # the ideal ranking has passages outside of the corpus too, as in trec_eval
        rank = 1 + np.arange(len(query)) - np.searchsorted(query[best], query[best])
        self.ideal_Q = np.bincount(query[best], grade[best] * discount(rank), minlength=len(data.query_ids))
        there = row >= 0
        self.query, self.row = query[there], row[there]
        order = np.argsort(self.query * self.passages + self.row)
        self._codes, self._gains = (self.query * self.passages + self.row)[order], grade[there][order]
        by_grade = np.lexsort((self.row, -grade[there], self.query))
        starts = np.searchsorted(self.query[by_grade], np.arange(1, len(data.query_ids)))
        self.rows = np.split(self.row[by_grade], starts)
        """The relevant rows of each query, best grade first."""

    def gains(self, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Grades of corpus rows for queries, 0 if not relevant or no row (-1); the arguments broadcast."""
        codes = query * self.passages + rows
        place = np.searchsorted(self._codes, codes).clip(max=len(self._codes) - 1)
        return np.where((self._codes[place] == codes) & (rows >= 0), self._gains[place], 0.0)

    def unrelated(self, order: np.ndarray, most: int) -> np.ndarray:
        """Chooses pairs, in this order, so that each query and each passage occurs once; their indices ascending.

        So tests over queries count each query once, and cross-validation never tests a router on a passage of its
        training.
        """
        queries: set[int] = set()
        rows: set[int] = set()
        chosen: list[int] = []
        for pair, query, row in zip(order, self.query[order].tolist(), self.row[order].tolist(), strict=True):
            if len(chosen) == most:
                break
            if query not in queries and row not in rows:
                chosen.append(pair)
                queries.add(query)
                rows.add(row)
        return np.sort(chosen)


def discount(rank: np.ndarray) -> np.ndarray:
    """The discount of DCG@10 at a rank from 1: 1 / log2(1 + rank), and 0 below rank 10."""
    return np.where(rank <= CUTOFF, 1 / np.log2(1 + np.maximum(rank, 1)), 0.0)


class DepthScorer:
    """Scores texts at every depth against a corpus.

    Args:
        queries_QC: embeddings of all its queries at greedy depths.
        documents_NC: embeddings of its corpus at greedy depths; may be a memory map.
        reward: kind of `maw.evaluation.reward.task_reward`.
        seed: seed of the halves, and of the permutation of `_moved`.
    """

    def __init__(
        self,
        data: RetrievalData,
        queries_QC: np.ndarray,
        documents_NC: np.ndarray,
        *,
        temperature: float,
        normalize: bool,
        reward: str,
        device: torch.device,
        seed: int,
    ):
        self.queries_QC, self.documents_NC = queries_QC, documents_NC
        self.temperature, self.normalize, self.reward = temperature, normalize, reward
        self.device, self.seed = device, seed
        self.relevance = Relevance(data)
        self.ties_N, self.left_out_Q = data.corpus.tie_order(), data.left_out_rows()
        self.first_half_N = np.random.default_rng([seed, 0]).random(len(data.corpus)) < 0.5

    def of_queries(self, rows_Q: np.ndarray, every_QDC: np.ndarray) -> DepthMatrix:
        """Scores queries at every depth, with all documents at greedy depths."""
        return DepthMatrix.joined(_in_parts(self._of_queries, every_QDC.shape[1] + 1, rows_Q, every_QDC))

    def of_documents(self, query_Q: np.ndarray, row_Q: np.ndarray, every_QDC: np.ndarray) -> DepthMatrix:
        """Scores the pairs' positives at every depth, with their queries and all other documents at greedy depths."""
        return DepthMatrix.joined(_in_parts(self._of_documents, every_QDC.shape[1] + 1, query_Q, row_Q, every_QDC))

    def ndcg_of_queries(self, rows_Q: np.ndarray, every_QGC: np.ndarray) -> np.ndarray:
        """nDCG@10 of queries with any embeddings, (Q, G)."""
        parts = _in_parts(self._ranked, every_QGC.shape[1], rows_Q, every_QGC)
        return np.concatenate([ndcg_SQG[0] for ndcg_SQG, _ in parts])

    def ndcg_of_documents(self, query_Q: np.ndarray, row_Q: np.ndarray, every_QGC: np.ndarray) -> np.ndarray:
        """nDCG@10 of the queries of pairs with any embeddings of the positives, (Q, G)."""
        parts = _in_parts(self._inserted, every_QGC.shape[1], query_Q, row_Q, every_QGC)
        return np.concatenate([ndcg_SQG[0] for ndcg_SQG, _ in parts])

    def _of_queries(self, rows_Q: np.ndarray, every_QDC: np.ndarray) -> DepthMatrix:
        every_QEC = np.concatenate((every_QDC, self.queries_QC[rows_Q][:, None]), axis=1)
        ndcg_SQE, listed_QEK = self._ranked(rows_Q, every_QEC)
        noise_SQD = self._ranked(rows_Q, self._moved(every_QDC))[0]
        reward_QE = self._reward_of_queries(rows_Q, every_QEC, listed_QEK[:, -1, :LISTED])
        return _matrix(ndcg_SQE, noise_SQD, reward_QE)

    def _of_documents(self, query_Q: np.ndarray, row_Q: np.ndarray, every_QDC: np.ndarray) -> DepthMatrix:
        every_QEC = np.concatenate((every_QDC, np.asarray(self.documents_NC[row_Q])[:, None]), axis=1)
        ndcg_SQE, (rows_QK, scores_QK) = self._inserted(query_Q, row_Q, every_QEC)
        noise_SQD = self._inserted(query_Q, row_Q, self._moved(every_QDC))[0]
        positive_QE = np.einsum("qec,qc->qe", every_QEC, self.queries_QC[query_Q])
        irrelevant_QK = self.relevance.gains(query_Q[:, None], rows_QK) == 0
        others_Q1K = np.where(irrelevant_QK, scores_QK, -np.inf)[:, None, :LISTED]
        return _matrix(ndcg_SQE, noise_SQD, self._reward(positive_QE, others_Q1K))

    def _ranked(self, rows_Q: np.ndarray, every_QEC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """nDCG@10 (S, Q, E), and the rankings as corpus rows (Q, E, K)."""
        count, size = every_QEC.shape[:2]
        queries = every_QEC.reshape(count * size, -1)
        rows, _, gains, kept_S = self._long_rankings(np.repeat(rows_Q, size), queries)
        dcg = [(gains * kept * discount(kept.cumsum(-1))).sum(-1).reshape(count, size) for kept in kept_S]
        return np.array(dcg) / self.relevance.ideal_Q[rows_Q, None], rows.reshape(count, size, -1)

    def _inserted(
        self, query_Q: np.ndarray, row_Q: np.ndarray, every_QEC: np.ndarray
    ) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
        """nDCG@10 (S, Q, E) after the positive's score at each depth is inserted into the ranking, and the ranking.

        The positive's score comes from another matrix product than the others', so equal scores may differ by
        rounding; these count as equal, and the tie order decides.

        Returns:
            nDCG@10, and corpus rows and scores (Q, K) of the ranking at greedy depths.
        """
        score_QE1 = np.einsum("qec,qc->qe", every_QEC, self.queries_QC[query_Q])[..., None]
        rows, scores, gains, kept_S = self._long_rankings(query_Q, self.queries_QC[query_Q], row_Q)
        difference = scores[:, None] - score_QE1
        tied = np.abs(difference) <= _SAME_SCORE * np.maximum(1, np.abs(score_QE1))
        first = (self.ties_N[rows] < self.ties_N[row_Q][:, None])[:, None]
        above_QEK = np.where(tied, first, difference > 0)
        own = self.relevance.gains(query_Q, row_Q)[:, None]
        dcg = []
        for kept in kept_S:
            rank_QEK = kept.cumsum(-1)[:, None] + ~above_QEK  # passages below the positive move down one rank
            others = ((gains * kept)[:, None] * discount(rank_QEK)).sum(-1)
            dcg.append(others + own * discount(1 + (above_QEK & kept[:, None]).sum(-1)))
        return np.array(dcg) / self.relevance.ideal_Q[query_Q, None], (rows, scores)

    def _long_rankings(
        self, query_B: np.ndarray, queries_BC: np.ndarray, without_B: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Rankings of B embeddings of queries that have `CUTOFF` passages of each part, if the part has so many.

        They lack the passages that the queries leave out.

        Returns:
            Corpus rows, scores and grades, (B, K); and whether each passage counts in each part, (S, B, K): relevant
            passages are in both halves, and `without_B`, one passage for each ranking, is in none.
        """
        on_device = torch.from_numpy(np.ascontiguousarray(queries_BC)).to(self.device)
        own = None if self.left_out_Q is None else self.left_out_Q[query_B]
        listed = min(LISTED, self.relevance.passages)
        while True:
            found = leaving_out(lambda k: top_k(on_device, self.documents_NC, k, self.ties_N), listed, own)
            scores, rows = (each.numpy() for each in found)
            gains = self.relevance.gains(query_B[:, None], rows)
            first, relevant = self.first_half_N[rows], gains > 0
            kept_S = np.stack([np.ones_like(first), first | relevant, ~first | relevant]) & (rows >= 0)
            if without_B is not None:
                kept_S &= rows != without_B[:, None]
            if listed == self.relevance.passages or kept_S.sum(-1).min() >= CUTOFF:
                return rows, scores, gains, kept_S
            listed = min(4 * listed, self.relevance.passages)

    def _moved(self, every_QDC: np.ndarray) -> np.ndarray:
        """Each text's mean embedding plus the deviations of another text's depths: noise that suits no text.

        If a text's deviations from its mean are noise, those of another text give the same gain from choosing a depth.
        """
        random = np.random.default_rng([self.seed, 1])
        order = random.permutation(len(every_QDC))
        donor = np.empty_like(order)
        donor[order] = np.roll(order, 1)  # another text, unless there is only one
        mean_Q1C = every_QDC.mean(1, keepdims=True)
        moved = mean_Q1C + (every_QDC - mean_Q1C)[donor]
        if self.normalize:
            moved /= np.linalg.norm(moved, axis=-1, keepdims=True).clip(min=1e-12)
        return moved.astype(np.float32)

    def _reward_of_queries(self, rows_Q: np.ndarray, every_QEC: np.ndarray, candidates_QK: np.ndarray) -> np.ndarray:
        """Reward (Q, E): mean over a query's positives, each against the candidates that are not relevant."""
        rewards = []
        for start in range(0, len(rows_Q), QUERIES_AT_ONCE):
            part = slice(start, start + QUERIES_AT_ONCE)
            candidates = np.asarray(self.documents_NC[candidates_QK[part]])
            scores_QEK = np.einsum("qec,qkc->qek", every_QEC[part], candidates, optimize=True)
            irrelevant = self.relevance.gains(rows_Q[part, None], candidates_QK[part]) == 0
            irrelevant &= candidates_QK[part] >= 0
            others = np.where(irrelevant[:, None], scores_QEK, -np.inf)
            for query, every_EC, others_EK in zip(rows_Q[part], every_QEC[part], others, strict=True):
                positives = np.asarray(self.documents_NC[self.relevance.rows[query][:MOST_POSITIVES]])
                scores_PE = positives @ every_EC.T
                rewards.append(self._reward(scores_PE, others_EK[None]).mean(0))
        return np.array(rewards)

    def _reward(self, positive: np.ndarray, others: np.ndarray) -> np.ndarray:
        positive, others = (torch.from_numpy(each / self.temperature) for each in (positive, others))
        return task_reward(self.reward, positive, others).double().numpy()


def _matrix(ndcg_SQE: np.ndarray, noise_SQD: np.ndarray, reward_QE: np.ndarray) -> DepthMatrix:
    return DepthMatrix(
        ndcg_SQE[0, :, :-1],
        ndcg_SQE[0, :, -1],
        ndcg_SQE[1:, :, :-1],
        noise_SQD[1:],
        reward_QE[:, :-1],
        reward_QE[:, -1],
    )


def _in_parts(score: Callable[..., Any], rankings: int, *arrays: np.ndarray) -> list[Any]:
    """`score` of nearly equal parts of the arrays, each with at most `ROWS_AT_ONCE` rankings, `rankings` a row."""
    count = max(1, -(-len(arrays[0]) * rankings // ROWS_AT_ONCE))
    return [score(*part) for part in zip(*(np.array_split(array, count) for array in arrays), strict=True)]
