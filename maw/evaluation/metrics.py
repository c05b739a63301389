"""The 36 retrieval metrics, per query and averaged, by trec_eval's definitions.

    result = compute_metrics(query_ids, doc_ids, scores, qrels)
    result["ndcg_cut_10"], result.per_query["ndcg_cut_10"]

`maw.evaluation.evaluate` measures every run with it. 34 metrics come from one pass of pytrec_eval; two are ours, in
trec_eval's style: `recip_rank_10` is the reciprocal rank of a run cut to ten, and `F1_10` the harmonic mean of a
query's P_10 and recall_10, averaged over queries like the rest.

pytrec_eval reads dictionaries only, and building one of a million scores takes longer than measuring them. None of
the 34 depends on what a passage is called or by how much its score is higher: the ranks and grades of the judged
passages are all they see, and nothing behind the last of them. So passages are called by their rank ("0000000" is
the best), every query shares one ranking of such names, long enough for its last judged passage, and the judgements
name the same passages by their ranks. The values are the same to the last bit.

Departures from what pytrec_eval does if left alone: a query of the qrels without a run scores 0 instead of
vanishing from the mean, and ids and grades that make it crash or never end are refused. As in trec_eval,
passages of equal float32 score are ranked by id, descending; a passage counts as relevant from grade 1 (see
`relevance_level`); nDCG uses the grades as gains; a passage without a grade counts as not relevant, except in
bpref, which skips it.

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
    "ranking": (
        *(f"ndcg_cut_{cutoff}" for cutoff in _CUTOFFS),
        "ndcg",
        "map_cut_10",
        "map_cut_100",
        "recip_rank",
    ),
    "recall": tuple(f"recall_{cutoff}" for cutoff in _CUTOFFS),
    "precision": tuple(f"P_{cutoff}" for cutoff in _CUTOFFS),
    "other": ("map", "recip_rank_10", "Rprec", "bpref", "success_1", "success_5", "success_10", "F1_10"),
}
"""Family -> trec_eval keys: 12 of ranking, 8 of recall, 8 of precision, 8 others."""

METRICS: tuple[str, ...] = tuple(key for keys in FAMILIES.values() for key in keys)
"""All 36 keys, by family."""

PRIMARY: tuple[str, ...] = (
    "ndcg_cut_10",
    "map",
    "recall_100",
    "recip_rank_10",
    "P_10",
    "F1_10",
    "Rprec",
    "bpref",
    "success_5",
    "ndcg",
)
"""The ten that reports show first, in their order."""

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


def _label(key: str) -> str:
    name, _, cutoff = key.rpartition("_")
    return f"{_NAMES[name]}@{cutoff}" if cutoff.isdigit() else _NAMES[key]


METRIC_LABELS: dict[str, str] = {key: _label(key) for key in METRICS}
"""Key -> the name people use, such as "nDCG@10"."""


class EvaluationResult(dict[str, float]):
    """Means over queries by trec_eval's key, and what they are means of.

    Attributes:
        query_ids: the queries: those of the run, in its order, then those that only the qrels have.
        per_query: metric -> (Q,) float64, in the order of `query_ids`.
        run: the ranking itself, where the evaluation keeps it: "rows" and "scores", best first.
        facts: whatever else the evaluation has to say, JSON-able.
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
    """Measures a run.

    Args:
        query_ids: the queries of the run.
        doc_ids: for each query the passages found, in any order: the scores decide.
        scores: for each query their scores; compared as float32.
        qrels: query -> passage -> grade. Queries missing from the run score 0.
        relevance_level: grade from which a passage counts as relevant in the binary metrics, 1 or more.

    Shapes:
        query_ids (Q,), doc_ids (Q, K), scores (Q, K); rows of a list may differ in length.

    Returns:
        The 36 metrics. A query without any relevant passage scores 0 in all of them.

    Raises:
        DataError: a query without judgements, a query or passage twice, an id or grade that cannot be
            evaluated.
        NotFiniteError: a score that is not a finite number.
        ValueError: arguments that differ in length, a relevance level that is no grade.
    """
    if not 1 <= relevance_level <= LARGEST_GRADE:
        raise ValueError(f"relevance_level must be between 1 and {LARGEST_GRADE}, not {relevance_level}")
    _check_qrels(qrels)
    ranks = _judged_ranks(query_ids, doc_ids, scores, qrels)
    ordered = [*query_ids, *(query for query in qrels if query not in ranks)]
    per_query = _evaluate(ordered, ranks, qrels, relevance_level)
    per_query["recip_rank_10"] = _reciprocal_rank_at(10, per_query["recip_rank"])
    per_query["F1_10"] = _harmonic_mean(per_query["P_10"], per_query["recall_10"])
    return EvaluationResult(ordered, {key: per_query[key] for key in METRICS})


def bpref_warning(qrels: Mapping[str, Mapping[str, int]], relevance_level: int = 1) -> str | None:
    """A warning if bpref says nothing here, else None.

    bpref counts judged non-relevant passages ranked above relevant ones. Where the qrels list relevant
    passages only, it is the share of relevant passages found at any rank.

    Source: Buckley and Voorhees, "Retrieval Evaluation with Incomplete Information", SIGIR 2004.
    """
    if any(0 <= grade < relevance_level for grades in qrels.values() for grade in grades.values()):
        return None
    return (
        "bpref says nothing about the ranking here: the qrels hold no judged non-relevant passage, so it is "
        "only the share of relevant passages found"
    )


