"""Any folder in BEIR layout, as `--datasets beir:DIR`, or `beir:DIR@NAME` for other test judgements.

    DIR/corpus.jsonl      {"_id": ..., "title": ..., "text": ...} a line; the title may be missing
    DIR/queries.jsonl     {"_id": ..., "text": ...} a line
    DIR/qrels/test.tsv    query-id, corpus-id and score, separated by tabs, under a header of these names
    DIR/qrels/dev.tsv     the same; validation.tsv where there is no dev.tsv
    DIR/qrels/train.tsv   the same; needed by methods that train
    DIR/qrels/NAME.tsv    with @NAME: the test judgements, in place of test.tsv

What is malformed stops the run with one line that names file and line, unless it is in the judgements of a split that
no method of the run uses. What is merely unusual is counted, in the facts of the collection and in a warning with the
first examples, and read as `maw.data.beir_format` and `maw.data.splits` say:

- judgements of passages that corpus.jsonl lacks are kept, and count against recall;
- judged queries that queries.jsonl lacks, and queries without a relevant passage (a grade of 1 or more) in a split are
  left out of it;
- questions that occur in two splits, by id or normalised text, stay in test before validation before train;
- a judgement that is repeated with the same grade counts once; with another grade the last one counts;
- passages and queries without any text are kept.

Grades of 0 are judged not relevant, and kept for the metrics that tell them from unjudged ones; passages with grades
below 0 are unjudged in every metric, as trec_eval has it. From which grade a passage is relevant in the binary metrics
is the configuration's `relevance_level`: 2 for TREC DL.
Without a validation file, `val_samples` training queries (a fifth at most) are held out by hash. A byte order
mark, CRLF line ends and blank lines are accepted.

The corpus is stored once. The store is found by the file's path and is good as long as the file's size and
times of change are those it was built from: to compare contents would mean to read gigabytes at every start.
The SHA-256 of what was parsed is in the store's manifest and in the facts.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maw.config.methods import trained_methods
from maw.config.paths import absolute, beir_parts, is_folder, look_alike, no_folder, short_path
from maw.config.tier1_config import LETTERS, SAFE_NAME, Tier1Config, cache_folder
from maw.data.beir_format import Counts, Judgements, line_finder, read_corpus, read_qrels, read_queries
from maw.data.collection import Collection
from maw.data.corpus import Corpus, RepeatedIdsError
from maw.data.leakage import drop_overlap
from maw.data.splits import Pool, draw_splits, hold_out
from maw.data.store import Record, Where
from maw.errors import DataError, show
from maw.runtime.progress_bars import track
from maw.storage.cache_entry import read_manifest


def load(folder: str | Path, config: Tier1Config) -> Collection:
    """Loads a folder in BEIR layout and draws its samples.

    Args:
        folder: its path, or path@NAME to take the test judgements from qrels/NAME.tsv.
        config: sample sizes, seed, methods, relevance level and cache folder are used.

    Raises:
        DataError: a missing or malformed file, no test query that can be measured, or no training queries for a method
            that trains.
    """
    found = read(folder, config)
    corpus = open_corpus(found.folder / "corpus.jsonl", cache_folder(config) / "corpora")
    splits, split_facts, warnings = draw_splits(config, corpus, found.pools, found.name)
    kept = corpus.folder is not None and (corpus.folder / "counts.json").is_file()  # not in stores of older versions
    counts = Counts(corpus.attachment("counts") if kept else {})
    facts = {
        "source": f"BEIR folder {found.folder.name}",
        "version": corpus.fingerprint[:12],
        "folder": str(found.folder),
        "passages": len(corpus),
        "empty_passages": corpus.empty,
        "corpus_sha256": corpus.fingerprint,
        "corpus_rule": "all passages of corpus.jsonl, for every split",
        "split_rule": found.split_rule,
        "test_judgements": found.test_judgements,
        "relevance_level": splits["test"].relevance_level,
        "splits": split_facts,
        "skipped": found.skipped,
        "warnings": [
            *found.warnings,
            *([f"{found.name}: {corpus.empty} passages have no text; they are kept"] if corpus.empty else []),
            *(f"{found.name}: {text}" for text in counts.warnings()),
            *warnings,
        ],
    }
    counted: Counter[str] = Counter()
    for kind, each in (*found.counts.items(), *counts.items()):
        counted[kind] += each["count"]
    return Collection(
        f"beir_{found.name}",
        f"{found.name} (BEIR folder)",
        **splits,
        facts=facts | ({"counted": dict(counted)} if counted else {}),
    )


@dataclass(frozen=True)
class Outline:
    """What a folder holds beside its passages: the queries of each split, before any are drawn.

    Attributes:
        folder: the folder.
        name: of its results.
        pools: split -> its queries with their judgements.
        split_rule: how the splits came about.
        test_judgements: name of the file.
        skipped: what was left out -> number, some by split.
        counts: what is unusual.
        warnings: lines about both.
    """

    folder: Path
    name: str
    pools: dict[str, Pool]
    split_rule: str
    test_judgements: str
    skipped: dict[str, Any]
    counts: Counts
    warnings: list[str]


def read(folder: str | Path, config: Tier1Config) -> Outline:
    """Reads queries and judgements of a folder completely, and checks all but the passages.

    Raises:
        DataError: as `load`.
    """
    folder, name, judgements = checked_folder(folder)
    judged, warnings, counts = {}, [], Counts()
    for split, path in _qrels_files(folder, judgements, config).items():
        try:
            judged[split] = read_qrels(path, counts)
        except DataError as error:
            if _is_used(split, config):
                raise
            warnings.append(f"{name}: the {split} judgements are left out, since no method uses them ({error})")
    wanted = {query_id for each in judged.values() for query_id in each.qrels}
    queries, empty_queries = read_queries(folder / "queries.jsonl", wanted, counts)
    unknown = wanted - queries.keys()
    forms = {unicodedata.normalize(form, each) for each in unknown for form in ("NFC", "NFD")}
    there = read_queries(folder / "queries.jsonl", forms, Counts())[0] if forms - unknown else {}
    pools, without = {}, {}
    for split, each in judged.items():
        known = {query_id: grades for query_id, grades in each.qrels.items() if query_id in queries}
        for query_id in (query_id for query_id in each.qrels if query_id not in known):
            counts.add("unknown_queries", f"{show(query_id)} in {each.path.name}{look_alike(query_id, there)}")
        relevant = [query_id for query_id, grades in known.items() if max(grades.values()) >= 1]
        if not relevant and _is_used(split, config):
            raise _nothing_relevant(each, known, there)
        pools[split] = Pool({i: queries[i] for i in relevant}, {i: known[i] for i in relevant})
        without[split] = len(known) - len(relevant)
    pools, shared = drop_overlap(pools)
    split_rule = _complete(pools, shared, config, folder)
    skipped = {
        "queries_without_relevant_passage": without,
        "queries_shared_with_another_split": shared,
        "repeated_judgements": {split: each.repeated for split, each in judged.items()},
        "empty_queries_without_judgements": empty_queries,
    }
    warnings += _skip_warnings(name, skipped) + [f"{name}: {text}" for text in counts.warnings()]
    return Outline(folder, name, pools, split_rule, judged["test"].path.name, skipped, counts, warnings)


def _is_used(split: str, config: Tier1Config) -> bool:
    """Whether a run reads the queries of a split."""
    return split == "test" or bool(trained_methods(config) or config.folds)


def open_corpus(path: Path, stores: Path) -> Corpus:
    """The passages of a corpus.jsonl, from their store in `stores`, which is built on first use.

    Raises:
        DataError: the file is missing, malformed, or changes while it is read.
    """
    source, folder = _source(path), stores / f"beir-{store_key(path)}"
    counts: Counts = Counts()
    earlier: set[int] = set()

    def records() -> Iterator[Record]:
        counts.clear()
        total = _estimated_lines(path)
        for row, record in enumerate(track(read_corpus(path, counts), f"reading {path.name}", "passage", total=total)):
            if row not in earlier:
                yield record
        if file_state(path) != source["stat"]:
            raise DataError(f"{path}: the file changed while it was read; start again when it is whole")
        for identifier in repeated:
            counts.add("repeated_passage_ids", identifier)

    def make() -> tuple[Iterator[Record], Where, dict[str, Any]]:
        return records(), line_finder(path), {"counts": counts}

    repeated: list[str] = []
    try:
        return Corpus.cached(folder, source, make)
    except RepeatedIdsError as error:  # BEIR's loader keeps the last passage of an id
        earlier.update(error.earlier)
        repeated += error.ids
        return Corpus.cached(folder, source, make)


def is_stored(path: Path, stores: Path) -> bool:
    """Whether `open_corpus` finds the passages of a corpus.jsonl in their store."""
    try:
        return read_manifest(stores / f"beir-{store_key(path)}")["source"] == _source(path)
    except DataError:  # no store, or one that is built again
        return False


def _source(path: Path) -> dict[str, Any]:
    return {"format": "beir", "path": str(path.resolve()), "stat": file_state(path)}


def store_key(path: Path) -> str:
    """Key of the store of a corpus.jsonl; the store's folder is `beir-<key>`."""
    return hashlib.sha256(str(path.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _estimated_lines(path: Path) -> int:
    """About how many lines a file has, for the progress bar, from its size and its first megabyte."""
    try:
        with path.open("rb") as file:
            head = file.read(1 << 20)
        return path.stat().st_size * head.count(b"\n") // max(1, len(head))
    except OSError:  # reading will say what is wrong
        return 0


def file_state(path: Path) -> list[int]:
    """Size and times of change of a file, which tell whether it is still the one that was read; [] if missing."""
    try:
        stat = path.stat()
    except OSError:  # reading will say what is wrong
        return []
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def checked_folder(text: str | Path) -> tuple[Path, str, str | None]:
    """The folder, the name of its results, and that of the test judgements, if the text gives one.

    Raises:
        DataError: there is no such folder, or a name that no file of results can have.
    """
    text = str(text)
    where = f"beir:{show(text)[1:-1]}"
    folder, judgements = beir_parts(text)
    if not is_folder(folder):
        raise DataError(f"{where}: {no_folder(folder)}; write beir:DIR with a folder in BEIR layout")
    path, name = Path(short_path(folder)), Path(absolute(folder)).name
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
    if dev.exists() and validation.exists() and _is_used("validation", config):
        raise DataError(f"{validation}: there is a dev.tsv too and both are the validation split; keep one of them")
    files = {"train": qrels / "train.tsv", "validation": dev if dev.exists() else validation}
    files = {split: path for split, path in files.items() if path.exists()}
    if trained_methods(config) and "train" not in files:
        methods = ", ".join(trained_methods(config))
        raise DataError(
            f"{qrels / 'train.tsv'}: there is no such file and {methods} must train; add it, or run with "
            "--methods zero_shot"
        )
    test = qrels / f"{judgements or 'test'}.tsv"
    if judgements and not test.is_file():
        raise DataError(f"{test}: there is no such file, and @{judgements} asks for its judgements as the test split")
    return files | {"test": test}


def _nothing_relevant(judged: Judgements, known: Mapping[str, Any], there: Mapping[str, Any]) -> DataError:
    where = f"{judged.path}:{judged.last_line}: the file ends and no query"
    if not known:
        alike = next(filter(None, (look_alike(each, there) for each in judged.qrels)), "")
        return DataError(f"{where} that it judges is in queries.jsonl{alike}; are the two files of one version?")
    return DataError(f"{where} has a relevant passage; at least one needs a score of 1 or more")


def _complete(pools: dict[str, Pool], shared: dict[str, int], config: Tier1Config, folder: Path) -> str:
    """Adds the validation split where the folder has none; gives the rule by which the splits came about.

    Training queries with the text of one that is held out are left out, and counted in `shared`.
    """
    rule = "the folder's own qrels files; a question in two splits stays in test before validation before train"
    train = pools.get("train", Pool())
    if "validation" not in pools and len(train) > 1:
        pools["train"], pools["validation"] = hold_out(train, config)
        copies = len(train) - len(pools["train"]) - len(pools["validation"])
        shared |= {"train": shared["train"] + copies, "validation": 0}
        rule += f"; validation: {len(pools['validation'])} of {len(train)} training queries, held out by hash"
    for split in ("train", "validation"):
        if trained_methods(config) and not pools.get(split):
            raise DataError(
                f"{folder / 'qrels'}: no {split} query is left once the questions of the other splits are "
                f"taken out; add more, or run with --methods zero_shot"
            )
    return rule


def _skip_warnings(name: str, skipped: dict[str, Any]) -> list[str]:
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
    ]
    return [f"{name}: {n} {what}" for what, n in counts if n]
