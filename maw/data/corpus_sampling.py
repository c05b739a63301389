"""The searched corpus: all passages, or a sample with hard distractors, plus passages of other collections.

    python tier_1.py --corpus-size 100000 --val-corpus-size 20000     # the defaults
    python tier_1.py --corpus-size full                               # every passage
    python tier_1.py --distractors path/to/nq,path/to/scifact         # adds passages of BEIR folders

The sample for the queries of a split contains

1. every judged passage of those queries, of any grade;
2. hard distractors: BM25's best passages for the queries, rank 1 of all queries, then rank 2, and so on to rank 30,
   until half of the remaining size is filled; a passage that a query leaves out (`maw.data.self_passages`) has no rank
   for it;
3. for the rest, the passages whose ids have the lowest seeded hashes.

The sample depends only on ids, texts, qrels and seed, not on the order of passages or queries, and a larger sample
contains the smaller one. All judged passages are kept, even if they exceed the size. A sample is easier to search than
the whole corpus, so reports state "sampled: N of M passages".

Test and validation have samples of their own. The training split keeps its whole corpus here, because hard negatives
come from all of it; `maw.training.prepare` cuts it later.

Every store has the hashes of all ids. Mixing in a seed takes 8 bytes a passage for one block at a time, and only the
sample is kept.
"""

from __future__ import annotations

import hashlib
import logging
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from maw.config.tier1_config import Tier1Config, cache_folder
from maw.data.bm25 import SETTINGS, Bm25Index
from maw.data.collection import Collection, RetrievalData
from maw.data.corpus import Corpus
from maw.data.datasets import beir
from maw.data.hash_sampling import order_key, order_keys
from maw.data.normalise import normalise
from maw.data.store import Record
from maw.runtime.progress_bars import track
from maw.runtime.run_log import warn_of_data
from maw.storage.files import json_sha

logger = logging.getLogger(__name__)

RULES_VERSION = 1
DEEPEST_RANK = 30
HASHES_AT_ONCE = 1 << 20
RULE = (
    "judged passages of the sampled queries; BM25's best passages for them, rank by rank to rank "
    f"{DEEPEST_RANK}, in at most half of the remaining size; the rest by hash of the passage id"
)
SIZE_FIELDS = {"test": "corpus_size", "validation": "val_corpus_size"}


def sample_corpora(collection: Collection, config: Tier1Config) -> Collection:
    """Replaces the corpora of test and validation by those that `config` asks for, and adds facts about them.

    Raises:
        DataError: a distractor folder has no readable corpus.jsonl, or the cache folder cannot be written.
    """
    splits: dict[str, RetrievalData] = {}
    corpora: dict[str, dict[str, Any]] = {}
    warnings = list(collection.facts.get("warnings", ()))
    for name, field in SIZE_FIELDS.items():
        data = getattr(collection, name)
        if len(data):
            joined, facts = join_distractors(data.corpus, config)
            data = replace(data, corpus=joined)
            corpus, sample_facts = sample_corpus(data, getattr(config, field), config)
            splits[name] = replace(data, corpus=corpus)
            corpora[name] = sample_facts | facts | {"sha256": corpus.fingerprint}
            if sample_facts.get("judged") == len(corpus):
                text = f"{field} has room only for the {len(corpus)} judged passages, which are all kept; raise it"
                warnings.append(f"{collection.name}: {text}")
                warn_of_data(logger, warnings[-1])
    facts = dict(collection.facts)
    before, after = collection.test, splits.get("test")
    if after is not None and after.corpus is not before.corpus:
        facts |= {
            "passages": len(after.corpus),
            "passages_of_the_source": len(before.corpus),
            "empty_passages": after.corpus.empty,
            "corpus_sha256": after.corpus.fingerprint,
            "corpus_rule": corpora["test"]["passages"],
        }
    if len(collection.train):
        corpora["train"] = {"passages": f"all {len(collection.train.corpus):,} passages"}
    if any("judged" in each for each in corpora.values()):
        facts["sampling_rule"] = RULE
    return replace(collection, **splits, facts=facts | {"corpora": corpora, "warnings": warnings})


