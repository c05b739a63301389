"""Cross-validation over queries: each sampled query is tested once, by models not trained or selected on it.

    python tier_1.py --preset offline --folds 5
    python tier_1.py --preset offline --folds 5 --train-samples 10000 --val-samples 10000 --test-samples 10000

The queries sampled for train, validation and test are pooled and divided into F folds. For fold f, fold f is the test
split, the next fold the validation split, and all others the training split. So all queries of a small collection are
tested.

- Queries of one group stay in one fold: those with the same normalised text, those that the collection puts into one
  group (in pystdlib, those with relevant passages in one module), and chains of both.
- Groups are assigned in the order of a hash of seed and name, each to the fold with the fewest queries so far. The
  folds depend only on the seed and the sampled queries, not on any order or method.
- All folds search one corpus for their test queries, sampled by `corpus_size` for all pooled queries together. The
  validation corpus of a fold is sampled from it by `val_corpus_size`; hard negatives come from the whole collection.
- Collections whose splits have different corpora or different kinds of judgements are refused: how a query is trained
  on and tested would depend on its original split.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from maw.config.methods import trained_methods
from maw.config.tier1_config import Tier1Config
from maw.data.collection import Collection, RetrievalData, answerable
from maw.data.corpus_sampling import sample_corpora, sample_corpus
from maw.data.hash_sampling import order_key
from maw.data.leakage import check_disjoint, connected, leakage_facts
from maw.data.normalise import normalise
from maw.data.self_passages import leave_out_of, with_counts
from maw.errors import DataError
from maw.storage.files import json_sha

RULE = (
    "all sampled queries pooled; groups (same text, or same group in the collection) in order of a seeded hash, each "
    "into the smallest fold; fold f is tested, the next one is the validation split, the others are trained on"
)
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Folds:
    """A collection divided into folds.

    Attributes:
        whole: all pooled queries as the test split, fold after fold; other splits are empty. Untrained methods are
            evaluated on it.
        collections: for fold 1, 2, ... the collection that tests it; empty if no method trains.
    """

    whole: Collection
    collections: tuple[Collection, ...]


def make_folds(collection: Collection, config: Tier1Config) -> Folds:
    """Pools the splits of a loaded collection, samples the corpus to search, and divides the queries.

    Raises:
        DataError: the splits cannot be pooled, or there are fewer groups of queries than folds.
    """
    source, ruled, fold_of, group_count = divide(collection, config)
    pooled = with_counts(sample_corpora(ruled, config))
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
    train = replace(source.test, name="train", left_out=ruled.test.left_out)
    collections = tuple(_fold(pooled, parts, number, train, config) for number in range(config.folds))
    return Folds(with_fold_facts(pooled, collections), collections)


def divide(collection: Collection, config: Tier1Config) -> tuple[Collection, Collection, dict[str, int], int]:
    """`make_folds` without passages.

    Returns:
        The pooled collection, the same after the rule on self passages, the fold of each query, from 0, and the number
        of groups.

    Raises:
        DataError: as `make_folds`.
    """
    source = pool(collection)
    ruled = leave_out_of(source, config)
    return source, ruled, *assign(ruled.test, ruled.groups, config.folds, config.seed, ruled.name)


def pool(collection: Collection) -> Collection:
    """The collection with the queries of all splits in its test split.

    Raises:
        DataError: the splits differ in their corpora or in their kind of judgements.
    """
    splits = [split for split in (getattr(collection, name) for name in SPLITS) if len(split)]
    _check_poolable(splits, collection.name)
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


def _check_poolable(splits: Sequence[RetrievalData], name: str) -> None:
    for one, other in itertools.combinations(splits, 2):
        both = f"{name}: {one.name} and {other.name} queries cannot be pooled into folds"
        if one.corpus.fingerprint != other.corpus.fingerprint:
            raise DataError(f"{both}: they search different corpora; leave folds at 0")
        if one.relevance_level != other.relevance_level:
            raise DataError(f"{both}: their relevance levels differ; leave folds at 0")
    graded = {
        split.name: any(grade > 1 for each in split.qrels.values() for grade in each.values()) for split in splits
    }
    if "train" in graded and len(set(graded.values())) > 1:
        kinds = [f"those of {split} {'graded' if is_graded else 'binary'}" for split, is_graded in graded.items()]
        text = f"queries cannot be pooled into folds: judgements differ in kind, {', '.join(kinds)}"
        raise DataError(f"{name}: {text}; leave folds at 0")


def assign(
    data: RetrievalData, groups: Mapping[str, str], folds: int, seed: int, name: str = ""
) -> tuple[dict[str, int], int]:
    """Assigns each query to a fold, from 0, and counts the groups.

    `groups` maps query ids to groups; queries without one form groups by normalised text.

    Raises:
        DataError: fewer groups than folds.
    """
    own = {i: f"group {groups[i]}" if i in groups else f"query {i}" for i in data.query_ids}
    texts = zip(data.query_ids, data.queries, strict=True)
    group_of = connected({i: [own[i], f"text {normalise(text)}"] for i, text in texts})
    sizes = Counter(group_of.values())
    if len(sizes) < folds:
        text = f"the {len(data)} queries make {len(sizes)} groups that must stay together, too few for {folds} folds"
        raise DataError(f"{name}: {text}; sample more queries or use fewer folds")
    filled, fold_of_group = [0] * folds, {}
    for group in sorted(sizes, key=lambda each: (order_key(seed, "folds", each), each)):
        smallest = filled.index(min(filled))
        fold_of_group[group] = smallest
        filled[smallest] += sizes[group]
    return {i: fold_of_group[group] for i, group in group_of.items()}, len(sizes)


def _fold(
    pooled: Collection, parts: Sequence[list[str]], number: int, source: RetrievalData, config: Tier1Config
) -> Collection:
    """The collection that tests fold `number`, from 0; `source` has all judgements and passages, for training."""
    following = (number + 1) % len(parts)
    trainable = answerable(source.qrels, source.corpus)
    found = answerable(pooled.test.qrels, pooled.test.corpus)  # others are only tested, with a score of 0
    rest = [query_id for fold, part in enumerate(parts) if fold not in (number, following) for query_id in part]
    train = source.only(i for i in rest if i in trainable)
    validation = replace(pooled.test.only(i for i in parts[following] if i in found), name="validation")
    corpus, corpus_facts = sample_corpus(validation, config.val_corpus_size, config)
    splits = (train, replace(validation, corpus=corpus), pooled.test.only(parts[number]))
    check_disjoint(*splits, collection=f"{pooled.name}, fold {number + 1}")
    corpora = {
        "test": pooled.facts["corpora"]["test"],
        "validation": corpus_facts | {"sha256": corpus.fingerprint},
        "train": {"passages": f"all {len(source.corpus):,} passages"},
    }
    facts = {"leakage": leakage_facts(*splits), "corpora": corpora, "warnings": []}
    return replace(pooled, **dict(zip(SPLITS, splits, strict=True)), facts=facts)


def with_fold_facts(whole: Collection, collections: Sequence[Collection]) -> Collection:
    """The whole collection with facts about each fold: sizes, hash, leakage, corpora, hard negatives."""
    rounds = {}  # the key in dataset.json, too
    for number, each in enumerate(collections, start=1):
        corpora, negatives = each.facts["corpora"], each.facts.get("hard_negatives", {})
        rounds[str(number)] = {
            **{name: len(getattr(each, name)) for name in SPLITS},
            "test_qrels_sha256": each.test.qrels_hash(),
            "exact_copies": "none between splits",
            "near_duplicates": each.facts["leakage"]["near_duplicates"],
            **{f"{name}_corpus": corpora[name]["passages"] for name in ("train", "validation")},
            **({"hard_negatives": negatives} if negatives else {}),
        }
    warnings = [*whole.facts.get("warnings", ()), *(text for each in collections for text in each.facts["warnings"])]
    return replace(whole, facts=whole.facts | {"rounds": rounds, "warnings": list(dict.fromkeys(warnings))})
