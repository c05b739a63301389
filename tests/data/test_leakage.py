"""No question is in two splits: the check, and the rule that keeps an overlapping question in one split."""

from __future__ import annotations

import itertools
import json
import time

import pytest
from conftest import random_texts
from hypothesis import given, settings
from hypothesis import strategies as st

from maw.config.tier1_config import Tier1Config
from maw.data import leakage
from maw.data.collection import RetrievalData
from maw.data.corpus import Corpus
from maw.data.leakage import check_disjoint, drop_overlap, leakage_facts
from maw.data.normalise import normalise
from maw.data.registry import load_collection
from maw.data.splits import Pool
from maw.errors import DataError


def split(name, queries):
    corpus = Corpus.from_lists(["d"], ["text"])
    return RetrievalData(corpus, name, list(queries), list(queries.values()), {q: {"d": 1} for q in queries})


def pool(**queries):
    return Pool(queries, {query_id: {"d": 1} for query_id in queries})


SAME = [
    ("Who wrote  it?", "who wrote it"),
    ("who wrote it ?", "Who wrote it."),
    ("who wrote it?!", "who wrote it..."),
    (" who\twrote\nit\u00a0", "who wrote it"),
    ("\uff37\uff48\uff4f", "who"),  # full-width letters
    ("\uff76\uff9e\uff97\uff7d", "\u30ac\u30e9\u30b9"),  # half-width Katakana
    ("STRASSE", "stra\u00dfe"),
    ("\u039f\u0394\u039f\u03a3", "\u03bf\u03b4\u03cc\u03c2".replace("\u03cc", "\u03bf")),  # two forms of sigma
    ("caf\u00e9", "cafe\u0301"),  # composed and combining accents
    ("\ufb01le", "file"),  # a ligature
    ("CO\u2082", "co2"),
    ("It\u2019s", "it's"),
    ("it\u00b4s", "it\u02bcs"),
    ("\u201cHamlet\u201d", '"hamlet"'),
    ("\u00abHamlet\u00bb", '"hamlet"'),
    ("\u22125", "-5"),
    ("1914\u20131918", "1914-1918"),
    ("\u00bfQui\u00e9n lo escribi\u00f3?", "qui\u00e9n lo escribi\u00f3"),
    ("\u8c01\u5199\u7684\uff1f", "\u8c01\u5199\u7684\u3002"),
    (
        "\u0915\u093f\u0938\u0928\u0947 \u0932\u093f\u0916\u093e\u0964",
        "\u0915\u093f\u0938\u0928\u0947 \u0932\u093f\u0916\u093e",
    ),
    ("\u0645\u0646 \u0643\u062a\u0628\u061f", "\u0645\u0646 \u0643\u062a\u0628"),
    ("\u0e19\u0e49\u0e33", "\u0e19\u0e49\u0e4d\u0e32"),  # Thai am, and its two parts
    ("who wrote it, and when", "who wrote it and when"),
    ("State-of-the-art", "state of the art"),
    ("What is C++?", "what is c++"),
    ("Is it 100%?", "is it 100%"),
    ("I \u2764\ufe0f it", "i \u2764 it"),
    ("re\u00adcover\ufeff", "recover"),
    ("Stop !", "stop"),
    ("QUESTION 5!", "question 5"),
    ("So do I!", "so do I"),
]
DIFFERENT = [
    ("What is C?", "What is C++?"),
    ("What is C++?", "What is C#?"),
    ("C#", "C"),
    ("return True if x < 0", "return True if x > 0"),
    ("a == b", "a != b"),
    ("a <= b", "a < b"),
    ("-5", "5"),
    ("\u22125", "5"),
    ("\u00b15", "5"),
    ("3-2", "3+2"),
    ("a-b", "a b"),
    ("self - other", "self other"),
    ("self-other", "self+other"),
    ("covid-19", "covid 19"),
    ("a-b_c", "a b c"),
    ("foo_bar", "foo bar"),
    (".NET", "net"),
    ("100%", "100"),
    ("$5", "5"),
    ("$5", "\u20ac5"),
    ("\u0915\u093f, \u0915\u0941 \u2013 \u20ac", "\u0915\u093f \u0915\u0941"),
    ("\u00bd", "12"),
    ("\u00bd", "1\u2044\u2074"),
    ("5\u00bd", "51/2"),
    ("x\u00b2", "x2"),
    ("10\u00b2", "102"),
    ("101\u2082", "1012"),
    ("1\u2460", "11"),
    ("it's", "its"),
    ("1.5", "15"),
    ("1,000", "1.000"),
    ("(1, 2)", "(1 2)"),
    ("what is 5! / 3!", "what is 5 / 3!"),
    ("what is n!", "what is n"),
    ("\u00acp", "p"),
    ("x & y", "x | y"),
    ("@media", "#media"),
    ("f'", "f"),
    ("1|2|300$", "1|2|300"),
    ("1|2|300", "1 2 300"),
    ("90\u00b0", "90"),
    ("a b", "ab"),
    ("???", "!!!"),
    ("caf\u00e9", "cafe"),
    ("\u0915\u093f", "\u0915\u0941"),  # Devanagari: ki and ku, a letter with two marks
    ("\u0915\u093e\u092e", "\u0915 \u092e"),  # a mark is no blank
    ("\u0e01\u0e34\u0e19", "\u0e01\u0e19"),  # Thai, with and without a vowel
    ("I am \U0001f600", "I am \U0001f622"),
    ("\U0001f468\u200d\U0001f467", "\U0001f468\U0001f467"),  # a family, and two people
    ("\U0001f44d", "\U0001f44d\U0001f3fd"),
]


