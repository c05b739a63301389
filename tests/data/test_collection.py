"""The passage store against plain Python references, and stores that are damaged or built by two processes at once."""

from __future__ import annotations

import json
import logging
import os
import random
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from maw.data import store
from maw.data.collection import RetrievalData
from maw.data.corpus import Corpus
from maw.errors import DataError
from maw.storage import cache_entry

LETTERS = "aZ09-_. \u00e9\u4e2d\U0001f600\uffee\u07ff"


def random_records(count, seed=0):
    source = random.Random(seed)
    ids = list({"".join(source.choices(LETTERS, k=source.randint(1, 12))) for _ in range(count)})
    ids.sort(key=lambda _: source.random())

    def text(longest):
        return "".join(source.choices(LETTERS, k=source.randint(0, longest)))

    return [(identifier, source.choice(["", text(5)]), source.choice(["", text(40)])) for identifier in ids]


def expected_text(record):
    _, title, text = record
    return title + " " + text if title and text else title + text


@pytest.fixture(scope="module")
def records():
    return random_records(3000)


@pytest.fixture(scope="module", params=["stored", "in memory"])
def corpus(request, records, tmp_path_factory):
    if request.param == "stored":
        return Corpus.build(iter(records), tmp_path_factory.mktemp("store") / "corpus")
    ids, titles, texts = zip(*records)
    return Corpus.from_lists(ids, texts, titles)


def test_texts_and_ids_are_those_put_in(corpus, records):
    rows = random.Random(1).choices(range(len(records)), k=500)
    assert len(corpus) == len(records)
    assert corpus.take(rows) == [expected_text(records[row]) for row in rows]
    assert corpus.id_of(np.array(rows)) == [records[row][0] for row in rows]
    assert corpus.take([]) == corpus.id_of([]) == []


def test_ids_of_many_rankings_are_those_of_each(corpus, records):
    rows = np.random.default_rng(0).integers(0, len(records), (7, 50))
    rows[0, :3] = [0, len(records) - 1, 0]
    assert corpus.ids_of(rows) == [corpus.id_of(row) for row in rows]
    assert corpus.ids_of(rows[:, :0]) == [[]] * 7 and corpus.ids_of(rows[:0]) == []


@pytest.mark.parametrize("rows", [[-1], [10**6], [0, -5]])
def test_a_row_that_is_not_there_is_refused(corpus, rows):
    with pytest.raises(IndexError, match=r"rows must be in 0\.\."):
        corpus.take(rows)
    with pytest.raises(IndexError, match=r"rows must be in 0\.\."):
        corpus.ids_of(np.array([rows]))


def test_ids_are_found_in_whichever_chunk_of_the_store_they_lie(records, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "BATCH_ROWS", 64)
    chunked = Corpus.build(iter(records), tmp_path / "corpus")
    assert chunked.dataset.data.column("id").num_chunks > 2
    rows = np.random.default_rng(1).permutation(len(records))[:200].reshape(4, 50)
    assert chunked.ids_of(rows) == [[records[row][0] for row in ranking] for ranking in rows]


def test_ids_are_a_sequence_of_strings(corpus, records):
    ids = [record[0] for record in records]
    assert list(corpus.ids) == ids
    assert corpus.ids[5] == ids[5]
    assert corpus.ids[-1] == ids[-1]
    assert corpus.ids[2:5] == ids[2:5]
    assert len(corpus.ids) == len(ids)


def test_rows_of_finds_every_id_and_nothing_else(corpus, records):
    ids = [record[0] for record in records]
    shuffled = random.Random(2).sample(range(len(ids)), len(ids))
    assert corpus.rows_of([ids[row] for row in shuffled]).tolist() == shuffled
    strange = ["", "not there", "\0", "\ud800", "x" * 5000, ids[0] + "\0"]
    rows = corpus.rows_of([*strange, ids[7]])
    assert rows.dtype == np.int64
    assert rows.tolist() == [-1] * len(strange) + [7]
    assert corpus.rows_of([]).shape == (0,)


