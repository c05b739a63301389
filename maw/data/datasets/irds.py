"""What the loaders over ir_datasets share: queries, judgements, three splits without common questions, and the facts.

    python tier_1.py --datasets msmarco,nq,hotpotqa,triviaqa

- Queries without a relevant passage are left out, and a question stays in test before validation before train; both
  are counted in the facts.
- Where the published splits leave no validation queries, some are held out of the training queries by hash.
- Only the judgements of queries that a run draws are looked up in the corpus: of twenty million passages on disk
  each look-up is a random read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from maw.config.methods import trained_methods
from maw.config.tier1_config import LARGEST_GRADE, Tier1Config
from maw.data.beir_format import LONGEST_LINE, Counts, read_qrels, unfit
from maw.data.collection import Collection
from maw.data.corpus import Corpus
from maw.data.dataset_table import Dataset
from maw.data.download.corpus_source import Source, official, version
from maw.data.download.needs import Needs
from maw.data.download.published import Published, ir_datasets, lock, reading
from maw.data.hash_sampling import draw
from maw.data.leakage import drop_overlap
from maw.data.splits import SAMPLE_FIELDS, Pool, draw_splits, hold_out
from maw.errors import DataError, show

_LONGEST_GRADE = 1000  # digits


@dataclass(frozen=True)
class Judged:
    """The queries of one published split, those without a relevant passage left out.

    Attributes:
        id: the split's name in ir_datasets.
        pool: what a run may draw from.
        path: the qrels, for messages.
        without: queries for which no passage is judged relevant.
        repeated: judgements that were given twice, with the same grade.
        counts: what else is unusual.
    """

    id: str
    pool: Pool
    path: Path
    without: int
    repeated: int
    counts: Counts = field(default_factory=Counts)


def read_queries(dataset: str, file: Published, config: Tier1Config) -> Iterator[Any]:
    """Yields the queries of a dataset as ir_datasets gives them, after unpacking what must be.

    Raises:
        DataError: the source is damaged, or a query has no text, no id, or an id used before.
    """
    seen: set[str] = set()
    with reading(file.path), lock(f"{file.group}-{file.key}-unpack", config):
        for number, query in _numbered(ir_datasets().load(dataset).queries_iter(), file.path, dataset):
            identifier, text = query.query_id, query.text
            where = f"{file.path}: {dataset}, query {number}"
            if not isinstance(identifier, str) or not isinstance(text, str):
                raise DataError(f"{where}: id and text must be text, not {show(identifier)} and {show(text)}")
            if not identifier or identifier in seen:
                raise DataError(f"{file.path}: {dataset} has an empty query id or one twice: {show(identifier)}")
            problem = unfit(identifier, text) or ("" if text.strip() else "the text is empty")
            if problem:
                raise DataError(f"{where}: {problem}")
            seen.add(identifier)
            yield query


def _numbered(queries: Iterable[Any], path: Path, dataset: str) -> Iterator[tuple[int, Any]]:
    """Queries from 1; where the library gives up on one it is said behind which."""
    number = 0
    try:
        for number, query in enumerate(queries, start=1):
            yield number, query
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        if not number:
            raise  # of the file as a whole
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise DataError(f"{path}: {dataset}, behind query {number}: not a query ({text})") from error


def qrels_path(dataset: str, file: Published, config: Tier1Config) -> Path:
    """Where the judgements of a dataset lie, once unpacked."""
    with reading(file.path), lock(f"{file.group}-{file.key}-unpack", config):
        return Path(ir_datasets().load(dataset).qrels_path())


def trec_rows(path: Path) -> Iterator[tuple[int, bytes, bytes, int]]:
    """Yields line number, query id, passage id and grade of each line of qrels in TREC's format.

    As bytes, since files of nine million lines are read for a few thousand of them.
    """
    with reading(path), path.open("rb") as file:
        for number, line in enumerate(iter(partial(file.readline, LONGEST_LINE + 1), b""), start=1):
            columns = line.split() if len(line) <= LONGEST_LINE else [b"a line of more than 16 MiB"]
            digits = columns[3].removeprefix(b"-") if len(columns) == 4 else b""
            if digits.isdigit() and len(digits) <= _LONGEST_GRADE:
                grade = int(columns[3])
                if abs(grade) > LARGEST_GRADE:
                    raise DataError(
                        f"{path}:{number}: the grade {grade} is out of range; grades go from -{LARGEST_GRADE} to "
                        f"{LARGEST_GRADE}"
                    )
                yield number, columns[0], columns[2], grade
            elif columns:
                raise DataError(
                    f"{path}:{number}: {show(line.decode('utf-8', 'replace').strip())} is not query, iteration, "
                    "passage and grade; the file is damaged"
                )


def text_of(path: Path, number: int, identifier: bytes) -> str:
    """An id of `trec_rows` as text.

    Raises:
        DataError: it is not UTF-8, or holds a NUL.
    """
    text = identifier.decode("utf-8", "replace")
    if text.encode() != identifier or "\0" in text:
        raise DataError(f"{path}:{number}: the id {show(text)} is not UTF-8 text; the file is damaged")
    return text


def trec_qrels(path: Path, counts: Counts, lowest: int | None = None) -> tuple[dict[str, dict[str, int]], int]:
    """Judgements of grade `lowest` or more, all if it is None, and how many were given twice.

    Of several grades for one pair the last counts.

    Raises:
        DataError: a malformed line.
    """
    qrels: dict[str, dict[str, int]] = {}
    repeated = 0
    for number, *ids, grade in trec_rows(path):
        if lowest is not None and grade < lowest:
            continue
        query, passage = (text_of(path, number, each) for each in ids)
        graded = qrels.setdefault(query, {})
        before = graded.get(passage)
        repeated += before == grade
        if before not in (None, grade):
            both = f"{before}, then {grade} in {path.name}:{number}"
            counts.add("contradictory_judgements", f"{show(passage)} for the query {show(query)}: {both}")
        graded[passage] = grade
    return qrels, repeated


def judged_in_beir(dataset: str, path: Path, texts: Mapping[str, str]) -> Judged:
    """A split whose judgements are in BEIR's format."""
    counts = Counts()
    found = read_qrels(path, counts)
    return judged(dataset, path, texts, found.qrels, counts, found.repeated)


