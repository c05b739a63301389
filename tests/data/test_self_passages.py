"""Queries that are passages too: which rule leaves out which, what is counted and said, and how samples are drawn."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest

from maw.config.tier1_config import Tier1Config
from maw.data import corpus_sampling, self_passages
from maw.data.bm25 import Bm25Index
from maw.data.collection import RetrievalData
from maw.data.corpus import Corpus
from maw.data.from_dicts import as_retrieval_data
from maw.data.normalise import normalise
from maw.data.registry import load_collection, load_folds
from maw.data.self_passages import counts, leave_out, same_texts
from maw.errors import DataError

# id -> title and text. 1 and 2 are arguments with counter-arguments 1c and 2c; 7 and 8 are only numbers.
PASSAGES = {
    "1": ("", "A Vegetarian diet is safe."),
    "1c": ("", "meat is safe too"),
    "2": ("Zoos", "They keep animals alive"),
    "2c": ("Zoos", "they lock animals in"),
    "7": ("", "rivers of asia"),
    "8": ("", "mountains of asia"),
    "other": ("", "what is the longest river?"),
}
QUERIES = {
    "1": "a vegetarian diet is safe",
    "2": "zoos they keep animals alive!",
    "7": "what is the longest river",
    "8": "what is the highest mountain",
    "q": "which of them is right",
}
QRELS = {
    "1": {"1c": 1, "1": 0},
    "2": {"2c": 1, "2": 2},
    "7": {"7": 1, "other": 1},
    "8": {"8": 1, "1c": 1},
    "q": {"7": 1},
}
LEFT_OUT = {"auto": {"1", "2"}, "drop": {"1", "2", "7", "8"}, "keep": set()}


def split(queries=QUERIES, qrels=QRELS, passages=PASSAGES, name="test", **more):
    titles, texts = zip(*passages.values(), strict=True)
    corpus = Corpus.from_lists(list(passages), list(texts), list(titles))
    return RetrievalData(
        corpus, name, list(queries), list(queries.values()), {q: dict(qrels[q]) for q in queries}, **more
    )


@pytest.mark.parametrize("rule", LEFT_OUT)
def test_each_rule_leaves_out_its_pairs_and_their_judgements(rule):
    data = split()
    found, facts = leave_out(data, rule)
    own = LEFT_OUT[rule]
    assert found.left_out == own and found.query_ids == list(QUERIES)
    assert found.qrels == {q: {p: g for p, g in QRELS[q].items() if not (p == q and q in own)} for q in QUERIES}
    assert data.qrels == QRELS, "the split that was given stays as it is"
    assert facts == {"judgements_left_out": len(own), "queries_left_out": 0}
    rows = found.left_out_rows()
    assert (rows is None) == (rule == "keep")
    if rows is not None:
        assert rows.tolist() == [list(PASSAGES).index(q) if q in own else -1 for q in QUERIES]
    assert leave_out(found, rule)[0].qrels == found.qrels


def test_without_a_shared_id_the_split_is_the_same_object_and_no_text_is_read(monkeypatch):
    queries = {f"q{i}": text for i, text in QUERIES.items()}
    data = split(queries, {f"q{i}": each for i, each in QRELS.items()})
    monkeypatch.setattr(Corpus, "records", lambda *_: pytest.fail("a passage was read"))
    for rule in LEFT_OUT:
        assert leave_out(data, rule)[0] is data and data.left_out_rows() is None


def test_training_keeps_judgements_and_so_positives():
    found, facts = leave_out(split(name="train"), "auto", judgements=False)
    assert found.qrels == QRELS and found.left_out == {"1", "2"} and facts["judgements_left_out"] == 0


def test_a_query_that_only_finds_itself_is_left_out(caplog):
    """The count is said once: by `with_counts` of a collection, and for dictionaries where they are read."""
    qrels = QRELS | {"1": {"1": 1, "2c": 0}}
    found, facts = leave_out(split(qrels=qrels), "auto")
    assert found.query_ids == ["2", "7", "8", "q"] and found.left_out == {"2"} and "1" not in found.qrels
    assert facts == {"judgements_left_out": 2, "queries_left_out": 1}
    assert not caplog.records
    plain = {
        "queries": {"a": "one", "b": "two"},
        "docs": {"a": "one", "b": "two"},
        "qrels": {"a": {"a": 1}, "b": {"a": 1}},
    }
    assert as_retrieval_data(plain, "test", 1, "auto").query_ids == ["b"]
    assert [each.getMessage() for each in caplog.records] == [
        "test data, qrels: 1 queries are left out: each has no relevant document but itself"
    ]
    with pytest.raises(DataError, match=r"only relevant passage is the query itself.*self_passages keep"):
        leave_out(split({"1": QUERIES["1"]}, qrels), "auto")
    assert leave_out(split({"1": QUERIES["1"]}, qrels), "keep")[0].query_ids == ["1"]


def test_the_positions_in_a_list_are_no_ids():
    texts = ["read a file", "write a file", "parse json"]
    data = {"queries": texts, "docs": texts, "qrels": {i: {i: 1, (i + 1) % 3: 1} for i in range(3)}}
    for rule in LEFT_OUT:
        assert not as_retrieval_data(data, "test", 1, rule).left_out
    named = {key: {f"n{i}": text for i, text in enumerate(texts)} for key in ("queries", "docs")}
    qrels = {f"n{i}": {f"n{i}": 1, f"n{(i + 1) % 3}": 1} for i in range(3)}
    found = as_retrieval_data(named | {"qrels": qrels}, "test", 1, "auto")
    assert found.left_out == set(qrels) and found.qrels == {f"n{i}": {f"n{(i + 1) % 3}": 1} for i in range(3)}
    half = named | {"docs": texts, "qrels": {f"n{i}": {i: 1} for i in range(3)}}
    assert not as_retrieval_data(half, "test", 1, "drop").left_out
    assert as_retrieval_data(found, "test", 1, "keep") is found, "a split keeps what it leaves out"


# ------------------------------------------------------------------------------------------------- what is counted


def test_counts_by_hand():
    for rule, own in LEFT_OUT.items():
        assert counts(leave_out(split(), rule)[0]) == {
            "same_id": 4,
            "same_id_and_text": 2,
            "same_text_under_another_id": 1,  # 7 and other
            "left_out": len(own),
        }


def test_equal_texts_are_found_without_normalising_every_passage():
    """Against every pair, over texts whose normal form differs much from what is written."""
    source = random.Random(0)
    parts = [
        "fi",
        "\ufb01",
        "FI",
        "e\u0301",
        "\u00e9",
        "\uff21",
        "a",
        "A",
        "ß",
        "ss",
        "1",
        "\u00b2",
        "2",
        "don't",
        "-",
        "_",
    ]
    parts += ["... ", "  ", "東京", "\u0e19\u0e49\u0e33", "word", "WORD", "o\u0308f", "\u00f6f"]
    passages = {
        f"d{i}": (
            "".join(source.choices(parts, k=source.choice([0, 2]))),
            "".join(source.choices(parts, k=source.randint(1, 9))),
        )
        for i in range(1500)
    }
    long = "the quick brown fox jumps over the lazy dog and "
    passages |= {f"e{i}": ("", f"{' ' * (i % 70)}{long.upper() if i % 2 else long}{i % 5}") for i in range(200)}
    passages |= {"m": ("", "abcdefgh\u0302 x"), "n": ("Abc,", "d  e\tF g h\u0302 x.")}
    queries = {f"q{i}": "".join(source.choices(parts, k=source.randint(1, 9))) + "x" for i in range(300)}
    queries |= {
        f"q{i}": f"{title} {text}".lower()
        for i, (title, text) in enumerate(source.sample(list(passages.values()), 80))
    }
    queries |= {"l": long + "3", "mark": "abcdefg\u0125 x", "titled": "abc d e f g h\u0302 x"}
    qrels = {query: {"d0": 1} for query in queries}
    data = split(queries, qrels, passages)
    there = {normalise(each) for title, text in passages.values() for each in (text, f"{title} {text}")}
    expected = {name for name, query in queries.items() if normalise(query) in there}
    assert 80 < len(expected) < len(queries) and {"l", "mark", "titled"} <= expected
    assert counts(data)["same_text_under_another_id"] == len(expected)
    candidates = self_passages._may_be_queries(data.corpus, data.queries)
    assert len(candidates) < len(passages)
    plain = split(
        {"q": "some words that no passage has"},
        {"q": {"d0": 1}},
        {f"d{i}": ("", f"the passage number {i}") for i in range(99)},
    )
    assert not len(self_passages._may_be_queries(plain.corpus, plain.queries))


def test_same_texts_pairs_every_query_with_every_passage():
    passages = [("a", "", "One two"), ("b", "one", "two"), ("c", "two", "three"), ("d", "", "")]
    assert sorted(same_texts(["one two", "ONE \n TWO.", "three", "two three"], passages)) == [
        (0, 0), (0, 1), (1, 0), (1, 1), (2, 2), (3, 2),
    ]  # fmt: skip


# --------------------------------------------------------------------------------------------------------- loading


def write_folder(folder, passages=PASSAGES, queries=QUERIES, qrels=QRELS, train=None):
    (folder / "qrels").mkdir(parents=True)
    lines = [json.dumps({"_id": i, "title": title, "text": text}) for i, (title, text) in passages.items()]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    (folder / "queries.jsonl").write_text("\n".join(json.dumps({"_id": i, "text": t}) for i, t in queries.items()))
    for name, of_split in {"test": qrels, **(train or {})}.items():
        rows = [f"{q}\t{p}\t{grade}" for q, judged in of_split.items() for p, grade in judged.items()]
        (folder / "qrels" / f"{name}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *rows]) + "\n")
    return folder


@pytest.fixture
def config(tmp_path):
    def make(**changes):
        return Tier1Config(**({"methods": ["zero_shot"], "cache_dir": str(tmp_path / "cache")} | changes))

    return make


SAID = {
    "auto": [],
    "drop": ["--self-passages drop leaves out 2 passages that only share the id with a test query and not the text "
             "(2 share both)"],
    "keep": ["2 of 5 test queries are passages too, with the same id and text, and find themselves first"],
}  # fmt: skip


@pytest.mark.parametrize("rule", LEFT_OUT)
def test_a_folder_says_what_it_shares_and_what_is_left_out(config, tmp_path, rule):
    folder = write_folder(tmp_path / "arguments")
    data = load_collection(f"beir:{folder}", config(self_passages=rule))
    assert data.test.left_out == LEFT_OUT[rule]
    assert data.facts["self_passages"] == {
        "rule": f"{rule}: {self_passages.RULES[rule]}",
        "test": {
            "same_id": 4,
            "same_id_and_text": 2,
            "same_text_under_another_id": 1,
            "left_out": len(LEFT_OUT[rule]),
            "judgements_left_out": len(LEFT_OUT[rule]),
            "queries_left_out": 0,
        },
    }
    said = [text for text in data.facts["warnings"] if "share" in text or "themselves" in text]
    assert len(said) == len(SAID[rule]) and all(one in other for one, other in zip(SAID[rule], said, strict=True))
    assert any(
        "1 of 5 test queries have the text of a passage with another id" in text for text in data.facts["warnings"]
    )


def test_ids_that_collide_by_chance_stay_and_are_said(config, tmp_path):
    passages = {str(i): ("", f"passage number {i} of some") for i in range(30)}
    queries = {str(i): f"the question {i} of somebody" for i in range(20)}
    folder = write_folder(tmp_path / "numbers", passages, queries, {q: {str(int(q) + 1): 1} for q in queries})
    data = load_collection(f"beir:{folder}", config())
    assert not data.test.left_out
    (said,) = [text for text in data.facts["warnings"] if "share" in text]
    assert said.startswith(
        "beir_numbers: 20 passages share only the id with a test query and not the text (0 share both)"
    )


def test_sampling_takes_the_next_passages_in_place_of_the_query_itself(config, tmp_path):
    """BM25's best passage of every query is itself; the sample is that of a corpus in which it has no rank."""
    source = random.Random(3)
    words = [f"w{letter}{other}" for letter in "abcdefgh" for other in "bcdfg"]
    passages = {f"d{i:03}": " ".join(source.choices(words, k=source.randint(8, 20))) for i in range(400)}
    corpus = Corpus.from_lists(list(passages), list(passages.values()))
    ids = [f"d{i:03}" for i in range(12)]
    qrels = {q: {f"d{100 + int(q[1:])}": 1} for q in ids}
    data = leave_out(RetrievalData(corpus, "test", ids, [passages[q] for q in ids], qrels), "auto")[0]
    parts = corpus_sampling.choose(data, 60, config())
    hard, judged = corpus.id_of(parts["hard"]), corpus.id_of(parts["judged"])
    assert (len(judged), len(hard)) == (12, 24)
    rows, _ = Bm25Index.cached(corpus, tmp_path / "bm25").search(data.queries, 31)
    assert [corpus.id_of(row[:1])[0] for row in rows] == ids, "the query itself is the best match"
    others = {q: [i for i in corpus.id_of(row[row >= 0]) if i != q] for q, row in zip(ids, rows, strict=True)}
    expected = {each[0] for each in others.values()} - set(judged)
    assert expected <= set(hard), "every query's best passage but itself"
    plain = corpus_sampling.choose(replace(data, left_out=frozenset()), 60, config())
    assert set(ids) <= set(corpus.id_of(plain["hard"])), "as it was: they were half of the distractors"
    sampled, _ = corpus_sampling.sample_corpus(data, 60, config())
    again, _ = corpus_sampling.sample_corpus(replace(data, left_out=frozenset()), 60, config())
    assert set(sampled.ids) == set(hard) | set(judged) | set(corpus.id_of(parts["by_hash"]))
    assert sampled.fingerprint != again.fingerprint


