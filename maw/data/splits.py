"""From all queries of a dataset to the three splits of a run.

A loader gathers one `Pool` for each split; `draw_splits` takes the number of queries that the configuration
asks for, by hash, and states in the facts what was there and what was used.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from maw.config.tier1_config import Tier1Config
from maw.data.collection import RetrievalData
from maw.data.corpus import Corpus
from maw.data.hash_sampling import draw
from maw.data.normalise import normalise

logger = logging.getLogger(__name__)

SAMPLE_FIELDS = {"train": "train_samples", "validation": "val_samples", "test": "test_samples"}


@dataclass(frozen=True)
class Pool:
    """All queries of one split, before any is drawn: texts and judgements by query id.

    `negatives` and `answers` are as in `RetrievalData`; not every query needs to have them.
    """

    queries: dict[str, str] = field(default_factory=dict)
    qrels: dict[str, dict[str, int]] = field(default_factory=dict)
    negatives: dict[str, list[str]] = field(default_factory=dict)
    answers: dict[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.queries)

    def only(self, ids: Iterable[str]) -> Pool:
        """The part of the pool that holds `ids`."""
        ids = list(ids)
        return Pool(
            {i: self.queries[i] for i in ids},
            {i: self.qrels[i] for i in ids},
            {i: self.negatives[i] for i in ids if i in self.negatives},
            {i: self.answers[i] for i in ids if i in self.answers},
        )


def hold_out(train: Pool, config: Tier1Config) -> tuple[Pool, Pool]:
    """Takes a validation split out of the training queries: `val_samples` of them, a fifth of all at most.

    Returns:
        What is left for training, without other queries of the same normalised text, and the validation queries.
    """
    n = min(config.val_samples, max(1, len(train) // 5))
    held = set(draw(train.queries, n, config.seed, "hold out"))
    texts = {normalise(train.queries[i]) for i in held}
    stay = [i for i, text in train.queries.items() if i not in held and normalise(text) not in texts]
    return train.only(stay), train.only(sorted(held))


def draw_splits(
    config: Tier1Config,
    corpora: Corpus | Mapping[str, Corpus],
    pools: Mapping[str, Pool],
    dataset: str,
    relevance_level: int | None = None,
) -> tuple[dict[str, RetrievalData], dict[str, Any], list[str]]:
    """Draws the samples of a run.

    Args:
        config: its sample sizes and seed are used.
        corpora: one corpus for all splits, or one for each.
        pools: "train", "validation" and "test"; a missing one gives an empty split.
        dataset: for messages.
        relevance_level: of the test split's binary metrics; the configuration's, if not given.

    Returns:
        The splits by name, the facts on each, and one warning for each split that is smaller than asked for.
    """
    splits, facts, warnings = {}, {}, []
    for name, size_field in SAMPLE_FIELDS.items():
        pool, asked = pools.get(name, Pool()), getattr(config, size_field)
        ids = draw(pool.queries, asked, config.seed, name)
        if len(ids) < asked and pool.queries:
            warnings.append(
                f"{dataset}: {size_field} asks for {asked} queries and {name} has {len(ids)}; all are used"
            )
            logger.warning(warnings[-1])
        drawn = pool.only(ids)
        splits[name] = RetrievalData(
            corpora[name] if isinstance(corpora, Mapping) else corpora,
            name,
            ids,
            list(drawn.queries.values()),
            drawn.qrels,
            drawn.negatives,
            drawn.answers,
            (relevance_level if name == "test" else None) or config.relevance_level,
        )
        facts[name] = split_facts(splits[name], available=len(pool))
    return splits, facts, warnings


def split_facts(split: RetrievalData, available: int) -> dict[str, Any]:
    """Sizes and hash of one split, for the report; what is relevant is so in the binary metrics.

    A grade below 0 counts as a judgement that says nothing: trec_eval takes its passage for unjudged.
    """
    grades = [grade for judged in split.qrels.values() for grade in judged.values()]
    relevant = sum(grade >= split.relevance_level for grade in grades)
    return {
        "available": available,
        "queries": len(split),
        "judgements": len(grades),
        "relevant": relevant,
        "judged_not_relevant": sum(0 <= grade < split.relevance_level for grade in grades),
        "qrels_sha256": split.qrels_hash(),
    }
