"""The sampled corpus: its three parts against plain Python, independence of order and process, added distractors."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from maw.config.tier1_config import Tier1Config
from maw.data import corpus_sampling, store
from maw.data.bm25 import Bm25Index
from maw.data.collection import Collection, RetrievalData
from maw.data.corpus import Corpus
from maw.data.corpus_sampling import (
    DEEPEST_RANK,
    choose,
    cut_to,
    join_distractors,
    lowest_rows,
    sample_corpora,
    sample_corpus,
)
from maw.data.normalise import normalise
from maw.data.registry import load_collection
from maw.errors import ConfigError
from maw.experiment.config_checks import validate
from maw.report.text import summary as text

WORDS = [f"w{letter}{other}" for letter in "abcdefgh" for other in "bcdfg"]
MASK = 2**64 - 1


def passages(count, seed=0):
    source = random.Random(seed)
    weights = [1 / (i + 1) for i in range(len(WORDS))]
    return {f"d{i}": " ".join(source.choices(WORDS, weights, k=source.randint(3, 25))) for i in range(count)}


TEXTS = passages(600)
QUERIES = {f"q{i}": " ".join(random.Random(i).sample(WORDS, 4)) for i in range(12)}
QRELS = {f"q{i}": {f"d{i}": 1, f"d{100 + i}": 0, f"d{200 + i}": -1, "elsewhere": 0} for i in range(12)}


def make_split(texts=TEXTS, order=0, name="test", queries=QUERIES):
    """The split over a corpus and a list of queries in an order of their own."""
    source = random.Random(order)
    ids, query_ids = list(texts), list(queries)
    if order:
        source.shuffle(ids)
        source.shuffle(query_ids)
    corpus = Corpus.from_lists(ids, [texts[i] for i in ids])
    qrels = {query: QRELS[query] for query in query_ids}
    return RetrievalData(corpus, name, query_ids, [queries[i] for i in query_ids], qrels)


@pytest.fixture
def config(tmp_path):
    def make(**changes):
        return Tier1Config(datasets=["pystdlib"], cache_dir=str(tmp_path / "cache"), **changes)

    return make


def hash_by_hand(identifier, seed, purpose):
    """The seeded hash of one id with Python's integers."""

    def mix(value):
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            value = (value ^ (value >> shift)) * factor & MASK
        return value ^ (value >> 31)

    digest = hashlib.blake2b(f"{seed}\0{purpose}\0".encode(), digest_size=16).digest()
    letters = sum((byte + 1) * 0x9E3779B97F4A7C15**i for i, byte in enumerate(identifier.encode())) & MASK
    return mix(mix(letters) ^ int.from_bytes(digest[:8], "little"))


def sample_by_hand(size, seed, index):
    """The ids of the rule's three parts, written out."""
    judged = {p for q in QRELS for p in QRELS[q] if p in TEXTS}
    left = size - len(judged)

    def place(query):
        return hashlib.blake2b(f"{seed}\0test distractors\0{query}".encode(), digest_size=16).digest()

    ranked = {}
    for query in QUERIES:
        scores = index.scores(QUERIES[query], range(len(TEXTS)))
        rows = [row for row in range(len(TEXTS)) if scores[row] > 0]
        rows.sort(key=lambda row: (scores[row], f"d{row}".encode()), reverse=True)
        ranked[query] = [f"d{row}" for row in rows]
    hard = []
    for rank in range(30):
        for query in sorted(QUERIES, key=place):
            if rank < len(ranked[query]):
                identifier = ranked[query][rank]
                if identifier not in judged and identifier not in hard and len(hard) < left // 2:
                    hard.append(identifier)
    free = [i for i in TEXTS if i not in judged and i not in hard]
    free.sort(key=lambda identifier: hash_by_hand(identifier, seed, "test corpus"))
    return judged, set(hard), set(free[: left - len(hard)])


@pytest.mark.parametrize("size", [37, 38, 60, 100, 400, 500, 599])
def test_the_three_parts_are_those_of_the_rule(config, size, tmp_path):
    data = make_split()
    parts = choose(data, size, config(seed=7))
    index = Bm25Index.cached(data.corpus, tmp_path / "cache" / "bm25")
    expected = sample_by_hand(size, 7, index)
    got = [set(data.corpus.id_of(rows)) for rows in parts.values()]
    assert list(parts) == ["judged", "hard", "by_hash"]
    assert got == list(expected)
    assert sum(map(len, parts.values())) == size


