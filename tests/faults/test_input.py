"""Row 7: malformed data is parsed correctly, or refused with file and line."""

from __future__ import annotations

import json
import random
import re
import resource
import shutil
import time
from pathlib import Path

import pytest
from data.test_beir import GOOD, check_valid, mutated
from source_fixtures import forget_library, settings, write_beir_nq, write_hotpotqa, write_msmarco, write_triviaqa

from maw.config.tier1_config import Tier1Config
from maw.data import beir_format
from maw.data.registry import load_collection
from maw.errors import DataError

ROOT = Path(__file__).parents[2]
MOST_SECONDS, MOST_BYTES = 5.0, 10**9


# -------------------------------------------------------------------------------------------------- malformed data


def rows_of(name: str) -> list[bytes]:
    return GOOD[name].encode().splitlines(keepends=True)


def in_a_row(change):
    """A change of one row that is drawn, not the header."""

    def apply(name: str, source: random.Random) -> bytes:
        rows = rows_of(name)
        place = source.randrange(1, len(rows))
        rows[place] = change(rows[place], source)
        return b"".join(rows)

    return apply


def put(piece: bytes):
    """A piece put into a row, anywhere."""

    def change(row: bytes, source: random.Random) -> bytes:
        place = source.randrange(len(row))
        return row[:place] + piece + row[place:]

    return in_a_row(change)


def duplicate(name: str, source: random.Random) -> bytes:
    rows = rows_of(name)
    return b"".join([*rows, source.choice(rows[1:])])


def other_grade(row: bytes, source: random.Random) -> bytes:
    grade = source.choice([b"1.0", b"x", b"", b"1e3", b"0x1", b"nan", b"9" * 40, b" 1", b"--1"])
    return row.rstrip(b"\n").rpartition(b"\t" if b"\t" in row else b":")[0] + b"\t" + grade + b"\n"


def missing_id(row: bytes, source: random.Random) -> bytes:
    other = source.choice([b'"_id": ""', b'"_id": null', b'"id": "x"', b'"_id": 7'])
    return re.sub(rb'"_id": "[^"]*"', other, row, count=1)


def huge_line(row: bytes, source: random.Random) -> bytes:
    return row.rstrip(b"\n") + b"x" * source.choice([1 << 20, 17 << 20]) + b"\n"


FAULTS = {
    "bad UTF-8": put(b"\xc3\x28"),
    "NUL": put(b"\0"),
    "missing id": in_a_row(missing_id),
    "duplicate": duplicate,
    "grade that is no integer": in_a_row(other_grade),
    "huge line": in_a_row(huge_line),
    "empty": lambda name, source: source.choice([b"", b"\n", b" \r\n", b"\xef\xbb\xbf"]),
    "BOM": lambda name, source: b"\xef\xbb\xbf" + mutated(GOOD[name].encode(), source),
    "CRLF": lambda name, source: mutated(GOOD[name].encode().replace(b"\n", b"\r\n"), source),
    "random edits": lambda name, source: mutated(GOOD[name].encode(), source),
}


def parsed_or_refused(folder: Path, name: str, content: bytes) -> None:
    """Loads the good folder with one file changed: a valid parse, or one line with file and line number."""
    data = folder / "tiny"
    for each, text in GOOD.items():
        path = data / each
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if each == name else text.encode())
    config = Tier1Config(cache_dir=str(folder / "cache"), train_samples=9, val_samples=9, test_samples=9)
    started = time.process_time()
    try:
        found = load_collection(f"beir:{data}", config)
    except DataError as error:
        text = str(error)
        emptied = f"{data}/qrels: no (train|validation) query is left|tiny: none of the [0-9]+ [a-z]+ queries has a"
        assert re.match(rf"{data}/[a-z./]+:\d+: |{emptied}", text), text
        assert text.isprintable() and len(text) < 600, text
    else:
        check_valid(found)
    finally:
        shutil.rmtree(folder)
    assert time.process_time() - started < MOST_SECONDS


def test_malformed_data_is_parsed_or_refused_with_its_line(tmp_path, repeats, trial):
    names, before = sorted(GOOD), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(repeats(40, 1000)):
        fault = list(FAULTS)[seed % len(FAULTS)]
        with trial(7, "files in BEIR layout", f"{fault}, {seed}"):
            source = random.Random(f"input {seed}")
            name = source.choice(names)
            parsed_or_refused(tmp_path / str(seed), name, FAULTS[fault](name, source))
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_BYTES


