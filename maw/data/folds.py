"""Cross-validation over queries: every drawn query is tested once, by models neither trained nor chosen on it.

    python tier_1.py --preset offline --folds 5
    python tier_1.py --preset offline --folds 5 --train-samples 10000 --val-samples 10000 --test-samples 10000

The queries drawn for train, validation and test are pooled and divided into F folds. In round f fold f is the test,
the next fold the validation, and all others train. So a small collection counts whole.

- Queries that belong together stay together: those of the same normalised text, and those to which the collection
  gives one group (those with relevant passages in one module in pystdlib), directly or by way of others.
- Groups take their places in the order of a hash of seed and name, each in the fold that has the fewest queries so
  far. The division depends on the seed and on which queries are drawn, on no order and no method.
- All rounds search one corpus for their test queries, sampled by `corpus_size` for all pooled queries at once. The
  validation corpus of a round is sampled from it by `val_corpus_size`; hard negatives come from the whole collection.
- Collections whose splits have different corpora, or judgements of different kinds, are refused: a query would be
  trained on and tested in ways that depend on where it came from.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from maw.config.methods import trained_methods
from maw.config.tier1_config import Tier1Config
from maw.data.collection import Collection, RetrievalData
from maw.data.corpus import Corpus
from maw.data.corpus_sampling import sample_corpora, sample_corpus
from maw.data.hash_sampling import place
from maw.data.leakage import check_disjoint, connected, leakage_facts
from maw.data.normalise import normalise
from maw.errors import DataError
from maw.storage.files import json_sha

RULE = (
    "all drawn queries pooled; groups (same text, or together by the collection) in order of a seeded hash, each into "
    "the smallest fold; round f tests fold f, chooses on the next one and trains on the others"
)
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Folds:
    """A collection divided anew.

    Attributes:
        whole: all pooled queries as its test split, fold after fold; its other splits are empty. Methods that do not
            train are evaluated on it.
        collections: for fold 1, 2, ... the collection whose test split is that fold; none where no method trains.
    """

    whole: Collection
    collections: tuple[Collection, ...]


def make_folds(collection: Collection, config: Tier1Config) -> Folds:
    """Pools a collection's splits, draws the passages to search, and divides the queries.

    Args:
        collection: as a loader gives it: its splits drawn, disjoint, and over their whole corpora.
        config: number of folds, seed, corpus sizes, distractors and cache folder are used.

    Raises:
        DataError: splits that cannot be pooled, or fewer groups of queries than folds; one line.
    """
    pooled = sample_corpora(pool(collection), config)
    fold_of, group_count = assign(pooled.test, pooled.groups, config.folds, config.seed, pooled.name)
    parts = [[i for i in pooled.test.query_ids if fold_of[i] == fold] for fold in range(config.folds)]
    whole = pooled.test.only([query_id for part in parts for query_id in part])
    facts = {
        "folds": {
            "number": config.folds,
            "rule": RULE,
            "queries": [len(part) for part in parts],
            "groups": group_count,
            "sha256": json_sha(sorted((query_id, fold + 1) for query_id, fold in fold_of.items())),
        }
    }
    pooled = replace(pooled, test=whole, facts=pooled.facts | facts)
    if not trained_methods(config):
        return Folds(pooled, ())
    collections = tuple(_fold(pooled, parts, number, collection.test.corpus, config) for number in range(config.folds))
    return Folds(with_fold_facts(pooled, collections), collections)


def pool(collection: Collection) -> Collection:
    """The collection with the queries of all splits as its test split.

    Raises:
        DataError: the splits have different corpora, or are judged in different ways.
    """
    splits = [split for split in (getattr(collection, name) for name in SPLITS) if len(split)]
    _check_alike(splits, collection.name)
    merged: dict[str, Any] = {
        field: {key: value for split in splits for key, value in getattr(split, field).items()}
        for field in ("qrels", "negatives", "answers")
    }
    lists = {field: [each for split in splits for each in getattr(split, field)] for field in ("query_ids", "queries")}
    nothing = collection.test.only([])
    return replace(
        collection,
        train=replace(nothing, name="train"),
        validation=replace(nothing, name="validation"),
        test=replace(collection.test, **lists, **merged),
    )


def _check_alike(splits: Sequence[RetrievalData], name: str) -> None:
    for one, other in itertools.combinations(splits, 2):
        both = f"{name}: {one.name} and {other.name} queries cannot be pooled into folds"
        if one.corpus.fingerprint != other.corpus.fingerprint:
            raise DataError(f"{both}: they search different corpora; leave folds at 0")
        if one.relevance_level != other.relevance_level:
            raise DataError(f"{both}: passages are relevant from different grades on; leave folds at 0")
    graded = {
        split.name: any(grade > 1 for each in split.qrels.values() for grade in each.values()) for split in splits
    }
    if "train" in graded and len(set(graded.values())) > 1:
        kinds = [f"those of {split} {'graded' if is_graded else 'binary'}" for split, is_graded in graded.items()]
        raise DataError(
            f"{name}: queries cannot be pooled into folds: judgements differ in kind, {', '.join(kinds)}; "
            "leave folds at 0"
        )


def assign(
    data: RetrievalData, groups: Mapping[str, str], folds: int, seed: int, name: str = ""
) -> tuple[dict[str, int], int]:
    """The fold of every query, from 0, and how many groups there are.

    Args:
        data: the queries.
        groups: query id -> group; queries without one stand alone, but for others of the same normalised text.
        folds: how many.
        seed: of the order in which groups take their places.
        name: of the collection, for the message.

    Raises:
        DataError: fewer groups than folds.
    """
    own = {i: f"group {groups[i]}" if i in groups else f"query {i}" for i in data.query_ids}
    texts = zip(data.query_ids, data.queries, strict=True)
    group_of = connected({i: [own[i], f"text {normalise(text)}"] for i, text in texts})
    sizes = Counter(group_of.values())
    if len(sizes) < folds:
        raise DataError(
            f"{name}: the {len(data)} queries make {len(sizes)} groups that must not be parted, too few for {folds} "
            "folds; draw more queries or use fewer folds"
        )
    filled, fold_of_group = [0] * folds, {}
    for group in sorted(sizes, key=lambda each: (place(seed, "folds", each), each)):
        smallest = filled.index(min(filled))
        fold_of_group[group] = smallest
        filled[smallest] += sizes[group]
    return {i: fold_of_group[group] for i, group in group_of.items()}, len(sizes)


def _fold(
    pooled: Collection, parts: Sequence[list[str]], number: int, source: Corpus, config: Tier1Config
) -> Collection:
    """The collection of one round, from 0; `source` is the corpus before it was sampled, for hard negatives."""
    after = (number + 1) % len(parts)
    rest = [query_id for fold, part in enumerate(parts) if fold not in (number, after) for query_id in part]
    train = replace(pooled.test.only(rest), name="train", corpus=source)
    validation = replace(pooled.test.only(parts[after]), name="validation")
    corpus, corpus_facts = sample_corpus(validation, config.val_corpus_size, config)
    splits = (train, replace(validation, corpus=corpus), pooled.test.only(parts[number]))
    check_disjoint(*splits, collection=f"{pooled.name}, round {number + 1}")
    corpora = {
        "test": pooled.facts["corpora"]["test"],
        "validation": corpus_facts | {"sha256": corpus.fingerprint},
        "train": {"passages": f"all {len(source):,} passages"},
    }
    facts = {"leakage": leakage_facts(*splits), "corpora": corpora, "warnings": []}
    return replace(pooled, **dict(zip(SPLITS, splits, strict=True)), facts=facts)


def with_fold_facts(whole: Collection, collections: Sequence[Collection]) -> Collection:
    """The whole collection with what there is to say of each round: sizes, hash, leakage, corpora, hard negatives."""
    found = {str(number): _fold_facts(each) for number, each in enumerate(collections, start=1)}
    warnings = [*whole.facts.get("warnings", ()), *(text for each in collections for text in each.facts["warnings"])]
    return replace(whole, facts=whole.facts | {"rounds": found, "warnings": list(dict.fromkeys(warnings))})


def _fold_facts(collection: Collection) -> dict[str, Any]:
    splits = [getattr(collection, name) for name in SPLITS]
    corpora, leakage = collection.facts["corpora"], collection.facts["leakage"]
    negatives = collection.facts.get("hard_negatives", {})
    return {
        **{split.name: len(split) for split in splits},
        "test_qrels_sha256": collection.test.qrels_hash(),
        "exact_copies": "none between splits",
        "near_duplicates": leakage["near_duplicates"],
        **{f"{name}_corpus": corpora[name]["passages"] for name in ("train", "validation")},
        **({"hard_negatives": negatives} if negatives else {}),
    }
