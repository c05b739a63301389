"""Passages on disk, and the queries and judgements that go with them.

Every loader in `maw.data` ends in the three types of this module, and training, encoding and evaluation see
nothing else: a `Corpus` (passages in a memory-mapped Arrow store, opened as a `datasets.Dataset`), a
`RetrievalData` (one split) and a `Collection` (three splits and the facts that the report prints).

A store is a folder:

    passages.arrow   record batches with the columns id, title and text
    index.npy        two rows of uint64: the hashes of all ids in ascending order, and the row of each
    *.json           attachments of the loader, where it has any
    manifest.json    counts, fingerprint, source, and size and SHA-256 of every file; written last

It is built in a temporary folder beside its own and renamed when whole, under a lock, so that a reader sees a
whole store or none and several processes build it once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from maw.errors import DataError
from maw.rules import show

logger = logging.getLogger(__name__)

STORE_VERSION = 1
SCHEMA = pa.schema([("id", pa.string()), ("title", pa.string()), ("text", pa.string())])
BATCH_ROWS = 4096
BATCH_CHARACTERS = 8 << 20
VERIFY_BYTES = 64 << 20
HASH_BASE = 0x9E3779B97F4A7C15
UNFIT_ID = r"[\x00-\x1f\x7f]"
LONGEST_ID = 1000  # bytes

Record = tuple[str, str, str]
Where = Callable[[int], str]


def hash_ids(ids: pa.Array) -> np.ndarray:
    """64-bit hashes of strings, without a Python object for any of them.

    The bytes of an id are the coefficients of a polynomial modulo 2^64, mixed by the splitmix64 finaliser.
    Ids that collide are told apart by comparing the ids themselves, so that nothing rests on the hash.

    Args:
        ids: (N,) Arrow strings without nulls.

    Returns:
        (N,) uint64.

    Source: S. Vigna, splitmix64.c, https://prng.di.unimi.it.
    """
    offsets = np.frombuffer(ids.buffers()[1], np.int32)[ids.offset : ids.offset + len(ids) + 1].astype(np.int64)
    data = ids.buffers()[2]
    start, end = int(offsets[0]), int(offsets[-1])
    letters = np.frombuffer(data, np.uint8)[start:end] if end > start else np.empty(0, np.uint8)
    lengths = np.diff(offsets)
    place = np.arange(end - start) - np.repeat(offsets[:-1] - start, lengths)
    powers = np.ones(int(lengths.max(initial=0)) + 1, np.uint64)
    powers[1:] = HASH_BASE
    powers = np.multiply.accumulate(powers)
    sums = np.zeros(end - start + 1, np.uint64)
    np.cumsum((letters.astype(np.uint64) + np.uint64(1)) * powers[place], out=sums[1:])
    mixed = sums[offsets[1:] - start] - sums[offsets[:-1] - start]
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


class Ids(Sequence):
    """The ids of a corpus as a sequence of str that reads from the store on demand."""

    def __init__(self, column: pa.ChunkedArray):
        self.arrow = column

    def __len__(self) -> int:
        return len(self.arrow)

    def __getitem__(self, item: int | slice) -> str | list[str]:
        if isinstance(item, slice):
            return [self[row] for row in range(*item.indices(len(self)))]
        return self.arrow[int(item)].as_py()

    def __iter__(self) -> Iterator[str]:
        for chunk in self.arrow.chunks:
            yield from chunk.to_pylist()


class _Contents:
    """What a writer learns of the passages while they pass: fingerprint, hashes of ids, counts."""

    def __init__(self, where: Where):
        self.where, self.rows, self.empty = where, 0, 0
        self.sha, self.hashes = hashlib.sha256(), array("Q")

    def add(self, batch: pa.RecordBatch) -> None:
        self._refuse(pc.equal(pc.binary_length(batch["id"]), 0), "the passage has an empty id; give it one")
        self._refuse(
            pc.greater(pc.binary_length(batch["id"]), LONGEST_ID),
            f"the passage id is longer than {LONGEST_ID} bytes; shorten it",
        )
        self._refuse(
            pc.match_substring_regex(batch["id"], UNFIT_ID),
            "the passage id holds a control character (tab, line end, NUL); remove it",
        )
        for column in ("title", "text"):
            if not np.frombuffer(batch[column].buffers()[2] or b"", np.uint8).all():
                wrong = pc.match_substring(batch[column], "\0")
                self._refuse(wrong, f"the {column} holds a NUL character; remove it")
        update_fingerprint(self.sha, batch)
        self.hashes.frombytes(hash_ids(batch["id"]).tobytes())
        blank = [pc.equal(pc.binary_length(pc.utf8_trim_whitespace(batch[c])), 0) for c in ("title", "text")]
        self.empty += pc.sum(pc.and_(*blank)).as_py() or 0
        self.rows += len(batch)

    def _refuse(self, wrong: pa.BooleanArray, message: str) -> None:
        first = pc.index(wrong, True).as_py()
        if first >= 0:
            raise DataError(f"{self.where(self.rows + first)}: {message}")

    def index(self) -> np.ndarray:
        """(2, N) uint64: ascending hashes and the row of each; rows ascend among equal hashes."""
        if not self.rows:
            raise DataError(f"{self.where(0)}: there is no passage at all; give at least one")
        hashes = np.frombuffer(self.hashes, np.uint64)
        rows = np.argsort(hashes, kind="stable")
        return np.stack([hashes[rows], rows.astype(np.uint64)])


def update_fingerprint(sha: Any, batch: pa.RecordBatch) -> None:
    """Adds a batch to a SHA-256; batches are cut by content alone, so equal passages give equal hashes."""
    for column in batch.columns:
        offsets = np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + len(column) + 1]
        sha.update(np.diff(offsets).astype("<i4").tobytes())
        if offsets[-1] > offsets[0]:
            sha.update(memoryview(column.buffers()[2])[offsets[0] : offsets[-1]])


def _batches(records: Iterable[Record], where: Where) -> Iterator[pa.RecordBatch]:
    done, size, rows = 0, 0, []
    for record in records:
        identifier, title, text = record
        rows.append(record)
        size += len(identifier) + len(title) + len(text)
        if size >= BATCH_CHARACTERS or len(rows) == BATCH_ROWS:
            yield _batch(rows, done, where)
            done, size, rows = done + len(rows), 0, []
    if rows:
        yield _batch(rows, done, where)


def _batch(rows: Sequence[Record], done: int, where: Where) -> pa.RecordBatch:
    try:
        return pa.record_batch([pa.array(column, pa.string()) for column in zip(*rows, strict=True)], schema=SCHEMA)
    except UnicodeEncodeError as error:  # a lone surrogate: legal as a JSON escape, yet not text
        row = next(row for row, values in enumerate(rows) if not all(map(_encodable, values)))
        raise DataError(
            f"{where(done + row)}: an escape is half of a surrogate pair; write the whole character"
        ) from error


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


class Corpus:
    """Passages in a memory-mapped Arrow store, addressed by row.

    Make one with `Corpus.cached`, `Corpus.build`, `Corpus.open` or `Corpus.from_lists`.

    Attributes:
        dataset: the `datasets.Dataset` with the columns id, title and text.
        fingerprint: SHA-256 over all ids, titles and texts in order.
        empty: number of passages with no text at all, title included.
        manifest: what `manifest.json` says; empty for a corpus in memory.
        folder: where the store lies; None for a corpus in memory.
    """

    def __init__(
        self,
        dataset: Any,
        index: np.ndarray,
        fingerprint: str,
        empty: int,
        manifest: Mapping[str, Any] | None = None,
        folder: Path | None = None,
    ):
        self.dataset, self.fingerprint, self.empty = dataset, fingerprint, empty
        self.manifest, self.folder = dict(manifest or {}), folder
        self._hashes, self._rows = index
        self._arrow = dataset.with_format("arrow")

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def ids(self) -> Ids:
        """The ids in row order, read from the store on demand."""
        return Ids(self.dataset.data.column("id"))

    def take(self, rows: Sequence[int]) -> list[str]:
        """The texts at `rows`: title, one blank and text; the one that is there where the other is empty."""
        table = self._gather(rows)
        pairs = zip(table["title"].to_pylist(), table["text"].to_pylist(), strict=True)
        return [f"{title} {text}" if title and text else title or text for title, text in pairs]

    def id_of(self, rows: Sequence[int]) -> list[str]:
        """The ids at `rows`."""
        return self._gather(rows)["id"].to_pylist()

    def rows_of(self, ids: Sequence[str]) -> np.ndarray:
        """Rows of `ids`, -1 where the corpus has no such passage.

        Returns:
            (len(ids),) int64.
        """
        rows = np.full(len(ids), -1, np.int64)
        wanted = [text if len(text) <= LONGEST_ID and _encodable(text) else "" for text in ids]  # "" is never stored
        hashes = hash_ids(pa.array(wanted, pa.string()))
        place, end = (np.searchsorted(self._hashes, hashes, side) for side in ("left", "right"))
        open_ = np.flatnonzero(place < end)
        while open_.size:  # a second round only where two ids share a hash
            candidates = np.asarray(self._rows[place[open_]]).astype(np.int64)
            found = np.array([wanted[i] == got for i, got in zip(open_, self.id_of(candidates), strict=True)])
            rows[open_[found]] = candidates[found]
            open_ = open_[~found]
            place[open_] += 1
            open_ = open_[place[open_] < end[open_]]
        return rows

    def lengths(self) -> np.ndarray:
        """Characters of each text that `take` gives, as (N,) int64, without a Python object for any text."""
        title, text = (pc.utf8_length(self.dataset.data.column(name)).to_numpy() for name in ("title", "text"))
        return title.astype(np.int64) + text + ((title > 0) & (text > 0))

    def tie_order(self) -> np.ndarray:
        """Rank of each row when ids are sorted descending by their UTF-8 bytes: trec_eval's rule for ties.

        Returns:
            (N,) int64, read-only; 0 for the id that sorts first.
        """
        return self._tie_order

    @cached_property
    def _tie_order(self) -> np.ndarray:
        column = self.dataset.data.column("id").cast(pa.large_binary())
        order = pc.array_sort_indices(column.combine_chunks(), order="descending").to_numpy()
        ranks = np.empty(len(self), np.int64)
        ranks[order] = np.arange(len(self))
        ranks.flags.writeable = False
        return ranks

    def attachment(self, name: str) -> Any:
        """The JSON value that the loader stored beside the passages under `name`."""
        return json.loads((self.folder / f"{name}.json").read_text("utf-8"))

    def verify(self) -> None:
        """Compares every byte of the store with its manifest; a corpus in memory has none and passes.

        Raises:
            DataError: the store was changed after it was written.
        """
        if self.folder is not None:
            _check_files(self.folder, self.manifest, math.inf)

    def _gather(self, rows: Sequence[int]) -> pa.Table:
        rows = np.asarray(rows, dtype=np.int64)
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows must be in 0..{len(self) - 1}, got {rows.min()}..{rows.max()}")
        return self._arrow[rows] if rows.size else SCHEMA.empty_table()

    @classmethod
    def from_lists(cls, ids: Sequence[str], texts: Sequence[str], titles: Sequence[str] | None = None) -> Corpus:
        """A corpus in memory, equal to a stored one with the same passages.

        Raises:
            DataError: an id that is empty or repeated, or a text with a NUL.
        """
        titles = [""] * len(ids) if titles is None else titles
        contents = _Contents(lambda row: f"passage {row}")
        batches = []
        for batch in _batches(zip(ids, titles, texts, strict=True), contents.where):
            contents.add(batch)
            batches.append(batch)
        from datasets import Dataset
        from datasets.table import InMemoryTable

        fingerprint = contents.sha.hexdigest()
        table = InMemoryTable(pa.Table.from_batches(batches, SCHEMA))
        corpus = cls(Dataset(table, fingerprint=fingerprint[:16]), contents.index(), fingerprint, contents.empty)
        corpus._refuse_duplicates(contents.where)
        return corpus

    @classmethod
    def build(
        cls,
        records: Iterable[Record],
        folder: Path,
        *,
        source: Mapping[str, Any] | None = None,
        where: Where | None = None,
        attachments: Mapping[str, Any] | None = None,
    ) -> Corpus:
        """Writes (id, title, text) records to a new store in bounded memory, and opens it.

        Args:
            records: the passages; read once, about 8 million characters held at a time and 8 bytes a passage.
            folder: the store, replaced if it is there. Its parents are made.
            source: JSON-able description of where the passages come from; compared by `cached`.
            where: row -> "file:line" for messages about a passage.
            attachments: name -> JSON-able value, stored as `<name>.json` beside the passages.

        Raises:
            DataError: a malformed or repeated id, a NUL, or a folder that cannot be written.
        """
        folder, where = Path(folder), where or (lambda row: f"passage {row}")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".tmp", dir=folder.parent))
        except OSError as error:
            raise _unwritable(folder, error) from error
        try:
            manifest = _write_store(temporary, records, where, dict(source or {}), attachments or {})
            cls._open(temporary, manifest)._refuse_duplicates(where)
            _replace_folder(temporary, folder)
        except OSError as error:
            raise _unwritable(folder, error) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return cls._open(folder, manifest)

    @classmethod
    def open(cls, folder: Path) -> Corpus:
        """Opens a store by memory map, in milliseconds at any size.

        Contents are compared with the manifest only in files of up to 64 MiB; `verify` does so for all.

        Raises:
            DataError: there is no whole store of this version in `folder`.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder)
        _check_files(folder, manifest, VERIFY_BYTES)
        return cls._open(folder, manifest)

    @classmethod
    def _open(cls, folder: Path, manifest: Mapping[str, Any]) -> Corpus:
        from datasets import Dataset

        try:
            dataset = Dataset.from_file(str(folder / "passages.arrow"))
            index = np.load(folder / "index.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DataError(f"{folder}: the passage store cannot be read ({show(str(error))}); delete it") from error
        count = manifest["count"]
        if len(dataset) != count or index.shape != (2, count) or dataset.column_names != SCHEMA.names:
            raise DataError(
                f"{folder}: the store holds {len(dataset)} passages and its manifest says {count}; delete it"
            )
        return cls(dataset, index, manifest["fingerprint"], manifest["empty"], manifest, folder)

    @classmethod
    def cached(
        cls,
        folder: Path,
        source: Mapping[str, Any],
        make: Callable[[], tuple[Iterable[Record], Where, Mapping[str, Any]]],
    ) -> Corpus:
        """Opens the store in `folder` if it was built from `source`, else builds it; once among processes.

        A store that is damaged is built anew with a warning.

        Args:
            folder: the store.
            source: JSON-able; everything on which the passages depend.
            make: called only to build; gives records, `where` and attachments for `build`.
        """
        from filelock import FileLock, Timeout

        folder = Path(folder)
        corpus = cls._usable(folder, source, quiet=True)
        if corpus is not None:
            return corpus
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(f"{folder}.lock")
            try:
                lock.acquire(timeout=0.05)
            except Timeout:
                logger.info("waiting for another process that builds %s", folder)
                lock.acquire()
        except OSError as error:
            raise _unwritable(folder, error) from error
        try:
            corpus = cls._usable(folder, source)
            if corpus is None:
                for stray in folder.parent.glob(f"{folder.name}.*.tmp"):  # left by a builder that was killed
                    shutil.rmtree(stray, ignore_errors=True)
                records, where, attachments = make()
                corpus = cls.build(records, folder, source=source, where=where, attachments=attachments)
            return corpus
        finally:
            lock.release()

    @classmethod
    def _usable(cls, folder: Path, source: Mapping[str, Any], quiet: bool = False) -> Corpus | None:
        if not folder.exists():
            return None
        try:
            corpus = cls.open(folder)
        except DataError as error:
            if not quiet:
                logger.warning("%s; building it again", error)
            return None
        if corpus.manifest["source"] != json.loads(json.dumps(source)):
            if not quiet:
                logger.info("the source of %s has changed; building it again", folder)
            return None
        return corpus

    def _refuse_duplicates(self, where: Where) -> None:
        same = np.flatnonzero(self._hashes[1:] == self._hashes[:-1])
        for start in same:  # rows ascend within a run of equal hashes
            first, end = (
                int(self._rows[start]),
                int(np.searchsorted(self._hashes, self._hashes[start], "right")),
            )
            rows = np.asarray(self._rows[start:end]).astype(np.int64)
            ids = self.id_of(rows)
            if ids[0] in ids[1:]:
                second = int(rows[ids.index(ids[0], 1)])
                raise DataError(
                    f"{where(second)}: the passage id {show(ids[0])} was used before, at {where(first)}; "
                    "give each passage its own id"
                )


def _unwritable(folder: Path, error: OSError) -> DataError:
    reason = error.strerror or show(str(error))
    return DataError(f"{folder}: cannot write the passage store ({reason}); free space or choose another cache_dir")


def _write_store(
    folder: Path,
    records: Iterable[Record],
    where: Where,
    source: dict[str, Any],
    attachments: Mapping[str, Any],
) -> dict[str, Any]:
    contents = _Contents(where)
    with (folder / "passages.arrow").open("wb") as file:
        with pa.ipc.new_stream(file, SCHEMA) as writer:
            for batch in _batches(records, where):
                contents.add(batch)
                writer.write_batch(batch)
        _sync(file)
    with (folder / "index.npy").open("wb") as file:
        np.save(file, contents.index(), allow_pickle=False)
        _sync(file)
    for name, value in attachments.items():
        _write_json(folder / f"{name}.json", value)
    manifest = {
        "version": STORE_VERSION,
        "count": contents.rows,
        "empty": contents.empty,
        "fingerprint": contents.sha.hexdigest(),
        "source": source,
        "files": {path.name: [path.stat().st_size, _file_sha(path)] for path in sorted(folder.iterdir())},
    }
    _write_json(folder / "manifest.json", manifest | {"sha256": _json_sha(manifest)})
    return manifest


def _write_json(path: Path, value: Any) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(value, file, allow_nan=False)
        _sync(file)


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _file_sha(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json_sha(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("ascii")).hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        whole = manifest.pop("sha256") == _json_sha(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = show(getattr(error, "strerror", None) or str(error))
        raise DataError(f"{folder}: manifest.json cannot be read ({reason}); delete the folder") from error
    if not whole:
        raise DataError(f"{folder}: manifest.json was changed after it was written; delete the folder")
    if manifest["version"] != STORE_VERSION:
        raise DataError(f"{folder}: the store has version {manifest['version']}; delete it")
    return manifest


def _check_files(folder: Path, manifest: Mapping[str, Any], read_up_to: float) -> None:
    """Compares the size of each file with the manifest, and the contents up to `read_up_to` bytes."""
    for name, (size, sha) in manifest["files"].items():
        path = folder / name
        try:
            good = path.stat().st_size == size and (size > read_up_to or _file_sha(path) == sha)
        except OSError as error:
            raise DataError(f"{path}: the file cannot be read ({error.strerror}); delete the folder") from error
        if not good:
            raise DataError(f"{path}: the file was changed after it was written; delete the folder")


def _replace_folder(new: Path, folder: Path) -> None:
    if folder.exists():  # whoever has the old store open keeps it: its files live until they are unmapped
        old = new.with_name(f"{new.name[:-4]}.old.tmp")
        folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    else:
        new.rename(folder)
    handle = os.open(folder.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@dataclass(frozen=True)
class RetrievalData:
    """One split: queries, judgements and the corpus to search.

    Attributes:
        corpus: the passages.
        name: "train", "validation" or "test".
        query_ids: (Q,) unique ids.
        queries: (Q,) texts.
        qrels: query id -> passage id -> grade, with exactly the ids of `query_ids`. A grade of 1 or more is
            relevant; 0 and below is judged not relevant. Each query has a relevant passage in the corpus.
        negatives: query id -> ids of hard negatives.

    Raises:
        DataError: one of the above does not hold.
    """

    corpus: Corpus
    name: str
    query_ids: list[str]
    queries: list[str]
    qrels: dict[str, dict[str, int]]
    negatives: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.query_ids) != len(self.queries):
            raise DataError(f"{self.name}: {len(self.query_ids)} query ids but {len(self.queries)} queries")
        known = set(self.query_ids)
        if len(known) != len(self.query_ids):
            raise DataError(f"{self.name}: a query id occurs twice; give each query its own")
        stray = (known ^ self.qrels.keys()) | (self.negatives.keys() - known)
        if stray:
            raise DataError(f"{self.name}: the query {show(min(stray))} is in only one of queries and judgements")
        pairs = [(q, d) for q in self.query_ids for d, grade in self.qrels[q].items() if grade >= 1]
        there = self.corpus.rows_of([d for _, d in pairs]) >= 0
        answered = {q for (q, _), ok in zip(pairs, there, strict=True) if ok}
        for query_id in self.query_ids:
            if query_id not in answered:
                raise DataError(
                    f"{self.name}: the query {show(query_id)} has no relevant passage (grade 1 or more) "
                    "in the corpus; add one or leave the query out"
                )

    def __len__(self) -> int:
        return len(self.query_ids)

    def qrels_hash(self) -> str:
        """SHA-256 of the judgements, whatever the order they came in."""
        rows = sorted((q, d, grade) for q, judged in self.qrels.items() for d, grade in judged.items())
        return hashlib.sha256(json.dumps(rows).encode("ascii")).hexdigest()


@dataclass(frozen=True)
class Collection:
    """A dataset as a run uses it.

    Attributes:
        name: fit for a folder name, e.g. "pystdlib" or "beir_nq".
        title: for people.
        train, validation, test: the drawn splits. Train and validation are empty where a dataset has none
            and no method of the run trains.
        facts: JSON-able; source, version, counts, rules, skipped counts and the list of warnings, for the
            report.
    """

    name: str
    title: str
    train: RetrievalData
    validation: RetrievalData
    test: RetrievalData
    facts: dict[str, Any]


def as_retrieval_data(data: RetrievalData | Mapping[str, Any], name: str = "test") -> RetrievalData:
    """`data` itself, or the user's dictionaries as `RetrievalData`: see `maw.data.plain`."""
    if isinstance(data, RetrievalData):
        return data
    from maw.data.plain import from_dictionaries

    return from_dictionaries(data, name)
