"""Source files that are missing, damaged or not as published: one line each, in time; the files a dataset needs."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from source_fixtures import (
    PASSAGES,
    context,
    settings,
    tar,
    tsv,
    write,
    write_beir_nq,
    write_hotpotqa,
    write_msmarco,
    write_nq,
    write_questions,
    write_triviaqa,
    write_wikipedia,
)

from maw.config.tier1_config import Tier1Config
from maw.data.dataset_table import DATASETS
from maw.data.datasets import dpr
from maw.data.download import archives, published
from maw.data.download.corpus_source import beir_source
from maw.data.registry import check_sources, load_collection, needs_of
from maw.errors import DataError
from maw.runtime import network

ROOT = Path(__file__).resolve().parents[2]
WRITERS = {"msmarco": write_msmarco, "nq": write_nq, "hotpotqa": write_hotpotqa, "triviaqa": write_triviaqa}


@pytest.fixture
def refusal(home, tmp_path):
    """`refusal(name)` gives the one line with which loading a dataset is refused."""

    def refusal(name: str, **changes) -> str:
        with pytest.raises(DataError) as caught:
            load_collection(name, settings(tmp_path, **changes))
        message = str(caught.value)
        assert "\n" not in message and len(message) < 1500
        return message

    return refusal


def cut(path: Path, share: float = 0.6) -> Path:
    data = path.read_bytes()
    return write(path, data[: int(len(data) * share)])


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


# -------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("msmarco", "msmarco-passage/collectionandqueries.tar.gz"),
        ("msmarco", "msmarco-passage/queries.tar.gz"),
        ("trec_dl_2020", "msmarco-passage/trec-dl-2020/queries.tsv.gz"),
        ("nq", "beir/nq/source.zip"),
        ("nq", "dpr-w100/docs.tsv.gz"),
        ("nq", "dpr-w100/nq-train.json.gz"),
        ("triviaqa", "dpr-w100/tqa-dev.json.gz"),
        ("hotpotqa", "beir/hotpotqa/source.zip"),
    ],
)
def test_a_file_that_is_cut_short(home, refusal, name, file):
    WRITERS.get(name, write_msmarco)(home)
    path = cut(home / file)
    message = refusal(name)
    assert message.startswith(f"{path}: the file is damaged or incomplete (")
    assert "to download it again" in message


def test_no_store_is_left_of_a_corpus_that_is_cut_short(home, refusal, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "look_through", lambda path: None)  # which notices it before
    write_triviaqa(home)
    cut(home / "dpr-w100" / "docs.tsv.gz")
    refusal("triviaqa")
    stores = tmp_path / "cache" / "corpora"
    assert [path.name for path in stores.iterdir() if path.is_dir()] == []
    write_wikipedia(home)
    assert len(load_collection("triviaqa", settings(tmp_path)).test.corpus) == PASSAGES


def test_a_byte_changed_within_a_zip_archive(home, refusal):
    write_beir_nq(home)
    path = home / "beir" / "nq" / "source.zip"
    data = bytearray(path.read_bytes())
    data[120] ^= 0xFF  # in the first member's compressed data
    write(path, bytes(data))
    assert refusal("nq", methods=["zero_shot"]).startswith(f"{path}: the file is damaged or incomplete (")


@pytest.mark.parametrize("name", ["msmarco", "nq", "hotpotqa", "triviaqa"])
def test_a_file_that_is_not_the_published_one(home, refusal, name):
    WRITERS[name](home)
    message = refusal(name, verify_sources=True)
    path = Path(message.split(": ")[0])
    assert path.is_file() and path.is_relative_to(home)
    assert f"MD5 {md5(path)} instead of " in message and "--no-verify-sources" in message
    assert re.search(r"instead of [0-9a-f]{32};", message)


def test_a_wrong_copy_among_the_downloads(home, refusal):
    write_beir_nq(home)
    (home / "beir" / "nq" / "source.zip").unlink()
    copy = write(home / "downloads" / published.published("beir", "nq").md5, b"something else")
    message = refusal("nq", methods=["zero_shot"])
    assert message.startswith(f"{copy}: is not the published https://")
    assert f"MD5 {md5(copy)} instead of {copy.name}" in message


def test_a_file_is_compared_once_until_it_changes(home, tmp_path):
    write_beir_nq(home)
    config = settings(tmp_path, verify_sources=True)
    file = published.published("beir", "nq")
    file = replace(file, md5=md5(file.path))
    published.require([file], config, "nq")
    stat = file.path.stat()
    file.path.write_bytes(b"\0" * stat.st_size)
    os.utime(file.path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    published.require([file], config, "nq")  # neither size nor time say that it changed: not read again
    os.utime(file.path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    with pytest.raises(DataError, match="is not the published https"):
        published.require([file], config, "nq")


@pytest.mark.parametrize("count", [PASSAGES, 2_681_468])
def test_another_number_of_passages_than_was_published(home, tmp_path, count):
    write_beir_nq(home)
    source = beir_source("nq", mean_characters=1)
    source = replace(source, file=replace(source.file, md5=md5(source.file.path)))
    with pytest.raises(DataError) as caught:
        source.corpus(settings(tmp_path, verify_sources=True))
    assert str(caught.value).startswith(
        f"{source.file.path}: beir/nq has 2681468 passages as published, but this file has {PASSAGES};"
    )
    assert not source.stored(settings(tmp_path, verify_sources=True))
    assert len(source.corpus(settings(tmp_path, verify_sources=False))) == PASSAGES


def doc(i: int, **more) -> dict:
    return {"_id": f"doc{i}", "title": "t", "text": f"text {i}", "metadata": {}} | more


@pytest.mark.parametrize(
    ("passages", "words"),
    [
        ([*map(doc, range(12)), doc(3)], "corpus.jsonl:13: the passage id 'doc3' was used before, at "),
        ([doc(0, text=None)], 'corpus.jsonl:1: "text" is None'),
        ([doc(0), {"_id": "x"}], 'corpus.jsonl:2: there is no "text"'),
    ],
)
def test_bad_passages_of_a_beir_archive(home, refusal, passages, words):
    write_beir_nq(home, passages=passages)
    message = refusal("nq", methods=["zero_shot"])
    assert message.startswith(str(home / "beir" / "nq")) and words in message


def test_a_beir_archive_without_its_files(home, refusal):
    import zipfile

    path = write(home / "beir" / "nq" / "source.zip", b"")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", "nothing here")
    assert refusal("nq", methods=["zero_shot"]).startswith(
        f"{path}: ir_datasets cannot read the contents of the file (KeyError"
    )


@pytest.mark.parametrize(
    ("collection", "words"),
    [
        ("0\ta\n1\tb\tc\n", "collection.tsv:2: 3 columns instead of 2"),
        ("0\ta\n\n1\tb\n0\tc\n", "collection.tsv:4: the passage id '0' was used before, at "),
        (b"0\ta\n1\t\xff\n", "collectionandqueries.tar.gz: the file is not UTF-8 ("),
        ("", "collection.tsv:1: there is no passage; give"),
    ],
)
def test_bad_passages_of_msmarco(home, refusal, collection, words):
    write_msmarco(home)
    members = {"collection.tsv": collection, "queries.dev.small.tsv": "1\tq\n", "qrels.dev.small.tsv": "1\t0\t1\t1\n"}
    write(home / "msmarco-passage" / "collectionandqueries.tar.gz", tar(members))
    assert words in refusal("msmarco")


@pytest.mark.parametrize(
    ("qrels", "words"),
    [
        ("100\t0\t1\t1001\n", "train/qrels:1: the grade 1001 is out of range; grades go from -1000 to 1000"),
        ("100\t0\t1\n", "train/qrels:1: '100\\t0\\t1' is not query, iteration, passage and grade"),
        ("100\t0\t1\tx\n", "train/qrels:1: '100\\t0\\t1\\tx' is not query"),
        ("100\t0\t1\t1\n100\t0\t1\t0\n", "train/qrels: no query has a relevant passage"),
        (
            "999\t0\t1\t1\n",
            "train/qrels: the query '999' and all others are judged and msmarco-passage/train/judged has none of them",
        ),
        ("100\t0\t1\t0\n", "train/qrels: no query has a relevant passage"),
        ("", "train/qrels: no query has a relevant passage"),
    ],
)
def test_bad_judgements(home, refusal, qrels, words):
    write_msmarco(home)
    write(home / "msmarco-passage" / "train" / "qrels", qrels)
    assert words in refusal("msmarco", val_samples=1)


def test_published_judgements_of_what_is_missing_are_counted(home, tmp_path, caplog):
    write_msmarco(home)
    rows = tsv([(100 + i, 0, 777 if i == 3 else i, 1) for i in range(20)])
    write(
        home / "msmarco-passage" / "train" / "qrels",
        rows + "999\t0\t1\t1\n104\t0\t4\t0\n104\t0\t4\t2\n105\t0\t888\t0\n",
    )
    found = load_collection("msmarco", settings(tmp_path))
    assert "103" not in {*found.train.query_ids, *found.validation.query_ids} and "104" in found.train.query_ids
    assert found.train.qrels["104"] == {"4": 2}
    assert found.facts["warnings"][:2] == [
        "msmarco: 2 judgements give a pair another grade than before; the last one counts, as in BEIR: '4' for the "
        "query '104': 1, then 0 in qrels:22, '4' for the query '104': 0, then 2 in qrels:23",
        "msmarco: 1 judged queries are not among the queries and are left out: '999' in qrels",
    ]
    said = [each for each in caplog.messages if "'777'" in each]
    assert len(said) == 1 and "name passages that are not in the corpus" in said[0]


def test_a_published_test_query_whose_passage_is_missing_scores_0(home, tmp_path):
    write_beir_nq(home, passages=[*map(doc, range(10))])
    found = load_collection("nq", settings(tmp_path, methods=["zero_shot"]))
    missing = found.facts["splits"]["test"]["judged_passages_missing"]
    assert missing == sum(not set(judged) <= set(found.test.corpus.ids) for judged in found.test.qrels.values()) > 0
    assert "test10" in found.test.query_ids


def test_a_query_id_used_twice(home, refusal):
    write_msmarco(home)
    queries = tsv([(100, "a question"), (100, "another")])
    write(home / "msmarco-passage" / "queries.tar.gz", tar({"queries.train.tsv": queries}))
    assert "has an empty query id or one twice: '100'" in refusal("msmarco")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'[{"question": "q", "answers": ["a"]}]', "ir_datasets cannot read the contents of the file (KeyError"),
        (b'[{"question": "q", ', "the file is damaged or incomplete ("),
        (b"not json", "the file is damaged or incomplete ("),
        (b"[]", "no query has a relevant passage"),
    ],
)
def test_bad_questions_of_dpr(home, refusal, content, words):
    write_triviaqa(home)
    write(home / "dpr-w100" / "tqa-dev.json.gz", gzip.compress(content))
    message = refusal("triviaqa")
    assert message.startswith(str(home / "dpr-w100" / "tqa-dev")) and words in message


def test_questions_without_a_relevant_passage_are_counted(home, tmp_path):
    write_triviaqa(home)
    path = write_questions(home, "tqa-dev.json.gz", [("one", ["1"]), ("two", ["2"])], "psg_id")
    records = json.loads(gzip.decompress(path.read_bytes()))
    records[0]["positive_ctxs"] = []
    records[1]["hard_negative_ctxs"] += [context("psg_id", 2, 1)]  # a positive already
    write(path, gzip.compress(json.dumps(records).encode()))
    found = load_collection("triviaqa", settings(tmp_path))
    assert found.test.query_ids == ["dev-1"]
    assert found.facts["skipped"]["queries_without_relevant_passage"] == {"train": 0, "test": 1}


def test_wikipedia_without_its_header(home, tmp_path):
    path = write(home / "docs.tsv.gz", gzip.compress(b"1\ttext\ttitle\n"))
    with pytest.raises(DataError, match=re.escape(f"{path}:1: the header is ['1', 'text', 'title']; it must be id")):
        list(dpr.read_passages(published.Inside(path)))


def test_another_locale_is_refused(home, monkeypatch):
    monkeypatch.setattr("locale.getpreferredencoding", lambda _: "ISO-8859-1")
    with pytest.raises(DataError, match="read texts as ISO-8859-1, the locale's encoding; set PYTHONUTF8=1"):
        published.ir_datasets()


# ------------------------------------------------------------------------------------------------- without a network


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "pystdlib"])
def test_without_network_all_missing_files_are_named(home, refusal, name):
    started = time.process_time()
    message = refusal(name)
    assert time.process_time() - started < 5
    files = needs_of(name, Tier1Config()).files
    assert message.startswith(f"{name}: {len(files)} source file")
    assert "HF_HUB_OFFLINE forbids connections" in message
    for file in files:
        assert f"{file.name} from {file.url}, to be placed " in message and f"at {file.path}" in message
    assert message.endswith("or run with --preset offline, which needs none")


def test_what_has_to_be_unpacked_by_hand_is_called_so(home, refusal):
    place = home / "msmarco-passage" / "trec-dl-2019" / "queries.tsv"
    assert "msmarco-test2019-queries.tsv.gz from" in refusal("trec_dl_2019")
    assert f"to be placed unpacked at {place}" in refusal("trec_dl_2019")


def test_only_what_is_missing_is_named(home, refusal):
    write_msmarco(home)
    (home / "msmarco-passage" / "train" / "qrels").unlink()
    message = refusal("msmarco")
    assert message.startswith("msmarco: 1 source file is missing") and "qrels.train.tsv from" in message
    assert "queries.tar.gz" not in message


def test_files_of_all_datasets_are_named_at_once(home, tmp_path):
    names = ["msmarco", "nq", "hotpotqa", "triviaqa", "pystdlib"]
    with pytest.raises(DataError) as caught:
        check_sources(names, settings(tmp_path))
    message = str(caught.value)
    assert message.startswith("the datasets: 10 source files are missing")  # DPR's Wikipedia serves two of them
    assert message.count("psgs_w100.tsv.gz from") == 1
    for writer in WRITERS.values():
        writer(home)
    check_sources(names, settings(tmp_path))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def use_proxy(monkeypatch, port: int) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{port}")


def test_a_network_that_does_not_answer(home, refusal, monkeypatch):
    use_proxy(monkeypatch, free_port())
    started = time.perf_counter()
    message = refusal("hotpotqa")
    assert time.perf_counter() - started < 10
    assert message.startswith(
        "hotpotqa: 1 source file is missing and the network cannot be reached: hotpotqa.zip from"
    )


def test_a_server_that_refuses(home, refusal, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1000)
                    connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        use_proxy(monkeypatch, server.getsockname()[1])
        message = refusal("hotpotqa")
    path = home / "beir" / "hotpotqa" / "source.zip"
    assert message.startswith(f"{path}: could not be downloaded from https://") and "502" in message
    assert not path.exists()


def silence(*_, **__):
    time.sleep(1)
    raise OSError("no answer")


def test_servers_are_asked_at_once_and_in_time(monkeypatch):
    monkeypatch.setattr(network, "SECONDS", 0.3)
    monkeypatch.setattr(network, "getproxies", dict)
    monkeypatch.setattr(socket, "create_connection", silence)
    started = time.perf_counter()
    urls = [f"https://host{i}.invalid/file" for i in range(5)]
    assert network.unreachable(urls) == urls
    assert time.perf_counter() - started < 0.9


def test_a_proxy_is_asked_in_place_of_the_server(monkeypatch):
    monkeypatch.setattr(network, "getproxies", lambda: {"https": "proxy.example:3128"})
    monkeypatch.setattr(network, "proxy_bypass", lambda host: host == "inside.example")
    assert network._server("https://a.example/x") == ("proxy.example", 3128)
    assert network._server("https://inside.example/x") == ("inside.example", 443)
    assert network._server("http://a.example:8080/x") == ("a.example", 8080)


def test_the_main_command_without_network(forks, tmp_path):
    words = ["--preset", "offline", "--datasets", "nq", "--log-dir", tmp_path / "logs", "--device", "cpu"]
    done = forks.run("tier_1.py", *words, cwd=ROOT, IR_DATASETS_HOME=tmp_path / "home")
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and f"at {tmp_path}/home/beir/nq/source.zip" in lines[0]


# ------------------------------------------------------------------------------------------------------------- needs


def test_needs(home, tmp_path):
    config = Tier1Config(cache_dir=str(tmp_path / "cache"))
    msmarco, nq, hotpotqa, triviaqa = (needs_of(name, config) for name in WRITERS)
    assert msmarco.passages == {"msmarco-passage": 8_841_823}
    assert msmarco.queries == {"train": 502_939, "validation": None, "test": 6_980}
    assert msmarco.download_bytes == 1_057_717_952 + 18_882_551 + 10_589_532
    assert {file.path for file in msmarco.files} == {
        home / "msmarco-passage" / name for name in ("collectionandqueries.tar.gz", "queries.tar.gz", "train/qrels")
    }
    assert nq.passages == {"beir/nq": 2_681_468, "dpr-w100": 21_015_324}
    assert nq.queries == {"train": 58_880, "validation": 6_515, "test": 3_452}
    assert nq.download_bytes == 498_307_926 + 4_694_541_059 + 2_314_892_908 + 256_239_282
    assert hotpotqa.passages == {"beir/hotpotqa": 5_233_329}
    assert hotpotqa.queries == {"train": 85_000, "validation": 5_447, "test": 7_405}
    assert triviaqa.queries == {"train": 78_785, "validation": None, "test": 8_837}
    for each, gigabytes in ((msmarco, 6.5), (nq, 16.5), (hotpotqa, 1.8), (triviaqa, 14.9)):
        assert each.disk_bytes / 1e9 == pytest.approx(gigabytes, abs=0.4)
        assert 200 < each.mean_characters < 700
    years = [needs_of(f"trec_dl_{year}", config) for year in (2019, 2020)]
    assert [each.queries["test"] for each in years] == [43, 54]


def test_needs_shrink_as_files_come_in_and_stores_are_built(home, tmp_path):
    config = settings(tmp_path)
    before = needs_of("triviaqa", config)
    write_triviaqa(home)
    present = needs_of("triviaqa", config)
    assert (present.download_bytes, present.disk_bytes) == (0, before.disk_bytes)
    assert all(file.present for file in present.files) and len(present.files) == 3
    load_collection("triviaqa", config)
    after = needs_of("triviaqa", config)
    assert (after.download_bytes, after.disk_bytes, len(after.files)) == (0, 0, 2)


def test_needs_without_training(home):
    nq = needs_of("nq", Tier1Config(methods=["zero_shot"]))
    assert nq.passages == {"beir/nq": 2_681_468} and nq.queries == {"test": 3_452}
    assert [file.name for file in nq.files] == ["nq.zip"]


def test_what_is_on_this_machine_needs_nothing(tmp_path):
    for name in ("pystdlib", f"beir:{tmp_path}"):
        needs = needs_of(name, Tier1Config())
        assert (needs.dataset, needs.files, needs.passages, needs.download_bytes) == (name, (), {}, 0)
    with pytest.raises(DataError, match="did you mean msmarco"):
        needs_of("msmarko", Tier1Config())


def test_needs_are_told_at_once_without_torch(tmp_path):
    code = (
        "import sys, time\nfrom maw.config.tier1_config import Tier1Config\n"
        "from maw.data.registry import needs_of\nstart = time.time()\n"
        "needs = [needs_of(n, Tier1Config()) for n in ('msmarco', 'nq', 'hotpotqa', 'triviaqa')]\n"
        "assert time.time() - start < 5\nassert 'torch' not in sys.modules and 'datasets' not in sys.modules"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "IR_DATASETS_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert not list((tmp_path / "home").glob("beir/*")) and not list((tmp_path / "home").glob("dpr-w100/*.gz"))
