"""Example queries for the report: test queries on which two methods differ most, with their first passages.

    pystdlib_20250106_143022/examples.json      written at the end of a run, because later reports have no collection

For a few comparisons the file holds the queries with the largest gain and loss in nDCG@10 (ties in the order of the
test set), and for each query its text, its relevant passages and the first passages of both rankings. The examples are
extreme and not typical.

Texts are cut at `LONGEST` characters, and each passage is stored once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maw.config.methods import CONTROLS, Maw, Method, comparisons
from maw.data.collection import RetrievalData
from maw.evaluation.confirmatory import METRIC, key_of
from maw.evaluation.metrics import EvaluationResult
from maw.evaluation.significance import differences
from maw.storage.files import write_json

NAME, ATTENTION = "examples.json", "attention.json"
"""File names of this module and of `maw.evaluation.routing.attention_example`, which is slow to import."""
QUERIES, PASSAGES, RELEVANT = 3, 3, 3
COMPARISONS = 3
LONGEST = 600


@dataclass(frozen=True)
class Examples:
    """The examples of one dataset.

    Attributes:
        data: the test split.
        evaluations: method -> its evaluation, averaged over seeds.
        by_seed: method -> seed -> evaluation; the first seed's ranking is shown.
        subject: the method whose comparisons come first.
    """

    data: RetrievalData
    evaluations: Mapping[str, EvaluationResult]
    by_seed: Mapping[str, Mapping[int, EvaluationResult]]
    subject: str = Maw.name

    def write(self, folder: Path) -> Path:
        """Writes the examples into a dataset's folder.

        Raises:
            MAWError: the file cannot be written.
        """
        return write_json(folder / NAME, self.content())

    def content(self) -> dict[str, Any]:
        """The content of the file.

        Returns:
            "metric"; "relevance_level"; "comparisons", each with the queries "won" and "lost"; "queries", id -> text,
            "relevant" passages and their number; by a method's short name "rankings", query -> first passages with
            rank and score, "values", query -> metric, and "seeds", the seed of the ranking; and "texts", passage ->
            text and whether it was cut.
        """
        chosen = {pair: self._chosen(*pair) for pair in shown_pairs(self.evaluations, self.subject)}
        chosen = {pair: found for pair, found in chosen.items() if found["won"] or found["lost"]}
        queries = dict.fromkeys(query for found in chosen.values() for part in found.values() for query in part)
        methods = dict.fromkeys(method for pair in chosen for method in pair)
        rankings = {method.short: self._rankings(method, list(queries)) for method in methods}
        about = {query: self._about(query) for query in queries}
        wanted = [each["passage"] for found in rankings.values() for ranking in found.values() for each in ranking]
        wanted += [each["passage"] for query in about.values() for each in query["relevant"]]
        ids = next(iter(self.evaluations.values())).query_ids if queries else []
        place = {query: row for row, query in enumerate(ids)}
        return {
            "metric": METRIC,
            "relevance_level": self.data.relevance_level,
            "comparisons": {key_of(*pair): found for pair, found in chosen.items()},
            "queries": about,
            "values": {
                method.short: {
                    query: float(self.evaluations[method.name].per_query[METRIC][place[query]]) for query in queries
                }
                for method in methods
            },
            "seeds": {method.short: next(iter(self.by_seed[method.name])) for method in methods},
            "rankings": rankings,
            "texts": self._texts(list(dict.fromkeys(wanted))),
        }

    def _chosen(self, new: Method, old: Method) -> dict[str, list[str]]:
        """The queries on which `new` gains and loses most against `old`."""
        a, b = (self.evaluations[method.name] for method in (new, old))
        difference_Q = differences(a.per_query[METRIC], b.per_query[METRIC])

        def most(values_Q: np.ndarray) -> list[str]:
            order = np.argsort(-values_Q, kind="stable")[:QUERIES]
            return [a.query_ids[row] for row in order if values_Q[row] > 0]

        return {"won": most(difference_Q), "lost": most(-difference_Q)}

    def _rankings(self, method: Method, queries: list[str]) -> dict[str, list[dict[str, Any]]]:
        evaluation = next(iter(self.by_seed[method.name].values()))
        if evaluation.run is None:
            return {}
        place = {query: row for row, query in enumerate(evaluation.query_ids)}
        rows = [place[query] for query in queries]
        ranked = (evaluation.run[name][rows, :PASSAGES] for name in ("rows", "scores"))
        return {
            query: [
                {"rank": rank, "passage": passage, "score": float(score)} | self._judged(query, passage)
                for rank, (passage, score) in enumerate(zip(ids, scores, strict=True), start=1)
            ]
            for query, ids, scores in zip(queries, *self.data.corpus.rankings(*ranked), strict=True)
        }

    def _about(self, query: str) -> dict[str, Any]:
        judged = self.data.qrels[query]
        relevant = sorted(
            (doc for doc in judged if judged[doc] >= self.data.relevance_level), key=lambda doc: (-judged[doc], doc)
        )
        text = self.data.queries[self.data.query_ids.index(query)]
        return {
            "text": text[:LONGEST],
            "number_relevant": len(relevant),
            "relevant": [{"passage": doc} | self._judged(query, doc) for doc in relevant[:RELEVANT]],
        }

    def _judged(self, query: str, passage: str) -> dict[str, int]:
        grade = self.data.qrels[query].get(passage)
        return {} if grade is None else {"grade": int(grade)}

    def _texts(self, passages: list[str]) -> dict[str, dict[str, Any]]:
        """Texts of those passages that the corpus holds."""
        rows = self.data.corpus.rows_of(passages) if passages else []
        there = [(passage, int(row)) for passage, row in zip(passages, rows, strict=True) if row >= 0]
        texts = self.data.corpus.take([row for _, row in there]) if there else []
        return {
            passage: {"text": text[:LONGEST], "cut": len(text) > LONGEST}
            for (passage, _), text in zip(there, texts, strict=True)
        }


def shown_pairs(names: Mapping[str, Any], subject: str = Maw.name) -> list[tuple[Method, Method]]:
    """The first `COMPARISONS` of: the subject against controls (LoRA first) and other methods, and all others."""
    pairs = list(comparisons(names))

    def first(pair: tuple[Method, Method]) -> tuple[bool, int]:
        new, old = pair
        return new.name != subject, CONTROLS.index(old.name) if old.name in CONTROLS else len(CONTROLS)

    return sorted(pairs, key=first)[:COMPARISONS]