def test_lengths_are_those_of_the_texts(corpus, records):
    assert corpus.lengths().tolist() == [len(expected_text(record)) for record in records]


def test_tie_order_is_descending_by_bytes(corpus, records):
    encoded = [record[0].encode("utf-8") for record in records]
    order = sorted(range(len(encoded)), key=lambda row: encoded[row], reverse=True)
    assert corpus.tie_order()[order].tolist() == list(range(len(order)))
    assert not corpus.tie_order().flags.writeable


def test_tie_order_is_the_one_of_trec_eval():
    """With equal scores, success at k tells at which place trec_eval puts a document."""
    import pytrec_eval

    ids = ["a", "B", "aa", "Z", "10", "9", "\u00e9", "\U0001f600", "\uffee", "a-b", "a_b", "\u4e2d"]
    ranks = Corpus.from_lists(ids, ids).tie_order()
    run = {"q": dict.fromkeys(ids, 1.0)}
    for row, identifier in enumerate(ids):
        evaluator = pytrec_eval.RelevanceEvaluator({"q": {identifier: 1}}, {"recip_rank"})
        assert round(1 / evaluator.evaluate(run)["q"]["recip_rank"]) == ranks[row] + 1


def test_passages_without_text_are_counted(corpus, records):
    assert corpus.empty == sum(not (title + text).strip() for _, title, text in records) > 0
    assert Corpus.from_lists(["a", "b", "c"], [" \t\n", "", "x"], ["\u3000", "t", ""]).empty == 1


def test_the_fingerprint_is_of_the_contents(records):
    ids, titles, texts = zip(*records)
    first = Corpus.from_lists(ids, texts, titles).fingerprint
    assert first == Corpus.from_lists(list(ids), list(texts), list(titles)).fingerprint
    moved = [("a", "bc", "d")], [("a", "b", "cd")], [("ab", "c", "d")], [("a", "bcd", "")]
    others = {Corpus.from_lists(*([value] for value in (one[0][0], one[0][2]))).fingerprint for one in moved}
    titled = {Corpus.from_lists([i], [text], [title]).fingerprint for ((i, title, text),) in moved}
    assert len(titled) == 4
    assert first not in others | titled
    changed = [*texts[:-1], texts[-1] + "."]
    assert Corpus.from_lists(ids, changed, titles).fingerprint != first


def test_store_and_memory_agree(records, tmp_path):
    ids, titles, texts = zip(*records)
    built = Corpus.build(iter(records), tmp_path / "store", source={"from": "test"})
    assert built.fingerprint == Corpus.from_lists(ids, texts, titles).fingerprint
    manifest = json.loads((tmp_path / "store" / "manifest.json").read_text())
    assert (manifest["count"], manifest["source"]) == (len(records), {"from": "test"})
    assert manifest["fingerprint"] == built.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert len(Corpus.open(tmp_path / "store")) == len(records)


def test_batches_are_cut_by_size_too(monkeypatch, records, tmp_path):
    monkeypatch.setattr(store, "BATCH_CHARACTERS", 200)
    corpus = Corpus.build(iter(records), tmp_path / "store")
    assert corpus.ids.arrow.num_chunks > 100
    assert corpus.take(range(len(records))) == [expected_text(record) for record in records]
    assert len(Corpus.open(tmp_path / "store")) == len(records)


@pytest.mark.parametrize("part", [1, 7, 1000, 2999, 3000])
def test_the_index_does_not_depend_on_its_parts(monkeypatch, records, tmp_path, part):
    ids, titles, texts = zip(*records)
    whole = np.stack(Corpus.from_lists(ids, texts, titles).id_hashes())
    assert whole.dtype == np.uint64 and (np.diff(whole[0].astype(object)) > 0).all()
    assert np.array_equal(store.hash_ids(pa.array(ids))[whole[1].astype(int)], whole[0])
    monkeypatch.setattr(store, "INDEX_PART", part)
    built = Corpus.build(iter(records), tmp_path / "store")
    assert np.array_equal(np.load(tmp_path / "store" / "index.npy"), whole)
    assert np.array_equal(np.stack(built.id_hashes()), whole)