def judged(
    dataset: str,
    path: Path,
    texts: Mapping[str, str],
    qrels: Mapping[str, dict[str, int]],
    counts: Counts,
    repeated: int,
) -> Judged:
    """A split of queries with a relevant passage; judged queries that have no text are counted and left out.

    Args:
        texts: query id -> text; queries that are not in `qrels` are not used.
        counts: what is unusual in `qrels`.
        repeated: judgements given twice.

    Raises:
        DataError: no query with a text has a relevant passage.
    """
    for query in (query for query in qrels if query not in texts):
        counts.add("unknown_queries", f"{show(query)} in {path.name}")
    known = {query: graded for query, graded in qrels.items() if query in texts}
    ids = [query for query, graded in known.items() if max(graded.values()) >= 1]
    if qrels and not known:
        raise DataError(
            f"{path}: the query {show(next(iter(qrels)))} and all others are judged and {dataset} has none of them; "
            "remove the file, and it is fetched again"
        )
    if not ids:
        raise DataError(f"{path}: no query has a relevant passage; remove the file, and it is fetched again")
    pool = Pool({i: texts[i] for i in ids}, {i: known[i] for i in ids})
    return Judged(dataset, pool, path, len(known) - len(ids), repeated, counts)


def separate(splits: Mapping[str, Judged], config: Tier1Config) -> tuple[dict[str, Pool], dict[str, Any]]:
    """Pools that share no question, with a validation split even where none is published.

    Returns:
        The pools by split, and facts: the rule, and what was left out by it.

    Raises:
        DataError: no query is left to train on or to choose by.
    """
    pools, shared = drop_overlap({name: split.pool for name, split in splits.items()})
    rule = "as published; a question in two splits, by normalised text, stays in test before validation before train"
    if "train" in pools and "validation" not in pools:
        available = len(pools["train"])
        train, validation = hold_out(pools["train"], config)
        pools |= {"train": train, "validation": validation}
        copies = available - len(train) - len(validation)
        shared = {"train": shared["train"] + copies, "validation": 0}
        rule += f"; validation: {len(validation)} of {available} training queries, held out by hash"
    for name in ("train", "validation"):
        if trained_methods(config) and not pools.get(name):
            raise DataError(f"{splits['train'].id}: no {name} query is left once those of other splits are taken out")
    skipped = {
        "queries_without_relevant_passage": {name: split.without for name, split in splits.items()},
        "queries_shared_with_another_split": shared,
        "repeated_judgements": {name: split.repeated for name, split in splits.items()},
    }
    return pools, {"split_rule": rule, "skipped": skipped}


