"""Leakage between train, validation and test queries: exact copies and near-duplicates.

`drop_overlap` removes the overlap of published splits. `load_collection` runs `check_disjoint` on every dataset, so no
run trains on a test query.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from maw.data.collection import RetrievalData
from maw.data.normalise import normalise, words
from maw.errors import DataError, show

if TYPE_CHECKING:
    from maw.data.splits import Pool

KEEPS_FIRST = ("test", "validation", "train")


def drop_overlap(pools: Mapping[str, Pool]) -> tuple[dict[str, Pool], dict[str, int]]:
    """Drops queries whose id or normalised text is in a split of higher precedence: test, then validation, then train.

    Returns:
        The pools that remain, and the number of queries dropped from each split.
    """
    kept, dropped = dict(pools), {}
    ids: set[str] = set()
    texts: set[str] = set()
    for name in (name for name in KEEPS_FIRST if name in pools):
        normal = {query_id: normalise(text) for query_id, text in pools[name].queries.items()}
        stay = [query_id for query_id, text in normal.items() if query_id not in ids and text not in texts]
        if name != "test":
            dropped[name] = len(normal) - len(stay)
        kept[name] = pools[name].only(stay)
        ids.update(stay)
        texts.update(normal[query_id] for query_id in stay)
    return kept, dropped


def check_disjoint(*splits: RetrievalData, collection: str = "") -> None:
    """Checks that no two splits share a query, by id or by normalised text.

    Raises:
        DataError: two splits share queries; the message names up to three.
    """
    prefix = f"{collection}: " if collection else ""
    normal = {
        split.name: {normalise(text): i for i, text in zip(split.query_ids, split.queries, strict=True)}
        for split in splits
    }
    for one, other in itertools.combinations(splits, 2):
        shared = set(one.query_ids) & set(other.query_ids)
        if shared:
            first = ", ".join(show(value) for value in sorted(shared)[:3])
            text = f"{one.name} and {other.name} share {len(shared)} query ids, such as {first}"
            raise DataError(f"{prefix}{text}; remove them from one of the two")
        texts = sorted(normal[one.name].keys() & normal[other.name].keys())
        if texts:
            pairs = [
                f"{show(normal[one.name][text])} and {show(normal[other.name][text])} ({show(text)})"
                for text in texts[:3]
            ]
            text = f"{one.name} and {other.name} share {len(texts)} questions under different ids"
            raise DataError(f"{prefix}{text}, such as {', '.join(pairs)}; remove them from one of the two")


def connected(labels: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Groups items that have a label in common, directly or through a chain of others.

    Maps item -> labels (at least one) to item -> name of its group, the smallest label in it.
    """
    if not labels:
        return {}
    from scipy.sparse import coo_array  # here, because only a new store or folds need them
    from scipy.sparse.csgraph import connected_components

    pairs = [(number, label) for number, each in enumerate(labels.values()) for label in each]
    names = sorted({label for _, label in pairs})
    node = {label: number + len(labels) for number, label in enumerate(names)}
    ends = np.array([(number, node[label]) for number, label in pairs], np.int64).reshape(-1, 2)
    size = len(labels) + len(names)
    graph = coo_array((np.ones(len(ends), np.int8), (ends[:, 0], ends[:, 1])), shape=(size, size))
    _, part = connected_components(graph, directed=False)
    name_of: dict[int, str] = {}
    for name, number in zip(names, part[len(labels) :].tolist(), strict=True):
        name_of.setdefault(number, name)
    return {item: name_of[number] for item, number in zip(labels, part[: len(labels)].tolist(), strict=True)}


SHINGLE_WORDS = 3
ALIKE, OUT_OF = 4, 5  # least similarity, as a fraction of whole numbers
EXAMPLES = 3
EXACT = "no query in two splits, by id or normalised text"
RULE = f"Jaccard of word {SHINGLE_WORDS}-shingles at least {ALIKE / OUT_OF}; queries of the first split are counted"


class NearDuplicate(NamedTuple):
    """Two similar queries, by their positions in their splits, and their similarity."""

    one: int
    other: int
    similarity: float


def leakage_facts(*splits: RetrievalData) -> dict[str, Any]:
    """Facts about near-duplicates between train, validation and test, after `check_disjoint` has found no copies."""
    counts, examples = {}, []
    for one, other in itertools.combinations(splits, 2):
        found = near_duplicates(other.queries, one.queries)
        counts[f"{other.name}_near_{one.name}"] = len({pair.one for pair in found})
        for pair in found:
            text = f"{other.name} {show(other.queries[pair.one])} and {one.name} {show(one.queries[pair.other])}"
            examples.append((-pair.similarity, text))
    best = [f"{text} ({-negative:.2f})" for negative, text in sorted(examples)[:EXAMPLES]]
    return {"exact": EXACT, "rule": RULE, "near_duplicates": counts} | ({"examples": best} if best else {})


def near_duplicates(one: Sequence[str], other: Sequence[str]) -> list[NearDuplicate]:
    """All pairs of near-duplicates between two lists of texts, in order of their positions."""
    sets = [[shingles(text) for text in texts] for texts in (one, other)]
    frequency = Counter(shingle for each in itertools.chain(*sets) for shingle in each)
    index: dict[str, list[int]] = defaultdict(list)
    for position, each in enumerate(sets[1]):
        for shingle in _rarest(each, frequency):
            index[shingle].append(position)
    found = []
    for position, each in enumerate(sets[0]):
        candidates = {match for shingle in _rarest(each, frequency) for match in index.get(shingle, ())}
        for match in sorted(candidates):
            common = len(each & sets[1][match])
            union = len(each) + len(sets[1][match]) - common
            if OUT_OF * common >= ALIKE * union:
                found.append(NearDuplicate(position, match, common / union))
    return found


def shingles(text: str) -> frozenset[str]:
    """All runs of three words of a text, or the whole normalised text if it is shorter."""
    found = words(text)
    runs = (" ".join(found[start : start + SHINGLE_WORDS]) for start in range(len(found) - SHINGLE_WORDS + 1))
    return frozenset(runs) or frozenset([normalise(text)])


def _rarest(each: frozenset[str], frequency: Counter[str]) -> list[str]:
    """The shingles of which two similar sets must have one in common.

    Similar sets share at least ceil(0.8 n) of n shingles, so any n - ceil(0.8 n) + 1 of them include a shared one.
    Both sets use one order, so the first shared shingle is among the first of each.
    """
    shared = -(-ALIKE * len(each) // OUT_OF)
    return sorted(each, key=lambda shingle: (frequency[shingle], shingle))[: len(each) - shared + 1]
