"""Tiny collections in the publishers' own file formats, in a home folder that ir_datasets reads."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from maw.config.tier1_config import Tier1Config

QUOTED = 'He said "hello" to all'
QUERIES, PASSAGES = 30, 60


READ = ("base", "beir", "dpr_w100", "msmarco_passage")
"""The modules of ir_datasets.datasets that this project reads from; there are sixty."""


def forget_library() -> None:
    """Makes the next import of ir_datasets a first one, as in a new process, but for datasets that nobody reads."""
    for name in [name for name in sys.modules if name.split(".")[0] == "ir_datasets"]:
        if not name.startswith("ir_datasets.datasets.") or name.split(".")[2] in READ:
            del sys.modules[name]


def settings(tmp_path: Path, **changes) -> Tier1Config:
    """A configuration that takes unpublished files, with all queries and a cache folder of its own."""
    common = {
        "verify_sources": False,
        "cache_dir": str(tmp_path / "cache"),
        "train_samples": 1000,
        "val_samples": 5,
        "test_samples": 1000,
    }
    return Tier1Config(**(common | changes))


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def tsv(rows: Iterable[Sequence[object]]) -> str:
    return "".join("\t".join(map(str, row)) + "\n" for row in rows)


def tar(members: Mapping[str, str | bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, data in members.items():
            data = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


# ------------------------------------------------------------------------------------------------------- MS MARCO


def write_msmarco(home: Path, *, passages: Sequence[tuple[object, str]] = (), order: int = 1) -> None:
    """MS MARCO and TREC DL; query 100+i asks for passage i, dev query i (the passage's own id) for passage i."""
    folder = home / "msmarco-passage"
    passages = passages or [
        (i, "le cafÃ© du coin" if i == 7 else f"passage number {i} on topic {i % 9}") for i in range(PASSAGES)
    ]
    train = [(100 + i, f"which passage has number {i}") for i in range(QUERIES)]
    train += [(200, "What is SHARED?"), (201, "twin question"), (202, "Twin question!")]
    dev = [(i, f"where is passage {i}") for i in range(40, 50)] + [(50, "what is shared")]
    members = {
        "collection.tsv": tsv(passages),
        "queries.dev.small.tsv": tsv(dev[::order]),
        "qrels.dev.small.tsv": tsv([(i, 0, i, 1) for i, _ in dev[::order]]),
    }
    write(folder / "collectionandqueries.tar.gz", tar(members))
    unjudged = [(300, "never judged")]
    write(folder / "queries.tar.gz", tar({"queries.train.tsv": tsv([*train, *unjudged][::order])}))
    write(folder / "train" / "qrels", tsv([(i, 0, i % 40, 1) for i, _ in train[::order]]))
    for year, size in (("2019", 4), ("2020", 5)):
        queries = tsv([(1000 + i, f"graded question {i} of {year}") for i in range(size + 1)])
        rows = [(1000 + i, "Q0", i + j, j) for i in range(size) for j in range(4)]
        write(folder / f"trec-dl-{year}" / "qrels", "".join(f"{q} {z} {d} {g}\n" for q, z, d, g in rows))
        if year == "2019":
            write(folder / "trec-dl-2019" / "queries.tsv", queries)
        else:
            write(folder / "trec-dl-2020" / "queries.tsv.gz", gzip.compress(queries.encode()))


# ----------------------------------------------------------------------------------------------------------- BEIR


def write_beir(
    home: Path, name: str, splits: Mapping[str, Sequence[tuple[str, str, str]]], texts: Mapping[str, str], **more
) -> Path:
    """A BEIR archive; `splits` has (query, passage, grade) rows, `more` may replace the passages."""
    passages = more.get("passages") or [
        {"_id": f"doc{i}", "title": f"Title {i}", "text": f"text of passage {i}", "metadata": {"url": f"u{i}"}}
        for i in range(PASSAGES)
    ]
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}/corpus.jsonl", "".join(json.dumps(each) + "\n" for each in passages))
        lines = (json.dumps({"_id": i, "text": text, "metadata": {}}) + "\n" for i, text in texts.items())
        archive.writestr(f"{name}/queries.jsonl", "".join(lines))
        for split, rows in splits.items():
            header = [("query-id", "corpus-id", "score")]
            archive.writestr(f"{name}/qrels/{split}.tsv", tsv([*header, *rows]))
    return write(home / "beir" / name / "source.zip", file.getvalue())


