"""Samples the three splits of a run from all queries of a dataset.

A loader collects one `Pool` per split; `draw_splits` samples the configured number of queries by hash and records the
available and used counts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from maw.config.presets import PRESETS
from maw.config.tier1_config import Tier1Config
from maw.data.collection import RetrievalData
from maw.data.corpus import Corpus
from maw.data.hash_sampling import draw
from maw.data.normalise import normalise
from maw.runtime.run_log import warn_of_data

logger = logging.getLogger(__name__)

SAMPLE_FIELDS = {"train": "train_samples", "validation": "val_samples", "test": "test_samples"}
_NOT_WISHED = {
    name: {getattr(Tier1Config, name), *(preset.get(name) for preset in PRESETS.values())}
    for name in SAMPLE_FIELDS.values()
}
"""Numbers that are the default's or a preset's: that a dataset has fewer queries contradicts no wish of the user."""


@dataclass(frozen=True)
class Pool:
    """All queries of one split before sampling: texts and qrels by query id.

    `negatives` and `answers` are as in `RetrievalData`, for some of the queries.
    """

    queries: dict[str, str] = field(default_factory=dict)
    qrels: dict[str, dict[str, int]] = field(default_factory=dict)
    negatives: dict[str, list[str]] = field(default_factory=dict)
    answers: dict[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.queries)

    def only(self, ids: Iterable[str]) -> Pool:
        """The pool with only the queries `ids`."""
        ids = list(ids)
        parts: Any = (self.queries, self.qrels, self.negatives, self.answers)
        return Pool(*({i: part[i] for i in ids if i in part} for part in parts))


def hold_out(train: Pool, config: Tier1Config) -> tuple[Pool, Pool]:
    """Splits a validation set off the training queries: `val_samples` of them, at most a fifth.

    Returns:
        The remaining training queries, without those of the same normalised text, and the validation queries.
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
    """Samples the splits of a run.

    Args:
        corpora: one corpus for all splits, or one for each.
        pools: "train", "validation" and "test"; a missing one gives an empty split.
        relevance_level: level of the test split; default: the configuration's.

    Returns:
        The splits by name, facts about each, and a warning for each split that is smaller than the user asked for.
    """
    splits, facts, warnings = {}, {}, []
    for name, size_field in SAMPLE_FIELDS.items():
        pool, asked = pools.get(name, Pool()), getattr(config, size_field)
        ids = draw(pool.queries, asked, config.seed, name)
        wished = asked not in _NOT_WISHED[size_field]
        if wished and len(ids) < asked and pool.queries:
            text = f"{size_field} asks for {asked} queries and {name} has {len(ids)}; all are used"
            warnings.append(f"{dataset}: {text}")
            warn_of_data(logger, warnings[-1])
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
    """Sizes and qrels hash of one split, for the report; "relevant" as in the binary metrics.

    A grade below 0 is neither relevant nor not relevant: trec_eval treats its passage as unjudged.
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
