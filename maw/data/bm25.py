"""BM25 over a corpus of any size, from an index on disk that is built once in bounded memory.

    index = Bm25Index.cached(corpus, cache_folder(config) / "bm25")
    rows, scores = index.search(queries, 30)

The corpus sampling (`maw.data.corpus_sampling`) and the hard negatives (`maw.training.hard_negatives`) ask it.
Tantivy does the work: its postings stay on disk, where bm25s would hold those of 21 million passages in memory.

Analysis, of passages and queries alike: maximal runs of letters and digits; tokens of 40 bytes or more dropped; lower
case; the 33 stop words of Lucene's English analyzer dropped; English Snowball stemmer. A query is a bag of the tokens
found in it and nothing in it is syntax; a token that occurs twice counts twice. A query of stop words alone finds
nothing. k1 = 1.2 and b = 0.75, which Tantivy fixes.

The index only nominates. The order comes from scores computed here in float64, token by token in one fixed order, from
the passages' own text; equal scores go by id, descending by bytes, as in `Corpus.tie_order`. Tantivy's float32 sums
differ in the last digits with the order of summation, so more than k passages are fetched, until the last of them
scores clearly below the k-th; no rounding can then decide who is among the k. What comes back therefore depends on the
passages alone, not on their order, the process or the number of threads. The one limit: where more than `MOST_TIED`
passages share the score at the cut, the index chooses which of them are compared.

Source: Robertson and Zaragoza 2009; idf = ln(1 + (N - n + 0.5) / (n + 0.5)) and lengths kept in one byte, exact up to
40 tokens and rounded down above, both as in Lucene (SmallFloat.intToByte4).
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import tantivy

from maw.data import store
from maw.data.corpus import Corpus
from maw.errors import DataError
from maw.runtime.progress_bars import track
from maw.storage import cache_entry

logger = logging.getLogger(__name__)

K1, B = 1.2, 0.75
# fmt: off
STOP_WORDS = [
    "a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it", "no", "not", "of",
    "on", "or", "such", "that", "the", "their", "then", "there", "these", "they", "this", "to", "was", "will", "with",
]
# fmt: on
SETTINGS = {
    "engine": tantivy.__version__,
    "analyzer": "simple, shorter than 40 bytes, lower case, Lucene's 33 English stop words, English Snowball stemmer",
    "layout": 1,
}
TEXT, ROW, ANALYZER = "text", "row", "maw_english"
HEAP_BYTES = 128_000_000
MARGIN = 16  # passages fetched beyond k at first
CLEARLY = 1e-4  # relative difference far above the error of a float32 sum
MOST_TIED = 20_000
WHAT = "the BM25 index"


class Bm25Index:
    """The BM25 index of one corpus; make it with `Bm25Index.cached`.

    Attributes:
        corpus: the corpus whose rows it finds.
        mean_length: mean number of tokens in a passage.
    """

    def __init__(self, corpus: Corpus, index: tantivy.Index):
        self.corpus = corpus
        self._schema, self._analyzer = _schema(), _analyzer()
        index.register_tokenizer(ANALYZER, self._analyzer)
        self._searcher = index.searcher()
        self.mean_length = self._mean_length()

    def search(self, queries: Sequence[str], k: int, label: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The k best passages of each query, among those that share a token with it.

        Args:
            queries: (Q,) texts.
            k: how many, at most.
            label: of the progress bar; None for no bar.

        Returns:
            Rows (Q, k) int64, best first and -1 where there are no more, and scores (Q, k) float64, 0 there.
        """
        rows, scores = np.full((len(queries), k), -1, np.int64), np.zeros((len(queries), k))
        for number, query in enumerate(track(queries, label or "", "query", shown=label is not None)):
            found = self._nominate(query, k)
            if found.size:
                exact = self.scores(query, found)
                order = _best_first(exact, self.corpus.id_of(found))[:k]
                rows[number, : len(order)], scores[number, : len(order)] = found[order], exact[order]
        return rows, scores

    def scores(self, query: str, rows: Sequence[int]) -> np.ndarray:
        """The BM25 score of each of `rows`, (len(rows),) float64; 0 for a passage without a token of the query."""
        weights = self._weights(self._tokens(query))
        return np.array([self._score(weights, self._tokens(text)) for text in self.corpus.take(rows)], np.float64)

    def _tokens(self, text: str) -> list[str]:
        return self._analyzer.analyze(text.encode("utf-8", "replace").decode())

    def _weights(self, tokens: Sequence[str]) -> dict[str, float]:
        """token -> its share of a score before term frequency, in one order for all who ask."""
        count, weights = len(self.corpus), {}
        for token, times in sorted(Counter(tokens).items()):
            holders = self._searcher.doc_freq(TEXT, token)
            if holders:
                weights[token] = times * (1 + K1) * math.log1p((count - holders + 0.5) / (holders + 0.5))
        return weights

    def _score(self, weights: dict[str, float], tokens: Sequence[str]) -> float:
        if not weights or not tokens:
            return 0.0
        norm = K1 * (1 - B + B * stored_length(len(tokens)) / self.mean_length)
        frequency = Counter(tokens)
        return sum(weight * frequency[token] / (frequency[token] + norm) for token, weight in weights.items())

    def _nominate(self, query: str, k: int) -> np.ndarray:
        """Rows that hold the k best and whatever Tantivy cannot tell from them, in no particular order."""
        tokens = self._tokens(query)
        if not tokens:
            return np.empty(0, np.int64)
        clauses = [(tantivy.Occur.Should, tantivy.Query.term_query(self._schema, TEXT, t, "freq")) for t in tokens]
        clauses, limit = tantivy.Query.boolean_query(clauses), k + MARGIN
        while True:
            hits = self._searcher.search(clauses, limit, count=False).hits
            if len(hits) < limit or hits[-1][0] < hits[k - 1][0] * (1 - CLEARLY) or limit >= k + MOST_TIED:
                break
            limit = min(4 * limit, k + MOST_TIED)
        return np.array(self._searcher.fast_field_values(ROW, [address for _, address in hits]), np.int64)

    def _mean_length(self) -> float:
        """What Tantivy divides lengths by, from its explanation of any score."""
        for token, _ in self._searcher.terms_with_prefix(TEXT, "", limit=1):
            query = tantivy.Query.term_query(self._schema, TEXT, token, "freq")
            ((_, address),) = self._searcher.search(query, 1).hits
            return next(_values(json.loads(query.explain(self._searcher, address).to_json()), "avgdl"))
        return 1.0  # no passage has a token, and no length matters

    @classmethod
    def cached(cls, corpus: Corpus, folder: Path) -> Bm25Index:
        """Opens the corpus's index in `folder`, or builds it there first; once among processes.

        An index that is damaged is built anew with a warning.

        Args:
            corpus: any corpus; its fingerprint, the analysis and Tantivy's version name the index.
            folder: where indexes are kept, one subfolder each.

        Raises:
            DataError: the folder cannot be written.
        """
        source = SETTINGS | {"corpus": corpus.fingerprint}
        folder = Path(folder) / cache_entry.json_sha(source)[:24]
        index = _usable(folder, source)
        if index is None:
            with cache_entry.only_builder(folder, WHAT):
                index = _usable(folder, source, warn=True)
                if index is None:
                    with cache_entry.new_folder(folder, WHAT) as temporary:
                        _build(corpus, temporary, source)
                    index = tantivy.Index.open(str(folder))
        return cls(corpus, index)


