"""Hard negatives of the training queries, chosen before any method runs, so that every arm trains against the same.

    python tier_1.py --num-negatives 1 --negative-source bm25 --hard-negative-ratio 1.0 --negative-margin 0.95

Sources: "given" (those of the data, in its order), "bm25" (the 100 best of the training corpus), "dense" (the 100 best
of the pretrained retriever, over the training corpus or, where that is larger than `corpus_size`, a sample of it drawn
by the rule of `maw.data.corpus_sampling`), and "auto" (given for the queries that have any, BM25 for the others).

No negative of a query is

- judged relevant to it (a grade of 1 or more), or a copy of such a passage (equal normalised text);
- a passage with an answer to it, where the data has answers;
- for mined ones, a passage whose score is above `negative_margin` times the positive's by the same miner: it may well
  be relevant. This is TopK-PercPos. The paper judges pairs of a query and one positive; of several positives the one
  of highest score decides here. With the lowest, a question that needs two passages would have no hard negative at
  all where the second passage shares no word with it. The limit is positive - (1 - margin) * |positive|: the paper's
  for positive scores, and below the positive for others too, as dot products may give.

The negatives that are not hard (one minus `hard_negative_ratio` of them) are drawn from the whole training corpus: all
ids stand on a ring by their hash, and each draw takes the first fitting one after a point that belongs to seed and
query. Like all draws it depends on no order.

What is mined is kept under the cache folder, by the content of everything it depends on.

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
from typing import Any, Protocol

import numpy as np
import torch

from maw.config.methods import find_method
from maw.config.tier1_config import Tier1Config, cache_folder
from maw.data.bm25 import SETTINGS, Bm25Index
from maw.data.collection import Collection, RetrievalData
from maw.data.corpus import Corpus
from maw.data.corpus_sampling import cut_to, judged_rows, sample_corpus
from maw.data.hash_sampling import order_key
from maw.data.normalise import normalise
from maw.encoding.activation_cache import ActivationStore
from maw.encoding.embedding_cache import Embedder
from maw.errors import DataError
from maw.evaluation.answer_match import contains_answer
from maw.models.fingerprint import encoder_parts, tokenizer_sha256
from maw.models.retriever import BaselineRetriever
from maw.models.tokenized import ListTexts
from maw.runtime.profiler import stage
from maw.runtime.progress_bars import track
from maw.search.exact import top_k
from maw.storage.cache_entry import json_sha, only_builder
from maw.storage.files import write_json

logger = logging.getLogger(__name__)

RULES_VERSION = 2
DEPTH = 100
LOOKED_AT_ONCE = 16

Negatives = dict[str, list[str]]
Facts = dict[str, Any]


def prepare_training(
    collection: Collection,
    config: Tier1Config,
    retriever: BaselineRetriever | None = None,
    activations: ActivationStore | None = None,
) -> Collection:
    """Chooses the negatives of the training split, then cuts its corpus to what training reads.

    A corpus that another split searches too stays whole, since its activations are then shared.

    Args:
        collection: its training split may have a corpus of any size.
        config: the run's settings.
        retriever: the pretrained one; for the source "dense".
        activations: of the run, for "dense".
    """
    train, facts = mine_negatives(collection.train, config, retriever, activations)
    whole, corpora = len(train.corpus), dict(collection.facts.get("corpora", {}))
    if train.corpus.fingerprint not in (collection.test.corpus.fingerprint, collection.validation.corpus.fingerprint):
        used = train.corpus.rows_of([passage for chosen in train.negatives.values() for passage in chosen])
        train = replace(train, corpus=cut_to(train.corpus, np.concatenate([judged_rows(train), used]), config))
        cut = f"cut to the {len(train.corpus):,} of {whole:,} passages that training reads"
        corpora["train"] = {"passages": cut}
    warnings = list(collection.facts.get("warnings", ()))
    without = facts.get("queries_without_a_hard_one")
    if without:
        against = "passages drawn from the corpus and" if facts["drawn_from_the_corpus"] else "nothing but"
        warnings.append(
            f"{collection.name}: {without} of {len(train)} training queries have no hard negative that may be used, "
            f"and train against {against} the other passages of their batches"
        )
        logger.warning(warnings[-1])
    facts = collection.facts | {"corpora": corpora, "hard_negatives": facts, "warnings": warnings}
    return replace(collection, train=train, facts=facts)


def mine_negatives(
    data: RetrievalData,
    config: Tier1Config,
    retriever: BaselineRetriever | None = None,
    activations: ActivationStore | None = None,
) -> tuple[RetrievalData, Facts]:
    """A training split with `num_negatives` negatives for each query, where so many may be used.

    Args:
        data: the training split over its whole corpus.
        config: source, number, ratio, margin, seed, corpus size and cache folder.
        retriever: the pretrained one, for "dense"; loaded here if not given.
        activations: stored activations of frozen layers, for "dense".

    Returns:
        The split, hard negatives before the others; and for the facts, what was chosen and what was kept out. Counts
        of what was kept out are of the candidates looked at until there were enough.

    Raises:
        DataError: the source is "given" and the data has none.
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
                record = {"key": key, "negatives": found[0], "facts": found[1]}
                if activations is not None:
                    activations.before_commit()  # a resumed run reads the negatives and stores no texts for them
                write_json(path, record | {"sha256": json_sha(record)})
    return replace(data, negatives=found[0]), found[1]


