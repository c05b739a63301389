"""The 36 retrieval metrics, per query and averaged, by trec_eval's definitions.

    result = compute_metrics(query_ids, doc_ids, scores, qrels)
    result["ndcg_cut_10"], result.per_query["ndcg_cut_10"]

`maw.evaluation.evaluate` uses it. 34 metrics come from one pass of pytrec_eval. Two are added in trec_eval's style:
`recip_rank_10`, the reciprocal rank of a ranking cut to ten, and `F1_10`, the harmonic mean of a query's P_10 and
recall_10; both are averaged over queries like the others.

pytrec_eval reads only dictionaries, and building one of a million scores takes longer than the evaluation. The 34
metrics depend only on the ranks and grades of the judged passages. So the rankings given to pytrec_eval name each
passage by its rank ("0000000" is the best) and end soon after the last judged passage that was found; queries share
them. The values are the same to the last bit.

Departures from plain pytrec_eval: a query of the qrels that has no ranking scores 0 (pytrec_eval leaves it out of the
mean), and ids and grades that make pytrec_eval crash or hang are refused. As in trec_eval, passages of equal float32
score are ranked by id, descending; a passage is relevant from grade 1 (see `relevance_level`); nDCG uses grades as
gains; a passage without a grade is not relevant, except in bpref, which skips it.

Letters: Q queries, K ranked passages.

Source: https://github.com/usnistgov/trec_eval; Van Gysel and de Rijke, "Pytrec_eval: An Extremely Fast Python
Interface to trec_eval", SIGIR 2018.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import pytrec_eval

from maw.config.tier1_config import LARGEST_GRADE
from maw.errors import DataError, NotFiniteError

_CUTOFFS = (1, 3, 5, 10, 15, 20, 100, 1000)

FAMILIES: dict[str, tuple[str, ...]] = {
    "ranking": (*(f"ndcg_cut_{cutoff}" for cutoff in _CUTOFFS), "ndcg", "map_cut_10", "map_cut_100", "recip_rank"),
    "recall": tuple(f"recall_{cutoff}" for cutoff in _CUTOFFS),
    "precision": tuple(f"P_{cutoff}" for cutoff in _CUTOFFS),
    "other": ("map", "recip_rank_10", "Rprec", "bpref", "success_1", "success_5", "success_10", "F1_10"),
}
"""Family -> trec_eval keys: 12 of ranking, 8 of recall, 8 of precision, 8 others."""

METRICS: tuple[str, ...] = tuple(key for keys in FAMILIES.values() for key in keys)
"""All 36 keys, by family."""

PRIMARY: tuple[str, ...] = (
    *("ndcg_cut_10", "map", "recall_100", "recip_rank_10", "P_10", "F1_10", "Rprec", "bpref", "success_5", "ndcg"),
)
"""The ten metrics that reports show first, in order."""

_NAMES = {
    "ndcg_cut": "nDCG",
    "map_cut": "MAP",
    "recip_rank": "MRR",
    "recall": "Recall",
    "P": "Precision",
    "F1": "F1",
    "success": "Success",
    "ndcg": "nDCG",
    "map": "MAP",
    "Rprec": "R-Precision",
    "bpref": "bpref",
}

_OURS = ("recip_rank_10", "F1_10")


def _with_cutoff(key: str) -> tuple[str, int]:
    """A metric's name without its cutoff, and the cutoff; 0 for a metric of the whole ranking."""
    name, _, cutoff = key.rpartition("_")
    return (name, int(cutoff)) if cutoff.isdigit() else (key, 0)


METRIC_LABELS: dict[str, str] = {
    key: f"{_NAMES[name]}@{cutoff}" if cutoff else _NAMES[name]
    for key, (name, cutoff) in zip(METRICS, map(_with_cutoff, METRICS), strict=True)
}
"""Key -> the common name, such as "nDCG@10"."""


class EvaluationResult(dict[str, float]):
    """Means over queries by trec_eval's key, with the values per query.

    Attributes:
        query_ids: the queries of the ranking, in its order, then those that only the qrels have.
        per_query: metric -> (Q,) float64, in the order of `query_ids`.
        run: the ranking, if the evaluation keeps it: "rows" and "scores", best first.
        facts: other facts of the evaluation, JSON-able.
    """

    def __init__(
        self,
        query_ids: Sequence[str],
        per_query: Mapping[str, np.ndarray],
        run: dict[str, np.ndarray] | None = None,
        facts: dict[str, Any] | None = None,
    ):
        super().__init__({key: math.fsum(values) / len(values) for key, values in per_query.items()})
        self.query_ids = list(query_ids)
        self.per_query = dict(per_query)
        self.run = run
        self.facts = facts if facts is not None else {}