def test_every_rank_is_used_where_there_is_room(config):
    data = make_split()
    hard = choose(data, 599, config())["hard"]
    index = Bm25Index.cached(data.corpus, Path(config().cache_dir) / "bm25")
    best, _ = index.search(list(QUERIES.values()), DEEPEST_RANK)
    judged = data.corpus.rows_of([p for q in QRELS for p in QRELS[q]])
    assert set(hard) == set(best[best >= 0]) - set(judged)


@pytest.mark.parametrize("size", ["full", 600, 601, 10**9])
def test_a_corpus_that_is_no_larger_stays_as_it_is(config, size):
    data = make_split()
    corpus, facts = sample_corpus(data, size, config())
    assert corpus is data.corpus
    assert facts["passages"] == "all 600 passages"


def test_a_sample_is_a_store_of_its_own_in_the_order_of_the_whole(config):
    data = make_split()
    corpus, facts = sample_corpus(data, 100, config())
    assert len(corpus) == 100
    assert corpus.fingerprint != data.corpus.fingerprint
    rows = data.corpus.rows_of(list(corpus.ids))
    assert (np.diff(rows) > 0).all()
    assert corpus.take(range(100)) == data.corpus.take(rows)
    assert corpus.fingerprint == Corpus.from_lists(list(corpus.ids), corpus.take(range(100))).fingerprint
    assert facts["passages"] == "sampled: 100 of 600 passages"
    assert (facts["judged"], facts["hard"], facts["by_hash"]) == (36, 32, 32)
    assert len(Corpus.open(corpus.folder)) == 100


def test_a_sample_is_drawn_once(config, monkeypatch):
    first, facts = sample_corpus(make_split(), 100, config())
    monkeypatch.setattr(corpus_sampling, "choose", None)
    again, facts_again = sample_corpus(make_split(), 100, config())
    assert (again.fingerprint, facts_again) == (first.fingerprint, facts)
    monkeypatch.undo()
    others = [
        sample_corpus(make_split(), 101, config()),
        sample_corpus(make_split(), 100, config(seed=1)),
        sample_corpus(make_split(name="validation"), 100, config()),
        sample_corpus(make_split(queries=dict(list(QUERIES.items())[:11])), 100, config()),
    ]
    assert len({corpus.fingerprint for corpus, _ in others} | {first.fingerprint}) == 5


def test_order_of_passages_and_queries_makes_no_difference(config, monkeypatch):
    def drawn(order):
        return set(sample_corpus(make_split(order=order), 120, config())[0].ids)

    assert drawn(0) == drawn(1) == drawn(2)

    def by_row(corpus, count, taken, *_):
        return np.setdiff1d(np.arange(len(corpus)), taken)[:count]

    monkeypatch.setattr(corpus_sampling, "lowest_rows", by_row)  # a rule that depends on the order is noticed
    assert drawn(3) != drawn(4)


