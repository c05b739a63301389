"""Hard negatives of the training queries, chosen before any method runs, so that all methods train with the same.

    python tier_1.py --num-negatives 1 --negative-source bm25 --hard-negative-ratio 1.0 --negative-margin 0.95

Sources: "given" (those of the data, in its order), "bm25" (the 100 best of the training corpus), "dense" (the 100 best
of the pretrained retriever, in the training corpus or, if that is larger than `corpus_size`, in a sample of it by the
rule of `maw.data.corpus_sampling`), and "auto" (given for the queries that have some, BM25 for the others). Where BM25
finds nothing for more than 5% of the queries, all negatives of these are drawn; facts and a warning say for how many.

A negative of a query is never

- a passage that is judged relevant to it (a grade of 1 or more), or a copy of one (equal normalised text);
- a passage that is the query itself, under whichever id (equal normalised text);
- a passage with an answer to it, if the data has answers;
- if it is mined, a passage with a score above `negative_margin` times the positive's score by the same miner, since it
  may be relevant. This is TopK-PercPos. The paper has pairs of a query and one positive; of several positives, the one
  with the highest score decides here. With the lowest, a question that needs two passages would have no hard negative
  if the second passage shared no word with it. The limit is positive - (1 - margin) * |positive|: for positive scores
  that of the paper, and below the positive also for negative scores, which dot products can have.

The negatives that are not hard (one minus `hard_negative_ratio` of them) are drawn from the whole training corpus: the
hashes of all ids form a ring, and each draw takes the first allowed id after a point that depends on seed and query.
So the order of the data has no influence.

Negatives are stored in the cache folder, under a hash of everything that they depend on.

Source: Moreira et al. 2024, "NV-Retriever: Improving text embedding models with effective hard-negative mining".
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from maw.config.methods import find_method
from maw.config.tier1_config import Tier1Config, cache_folder
from maw.data.bm25 import SETTINGS
from maw.data.collection import RetrievalData
from maw.data.corpus import Corpus, one_text
from maw.data.corpus_sampling import many
from maw.data.hash_sampling import order_key
from maw.data.normalise import normalise
from maw.data.self_passages import same_texts
from maw.encoding.activation_cache import ActivationStore
from maw.errors import DataError, MAWError
from maw.evaluation.answer_match import contains_answer
from maw.models.fingerprint import encoder_parts, tokenizer_sha256
from maw.models.retriever import BaselineRetriever
from maw.storage.cache_entry import only_builder
from maw.storage.checksummed import read_signed, write_signed
from maw.storage.files import json_sha
from maw.training.miners import RANKED_PASSAGES, Bm25Miner, DenseMiner, candidates_of, relevant

logger = logging.getLogger(__name__)

RULES_VERSION = 5
"""To be raised when the same key gives other negatives, or the file has another format."""
LOOKED_AT_ONCE = 16

Negatives = dict[str, list[str]]
Facts = dict[str, Any]


def mine_negatives(
    data: RetrievalData,
    config: Tier1Config,
    retriever: BaselineRetriever | None = None,
    activations: ActivationStore | None = None,
) -> tuple[RetrievalData, Facts]:
    """Chooses up to `num_negatives` negatives for each training query, or reads them from the cache.

    Args:
        data: the training split with its whole corpus.
        retriever: the pretrained one, for "dense"; loaded here if not given.

    Returns:
        The split with its negatives, hard ones first; and facts: what was chosen and what was excluded. Counts
        cover only candidates that were looked at.

    Raises:
        DataError: the source is "given", and the data has no negatives.
    """
    if not (config.num_negatives and len(data)) or config.negative_source == "none":
        return replace(data, negatives={}), {"source": "none"}
    if config.negative_source == "given" and not any(data.negatives.values()):
        raise DataError("negative_source given: the data has no negatives; use auto, bm25, dense or none")
    if config.negative_source == "dense" and retriever is None:
        retriever = BaselineRetriever(find_method("zero_shot").configure(config))
    key = _key(data, config, retriever)
    path = cache_folder(config) / "negatives" / f"{json_sha(key)[:24]}.json"
    found = _read(path, key)
    if found is None:
        with only_builder(path, "the negatives"):
            found = _read(path, key, warn=True)
            if found is None:
                found = _choose(data, config, retriever, activations)
                if activations is not None:
                    activations.before_commit()  # a resumed run reads the negatives and stores no texts for them
                write_signed(path, {"key": key, "negatives": found[0], "facts": found[1]})
    return replace(data, negatives=found[0]), found[1]


def _key(data: RetrievalData, config: Tier1Config, retriever: BaselineRetriever | None) -> dict[str, Any]:
    """Everything that the negatives depend on, in hashes and settings."""
    names = ("negative_source", "num_negatives", "hard_negative_ratio", "negative_margin", "seed")
    given = data.negatives if config.negative_source in ("auto", "given") else {}
    key = {
        "rules": [RULES_VERSION, RANKED_PASSAGES, SETTINGS],
        "corpus": data.corpus.fingerprint,
        "queries": json_sha(sorted(zip(data.query_ids, data.queries, strict=True))),
        "qrels": data.qrels_hash(),
        "given": json_sha(given),
        "answers": json_sha(data.answers),
        "settings": {name: getattr(config, name) for name in names},
    }
    if config.negative_source == "dense":
        spec = dataclasses.asdict(retriever.spec) | {"folder": None}
        spec |= {"name": None} if retriever.spec.folder else {}  # where it lies changes no embedding
        key["dense"] = {
            "encoder": json_sha(encoder_parts(retriever.encoder)),
            "tokenizer": tokenizer_sha256(retriever.tokenizer),
            "spec": json_sha(spec),
            "corpus_size": config.corpus_size,
            "left_out": json_sha(sorted(data.left_out)),
            "embedding_precision": config.embedding_precision,
        }
    return key


def _read(path: Path, key: Mapping[str, Any], warn: bool = False) -> tuple[Negatives, Facts] | None:
    """Negatives and facts from the cache; None if there are none for this key, or the file is damaged."""
    try:
        record = read_signed(path) if path.is_file() else {}
    except (MAWError, OSError) as error:
        if warn:
            logger.warning("%s; choosing the negatives again", error)
        return None
    same = record.get("key") == json.loads(json.dumps(key))
    return (record["negatives"], record["facts"]) if same else None


def _choose(
    data: RetrievalData, config: Tier1Config, retriever: BaselineRetriever | None, activations: ActivationStore | None
) -> tuple[Negatives, Facts]:
    hard_wanted = int(config.num_negatives * config.hard_negative_ratio + 0.5)
    kept_out: Counter[str] = Counter()
    negatives: Negatives = {}
    sources: dict[str, int] = {}
    unfound: set[str] = set()
    for source, part in _by_source(data, config):
        sources[source] = len(part)
        if source == "given":
            corpus, candidates = data.corpus, _given(part, kept_out)
        else:
            miner = Bm25Miner(part, config) if source == "bm25" else DenseMiner(part, config, retriever, activations)
            corpus, candidates = miner.corpus, candidates_of(part, miner, config.negative_margin, kept_out)
        for query_id, text, rows in zip(part.query_ids, part.queries, candidates, strict=True):
            if rows is None:
                unfound.add(query_id)
            screen = Screen(data, corpus, query_id, text, kept_out)
            negatives[query_id] = screen.first(() if rows is None else rows, hard_wanted)
    hard = sum(map(len, negatives.values()))
    without = sum(not chosen for chosen in negatives.values()) if hard_wanted else 0
    drawn_instead = unfound if many(len(unfound), len(data)) else ()
    for query_id, text in zip(data.query_ids, data.queries, strict=True):
        count = config.num_negatives - (0 if query_id in drawn_instead else hard_wanted)
        if count:
            negatives[query_id] += _random(data, query_id, text, config, negatives[query_id], count)
    facts = {
        "source": config.negative_source,
        "queries_by_source": sources,
        "hard": hard,
        "drawn_from_the_corpus": sum(map(len, negatives.values())) - hard,
        "kept_out": {reason: count for reason, count in sorted(kept_out.items()) if count},
        "queries_without_a_hard_one": without,
        "margin": config.negative_margin,
    } | ({"queries_without_bm25": len(unfound)} if unfound else {})
    return {query_id: negatives[query_id] for query_id in data.query_ids}, facts


def _by_source(data: RetrievalData, config: Tier1Config) -> Iterator[tuple[str, RetrievalData]]:
    """Each source with the part of the split that it serves."""
    if config.negative_source != "auto":
        yield config.negative_source, data
        return
    for source, given in (("given", True), ("bm25", False)):
        ids = [query_id for query_id in data.query_ids if bool(data.negatives.get(query_id)) is given]
        if ids:
            yield source, data.only(ids)


def _given(data: RetrievalData, kept_out: Counter[str]) -> Iterator[np.ndarray]:
    """Rows of each query's given negatives, as far as the corpus has them."""
    for query_id in data.query_ids:
        rows = data.corpus.rows_of(list(dict.fromkeys(data.negatives.get(query_id, ()))))
        kept_out["not in the corpus"] += int((rows < 0).sum())
        yield rows[rows >= 0]