def drawn(pools: Mapping[str, Pool], config: Tier1Config, name: str) -> list[str]:
    """The ids that `draw_splits` is going to draw for a split."""
    return draw(pools[name].queries, getattr(config, SAMPLE_FIELDS[name]), config.seed, name)


def finish(
    config: Tier1Config,
    dataset: Dataset,
    splits: Mapping[str, Judged],
    pools: Mapping[str, Pool],
    corpora: Mapping[str, Corpus],
    facts: Mapping[str, Any],
) -> Collection:
    """Draws the samples and gathers the facts.

    Args:
        dataset: its title, the name of its results and its relevance level are used.
        pools: by `separate`.
        corpora: the passages of each split in `pools`; others are given those of the test split.
        facts: of the loader; they come first.
    """
    everywhere = {split: corpora.get(split, corpora["test"]) for split in SAMPLE_FIELDS}
    drawn_splits, split_facts, warnings = draw_splits(
        config, everywhere, pools, dataset.collection_name, dataset.relevance_level
    )
    found = dict(facts) | {
        "version": f"ir_datasets {version()}",
        **_corpus_facts({split: corpora[split] for split in pools}),
        "splits": split_facts,
        "verified": "MD5 and counts as published" if config.verify_sources else "no: verify_sources is off",
        "warnings": [
            *(f"{dataset.collection_name}: {text}" for each in splits.values() for text in each.counts.warnings()),
            *warnings,
        ],
    }
    return Collection(dataset.collection_name, dataset.title, **drawn_splits, facts=found)


def _corpus_facts(corpora: Mapping[str, Corpus]) -> dict[str, Any]:
    """Sizes and hash, by split where the splits have corpora of their own."""
    values = {
        "passages": {split: len(corpus) for split, corpus in corpora.items()},
        "empty_passages": {split: corpus.empty for split, corpus in corpora.items()},
        "corpus_sha256": {split: corpus.fingerprint for split, corpus in corpora.items()},
    }
    alike = len(set(values["corpus_sha256"].values())) == 1
    return {key: by_split["test"] if alike else by_split for key, by_split in values.items()}


def needs_of(
    name: str,
    config: Tier1Config,
    sources: Sequence[Source],
    files: Iterable[Published],
    queries: Mapping[str, str | None],
    unpacked: int = 0,
) -> Needs:
    """What a dataset needs, without fetching anything.

    Args:
        files: all source files that a run would use.
        queries: split -> name in ir_datasets; None for a split that is held out of another.
        unpacked: bytes that unpacking queries and judgements takes, where it matters.
    """
    passages = {source.id: official(source.id, "docs") for source in sources}
    characters = sum(passages[source.id] * source.mean_characters for source in sources)
    return Needs(
        dataset=name,
        files=tuple(dict.fromkeys(files)),
        passages=passages,
        disk_bytes=sum(source.disk_bytes(config) for source in sources) + unpacked,
        mean_characters=round(characters / sum(passages.values())),
        queries={split: official(each, "queries") if each else None for split, each in queries.items()},
    )