def write_hotpotqa(home: Path, order: int = 1) -> None:
    texts = {f"{split}{i}": f"{split} question {i}" for split in ("train", "dev", "test") for i in range(12)}
    rows = {
        split: [(f"{split}{i}", f"doc{i + j}", 1) for i in range(12) for j in (0, 20)][::order]
        for split in ("train", "dev", "test")
    }
    write_beir(home, "hotpotqa", rows, dict(list(texts.items())[::order]))


def write_beir_nq(home: Path, **more) -> None:
    texts = {f"test{i}": f"who wrote book {i}" for i in range(10)} | {"test10": "Who is both?"}
    write_beir(home, "nq", {"test": [(i, f"doc{row}", 1) for row, i in enumerate(texts)]}, texts, **more)


# ------------------------------------------------------------------------------------------------------------ DPR


def write_wikipedia(home: Path, passages: int = PASSAGES) -> Path:
    """psgs_w100.tsv.gz, written by the csv module, as DPR's was."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(["id", "text", "title"])
    for i in range(1, passages + 1):
        body = QUOTED if i == 3 else '"A" and "B"' if i == 4 else f"words of passage {i}"
        writer.writerow([i, body, 'The "Title"' if i == 3 else f"Article {i // 3}"])
    return write(home / "dpr-w100" / "docs.tsv.gz", gzip.compress(text.getvalue().encode()))


def context(key: str, passage: int, score: float) -> dict[str, object]:
    return {"title": "t", "text": "x", "score": score, "title_score": 0, key: str(passage)}


def write_questions(home: Path, file: str, questions: Sequence[tuple[str, Sequence[str]]], key: str) -> Path:
    """A biencoder file: question i has the positives i+1 (gold for NQ's key) and i+2, and negatives 50, 40, 30."""
    records = [
        {
            "dataset": "x",
            "question": question,
            "answers": list(answers),
            "positive_ctxs": [context(key, i + 1, 1000 if key == "passage_id" else 9.5), context(key, i + 2, 8.0)],
            "negative_ctxs": [context(key, 60, 0)],
            "hard_negative_ctxs": [context(key, passage, 7.0) for passage in (50, 40, 30)],
        }
        for i, (question, answers) in enumerate(questions)
    ]
    return write(home / "dpr-w100" / file, gzip.compress(json.dumps(records, indent=4).encode()))


def write_nq(home: Path, **more) -> None:
    write_beir_nq(home, **more)
    write_wikipedia(home)
    train = [(f"training question {i}", [f"answer {i}"]) for i in range(12)] + [("who is BOTH", ["Both", "2"])]
    write_questions(home, "nq-train.json.gz", train, "passage_id")
    dev = [(f"dev question {i}", ["yes"]) for i in range(5)] + [("who wrote book 4", ["Four"])]
    write_questions(home, "nq-dev.json.gz", dev, "passage_id")


def write_triviaqa(home: Path) -> None:
    write_wikipedia(home)
    train = [(f"trivia question {i}", ["a", "b"]) for i in range(25)] + [("asked twice?", ["c"])]
    write_questions(home, "tqa-train.json.gz", train, "psg_id")
    dev = [(f"dev trivia {i}", [f"answer {i}", "other"]) for i in range(8)] + [("Asked twice", ["c"])]
    write_questions(home, "tqa-dev.json.gz", dev, "psg_id")
