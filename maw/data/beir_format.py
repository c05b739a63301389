"""Reads and checks the three kinds of file in a BEIR folder, line by line.

Malformed input raises a one-line error with file and line. Byte order marks, CRLF and blank lines are accepted.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from maw.config.tier1_config import LARGEST_GRADE
from maw.data.store import UNFIT_ID, Record, Where, encodable
from maw.errors import DataError, reason, show

LONGEST_LINE = 16 << 20
LONGEST_GRADE = 1000  # characters; Python refuses to read 4301 digits
BOM = b"\xef\xbb\xbf"
HEADER = ["query-id", "corpus-id", "score"]
GRADE = re.compile(r"[+-]?[0-9]+", re.ASCII)


@dataclass(frozen=True)
class Judgements:
    """Contents of one qrels file."""

    path: Path
    qrels: dict[str, dict[str, int]]
    last_line: int
    repeated: int


def read_corpus(path: Path) -> Iterator[Record]:
    """Yields (id, title, text) of each line; `Corpus.build` checks ids and texts further."""
    for number, value in read_objects(path):
        get = value.get
        identifier, title, text = get("_id"), get("title"), get("text")
        if title is None:
            title = ""
        if not (type(identifier) is type(text) is type(title) is str and identifier):
            raise DataError(f"{path}:{number}: {_wrong_field(value)}")
        yield identifier, title, text


def read_queries(path: Path, wanted: set[str]) -> tuple[dict[str, str], int]:
    """Reads the texts of the queries in `wanted`, in file order, and counts all queries without text.

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
            text = f"the query id {show(identifier)} was used before, in line {seen[identifier]}"
            raise DataError(f"{path}:{number}: {text}; give each query its own id")
        problem = unfit(identifier, text)
        if problem:
            raise DataError(f"{path}:{number}: {problem}")
        seen[identifier] = number
        if not text.strip():
            if identifier in wanted:
                advice = "give it a text or remove its judgements"
                raise DataError(f"{path}:{number}: the query {show(identifier)} is empty and has judgements; {advice}")
            empty += 1
        elif identifier in wanted:
            texts[identifier] = text
    return texts, empty


def read_qrels(path: Path) -> Judgements:
    """Reads one qrels file.

    Raises:
        DataError: no header, a line without three columns, a grade that is no integer or out of range, or two grades
            for one pair.
    """
    qrels: dict[str, dict[str, int]] = {}
    repeated, number = 0, 0
    for number, (query_id, passage_id, grade) in qrels_rows(path):
        if not GRADE.fullmatch(grade):
            text = f"the score {show(grade)} is not an integer; write a grade such as 0 or 1"
            raise DataError(f"{path}:{number}: {text}")
        if len(grade) > LONGEST_GRADE or abs(int(grade)) > LARGEST_GRADE:
            limits = f"grades go from -{LARGEST_GRADE} to {LARGEST_GRADE}"
            raise DataError(f"{path}:{number}: the score {show(grade)} is out of range; {limits}")
        judged = qrels.setdefault(query_id, {})
        if passage_id not in judged:
            judged[passage_id] = int(grade)
        elif judged[passage_id] == int(grade):
            repeated += 1
        else:
            text = f"{show(passage_id)} has two grades for the query {show(query_id)}"
            raise DataError(f"{path}:{number}: {text}, {judged[passage_id]} and {int(grade)}; keep one")
    if not qrels:
        raise DataError(f"{path}:1: there is no judgement under the header; add some or remove the file")
    return Judgements(path, qrels, number, repeated)


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields line number and JSON object of each line that is not blank.

    Raises:
        DataError: the file is missing or empty, or a line is too long, not UTF-8, or no JSON object.
    """
    empty = True
    for number, line in read_lines(path):
        if line.isspace():
            continue
        try:
            value = json.loads(line)
        except RecursionError:
            raise DataError(f"{path}:{number}: the JSON is nested too deeply; write a flat object") from None
        except ValueError as error:
            why = "it holds a NUL character" if "\0" in line else show(str(error))
            raise DataError(f"{path}:{number}: the line is not JSON ({why}); write one object a line") from error
        if not isinstance(value, dict):
            text = f"the line is not a JSON object but a {type(value).__name__}"
            raise DataError(f'{path}:{number}: {text}; write {{"_id": ..., "text": ...}}')
        empty = False
        yield number, value
    if empty:
        raise DataError(f"{path}:1: the file is empty; it needs one JSON object a line")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields number, from 1, and text of each line, line end included; holds one line in memory."""
    try:
        if not path.is_file():
            raise DataError(f"{path}: there is no such file; a BEIR folder has corpus.jsonl, queries.jsonl and qrels/")
        with path.open("rb") as file:
            lines = iter(partial(file.readline, LONGEST_LINE + 1), b"")
            for number, line in enumerate(lines, start=1):
                if len(line) > LONGEST_LINE:
                    text = f"the line is longer than {LONGEST_LINE >> 20} MiB; split the text or check the line ends"
                    raise DataError(f"{path}:{number}: {text}")
                if number == 1:
                    line = line.removeprefix(BOM) or b"\n"
                try:
                    yield number, line.decode()
                except UnicodeDecodeError as error:
                    text = f"byte {error.start + 1} is not UTF-8; save the file as UTF-8"
                    raise DataError(f"{path}:{number}: {text}") from error
    except OSError as error:
        raise DataError(f"{path}: the file cannot be read ({show(reason(error))[1:-1]})") from error


def qrels_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields line number and the three columns of each judgement.

    Raises:
        DataError: no header, a line without three columns, an empty id, or a NUL.
    """
    header = False
    for number, line in read_lines(path):
        if line.isspace():
            continue
        columns = line.rstrip("\r\n").split("\t")
        if not header:
            if [column.strip() for column in columns] != HEADER:
                needed = "it must be query-id, corpus-id and score, separated by tabs"
                raise DataError(f"{path}:{number}: the first line is {show(line.rstrip())}; {needed}")
            header = True
            continue
        if len(columns) != len(HEADER):
            advice = "separate query-id, corpus-id and score by single tabs"
            raise DataError(f"{path}:{number}: {len(columns)} columns instead of 3; {advice}")
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
    """The mistake in a query's id or text, or None."""
    if re.search(UNFIT_ID, identifier):
        return "the query id holds a control character (tab, line end, NUL); remove it"
    if "\0" in text:
        return "the text holds a NUL character; remove it"
    if not encodable(identifier + text):
        return "an escape is half of a surrogate pair; write the whole character"
    return None


def line_finder(path: Path, header: int = 0) -> Where:
    """A function from row to "file:line", below `header` lines; it reads the file again, for errors only."""

    def where(row: int) -> str:
        lines = (number for number, line in read_lines(path) if not line.isspace())
        return f"{path}:{next(itertools.islice(lines, row + header, None), 1)}"

    return where