@pytest.mark.parametrize("one, other", SAME)
def test_texts_that_differ_in_form_only_are_equal(one, other):
    assert normalise(one) == normalise(other)
    kept, dropped = drop_overlap({"test": pool(a=one), "train": pool(b=other)})
    assert not kept["train"].queries and dropped == {"train": 1}


@pytest.mark.parametrize("one, other", DIFFERENT)
def test_texts_that_differ_in_meaning_are_not(one, other):
    assert normalise(one) != normalise(other)
    kept, dropped = drop_overlap({"test": pool(a=one), "train": pool(b=other)})
    assert list(kept["train"].queries) == ["b"] and dropped == {"train": 0}


MARKS = "aAb\u00e9\u00df5 \u00bd\u00b2\u2082?!.,:\u00bf'\u2019-\u2013\u2026\u0915\u093f\u200b\u00b4\u3002\uff01\u00a8"


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(MARKS, max_size=12) | st.text(max_size=40))
def test_normalising_twice_is_normalising_once(text):
    assert normalise(normalise(text)) == normalise(text)


@pytest.mark.parametrize("text", ["." * 50_000, ". " * 50_000 + "x", "a!" * 50_000, ", " * 50_000, "\u00b2" * 50_000])
def test_long_runs_of_marks_take_no_time(text):
    started = time.perf_counter()
    normalise(text)
    assert time.perf_counter() - started < 1  # hundredths, where it is not quadratic


def test_disjoint_splits_pass():
    splits = split("train", {"1": "one"}), split("validation", {}), split("test", {"2": "two"})
    assert check_disjoint(*splits) is None


@pytest.mark.parametrize(
    "train, test, message",
    [
        ({"1": "one", "2": "two"}, {"2": "zwei"}, "train and test share 1 query ids, such as '2'"),
        (
            {"1": "One?"},
            {"9": "one"},
            "train and test share 1 questions under different ids, such as '1' and '9' ('one')",
        ),
    ],
)
def test_a_planted_leak_is_named(train, test, message):
    with pytest.raises(DataError) as caught:
        check_disjoint(split("train", train), split("validation", {}), split("test", test), collection="planted")
    assert str(caught.value).startswith(f"planted: {message}")
    assert "\n" not in str(caught.value)


def test_every_pair_of_splits_is_compared():
    names = ("train", "validation", "test")
    for pair in (("train", "validation"), ("train", "test"), ("validation", "test")):
        splits = [split(name, {f"{name} id": "same" if name in pair else name}) for name in names]
        with pytest.raises(DataError, match=" and ".join(pair)):
            check_disjoint(*splits)