def sample_corpus(data: RetrievalData, size: int | str, config: Tier1Config) -> tuple[Corpus, dict[str, Any]]:
    """Cuts the corpus of one split to `size` passages, as the module says; the sample is a store, built once.

    Returns:
        The corpus, unchanged if it is no larger than `size`; and facts about it.
    """
    total = len(data.corpus)
    if size == "full" or size >= total:
        return data.corpus, {"passages": f"all {total:,} passages"}
    queries = sorted(zip(data.query_ids, data.queries, strict=True))
    source = {
        "format": "sampled",
        "rules": [RULES_VERSION, DEEPEST_RANK, SETTINGS],
        "corpus": data.corpus.fingerprint,
        "split": data.name,
        "size": size,
        "seed": config.seed,
        "queries": json_sha(queries),
        "qrels": data.qrels_hash(),
    }
    if data.left_out:
        source["left_out"] = json_sha(sorted(data.left_out))

    def make() -> tuple[Iterator[Record], Any, dict[str, Any]]:
        parts = choose(data, size, config)
        rows = np.sort(np.concatenate(list(parts.values())))
        counts = {name: len(part) for name, part in parts.items()}
        return data.corpus.records(rows), lambda row: f"passage {rows[row]}", {"counts": counts}

    corpus = Corpus.cached(cache_folder(config) / "corpora" / f"sampled-{json_sha(source)[:24]}", source, make)
    counts = corpus.attachment("counts")
    facts = {"passages": f"sampled: {len(corpus):,} of {total:,} passages", "asked_for": size}
    return corpus, facts | counts


