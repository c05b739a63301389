"""Data types of a dataset: `Corpus` (passages), `RetrievalData` (one split) and `Collection` (all splits).

Every loader in `maw.data` returns these, and training, encoding and evaluation use nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from maw.data.corpus import Corpus
from maw.errors import DataError, show


def answerable(qrels: Mapping[str, Mapping[str, int]], corpus: Corpus) -> set[str]:
    """The queries with a relevant passage, of grade 1 or more, in the corpus."""
    pairs = [(query, passage) for query, judged in qrels.items() for passage, grade in judged.items() if grade >= 1]
    rows = corpus.rows_of([passage for _, passage in pairs])
    return {query for (query, _), row in zip(pairs, rows, strict=True) if row >= 0}


@dataclass(frozen=True)
class RetrievalData:
    """One split: queries, qrels and the corpus to search.

    Attributes:
        corpus: the passages.
        name: "train", "validation" or "test".
        query_ids: (Q,) unique ids.
        queries: (Q,) texts.
        qrels: query id -> passage id -> grade, with exactly the ids of `query_ids`. Grade 1 or more is relevant, 0 is
            judged not relevant; below 0 a passage counts as unjudged, as in trec_eval. Each query has a relevant
            passage, and a training query has one in the corpus. Passages that the corpus lacks are not found by any
            ranking, and count in recall and in the ideal DCG, as in trec_eval.
        negatives: query id -> ids of hard negatives, the best ones first.
        answers: query id -> strings, one of which an answering passage contains; only in some collections.
        relevance_level: lowest grade that counts as relevant in the binary metrics.
        left_out: ids of the queries that do not rank the passage of the same id (`maw.data.self_passages`).

    Raises:
        DataError: one of these conditions is violated.
    """

    corpus: Corpus
    name: str
    query_ids: list[str]
    queries: list[str]
    qrels: dict[str, dict[str, int]]
    negatives: dict[str, list[str]] = field(default_factory=dict)
    answers: dict[str, list[str]] = field(default_factory=dict)
    relevance_level: int = 1
    left_out: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if len(self.query_ids) != len(self.queries):
            raise DataError(f"{self.name}: {len(self.query_ids)} query ids but {len(self.queries)} queries")
        known = set(self.query_ids)
        if len(known) != len(self.query_ids):
            raise DataError(f"{self.name}: a query id occurs twice; give each query its own")
        stray = (known ^ self.qrels.keys()) | (self.negatives.keys() - known)
        if stray:
            raise DataError(f"{self.name}: the query {show(min(stray))} is in only one of queries and judgements")
        there = answerable(self.qrels, self.corpus) if self.name == "train" else known
        for query_id in self.query_ids:
            if query_id not in there or max(self.qrels[query_id].values(), default=0) < 1:
                where = " in the corpus" if self.name == "train" else ""
                text = f"has no relevant passage (grade 1 or more){where}; add one or leave the query out"
                raise DataError(f"{self.name}: the query {show(query_id)} {text}")

    def __len__(self) -> int:
        return len(self.query_ids)

    def only(self, ids: Iterable[str]) -> RetrievalData:
        """The split with only the queries `ids`, in their order."""
        ids = list(ids)
        text_of = dict(zip(self.query_ids, self.queries, strict=True))
        return replace(
            self,
            query_ids=ids,
            queries=[text_of[i] for i in ids],
            qrels={i: self.qrels[i] for i in ids},
            negatives={i: self.negatives[i] for i in ids if i in self.negatives},
            answers={i: self.answers[i] for i in ids if i in self.answers},
            left_out=self.left_out.intersection(ids),
        )

    def left_out_rows(self) -> np.ndarray | None:
        """Row of the passage that each query does not rank, -1 for none: (Q,); None if all queries rank everything."""
        if not self.left_out:
            return None
        rows = self.corpus.rows_of([query_id if query_id in self.left_out else "" for query_id in self.query_ids])
        return rows if (rows >= 0).any() else None

    def qrels_hash(self) -> str:
        """SHA-256 of the qrels, independent of their order."""
        rows = sorted((q, d, grade) for q, judged in self.qrels.items() for d, grade in judged.items())
        return hashlib.sha256(json.dumps(rows).encode("ascii")).hexdigest()


@dataclass(frozen=True)
class Collection:
    """A dataset as a run uses it.

    Attributes:
        name: usable as a folder name, e.g. "pystdlib" or "beir_nq".
        title: name for display.
        train, validation, test: the sampled splits. Train and validation are empty if the dataset has none and no
            method of the run trains.
        facts: JSON-able facts for the report: source, version, counts, rules, skipped counts, warnings.
        groups: query id -> name of its group; queries of one group stay in one fold (`maw.data.folds`). A query
            without a group stands alone.
    """

    name: str
    title: str
    train: RetrievalData
    validation: RetrievalData
    test: RetrievalData
    facts: dict[str, Any]
    groups: dict[str, str] = field(default_factory=dict)
