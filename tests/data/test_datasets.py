"""The loaders over ir_datasets, on tiny files in the publishers' formats that the real ir_datasets reads."""

from __future__ import annotations

import itertools
import os

import pytest
from source_fixtures import (
    PASSAGES,
    QUOTED,
    forget_library,
    settings,
    write,
    write_hotpotqa,
    write_msmarco,
    write_nq,
    write_triviaqa,
)

from maw.data.dataset_table import source_of
from maw.data.datasets import dpr, msmarco, nq
from maw.data.download import published
from maw.data.normalise import normalise
from maw.data.registry import load_collection
from maw.data.splits import Pool

WRITERS = {
    "msmarco": write_msmarco,
    "trec_dl_2019": write_msmarco,
    "trec_dl_2020": write_msmarco,
    "nq": write_nq,
    "hotpotqa": write_hotpotqa,
    "triviaqa": write_triviaqa,
}


@pytest.fixture(scope="module")
def collections(tmp_path_factory):
    """Every collection, loaded once; and the folder of their cache."""
    folder = tmp_path_factory.mktemp("sources")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IR_DATASETS_HOME", str(folder / "ir_datasets"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        forget_library()
        for writer in dict.fromkeys(WRITERS.values()):
            writer(folder / "ir_datasets")
        yield {name: load_collection(name, settings(folder)) for name in WRITERS} | {"folder": folder}
        forget_library()


@pytest.fixture
def load(home, tmp_path):
    return lambda name, **changes: load_collection(name, settings(tmp_path, **changes))


def text_of(corpus, identifier: str) -> str:
    (row,) = corpus.rows_of([identifier])
    return corpus.take([row])[0]


# ---------------------------------------------------------------------------------------------- the four, and TREC DL


@pytest.mark.parametrize("name", WRITERS)
def test_splits_are_drawn_and_share_no_question(collections, name):
    found = collections[name]
    splits = [found.train, found.validation, found.test]
    assert all(len(split) for split in splits)
    ids = [query_id for split in splits for query_id in split.query_ids]
    texts = [{normalise(text) for text in split.queries} for split in splits]
    assert len(set(ids)) == len(ids)
    assert all(one.isdisjoint(other) for one, other in itertools.combinations(texts, 2))
    for split in splits:
        judged = [passage for graded in split.qrels.values() for passage in graded]
        assert (split.corpus.rows_of(judged) >= 0).all()
        assert len(split.corpus) == PASSAGES


@pytest.mark.parametrize("name", WRITERS)
def test_facts_say_where_it_comes_from(collections, name):
    facts = collections[name].facts
    assert facts["version"] == "ir_datasets 0.6.3"
    assert set(facts["source"]) >= {"train", "test"}
    assert {"corpus_rule", "split_rule", "skipped", "splits", "passages", "corpus_sha256"} <= facts.keys()
    assert facts["verified"] == "no: verify_sources is off"


def test_names_are_those_of_the_result_folders(collections):
    names = {name: collections[name].name for name in WRITERS}
    assert names == {
        "msmarco": "msmarco",
        "trec_dl_2019": "trec_dl_2019",
        "trec_dl_2020": "trec_dl_2020",
        "nq": "beir_nq",
        "hotpotqa": "beir_hotpotqa",
        "triviaqa": "triviaqa",
    }
    sources = [source_of(collections[name].name) for name in WRITERS]
    assert sources == ["msmarco"] * 3 + ["nq", "hotpotqa", "triviaqa"]


def test_msmarco(collections):
    found = collections["msmarco"]
    assert set(found.test.query_ids) == {str(i) for i in range(40, 51)}
    assert found.test.qrels["40"] == {"40": 1}  # a passage whose id is the query's stays
    assert text_of(found.test.corpus, "7") == "le café du coin"  # repaired by ir_datasets while it unpacked
    assert "300" not in {*found.train.query_ids, *found.validation.query_ids}
    assert "200" not in {*found.train.query_ids, *found.validation.query_ids}  # a dev question too
    # 33 judged questions, one of them a test question, and 5 held out; a twin of a held-out one would count as well
    dropped = found.facts["skipped"]["queries_shared_with_another_split"]
    assert len(found.validation) == 5
    assert len(found.train) + len(found.validation) + dropped["train"] == 33 and dropped["train"] >= 1
    assert found.facts["split_rule"].endswith("5 of 32 training queries, held out by hash")