class TestCollisions:
    """A hash with three values: all that must hold is that ids are compared themselves."""

    @pytest.fixture(autouse=True)
    def weak_hash(self, monkeypatch):
        real = store.hash_ids
        monkeypatch.setattr(store, "hash_ids", lambda ids: real(ids) % np.uint64(3))

    def test_rows_are_found(self, records):
        ids = [record[0] for record in records[:200]]
        corpus = Corpus.from_lists(ids, ids)
        assert corpus.rows_of([*ids, "no", "none", "nothing"]).tolist() == [*range(200), -1, -1, -1]

    @pytest.mark.parametrize("place", [1, 57, 199])
    def test_duplicates_are_told_from_collisions(self, records, place):
        ids = [record[0] for record in records[:200]]
        ids[place] = ids[0]
        with pytest.raises(DataError, match=f"^passage {place}: .* used before, at passage 0; "):
            Corpus.from_lists(ids, ids)


def test_hashes_do_not_depend_on_neighbours(records):
    ids = ["", *(record[0] for record in records), "x" * 1000]
    together = store.hash_ids(pa.array(ids, pa.string()))
    assert together.tolist() == [int(store.hash_ids(pa.array([i], pa.string()))[0]) for i in ids]
    assert store.hash_ids(pa.array(ids, pa.string())[10:20]).tolist() == together[10:20].tolist()
    assert len(set(together.tolist())) == len(ids)


@pytest.mark.parametrize(
    "bad, message",
    [
        (("", "", "text"), "the passage has an empty id; give it one"),
        (("a\tb", "", "text"), "the passage id holds a control character"),
        (("a\0", "", "text"), "the passage id holds a control character"),
        (("x" * 1001, "", "text"), "the passage id is longer than 1000 bytes; shorten it"),
        (("n", "", "te\0xt"), "the text holds a NUL character; remove it"),
        (("n", "\0", "text"), "the title holds a NUL character; remove it"),
        (("n", "", "half \ud83d"), "an escape is half of a surrogate pair; write the whole character"),
        (("p3", "", "again"), "the passage id 'p3' was used before, at file:4; give each passage its own id"),
    ],
)
@pytest.mark.parametrize("row", [4, 5000])
def test_a_bad_passage_is_named_and_leaves_nothing(bad, message, row, tmp_path):
    records = [(f"p{i}", "", "text") for i in range(row)] + [bad, ("last", "", "text")]
    with pytest.raises(DataError) as caught:
        Corpus.build(iter(records), tmp_path / "store", where=lambda row: f"file:{row + 1}")
    assert str(caught.value).startswith(f"file:{row + 1}: {message}")
    assert list(tmp_path.iterdir()) == []


def test_no_passages_are_refused(tmp_path):
    with pytest.raises(DataError, match="there is no passage; give"):
        Corpus.build([], tmp_path / "store")
    with pytest.raises(DataError, match="there is no passage; give"):
        Corpus.from_lists([], [])


