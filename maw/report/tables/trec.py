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

The format separates columns by white space and cannot quote it: a blank inside an id becomes %20, in the run and in
the judgements. trec_eval may therefore break ties of such passages differently.

Source: https://github.com/usnistgov/trec_eval, README.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from maw.config.methods import in_order
from maw.data.collection import RetrievalData
from maw.errors import DataError
from maw.evaluation.metrics import METRICS, EvaluationResult
from maw.storage.files import write_atomically

FOLDER = "runs"
_LONG = 100_000  # lines, about five megabytes: "auto" compresses longer files
_LEVEL = 6
_BLANK = re.compile(r"\s")


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
    path: Path, query_ids: Sequence[str], doc_ids: Sequence[Sequence[str]], scores: Sequence[Any], tag: str
) -> Path:
    """Writes a ranking in the order given, best passage first; compressed if the name ends in .gz.

    Shapes:
        query_ids (Q,), doc_ids (Q, K), scores (Q, K) float32.

    Raises:
        MAWError: the path cannot be written.
    """

    def blocks() -> Iterator[str]:
        for query, docs, row in zip(query_ids, doc_ids, scores, strict=True):
            before, values = f"{token(query)} Q0 ", (row.tolist() if hasattr(row, "tolist") else row)
            ranked = enumerate(zip(docs, values, strict=True), start=1)
            yield "".join(f"{before}{token(doc)} {rank} {score:.9g} {tag}\n" for rank, (doc, score) in ranked)

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


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Judgements from a file of `write_qrels`: query -> passage -> grade, ids as written there.

    Raises:
        DataError: a line has another form; the message names file and line.
        OSError: the file cannot be read.
    """
    qrels: dict[str, dict[str, int]] = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        try:
            query, _, doc, grade = line.split()
            qrels.setdefault(query, {})[doc] = int(grade)
        except ValueError:
            raise DataError(f"{path}:{number}: a line of judgements must be QUERY 0 PASSAGE GRADE") from None
    return qrels


def token(identifier: str) -> str:
    """The id with its white space percent-encoded."""
    return _BLANK.sub(lambda found: quote(found[0], safe=""), identifier)


def _write(path: Path, blocks: Iterable[str]) -> Path:
    def write(temporary: Path) -> None:
        with temporary.open("wb") as file, ExitStack() as stack:
            stream: Any = file
            if path.suffix == ".gz":  # no name and no time inside, for the same bytes each time
                stream = stack.enter_context(gzip.GzipFile("", "wb", _LEVEL, file, mtime=0))
            for block in blocks:
                stream.write(block.encode("utf-8", errors="surrogatepass"))

    return write_atomically(path, write)
