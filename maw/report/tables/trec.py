"""Files for other evaluation tools: TREC runs, the judgements used, and a table of per-query values.

    pystdlib_20250106_143022/runs/
        pystdlib_qrels.trec                  query 0 passage grade: the judgements behind every value
        pystdlib_maw.trec                    query Q0 passage rank score maw; .trec.gz if it is long
        pystdlib_maw_seed43.trec             one for each seed if there are several
        pystdlib_maw_per_query.parquet       query_id, seed and the 36 metrics, a row for each query and seed

    trec_eval -q -m all_trec pystdlib_qrels.trec pystdlib_maw.trec     # after gzip -dk if it is compressed
    ir_measures pystdlib_qrels.trec pystdlib_maw.trec.gz nDCG@10 AP R@100
    ranx.evaluate(Qrels.from_file("pystdlib_qrels.trec"), Run.from_file("pystdlib_maw.trec.gz"), "ndcg@10")
    pandas.read_parquet("pystdlib_maw_per_query.parquet")

Scores have nine significant digits, which reproduce every float32. Lines are in trec_eval's order: by score, ties by
passage id, descending. The same ranking gives the same bytes, gzip included.

    maw.read_run("pystdlib_maw.trec.gz")["q1"]     # passage -> score; `maw.read_qrels` reads the judgements

The format separates columns by white space and cannot quote it. In the run and in the judgements `%` inside an id
becomes %25, and white space its percent code, such as %20; an empty id becomes a percent sign alone. So two ids never
become one. `identifier` inverts this. trec_eval may break ties of such passages differently.

Earlier versions wrote `%` as it is. Their files are read by the same rule: a percent sign without one of these codes
stays, but `a%20b` is read as `a b`, which they also wrote so.

Source: https://github.com/usnistgov/trec_eval, README.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from maw.config.methods import in_order
from maw.data.collection import RetrievalData
from maw.errors import DataError, show
from maw.evaluation.metrics import METRICS, EvaluationResult
from maw.storage.files import write_atomically

FOLDER = "runs"
_LONG = 100_000  # lines, about five megabytes: "auto" compresses longer files
_LEVEL = 3  # 6 takes 2.3 times as long, for files 8% smaller
_CODED = re.compile(r"[\s%]")
_EMPTY = "%"
Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class RunFiles:
    """The files of one dataset.

    Attributes:
        data: the test split: judgements and corpus.
        by_seed: method -> seed -> its evaluation, with the ranking.
        form: "auto", "plain", "gzip", or "none" for no rankings.
    """

    dataset: str
    data: RetrievalData
    by_seed: Mapping[str, Mapping[int, EvaluationResult]]
    form: str = "auto"

    def write(self, folder: Path) -> list[Path]:
        """Writes the files below a dataset's folder, the judgements first.

        Raises:
            MAWError: a path cannot be written.
        """
        folder = folder / FOLDER
        written = [write_qrels(folder / f"{self.dataset}_qrels.trec", self.data.qrels)]
        for method in in_order(self.by_seed):
            evaluations = self.by_seed[method.name]
            table = folder / f"{self.dataset}_{method.name}_per_query.parquet"
            written.append(write_per_query(table, evaluations))
            for seed, evaluation in evaluations.items():
                if self.form == "none" or evaluation.run is None:
                    continue
                name = f"{method.name}_seed{seed}" if len(evaluations) > 1 else method.name
                rows_QK, scores_QK = evaluation.run["rows"], evaluation.run["scores"]
                is_long = self.form == "gzip" or (self.form == "auto" and rows_QK.size > _LONG)
                path = folder / f"{self.dataset}_{name}.trec{'.gz' if is_long else ''}"
                ids, scores = self.data.corpus.rankings(rows_QK, scores_QK)
                written.append(write_run(path, evaluation.query_ids, ids, scores, name))
        return written


def write_run(
    path: Path, query_ids: Sequence[str], doc_ids: Sequence[Sequence[str]], scores: Iterable[Any], tag: str
) -> Path:
    """Writes a ranking in the order given, best passage first; compressed if the name ends in .gz.

    Shapes:
        query_ids (Q,), doc_ids (Q, K), scores (Q, K) float32.

    Raises:
        MAWError: the path cannot be written.
    """

    name = token(tag)

    def blocks() -> Iterator[str]:
        for query, docs, row in zip(query_ids, doc_ids, scores, strict=True):
            before, values = f"{token(query)} Q0 ", (row.tolist() if hasattr(row, "tolist") else row)
            ranked = enumerate(zip(docs, values, strict=True), start=1)
            yield "".join(f"{before}{token(doc)} {rank} {score:.9g} {name}\n" for rank, (doc, score) in ranked)

    return _write(path, blocks())


def write_qrels(path: Path, qrels: Mapping[str, Mapping[str, int]]) -> Path:
    """Writes judgements of all grades.

    Raises:
        MAWError: the path cannot be written.
    """
    rows = ((query, doc, grade) for query, judged in qrels.items() for doc, grade in judged.items())
    return _write(path, (f"{token(query)} 0 {token(doc)} {int(grade)}\n" for query, doc, grade in rows))


def write_per_query(path: Path, by_seed: Mapping[int, EvaluationResult]) -> Path:
    """Writes a Parquet table of every query and seed: query_id, seed, and a column for each metric.

    Raises:
        MAWError: the path cannot be written.
    """
    import pyarrow as pa
    from pyarrow import parquet

    columns: dict[str, Any] = {
        "query_id": pa.array([query for each in by_seed.values() for query in each.query_ids], pa.string()),
        "seed": pa.array([seed for seed, each in by_seed.items() for _ in each.query_ids], pa.int64()),
    }
    for metric in METRICS:
        values = [value for each in by_seed.values() for value in each.per_query[metric].tolist()]
        columns[metric] = pa.array(values, pa.float64())
    table = pa.table(columns)
    return write_atomically(path, lambda temporary: parquet.write_table(table, temporary))


def read_qrels(path: Path | str) -> dict[str, dict[str, int]]:
    """Judgements from the file `path` of `write_qrels`: query -> passage -> grade.

    Raises:
        DataError: a line has another form, or judges a passage again with another grade; the message names it.
        OSError: the file cannot be read.
    """
    return _read(Path(path), "a line of judgements must be QUERY 0 PASSAGE GRADE", 4, int, 3)


def read_run(path: Path | str) -> dict[str, dict[str, float]]:
    """A ranking from the file `path` of `write_run`, plain or .gz: query -> passage -> score, in the file's order.

    Raises:
        DataError: a line has another form, or ranks a passage again with another score; the message names it.
        OSError: the file cannot be read.
    """
    return _read(Path(path), "a line of a ranking must be QUERY Q0 PASSAGE RANK SCORE NAME", 6, float, 4)


def _read(
    path: Path, form: str, columns: int, kind: Callable[[str], Number], place: int
) -> dict[str, dict[str, Number]]:
    """Query -> passage -> the number in column `place`."""
    found: dict[str, dict[str, Number]] = {}
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as lines:
        for line_number, line in enumerate(lines, start=1):
            try:
                parts = line.decode("utf-8", errors="surrogatepass").split()
                if len(parts) != columns:
                    raise ValueError
                value = kind(parts[place])
            except ValueError:
                raise DataError(f"{path}:{line_number}: {form}") from None
            of_query = found.setdefault(identifier(parts[0]), {})
            if of_query.setdefault(identifier(parts[2]), value) != value:
                raise DataError(f"{path}:{line_number}: {show(parts[2])} is there twice for {show(parts[0])}")
    return found


def token(identifier: str) -> str:
    """The id as one column: `%` and white space percent-encoded, and a percent sign alone for an empty id."""
    return _CODED.sub(lambda found: quote(found[0], safe=""), identifier) or _EMPTY


def identifier(token: str) -> str:
    """The id that `token` wrote as this column."""
    return "" if token == _EMPTY else _codes().sub(lambda found: unquote(found[0]), token)


@cache
def _codes() -> re.Pattern[str]:
    """Everything that `token` writes for a character; here, because all of Unicode is looked through."""
    return re.compile("|".join(quote(each, safe="") for each in map(chr, range(0x110000)) if _CODED.match(each)))


def _write(path: Path, blocks: Iterable[str]) -> Path:
    def write(temporary: Path) -> None:
        with temporary.open("wb") as file, ExitStack() as stack:
            stream: Any = file
            if path.suffix == ".gz":  # no name and no time inside, for the same bytes each time
                stream = stack.enter_context(gzip.GzipFile("", "wb", _LEVEL, file, mtime=0))
            for block in blocks:
                stream.write(block.encode("utf-8", errors="surrogatepass"))

    return write_atomically(path, write)
