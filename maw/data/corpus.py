"""A corpus: passages in a memory-mapped Arrow store, opened as a `datasets.Dataset`, never all in Python objects."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from maw.data import store
from maw.data.store import Ids, Record, Where
from maw.errors import DataError, show
from maw.storage import cache_entry
from maw.storage.files import read_json

logger = logging.getLogger(__name__)

Rows = Sequence[int] | np.ndarray
"""Row numbers of passages: (N,)."""


class RepeatedIdsError(DataError):
    """Passages of a store share an id.

    Attributes:
        ids: the ids.
        earlier: for each, the rows of all its passages but the last.
    """

    def __init__(self, rows_of: Mapping[str, Sequence[int]], where: Where):
        self.ids = [show(identifier) for identifier in rows_of]
        self.earlier = [row for rows in rows_of.values() for row in rows[:-1]]
        identifier, (first, second, *_) = min(rows_of.items(), key=lambda item: item[1][1])
        text = f"the passage id {show(identifier)} was used before, at {where(first)}"
        super().__init__(f"{where(second)}: {text}; give each passage its own id")


def one_text(title: str, text: str) -> str:
    """Title, blank and text of a passage; only one of them if the other is empty."""
    return f"{title} {text}" if title and text else title or text


class Corpus:
    """Passages in a memory-mapped Arrow store, addressed by row.

    Create one with `Corpus.cached`, `Corpus.build`, `Corpus.open` or `Corpus.from_lists`.

    Attributes:
        dataset: the `datasets.Dataset` with the columns id, title and text.
        fingerprint: SHA-256 over all ids, titles and texts in order.
        empty: number of passages without any text, title included.
        folder: folder of the store; None for a corpus in memory.
    """

    def __init__(self, dataset: Any, index: np.ndarray, facts: Mapping[str, Any], folder: Path | None = None):
        self.dataset, self.fingerprint, self.empty = dataset, facts["fingerprint"], facts["empty"]
        self.folder = folder
        self._hashes, self._rows = index
        self._arrow = dataset.with_format("arrow")

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def ids(self) -> Ids:
        """The ids in row order, read from the store on demand."""
        return Ids(self.dataset.data.column("id"))

    def take(self, rows: Rows) -> list[str]:
        """The texts at `rows`: title, blank and text; only one of them if the other is empty."""
        table = self._gather(rows)
        pairs = zip(table["title"].to_pylist(), table["text"].to_pylist(), strict=True)
        return [one_text(title, text) for title, text in pairs]

    def id_of(self, rows: Rows) -> list[str]:
        """The ids at `rows`."""
        return self._gather(rows)["id"].to_pylist()

    def ids_of(self, rows_QK: np.ndarray) -> list[list[str]]:
        """The ids of many rankings, (Q, K); each id is read from the store once.

        Raises:
            IndexError: a row that the corpus does not have.
        """
        _check_rows(rows_QK, len(self))
        seen = np.zeros(len(self), bool)
        seen[rows_QK] = True
        rows = np.flatnonzero(seen)
        position = np.empty(len(self), np.int64)
        position[rows] = np.arange(len(rows))
        chunks = self.dataset.data.column("id").chunks
        ends = np.cumsum([len(chunk) for chunk in chunks])
        parts = np.split(rows, np.searchsorted(rows, ends[:-1]))
        taken = [c.take(pa.array(part - (end - len(c)))) for c, end, part in zip(chunks, ends, parts, strict=True)]
        ids = np.array([identifier for each in taken for identifier in each.to_pylist()], dtype=object)
        return ids[position[rows_QK]].tolist()

    def rankings(self, rows_QK: np.ndarray, scores_QK: np.ndarray) -> tuple[list[list[str]], list[Any]]:
        """Ids and scores of many rankings; row -1 stands at the end of those that are shorter."""
        lengths = (rows_QK >= 0).sum(1).tolist()
        ids = self.ids_of(rows_QK.clip(min=0))
        cut = [each[:length] for each, length in zip(ids, lengths, strict=True)]
        return cut, [each[:length] for each, length in zip(scores_QK, lengths, strict=True)]

    def rows_of(self, ids: Sequence[str]) -> np.ndarray:
        """Rows of `ids`, (len(ids),) int64; -1 for an id that the corpus does not have."""
        rows = np.full(len(ids), -1, np.int64)
        # "" is never stored, so it is never found.
        wanted = [text if len(text) <= store.LONGEST_ID and store.encodable(text) else "" for text in ids]
        hashes = store.hash_ids(pa.array(wanted, pa.string()))
        position, end = (np.searchsorted(self._hashes, hashes, side) for side in ("left", "right"))
        open_ = np.flatnonzero(position < end)
        while open_.size:  # repeats only if two ids share a hash
            candidates = np.asarray(self._rows[position[open_]]).astype(np.int64)
            found = np.array([wanted[i] == got for i, got in zip(open_, self.id_of(candidates), strict=True)])
            rows[open_[found]] = candidates[found]
            open_ = open_[~found]
            position[open_] += 1
            open_ = open_[position[open_] < end[open_]]
        return rows

    def records(self, rows: Rows | None = None) -> Iterator[Record]:
        """Yields (id, title, text) of `rows` in their order, or of all passages, read in batches."""
        if rows is None:
            tables: Iterable[Any] = self.dataset.data.to_batches(max_chunksize=store.BATCH_ROWS)
        else:
            starts = range(0, len(rows), store.BATCH_ROWS)
            tables = (self._gather(rows[start : start + store.BATCH_ROWS]) for start in starts)
        for table in tables:
            yield from zip(*(table[name].to_pylist() for name in store.SCHEMA.names), strict=True)

    def id_hashes(self) -> tuple[np.ndarray, np.ndarray]:
        """The 64-bit hashes of all ids, ascending, and the row of each: (N,) uint64 each, read from the store."""
        return self._hashes, self._rows

    def lengths(self) -> np.ndarray:
        """Number of characters of each text of `take`: (N,) int64."""
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
        """The JSON value that the loader stored with the passages under `name`.

        Raises:
            DataError: it cannot be read, or the corpus is in memory.
        """
        if self.folder is None:
            raise DataError(f"{name}: a corpus in memory has no attachments")
        try:
            return read_json(self.folder / f"{name}.json")
        except DataError as error:
            raise DataError(f"{error}; delete the folder") from error

    def _gather(self, rows: Rows) -> pa.Table:
        numbers = np.asarray(rows, dtype=np.int64)
        _check_rows(numbers, len(self))
        return self._arrow[numbers] if numbers.size else store.SCHEMA.empty_table()

    @classmethod
    def from_lists(cls, ids: Sequence[str], texts: Sequence[str], titles: Sequence[str] | None = None) -> Corpus:
        """A corpus in memory, equal to a stored one with the same passages.

        Raises:
            DataError: an empty or repeated id, or a text with a NUL.
        """
        titles = [""] * len(ids) if titles is None else titles
        contents = store.Contents(lambda row: f"passage {row}")
        batches = []
        for batch in store.batches(zip(ids, titles, texts, strict=True), contents.where):
            contents.add(batch)
            batches.append(batch)
        from datasets import Dataset
        from datasets.table import InMemoryTable

        facts: dict[str, Any] = {"fingerprint": contents.sha.hexdigest(), "empty": contents.empty}
        table = InMemoryTable(pa.Table.from_batches(batches, store.SCHEMA))
        corpus = cls(Dataset(table, fingerprint=facts["fingerprint"][:16]), contents.index(), facts)
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
            folder: replaced if it exists, created with its parents otherwise.
            records: the passages; read once, with about 8 million characters and 8 bytes a passage in memory.
            source: JSON-able description of the origin of the passages; `cached` compares it.
            where: row -> "file:line" for error messages.
            attachments: name -> JSON-able value, stored as `<name>.json` with the passages.

        Raises:
            DataError: a malformed or repeated id, a NUL, or a folder that cannot be written.
        """
        folder, where = Path(folder), where or (lambda row: f"passage {row}")
        with cache_entry.new_folder(folder) as temporary:
            manifest = store.write_store(temporary, records, where, dict(source or {}), attachments or {})
            cls._open(temporary, manifest)._refuse_duplicates(where)
        return cls._open(folder, manifest)

    @classmethod
    def open(cls, folder: Path) -> Corpus:
        """Opens a store by memory map; each process checks large files once against the manifest.

        Raises:
            DataError: `folder` has no complete store of this version.
        """
        folder = Path(folder)
        manifest = cache_entry.read_manifest(folder)
        cache_entry.check_files(folder, manifest, once=True)
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
        if len(dataset) != count or index.shape != (2, count) or dataset.column_names != store.SCHEMA.names:
            text = f"the store holds {len(dataset)} passages and its manifest says {count}"
            raise DataError(f"{folder}: {text}; delete it")
        return cls(dataset, index, manifest, folder)

    @classmethod
    def cached(
        cls,
        folder: Path,
        source: Mapping[str, Any],
        make: Callable[[], tuple[Iterable[Record], Where, Mapping[str, Any]]],
    ) -> Corpus:
        """Opens the store in `folder` if it was built from `source`, else builds it; only one process builds.

        Every file is checked against its SHA-256 first, about half a second a gigabyte. A damaged store is rebuilt
        with a warning.

        Args:
            source: JSON-able; everything that the passages depend on.
            make: called only to build; returns records, `where` and attachments for `build`.
        """
        folder = Path(folder)
        corpus = cls._usable(folder, source, quiet=True)
        if corpus is not None:
            return corpus
        with cache_entry.only_builder(folder):
            corpus = cls._usable(folder, source)
            if corpus is None:
                records, where, attachments = make()
                corpus = cls.build(records, folder, source=source, where=where, attachments=attachments)
            return corpus

    @classmethod
    def _usable(cls, folder: Path, source: Mapping[str, Any], quiet: bool = False) -> Corpus | None:
        if not folder.exists():
            return None
        try:
            if cache_entry.read_manifest(folder)["source"] != json.loads(json.dumps(source)):
                if not quiet:
                    logger.info("the source of %s has changed; building it again", folder)
                return None
            return cls.open(folder)
        except DataError as error:
            if not quiet:
                logger.warning("%s; building it again", error)
            return None

    def _refuse_duplicates(self, where: Where) -> None:
        same = np.flatnonzero(self._hashes[1:] == self._hashes[:-1])
        rows = np.unique(np.concatenate([self._rows[same], self._rows[same + 1]])).astype(np.int64)
        rows_of: dict[str, list[int]] = {}
        for row, identifier in zip(rows.tolist(), self.id_of(rows), strict=True):
            rows_of.setdefault(identifier, []).append(row)
        twice = {identifier: each for identifier, each in rows_of.items() if len(each) > 1}
        if twice:
            raise RepeatedIdsError(twice, where)


def _check_rows(rows: np.ndarray, count: int) -> None:
    if rows.size and (rows.min() < 0 or rows.max() >= count):
        raise IndexError(f"rows must be in 0..{count - 1}, got {rows.min()}..{rows.max()}")
