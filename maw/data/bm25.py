"""BM25 over a corpus of any size, with an index on disk that is built once in bounded memory.

    index = Bm25Index.cached(corpus, cache_folder(config) / "bm25")
    rows, scores = index.search(queries, 30)

Corpus sampling (`maw.data.corpus_sampling`) and hard negatives (`maw.training.hard_negatives`) use it. The engine is
Tantivy, whose postings stay on disk; bm25s would hold those of 21 million passages in memory.

Analysis of passages and queries: maximal runs of letters and digits with their marks; words of 40 characters or more
dropped; lower case; the 33 stop words of Lucene's English analyzer dropped; English Snowball stemmer. In scripts
without blanks between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese, ...) and in Hangul, every character with
its marks is a token, and so is every pair of neighbours, as in Lucene's CJKBigramFilter with unigrams. One word is one
token in every Unicode form: composed or not, full or half width, with or without Arabic and Hebrew vowel points or
unseen characters. A query is a bag of tokens without any syntax; a token that occurs twice counts twice. A query of
only stop words, or of emoji, finds nothing. Tantivy fixes k1 = 1.2 and b = 0.75.

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

import itertools
import json
import logging
import math
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import regex
import tantivy

from maw.data import store
from maw.data.corpus import Corpus
from maw.data.normalise import CHARACTER
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
    "analyzer": "words shorter than 40 characters, characters and their pairs in scripts without blanks, lower case, "
    "Lucene's 33 English stop words, English Snowball stemmer",
    "layout": 2,
}
TEXT, ROW, ANALYZER = "text", "row", "maw_english"
HEAP_BYTES = 128_000_000
MARGIN = 16  # candidates beyond k that are fetched first
CLEARLY = 1e-4  # relative difference, far above the error of a float32 sum
MOST_TIED = 20_000
WHAT = "the BM25 index"
_ASCII_BLANKS = {point: " " for point in range(128) if not chr(point).isalnum()}
_TOO_LONG = regex.compile(r"\S{40,}")
# Thai, Lao, Chinese, Japanese, Korean, forms of Arabic and Hebrew, widths and ligatures. Of other scripts, NFKC would
# join ™ and ² to the word before them.
_FORMS = regex.compile(r"[\u0e00-\u0eff\u2e80-\uffef]+")
# With vowel points and tatweel; without the zero-width space, which separates words.
_UNSEEN = regex.compile(
    r"[[\p{Default_Ignorable_Code_Point}\p{Me}[\p{Hebrew}&&\p{Mn}]\u0640\u064b-\u0652\u0670]--\u200b]", regex.V1
)
_CHARACTER = regex.compile(CHARACTER, regex.V1)
_UNSPACED_RUN = regex.compile(rf"(?:{CHARACTER}\u200b*)+", regex.V1)
_WORD = regex.compile(r"[\p{Alphabetic}\p{N}][\p{Alphabetic}\p{N}\p{M}]*")


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
        return self._analyzer.analyze(spaced(text.encode("utf-8", "replace").decode()))

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


def spaced(text: str) -> str:
    """The words of a text, and the pairs of characters of a script without blanks, with blanks between them."""
    if text.isascii():  # a fast path: the same words
        words = text.translate(_ASCII_BLANKS)
    else:
        text = _FORMS.sub(lambda run: unicodedata.normalize("NFKC", run[0]), _UNSEEN.sub("", text))
        text = _UNSPACED_RUN.sub(_singles_and_pairs, unicodedata.normalize("NFC", text))
        words = " ".join(_WORD.findall(text))
    return _TOO_LONG.sub("", words)


def _singles_and_pairs(run: regex.Match[str]) -> str:
    characters = _CHARACTER.findall(run[0])
    return f" {' '.join([*characters, *map(''.join, itertools.pairwise(characters))])} "


def _analyzer() -> tantivy.TextAnalyzer:
    """Analyses texts that `spaced` has made ready: Tantivy's own tokenizer cuts words at marks."""
    steps = tantivy.Filter
    builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.whitespace()).filter(steps.lowercase())
    return builder.filter(steps.custom_stopword(STOP_WORDS)).filter(steps.stemmer("english")).build()


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
    """Title and text of every passage in row order, made ready for the index, read from Arrow in batches."""
    for batch in corpus.dataset.data.to_batches(max_chunksize=store.BATCH_ROWS):
        yield from map(spaced, pc.binary_join_element_wise(batch["title"], batch["text"], " ").to_pylist())


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
