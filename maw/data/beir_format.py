"""Reads and checks the three kinds of file in a BEIR folder, line by line.

Malformed input raises a one-line error with file and line. Byte order marks, CRLF and blank lines are accepted. What
is unusual but has a meaning is counted (`Counts`), and read as BEIR's loader or trec_eval reads it:

- qrels: a missing header, other names in it, TREC's four columns (query, iteration, passage, grade), columns beyond
  the third, and grades with a decimal point, which trec_eval cuts off. Of several grades for one pair the last counts.
- corpus.jsonl and queries.jsonl: ids that are whole numbers. Of several lines with one id the last counts.
- queries with an empty text are queries.

Source: https://github.com/beir-cellar/beir (beir/datasets/data_loader.py); https://github.com/usnistgov/trec_eval
    (get_qrels.c).
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
GRADE = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?", re.ASCII)
EXAMPLES = 3

COUNTED = {
    "no_header": "first lines are no header but a judgement, and are read as one",
    "other_header": "first lines are taken for a header, though they are not query-id, corpus-id and score",
    "trec_format": "files have TREC's four columns: query, iteration, passage and grade",
    "more_columns": "judgements have more than three columns; what follows the third is ignored",
    "decimal_grades": "grades have a decimal point; what follows it is cut off, as in trec_eval",
    "contradictory_judgements": "judgements give a pair another grade than before; the last one counts, as in BEIR",
    "unknown_queries": "judged queries are not among the queries and are left out",
    "empty_queries": "judged queries have an empty text; they are kept, as in BEIR",
    "repeated_query_ids": "query ids are used again; the last text counts, as in BEIR",
    "repeated_passage_ids": "passage ids are used again; the last passage counts, as in BEIR",
    "number_ids": "ids are numbers without quotes, and are read as text",
}
"""What is counted -> its part of a warning, behind the number."""


class Counts(dict[str, dict[str, Any]]):
    """What a file holds that is unusual, JSON-able: key of `COUNTED` -> "count" and the "first" examples."""

    def add(self, kind: str, example: str) -> None:
        """Counts one case."""
        entry = self.setdefault(kind, {"count": 0, "first": []})
        entry["count"] += 1
        if len(entry["first"]) < EXAMPLES:
            entry["first"].append(example)

    def warnings(self) -> list[str]:
        """One line for each kind."""
        return [f"{each['count']} {COUNTED[kind]}: {', '.join(each['first'])}" for kind, each in self.items()]


@dataclass(frozen=True)
class Judgements:
    """Contents of one qrels file."""

    path: Path
    qrels: dict[str, dict[str, int]]
    last_line: int
    repeated: int


def read_corpus(path: Path, counts: Counts | None = None) -> Iterator[Record]:
    """Yields (id, title, text) of each line; `Corpus.build` checks ids and texts further."""
    counts = Counts() if counts is None else counts
    for number, value in read_objects(path):
        get = value.get
        identifier, title, text = get("_id"), get("title"), get("text")
        if title is None:
            title = ""
        if type(identifier) is int:
            identifier = _text_of(identifier, path, number, counts)
        if not (type(identifier) is type(text) is type(title) is str and identifier):
            raise DataError(f"{path}:{number}: {_wrong_field(value)}")
        yield identifier, title, text


def read_queries(path: Path, wanted: set[str], counts: Counts) -> tuple[dict[str, str], int]:
    """Reads the texts of the queries in `wanted`, in file order; the number of other queries without text.

    Raises:
        DataError: a malformed line.
    """
    texts: dict[str, str] = {}
    empty, seen = 0, set()
    for number, value in read_objects(path):
        identifier, text = value.get("_id"), value.get("text")
        if type(identifier) is int:
            identifier = _text_of(identifier, path, number, counts)
        if not (isinstance(identifier, str) and identifier and isinstance(text, str)):
            raise DataError(f"{path}:{number}: {_wrong_field(value)}")
        problem = unfit(identifier, text)
        if problem:
            raise DataError(f"{path}:{number}: {problem}")
        if identifier in seen:
            counts.add("repeated_query_ids", f"{show(identifier)} in {path.name}:{number}")
        seen.add(identifier)
        if identifier in wanted:
            texts[identifier] = text
        empty += not text.strip() and identifier not in wanted
    for identifier in (each for each, text in texts.items() if not text.strip()):
        counts.add("empty_queries", show(identifier))
    return texts, empty


def read_qrels(path: Path, counts: Counts) -> Judgements:
    """Reads one qrels file.

    Raises:
        DataError: no judgement, a line without three columns, or a grade that is no number or out of range.
    """
    qrels: dict[str, dict[str, int]] = {}
    repeated, number = 0, 0
    for number, (query_id, passage_id, text) in qrels_rows(path, counts):
        if not GRADE.fullmatch(text):
            wrong = f"the score {show(text)} is not an integer; write a grade such as 0 or 1"
            raise DataError(f"{path}:{number}: {wrong}")
        if "." in text:
            counts.add("decimal_grades", f"{text} in {path.name}:{number}")
        whole = text.partition(".")[0]
        grade = int(whole) if len(whole) < LONGEST_GRADE else LARGEST_GRADE + 1
        if abs(grade) > LARGEST_GRADE:
            limits = f"grades go from -{LARGEST_GRADE} to {LARGEST_GRADE}"
            raise DataError(f"{path}:{number}: the score {show(text)} is out of range; {limits}")
        judged = qrels.setdefault(query_id, {})
        before = judged.get(passage_id, grade)
        repeated += passage_id in judged and before == grade
        if before != grade:
            both = f"{before}, then {grade} in {path.name}:{number}"
            counts.add("contradictory_judgements", f"{show(passage_id)} for the query {show(query_id)}: {both}")
        judged[passage_id] = grade
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


def qrels_rows(path: Path, counts: Counts) -> Iterator[tuple[int, list[str]]]:
    """Yields line number, query id, passage id and grade of each judgement.

    Raises:
        DataError: no line, a line without these columns, an empty id, or a NUL.
    """
    trec = None  # not known before the first line
    for number, line in read_lines(path):
        if line.isspace():
            continue
        columns, words = line.rstrip("\r\n").split("\t"), [word.decode() for word in line.encode().split()]
        if trec is None:
            trec = len(words) == 4 and len(columns) != 3 and bool(GRADE.fullmatch(words[3]))
            if _is_header(columns, path, number, trec, counts):
                continue
        if trec and len(words) == 4:
            columns = [words[0], *words[2:]]
        elif not trec and len(columns) > 3 and (not any(columns[3:]) or GRADE.fullmatch(columns[2])):
            counts.add("more_columns", f"{path.name}:{number}")
            columns = columns[:3]
        if len(columns) != len(HEADER) or (trec and len(words) != 4):
            needed = "4, as in the first line" if trec else "3; separate query-id, corpus-id and score by single tabs"
            raise DataError(f"{path}:{number}: {len(words if trec else columns)} columns instead of {needed}")
        if "\0" in line:
            raise DataError(f"{path}:{number}: the line holds a NUL character; remove it")
        if not columns[0] or not columns[1]:
            raise DataError(f"{path}:{number}: the {HEADER[0] if not columns[0] else HEADER[1]} is empty; fill it in")
        yield number, columns
    if trec is None:
        raise DataError(f"{path}:1: the file is empty; it needs a header and one judgement a line")


def _is_header(columns: list[str], path: Path, number: int, trec: bool, counts: Counts) -> bool:
    """Whether the first line of qrels is a header; anything but BEIR's own header is counted.

    BEIR's loader skips the first line whatever it holds. A judgement there would be lost, so it is read, as in
    trec_eval, which knows no header.
    """
    if [column.strip() for column in columns if column.strip()] == HEADER:
        return True
    shown = f"{path.name}:{number}: {show(' '.join(columns))}"
    if trec:
        counts.add("trec_format", shown)
        return False
    if len(columns) < len(HEADER):
        needed = "it must be query-id, corpus-id and score, separated by tabs"
        line = "\t".join(columns).rstrip()
        raise DataError(f"{path}:{number}: the first line is {show(line)}; {needed}")
    is_judgement = bool(GRADE.fullmatch(columns[2]))
    counts.add("no_header" if is_judgement else "other_header", shown)
    return not is_judgement


def _text_of(identifier: int, path: Path, number: int, counts: Counts) -> str:
    counts.add("number_ids", f"{identifier} in {path.name}:{number}")
    return str(identifier)


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
