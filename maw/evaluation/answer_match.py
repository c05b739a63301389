"""Top-k accuracy of DPR: the share of queries with an answer in one of their first k passages.

    contains_answer(texts, ["Zanzibar", "Sansibar"])                            # (N,) bool
    evaluate_retriever(model, test_data, config).facts["answer_match"]["top_20"]

A text contains an answer if it contains the answer's tokens in sequence. A token is a run of letters, numbers and
marks, or one other character that is neither blank nor control; texts are in NFD and lower case.

Departures from DPR: no text contains an answer without tokens (in DPR every text does), and the title is part of the
passage, because the retriever reads it (DPR searches only the text).

Source: Karpukhin et al. 2020, "Dense Passage Retrieval for Open-Domain Question Answering", `has_answer` with the
SimpleTokenizer of Chen et al. 2017, "Reading Wikipedia to Answer Open-Domain Questions".

Letters: N texts, Q queries, A queries with answers, K ranked passages.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import regex

from maw.data.collection import RetrievalData

TOKEN = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")
ASCII_TOKEN = re.compile(r"[0-9A-Za-z]+|[!-~]")  # the same tokens for ASCII, three times as fast
CUTOFFS = (1, 5, 20, 100)
LAST_CUTOFF = max(CUTOFFS)
_TEXTS_AT_ONCE = 4096


def contains_answer(texts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """Whether each text contains at least one of the answers, (N,) bool."""
    wanted = _phrases(answers)
    return np.array([_holds(_phrase(text), wanted) for text in texts], dtype=bool)


def answer_match(data: RetrievalData, rows: np.ndarray) -> dict[str, Any]:
    """Share of the queries that have an answer in one of their first k passages.

    Args:
        data: a split; its queries without answers are left out.
        rows: rows of the corpus, best first, (Q, K), in the order of `data.query_ids`.

    Returns:
        "top_1", "top_5", "top_20" and "top_100", None if fewer passages were ranked than k and than the corpus has;
        "queries", the number of queries with answers, and "coverage", their share; "first_hit", for each query of
        `data` the rank from 1 of its first passage with an answer, 0 if the first 100 have none, None if the query has
        no answers.
    """
    answered = [number for number, query in enumerate(data.query_ids) if data.answers.get(query)]
    wanted = [_phrases(data.answers[data.query_ids[number]]) for number in answered]
    rows_AK = np.asarray(rows)[answered, :LAST_CUTOFF]
    first_A = _first_hits(data, rows_AK, wanted)
    whole = rows_AK.shape[1] == len(data.corpus)
    shares = {
        f"top_{k}": float((first_A <= k).mean()) if answered and (whole or k <= rows_AK.shape[1]) else None
        for k in CUTOFFS
    }
    hits: list[int | None] = [None] * len(data)
    for number, rank in zip(answered, first_A.tolist(), strict=True):
        hits[number] = rank if rank <= LAST_CUTOFF else 0
    coverage = len(answered) / len(data) if len(data) else 0.0
    return {**shares, "queries": len(answered), "coverage": coverage, "first_hit": hits}


def _first_hits(data: RetrievalData, rows_AK: np.ndarray, wanted: Sequence[Sequence[str]]) -> np.ndarray:
    """Rank from 1 of each query's first passage with an answer, (A,); `LAST_CUTOFF` + 1 if there is none.

    A passage is tokenised once for all queries that found it. Passages are read in the order of their best rank for
    any query; a passage that can no longer improve the rank of a query is not read.
    """
    first = [LAST_CUTOFF + 1] * len(rows_AK)
    finders: dict[int, list[tuple[int, int]]] = {}  # row -> (query, rank), by ascending rank
    for rank, row_A in enumerate(rows_AK.T.tolist(), start=1):
        for query, row in enumerate(row_A):
            if row >= 0:  # -1 ends a shorter ranking
                finders.setdefault(row, []).append((query, rank))
    order = list(finders)
    for start in range(0, len(order), _TEXTS_AT_ONCE):
        part = order[start : start + _TEXTS_AT_ONCE]
        part = sorted(row for row in part if any(rank < first[query] for query, rank in finders[row]))
        for row, text in zip(part, data.corpus.take(part), strict=True):
            phrase = _phrase(text)
            for query, rank in finders[row]:
                if rank < first[query] and _holds(phrase, wanted[query]):
                    first[query] = rank
    return np.array(first, dtype=np.int64)


def _phrases(answers: Sequence[str]) -> list[str]:
    """The answers that have tokens, as phrases."""
    return [phrase for phrase in map(_phrase, answers) if phrase.strip()]


def _holds(phrase: str, wanted: Sequence[str]) -> bool:
    return any(each in phrase for each in wanted)


def _phrase(text: str) -> str:
    """The tokens, separated and surrounded by blanks: a sequence of tokens is then a substring."""
    if text.isascii():
        return f" {' '.join(ASCII_TOKEN.findall(text))} ".lower()
    return f" {' '.join(TOKEN.findall(unicodedata.normalize('NFD', text)))} ".lower()
