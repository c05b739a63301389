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
import logging
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from maw.config.methods import trained_methods
from maw.config.paths import absolute, beir_parts, is_folder, look_alike, no_folder, short_path
from maw.config.tier1_config import LETTERS, SAFE_NAME, Tier1Config, cache_folder
from maw.data.beir_format import HEADER, Judgements, line_finder, qrels_rows, read_corpus, read_qrels, read_queries
from maw.data.collection import Collection
from maw.data.corpus import Corpus
from maw.data.leakage import drop_overlap
from maw.data.splits import Pool, draw_splits, hold_out
from maw.data.store import Record
from maw.errors import DataError, show
from maw.runtime.run_log import warn_of_data

logger = logging.getLogger(__name__)


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
    split_rule = _complete(pools, shared, config, folder)
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
    """Key of the store of a corpus.jsonl; the store's folder is `beir-<key>`."""
    return hashlib.sha256(str(path.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:16]


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
    if dev.exists() and validation.exists():
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


def _check_known(judged: Judgements, queries: dict[str, str], corpus: Corpus, folder: Path) -> None:
    strange = {query_id for query_id in judged.qrels if query_id not in queries}
    if strange:
        home = folder / "queries.jsonl"
        raise _unknown(judged.path, 0, strange, home, lambda ids: read_queries(home, ids)[0])
    passages = list(dict.fromkeys(passage for each in judged.qrels.values() for passage in each))
    missing = {passages[i] for i in (corpus.rows_of(passages) < 0).nonzero()[0]}
    if missing:
        there = lambda ids: [each for each in ids if corpus.rows_of([each])[0] >= 0]  # noqa: E731
        raise _unknown(judged.path, 1, missing, folder / "corpus.jsonl", there)


def _unknown(
    path: Path, column: int, ids: set[str], home: Path, there: Callable[[set[str]], Iterable[str]]
) -> DataError:
    number, row = next((number, row) for number, row in qrels_rows(path) if row[column] in ids)
    more = f" (and {len(ids) - 1} more)" if len(ids) > 1 else ""
    alike = look_alike(row[column], there({unicodedata.normalize(form, row[column]) for form in ("NFC", "NFD")}))
    advice = "write both files in the same one" if alike else "add it there or remove the judgement"
    return DataError(
        f"{path}:{number}: the {HEADER[column]} {show(row[column])}{more} is not in {home.name}{alike}; {advice}"
    )


def _pool(judged: Judgements, queries: dict[str, str]) -> Pool:
    ids = [query_id for query_id, each in judged.qrels.items() if max(each.values()) >= 1]
    if not ids:
        raise DataError(
            f"{judged.path}:{judged.last_line}: the file ends and no query has a relevant passage; at least "
            "one needs a score of 1 or more"
        )
    return Pool({i: queries[i] for i in ids}, {i: judged.qrels[i] for i in ids})


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
        warn_of_data(logger, warning)
    return warnings