def test_overlap_stays_in_test_before_validation_before_train():
    pools = {
        "train": pool(t1="Same text", t2="only train", t3="in validation", x="id of test"),
        "validation": pool(v1="in VALIDATION", v2="same  text!"),
        "test": pool(s1="same text", x="other words"),
    }
    kept, dropped = drop_overlap(pools)
    assert {name: list(each.queries) for name, each in kept.items()} == {
        "train": ["t2"],
        "validation": ["v1"],
        "test": ["s1", "x"],
    }
    assert dropped == {"validation": 1, "train": 3}
    assert all(each.queries.keys() == each.qrels.keys() for each in kept.values())


def test_a_text_dropped_from_validation_does_not_shield_train():
    pools = {"train": pool(a="x y"), "validation": pool(same="x y"), "test": pool(same="z")}
    kept, dropped = drop_overlap(pools)
    assert list(kept["train"].queries) == ["a"]
    assert dropped == {"validation": 1, "train": 0}


def test_questions_repeated_within_a_split_stay():
    kept, _ = drop_overlap({"test": pool(a="x", b="X")})
    assert list(kept["test"].queries) == ["a", "b"]


def test_loading_checks_what_a_loader_gives(tmp_path, monkeypatch):
    """The guard stands in `load_collection`, behind every loader: one that lets a leak through is caught."""
    from maw.data.datasets import beir

    folder = tmp_path / "leaky"
    (folder / "qrels").mkdir(parents=True)
    rows = [("corpus", {"d": "text"}), ("queries", {"a": "Same?", "b": "same", "c": "other"})]
    for name, texts in rows:
        lines = [json.dumps({"_id": i, "text": text}) for i, text in texts.items()]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    for name, query in (("train", "a"), ("test", "b"), ("dev", "c")):
        (folder / "qrels" / f"{name}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{query}\td\t1\n")
    monkeypatch.setattr(beir, "drop_overlap", lambda pools: (pools, {"validation": 0, "train": 0}))
    config = Tier1Config(cache_dir=str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"beir_leaky: train and test share 1 questions .*'a' and 'b'"):
        load_collection(f"beir:{folder}", config)


# ------------------------------------------------------------------------------------------------ near-duplicates

LONG = "who wrote the first book on the history of the city of lisbon in portugal"


def every_pair(one, other):
    """All pairs compared, with sets of tuples of words."""

    def triples(text):
        words = normalise(text).split()
        return {tuple(words[i : i + 3]) for i in range(len(words) - 2)} or {tuple(words)}

    found = []
    for (i, a), (j, b) in itertools.product(enumerate(map(triples, one)), enumerate(map(triples, other))):
        if 10 * len(a & b) >= 8 * len(a | b):
            found.append((i, j, len(a & b) / len(a | b)))
    return found


@pytest.mark.parametrize(
    "one, other, similar",
    [
        (LONG, LONG.upper() + "?", True),
        (LONG, LONG + " today", True),  # 13 of 14 shingles
        (LONG, LONG.replace("history", "story"), False),  # three shingles of 13 differ: 10 of 16
        ("one two three four five six", "one two three four five six seven", True),  # 4 of 5: exactly 0.8
        ("one two three four five", "one two three four five six", False),  # 3 of 4
        ("cheap hotels", "Cheap  hotels!", True),  # fewer than three words: the whole
        ("cheap hotels", "cheap hotel", False),
        ("???", "!!!", False),
        ("a b c a b c", "b c a b c a", True),  # sets, not counts
        ("C++", "C#", False),
    ],
)
def test_what_is_nearly_the_same(one, other, similar):
    assert bool(leakage.near_duplicates([one], [other])) == similar
    assert leakage.near_duplicates([one], [other]) == every_pair([one], [other])