def choose(data: RetrievalData, size: int, config: Tier1Config) -> dict[str, np.ndarray]:
    """The rows of a sample: "judged", "hard" and "by_hash", disjoint."""
    judged = judged_rows(data)
    left = max(0, size - len(judged))
    hard = _bm25_rows(data, judged, left // 2, config) if left > 1 else np.empty(0, np.int64)
    taken = np.concatenate([judged, hard])
    rest = lowest_rows(data.corpus, left - len(hard), taken, config.seed, f"{data.name} corpus")
    return {"judged": judged, "hard": hard, "by_hash": rest}


def judged_rows(data: RetrievalData) -> np.ndarray:
    """Rows of all judged passages in the corpus, of any grade; ascending."""
    rows = data.corpus.rows_of(sorted({passage for judged in data.qrels.values() for passage in judged}))
    return rows[rows >= 0]


def _bm25_rows(data: RetrievalData, taken: np.ndarray, count: int, config: Tier1Config) -> np.ndarray:
    """Up to `count` rows not in `taken`: BM25's first passage of each query, then its second of each, ..."""
    text_of = dict(zip(data.query_ids, data.queries, strict=True))
    order = sorted(text_of, key=lambda query: (order_key(config.seed, f"{data.name} distractors", query), query))
    index = Bm25Index.cached(data.corpus, cache_folder(config) / "bm25")
    own = data.left_out_rows()
    depth = DEEPEST_RANK + (own is not None)
    rows, _ = index.search([text_of[query] for query in order], depth, f"{data.name} distractors")
    if own is not None:  # the passage that a query leaves out is its best one, and no distractor
        own_of = dict(zip(data.query_ids, own, strict=True))
        behind = rows == np.array([own_of[query] for query in order])[:, None]
        rows = np.take_along_axis(rows, behind.argsort(1, kind="stable"), 1)[:, :DEEPEST_RANK]
    by_rank = rows.T.ravel()
    first = np.sort(np.unique(by_rank, return_index=True)[1])
    by_rank = by_rank[first]
    return by_rank[(by_rank >= 0) & ~np.isin(by_rank, taken)][:count]


def lowest_rows(corpus: Corpus, count: int, taken: np.ndarray, seed: int, purpose: str) -> np.ndarray:
    """The `count` rows not in `taken` whose ids have the lowest seeded hashes; all rows if there are fewer."""
    hashes, row_of = corpus.id_hashes()
    free = np.ones(len(corpus), bool)
    free[taken] = False
    best, rows = np.empty(0, np.uint64), np.empty(0, np.int64)
    if count < 1:
        return rows
    for start in range(0, len(corpus), HASHES_AT_ONCE):
        block = np.asarray(row_of[start : start + HASHES_AT_ONCE]).astype(np.int64)
        mixed = order_keys(np.asarray(hashes[start : start + HASHES_AT_ONCE]), seed, purpose)
        best, rows = np.concatenate([best, mixed[free[block]]]), np.concatenate([rows, block[free[block]]])
        if len(best) > count:
            kept = best <= np.partition(best, count - 1)[count - 1]  # ties at the cut included
            best, rows = best[kept], rows[kept]
    if len(best) <= count:
        return rows
    cut = best.max()  # ids that share a 64-bit hash: the smaller id first
    tied = rows[best == cut]
    names = corpus.id_of(tied)
    tied = tied[sorted(range(len(tied)), key=names.__getitem__)]
    return np.concatenate([rows[best < cut], tied[: count - int((best < cut).sum())]])


def join_distractors(corpus: Corpus, config: Tier1Config) -> tuple[Corpus, dict[str, Any]]:
    """Appends the passages of `config.distractors` to a corpus; the result is a store, built once.

    Ids of appended passages begin with their folder's name and a slash. A passage is left out if its normalised text
    is in the corpus already: a copy of a relevant passage would count as an error when it is found.

    Returns:
        The corpus, unchanged without distractors; and facts about each folder.
    """
    if not config.distractors:
        return corpus, {}
    stores = cache_folder(config) / "corpora"
    folders = sorted(
        (Path(name.removeprefix("beir:")).expanduser().resolve() for name in config.distractors),
        key=lambda folder: folder.name,
    )
    others = {folder.name: beir.open_corpus(folder / "corpus.jsonl", stores) for folder in folders}
    source = {
        "format": "joined",
        "rules": RULES_VERSION,
        "corpus": corpus.fingerprint,
        "distractors": {name: other.fingerprint for name, other in others.items()},
    }

    def make() -> tuple[Iterator[Record], Any, dict[str, Any]]:
        counts = {name: {"passages": len(other), "copies_left_out": 0} for name, other in others.items()}
        return _joined(corpus, others, counts), lambda row: f"passage {row} of the joined corpus", {"counts": counts}

    joined = Corpus.cached(stores / f"joined-{json_sha(source)[:24]}", source, make)
    return joined, {"distractors": joined.attachment("counts")}


def _joined(corpus: Corpus, others: dict[str, Corpus], counts: dict[str, dict[str, int]]) -> Iterator[Record]:
    """Yields the corpus's passages, then the new ones of the others; counts the copies in `counts`."""
    yield from corpus.records()
    seen = np.unique(_text_hashes(corpus, "passages"))
    for name, other in others.items():
        hashes = _text_hashes(other, name)
        new, first = np.unique(hashes, return_index=True)
        rows = np.sort(first[~np.isin(new, seen, assume_unique=True)])
        counts[name]["copies_left_out"] = len(other) - len(rows)
        seen = np.union1d(seen, new)
        for identifier, title, text in other.records(rows):
            yield f"{name}/{identifier}", title, text


def _text_hashes(corpus: Corpus, label: str) -> np.ndarray:
    """64-bit hashes of the normalised texts, title included: (N,) uint64."""
    found = array("Q")
    for _, title, text in track(corpus.records(), f"texts of {label}", "passage", total=len(corpus)):
        digest = hashlib.blake2b(normalise(f"{title} {text}").encode(), digest_size=8).digest()
        found.append(int.from_bytes(digest, "little"))
    return np.frombuffer(found, np.uint64)


def cut_to(corpus: Corpus, rows: Sequence[int], config: Tier1Config) -> Corpus:
    """A store of exactly these rows, in the order of the corpus."""
    rows = np.unique(np.asarray(rows, np.int64))
    source = {
        "format": "cut",
        "rules": RULES_VERSION,
        "corpus": corpus.fingerprint,
        "rows": hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest(),
    }

    def make() -> tuple[Iterator[Record], Any, dict[str, Any]]:
        return corpus.records(rows), lambda row: f"passage {rows[row]}", {}

    return Corpus.cached(cache_folder(config) / "corpora" / f"cut-{json_sha(source)[:24]}", source, make)