def _key(data: RetrievalData, config: Tier1Config, retriever: BaselineRetriever | None) -> dict[str, Any]:
    """Everything that the negatives depend on, in short."""
    names = ("negative_source", "num_negatives", "hard_negative_ratio", "negative_margin", "seed")
    given = data.negatives if config.negative_source in ("auto", "given") else {}
    key = {
        "rules": [RULES_VERSION, DEPTH, SETTINGS],
        "corpus": data.corpus.fingerprint,
        "queries": json_sha(sorted(zip(data.query_ids, data.queries, strict=True))),
        "qrels": data.qrels_hash(),
        "given": json_sha(given),
        "answers": json_sha(data.answers),
        "settings": {name: getattr(config, name) for name in names},
    }
    if config.negative_source == "dense":
        spec = dataclasses.asdict(retriever.spec) | {"folder": None}
        key["dense"] = {
            "encoder": json_sha(encoder_parts(retriever.encoder)),
            "tokenizer": tokenizer_sha256(retriever.tokenizer),
            "spec": json_sha(spec),
            "corpus_size": config.corpus_size,
            "embedding_precision": config.embedding_precision,
        }
    return key


def _read(path: Path, key: Mapping[str, Any], warn: bool = False) -> tuple[Negatives, Facts] | None:
    """What the cache holds; None where it holds nothing, or nothing that can be trusted."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record.pop("sha256") != json_sha(record) or record["key"] != json.loads(json.dumps(key)):
            raise ValueError("it was changed after it was written")
        return record["negatives"], record["facts"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if warn:
            logger.warning("%s: cannot be used (%s); choosing the negatives again", path, error)
        return None


def _choose(
    data: RetrievalData,
    config: Tier1Config,
    retriever: BaselineRetriever | None,
    activations: ActivationStore | None,
) -> tuple[Negatives, Facts]:
    hard_wanted = int(config.num_negatives * config.hard_negative_ratio + 0.5)
    kept_out: Counter[str] = Counter()
    negatives: Negatives = {}
    sources: dict[str, int] = {}
    for source, part in _by_source(data, config):
        sources[source] = len(part)
        if source == "given":
            corpus, candidates = data.corpus, _given(part, kept_out)
        else:
            miner = _Bm25(part, config) if source == "bm25" else _Dense(part, config, retriever, activations)
            corpus, candidates = miner.corpus, _mined(part, miner, config.negative_margin, kept_out)
        for query_id, rows in zip(part.query_ids, candidates, strict=True):
            negatives[query_id] = Screen(data, corpus, query_id, kept_out).first(rows, hard_wanted)
    hard = sum(map(len, negatives.values()))
    without = sum(not chosen for chosen in negatives.values()) if hard_wanted else 0
    for query_id in data.query_ids if hard_wanted < config.num_negatives else ():
        negatives[query_id] += _random(data, query_id, config, negatives[query_id], config.num_negatives - hard_wanted)
    facts = {
        "source": config.negative_source,
        "queries_by_source": sources,
        "hard": hard,
        "drawn_from_the_corpus": sum(map(len, negatives.values())) - hard,
        "kept_out": {reason: count for reason, count in sorted(kept_out.items()) if count},
        "queries_without_a_hard_one": without,
        "margin": config.negative_margin,
    }
    return {query_id: negatives[query_id] for query_id in data.query_ids}, facts


def _by_source(data: RetrievalData, config: Tier1Config) -> Iterator[tuple[str, RetrievalData]]:
    """The part of the split that each source serves."""
    if config.negative_source != "auto":
        yield config.negative_source, data
        return
    for source, given in (("given", True), ("bm25", False)):
        ids = [query_id for query_id in data.query_ids if bool(data.negatives.get(query_id)) is given]
        if ids:
            yield source, data.only(ids)


def _given(data: RetrievalData, kept_out: Counter[str]) -> Iterator[np.ndarray]:
    """Rows of each query's given negatives that are in the corpus."""
    for query_id in data.query_ids:
        rows = data.corpus.rows_of(list(dict.fromkeys(data.negatives.get(query_id, ()))))
        kept_out["not in the corpus"] += int((rows < 0).sum())
        yield rows[rows >= 0]


