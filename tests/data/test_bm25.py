"""BM25 from an index on disk: the formula by hand, an independent implementation, ties, hostile queries, the cache."""

from __future__ import annotations

import logging
import math
import random
from collections import Counter

import numpy as np
import pytest
import tantivy

from data import unspaced
from maw.data import bm25
from maw.data.bm25 import Bm25Index, stored_length
from maw.data.corpus import Corpus
from maw.data.datasets import pystdlib

WORDS = [f"w{letter}{other}" for letter in "abcdefgh" for other in "bcdfg"]


def corpus_of(texts, ids=None, titles=None):
    return Corpus.from_lists(ids or [f"d{i}" for i in range(len(texts))], texts, titles)


def random_passages(count, seed=0, longest=60):
    source = random.Random(seed)
    weights = [1 / (i + 1) for i in range(len(WORDS))]
    return [" ".join(source.choices(WORDS, weights, k=source.randint(1, longest))) for _ in range(count)]


def by_hand(query, texts, k1=1.2, b=0.75):
    """BM25 written out, for texts of fewer than 40 plain words."""
    docs = [text.split() for text in texts]
    mean = sum(map(len, docs)) / len(docs)
    scores = []
    for doc in docs:
        total = 0.0
        for word in query.split():
            holders = sum(word in other for other in docs)
            idf = math.log(1 + (len(docs) - holders + 0.5) / (holders + 0.5))
            tf = doc.count(word)
            total += idf * tf * (k1 + 1) / (tf + k1 * (1 - b + b * len(doc) / mean))
        scores.append(total)
    return scores


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    corpus = corpus_of(random_passages(800, longest=400))
    return corpus, Bm25Index.cached(corpus, tmp_path_factory.mktemp("bm25"))


def test_scores_are_those_of_the_formula(tmp_path):
    texts = random_passages(30, longest=39)
    index = Bm25Index.cached(corpus_of(texts), tmp_path)
    for query in ("wab", "wab wgf", "wab wab wac nowhere", " ".join(WORDS)):
        expected = by_hand(query, texts)
        np.testing.assert_allclose(index.scores(query, range(30)), expected, rtol=1e-6)
        rows, scores = index.search([query], 30)
        found = sorted((row for row in range(30) if expected[row]), key=lambda row: (-expected[row], -row))
        assert len(found) > 2
        np.testing.assert_allclose(scores[0, : len(found)], [expected[row] for row in found], rtol=1e-6)
        assert rows[0, len(found) :].tolist() == [-1] * (30 - len(found))
        assert not scores[0, len(found) :].any()


def test_stored_lengths_are_lucenes():
    def byte_to_length(byte):  # SmallFloat.byte4ToInt
        if byte < 24:
            return byte
        bits, shift = (byte - 24) & 7, ((byte - 24) >> 3) - 1
        return 24 + (bits if shift < 0 else (bits | 8) << shift)

    representable = [byte_to_length(byte) for byte in range(256)]
    for tokens in [*range(3000), 12345, 10**6]:
        assert stored_length(tokens) == max(length for length in representable if length <= tokens)
    assert [stored_length(n) for n in (39, 40, 41, 57)] == [39, 40, 40, 56]


def test_scores_are_the_index_own_up_to_rounding(many):
    """Long passages too, whose lengths the index rounds."""
    _, index = many
    query = "wab wbc whg"
    clauses = [
        (tantivy.Occur.Should, tantivy.Query.term_query(index._schema, bm25.TEXT, word, "freq"))
        for word in query.split()
    ]
    hits = index._searcher.search(tantivy.Query.boolean_query(clauses), 800).hits
    rows = index._searcher.fast_field_values(bm25.ROW, [address for _, address in hits])
    assert len(rows) > 500
    np.testing.assert_allclose(index.scores(query, rows), [score for score, _ in hits], rtol=1e-5)


