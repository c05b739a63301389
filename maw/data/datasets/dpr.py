"""DPR's files: Wikipedia of December 2018 in passages of 100 words, and questions with answers and graded passages.

`maw.data.datasets.nq` and `maw.data.datasets.triviaqa` are made of them.

- The passages are the rows of a CSV file, and its quotes stand around texts and titles: `"a ""b"" c"` is `a "b" c`.
- Question ids restart at 0 in every file; here they carry the split, as in "train-17".
- Grades: 2 is a passage that a person marked, 1 one of BM25's first that holds the answer; both are relevant here.
  0 is one of BM25's first without the answer, and -1 a passage of another question. Nobody judged grades 0
  and -1. Grade 0 gives hard negatives, in the order of the file; -1 is unused.

Source: Karpukhin et al., Dense Passage Retrieval, arXiv:2004.04906.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from maw.config.tier1_config import Tier1Config
from maw.data.beir_format import Counts, line_finder
from maw.data.datasets import irds
from maw.data.datasets.irds import Judged
from maw.data.download.corpus_source import Source, read_tsv
from maw.data.download.published import Inside, Published, published
from maw.data.splits import Pool
from maw.data.store import Record, Where
from maw.errors import DataError, show

GROUP = "dpr-w100"
HEADER = ["id", "text", "title"]
FILES = {
    f"{GROUP}/natural-questions/train": "nq-train",
    f"{GROUP}/natural-questions/dev": "nq-dev",
    f"{GROUP}/trivia-qa/train": "tqa-train",
    f"{GROUP}/trivia-qa/dev": "tqa-dev",
}
UNPACKED_BYTES = {"nq-train": 210_000_000, "nq-dev": 22_000_000, "tqa-train": 160_000_000, "tqa-dev": 18_000_000}
GRADES_RULE = "DPR's grades 2 and 1 are relevant; 0 are hard negatives and -1 are not used: neither was judged"


def wikipedia() -> Source:
    """The passages, read from the compressed file as it is."""
    file = published(GROUP, "docs")

    def read() -> tuple[Iterable[Record], Where]:
        path = Inside(file.path)
        return read_passages(path), line_finder(path, header=1)

    return Source(GROUP, file, read, mean_characters=640)


def read_passages(path: Path | Inside) -> Iterator[Record]:
    """Yields (id, title, text) without the quotes of the CSV file.

    Raises:
        DataError: the header or a line has other columns.
    """
    rows = read_tsv(path, len(HEADER))
    header = next(rows, None)
    if header != HEADER:
        raise DataError(f"{path}:1: the header is {show(header)}; it must be id, text and title, separated by tabs")
    for identifier, text, title in rows:
        yield identifier, unquoted(title), unquoted(text)


def unquoted(text: str) -> str:
    """A field without its CSV quotes; a text that only happens to begin and end with a quote stays as it is."""
    inner = text[1:-1]
    if len(text) > 1 and text[0] == text[-1] == '"' and '"' not in inner.replace('""', ""):
        return inner.replace('""', '"')
    return text


def questions_file(dataset: str) -> Published:
    """The file of one set of questions; once ir_datasets unpacked it, it is not needed any more."""
    key = FILES[dataset]
    return published(GROUP, key, f"{key}/queries.tsv", f"{key}/qrels")


def unpacked_bytes(datasets: Iterable[str]) -> int:
    """Room for what ir_datasets unpacks, as far as it is not there yet."""
    return sum(UNPACKED_BYTES[FILES[each]] for each in datasets if not questions_file(each).unpacked)


def questions(dataset: str, config: Tier1Config) -> Judged:
    """A set of questions with their relevant passages and answers; hard negatives are added by `with_negatives`."""
    file = questions_file(dataset)
    prefix = _prefix(dataset)
    texts, answers = {}, {}
    for query in irds.read_queries(dataset, file, config):
        texts[prefix + query.query_id] = query.text
        answers[prefix + query.query_id] = list(query.answers)
    path = irds.qrels_path(dataset, file, config)
    counts = Counts()
    relevant, repeated = irds.trec_qrels(path, counts, lowest=1)
    found = irds.judged(dataset, path, texts, {prefix + i: graded for i, graded in relevant.items()}, counts, repeated)
    pool = replace(found.pool, answers={i: answers[i] for i in found.pool.queries if answers[i]})
    return replace(found, pool=pool, without=len(texts) - len(pool))


def with_negatives(pool: Pool, split: Judged, config: Tier1Config) -> Pool:
    """A training pool with hard negatives. Only for drawn queries, because all together are millions."""
    prefix = _prefix(split.id)
    wanted = {i.removeprefix(prefix).encode() for i in irds.drawn({"train": pool}, config, "train")}
    negatives: dict[str, list[str]] = {}
    for number, query, passage, grade in irds.trec_rows(split.path):
        if grade == 0 and query in wanted:
            chosen = negatives.setdefault(prefix + query.decode(), [])  # one of the ids above, so it is text
            chosen.append(irds.text_of(split.path, number, passage))
    return replace(pool, negatives=negatives)


def _prefix(dataset: str) -> str:
    return f"{dataset.rsplit('/', 1)[-1]}-"
