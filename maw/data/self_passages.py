"""Queries that are passages too, as in ArguAna and Quora: the passage that a query does not rank.

    python tier_1.py --self-passages auto       # leaves out the passage with the query's id and text; the default
    python tier_1.py --self-passages drop       # the passage with the query's id, whatever its text: BEIR's rule
    python tier_1.py --self-passages keep       # leaves out none

Such a passage would be found first, and no retriever could help it. BEIR and mteb go by the id alone. That is wrong
where queries and passages are both numbered, as in MS MARCO and DPR: there an equal id says nothing.

A passage that is left out is missing from the ranking: the next ones move up. A judgement of it is left out, too.
(BEIR and mteb keep the judgement, as a relevant passage that nothing can find.) A query whose only relevant passage is
itself is left out altogether. A passage with a query's text and another id is an ordinary passage.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from maw.config.tier1_config import Tier1Config
from maw.data import store
from maw.data.collection import Collection, RetrievalData
from maw.data.corpus import Corpus
from maw.data.normalise import normalise
from maw.data.store import Record
from maw.errors import DataError
from maw.runtime.run_log import warn_of_data

logger = logging.getLogger(__name__)

RULES = {
    "auto": "a passage with the id and the text of a query is left out of that query's ranking",
    "drop": "a passage with a query's id is left out of that query's ranking, whatever its text",
    "keep": "every query ranks all passages",
}
MANY = 10  # one query of ten: from there on a run warns
_NO_TEXT = r"[^0-9A-Za-z\x{80}-\x{10FFFF}]+"  # what a normalised text may lack, in ASCII
_LOOK, _HEAD = 64, 8  # characters of a text that are looked at, and letters and digits that are compared


def same_texts(queries: Sequence[str], passages: Iterable[Record]) -> Iterator[tuple[int, int]]:
    """Positions of a query and a passage whose text, or title and text, is the query's after normalisation."""
    having: dict[str, list[int]] = defaultdict(list)
    for number, query in enumerate(queries):
        having[normalise(query)].append(number)
    for place, (_, title, text) in enumerate(passages):
        for form in {normalise(text), normalise(f"{title} {text}")} if title else {normalise(text)}:
            yield from ((number, place) for number in having.get(form, ()))


def leave_out(data: RetrievalData, rule: str, *, judgements: bool = True) -> tuple[RetrievalData, dict[str, int]]:
    """A split that leaves out passages by a rule; without shared ids the same object.

    Args:
        data: the split.
        rule: key of `RULES`.
        judgements: whether their judgements are left out, too. Training keeps them: a passage that is judged relevant
            is a positive.

    Returns:
        The split; and the numbers of judgements and of queries that were left out.

    Raises:
        DataError: no query has another relevant passage than itself.
    """
    found = {"judgements_left_out": 0, "queries_left_out": 0}
    places, rows = _shared(data) if rule != "keep" else (np.empty(0, np.int64),) * 2
    if rule == "auto" and len(places):
        places = places[_alike(data, places, rows)]
    ids = _ids(data, places)
    if not ids:
        return data, found
    if judgements:
        judged = [query for query in ids if query in data.qrels[query]]
        qrels = {query: {p: g for p, g in data.qrels[query].items() if p != query} for query in judged}
        alone = {query for query in judged if not _has_relevant(data.corpus, qrels[query])}
        stay = [query for query in data.query_ids if query not in alone]
        found = {"judgements_left_out": len(judged), "queries_left_out": len(alone)}
        if not stay:
            text = "each query's only relevant passage is the query itself, which is left out"
            raise DataError(f"{data.name}: {text}; set self_passages keep to rank it")
        kept = data.only(stay) if alone else data
        data = replace(kept, qrels={query: qrels.get(query, kept.qrels[query]) for query in stay})
    return replace(data, left_out=frozenset(ids).intersection(data.query_ids)), found


def leave_out_of(collection: Collection, config: Tier1Config) -> Collection:
    """The collection with the configured rule, before corpora are sampled, which the rule decides on, too."""
    rule, splits, facts = config.self_passages, {}, {}
    for name in ("test", "validation", "train"):
        data = getattr(collection, name)
        if len(data):
            splits[name], facts[name] = leave_out(data, rule, judgements=name != "train")
    facts.pop("train", None)
    about = {"rule": f"{rule}: {RULES[rule]}"} | facts
    return replace(collection, **splits, facts=dict(collection.facts) | {"self_passages": about})