def test_the_order_is_that_of_all_scores_with_ties_by_id(many):
    corpus, index = many
    queries = ["wab", "wbg wcd", "whg whf whd", "wab wab wbb"]
    rows, scores = index.search(queries, 25)
    for number, query in enumerate(queries):
        every = index.scores(query, range(len(corpus)))
        best = sorted(range(len(corpus)), key=lambda row: (every[row], corpus.ids[row].encode()), reverse=True)
        assert rows[number].tolist() == best[:25]
        np.testing.assert_array_equal(scores[number], every[best[:25]])


def test_against_bm25s(tmp_path):
    import bm25s

    texts = random_passages(300, seed=3, longest=39)
    reference = bm25s.BM25(k1=1.2, b=0.75, method="lucene")
    reference.index([text.split() for text in texts], show_progress=False)
    queries = random_passages(20, seed=4, longest=4)
    rows, scores = reference.retrieve([query.split() for query in queries], k=300, show_progress=False)
    expected = np.zeros((20, 300))
    np.put_along_axis(expected, rows, 2.2 * scores, 1)  # bm25s leaves the factor k1 + 1 out
    index = Bm25Index.cached(corpus_of(texts), tmp_path)
    ours = np.array([index.scores(query, range(300)) for query in queries])
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
    best, _ = index.search(queries, 10)
    for number, row in enumerate(best):
        tenth = np.sort(expected[number])[-10]
        assert (expected[number][row] > tenth * 0.9999).all()


def ids_found(texts_by_id, order, query, k, folder):
    ids = sorted(texts_by_id)
    random.Random(order).shuffle(ids)
    corpus = corpus_of([texts_by_id[i] for i in ids], ids)
    rows, _ = Bm25Index.cached(corpus, folder).search([query], k)
    return corpus.id_of(rows[0][rows[0] >= 0])


TIED = {f"t{i:03}": "wab wac wad" for i in range(300)} | {f"x{i}": f"wab wbb w{i}" for i in range(50)}


def test_ties_across_the_cut_go_by_id_whatever_the_order(tmp_path):
    expected = [f"t{i:03}" for i in range(299, 279, -1)]
    for order in range(3):
        assert ids_found(TIED, order, "wac", 20, tmp_path) == expected


def test_the_test_of_ties_would_notice_a_plain_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(bm25, "MARGIN", 0)
    monkeypatch.setattr(bm25, "MOST_TIED", 0)
    found = {tuple(ids_found(TIED, order, "wac", 20, tmp_path)) for order in range(3)}
    assert len(found) > 1


def test_order_of_the_corpus_makes_no_difference(tmp_path):
    texts = {f"d{i}": text for i, text in enumerate(random_passages(400, seed=5, longest=8))}
    for query in ("wab", "wab wac wad wbb", "whg wgf"):
        assert len({tuple(ids_found(texts, order, query, 30, tmp_path)) for order in range(4)}) == 1


@pytest.mark.parametrize(
    "query",
    [
        "",
        " ",
        '"',
        "AND (",
        "a OR",
        "((((",
        "text:",
        "+",
        "-",
        "*",
        "?",
        "~2",
        "^",
        "/",
        "[a TO",
        "\0",
        "\ud800",
        "the",
    ],
)
def test_a_query_without_any_word_finds_nothing(many, query):
    rows, scores = many[1].search([query], 3)
    assert rows.tolist() == [[-1] * 3] and not scores.any()


@pytest.mark.parametrize(
    "query",
    ["+wab", "-wab", "NOT wab", "text:wab^3", '"wab', "row:0 wab", "wab~", "{wab", "wab\\", "WAB!", "\ud800wab"],
)
def test_syntax_in_a_query_means_nothing(many, query):
    plain, _ = many[1].search(["wab"], 5)
    found, _ = many[1].search([query], 5)
    assert found.tolist() == plain.tolist()


