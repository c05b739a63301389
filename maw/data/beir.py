"""Any folder in BEIR layout, as `--datasets beir:DIR`, or `beir:DIR@NAME` for other test judgements.

    DIR/corpus.jsonl      {"_id": ..., "title": ..., "text": ...} a line; the title may be missing
    DIR/queries.jsonl     {"_id": ..., "text": ...} a line
    DIR/qrels/test.tsv    query-id, corpus-id and score, separated by tabs, under a header of these names
    DIR/qrels/dev.tsv     the same; validation.tsv where there is no dev.tsv
    DIR/qrels/train.tsv   the same; needed by methods that train
    DIR/qrels/NAME.tsv    with @NAME: the test judgements, in place of test.tsv

What is malformed stops the run with one line that names file and line. What is merely unusable is counted, in
the facts of the collection and in a warning:

- queries without a relevant passage (a grade of 1 or more) in a split are left out of it;
- questions that occur in two splits, by id or normalised text, stay in test before validation before train;
- a judgement that is repeated with the same grade counts once;
- passages without any text are kept, since they are part of the corpus.

Grades of 0 and below are judged not relevant, and kept for the metrics that tell them from unjudged ones. From which
grade a passage is relevant in the binary metrics is the configuration's `relevance_level`: 2 for TREC DL.
Without a validation file, `val_samples` training queries (a fifth at most) are held out by hash. A byte order
mark, CRLF line ends and blank lines are accepted.

The corpus is stored once. The store is found by the file's path and is good as long as the file's size and
times of change are those it was built from: to compare contents would mean to read gigabytes at every start.
The SHA-256 of what was parsed is in the store's manifest and in the facts.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from maw.config import SAFE_NAME, TRAINED_METHODS, Tier1Config, beir_parts, cache_folder, is_folder
from maw.data.collection import Collection
from maw.data.corpus import Corpus
from maw.data.leakage import drop_overlap
from maw.data.splits import Pool, draw_splits, hold_out, trains
from maw.data.store import UNFIT_ID, Record, Where
from maw.errors import DataError
from maw.files import reason
from maw.rules import show

logger = logging.getLogger(__name__)

LONGEST_LINE = 16 << 20
BOM = b"\xef\xbb\xbf"
HEADER = ["query-id", "corpus-id", "score"]
LETTERS = "letters, digits, dot, underscore and hyphen, 64 at most"
GRADE = re.compile(r"[+-]?[0-9]{1,9}", re.ASCII)


@dataclass(frozen=True)
class Judgements:
    """One qrels file."""

    path: Path
    qrels: dict[str, dict[str, int]]
    last_line: int
    repeated: int


def load(folder: str | Path, config: Tier1Config) -> Collection:
    """Loads a folder in BEIR layout and draws its samples.

    Args:
        folder: its path, or path@NAME to take the test judgements from qrels/NAME.tsv.
        config: sample sizes, seed, methods, relevance level and cache folder are used.

    Raises:
        DataError: a missing or malformed file, a judgement of something unknown, a split without any relevant
            passage, or no training queries for a method that trains.
    """
    folder, name, judgements = _checked_folder(folder)
    judged = {split: read_qrels(path) for split, path in _qrels_files(folder, judgements, config).items()}
    wanted = {query_id for each in judged.values() for query_id in each.qrels}
    queries, empty_queries = read_queries(folder / "queries.jsonl", wanted)
    corpus = open_corpus(folder / "corpus.jsonl", cache_folder(config) / "corpora")
    for each in judged.values():
        _check_known(each, queries, corpus, folder)
    pools = {split: _pool(each, queries) for split, each in judged.items()}
    without = {split: len(each.qrels) - len(pools[split]) for split, each in judged.items()}
    pools, shared = drop_overlap(pools)
    split_rule = _complete(pools, config, folder)
    splits, split_facts, warnings = draw_splits(config, corpus, pools, name)
    skipped = {
        "queries_without_relevant_passage": without,
        "queries_shared_with_another_split": shared,
        "repeated_judgements": {split: each.repeated for split, each in judged.items()},
        "empty_queries_without_judgements": empty_queries,
    }
    warnings = _skip_warnings(name, skipped, corpus.empty) + warnings
    facts = {
        "source": f"BEIR folder {folder.name}",
        "version": corpus.fingerprint[:12],
        "folder": str(folder),
        "passages": len(corpus),
        "empty_passages": corpus.empty,
        "corpus_sha256": corpus.fingerprint,
        "corpus_rule": "all passages of corpus.jsonl, for every split",
        "split_rule": split_rule,
        "test_judgements": judged["test"].path.name,
        "relevance_level": splits["test"].relevance_level,
        "splits": split_facts,
        "skipped": skipped,
        "warnings": warnings,
    }
    return Collection(f"beir_{name}", f"{name} (BEIR folder)", **splits, facts=facts)


def open_corpus(path: Path, stores: Path) -> Corpus:
    """The passages of a corpus.jsonl, from their store in `stores`, which is built on first use.

    Raises:
        DataError: the file is missing, malformed, or changes while it is read.
    """
    source = {"format": "beir", "path": str(path.resolve()), "stat": _stat(path)}
    key = store_key(path)

    def records() -> Iterator[Record]:
        yield from read_corpus(path)
        if _stat(path) != source["stat"]:
            raise DataError(f"{path}: the file changed while it was read; start again when it is whole")

    return Corpus.cached(stores / f"beir-{key}", source, lambda: (records(), line_finder(path), {}))


def store_key(path: Path) -> str:
    """By which the store of a corpus.jsonl is found, as the folder `beir-<key>`."""
    return hashlib.sha256(str(path.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def read_corpus(path: Path) -> Iterator[Record]:
    """Yields (id, title, text) of each line; ids and texts are further checked by `Corpus.build`."""
    for number, value in read_objects(path):
        get = value.get
        identifier, title, text = get("_id"), get("title"), get("text")
        if title is None:
            title = ""
        if not (type(identifier) is type(text) is type(title) is str and identifier):
            raise DataError(f"{path}:{number}: {_wrong_field(value)}")
        yield identifier, title, text


def read_queries(path: Path, wanted: set[str]) -> tuple[dict[str, str], int]:
    """The texts of the queries in `wanted`, in the order of the file, and how many others have no text.

    Raises:
        DataError: a malformed line, a repeated id, or a wanted query without text.
    """
    texts: dict[str, str] = {}
    seen: dict[str, int] = {}
    empty = 0
    for number, value in read_objects(path):
        identifier, text = value.get("_id"), value.get("text")
        if not (isinstance(identifier, str) and identifier and isinstance(text, str)):
            raise DataError(f"{path}:{number}: {_wrong_field(value)}")
        if identifier in seen:
            raise DataError(
                f"{path}:{number}: the query id {show(identifier)} was used before, in line "
                f"{seen[identifier]}; give each query its own id"
            )
        problem = unfit(identifier, text)
        if problem:
            raise DataError(f"{path}:{number}: {problem}")
        seen[identifier] = number
        blank = not text.strip()
        if identifier in wanted:
            if blank:
                raise DataError(
                    f"{path}:{number}: the query {show(identifier)} is empty and has judgements; "
                    "give it a text or remove its judgements"
                )
            texts[identifier] = text
        empty += blank
    return texts, empty


def read_qrels(path: Path) -> Judgements:
    """Reads one qrels file.

    Raises:
        DataError: no header, a line without three columns, a grade that is no integer, or two for a pair.
    """
    qrels: dict[str, dict[str, int]] = {}
    repeated, number = 0, 0
    for number, (query_id, passage_id, grade) in _qrels_rows(path):
        if not GRADE.fullmatch(grade):
            raise DataError(
                f"{path}:{number}: the score {show(grade)} is not an integer; write a grade such as 0 or 1"
            )
        judged = qrels.setdefault(query_id, {})
        if passage_id not in judged:
            judged[passage_id] = int(grade)
        elif judged[passage_id] == int(grade):
            repeated += 1
        else:
            raise DataError(
                f"{path}:{number}: {show(passage_id)} has two grades for the query {show(query_id)}, "
                f"{judged[passage_id]} and {int(grade)}; keep one"
            )
    if not qrels:
        raise DataError(f"{path}:1: there is no judgement under the header; add some or remove the file")
    return Judgements(path, qrels, number, repeated)


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the line number and the JSON object of each line that is not blank.

    Raises:
        DataError: the file is missing or empty, or a line is too long, not UTF-8, or not a JSON object.
    """
    scan, empty = json.JSONDecoder().raw_decode, True
    for number, line in read_lines(path):
        try:
            value, end = scan(line)
        except (ValueError, RecursionError):
            value, end = None, 0
        if type(value) is not dict or not line[end:].isspace():  # rare: let the slow way judge
            if line.isspace():
                continue
            value = _object(path, number, line)
        empty = False
        yield number, value
    if empty:
        raise DataError(f"{path}:1: the file is empty; it needs one JSON object a line")


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except RecursionError:
        raise DataError(f"{path}:{number}: the JSON is nested too deeply; write a flat object") from None
    except ValueError as error:
        reason = "it holds a NUL character" if "\0" in line else show(str(error))
        raise DataError(f"{path}:{number}: the line is not JSON ({reason}); write one object a line") from error
    if not isinstance(value, dict):
        raise DataError(
            f"{path}:{number}: the line is not a JSON object but a {type(value).__name__}; "
            'write {"_id": ..., "text": ...}'
        )
    return value


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields number and text of each line, from 1, its end included; never more than one in memory."""
    try:
        if not path.is_file():
            raise DataError(f"{path}: there is no such file; a BEIR folder has corpus.jsonl, queries.jsonl and qrels/")
        with path.open("rb") as file:
            lines = iter(partial(file.readline, LONGEST_LINE + 1), b"")
            for number, line in enumerate(lines, start=1):
                if len(line) > LONGEST_LINE:
                    raise DataError(
                        f"{path}:{number}: the line is longer than {LONGEST_LINE >> 20} MiB; "
                        "split the text or check the line ends"
                    )
                if number == 1:
                    line = line.removeprefix(BOM) or b"\n"
                try:
                    yield number, line.decode()
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{path}:{number}: byte {error.start + 1} is not UTF-8; save the file as UTF-8"
                    ) from error
    except OSError as error:
        raise DataError(f"{path}: the file cannot be read ({show(reason(error))[1:-1]})") from error


def _qrels_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    header = False
    for number, line in read_lines(path):
        if line.isspace():
            continue
        columns = line.rstrip("\r\n").split("\t")
        if not header:
            if [column.strip() for column in columns] != HEADER:
                raise DataError(
                    f"{path}:{number}: the first line is {show(line.rstrip())}; it must be query-id, corpus-id "
                    "and score, separated by tabs"
                )
            header = True
            continue
        if len(columns) != len(HEADER):
            raise DataError(
                f"{path}:{number}: {len(columns)} columns instead of 3; separate query-id, corpus-id and "
                "score by single tabs"
            )
        if "\0" in line:
            raise DataError(f"{path}:{number}: the line holds a NUL character; remove it")
        if not columns[0] or not columns[1]:
            raise DataError(f"{path}:{number}: the {HEADER[0] if not columns[0] else HEADER[1]} is empty; fill it in")
        yield number, columns
    if not header:
        raise DataError(f"{path}:1: the file is empty; it needs a header and one judgement a line")


def _wrong_field(value: dict[str, Any]) -> str:
    for field in ("_id", "text"):
        if field not in value:
            return f'there is no "{field}"; add it'
    for field in ("_id", "text", "title"):
        if not isinstance(value.get(field, ""), str):
            return f'"{field}" is {show(value[field])}; write a string in quotes'
    return '"_id" is empty; give the line an id'


def unfit(identifier: str, text: str) -> str | None:
    """What is wrong with a query's id and text, or None."""
    if re.search(UNFIT_ID, identifier):
        return "the query id holds a control character (tab, line end, NUL); remove it"
    if "\0" in text:
        return "the text holds a NUL character; remove it"
    try:
        (identifier + text).encode("utf-8")
    except UnicodeEncodeError:
        return "an escape is half of a surrogate pair; write the whole character"
    return None