def test_another_process_draws_the_same(config, tmp_path):
    code = (
        "import sys, json; sys.path[:0] = ['tests', '.']; import data.test_corpus_sampling as t\n"
        "from maw.config.tier1_config import Tier1Config\n"
        "config = Tier1Config(datasets=['pystdlib'], cache_dir=sys.argv[1])\n"
        "print(json.dumps(sorted(t.sample_corpus(t.make_split(order=5), 120, config)[0].ids)))"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", code, str(tmp_path / "other")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=True)
    here, _ = sample_corpus(make_split(), 120, config())
    assert json.loads(done.stdout.splitlines()[-1]) == sorted(here.ids)


def test_a_larger_sample_holds_the_smaller(config):
    data, before = make_split(), set()
    for size in (36, 40, 60, 100, 200, 350, 500, 599):
        now = set(sample_corpus(data, size, config())[0].ids)
        assert before <= now
        before = now


@pytest.mark.parametrize("size", [1, 20, 36])
def test_judged_passages_are_kept_even_beyond_the_size(config, size):
    collection = Collection("tiny", "Tiny", make_split(), make_split(), make_split(), {"warnings": ["old"]})
    got = sample_corpora(collection, config(corpus_size=size, val_corpus_size="full"))
    assert set(got.test.corpus.ids) == {p for q in QRELS for p in QRELS[q] if p in TEXTS}
    assert got.facts["corpora"]["test"]["passages"] == "sampled: 36 of 600 passages"
    assert got.facts["corpora"]["test"]["asked_for"] == size
    assert got.facts["warnings"] == [
        "old",
        "tiny: corpus_size has room only for the 36 judged passages, which are all kept; raise it",
    ]


def test_ids_that_share_a_hash_are_drawn_by_the_id(monkeypatch):
    monkeypatch.setattr(store, "hash_ids", lambda ids: np.array([len(i) % 3 for i in ids.to_pylist()], np.uint64))
    monkeypatch.setattr(corpus_sampling, "HASHES_AT_ONCE", 7)

    def drawn(order, count):
        corpus = make_split(order=order).corpus
        return set(corpus.id_of(lowest_rows(corpus, count, np.array([], int), 1, "x")))

    for count in (1, 5, 80, 300):
        assert drawn(0, count) == drawn(1, count) == drawn(2, count)
        assert len(drawn(0, count)) == count


def test_the_lowest_hashes_whatever_the_block(monkeypatch):
    corpus, taken = make_split().corpus, np.arange(50)
    whole = lowest_rows(corpus, 100, taken, 3, "x")
    assert len(set(whole)) == 100 and not set(whole) & set(taken)
    for block in (1, 64, 599):
        monkeypatch.setattr(corpus_sampling, "HASHES_AT_ONCE", block)
        assert set(lowest_rows(corpus, 100, taken, 3, "x")) == set(whole)
    assert set(lowest_rows(corpus, 10**6, taken, 3, "x")) == set(range(50, 600))
    assert lowest_rows(corpus, 0, taken, 3, "x").size == 0


def test_draws_are_even_over_ids_that_count_up():
    ids = [str(i) for i in range(40_000)]
    corpus = Corpus.from_lists(ids, [""] * len(ids))
    rows = lowest_rows(corpus, 10_000, np.array([], int), 42, "x")
    shares = np.histogram(rows, bins=20, range=(0, 40_000))[0]
    assert abs(shares - 500).max() < 100  # five standard deviations
    other = lowest_rows(corpus, 10_000, np.array([], int), 43, "x")
    assert abs(len(np.intersect1d(rows, other)) - 2500) < 250


def test_a_cut_has_exactly_its_rows(config):
    corpus = make_split().corpus
    cut = cut_to(corpus, [5, 3, 5, 77], config())
    assert list(cut.ids) == ["d3", "d5", "d77"]
    assert cut.take([1]) == [TEXTS["d5"]]


# --------------------------------------------------------------------------------------------- joined distractors


def write_folder(folder, texts, titles=None):
    folder.mkdir(parents=True)
    rows = [{"_id": i, "title": (titles or {}).get(i, ""), "text": each} for i, each in texts.items()]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture
def folders(tmp_path):
    """Two folders: new passages, copies of d1 and d2, and a passage that both have."""
    one = {"d1": "Something  else.", "x": TEXTS["d1"].upper() + " !", "y": "shared by both", "z": "SHARED by both"}
    two = {"y": "shared, by both", "w": "only here", "v": " ".join(TEXTS["d2"].split()[1:])}
    return [write_folder(tmp_path / "one", one), write_folder(tmp_path / "two", two, {"v": TEXTS["d2"].split()[0]})]


def test_distractors_join_under_ids_of_their_own_without_copies(config, folders):
    corpus = make_split().corpus
    joined, facts = join_distractors(corpus, config(distractors=[str(folders[1]), f"beir:{folders[0]}"]))
    assert list(joined.ids) == [*TEXTS, "one/d1", "one/y", "two/w"]
    assert joined.take([601]) == ["shared by both"]
    assert facts == {
        "distractors": {"one": {"passages": 4, "copies_left_out": 2}, "two": {"passages": 3, "copies_left_out": 2}}
    }
    normal = [normalise(each) for each in joined.take(range(600, 603))]
    assert not set(normal) & {normalise(each) for each in TEXTS.values()}
    again, _ = join_distractors(corpus, config(distractors=[str(folders[0]), str(folders[1])]))
    assert again.fingerprint == joined.fingerprint


def test_no_distractors_no_change(config):
    corpus = make_split().corpus
    assert join_distractors(corpus, config()) == (corpus, {})


def test_distractors_join_before_the_sample_and_not_in_training(config, folders):
    collection = Collection("tiny", "Tiny", make_split(), make_split(), make_split(), {})
    settings = config(distractors=[str(folder) for folder in folders], corpus_size="full", val_corpus_size=602)
    got = sample_corpora(collection, settings)
    assert got.train is collection.train
    assert len(got.test.corpus) == 603
    assert len(got.validation.corpus) == 602
    corpora = got.facts["corpora"]
    assert corpora["test"]["passages"] == "all 603 passages"
    assert corpora["validation"]["passages"] == "sampled: 602 of 603 passages"
    assert corpora["validation"]["distractors"]["one"]["copies_left_out"] == 2
    assert (got.facts["passages"], got.facts["passages_of_the_source"]) == (603, 600)


@pytest.mark.parametrize("wrong", ["missing", "no corpus", "\0", "~nobody/x", "x" * 5000])
def test_a_distractor_folder_that_is_not_there(config, tmp_path, wrong):
    (tmp_path / "no corpus").mkdir()
    name = str(tmp_path / wrong) if " " in wrong or wrong == "missing" else wrong
    with pytest.raises(ConfigError, match=r"distractors: .+: no such folder with passages in corpus.jsonl"):
        validate(config(distractors=[name], model="packaged:all-MiniLM-L6-v2"))


def test_two_distractor_folders_of_one_name(config, tmp_path):
    names = [str(write_folder(tmp_path / each / "same", {"a": "b"})) for each in "xy"]
    with pytest.raises(ConfigError, match=r"distractors: two folders are called 'same'"):
        validate(config(distractors=names, model="packaged:all-MiniLM-L6-v2"))


# --------------------------------------------------------------------------------------------------- the whole way


@pytest.fixture
def beir(tmp_path):
    folder = write_folder(tmp_path / "small", TEXTS)
    queries = [{"_id": i, "text": each} for i, each in QUERIES.items()]
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    (folder / "qrels").mkdir()
    for number, split in enumerate(("train", "dev", "test")):
        rows = [f"q{i}\td{i}\t1" for i in range(4 * number, 4 * number + 4)]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *rows]))
    return folder


