"""The training batches, which all methods share, and their contrastive loss.

A batch has B queries, one positive passage for each, and the negatives of the data. Every passage of the batch is a
candidate for every query (in-batch negatives), except false negatives: passages that are relevant to the query by the
qrels, copies of such passages, and the query itself under whichever id. The order and the choice of positives depend
on (seed, epoch) alone, so all methods of a run get the same batches.

With a `bank`, the passages of that many earlier batches of the epoch are candidates, too, with their embeddings of
that time (cross-batch memory, Wang et al. 2020): more negatives and finer rewards at the cost of one matrix product.

Source of the loss: van den Oord et al. 2018 (InfoNCE), with in-batch negatives as in Karpukhin et al. 2020 (DPR).

Letters: B queries, P passages of a batch (P >= B), K passages in the bank, C embedding size.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from maw.data.collection import RetrievalData
from maw.data.self_passages import same_texts
from maw.errors import DataError
from maw.runtime.devices import to_device


@dataclass(frozen=True)
class Batch:
    """One training batch, as rows of the training queries and of the training passages.

    Args:
        queries: rows of the queries, int64 (B,); the row of a query also selects its routing noise.
        passages: rows of the passages, int64 (P,); the first B are the positives of the queries, in their order.
        candidate_mask: True where a passage is the query's positive or counts against it, bool (B, P).
        bank_candidate_mask: the same for the passages of earlier batches, the latest last, bool (B, K).
    """

    queries: np.ndarray
    passages: np.ndarray
    candidate_mask: Tensor
    bank_candidate_mask: Tensor

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on `device`."""
        candidate_mask, bank = to_device(self.candidate_mask, device), to_device(self.bank_candidate_mask, device)
        return replace(self, candidate_mask=candidate_mask, bank_candidate_mask=bank)


