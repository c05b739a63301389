"""Keeps train, validation and test questions apart, by id and by normalised text.

`drop_overlap` is the rule for collections whose published splits overlap, `check_disjoint` the guard that
`load_collection` runs on every dataset: a run that would train on a test question does not start.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Mapping
from typing import TYPE_CHECKING

from maw.data.collection import RetrievalData
from maw.errors import DataError
from maw.rules import show

if TYPE_CHECKING:
    from maw.data.splits import Pool

NOT_WORD = re.compile(r"[\W_]+")
KEEPS_FIRST = ("test", "validation", "train")


class _Kept(dict[int, int | str]):
    """Code point -> itself, or a blank for what is no letter, number or mark; looked up once for each."""

    def __missing__(self, point: int) -> int | str:
        self[point] = point if unicodedata.category(chr(point))[0] in "LNM" else " "
        return self[point]


_KEPT = _Kept()


def normalise(text: str) -> str:
    """`text` as it is compared: NFKC, casefolded, punctuation, symbols and whitespace collapsed to one blank.

    Marks stay: many scripts write vowels with them, and words that differ in a vowel would be one. A text of nothing
    but punctuation keeps it, or all such texts would be one.
    """
    if text.isascii():  # most are, and have neither marks nor other forms
        folded = text.lower()
        return NOT_WORD.sub(" ", folded).strip() or " ".join(folded.split())
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.translate(_KEPT).split()) or " ".join(folded.split())


def drop_overlap(pools: Mapping[str, Pool]) -> tuple[dict[str, Pool], dict[str, int]]:
    """Leaves each question in one split only: test before validation before train.

    Args:
        pools: "train", "validation" and "test", of which any may be missing.

    Returns:
        The pools without queries whose id or normalised text stands in a split with precedence, and the
        number dropped from each split.
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
    """Makes sure that no two splits share a query, by id or by normalised text.

    Raises:
        DataError: names the two splits and up to three of the queries that they share.
    """
    prefix = f"{collection}: " if collection else ""
    normal = {
        split.name: {normalise(text): i for i, text in zip(split.query_ids, split.queries, strict=True)}
        for split in splits
    }
    for one, other in itertools.combinations(splits, 2):
        shared = set(one.query_ids) & set(other.query_ids)
        if shared:
            raise DataError(
                f"{prefix}{one.name} and {other.name} share {len(shared)} query ids, such as "
                f"{_first(shared)}; remove them from one of the two"
            )
        texts = sorted(normal[one.name].keys() & normal[other.name].keys())
        if texts:
            pairs = [
                f"{show(normal[one.name][text])} and {show(normal[other.name][text])} ({show(text)})"
                for text in texts[:3]
            ]
            raise DataError(
                f"{prefix}{one.name} and {other.name} share {len(texts)} questions under different ids, "
                f"such as {', '.join(pairs)}; remove them from one of the two"
            )


def _first(values: set[str]) -> str:
    return ", ".join(show(value) for value in sorted(values)[:3])