def test_a_dataset_is_sampled_when_it_is_loaded(config, beir):
    collection = load_collection(f"beir:{beir}", config(corpus_size=100, val_corpus_size=50))
    assert [len(getattr(collection, name).corpus) for name in ("train", "validation", "test")] == [600, 50, 100]
    facts = collection.facts
    assert facts["passages"] == 100
    assert facts["passages_of_the_source"] == 600
    assert facts["corpus_sha256"] == collection.test.corpus.fingerprint
    assert facts["corpus_rule"] == "sampled: 100 of 600 passages"
    assert facts["sampling_rule"] == corpus_sampling.RULE
    assert facts["corpora"]["test"] == {
        "passages": "sampled: 100 of 600 passages", "asked_for": 100, "judged": 4, "hard": 48, "by_hash": 48,
        "sha256": collection.test.corpus.fingerprint,
    }  # fmt: skip
    assert facts["corpora"]["train"] == {"passages": "all 600 passages"}
    assert json.loads(json.dumps(facts)) == facts
    unchanged = load_collection(f"beir:{beir}", config())
    assert unchanged.facts["passages"] == 600
    assert not {"passages_of_the_source", "sampling_rule"} & unchanged.facts.keys()
    assert unchanged.test.corpus.fingerprint == collection.train.corpus.fingerprint


def test_a_summary_never_shows_a_sample_as_the_whole(config, beir):
    facts = load_collection(f"beir:{beir}", config(corpus_size=100)).facts
    result = {"dataset": "beir_small", "venue": "small", "evaluated_at": "now", "results": {}, "data": facts}
    summary = " ".join(text.benchmark_summary([result]).split())
    assert "beir_small sampled: 100 of 600 passages; scores on the whole corpus would be lower" in summary
    assert "corpus rule sampled: 100 of 600 passages" in summary
    whole = text.benchmark_summary([result | {"data": load_collection(f"beir:{beir}", config()).facts}])
    assert "sampled" not in whole
