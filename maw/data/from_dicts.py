"""User dictionaries as `RetrievalData`, for `evaluate_retriever` and `train_retriever`.

    {"queries": ["a question", ...],            # or {id: text}
     "docs": ["a passage", ...],                # or {id: text}
     "qrels": {0: {0: 1, 4: 2}, ...},           # by position or by id
     "negatives": {0: [7, 9], ...},             # optional: hard negatives
     "answers": {0: ["forty-two"], ...}}        # optional: strings, one of which an answering passage contains

In a list of queries or docs the ids are the positions as strings, "0", "1" and so on; the other entries may use either
form. For a dictionary they use its keys, and a document may be BEIR's {"title": ..., "text": ...}.

Of dictionaries with ids, qrels may name documents and queries that are not there, as some of BEIR's do. They are read
as those of a folder in BEIR layout (`maw.data.splits`): such a document is never found, and counts in recall and in
the ideal DCG; such a query is left out, and so is a query without a relevant document (grade 1 or more). A warning
counts each kind, with the first examples. A position that is not in a list is a mistake.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

from maw.config.paths import look_alike
from maw.config.tier1_config import LARGEST_GRADE
from maw.data.beir_format import COUNTED, EXAMPLES
from maw.data.collection import RetrievalData
from maw.data.corpus import Corpus
from maw.data.self_passages import leave_out
from maw.data.splits import Pool, with_passages
from maw.errors import DataError, show, suggestion

logger = logging.getLogger(__name__)

REQUIRED = ("queries", "docs", "qrels")
KEYS = (*REQUIRED, "negatives", "answers")


class _Reader:
    """Checks and converts the dictionaries of one split."""

    def __init__(self, name: str, data: Any):
        self.name, self.data = name, data

    def read(self) -> RetrievalData:
        self._check_keys()
        self.titles: dict[str, str] = {}
        self.texts = {key: self._texts(key) for key in ("queries", "docs")}
        queries, docs = self.texts["queries"], self.texts["docs"]
        for query_id, text in queries.items():
            if not text.strip():
                raise self._error(f"queries[{show(query_id)}]", "the query is empty; give it a text")
        self.qrels = self._qrels()
        pool = Pool(queries, self.qrels, self._negatives(), self._answers()).only(self._measurable())
        try:
            corpus = Corpus.from_lists(list(docs), list(docs.values()), [self.titles.get(each, "") for each in docs])
        except DataError as error:
            raise self._error("docs", str(error)) from error
        pool, _, warnings = with_passages(pool, corpus, self.name, f"{self.name} data, qrels")
        for text in warnings:
            logger.warning("%s", text)
        texts = list(pool.queries.values())
        return RetrievalData(corpus, self.name, list(pool.queries), texts, pool.qrels, pool.negatives, pool.answers)

    def _error(self, key: str, message: str) -> DataError:
        return DataError(f"{self.name} data, {key}: {message}")

    def _check_keys(self) -> None:
        if not isinstance(self.data, Mapping):
            needed = "a dictionary with queries, docs and qrels is needed"
            raise DataError(f"{self.name} data: {needed}, not {_kind(self.data)}")
        for key in self.data:
            if key not in KEYS:
                hint = suggestion(str(key), KEYS)
                raise self._error(show(key), f"there is no such key{hint}; the keys are {', '.join(KEYS)}")
        for key in REQUIRED:
            if key not in self.data:
                raise self._error(key, "the key is missing; add it")

    def _texts(self, key: str) -> dict[str, str]:
        value = self.data[key]
        if isinstance(value, Mapping):
            pairs: Iterable[tuple[Any, Any]] = value.items()
        elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
            pairs = enumerate(value)
        else:
            raise self._error(key, f"a list of texts or a dictionary of id to text is needed, not {_kind(value)}")
        texts: dict[str, str] = {}
        for given, text in pairs:
            where = f"{key}[{show(given)}]"
            identifier, title = self._id(where, given), ""
            if key == "docs" and isinstance(text, Mapping):
                title, text = text.get("title") or "", text.get("text")
            for each in (text, title):
                if not isinstance(each, str):
                    raise self._error(where, f"a text is needed, not {_kind(each)}")
            if title:
                self.titles[identifier] = title
            if identifier in texts:
                raise self._error(where, "the id occurs twice, as a number and as a text; keep one")
            texts[identifier] = text
        if not texts:
            raise self._error(key, "it is empty; give at least one text")
        return texts

    def _id(self, where: str, value: Any) -> str:
        if isinstance(value, str) and value:
            return value
        if isinstance(value, Integral) and not isinstance(value, bool):
            return str(int(value))
        raise self._error(where, f"an id is a text or an integer, not {_kind(value)}")

    def _known(self, where: str, key: str, value: Any, *, judged: bool = False) -> str:
        """The id that `value` means in "queries" or "docs"; `judged` if qrels name it, where it may be missing."""
        identifier, known = self._id(where, value), self.texts[key]
        if identifier in known or (judged and isinstance(self.data[key], Mapping)):
            return identifier
        if isinstance(self.data[key], Mapping):
            raise self._error(
                where, f"there is no {show(value)} in {key}{look_alike(identifier, known)}; add it or remove this"
            )
        raise self._error(where, f"{show(value)} is no position in {key}; they go from 0 to {len(known) - 1}")

    def _by_query(self, key: str) -> Iterator[tuple[str, str, Any]]:
        """Yields a label for messages, the query id and the value of each entry under `key`."""
        entries = self.data[key] if key in REQUIRED else self.data.get(key) or {}
        for query, value in self._mapping(key, entries):
            where = f"{key}[{show(query)}]"
            judged = key == "qrels" or self._id(where, query) in self.qrels
            yield where, self._known(where, "queries", query, judged=judged), value

    def _qrels(self) -> dict[str, dict[str, int]]:
        qrels: dict[str, dict[str, int]] = {}
        for where, query_id, judged in self._by_query("qrels"):
            if query_id in qrels:
                raise self._error(where, "the query is judged twice, as a number and as a text; keep one")
            qrels[query_id] = self._grades(where, judged)
        return qrels

    def _measurable(self) -> list[str]:
        """The queries with a relevant document, which `docs` may lack; a warning counts the others."""
        queries = self.texts["queries"]
        unknown = [query_id for query_id in self.qrels if query_id not in queries]
        named = ", ".join(f"{show(query_id)}{look_alike(query_id, queries)}" for query_id in unknown[:EXAMPLES])
        if len(unknown) == len(self.qrels):
            first = f": there is no {named}; are the two of one version?" if unknown else "; qrels is empty"
            raise self._error("qrels", f"no query that it judges is in queries{first}")
        relevant = {each: None for each in queries if max(self.qrels.get(each, {}).values(), default=0) >= 1}
        if not relevant:
            raise self._error("qrels", "no query has a relevant document; at least one needs a grade of 1 or more")
        if unknown:
            logger.warning("%s data, qrels: %d %s: %s", self.name, len(unknown), COUNTED["unknown_queries"], named)
        if without := [each for each in queries if each not in relevant]:
            text = "queries have no relevant document (grade 1 or more) and are left out"
            first = ", ".join(map(show, without[:EXAMPLES]))
            logger.warning("%s data, qrels: %d %s: %s", self.name, len(without), text, first)
        return list(relevant)

    def _grades(self, where: str, judged: Any) -> dict[str, int]:
        grades: dict[str, int] = {}
        for doc, grade in self._mapping(where, judged):
            entry = f"{where}[{show(doc)}]"
            if not isinstance(grade, Integral) or isinstance(grade, bool):
                raise self._error(entry, f"the grade {show(grade)} is not an integer; write 0, 1 or more")
            if abs(grade) > LARGEST_GRADE:
                limits = f"write -{LARGEST_GRADE} to {LARGEST_GRADE}"
                raise self._error(entry, f"the grade {show(grade)} is out of range; {limits}")
            doc_id = self._known(entry, "docs", doc, judged=True)
            if doc_id in grades:
                raise self._error(entry, "the document is judged twice, as a number and as a text; keep one")
            grades[doc_id] = int(grade)
        return grades

    def _negatives(self) -> dict[str, list[str]]:
        negatives: dict[str, list[str]] = {}
        for where, query_id, listed in self._by_query("negatives"):
            ids = [self._known(where, "docs", doc) for doc in self._listed(where, listed, "documents")]
            relevant = next((doc for doc in ids if self.qrels.get(query_id, {}).get(doc, 0) >= 1), None)
            if relevant is not None:
                raise self._error(where, f"{show(relevant)} is relevant in qrels; a negative must not be")
            negatives[query_id] = list(dict.fromkeys([*negatives.get(query_id, []), *ids]))
        return negatives

    def _answers(self) -> dict[str, list[str]]:
        answers: dict[str, list[str]] = {}
        for where, query_id, listed in self._by_query("answers"):
            for number, text in enumerate(self._listed(where, listed, "texts")):
                if not isinstance(text, str):
                    raise self._error(f"{where}[{number}]", f"a text is needed, not {_kind(text)}")
                if not text.strip():
                    raise self._error(f"{where}[{number}]", "the answer is empty; give it a text or remove it")
            answers[query_id] = list(dict.fromkeys([*answers.get(query_id, []), *listed]))
        return {query_id: listed for query_id, listed in answers.items() if listed}

    def _listed(self, where: str, value: Any, what: str) -> Sequence[Any]:
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
            raise self._error(where, f"a list of {what} is needed, not {_kind(value)}")
        return value

    def _mapping(self, key: str, value: Any) -> Iterable[tuple[Any, Any]]:
        if not isinstance(value, Mapping):
            raise self._error(key, f"a dictionary is needed, not {_kind(value)}")
        return value.items()


def _kind(value: Any) -> str:
    return f"{show(value)} ({type(value).__name__})"


def as_retrieval_data(
    data: RetrievalData | Mapping[str, Any], name: str = "test", relevance_level: int = 1, self_passages: str = "keep"
) -> RetrievalData:
    """`data` itself, or the user's dictionaries as `RetrievalData`: see `maw.data.from_dicts`.

    Args:
        data: either form; `RetrievalData` keeps its own relevance level and the passages that it leaves out.
        name: name of the split, for messages.
        relevance_level: relevance level of dictionaries.
        self_passages: rule for dictionaries (`maw.data.self_passages`), where queries and docs both have ids; the
            positions in a list are none.

    Raises:
        DataError: one line that names the key: a wrong type, an unknown position, an unknown id outside of qrels, a
            grade that is no integer or out of range, an empty query or answer, a relevant negative, or no query with a
            relevant document that is there.
    """
    if isinstance(data, RetrievalData):
        return data
    found = replace(_Reader(name, data).read(), relevance_level=relevance_level)
    have_ids = all(isinstance(data[key], Mapping) for key in ("queries", "docs"))
    if not have_ids:
        return found
    found, counts = leave_out(found, self_passages)
    if counts["queries_left_out"]:
        text = "queries are left out: each has no relevant document but itself"
        logger.warning("%s data, qrels: %d %s", name, counts["queries_left_out"], text)
    return found