def cutoff_warning(top_k: int, passages: int) -> str | None:
    """A warning if fewer passages are ranked for each query than metrics go down to, else None.

    Args:
        top_k: that are ranked, at most.
        passages: that there are.
    """
    beyond = [METRIC_LABELS[key] for key in METRICS if _cutoff(key) > top_k] if top_k < passages else []
    if not beyond:
        return None
    return (
        f"only {top_k} of {passages:,} passages were ranked for each query, and relevant ones behind them count as "
        f"not found: {', '.join(beyond)}, and all metrics without a cutoff, may be lower than in a longer ranking"
    )


def _cutoff(key: str) -> int:
    """The rank to which a metric looks; 0 for one that looks at the whole ranking."""
    cutoff = key.rpartition("_")[2]
    return int(cutoff) if cutoff.isdigit() else 0


def _measure(key: str) -> str:
    """pytrec_eval's name of a metric: a cutoff follows a dot."""
    name, _, cutoff = key.rpartition("_")
    return f"{name}.{cutoff}" if cutoff.isdigit() else key


def _reciprocal_rank_at(cutoff: int, reciprocal_ranks: np.ndarray) -> np.ndarray:
    return np.where(reciprocal_ranks > 1 / (cutoff + 0.5), reciprocal_ranks, 0.0)


def _harmonic_mean(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    total = a + b
    return np.divide(2 * a * b, total, out=np.zeros_like(total), where=total > 0)


def _judged_ranks(
    query_ids: Sequence[str],
    doc_ids: Sequence[Sequence[str]],
    scores: np.ndarray | Sequence[Sequence[float]],
    qrels: Mapping[str, Mapping[str, int]],
) -> dict[str, dict[str, int]]:
    """For each query of the run, checked: the judged passages that it found, and their ranks, from 0."""
    if not len(query_ids) == len(doc_ids) == len(scores):
        raise ValueError(
            f"{len(query_ids)} query ids, {len(doc_ids)} rankings and {len(scores)} rows of scores must be "
            "equally many"
        )
    if not len(query_ids) and not qrels:
        raise DataError("there is no query to evaluate: the run and the qrels are both empty")
    ranks = {}
    for query, docs, row in zip(query_ids, doc_ids, scores, strict=True):
        if query not in qrels:
            raise DataError(f"query {query!r} of the run has no judgement in the qrels: remove it or judge a passage")
        if query in ranks:
            raise DataError(f"query {query!r} stands twice in the run")
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
        raise DataError(f"query {query!r}: passage {twice!r} stands twice in its ranking")
    _check_ids(query, place)
    found = [doc for doc in grades if doc in place]
    rank_of_place = np.empty(len(docs), np.int64)
    rank_of_place[_order(docs, row_K)] = np.arange(len(docs))
    return dict(zip(found, rank_of_place[[place[doc] for doc in found]].tolist(), strict=True))


def _order(docs: list[str], row_K: np.ndarray) -> np.ndarray:
    """Places of the passages, best first: by score, equal ones by id descending, as trec_eval does.

    Ids are compared only where scores are equal. Strings compare by code point, which is their order in UTF-8 too.
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
    # Where nothing relevant is found all are 0. pytrec_eval crashes on some such queries, so it is not asked.
    asked = {query: found for query, found in ranks.items() if any(qrels[query][doc] > 0 for doc in found)}
    lengths = {query: 1 << max(found.values()).bit_length() for query, found in asked.items()}
    rankings = {length: _ranking(length) for length in set(lengths.values())}  # powers of two: few
    run = {query: rankings[length] for query, length in lengths.items()}
    judgements = {query: _by_rank(qrels[query], found) for query, found in asked.items()}
    measures = {_measure(key) for key in names}
    values = pytrec_eval.RelevanceEvaluator(judgements, measures, relevance_level=relevance_level).evaluate(run)
    nothing = dict.fromkeys(names, 0.0)
    row_of = itemgetter(*names)
    table_QM = np.array([row_of(values.get(query, nothing)) for query in ordered], dtype=np.float64)
    return {key: table_QM[:, column].copy() for column, key in enumerate(names)}


def _by_rank(grades: Mapping[str, int], found: Mapping[str, int]) -> dict[str, int]:
    """Judgements whose passages are called by their ranks, or by a number where they were not found."""
    return {
        f"{found[doc]:07}" if doc in found else f"not found {number}": int(grade)
        for number, (doc, grade) in enumerate(grades.items())
    }


def _ranking(length: int) -> dict[str, float]:
    """So many passages, called by their ranks."""
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
    """Refuses ids that C code would cut short (NUL) or crash on (not a string, a lone surrogate)."""
    try:
        harmless = b"\0" not in f"{query}{''.join(docs)}".encode() and isinstance(query, str)
    except (TypeError, UnicodeEncodeError):
        harmless = False
    if not harmless:
        raise DataError(f"query {query!r}: ids must be text that UTF-8 can hold, without NUL characters")
