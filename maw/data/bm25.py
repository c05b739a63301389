"""BM25 over a corpus of any size, with an index on disk that is built once in bounded memory.

    index = Bm25Index.cached(corpus, cache_folder(config) / "bm25")
    rows, scores = index.search(queries, 30)

Corpus sampling (`maw.data.corpus_sampling`) and hard negatives (`maw.training.hard_negatives`) use it. The engine is
Tantivy, whose postings stay on disk; bm25s would hold those of 21 million passages in memory.

Analysis of passages and queries: maximal runs of letters and digits; tokens of 40 bytes or more dropped; lower case;
the 33 stop words of Lucene's English analyzer dropped; English Snowball stemmer. A query is a bag of tokens without
any syntax; a token that occurs twice counts twice. A query of only stop words finds nothing. Tantivy fixes k1 = 1.2
and b = 0.75.

The index only finds candidates. Their order comes from scores that are computed here in float64 from the passages'
text, token by token in a fixed order; ties are sorted by id, descending by bytes, as in `Corpus.tie_order`. Tantivy's
float32 sums depend on the order of summation in their last digits, so more than k candidates are fetched, until the
last one scores clearly below the k-th; rounding then cannot change the k best. Results therefore depend only on the
passages, not on their order, the process or the number of threads. One limit: if more than `MOST_TIED` passages share
the score at the cut, the index chooses which of them are compared.

Source: Robertson and Zaragoza 2009; idf = ln(1 + (N - n + 0.5) / (n + 0.5)) and lengths stored in one byte, exact up
to 40 tokens and rounded down above, both as in Lucene (SmallFloat.intToByte4).
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
MARGIN = 16  # candidates beyond k that are fetched first
CLEARLY = 1e-4  # relative difference, far above the error of a float32 sum
MOST_TIED = 20_000
WHAT = "the BM25 index"


class Bm25Index:
    """The BM25 index of one corpus; open it with `Bm25Index.cached`."""

    def __init__(self, corpus: Corpus, index: tantivy.Index):
        self.corpus = corpus
        self._schema, self._analyzer = _schema(), _analyzer()
        index.register_tokenizer(ANALYZER, self._analyzer)
        self._searcher = index.searcher()
        self.mean_length = self._mean_length()

    def search(self, queries: Sequence[str], k: int, label: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Finds the k best passages of each query, among those that share a token with it.

        Args:
            queries: (Q,) texts.
            k: largest number of passages per query.

        Returns:
            Rows (Q, k) int64, best first, then -1; and scores (Q, k) float64, 0 for row -1.
        """
        rows, scores = np.full((len(queries), k), -1, np.int64), np.zeros((len(queries), k))
        for number, query in enumerate(track(queries, label or "", "query", shown=label is not None)):
            found = self._candidates(query, k)
            if found.size:
                exact = self.scores(query, found)
                ids = [identifier.encode() for identifier in self.corpus.id_of(found)]
                order = sorted(range(len(ids)), key=lambda i: (exact[i], ids[i]), reverse=True)[:k]
                rows[number, : len(order)], scores[number, : len(order)] = found[order], exact[order]
        return rows, scores

    def scores(self, query: str, rows: Sequence[int]) -> np.ndarray:
        """BM25 scores of `rows`, (len(rows),) float64; 0 for a passage without a token of the query."""
        weights, scores = self._weights(self._tokens(query)), np.zeros(len(rows))
        for index, text in enumerate(self.corpus.take(rows) if weights else ()):
            tokens = self._tokens(text)
            frequency, norm = Counter(tokens), K1 * (1 - B + B * stored_length(len(tokens)) / self.mean_length)
            scores[index] = sum(w * frequency[token] / (frequency[token] + norm) for token, w in weights.items())
        return scores

    def _tokens(self, text: str) -> list[str]:
        return self._analyzer.analyze(text.encode("utf-8", "replace").decode())

    def _weights(self, tokens: Sequence[str]) -> dict[str, float]:
        """Token -> weight before term frequency, in a fixed order."""
        count, weights = len(self.corpus), {}
        for token, times in sorted(Counter(tokens).items()):
            holders = self._searcher.doc_freq(TEXT, token)
            if holders:
                weights[token] = times * (1 + K1) * math.log1p((count - holders + 0.5) / (holders + 0.5))
        return weights

    def _candidates(self, query: str, k: int) -> np.ndarray:
        """Rows of the k best passages and of all that Tantivy cannot tell from them, unordered."""
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
        """The mean length that Tantivy uses, from its explanation of any score."""
        for token, _ in self._searcher.terms_with_prefix(TEXT, "", limit=1):
            query = tantivy.Query.term_query(self._schema, TEXT, token, "freq")
            ((_, address),) = self._searcher.search(query, 1).hits
            return next(_values(json.loads(query.explain(self._searcher, address).to_json()), "avgdl"))
        return 1.0  # no passage has a token, so the value is never used

    @classmethod
    def cached(cls, corpus: Corpus, folder: Path) -> Bm25Index:
        """Opens the corpus's index in `folder`, or builds it first; only one process builds.

        The index has a subfolder named by the corpus's fingerprint, the analysis and Tantivy's version. A damaged
        index is rebuilt with a warning.

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
    """The length that the index stores for a passage: exact up to 40 tokens, then 4 significant bits of the excess."""
    beyond = tokens - 24
    shift = max(0, beyond.bit_length() - 4)
    return tokens if beyond < 16 else 24 + (beyond >> shift << shift)


def _analyzer() -> tantivy.TextAnalyzer:
    steps = tantivy.Filter
    builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple()).filter(steps.remove_long(40))
    builder = builder.filter(steps.lowercase()).filter(steps.custom_stopword(STOP_WORDS))
    return builder.filter(steps.stemmer("english")).build()


def _schema() -> tantivy.Schema:
    builder = tantivy.SchemaBuilder()
    builder.add_text_field(TEXT, tokenizer_name=ANALYZER, index_option="freq")
    builder.add_integer_field(ROW, fast=True)
    return builder.build()


def _build(corpus: Corpus, folder: Path, source: dict[str, Any]) -> None:
    """Writes the index of a corpus to an empty folder, its manifest last."""
    try:
        index = tantivy.Index(_schema(), str(folder))
        index.register_tokenizer(ANALYZER, _analyzer())
        writer = index.writer(HEAP_BYTES, num_threads=1)
        for row, text in enumerate(track(_texts(corpus), "BM25 index", "passage", total=len(corpus))):
            writer.add_document(tantivy.Document(text=text, row=row))
        writer.commit()
        writer.wait_merging_threads()
    except ValueError as error:  # Tantivy's error for a full disk
        raise OSError(str(error)) from error
    cache_entry.write_manifest(folder, count=len(corpus), source=source)


def _texts(corpus: Corpus) -> Iterator[str]:
    """Title and text of every passage in row order, read from Arrow in batches."""
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
    """Values in a nested explanation whose description begins with `name`."""
    if explanation["description"].startswith(name):
        yield explanation["value"]
    for part in explanation.get("details", ()):
        yield from _values(part, name)