class PassageBank:
    """Embeddings of the passages of earlier batches, without gradient, to go with `Batch.bank_candidate_mask`."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    def embeddings(self, batch: Batch) -> Tensor:
        """The embeddings that the batch is compared with, (K, C), or an empty tensor; call it before `add`."""
        wanted = batch.bank_candidate_mask.shape[1]
        held = torch.cat(self._parts)[-wanted:] if wanted else torch.empty(0)
        self._parts = [held] if wanted else []
        return held

    def add(self, passages_PC: Tensor) -> None:
        """Adds the passages of a batch, the positives first."""
        self._parts.append(passages_PC.detach())

    def state_dict(self) -> dict[str, list[Tensor]]:
        """The embeddings in the bank; without a bank, those of the last batch, which are never read."""
        return {"parts": self._parts}

    def load_state_dict(self, state: dict[str, list[Tensor]], device: torch.device) -> None:
        """Loads what `state_dict` gave."""
        self._parts = [each.to(device) for each in state["parts"]]


class TrainingPairs:
    """The training queries with their relevant passages and negatives, as integer rows.

    Args:
        negatives: the most negatives of a query to use; queries may have fewer.
        bank: how many earlier batches of the epoch stay candidates.

    Raises:
        DataError: the corpus lacks a negative, or there is no query.
    """

    def __init__(self, data: RetrievalData, *, negatives: int = 0, seed: int = 0, bank: int = 0):
        if not data.query_ids:
            raise DataError(f"{data.name}: there is no query to train on")
        self.seed, self.bank = seed, bank
        judged = sorted({document for query in data.query_ids for document in data.qrels[query]})
        there = {document for document, row in zip(judged, data.corpus.rows_of(judged), strict=True) if row >= 0}
        relevant = [
            [doc for doc, grade in data.qrels[q].items() if grade >= 1 and doc in there] for q in data.query_ids
        ]
        given = [data.negatives.get(query, [])[:negatives] for query in data.query_ids]
        self.corpus_rows, (relevant_rows, negative_rows) = _rows(data, relevant, given)
        self.positives, self.negatives = relevant_rows, negative_rows
        # Equal numbers for texts that differ only in case and white space, (N,).
        records = list(data.corpus.records(self.corpus_rows))
        texts = (" ".join(f"{title} {text}".lower().split()) for _, title, text in records)
        digests = np.array([hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts])
        self.text_class = np.unique(digests, return_inverse=True)[1]
        own = np.array(list(same_texts(data.queries, records)), np.int64).reshape(-1, 2)
        codes = [self._codes(np.full(len(rows), q), rows) for q, rows in enumerate(relevant_rows)]
        self._no_negatives = np.unique(np.concatenate([*codes, self._codes(*own.T)]))

    def __len__(self) -> int:
        return len(self.positives)

    def batches(self, epoch: int, size: int) -> Iterator[Batch]:
        """The batches of one epoch, without a last batch of one query that has no negatives to be compared with."""
        random = self._random(epoch)
        groups = self._groups(random.permutation(len(self)), size)
        draw = random.random(len(self))
        earlier: deque[np.ndarray] = deque(maxlen=self.bank)
        for queries in groups:
            batch = self._batch(queries, draw, earlier)
            earlier.append(batch.passages)
            yield batch

    def count_batches(self, epoch: int, size: int) -> int:
        """The number of batches in an epoch; its last batch may not count, depending on its queries."""
        return len(self._groups(self._random(epoch).permutation(len(self)), size))

    def source_rows(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """The batch as rows of the split's queries, and rows of the corpus."""
        return batch.queries, self.corpus_rows[batch.passages]

    def _random(self, epoch: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch])

    def _groups(self, order: np.ndarray, size: int) -> list[np.ndarray]:
        """The queries of each batch."""
        parts = (order[start : start + size] for start in range(0, len(order), size))
        return [part for part in parts if len(part) > 1 or len(self.negatives[part[0]])]

    def _batch(self, queries: np.ndarray, draw: np.ndarray, earlier: Iterable[np.ndarray]) -> Batch:
        positives = [self.positives[query][int(draw[query] * len(self.positives[query]))] for query in queries]
        passages = np.concatenate([positives, *(self.negatives[query] for query in queries)]).astype(np.int64)
        candidate_mask = self._candidate_mask(queries, passages)
        np.fill_diagonal(candidate_mask, True)
        bank = self._candidate_mask(queries, np.concatenate([np.empty(0, np.int64), *earlier]))
        return Batch(queries, passages, torch.from_numpy(candidate_mask), torch.from_numpy(bank))

    def _candidate_mask(self, queries: np.ndarray, passages: np.ndarray) -> np.ndarray:
        """True where a passage is neither relevant to a query, nor a copy of a relevant one, nor the query itself."""
        codes = self._codes(np.repeat(queries, len(passages)), np.tile(passages, len(queries)))
        return ~np.isin(codes, self._no_negatives).reshape(len(queries), len(passages))

    def _codes(self, queries: np.ndarray, passages: np.ndarray) -> np.ndarray:
        """One number for each pair of a query and the text of a passage."""
        return queries.astype(np.int64) * (len(self.text_class) + 1) + self.text_class[passages]


def _rows(data: RetrievalData, *ids: list[list[str]]) -> tuple[np.ndarray, list[list[np.ndarray]]]:
    """The corpus rows that training needs, sorted, and each list of ids as positions in them."""
    lists = [documents for group in ids for documents in group]
    flat = [document for documents in lists for document in documents]
    rows = data.corpus.rows_of(flat)
    if (rows < 0).any():
        raise DataError(f"{data.name}: passage {flat[int(np.argmin(rows))]!r} is not in the corpus")
    unique, positions = np.unique(rows, return_inverse=True)
    split = np.split(positions, np.cumsum([len(documents) for documents in lists])[:-1])
    groups, start = [], 0
    for group in ids:
        groups.append(split[start : start + len(group)])
        start += len(group)
    return unique, groups


def contrastive_loss(queries_BC: Tensor, passages_PC: Tensor, comparable_BP: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of each query's positive among its candidates, (B,).

    Args:
        queries_BC: (..., B, C); leading dimensions are samples.
        passages_PC: (..., P, C); passage i is the positive of query i.
        comparable_BP: False where a passage does not count against a query.
        temperature: divides the similarities.
    """
    logits = queries_BC @ passages_PC.transpose(-1, -2) / temperature
    logits = logits.masked_fill(~comparable_BP, -torch.inf)
    return logits.logsumexp(-1) - logits.diagonal(dim1=-2, dim2=-1)