class TestCached:
    """`Corpus.cached` builds once, and again only where it must."""

    RECORDS = tuple((f"p{i}", "", f"text {i}") for i in range(100))

    @pytest.fixture
    def cached(self, tmp_path):
        def call(source="one", records=self.RECORDS):
            def make():
                call.builds += 1
                return iter(records), None, {"extra": {"source": source}}

            return Corpus.cached(tmp_path / "cache" / "store", {"source": source}, make)

        call.builds = 0
        call.folder = tmp_path / "cache" / "store"
        return call

    def test_the_second_call_opens(self, cached):
        first, second = cached(), cached()
        assert cached.builds == 1
        assert first.fingerprint == second.fingerprint
        assert second.attachment("extra") == {"source": "one"}

    def test_another_source_is_built(self, cached):
        old = cached()
        new = cached("two", self.RECORDS[:5])
        assert (cached.builds, len(new), len(old)) == (2, 5, 100)
        assert old.take([99]) == ["text 99"]  # who has the old one open can go on
        assert new.attachment("extra") == {"source": "two"}

    @pytest.mark.parametrize("name", ["passages.arrow", "index.npy", "manifest.json", "extra.json"])
    @pytest.mark.parametrize("damage", ["removed", "emptied", "cut", "longer"])
    def test_a_damaged_file_is_built_again_with_a_warning(self, cached, name, damage, caplog):
        want = cached().fingerprint
        path = cached.folder / name
        data = path.read_bytes()
        path.unlink()
        if damage != "removed":
            path.write_bytes({"emptied": b"", "cut": data[: len(data) // 2], "longer": data + b"x"}[damage])
        with caplog.at_level(logging.WARNING):
            again = cached()
        assert (cached.builds, again.fingerprint) == (2, want)
        (warning,) = caplog.messages
        assert str(cached.folder) in warning
        assert "building it again" in warning
        assert again.take([3]) == ["text 3"]

    @pytest.mark.parametrize("name", ["passages.arrow", "index.npy", "manifest.json", "extra.json"])
    @pytest.mark.parametrize("seed", range(5))
    def test_a_flipped_bit_is_found(self, cached, name, seed):
        want = cached().fingerprint
        path = cached.folder / name
        data = bytearray(path.read_bytes())
        data[random.Random(seed).randrange(len(data))] ^= 1 << random.Random(seed).randrange(8)
        path.write_bytes(data)
        again = cached()
        assert (cached.builds, again.fingerprint) == (2, want)
        assert again.take(range(100)) == [text for _, _, text in self.RECORDS]

    def test_large_files_are_compared_before_they_are_used(self, cached, monkeypatch):
        cached()
        path = cached.folder / "passages.arrow"
        path.write_bytes(path.read_bytes().replace(b"text 42", b"text 43"))
        monkeypatch.setattr(cache_entry, "VERIFY_BYTES", 0)
        with pytest.raises(DataError, match=r"passages\.arrow: the file was changed after it was written"):
            Corpus.open(cached.folder)
        assert cached().take([42]) == ["text 42"] and cached.builds == 2

    def test_large_files_are_compared_once_in_a_process(self, cached, monkeypatch):
        monkeypatch.setattr(cache_entry, "VERIFY_BYTES", 0)
        monkeypatch.setattr(cache_entry, "_COMPARED", set())
        read, real = [], cache_entry.sha256
        monkeypatch.setattr(cache_entry, "sha256", lambda path: (read.append(path.name), real(path))[1])
        cached()
        read.clear()
        cached(), cached()
        assert sorted(read) == ["extra.json", "index.npy", "passages.arrow"] and cached.builds == 1
        (cached.folder / "passages.arrow").touch()  # written to, so compared again
        cached()
        assert read[3:] == ["passages.arrow"]

    @pytest.mark.parametrize("value", [None, [], {}, {"version": 99}, {"version": 1, "count": 100}, "x"])
    def test_a_manifest_that_is_none_is_built_again(self, cached, value):
        cached()
        (cached.folder / "manifest.json").write_text(json.dumps(value))
        assert len(cached()) == 100
        assert cached.builds == 2

    def test_a_wrong_count_is_found(self, cached):
        cached()
        path = cached.folder / "manifest.json"
        manifest = json.loads(path.read_text()) | {"count": 101}
        del manifest["sha256"]
        path.write_text(json.dumps(manifest | {"sha256": cache_entry.json_sha(manifest)}))
        with pytest.raises(DataError, match="holds 100 passages and its manifest says 101"):
            Corpus.open(cached.folder)
        assert len(cached()) == 100
        assert cached.builds == 2

    def test_what_a_killed_builder_left_is_removed(self, cached):
        stray = cached.folder.parent / "store.abc123.tmp"
        stray.mkdir(parents=True)
        (stray / "passages.arrow").write_bytes(b"half")
        cached()
        assert not stray.exists()

    def test_a_failed_build_leaves_the_old_store(self, cached):
        cached()
        with pytest.raises(DataError, match="used before"):
            cached("two", [("a", "", "x"), ("a", "", "y")])
        assert len(Corpus.open(cached.folder)) == 100

    def test_a_folder_that_cannot_be_made_is_named(self, tmp_path):
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(DataError, match=r"file/store: cannot write the passage store \(.+\)"):
            Corpus.cached(tmp_path / "file" / "store", {}, lambda: (iter(self.RECORDS), None, {}))

    def test_a_full_disk_is_named_and_leaves_the_old_store(self, cached, monkeypatch):
        cached()

        def full(_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(
            DataError,
            match=r"store: cannot write the passage store \(the disk is full \(No space left on device\)\); free",
        ):
            cached("two")
        monkeypatch.undo()
        assert len(Corpus.open(cached.folder)) == 100
        assert not list(cached.folder.parent.glob("*.tmp"))


def test_processes_that_start_together_build_once(tmp_path):
    program = """
import sys, time
from pathlib import Path
from maw.data.corpus import Corpus
folder = Path(sys.argv[1])
def make():
    (folder / f"built by {sys.argv[2]}").touch()
    time.sleep(0.5)
    return ((f"p{i}", "", f"text {i}") for i in range(1000)), None, {}
print(Corpus.cached(folder / "store", {"a": 1}, make).fingerprint)
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    runs = [subprocess.Popen([*command, str(n)], stdout=subprocess.PIPE, text=True, env=environment) for n in range(3)]
    fingerprints = {run.communicate(timeout=60)[0] for run in runs}
    assert [run.returncode for run in runs] == [0, 0, 0]
    assert len(fingerprints) == 1
    assert len(list(tmp_path.glob("built by *"))) == 1


class TestRetrievalData:
    CORPUS = Corpus.from_lists(["a", "b"], ["text a", "text b"])

    def make(self, qrels, **changes):
        fields = {"query_ids": list(qrels), "queries": ["text"] * len(qrels), "qrels": qrels}
        return RetrievalData(self.CORPUS, "test", **(fields | changes))

    def test_a_split_may_be_empty(self):
        assert len(self.make({})) == 0

    @pytest.mark.parametrize("judged", [{}, {"a": 0}, {"b": -1}])
    def test_each_query_has_a_relevant_passage(self, judged):
        with pytest.raises(DataError, match=r"test: the query 'q2' has no relevant passage \(grade 1 or more\)"):
            self.make({"q1": {"a": 1, "gone": 1}, "q2": judged})

    def test_only_a_training_query_needs_one_in_the_corpus(self):
        qrels = {"q1": {"a": 1, "gone": 1}, "q2": {"gone": 1, "b": 0}}
        assert self.make(qrels).qrels == qrels
        with pytest.raises(DataError, match=r"train: the query 'q2' has no relevant passage .* in the corpus"):
            RetrievalData(self.CORPUS, "train", ["q1", "q2"], ["x", "y"], qrels)

    @pytest.mark.parametrize(
        "changes",
        [
            {"query_ids": ["q1", "q1"], "queries": ["x", "y"]},
            {"query_ids": ["q1", "q2"], "queries": ["x", "y"]},
            {"queries": []},
            {"negatives": {"q9": ["a"]}},
        ],
    )
    def test_parts_that_do_not_fit_are_refused(self, changes):
        with pytest.raises(DataError, match=r"^test: "):
            self.make({"q1": {"a": 1}}, **changes)

    def test_the_hash_of_judgements_ignores_order_and_sees_change(self):
        one = self.make({"q1": {"a": 1, "b": 0}, "q2": {"b": 2}}).qrels_hash()
        assert one == self.make({"q2": {"b": 2}, "q1": {"b": 0, "a": 1}}).qrels_hash()
        assert one != self.make({"q1": {"a": 1, "b": 0}, "q2": {"b": 1}}).qrels_hash()


@pytest.mark.parametrize("content", [None, b"{", b"\xff\xfe"], ids=["missing", "half", "not text"])
def test_a_damaged_attachment_says_what_to_do(tmp_path, content):
    corpus = Corpus.build([("a", "", "a text")], tmp_path / "store", attachments={"counts": {"a": 1}})
    path = tmp_path / "store" / "counts.json"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DataError, match=r"counts\.json: .*; delete the folder$"):
        corpus.attachment("counts")