class Miner(Protocol):
    """Something that ranks the training corpus for the queries of a split."""

    corpus: Corpus

    def search(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows (Q, 100), -1 where there are no more, and scores, best first."""

    def scores(self, query: int, rows: np.ndarray) -> np.ndarray:
        """The scores of rows for the query at position `query` of the split."""


class _Bm25:
    def __init__(self, data: RetrievalData, config: Tier1Config):
        self.corpus, self.queries = data.corpus, data.queries
        self.index = Bm25Index.cached(self.corpus, cache_folder(config) / "bm25")

    def search(self) -> tuple[np.ndarray, np.ndarray]:
        return self.index.search(self.queries, DEPTH, "hard negatives")

    def scores(self, query: int, rows: np.ndarray) -> np.ndarray:
        return self.index.scores(self.queries[query], rows)


class _Dense:
    def __init__(
        self,
        data: RetrievalData,
        config: Tier1Config,
        retriever: BaselineRetriever,
        activations: ActivationStore | None,
    ):
        self.corpus, _ = sample_corpus(data, config.corpus_size, config)
        embedder = Embedder(retriever, config, retriever.device, activations)
        self.queries, self.passages = (
            embedder.encode(texts, kind, f"hard negatives: {kind} texts", fill=True).embeddings
            for texts, kind in ((ListTexts(data.queries), "query"), (self.corpus, "document"))
        )
        self.device = retriever.device

    def search(self) -> tuple[np.ndarray, np.ndarray]:
        queries = torch.from_numpy(self.queries).to(self.device)
        scores, rows = top_k(queries, self.passages, DEPTH, self.corpus.tie_order())
        return rows.numpy(), scores.numpy()

    def scores(self, query: int, rows: np.ndarray) -> np.ndarray:
        return self.passages[rows] @ self.queries[query]


def _mined(data: RetrievalData, miner: Miner, margin: float, kept_out: Counter[str]) -> Iterator[np.ndarray]:
    """Rows of each query's best passages whose score is not too near the positive's."""
    with stage("search"):
        rows, scores = miner.search()
    for number, query_id in enumerate(track(data.query_ids, "hard negatives", "query")):
        relevant = miner.corpus.rows_of(_relevant(data, query_id))
        relevant = relevant[relevant >= 0]
        other = (rows[number] >= 0) & ~np.isin(rows[number], relevant)
        fits = scores[number] <= limit(miner.scores(number, relevant), margin)
        kept_out["score above the margin"] += int((other & ~fits).sum())
        yield rows[number][other & fits]


def limit(positive_scores: np.ndarray, margin: float) -> float:
    """The highest score that a mined negative may have beside positives of these scores."""
    highest = float(positive_scores.max())
    return highest - (1 - margin) * abs(highest)


def _relevant(data: RetrievalData, query_id: str) -> list[str]:
    return [passage for passage, grade in data.qrels[query_id].items() if grade >= 1]


class Screen:
    """Keeps from one query's negatives what is relevant to it.

    Args:
        data: judgements and answers.
        corpus: whose rows are screened; relevant passages may lie in it or in the split's own corpus.
        query_id: the query.
        kept_out: counts what is kept out, by reason.
    """

    def __init__(self, data: RetrievalData, corpus: Corpus, query_id: str, kept_out: Counter[str]):
        self.corpus, self.kept_out = corpus, kept_out
        self.relevant = set(_relevant(data, query_id))
        rows = data.corpus.rows_of(sorted(self.relevant))
        self.texts = {normalise(text) for text in data.corpus.take(rows[rows >= 0])}
        self.answers = data.answers.get(query_id, [])

    def first(self, rows: Iterable[int], count: int, besides: Sequence[str] = ()) -> list[str]:
        """Ids of the first `count` rows that may be negatives, without those in `besides`."""
        rows, chosen = list(rows), []
        for start in range(0, len(rows), LOOKED_AT_ONCE):
            if len(chosen) >= count:
                break
            chosen += self._fitting(rows[start : start + LOOKED_AT_ONCE], count - len(chosen), besides)
        return chosen

    def _fitting(self, rows: Sequence[int], count: int, besides: Sequence[str]) -> list[str]:
        texts, chosen = self.corpus.take(rows), []
        answering = contains_answer(texts, self.answers) if self.answers else np.zeros(len(rows), bool)
        for identifier, text, answers in zip(self.corpus.id_of(rows), texts, answering, strict=True):
            reason = self._reason(identifier, text, bool(answers))
            if reason:
                self.kept_out[reason] += 1
            elif identifier not in besides:
                chosen.append(identifier)
            if len(chosen) == count:
                break
        return chosen

    def _reason(self, identifier: str, text: str, answers: bool) -> str | None:
        if identifier in self.relevant:
            return "judged relevant"
        if normalise(text) in self.texts:
            return "copy of a relevant passage"
        return "holds an answer" if answers else None


def _random(data: RetrievalData, query_id: str, config: Tier1Config, besides: Sequence[str], count: int) -> list[str]:
    """Ids drawn from the whole corpus for one query, none of them in `besides`."""
    hashes, row_of = data.corpus.id_hashes()
    screen, chosen = Screen(data, data.corpus, query_id, Counter()), list(besides)
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