def line_finder(path: Path, header: int = 0) -> Where:
    """row -> "file:line" below so many header lines; reads the file again, since only errors ask for it."""

    def where(row: int) -> str:
        lines = (number for number, line in read_lines(path) if not line.isspace())
        return f"{path}:{next(itertools.islice(lines, row + header, None), 1)}"

    return where


def _stat(path: Path) -> list[int]:
    try:
        stat = path.stat()
    except OSError:  # reading will say what is wrong
        return []
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _checked_folder(text: str | Path) -> tuple[Path, str, str | None]:
    """The folder, the name of its results, and that of the test judgements, if the text gives one."""
    text = str(text)
    where = f"beir:{show(text)[1:-1]}"
    folder, judgements = beir_parts(text)
    if not is_folder(folder):
        raise DataError(f"{where}: there is no such folder; write beir:DIR with a folder in BEIR layout")
    path = Path(folder).expanduser()
    name = path.name if path.name not in ("", "..") else path.resolve().name
    if not SAFE_NAME.fullmatch(name):
        text = "the folder's name becomes that of the results, so it may hold only"
        raise DataError(f"{where}: {text} {LETTERS}; rename it or link to it")
    if judgements is None:
        return path, name, None
    if not (SAFE_NAME.fullmatch(judgements) and SAFE_NAME.fullmatch(f"{name}_{judgements}")):
        text = "what follows @ names the test judgements, qrels/NAME.tsv, and may with the folder's name hold only"
        raise DataError(f"{where}: {text} {LETTERS}")
    return path, f"{name}_{judgements}", judgements