def test_control_a_careless_parser_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(beir_format, "GRADE", re.compile(".*"))
    content = GOOD["qrels/test.tsv"].replace("\t1\n", "\thigh\n", 1).encode()
    with pytest.raises(ValueError, match="invalid literal"):
        parsed_or_refused(tmp_path / "a", "qrels/test.tsv", content)
    monkeypatch.setattr(beir_format, "unfit", lambda *_: None)
    content = GOOD["queries.jsonl"].replace('"question 5"', "7", 1).encode()
    monkeypatch.setattr(beir_format, "show", lambda value: "\n")
    with pytest.raises(AssertionError):
        parsed_or_refused(tmp_path / "b", "queries.jsonl", content)


PUBLISHED = {"msmarco": write_msmarco, "nq": write_beir_nq, "hotpotqa": write_hotpotqa, "triviaqa": write_triviaqa}


def test_malformed_published_files_are_parsed_or_refused(home, tmp_path, repeats, trial):
    for seed in range(repeats(6, 60)):
        source = random.Random(f"published {seed}")
        name = source.choice(sorted(PUBLISHED))
        with trial(7, "published files", f"{name}, {seed}"):
            shutil.rmtree(home, ignore_errors=True)
            shutil.rmtree(tmp_path / "cache", ignore_errors=True)
            forget_library()
            PUBLISHED[name](home)
            files = [path for path in sorted(home.rglob("*")) if path.is_file()]
            changed = source.choice(files)
            changed.write_bytes(mutated_inside(changed, source))
            published_or_refused(name, home, tmp_path)


def mutated_inside(path: Path, source: random.Random) -> bytes:
    """The file with edits in what it packs, or in the packed bytes themselves."""
    import gzip
    import io
    import zipfile

    data = path.read_bytes()
    if source.random() < 0.2:
        return mutated(data, source)
    if data[:2] == b"\x1f\x8b":
        return gzip.compress(mutated(gzip.decompress(data), source))
    if data[:2] == b"PK":
        packed = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
            chosen = source.choice(old.namelist())
            for each in old.namelist():
                content = old.read(each)
                new.writestr(each, mutated(content, source) if each == chosen else content)
        return packed.getvalue()
    return mutated(data, source)


def published_or_refused(name: str, home: Path, folder: Path) -> None:
    started = time.process_time()
    try:
        found = load_collection(name, settings(folder, methods=["zero_shot"] if name == "nq" else ["lora"]))
    except DataError as error:
        text = str(error)
        assert "\n" not in text and len(text) < 1500, text
        assert str(home) in text or str(folder) in text or re.match(r"beir/|dpr-w100/|msmarco-|\w+: none of", text), (
            text
        )
    else:
        known, facts = set(found.test.corpus.ids), found.facts["splits"]["test"]
        assert all(max(graded.values()) >= 1 for graded in found.test.qrels.values())
        missing = sum(len(graded.keys() - known) for graded in found.test.qrels.values())
        assert missing == facts.get("judged_passages_missing", 0)
    assert time.process_time() - started < MOST_SECONDS


@pytest.mark.parametrize(
    ("qrels", "words"),
    [
        (b"100\t0\t\xff\t1\n", "qrels:1: the id '\ufffd' is not UTF-8 text"),
        (b"100\t0\ta\0b\t1\n", "qrels:1: the id 'a\\x00b' is not UTF-8 text"),
        (b"100\t0\t1\t" + b"9" * 5000 + b"\n", "qrels:1: '100\\t0\\t1\\t999"),
    ],
    ids=["bad UTF-8", "NUL", "a grade of 5,000 digits"],
)
def test_malformed_judgements_are_named_with_their_line(home, tmp_path, qrels, words):
    write_msmarco(home)
    (home / "msmarco-passage" / "train" / "qrels").write_bytes(qrels)
    with pytest.raises(DataError) as caught:
        load_collection("msmarco", settings(tmp_path))
    assert words in str(caught.value)


@pytest.mark.parametrize("query", [{"_id": "q", "text": 7}, {"_id": 7, "text": "x"}, {"_id": "q", "text": None}, []])
def test_a_query_that_is_no_text_is_refused(home, tmp_path, query):
    import zipfile

    write_hotpotqa(home)
    path = home / "beir" / "hotpotqa" / "source.zip"
    with zipfile.ZipFile(path, "a") as archive:
        old = archive.read("hotpotqa/queries.jsonl").decode()
    lines = [old.splitlines()[0], json.dumps(query), *old.splitlines()[1:]]
    members = {}
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["hotpotqa/queries.jsonl"] = "\n".join(lines).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(DataError) as caught:
        load_collection("hotpotqa", settings(tmp_path))
    assert re.search(
        r"source.zip: beir/hotpotqa, (query 2: id and text|behind query 1: not a query)", str(caught.value)
    )