def test_twins_are_never_on_both_sides_of_the_held_out_queries(home, tmp_path):
    write_msmarco(home)
    seen = set()
    for seed in range(12):
        found = load_collection("msmarco", settings(tmp_path, seed=seed))  # raises where two splits share a text
        seen.add(found.facts["skipped"]["queries_shared_with_another_split"]["train"])
    assert seen == {1, 2}  # with some seeds one twin is held out, and the other is then dropped


@pytest.mark.parametrize(("name", "queries"), [("trec_dl_2019", 4), ("trec_dl_2020", 5)])
def test_trec_dl_is_graded_and_relevant_from_2(collections, name, queries):
    found = collections[name]
    assert set(found.test.query_ids) == {str(1000 + i) for i in range(queries)}  # one more was not judged
    assert found.test.qrels["1001"] == {"1": 0, "2": 1, "3": 2, "4": 3}
    levels = (found.train.relevance_level, found.validation.relevance_level, found.test.relevance_level)
    assert levels == (1, 1, 2)
    assert found.test.corpus.folder == collections["msmarco"].test.corpus.folder


def test_nq(collections):
    found = collections["nq"]
    assert found.train.corpus is found.validation.corpus and found.train.corpus is not found.test.corpus
    assert set(found.train.query_ids) == {f"train-{i}" for i in range(12)}  # 12 is a test question
    assert set(found.validation.query_ids) == {f"dev-{i}" for i in range(5)}  # and so is dev's 5
    assert found.facts["skipped"]["queries_shared_with_another_split"] == {"validation": 1, "train": 1}
    assert found.train.qrels["train-3"] == {"4": 2, "5": 1}  # neither the 0 of hard negatives nor -1
    assert found.train.negatives["train-3"] == ["50", "40", "30"]  # in the file's order
    assert found.train.negatives.keys() == set(found.train.query_ids)
    assert found.test.answers == {"test4": ["Four"], "test10": ["Both", "2"]}
    assert found.facts["answers"] == {
        "source": "the same questions in DPR's train and dev files",
        "test_queries": 11,
        "with_answers": 2,
        "share": 0.1818,
    }


def test_hotpotqa(collections):
    found = collections["hotpotqa"]
    assert found.test.qrels["test3"] == {"doc3": 1, "doc23": 1}
    assert text_of(found.test.corpus, "doc3") == "Title 3 text of passage 3"
    assert (len(found.train), len(found.validation), len(found.test)) == (12, 5, 12)


def test_triviaqa(collections):
    found = collections["triviaqa"]
    assert set(found.test.query_ids) == {f"dev-{i}" for i in range(9)}
    assert found.test.qrels["dev-2"] == {"3": 1, "4": 1}
    assert found.test.answers["dev-2"] == ["answer 2", "other"]
    assert len(found.validation) == 5 and set(found.validation.query_ids) < {f"train-{i}" for i in range(25)}
    assert "train-25" not in {*found.train.query_ids, *found.validation.query_ids}
    assert found.train.negatives.keys() == set(found.train.query_ids)
    assert found.facts["note"] == "TriviaQA is not part of BEIR"
    assert found.facts["labels"].startswith("incomplete")


def test_quotes_of_the_csv_file_are_removed_once(collections):
    corpus = collections["triviaqa"].test.corpus
    assert text_of(corpus, "3") == f'The "Title" {QUOTED}'
    assert text_of(corpus, "4") == 'Article 1 "A" and "B"'
    assert text_of(corpus, "5") == "Article 1 words of passage 5"


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("", ""),
        ('"', '"'),
        ('""', ""),
        ('"a"', "a"),
        ('"a ""b"""', 'a "b"'),
        ('"""a"" b"', '"a" b'),
        ('"A" and "B"', '"A" and "B"'),
        ('say "a"', 'say "a"'),
        ('"a', '"a'),
        ('"""', '"""'),
    ],
)
def test_unquoted(raw, clean):
    assert dpr.unquoted(raw) == clean


def test_answers_are_joined_by_normalised_text():
    pools = [Pool({"a": "Who is it?"}, {}, {}, {"a": ["x"]}), Pool({"b": "who is IT"}, {}, {}, {"b": ["y"]})]
    found, facts = nq.join_answers({"1": "who is it", "2": "what"}, pools)
    assert found == {"1": ["x"]}
    assert (facts["with_answers"], facts["test_queries"], facts["share"]) == (1, 2, 0.5)