class Screen:
    """Excludes relevant passages, and the query itself, from the negatives of one query.

    Args:
        corpus: of the candidates; relevant passages may be in it or in the corpus of the split.
        query_id: the query.
        query: its text.
        kept_out: counts the excluded candidates by reason.
    """

    def __init__(self, data: RetrievalData, corpus: Corpus, query_id: str, query: str, kept_out: Counter[str]):
        self.corpus, self.query, self.kept_out = corpus, query, kept_out
        self.relevant = set(relevant(data, query_id))
        rows = data.corpus.rows_of(sorted(self.relevant))
        self.texts = {normalise(text) for text in data.corpus.take(rows[rows >= 0])}
        self.answers = data.answers.get(query_id, [])

    def first(self, rows: Iterable[int], count: int, besides: Sequence[str] = ()) -> list[str]:
        """Ids of the first `count` rows that may be negatives and are not in `besides`."""
        rows, chosen = list(rows), []
        for start in range(0, len(rows), LOOKED_AT_ONCE):
            if len(chosen) >= count:
                break
            chosen += self._fitting(rows[start : start + LOOKED_AT_ONCE], count - len(chosen), besides)
        return chosen

    def _fitting(self, rows: Sequence[int], count: int, besides: Sequence[str]) -> list[str]:
        found = list(self.corpus.records(rows))
        texts, chosen = [one_text(title, text) for _, title, text in found], []
        answering = contains_answer(texts, self.answers) if self.answers else np.zeros(len(rows), bool)
        own = {place for _, place in same_texts([self.query], found)}
        for place, (identifier, _, _) in enumerate(found):
            reason = self._reason(identifier, texts[place], place in own, bool(answering[place]))
            if reason:
                self.kept_out[reason] += 1
            elif identifier not in besides:
                chosen.append(identifier)
            if len(chosen) == count:
                break
        return chosen

    def _reason(self, identifier: str, text: str, own: bool, answers: bool) -> str | None:
        if identifier in self.relevant:
            return "judged relevant"
        if normalise(text) in self.texts:
            return "copy of a relevant passage"
        if own:
            return "the query itself"
        return "holds an answer" if answers else None


def _random(
    data: RetrievalData, query_id: str, query: str, config: Tier1Config, besides: Sequence[str], count: int
) -> list[str]:
    """Ids drawn from the whole corpus for one query, none of them in `besides`."""
    hashes, row_of = data.corpus.id_hashes()
    screen, chosen = Screen(data, data.corpus, query_id, query, Counter()), list(besides)
    for number in range(count):
        point = int.from_bytes(order_key(config.seed, "random negatives", f"{query_id}\0{number}")[:8], "little")
        start = int(np.searchsorted(hashes, np.uint64(point)))
        for offset in range(0, len(hashes), LOOKED_AT_ONCE):
            ring = (start + np.arange(offset, min(offset + LOOKED_AT_ONCE, len(hashes)))) % len(hashes)
            found = screen.first(np.asarray(row_of[ring]).astype(np.int64), 1, chosen)
            if found:
                chosen += found
                break
    return chosen[len(besides) :]
