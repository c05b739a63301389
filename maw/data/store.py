"""Files and columns of a passage store: batches of records, id hashes, writing and checking the folder.

Other modules use `maw.data.corpus`. A store is a folder:

    passages.arrow   record batches with the columns id, title and text
    index.npy        two rows of uint64: the hashes of all ids in ascending order, and the row of each
    *.json           attachments of the loader, if any
    manifest.json    counts, fingerprint, source, and size and SHA-256 of every file; written last

It is built in a temporary folder next to its own and renamed when complete, under a lock. So a reader sees a complete
store or none, and several processes build it once.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from maw.data.hash_sampling import mix64
from maw.errors import DataError
from maw.storage.cache_entry import write_entry_json, write_manifest
from maw.storage.files import flush

SCHEMA = pa.schema([("id", pa.string()), ("title", pa.string()), ("text", pa.string())])
BATCH_ROWS = 4096
BATCH_CHARACTERS = 8 << 20
INDEX_PART = 1 << 20  # passages
HASH_BASE = 0x9E3779B97F4A7C15
UNFIT_ID = r"[\x00-\x1f\x7f]"
LONGEST_ID = 1000  # bytes

Record = tuple[str, str, str]
Where = Callable[[int], str]


def hash_ids(ids: pa.Array) -> np.ndarray:
    """64-bit hashes of strings, computed without Python objects.

    The bytes of an id are the coefficients of a polynomial modulo 2^64, mixed by the splitmix64 finaliser. Equal
    hashes are resolved by comparing the ids, so collisions do no harm. Maps (N,) strings without nulls to (N,) uint64.
    """
    offsets = np.frombuffer(ids.buffers()[1], np.int32)[ids.offset : ids.offset + len(ids) + 1].astype(np.int64)
    data = ids.buffers()[2]
    start, end = int(offsets[0]), int(offsets[-1])
    letters = np.frombuffer(data, np.uint8)[start:end] if end > start else np.empty(0, np.uint8)
    lengths = np.diff(offsets)
    exponents = np.arange(end - start) - np.repeat(offsets[:-1] - start, lengths)
    powers = np.ones(int(lengths.max(initial=0)) + 1, np.uint64)
    powers[1:] = HASH_BASE
    powers = np.multiply.accumulate(powers)
    sums = np.zeros(end - start + 1, np.uint64)
    np.cumsum((letters.astype(np.uint64) + np.uint64(1)) * powers[exponents], out=sums[1:])
    return mix64(sums[offsets[1:] - start] - sums[offsets[:-1] - start])


class Ids(Sequence):
    """The ids of a corpus as a sequence of str, read from the store on demand."""

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


class Contents:
    """Checks passages while they are written, and collects fingerprint, id hashes and counts."""

    def __init__(self, where: Where):
        self.where, self.rows, self.empty = where, 0, 0
        self.sha, self.hashes = hashlib.sha256(), array("Q")

    def add(self, batch: pa.RecordBatch) -> None:
        lengths = pc.binary_length(batch["id"])
        too_long = f"the passage id is longer than {LONGEST_ID} bytes; shorten it"
        unfit = "the passage id holds a control character (tab, line end, NUL); remove it"
        self._refuse(pc.equal(lengths, 0), "the passage has an empty id; give it one")
        self._refuse(pc.greater(lengths, LONGEST_ID), too_long)
        self._refuse(pc.match_substring_regex(batch["id"], UNFIT_ID), unfit)
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
        return np.stack([np.concatenate(part) for part in zip(*self.index_parts(), strict=True)])

    def index_parts(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the index in parts of about a million ascending hashes; uses up to 10 bytes a passage of memory."""
        if not self.rows:
            raise DataError(f"{self.where(0)}: there is no passage; give at least one")
        hashes = np.frombuffer(self.hashes, np.uint64)
        parts = -(-self.rows // INDEX_PART)
        for part in range(parts):
            inside = hashes >= np.uint64((part << 64) // parts)
            if part + 1 < parts:
                inside &= hashes < np.uint64((part + 1 << 64) // parts)
            rows = np.flatnonzero(inside)
            rows = rows[np.argsort(hashes[rows], kind="stable")]
            yield hashes[rows], rows.astype(np.uint64)

    def write_index(self, file: Any) -> None:
        """Writes `index` as an .npy file part by part."""
        header = {"descr": "<u8", "fortran_order": False, "shape": (2, self.rows)}
        np.lib.format.write_array_header_1_0(file, header)
        start, done = file.tell(), 0
        for part in self.index_parts():
            for line, values in enumerate(part):
                file.seek(start + 8 * (line * self.rows + done))
                file.write(values.astype("<u8", copy=False).data)
            done += len(part[0])


def update_fingerprint(sha: Any, batch: pa.RecordBatch) -> None:
    """Adds a batch to a SHA-256; batches depend on content alone, so equal passages give equal hashes."""
    for column in batch.columns:
        offsets = np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + len(column) + 1]
        sha.update(np.diff(offsets).astype("<i4").tobytes())
        if offsets[-1] > offsets[0]:
            sha.update(memoryview(column.buffers()[2])[offsets[0] : offsets[-1]])


def batches(records: Iterable[Record], where: Where) -> Iterator[pa.RecordBatch]:
    """Groups records into Arrow batches, bounded in rows and characters; refuses records that cannot be stored."""
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
    except UnicodeEncodeError as error:  # a lone surrogate: valid as a JSON escape, but no valid text
        row = next(row for row, values in enumerate(rows) if not all(map(encodable, values)))
        text = "an escape is half of a surrogate pair; write the whole character"
        raise DataError(f"{where(done + row)}: {text}") from error


def encodable(text: str) -> bool:
    """Whether a string is valid Unicode, free of lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def write_store(
    folder: Path, records: Iterable[Record], where: Where, source: dict[str, Any], attachments: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes all files of a store to `folder`, the manifest last, each flushed to disk; returns the manifest."""
    contents = Contents(where)
    with (folder / "passages.arrow").open("wb") as file, pa.ipc.new_stream(file, SCHEMA) as writer:
        for batch in batches(records, where):
            contents.add(batch)
            writer.write_batch(batch)
    flush(folder / "passages.arrow")
    with (folder / "index.npy").open("wb") as file:
        contents.write_index(file)
    flush(folder / "index.npy")
    for name, value in attachments.items():
        write_entry_json(folder / f"{name}.json", value)
    return write_manifest(
        folder, count=contents.rows, empty=contents.empty, fingerprint=contents.sha.hexdigest(), source=source
    )