# ------------------------------------------------------------------------------------------------ stores and drawing


@pytest.mark.parametrize(("name", "writer"), [("msmarco", write_msmarco), ("hotpotqa", write_hotpotqa)])
def test_the_order_of_the_files_does_not_matter(home, tmp_path, name, writer):
    drawn = []
    for order in (1, -1):
        forget_library()
        os.environ["IR_DATASETS_HOME"] = str(home / f"order{order}")  # put back by the fixture
        writer(home / f"order{order}", order=order)
        found = load_collection(name, settings(tmp_path / str(order), train_samples=9, val_samples=3, test_samples=4))
        splits = (found.train, found.validation, found.test)
        drawn.append([(split.query_ids, split.queries, split.qrels) for split in splits])
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("name", ["msmarco", "nq", "hotpotqa", "triviaqa"])
def test_a_stored_corpus_is_not_read_again(home, load, name):
    WRITERS[name](home)
    first = load(name)
    for path in [*home.glob("*/docs.tsv.gz"), *home.glob("beir/*/source.zip"), *home.glob("*/collection*")]:
        stat = path.stat()
        path.write_bytes(b"\0" * stat.st_size)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second = load(name)
    assert second.test.corpus.fingerprint == first.test.corpus.fingerprint
    for path in [*home.glob("*/docs.tsv.gz"), *home.glob("beir/*/source.zip"), *home.glob("*/collection*")]:
        path.unlink()  # once stored, the source is not even needed
    assert load(name).facts == first.facts


def test_another_source_makes_another_store(home, load):
    write_hotpotqa(home)
    first = load("hotpotqa")
    path = home / "beir" / "hotpotqa" / "source.zip"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))
    store = first.test.corpus.folder / "manifest.json"
    before = store.stat().st_mtime_ns
    load("hotpotqa")
    assert store.stat().st_mtime_ns > before


def test_pickled_copies_are_left_alone(home, load, collections):
    forget_library()
    os.environ["IR_DATASETS_HOME"] = str(home)
    write_msmarco(home)
    write_nq(home)
    (home / "msmarco-passage" / "irds_version.txt").write_bytes(b"v2")
    for copy in ("msmarco-passage/collection.tsv", "dpr-w100/docs.tsv.gz", "beir/nq/docs"):
        for name in ("bin", "bin.meta", "bin.pos", "idx.doc_id.key.bin"):
            write(home / f"{copy}.pklz4" / name, b"not a pickle")
    for dataset in ("msmarco-passage", "dpr-w100"):
        with pytest.raises(AssertionError, match="fields do not match"):  # ir_datasets' own way opens it
            published.ir_datasets().load(dataset).docs_iter()
    for name in ("msmarco", "nq"):
        assert load(name).test.corpus.fingerprint == collections[name].test.corpus.fingerprint
    assert (home / "beir" / "nq" / "docs.pklz4" / "bin").read_bytes() == b"not a pickle"


def test_without_a_method_that_trains_only_the_test_is_needed(home, load):
    write_nq(home)
    for path in (home / "dpr-w100").iterdir():
        path.unlink()
    found = load("nq", methods=["zero_shot"])
    assert (len(found.train), len(found.validation), len(found.test)) == (0, 0, 11)
    assert found.facts["answers"]["with_answers"] == 0


def test_ir_datasets_chatter_stays_out_of_the_way(home, load, capfd, caplog):
    write_msmarco(home)
    caplog.set_level("INFO", logger="maw")
    load("msmarco")
    shown = capfd.readouterr().err
    assert "[starting]" not in shown and "[finished]" not in shown
    assert not any(record.getMessage().startswith("[") for record in caplog.records)


def test_a_collection_that_ir_datasets_would_delete_is_refused(home, load):
    write_msmarco(home)
    path = write(home / "msmarco-passage" / "collection.tsv", "0\ttext\n")
    with pytest.raises(Exception, match="ir_datasets would delete this file"):
        load("msmarco")
    assert path.read_text() == "0\ttext\n"
    write(path.with_name("irds_version.txt"), "v1")
    with pytest.raises(Exception, match="does not say v2"):
        msmarco.refuse_unrepaired(path.parent)
    write(path.with_name("irds_version.txt"), "v2")
    msmarco.refuse_unrepaired(path.parent)
