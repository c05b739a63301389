"""Samples the three splits of a run from all queries of a dataset.

A loader collects one `Pool` per split; `draw_splits` samples the configured number of queries by hash and records the
available and used counts.

Published judgements name passages that the published corpus lacks. Such a passage is never found, and counts in recall
and in the ideal DCG, as in trec_eval. A test query all of whose relevant passages are missing scores 0. Nothing can be
learned or chosen by a training or validation query of that kind, so it is left out.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from maw.config.methods import trained_methods
from maw.config.paths import look_alike
from maw.config.presets import PRESETS
from maw.config.tier1_config import Tier1Config
from maw.data.beir_format import EXAMPLES
from maw.data.collection import RetrievalData, answerable
from maw.data.corpus import Corpus
from maw.data.hash_sampling import draw
from maw.data.normalise import normalise
from maw.errors import DataError, show

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
        The splits by name, facts about each, and warnings: of splits that are smaller than the user asked for, and of
        judged passages that are not in the corpus.

    Raises:
        DataError: no test query has a relevant passage in the corpus, or no query is left to train on or to choose by.
    """
    splits, facts, warnings = {}, {}, []
    for name, size_field in SAMPLE_FIELDS.items():
        pool, asked = pools.get(name, Pool()), getattr(config, size_field)
        ids = draw(pool.queries, asked, config.seed, name)
        wished = asked not in _NOT_WISHED[size_field]
        if wished and len(ids) < asked and pool.queries:
            text = f"{size_field} asks for {asked} queries and {name} has {len(ids)}; all are used"
            warnings.append(f"{dataset}: {text}")
        corpus, used = corpora[name] if isinstance(corpora, Mapping) else corpora, pool.only(ids)
        needed = name == "test" or bool(trained_methods(config))
        drawn, missing, texts = with_passages(used, corpus, name, dataset, needed=needed)
        splits[name] = RetrievalData(
            corpus,
            name,
            list(drawn.queries),
            list(drawn.queries.values()),
            drawn.qrels,
            drawn.negatives,
            drawn.answers,
            (relevance_level if name == "test" else None) or config.relevance_level,
        )
        warnings += texts
        facts[name] = split_facts(splits[name], available=len(pool)) | missing
    return splits, facts, warnings


def with_passages(
    pool: Pool, corpus: Corpus, name: str, where: str, *, needed: bool = True
) -> tuple[Pool, dict[str, int], list[str]]:
    """The queries of a split that can be used with a corpus, which may lack passages that they are judged by.

    Args:
        name: of the split; from "train" and "validation" the queries without a relevant passage there are left out.
        where: the start of messages.
        needed: whether the split must keep a query.

    Returns:
        The queries; facts, and warnings, of judged passages that the corpus lacks.

    Raises:
        DataError: no query has a relevant passage in the corpus.
    """
    missing = _missing(pool.qrels, corpus)
    if not missing:
        return pool, {}, []
    found = answerable(pool.qrels, corpus)
    if needed and not found:
        text = f"none of the {len(pool)} {name} queries has a relevant passage that is in the corpus"
        first = _examples(missing[:1], corpus)
        raise DataError(f"{where}: {text}, which has no {first}; are the two of one version?")
    lost, learned = len(pool) - len(found), name in ("train", "validation")
    first = f"{len(missing)} judgements of {name} queries name passages that are not in the corpus"
    texts = [f"{first}; a relevant one counts as not found, as in trec_eval: {_examples(missing, corpus)}"]
    what = "they are left out" if learned else "they score 0, as in trec_eval"
    texts += [f"{lost} {name} queries have no relevant passage in the corpus; {what}"] * bool(lost)
    facts = {"judged_passages_missing": len(missing), "queries_without_passage": lost}
    used = pool.only(each for each in pool.queries if each in found) if learned else pool
    return used, facts, [f"{where}: {text}" for text in texts]


def _missing(qrels: Mapping[str, Mapping[str, int]], corpus: Corpus) -> list[tuple[str, str]]:
    """Queries and their judged passages that the corpus lacks."""
    pairs = [(query, passage) for query, judged in qrels.items() for passage in judged]
    rows = corpus.rows_of([passage for _, passage in pairs])
    return [pair for pair, row in zip(pairs, rows, strict=True) if row < 0]


def _examples(missing: Sequence[tuple[str, str]], corpus: Corpus) -> str:
    texts = []
    for query, passage in missing[:EXAMPLES]:
        forms = [unicodedata.normalize(form, passage) for form in ("NFC", "NFD")]
        there = [form for form, row in zip(forms, corpus.rows_of(forms), strict=True) if row >= 0]
        texts.append(f"{show(passage)} for the query {show(query)}{look_alike(passage, there)}")
    return ", ".join(texts)


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