def _qrels_files(folder: Path, judgements: str | None, config: Tier1Config) -> dict[str, Path]:
    qrels = folder / "qrels"
    dev, validation = qrels / "dev.tsv", qrels / "validation.tsv"
    if dev.exists() and validation.exists():
        raise DataError(f"{validation}: there is a dev.tsv too and both are the validation split; keep one of them")
    files = {"train": qrels / "train.tsv", "validation": dev if dev.exists() else validation}
    files = {split: path for split, path in files.items() if path.exists()}
    if trains(config) and "train" not in files:
        methods = ", ".join(method for method in config.methods if method in TRAINED_METHODS)
        raise DataError(
            f"{qrels / 'train.tsv'}: there is no such file and {methods} must train; add it, or run with "
            "--methods zero_shot"
        )
    test = qrels / f"{judgements or 'test'}.tsv"
    if judgements and not test.is_file():
        raise DataError(f"{test}: there is no such file, and @{judgements} asks for its judgements as the test split")
    return files | {"test": test}


def _check_known(judged: Judgements, queries: dict[str, str], corpus: Corpus, folder: Path) -> None:
    strange = {query_id for query_id in judged.qrels if query_id not in queries}
    if strange:
        raise _unknown(judged.path, 0, strange, folder / "queries.jsonl")
    passages = list(dict.fromkeys(passage for each in judged.qrels.values() for passage in each))
    missing = {passages[i] for i in (corpus.rows_of(passages) < 0).nonzero()[0]}
    if missing:
        raise _unknown(judged.path, 1, missing, folder / "corpus.jsonl")


