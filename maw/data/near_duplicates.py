"""Queries of two splits that are nearly the same: counted and reported, where `maw.data.leakage` refuses exact copies.

Two queries are near-duplicates if the Jaccard similarity of their sets of word 3-shingles is at least 0.8. Words are
those of the normalised text; a query of fewer than three words is one shingle as a whole.

All pairs are found, without comparing them all: two sets that similar share one of their rarest shingles, and only
those stand in the index (prefix filtering; Bayardo, Ma and Srikant 2007, "Scaling Up All Pairs Similarity Search").
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from maw.data.collection import RetrievalData
from maw.data.leakage import normalise
from maw.rules import show

SHINGLE_WORDS = 3
ALIKE, OUT_OF = 4, 5  # the least similarity as a fraction, so that it is compared in whole numbers
EXAMPLES = 3
EXACT = "no query in two splits, by id or normalised text"
RULE = f"Jaccard of word {SHINGLE_WORDS}-shingles at least {ALIKE / OUT_OF}; counted are queries of the first split"


class NearDuplicate(NamedTuple):
    """Two queries, by their positions in their splits, and their similarity."""

    one: int
    other: int
    similarity: float


def leakage_facts(*splits: RetrievalData) -> dict[str, Any]:
    """What the report says of queries that splits share, once `check_disjoint` has found no exact copies.

    Args:
        splits: train, validation and test, in this order.
    """
    counts, examples = {}, []
    for one, other in itertools.combinations(splits, 2):
        found = near_duplicates(other.queries, one.queries)
        counts[f"{other.name}_near_{one.name}"] = len({pair.one for pair in found})
        examples += [
            (
                -pair.similarity,
                f"{other.name} {show(other.queries[pair.one])} and {one.name} {show(one.queries[pair.other])}",
            )
            for pair in found
        ]
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
    """All runs of three words of a text, or the whole of a shorter one."""
    words = normalise(text).split()
    count = max(1, len(words) - SHINGLE_WORDS + 1)
    return frozenset(" ".join(words[start : start + SHINGLE_WORDS]) for start in range(count))


def _rarest(each: frozenset[str], frequency: Counter[str]) -> list[str]:
    """The shingles of which a set that is similar enough must share one.

    At least ceil(0.8 n) of n shingles are shared, so that any n - ceil(0.8 n) + 1 of them hold a shared one; taken by
    one order in both sets, the first that both share is among the first of each.
    """
    shared = -(-ALIKE * len(each) // OUT_OF)
    return sorted(each, key=lambda shingle: (frequency[shingle], shingle))[: len(each) - shared + 1]
