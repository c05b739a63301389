"""No question stands in two splits: the guard, and the rule that leaves overlapping questions in one."""

from __future__ import annotations

import json

import pytest

from maw.config import Tier1Config
from maw.data import load_collection
from maw.data.collection import RetrievalData
from maw.data.corpus import Corpus
from maw.data.leakage import check_disjoint, drop_overlap, normalise
from maw.data.splits import Pool
from maw.errors import DataError


def split(name, queries):
    corpus = Corpus.from_lists(["d"], ["text"])
    return RetrievalData(corpus, name, list(queries), list(queries.values()), {q: {"d": 1} for q in queries})


def pool(**queries):
    return Pool(queries, {query_id: {"d": 1} for query_id in queries})


@pytest.mark.parametrize(
    "one, other",
    [
        ("Who wrote  it?", "who wrote it"),
        ("a-b_c", "a b c"),
        ("\uff37\uff48\uff4f", "who"),  # full-width letters
        ("STRASSE", "straße"),
        ("caf\u00e9", "cafe\u0301"),  # composed and combining accents
        ("\ufb01le", "file"),  # a ligature
    ],
)
def test_texts_that_differ_in_form_only_are_equal(one, other):
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize("one, other", [("a b", "ab"), ("???", "!!!"), ("caf\u00e9", "cafe"), ("1.5", "15")])
def test_texts_that_differ_in_words_are_not(one, other):
    assert normalise(one) != normalise(other)


def test_disjoint_splits_pass():
    check_disjoint(split("train", {"1": "one"}), split("validation", {}), split("test", {"2": "two"}))


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
    from maw.data import beir

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