def _unknown(path: Path, column: int, ids: set[str], home: Path) -> DataError:
    number, row = next((number, row) for number, row in _qrels_rows(path) if row[column] in ids)
    more = f" (and {len(ids) - 1} more)" if len(ids) > 1 else ""
    return DataError(
        f"{path}:{number}: the {HEADER[column]} {show(row[column])}{more} is not in {home.name}; "
        "add it there or remove the judgement"
    )


def _pool(judged: Judgements, queries: dict[str, str]) -> Pool:
    ids = [query_id for query_id, each in judged.qrels.items() if max(each.values()) >= 1]
    if not ids:
        raise DataError(
            f"{judged.path}:{judged.last_line}: the file ends and no query has a relevant passage; at least "
            "one needs a score of 1 or more"
        )
    return Pool({i: queries[i] for i in ids}, {i: judged.qrels[i] for i in ids})


def _complete(pools: dict[str, Pool], config: Tier1Config, folder: Path) -> str:
    """Adds the validation split where the folder has none; gives the rule by which the splits came about."""
    rule = "the folder's own qrels files; a question in two splits stays in test before validation before train"
    train = pools.get("train", Pool())
    if "validation" not in pools and len(train) > 1:
        pools["train"], pools["validation"] = hold_out(train, config)
        rule += f"; validation: {len(pools['validation'])} of {len(train)} training queries, held out by hash"
    for split in ("train", "validation"):
        if trains(config) and not pools.get(split):
            raise DataError(
                f"{folder / 'qrels'}: no {split} query is left once the questions of the other splits are "
                f"taken out; add more, or run with --methods zero_shot"
            )
    return rule


def _skip_warnings(name: str, skipped: dict[str, Any], empty_passages: int) -> list[str]:
    counts: Iterable[tuple[str, int]] = [
        *(
            (f"{split} queries have no relevant passage and are left out", n)
            for split, n in skipped["queries_without_relevant_passage"].items()
        ),
        *(
            (f"{split} questions occur in another split too and are left out of {split}", n)
            for split, n in skipped["queries_shared_with_another_split"].items()
        ),
        *(
            (f"judgements in {split} are repeated and count once", n)
            for split, n in skipped["repeated_judgements"].items()
        ),
        ("queries without judgements are empty and are ignored", skipped["empty_queries_without_judgements"]),
        ("passages have no text; they are kept", empty_passages),
    ]
    warnings = [f"{name}: {n} {what}" for what, n in counts if n]
    for warning in warnings:
        logger.warning(warning)
    return warnings