def compute_metrics(
    query_ids: Sequence[str],
    doc_ids: Sequence[Sequence[str]],
    scores: np.ndarray | Sequence[Sequence[float]],
    qrels: Mapping[str, Mapping[str, int]],
    *,
    relevance_level: int = 1,
) -> EvaluationResult:
    """Computes the 36 metrics of a ranking.

    Args:
        query_ids: the queries of the ranking.
        doc_ids: for each query the passages found, in any order; the scores decide.
        scores: for each query their scores, compared as float32.
        qrels: query -> passage -> grade. Queries missing from the ranking score 0.
        relevance_level: lowest grade of a relevant passage in the binary metrics, 1 or more.

    Shapes:
        query_ids (Q,), doc_ids (Q, K), scores (Q, K); rows of a list may differ in length.

    Returns:
        The 36 metrics. A query without relevant passages scores 0 in all of them.

    Raises:
        DataError: a query without judgements, a query or passage twice, an id or grade that cannot be evaluated.
        NotFiniteError: a score is not finite.
        ValueError: arguments that differ in length, or a relevance level that is not a grade.
    """
    if not 1 <= relevance_level <= LARGEST_GRADE:
        raise ValueError(f"relevance_level must be between 1 and {LARGEST_GRADE}, not {relevance_level}")
    _check_qrels(qrels)
    ranks = _judged_ranks(query_ids, doc_ids, scores, qrels)
    ordered = [*query_ids, *(query for query in qrels if query not in ranks)]
    per_query = _evaluate(ordered, ranks, qrels, relevance_level)
    reciprocal_Q, p_Q, recall_Q = per_query["recip_rank"], per_query["P_10"], per_query["recall_10"]
    per_query["recip_rank_10"] = np.where(reciprocal_Q > 1 / 10.5, reciprocal_Q, 0.0)
    total_Q = p_Q + recall_Q
    per_query["F1_10"] = np.divide(2 * p_Q * recall_Q, total_Q, out=np.zeros_like(total_Q), where=total_Q > 0)
    return EvaluationResult(ordered, {key: per_query[key] for key in METRICS})


def bpref_warning(qrels: Mapping[str, Mapping[str, int]], relevance_level: int = 1) -> str | None:
    """A warning if the qrels hold no judged non-relevant passage, else None.

    bpref counts judged non-relevant passages above relevant ones. Without any, it is the share of relevant passages
    found at any rank.

    Source: Buckley and Voorhees, "Retrieval Evaluation with Incomplete Information", SIGIR 2004.
    """
    if any(0 <= grade < relevance_level for grades in qrels.values() for grade in grades.values()):
        return None
    return (
        "bpref has no meaning here: it needs passages that were judged not relevant, and the qrels have none; it is "
        "only the share of relevant passages found"
    )


def cutoff_warning(top_k: int, passages: int) -> str | None:
    """A warning if only `top_k` of the `passages` are ranked and metrics have larger cutoffs, else None."""
    beyond = [METRIC_LABELS[key] for key in METRICS if _with_cutoff(key)[1] > top_k] if top_k < passages else []
    if not beyond:
        return None
    return (
        f"only {top_k} of {passages:,} passages were ranked for each query; relevant passages below them count as "
        f"not found: {', '.join(beyond)}, and all metrics without a cutoff, may be lower than in a longer ranking; "
        f"top_k {min(passages, max(_with_cutoff(key)[1] for key in METRICS))} avoids it"
    )


def _judged_ranks(
    query_ids: Sequence[str],
    doc_ids: Sequence[Sequence[str]],
    scores: np.ndarray | Sequence[Sequence[float]],
    qrels: Mapping[str, Mapping[str, int]],
) -> dict[str, dict[str, int]]:
    """Checks a ranking; for each of its queries the judged passages that were found, and their ranks from 0."""
    if not len(query_ids) == len(doc_ids) == len(scores):
        raise ValueError(
            f"query ids, rankings and rows of scores must have the same number, "
            f"got {len(query_ids)}, {len(doc_ids)} and {len(scores)}"
        )
    if not len(query_ids) and not qrels:
        raise DataError("there is no query to evaluate: the run and the qrels are both empty")
    ranks = {}
    for query, docs, row in zip(query_ids, doc_ids, scores, strict=True):
        if query not in qrels:
            raise DataError(f"query {query!r} of the run has no judgement in the qrels: remove it or judge a passage")
        if query in ranks:
            raise DataError(f"query {query!r} occurs twice in the run")
        ranks[query] = _ranks(query, list(docs), np.asarray(row, dtype=np.float32), qrels[query])
    return ranks