def with_counts(collection: Collection) -> Collection:
    """Adds what the searched passages have in common with queries to the facts, and warns where it is much.

    A passage that the sample does not hold is not left out.
    """
    about, warnings = dict(collection.facts["self_passages"]), list(collection.facts.get("warnings", ()))
    splits = {}
    for name in ("test", "validation"):
        data = getattr(collection, name)
        if not len(data):
            continue
        there = frozenset(_ids(data, _shared(data)[0]))
        splits[name] = data = replace(data, left_out=data.left_out & there)
        found = about[name] = counts(data) | about[name]
        for text in _warnings(found, name, len(data), about["rule"].partition(":")[0]):
            warnings.append(f"{collection.name}: {text}")
            warn_of_data(logger, warnings[-1])
    facts = dict(collection.facts) | {"self_passages": about, "warnings": warnings}
    return replace(collection, **splits, facts=facts)


def counts(data: RetrievalData) -> dict[str, int]:
    """How many queries share id, or id and text, or the text alone with a passage, and how many leave one out."""
    places, rows = _shared(data)
    candidates = _may_be_queries(data.corpus, data.queries)
    names = data.corpus.id_of(candidates)
    pairs = same_texts(data.queries, data.corpus.records(candidates))
    elsewhere = {query for query, passage in pairs if names[passage] != data.query_ids[query]}
    return {
        "same_id": len(places),
        "same_id_and_text": len(_alike(data, places, rows)),
        "same_text_under_another_id": len(elsewhere),
        "left_out": len(data.left_out),
    }


def _warnings(found: dict[str, int], name: str, queries: int, rule: str) -> Iterator[str]:
    alike, elsewhere = found["same_id_and_text"], found["same_text_under_another_id"]
    chance = found["same_id"] - alike
    if rule == "keep" and alike:
        yield (
            f"{alike} of {queries} {name} queries are passages too, with the same id and text, and find themselves "
            "first; --self-passages auto leaves these passages out"
        )
    if rule == "drop" and chance:
        yield (
            f"--self-passages drop leaves out {chance} passages that only share the id with a {name} query and not "
            f"the text ({alike} share both); auto leaves out those that share both"
        )
    if rule == "auto" and chance > alike and chance * MANY >= queries:
        yield (
            f"{chance} passages share only the id with a {name} query and not the text ({alike} share both), and stay "
            "in its ranking; BEIR would leave them out (--self-passages drop)"
        )
    if elsewhere * MANY >= queries:
        yield (
            f"{elsewhere} of {queries} {name} queries have the text of a passage with another id, which stays in "
            "their ranking"
        )
    if found["queries_left_out"]:
        yield f"{found['queries_left_out']} {name} queries are left out: each has no relevant passage but itself"


def _shared(data: RetrievalData) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the queries whose id a passage has, and the rows of these passages."""
    rows = data.corpus.rows_of(data.query_ids)
    places = np.flatnonzero(rows >= 0)
    return places, rows[places]


def _ids(data: RetrievalData, places: np.ndarray) -> list[str]:
    return [data.query_ids[place] for place in places]


def _alike(data: RetrievalData, places: np.ndarray, rows: np.ndarray) -> list[int]:
    """Those of the pairs of a query and a passage that have one text, by their number."""
    pairs = same_texts([data.queries[place] for place in places], data.corpus.records(rows))
    return sorted(query for query, passage in pairs if query == passage)


def _has_relevant(corpus: Corpus, judged: dict[str, int]) -> bool:
    return bool((corpus.rows_of([passage for passage, grade in judged.items() if grade >= 1]) >= 0).any())


def _may_be_queries(corpus: Corpus, queries: Sequence[str]) -> np.ndarray:
    """Rows of all passages that may have the text of a query, and few others.

    Equal normalised texts have the same letters and digits in the same order. So a passage whose first ones are not
    those of any query need not be normalised, which takes minutes for millions. Passages that begin with few of them,
    or outside of ASCII, are not judged here.
    """
    wanted = pc.utf8_slice_codeunits(_letters(pa.array(map(normalise, queries), pa.string())), 0, _HEAD)
    found = []
    for batch in corpus.dataset.data.to_batches(max_chunksize=store.BATCH_ROWS):
        maybe = np.zeros(len(batch), bool)
        for texts in (batch["text"], pc.binary_join_element_wise(batch["title"], batch["text"], " ")):
            first = _letters(texts)  # one more than is compared, since a mark behind a letter may change it
            known = pc.and_(pc.string_is_ascii(first), pc.greater(pc.utf8_length(first), _HEAD))
            same = pc.is_in(pc.utf8_slice_codeunits(first, 0, _HEAD), wanted)
            maybe |= pc.or_(pc.invert(known), same).to_numpy(zero_copy_only=False)
        found.append(maybe)
    return np.flatnonzero(np.concatenate([np.zeros(0, bool), *found]))


def _letters(texts: pa.Array) -> pa.Array:
    """The first letters and digits of each text, one more than are compared, in lower case."""
    kept = pc.replace_substring_regex(pc.utf8_slice_codeunits(texts, 0, _LOOK), pattern=_NO_TEXT, replacement="")
    return pc.utf8_slice_codeunits(pc.ascii_lower(kept), 0, _HEAD + 1)