def test_analysis_is_english(tmp_path):
    texts = ["Cats are running", "the cat ran", "a dog's bark", "über cool", "x" * 60]
    index = Bm25Index.cached(corpus_of(texts), tmp_path)

    def found(query):
        return sorted(row for row in index.search([query], 5)[0][0] if row >= 0)

    assert found("CAT") == [0, 1]
    assert found("run") == [0]
    assert found("dogs") == [2]
    assert found("Über") == [3]
    assert found("are the a") == found("x" * 60) == []


def tokens(text):
    return bm25._analyzer().analyze(bm25.spaced(text))


@pytest.mark.parametrize("language", unspaced.LANGUAGES)
def test_a_sentence_finds_its_passage_in_languages_without_blanks(language, tmp_path):
    """60 sentences of 200 passages, whole and without their first and last sixth, which cuts words."""
    passages = unspaced.passages(language, 200)
    texts = [unspaced.text_of(language, sentences) for sentences in passages]
    index = Bm25Index.cached(corpus_of(texts), tmp_path)
    source = random.Random(1)
    homes = source.sample(range(200), 60)
    queries = [source.choice(passages[home]) for home in homes]
    inner = [query[len(query) // 6 : -len(query) // 6] for query in queries]
    assert not set(inner) & set(queries)
    for asked in (queries, inner):
        rows, _ = index.search(asked, 10)
        assert sum(home in row for home, row in zip(homes, rows, strict=True)) >= 57
        assert (rows >= 0).sum() >= 10 * 57


@pytest.mark.parametrize(
    "text, expected",
    [
        ("\u6211\u5728\u5317\u4eac\u3002", "\u6211 \u5728 \u5317 \u4eac \u6211\u5728 \u5728\u5317 \u5317\u4eac"),
        ("\u6c34", "\u6c34"),
        ("\u30bf\u30ef\u30fc 3\u968e", "\u30bf \u30ef \u30fc \u30bf\u30ef \u30ef\u30fc 3 \u968e"),
        ("PyTorch\u3092\u4f7f\u3046", "pytorch \u3092 \u4f7f \u3046 \u3092\u4f7f \u4f7f\u3046"),
        (
            "\u0e04\u0e19\u0e14\u0e35",
            "\u0e04 \u0e19 \u0e14\u0e35 \u0e04\u0e19 \u0e19\u0e14\u0e35",
        ),  # a vowel above its letter
        ("\ud55c\uad6d", "\ud55c \uad6d \ud55c\uad6d"),
        ("\u4e00\U00020000", "\u4e00 \U00020000 \u4e00\U00020000"),  # beyond the first plane
    ],
)
def test_characters_and_their_pairs_are_the_words_of_scripts_without_blanks(text, expected):
    assert tokens(text) == expected.split()


@pytest.mark.parametrize(
    "one, other",
    [
        ("caf\u00e9", "cafe\u0301"),
        ("\uff21\uff22\uff23\uff11", "abc1"),
        ("\uff76\uff9e\uff97\uff7d", "\u30ac\u30e9\u30b9"),  # half-width Katakana
        ("\u0e19\u0e49\u0e33", "\u0e19\u0e49\u0e4d\u0e32"),  # Thai am, and its two parts
        ("\u0edd\u0eb2", "\u0eab\u0ea1\u0eb2"),  # Lao ho mo, one character or two
        ("\u1797\u17b6\u200b\u179f\u17b6", "\u1797\u17b6\u179f\u17b6"),  # Khmer with a zero-width space
        ("\ud55c", "\u1112\u1161\u11ab"),  # Hangul in parts
        ("\u2f08", "\u4eba"),  # a radical of a PDF
        ("\u0645\u064f\u062d\u064e\u0645\u0651\u064e\u062f", "\u0645\u062d\u0645\u062f"),  # Arabic vowels
        ("\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd", "\u05e9\u05dc\u05d5\u05dd"),  # Hebrew points
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc\u062e\u0648\u0627\u0647\u0645"),
        ("re\u00adtrieval", "retrieval"),  # a soft hyphen
        ("\ufb01le", "file"),
        ("1\ufe0f\u20e3 2", "1 2"),  # a keycap
        ("\u2764\ufe0f love", "love"),
    ],
)
def test_a_word_is_one_in_every_form(one, other):
    assert tokens(one) == tokens(other) != []


@pytest.mark.parametrize(
    "word",
    [
        "\u0939\u093f\u0928\u094d\u0926\u0940",  # Hindi
        "\u09ac\u09be\u0982\u09b2\u09be",  # Bengali
        "\u0ba4\u0bae\u0bbf\u0bb4\u0bcd",  # Tamil
        "\u0bae\u0bbf\u0ba9\u0bcd\u0ba9\u0b9e\u0bcd\u0b9a\u0bb2\u0bcd\u0b95\u0bb3\u0bc1",  # Tamil, 42 bytes
        "\u041c\u0438\u0445\u0430\u0438\u0301\u043b",  # Russian with an accent
        "\u0715\u0719\u071d\u0308\u072c\u0710",  # Syriac plural
        "\u0c85\u0c95\u0ccd\u0cb7\u0cb0\u0cae\u0cbe\u0cb2\u0cc6",  # Kannada
        "\u0c24\u0c46\u0c32\u0c41\u0c17\u0c41",  # Telugu
        "g\u0361b",  # phonetic letters
    ],
)
def test_marks_do_not_cut_words(word):
    assert len(tokens(f"x1 {word}, y1")) == 3


def test_a_word_inside_a_line_of_a_chinese_poem(tmp_path):
    lines = [
        "\u5e8a\u524d\u660e\u6708\u5149",
        "\u7591\u662f\u5730\u4e0a\u971c",
        "\u4e3e\u5934\u671b\u660e\u6708",
        "\u4f4e\u5934\u601d\u6545\u4e61",
    ]
    rows, _ = Bm25Index.cached(corpus_of(lines), tmp_path).search(["\u6545\u4e61", "\u660e\u6708"], 4)
    assert rows[0].tolist() == [3, -1, -1, -1]
    assert sorted(rows[1].tolist()) == [-1, -1, 0, 2]


def test_words_of_40_characters_are_dropped():
    words = [letter * length for letter in "x\u00e9" for length in (39, 40)]
    assert tokens(" ".join(words)) == [words[0], words[2]]


def test_symbols_stay_apart():
    """The word before them would be another one."""
    assert tokens("Windows\u2122 x\u00b2 5\u00bd don\u2019t") == ["window", "x\u00b2", "5\u00bd", "don", "t"]


def test_rankings_of_english_are_those_of_tantivys_own_tokenizer(tmp_path, monkeypatch):
    """Functions and docstrings of the library, as the index read them before it knew other scripts: the same bits."""
    library = pystdlib.library_folder()
    functions, _ = pystdlib.read_library(library, pystdlib.library_files(library)[::4])
    texts = [each.passage for each in functions] + [each.query for each in functions]
    queries = [each.query for each in functions[::20]]
    assert len(texts) > 1000 and len(queries) > 40
    rows, scores = Bm25Index.cached(corpus_of(texts), tmp_path / "new").search(queries, 30)
    assert (rows >= 0).all(1).mean() > 0.9

    def simple():
        steps = tantivy.Filter
        builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple()).filter(steps.remove_long(40))
        builder = builder.filter(steps.lowercase()).filter(steps.custom_stopword(bm25.STOP_WORDS))
        return builder.filter(steps.stemmer("english")).build()

    monkeypatch.setattr(bm25, "_analyzer", simple)
    monkeypatch.setattr(bm25, "spaced", lambda text: text)
    old_rows, old_scores = Bm25Index.cached(corpus_of(texts), tmp_path / "old").search(queries, 30)
    np.testing.assert_array_equal(rows, old_rows)
    np.testing.assert_array_equal(scores, old_scores)


def test_titles_are_searched_and_empty_passages_never_found(tmp_path):
    corpus = corpus_of(["wab", "", "wac", " "], titles=["wad", "", "", "wae"])
    index = Bm25Index.cached(corpus, tmp_path)
    assert index.search(["wad", "wae", "wab", "wac"], 2)[0].tolist() == [[0, -1], [3, -1], [0, -1], [2, -1]]
    assert index.mean_length == pytest.approx(1.0)
    assert index.scores("wab", [1]).tolist() == [0.0]
    assert index.scores("wab", []).shape == (0,)


def test_a_corpus_without_a_single_word(tmp_path):
    index = Bm25Index.cached(corpus_of(["", "the"]), tmp_path)
    assert index.search(["wab"], 1)[0].tolist() == [[-1]]


def test_more_results_than_passages(tmp_path):
    index = Bm25Index.cached(corpus_of(["wab", "wab wac"]), tmp_path)
    assert index.search(["wac wab"], 5)[0].tolist() == [[1, 0, -1, -1, -1]]
    assert index.search([], 5)[0].shape == (0, 5)


class TestCached:
    @pytest.fixture
    def corpus(self):
        return corpus_of(random_passages(50))

    @pytest.fixture
    def builds(self, monkeypatch):
        """Counts the indexes that are built."""
        counter, build = Counter(), bm25._build
        monkeypatch.setattr(bm25, "_build", lambda *words: (counter.update(["built"]), build(*words)))
        return counter

    def test_an_index_is_built_once(self, corpus, builds, tmp_path):
        first = Bm25Index.cached(corpus, tmp_path).search(["wab"], 5)
        second = Bm25Index.cached(corpus, tmp_path).search(["wab"], 5)
        assert builds["built"] == 1
        assert np.array_equal(first[0], second[0]) and np.array_equal(first[1], second[1])
        assert not list(tmp_path.glob("*.tmp"))

    def test_another_corpus_or_analysis_has_its_own(self, corpus, builds, tmp_path, monkeypatch):
        Bm25Index.cached(corpus, tmp_path)
        Bm25Index.cached(corpus_of(random_passages(51)), tmp_path)
        monkeypatch.setitem(bm25.SETTINGS, "analyzer", "another")
        Bm25Index.cached(corpus, tmp_path)
        assert builds["built"] == 3

    @pytest.mark.parametrize("damage", ["cut", "change", "remove"])
    def test_a_damaged_index_is_built_again_with_a_warning(self, corpus, builds, tmp_path, caplog, damage):
        expected = Bm25Index.cached(corpus, tmp_path).search(["wab"], 5)[0].tolist()
        (path,) = tmp_path.glob("*/*.idx")
        if damage == "remove":
            path.unlink()
        else:
            whole = path.read_bytes()
            path.write_bytes(whole[:-9] if damage == "cut" else whole[:9] + bytes([whole[9] ^ 1]) + whole[10:])
        with caplog.at_level(logging.WARNING):
            assert Bm25Index.cached(corpus, tmp_path).search(["wab"], 5)[0].tolist() == expected
        assert builds["built"] == 2
        assert "building the index again" in caplog.text

    def test_a_build_that_fails_leaves_nothing(self, corpus, tmp_path, monkeypatch):
        def fail(*_, **values):
            raise KeyboardInterrupt

        monkeypatch.setattr(bm25.cache_entry, "write_manifest", fail)
        with pytest.raises(KeyboardInterrupt):
            Bm25Index.cached(corpus, tmp_path)
        assert not [path for path in tmp_path.iterdir() if path.is_dir()]

    def test_no_passage_text_is_stored(self, tmp_path):
        Bm25Index.cached(corpus_of(["Wonderful Zanzibar"] * 9), tmp_path)
        stored = b"".join(path.read_bytes() for path in tmp_path.glob("*/*") if path.is_file())
        assert b"Wonderful" not in stored