def test_only_what_the_sample_holds_counts_as_left_out(config, tmp_path):
    source = random.Random(5)
    passages = {f"d{i:03}": ("", " ".join(source.choices("abcdefghijklm", k=12))) for i in range(300)}
    queries = {q: text for q, (_, text) in list(passages.items())[:40]}
    folder = write_folder(tmp_path / "many", passages, queries, {q: {f"d{int(q[1:]) + 50:03}": 1} for q in queries})
    data = load_collection(f"beir:{folder}", config(corpus_size=60))
    there = set(data.test.corpus.ids)
    assert data.test.left_out == set(queries) & there != set(queries)
    assert data.facts["self_passages"]["test"]["left_out"] == len(data.test.left_out)


def test_folds_test_without_and_train_with_the_judgement(config, tmp_path):
    passages = {f"d{i:02}": ("", f"text number {i} is here") for i in range(30)}
    queries = {q: text for q, (_, text) in list(passages.items())[:24]}
    qrels = {q: {q: 2, f"d{(int(q[1:]) + 1) % 24:02}": 1} for q in queries}
    parts = {"test": dict(list(qrels.items())[:8]), "dev": dict(list(qrels.items())[8:12])}
    parts["train"] = dict(list(qrels.items())[12:])
    folder = write_folder(tmp_path / "folded", passages, queries, parts.pop("test"), parts)
    folds = load_folds(f"beir:{folder}", config(methods=["lora"], folds=3))
    assert folds.whole.test.left_out == set(queries)
    assert all(q not in folds.whole.test.qrels[q] for q in queries)
    assert folds.whole.facts["self_passages"]["test"]["judgements_left_out"] == 24
    for each in folds.collections:
        for name in ("test", "validation", "train"):
            part = getattr(each, name)
            assert part.left_out == set(part.query_ids) and len(part) == 8
            assert all((q in part.qrels[q]) == (name == "train") for q in part.query_ids)


def test_rows_of_what_is_left_out_follow_the_order_of_the_queries():
    data = leave_out(split(), "drop")[0].only(["q", "8", "1"])
    assert data.left_out == {"8", "1"} and data.left_out_rows().tolist() == [-1, 5, 0]
    assert np.array_equal(split().corpus.rankings(np.array([[3, -1], [0, 1]]), np.zeros((2, 2)))[0][0], ["2c"])
