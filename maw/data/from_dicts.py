"""The user's own dictionaries as `RetrievalData`, for `evaluate_retriever` and `train_retriever`.

    {"queries": ["a question", ...],            # or {id: text}
     "docs": ["a passage", ...],                # or {id: text}
     "qrels": {0: {0: 1, 4: 2}, ...},           # by position or by id
     "negatives": {0: [7, 9], ...},             # optional: passages to train against
     "answers": {0: ["forty-two"], ...}}        # optional: texts of which a passage that answers holds one

Where queries or docs are a list, their ids are the positions as strings, "0", "1" and so on, and judgements
may give either form. Where they are a dictionary, judgements give its keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

from maw.config.tier1_config import LARGEST_GRADE
from maw.data.collection import RetrievalData
from maw.data.corpus import Corpus
from maw.errors import DataError, show, suggestion

REQUIRED = ("queries", "docs", "qrels")
KEYS = (*REQUIRED, "negatives", "answers")


def from_dictionaries(data: Mapping[str, Any], name: str) -> RetrievalData:
    """Checks the user's dictionaries and puts them into a corpus in memory.

    Args:
        data: as above.
        name: the split, which messages name.

    Raises:
        DataError: one line that names the key: a wrong type, an unknown id or position, a grade that is no
            integer or out of range, an empty query or answer, a query without a relevant document, or a negative that
            is relevant.
    """
    return _Reader(name).read(data)


class _Reader:
    def __init__(self, name: str):
        self.name = name

    def read(self, data: Any) -> RetrievalData:
        self._check_keys(data)
        queries, docs = (self._texts(key, data[key]) for key in ("queries", "docs"))
        for query_id, text in queries.items():
            if not text.strip():
                raise self._error(f"queries[{show(query_id)}]", "the query is empty; give it a text")
        by_position = {key: not isinstance(data[key], Mapping) for key in ("queries", "docs")}
        qrels = self._qrels(data["qrels"], queries, docs, by_position)
        negatives = self._negatives(data.get("negatives") or {}, queries, docs, by_position, qrels)
        answers = self._answers(data.get("answers") or {}, queries, by_position)
        try:
            corpus = Corpus.from_lists(list(docs), list(docs.values()))
        except DataError as error:
            raise self._error("docs", str(error)) from error
        return RetrievalData(corpus, self.name, list(queries), list(queries.values()), qrels, negatives, answers)

    def _error(self, key: str, message: str) -> DataError:
        return DataError(f"{self.name} data, {key}: {message}")

    def _check_keys(self, data: Any) -> None:
        if not isinstance(data, Mapping):
            raise DataError(
                f"{self.name} data: a dictionary with queries, docs and qrels is needed, not {_kind(data)}"
            )
        for key in data:
            if key not in KEYS:
                hint = suggestion(str(key), KEYS)
                raise self._error(show(key), f"there is no such key{hint}; the keys are {', '.join(KEYS)}")
        for key in REQUIRED:
            if key not in data:
                raise self._error(key, "the key is missing; add it")

    def _texts(self, key: str, value: Any) -> dict[str, str]:
        if isinstance(value, Mapping):
            pairs: Iterable[tuple[Any, Any]] = value.items()
        elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
            pairs = enumerate(value)
        else:
            raise self._error(key, f"a list of texts or a dictionary of id to text is needed, not {_kind(value)}")
        texts: dict[str, str] = {}
        for place, text in pairs:
            where = f"{key}[{show(place)}]"
            if not isinstance(text, str):
                raise self._error(where, f"a text is needed, not {_kind(text)}")
            identifier = self._id(where, place)
            if identifier in texts:
                raise self._error(where, "the id occurs twice, as a number and as a text; keep one")
            texts[identifier] = text
        if not texts:
            raise self._error(key, "there is nothing in it; give at least one text")
        return texts

    def _id(self, where: str, value: Any) -> str:
        if isinstance(value, str) and value:
            return value
        if isinstance(value, Integral) and not isinstance(value, bool):
            return str(int(value))
        raise self._error(where, f"an id is a text or an integer, not {_kind(value)}")

    def _known(self, where: str, key: str, value: Any, known: Mapping[str, str], by_position: bool) -> str:
        identifier = self._id(where, value)
        if identifier in known:
            return identifier
        if by_position:
            raise self._error(where, f"{show(value)} is no position in {key}; they go from 0 to {len(known) - 1}")
        raise self._error(where, f"there is no {show(value)} in {key}; add it or remove this")

    def _qrels(
        self, value: Any, queries: Mapping[str, str], docs: Mapping[str, str], by_position: Mapping[str, bool]
    ) -> dict[str, dict[str, int]]:
        qrels: dict[str, dict[str, int]] = {}
        for query, judged in self._mapping("qrels", value).items():
            where = f"qrels[{show(query)}]"
            query_id = self._known(where, "queries", query, queries, by_position["queries"])
            if query_id in qrels:
                raise self._error(where, "the query is judged twice, as a number and as a text; keep one")
            qrels[query_id] = self._grades(where, judged, docs, by_position["docs"])
        for query_id in queries:
            if not any(grade >= 1 for grade in qrels.get(query_id, {}).values()):
                raise self._error(
                    f"qrels[{show(query_id)}]",
                    "the query has no relevant document (grade 1 or more); add one, or leave the query out",
                )
        return qrels

    def _grades(self, where: str, judged: Any, docs: Mapping[str, str], by_position: bool) -> dict[str, int]:
        grades: dict[str, int] = {}
        for doc, grade in self._mapping(where, judged).items():
            place = f"{where}[{show(doc)}]"
            if not isinstance(grade, Integral) or isinstance(grade, bool):
                raise self._error(place, f"the grade {show(grade)} is not an integer; write 0, 1 or more")
            if abs(grade) > LARGEST_GRADE:
                limits = f"write -{LARGEST_GRADE} to {LARGEST_GRADE}"
                raise self._error(place, f"the grade {show(grade)} is out of range; {limits}")
            doc_id = self._known(place, "docs", doc, docs, by_position)
            if doc_id in grades:
                raise self._error(place, "the document is judged twice, as a number and as a text; keep one")
            grades[doc_id] = int(grade)
        return grades

    def _negatives(
        self,
        value: Any,
        queries: Mapping[str, str],
        docs: Mapping[str, str],
        by_position: Mapping[str, bool],
        qrels: Mapping[str, Mapping[str, int]],
    ) -> dict[str, list[str]]:
        negatives: dict[str, list[str]] = {}
        for query, listed in self._mapping("negatives", value).items():
            where = f"negatives[{show(query)}]"
            query_id = self._known(where, "queries", query, queries, by_position["queries"])
            if not isinstance(listed, Sequence) or isinstance(listed, (str, bytes)):
                raise self._error(where, f"a list of documents is needed, not {_kind(listed)}")
            ids = [self._known(where, "docs", doc, docs, by_position["docs"]) for doc in listed]
            relevant = next((doc for doc in ids if qrels[query_id].get(doc, 0) >= 1), None)
            if relevant is not None:
                raise self._error(where, f"{show(relevant)} is relevant in qrels; a negative must not be")
            negatives[query_id] = list(dict.fromkeys([*negatives.get(query_id, []), *ids]))
        return negatives

    def _answers(
        self, value: Any, queries: Mapping[str, str], by_position: Mapping[str, bool]
    ) -> dict[str, list[str]]:
        answers: dict[str, list[str]] = {}
        for query, listed in self._mapping("answers", value).items():
            where = f"answers[{show(query)}]"
            query_id = self._known(where, "queries", query, queries, by_position["queries"])
            if not isinstance(listed, Sequence) or isinstance(listed, (str, bytes)):
                raise self._error(where, f"a list of texts is needed, not {_kind(listed)}")
            for number, text in enumerate(listed):
                if not isinstance(text, str):
                    raise self._error(f"{where}[{number}]", f"a text is needed, not {_kind(text)}")
                if not text.strip():
                    raise self._error(f"{where}[{number}]", "the answer is empty; give it a text or remove it")
            answers[query_id] = list(dict.fromkeys([*answers.get(query_id, []), *listed]))
        return {query_id: listed for query_id, listed in answers.items() if listed}

    def _mapping(self, key: str, value: Any) -> Mapping[Any, Any]:
        if not isinstance(value, Mapping):
            raise self._error(key, f"a dictionary is needed, not {_kind(value)}")
        return value


def _kind(value: Any) -> str:
    return f"{show(value)} ({type(value).__name__})"


def as_retrieval_data(
    data: RetrievalData | Mapping[str, Any], name: str = "test", relevance_level: int = 1
) -> RetrievalData:
    """`data` itself, or the user's dictionaries as `RetrievalData`: see `maw.data.from_dicts`.

    Args:
        data: either; what is `RetrievalData` keeps its own relevance level.
        name: the split, for messages.
        relevance_level: of dictionaries, which have none of their own.
    """
    if isinstance(data, RetrievalData):
        return data
    return replace(from_dictionaries(data, name), relevance_level=relevance_level)