@pytest.mark.parametrize(
    "one, other, similar",
    [
        (LONG.replace("book", "book,").replace("city", "(city)"), LONG, True),  # words, whatever is between them
        (
            "\u8c01\u5199\u4e86\u91cc\u65af\u672c\u5386\u53f2\u7684\u7b2c\u4e00\u672c\u4e66",
            "\u8c01\u5199\u4e86\u91cc\u65af\u672c\u5386\u53f2\u7684\u7b2c\u4e00\u672c\u4e66\u5462",
            True,
        ),
        (
            "\u8c01\u5199\u4e86\u91cc\u65af\u672c\u5386\u53f2",
            "\u8c01\u5199\u4e86\u5df4\u9ece\u7684\u5386\u53f2",
            False,
        ),
        (
            "\u0e43\u0e04\u0e23\u0e40\u0e02\u0e35\u0e22\u0e19\u0e2b\u0e19\u0e31\u0e07\u0e2a\u0e37\u0e2d\u0e40\u0e25\u0e48\u0e21\u0e19\u0e35\u0e49",
            "\u0e43\u0e04\u0e23\u0e40\u0e02\u0e35\u0e22\u0e19\u0e2b\u0e19\u0e31\u0e07\u0e2a\u0e37\u0e2d\u0e40\u0e25\u0e48\u0e21\u0e19\u0e35\u0e49\u0e19",
            True,
        ),
    ],
)
def test_near_duplicates_of_any_script(one, other, similar):
    """Three characters in a row take the place of three words where no blank is between words."""
    assert bool(leakage.near_duplicates([one], [other])) == similar


words = st.lists(st.sampled_from("abcd"), min_size=1, max_size=14).map(" ".join)


@settings(max_examples=200, deadline=None)
@given(st.lists(words, max_size=12), st.lists(words, max_size=12))
def test_every_pair_is_found_and_no_other(one, other):
    found = leakage.near_duplicates(one, other)
    assert found == every_pair(one, other)
    back = leakage.near_duplicates(other, one)
    assert sorted((i, j, s) for j, i, s in back) == found, "it does not matter which split comes first"


def test_a_prefix_one_too_short_misses_pairs(monkeypatch):
    """Planted: the prefix of the filter cut by one, its classic mistake, which the reference catches."""
    one, other = ["one two three four five six"], ["one two three four five six seven"]
    whole = leakage._rarest
    monkeypatch.setattr(leakage, "_rarest", lambda each, frequency: whole(each, frequency)[:-1])
    assert leakage.near_duplicates(one, other) != every_pair(one, other)


def test_facts_of_planted_near_duplicates():
    train = split("train", {"1": LONG, "2": "something else altogether here", "3": LONG + " now"})
    test = split("test", {"8": LONG + " today", "9": "not like any other question"})
    facts = leakage_facts(train, split("validation", {"5": "other words"}), test)
    assert facts["near_duplicates"] == {"validation_near_train": 0, "test_near_train": 1, "test_near_validation": 0}
    assert facts["examples"][0].startswith("test 'who wrote") and facts["examples"][0].endswith(f"{LONG!r} (0.93)")
    assert len(facts["examples"]) == 2 and "(0.87)" in facts["examples"][1]
    assert facts["exact"] == "no query in two splits, by id or normalised text"
    assert json.loads(json.dumps(facts)) == facts
    assert "examples" not in leakage_facts(split("train", {"1": "a"}), split("test", {"2": "b"}))
    assert leakage_facts(split("train", {}), split("test", {}))["near_duplicates"] == {"test_near_train": 0}


def test_thousands_of_queries_take_less_than_a_second():
    one, other = random_texts(2000, seed=1, longest=14), random_texts(1000, seed=2, longest=14)
    started = time.perf_counter()
    leakage.near_duplicates(one, other)
    assert time.perf_counter() - started < 2  # about 0.1 where nothing else runs


def test_loading_reports_near_duplicates_and_goes_on(tmp_path):
    folder = tmp_path / "near"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text(json.dumps({"_id": "d", "text": "text"}))
    texts = {"a": LONG, "b": LONG + " today", "c": "other words entirely"}
    (folder / "queries.jsonl").write_text("\n".join(json.dumps({"_id": i, "text": t}) for i, t in texts.items()))
    for name, query in (("train", "a"), ("test", "b"), ("dev", "c")):
        (folder / "qrels" / f"{name}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{query}\td\t1\n")
    facts = load_collection(f"beir:{folder}", Tier1Config(cache_dir=str(tmp_path / "cache"))).facts["leakage"]
    assert facts["near_duplicates"] == {"validation_near_train": 0, "test_near_train": 1, "test_near_validation": 0}