def _ranks(query: str, docs: list[str], row_K: np.ndarray, grades: Mapping[str, int]) -> dict[str, int]:
    """Ranks of one query's judged passages."""
    if len(docs) != len(row_K):
        raise ValueError(f"query {query!r}: {len(docs)} passages but {len(row_K)} scores")
    if not np.isfinite(row_K).all():
        raise NotFiniteError(f"query {query!r}: a score is NaN or infinite; it cannot be ranked")
    place = dict(zip(docs, range(len(docs)), strict=True))
    if len(place) < len(docs):
        twice = next(doc for doc in place if docs.count(doc) > 1)
        raise DataError(f"query {query!r}: passage {twice!r} occurs twice in its ranking")
    _check_ids(query, place)
    found = [doc for doc in grades if doc in place]
    rank_of_place = np.empty(len(docs), np.int64)
    rank_of_place[_order(docs, row_K)] = np.arange(len(docs))
    return dict(zip(found, rank_of_place[[place[doc] for doc in found]].tolist(), strict=True))


def _order(docs: list[str], row_K: np.ndarray) -> np.ndarray:
    """Positions of the passages, best first: by score, then by id descending, as in trec_eval.

    Ids are compared only for equal scores. Strings compare by code point, which is also their order in UTF-8.
    """
    order = np.argsort(-row_K, kind="stable")
    tied = np.flatnonzero(row_K[order[:-1]] == row_K[order[1:]])
    if any(docs[a] < docs[b] for a, b in zip(order[tied].tolist(), order[tied + 1].tolist(), strict=True)):
        by_id = np.array(sorted(range(len(docs)), key=docs.__getitem__, reverse=True))
        order = by_id[np.argsort(-row_K[by_id], kind="stable")]
    return order


def _evaluate(
    ordered: Sequence[str],
    ranks: Mapping[str, Mapping[str, int]],
    qrels: Mapping[str, Mapping[str, int]],
    relevance_level: int,
) -> dict[str, np.ndarray]:
    """One pass of pytrec_eval: metric -> (Q,), in the order of `ordered`."""
    names = [key for key in METRICS if key not in _OURS]
    # A query without a relevant passage found scores 0. pytrec_eval crashes on some of them, so it does not get them.
    asked = {query: found for query, found in ranks.items() if any(qrels[query][doc] > 0 for doc in found)}
    lengths = {query: 1 << max(found.values()).bit_length() for query, found in asked.items()}  # few different ones
    rankings = {length: _ranking(length) for length in set(lengths.values())}
    run = {query: rankings[length] for query, length in lengths.items()}
    judgements = {
        query: {
            f"{found[doc]:07}" if doc in found else f"not found {number}": int(grade)
            for number, (doc, grade) in enumerate(qrels[query].items())
        }
        for query, found in asked.items()
    }
    measures = {f"{name}.{cutoff}" if cutoff else name for name, cutoff in map(_with_cutoff, names)}
    values = pytrec_eval.RelevanceEvaluator(judgements, measures, relevance_level=relevance_level).evaluate(run)
    nothing = dict.fromkeys(names, 0.0)
    row_of = itemgetter(*names)
    table_QM = np.array([row_of(values.get(query, nothing)) for query in ordered], dtype=np.float64)
    return {key: table_QM[:, column].copy() for column, key in enumerate(names)}


def _ranking(length: int) -> dict[str, float]:
    """A ranking of `length` passages, each named by its rank."""
    return {f"{rank:07}": float(-rank) for rank in range(length)}


def _check_qrels(qrels: Mapping[str, Mapping[str, int]]) -> None:
    for query, grades in qrels.items():
        _check_ids(query, grades)
        for doc, grade in grades.items():
            whole = isinstance(grade, int | np.integer) and not isinstance(grade, bool)
            if not whole or abs(grade) > LARGEST_GRADE:
                raise DataError(
                    f"query {query!r}, passage {doc!r}: grade {grade!r} must be a whole number between "
                    f"-{LARGEST_GRADE} and {LARGEST_GRADE}"
                )


def _check_ids(query: str, docs: Mapping[str, Any]) -> None:
    """Refuses ids that pytrec_eval's C code truncates (NUL) or crashes on (not a string, a lone surrogate)."""
    try:
        harmless = b"\0" not in f"{query}{''.join(docs)}".encode() and isinstance(query, str)
    except (TypeError, UnicodeEncodeError):
        harmless = False
    if not harmless:
        raise DataError(f"query {query!r}: ids must be text that UTF-8 can encode, without NUL characters")
