"""Queries and judgements, and the passages they go with.

Every loader in `maw.data` ends in three types, and training, encoding and evaluation see nothing else: a
`maw.data.corpus.Corpus` (passages), a `RetrievalData` (one split) and a `Collection` (three splits and the facts that
the report prints).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from maw.data.corpus import Corpus
from maw.errors import DataError, show


@dataclass(frozen=True)
class RetrievalData:
    """One split: queries, judgements and the corpus to search.

    Attributes:
        corpus: the passages.
        name: "train", "validation" or "test".
        query_ids: (Q,) unique ids.
        queries: (Q,) texts.
        qrels: query id -> passage id -> grade, with exactly the ids of `query_ids`. A grade of 1 or more is
            relevant; 0 is judged not relevant; below 0 the metrics take a passage for unjudged, as trec_eval does.
            Each query has a relevant passage in the corpus.
        negatives: query id -> ids of hard negatives, the best to train against first.
        answers: query id -> strings of which a passage that answers it holds one; for some collections only.
        relevance_level: grade from which a passage counts as relevant in the binary metrics.

    Raises:
        DataError: one of the above does not hold.
    """

    corpus: Corpus
    name: str
    query_ids: list[str]
    queries: list[str]
    qrels: dict[str, dict[str, int]]
    negatives: dict[str, list[str]] = field(default_factory=dict)
    answers: dict[str, list[str]] = field(default_factory=dict)
    relevance_level: int = 1

    def __post_init__(self) -> None:
        if len(self.query_ids) != len(self.queries):
            raise DataError(f"{self.name}: {len(self.query_ids)} query ids but {len(self.queries)} queries")
        known = set(self.query_ids)
        if len(known) != len(self.query_ids):
            raise DataError(f"{self.name}: a query id occurs twice; give each query its own")
        stray = (known ^ self.qrels.keys()) | (self.negatives.keys() - known)
        if stray:
            raise DataError(f"{self.name}: the query {show(min(stray))} is in only one of queries and judgements")
        pairs = [(q, d) for q in self.query_ids for d, grade in self.qrels[q].items() if grade >= 1]
        there = self.corpus.rows_of([d for _, d in pairs]) >= 0
        answered = {q for (q, _), ok in zip(pairs, there, strict=True) if ok}
        for query_id in self.query_ids:
            if query_id not in answered:
                raise DataError(
                    f"{self.name}: the query {show(query_id)} has no relevant passage (grade 1 or more) "
                    "in the corpus; add one or leave the query out"
                )

    def __len__(self) -> int:
        return len(self.query_ids)

    def only(self, ids: Sequence[str]) -> RetrievalData:
        """The part of the split that holds the queries `ids`, in their order."""
        text_of = dict(zip(self.query_ids, self.queries, strict=True))
        return replace(
            self,
            query_ids=list(ids),
            queries=[text_of[i] for i in ids],
            qrels={i: self.qrels[i] for i in ids},
            negatives={i: self.negatives[i] for i in ids if i in self.negatives},
            answers={i: self.answers[i] for i in ids if i in self.answers},
        )

    def qrels_hash(self) -> str:
        """SHA-256 of the judgements, whatever the order they came in."""
        rows = sorted((q, d, grade) for q, judged in self.qrels.items() for d, grade in judged.items())
        return hashlib.sha256(json.dumps(rows).encode("ascii")).hexdigest()


@dataclass(frozen=True)
class Collection:
    """A dataset as a run uses it.

    Attributes:
        name: fit for a folder name, e.g. "pystdlib" or "beir_nq".
        title: for people.
        train, validation, test: the drawn splits. Train and validation are empty where a dataset has none
            and no method of the run trains.
        facts: JSON-able; source, version, counts, rules, skipped counts and the list of warnings, for the
            report.
        groups: query id -> a name that it shares with the queries that must not be parted from it when the queries are
            divided anew (`maw.data.folds`); a query without one stands alone.
    """

    name: str
    title: str
    train: RetrievalData
    validation: RetrievalData
    test: RetrievalData
    facts: dict[str, Any]
    groups: dict[str, str] = field(default_factory=dict)