def stored_length(tokens: int) -> int:
    """The length that the index keeps of a passage: exact up to 40 tokens, then 4 significant bits of the rest."""
    beyond = tokens - 24
    shift = max(0, beyond.bit_length() - 4)
    return tokens if beyond < 16 else 24 + (beyond >> shift << shift)


def _best_first(scores: np.ndarray, ids: Sequence[str]) -> list[int]:
    """Positions by score descending, then id descending by bytes."""
    encoded = [identifier.encode() for identifier in ids]
    return sorted(range(len(encoded)), key=lambda i: (scores[i], encoded[i]), reverse=True)


def _analyzer() -> tantivy.TextAnalyzer:
    steps = tantivy.Filter
    builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
    for step in (
        steps.remove_long(40),
        steps.lowercase(),
        steps.custom_stopword(STOP_WORDS),
        steps.stemmer("english"),
    ):
        builder = builder.filter(step)
    return builder.build()


def _schema() -> tantivy.Schema:
    builder = tantivy.SchemaBuilder()
    builder.add_text_field(TEXT, tokenizer_name=ANALYZER, index_option="freq")
    builder.add_integer_field(ROW, fast=True)
    return builder.build()


def _build(corpus: Corpus, folder: Path, source: dict[str, Any]) -> None:
    """Writes the index of a corpus into an empty folder, its manifest last."""
    try:
        index = tantivy.Index(_schema(), str(folder))
        index.register_tokenizer(ANALYZER, _analyzer())
        writer = index.writer(HEAP_BYTES, num_threads=1)
        for row, text in enumerate(track(_texts(corpus), "BM25 index", "passage", total=len(corpus))):
            writer.add_document(tantivy.Document(text=text, row=row))
        writer.commit()
        writer.wait_merging_threads()
    except ValueError as error:  # what Tantivy makes of a full disk
        raise OSError(str(error)) from error
    cache_entry.write_manifest(folder, count=len(corpus), source=source)


def _texts(corpus: Corpus) -> Iterator[str]:
    """Title and text of every passage in row order, from Arrow, a few thousand at a time."""
    for batch in corpus.dataset.data.to_batches(max_chunksize=store.BATCH_ROWS):
        yield from pc.binary_join_element_wise(batch["title"], batch["text"], " ").to_pylist()


def _usable(folder: Path, source: dict[str, Any], warn: bool = False) -> tantivy.Index | None:
    if not folder.exists():
        return None
    try:
        manifest = cache_entry.read_manifest(folder)
        if manifest["source"] != source:
            return None
        cache_entry.check_files(folder, manifest, once=True)
        return tantivy.Index.open(str(folder))
    except (DataError, ValueError) as error:
        if warn:
            logger.warning("%s; building the index again", error)
        return None


def _values(explanation: dict[str, Any], name: str) -> Iterator[float]:
    """The values that a nested explanation gives under descriptions that begin with `name`."""
    if explanation["description"].startswith(name):
        yield explanation["value"]
    for part in explanation.get("details", ()):
        yield from _values(part, name)
