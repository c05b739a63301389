"""Files of activations: where each text's are, found by the text's hash; some outlive the run.

Without `identity` a run stores activations in one file without a name, which vanishes with the process. With it, each
request of `LEAST_KEPT` texts or more becomes an entry in the cache folder that later runs read. Two hashes name it:
of everything that determines the activations' bits, and of the texts. An entry is a folder:

    states.bin       hidden states of all texts, one token after the other, without padding
    index.npy        of each text: hash, first token, number of tokens, checksum of its states, noise key
    manifest.json    the identity in plain text, the date, size and SHA-256 of index.npy, size of states.bin

An entry is written under a lock into a temporary folder, flushed, and renamed when complete, so that two runs that
need the same texts compute them once, and a killed run leaves nothing that is read. Index and manifest are compared
with their SHA-256 when they are opened, and the states of each text with its checksum at every read. If space is short
(the limit is reached, or the disk would have less than `KEEP_FREE` bytes free), the entries read longest ago are
removed; if that is not enough, the activations go to the file without a name.

Letters: N texts, C hidden size.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import numpy as np

from maw.errors import DataError, MAWError, reason
from maw.storage import cache_entry
from maw.storage.cache_entry import new_folder, only_builder
from maw.storage.disk import claim
from maw.storage.files import flush, json_sha
from maw.storage.locks import held

logger = logging.getLogger(__name__)

KEEP_FREE = 2_000_000_000
"""Bytes that stay free on the disk; with fewer nothing is kept for later runs."""
LEAST_KEPT = 64
"""Requests of fewer texts are not kept: an entry costs two files and a lock."""
MOST_OPEN = 128
"""Entries of one identity that a run opens, the last read ones; each takes two file handles."""
INDEX = np.dtype([("hash", "<u8", (2,)), ("offset", "<i8"), ("tokens", "<i4"), ("sum", "<u8"), ("key", "<i8")])
WHAT = "the activations"
_STATES, _INDEX, _MANIFEST = "states.bin", "index.npy", "manifest.json"

Batch = tuple[np.ndarray, np.ndarray]
"""Records of some texts, (N,) `INDEX` without offsets, and their states without padding, (tokens, C)."""


def text_hashes(prefix: str, texts: Sequence[str]) -> np.ndarray:
    """128-bit hashes of texts with their prefix, (N, 2) uint64."""
    digests = (
        hashlib.blake2b((prefix + text).encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts
    )
    return np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)


class ActivationFile:
    """Activations of texts, one after the other in one file.

    Args:
        file: open for reading, and for writing if anything is appended.
        dtype: of the states, C numbers `width` a token.
        index: records of the texts in it, (N,) `INDEX`.
    """

    def __init__(self, file: IO[bytes], dtype: np.dtype, width: int, index: np.ndarray | None = None):
        self.file, self.dtype, self.width = file, dtype, width
        self.index = np.empty(0, INDEX) if index is None else index
        self.tokens = int(self.index["tokens"].sum())
        self.entry: Path | None = None
        self.was_read = False
        self._added: list[np.ndarray] = []
        self._sorted: tuple[np.ndarray, np.ndarray] | None = None
        self._map: np.ndarray | None = None

    def append(self, records: np.ndarray, states: np.ndarray) -> None:
        """Writes the states of some texts, and completes their records."""
        self.file.write(np.ascontiguousarray(states).data)
        self.file.flush()
        records["offset"] = self.tokens + np.cumsum(records["tokens"]) - records["tokens"]
        self._added.append(records)
        self.tokens += len(states)
        self._map = None

    def find(self, hashes: np.ndarray) -> np.ndarray:
        """Positions of texts in the index, (N,); -1 for those that are not there."""
        if self._added:
            self.index, self._added, self._sorted = np.concatenate([self.index, *self._added]), [], None
        if not len(self.index):
            return np.full(len(hashes), -1)
        if self._sorted is None:
            order = np.argsort(self.index["hash"][:, 0], kind="stable")
            self._sorted = order, self.index["hash"][order, 0]
        order, firsts = self._sorted
        found = order[np.searchsorted(firsts, hashes[:, 0]).clip(max=len(order) - 1)]
        there = (self.index["hash"][found] == hashes).all(1) & (self.index["tokens"][found] > 0)
        return np.where(there, found, -1)

    def forget(self, hashes: np.ndarray) -> None:
        """Damaged texts are not found again."""
        found = self.find(hashes)
        self.index["tokens"][found[found >= 0]] = 0

    def states(self) -> np.ndarray:
        """The states of all tokens that the file still has, (tokens, C), as a memory map."""
        found = self._map  # a name of its own: another thread may append meanwhile
        # A read beyond the end of a memory map would kill the process.
        there = os.fstat(self.file.fileno()).st_size // (self.width * self.dtype.itemsize)
        if found is None or there < len(found):
            count = min(self.tokens, there)
            if not count:
                return np.empty((0, self.width), self.dtype)
            found = self._map = np.memmap(self.file, dtype=self.dtype, mode="r", shape=(count, self.width))
        return found

    def close(self) -> None:
        """Closes the file; its activations cannot be read afterwards."""
        self._map = None
        with contextlib.suppress(OSError):  # a full disk refuses the last bytes, which are not needed
            self.file.close()


class ActivationFiles:
    """All files of one kind of activations: the same frozen layers, precision and length limit.

    Args:
        dtype: of the states, C numbers `width` a token.
        identity: everything that determines the bits of a text's activations; None: nothing outlives the run.
        limit: most bytes of all entries in the folder.
    """

    def __init__(self, folder: Path, dtype: np.dtype, width: int, identity: Mapping[str, Any] | None, limit: int):
        self.folder, self.dtype, self.width, self.limit = folder, dtype, width, limit
        self.identity = identity
        self.name = None if identity is None else json_sha(identity)[:16]
        self.files: list[ActivationFile] = []
        self._unnamed: ActivationFile | None = None
        self._seen: set[str] = set()
        self._warned = False

    def find(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the files that hold texts, from 1, (N,), 0 for none; and their records, (N,) `INDEX`."""
        self._open_new()
        numbers, records = np.zeros(len(hashes), np.int32), np.zeros(len(hashes), INDEX)
        for number, file in enumerate(self.files, start=1):
            rest = np.flatnonzero(numbers == 0)
            if not len(rest):
                break
            found = file.find(hashes[rest])
            rest, found = rest[found >= 0], found[found >= 0]
            numbers[rest], records[rest] = number, file.index[found]
            if len(rest) and file.entry and not file.was_read:
                file.was_read = True
                with contextlib.suppress(OSError):  # a read-only folder works too
                    os.utime(file.entry / _MANIFEST)
        return numbers, records

    def add(
        self,
        hashes: np.ndarray,
        make: Callable[[np.ndarray], Iterable[Batch]],
        tokens: np.ndarray,
        exact: Callable[[], bool] | None,
    ) -> None:
        """Stores the activations of texts.

        Args:
            hashes: of the texts, all different, (N, 2).
            make: computes the texts at these positions, in batches.
            tokens: of each text, (N,).
            exact: whether all batches had their usual size; None if the activations must not outlive the run.

        Raises:
            MAWError: they cannot be written.
        """
        if exact and self.name and len(hashes) >= LEAST_KEPT:
            self._keep(hashes, make, tokens, exact)
        rest = np.flatnonzero(self.find(hashes)[0] == 0)
        if not len(rest):
            return
        if self._unnamed is None:
            self._unnamed = ActivationFile(new_file(self.folder), self.dtype, self.width)
            self.files.append(self._unnamed)
        for records, states in make(rest):
            try:
                self._unnamed.append(records, states)
            except OSError as error:
                text = f"cannot write activations to {self.folder}: {reason(error)}; see --prefix-cache-gb"
                raise MAWError(text) from error

    def drop(self, number: int, hashes: np.ndarray) -> None:
        """Forgets damaged texts of a file, and removes its entry, so that no later run reads it."""
        file = self.files[number - 1]
        file.forget(hashes)
        if file.entry:
            _remove(file.entry)

    def close(self) -> None:
        """Closes all files."""
        for file in self.files:
            file.close()
        self.files.clear()

    def _keep(
        self,
        hashes: np.ndarray,
        make: Callable[[np.ndarray], Iterable[Batch]],
        tokens: np.ndarray,
        exact: Callable[[], bool],
    ) -> None:
        """Stores texts in an entry, or warns once why there is none."""
        entry = self.folder / f"{self.name}-{hashlib.sha256(hashes.tobytes()).hexdigest()[:16]}"
        file, complete = None, False
        try:
            with only_builder(entry, WHAT):
                wanted = np.flatnonzero(self.find(hashes)[0] == 0)  # another run may have computed them meanwhile
                if not len(wanted):
                    return
                with new_folder(entry, WHAT) as temporary:
                    file = self._claimed(temporary, int(tokens[wanted].sum()))
                    for records, states in make(wanted):
                        file.append(records, states)
                    complete = True
                    if not exact():
                        raise DataError("memory ran out, and smaller batches change the last bits")
                    self._finish(temporary, file)
                file.entry, file.was_read = entry, True
        except DataError as error:
            if not self._warned:
                logger.warning("activations are not kept for later runs: %s", error)
            self._warned = True
        if file is not None and complete:
            self._seen.add(entry.name)
            self.files.append(file)
        elif file is not None:
            file.close()

    def _claimed(self, temporary: Path, tokens: int) -> ActivationFile:
        """The file of an entry, with disk space for all its states."""
        size = tokens * self.width * self.dtype.itemsize
        with cache_entry.only_one(self.folder):
            cache_entry.make_room(self.folder, size, self.limit, keep_free=KEEP_FREE, setting="--prefix-cache-gb")
            file = (temporary / _STATES).open("w+b")
            try:
                claim(file, size)
                file.seek(0)
            except OSError:
                file.close()
                raise
        return ActivationFile(file, self.dtype, self.width)

    def _finish(self, temporary: Path, file: ActivationFile) -> None:
        file.find(np.empty((0, 2), np.uint64))  # completes the index
        with (temporary / _INDEX).open("wb") as index:
            np.save(index, file.index, allow_pickle=False)
        for name in (_STATES, _INDEX):
            flush(temporary / name)
        created = datetime.now(UTC).isoformat(timespec="seconds")
        cache_entry.write_manifest(temporary, unhashed=(_STATES,), source=dict(self.identity or {}), created=created)

    def _open_new(self) -> None:
        """Opens the entries that are new since the last look."""
        if self.name is None:
            return
        found: list[tuple[int, Path]] = []
        for path in self.folder.glob(f"{self.name}-*"):
            if path.name not in self._seen and "." not in path.name:  # not *.lock, nor what is being written, *.tmp
                with contextlib.suppress(OSError):
                    found.append(((path / _MANIFEST).stat().st_mtime_ns, path))
        for _, path in sorted(found, reverse=True)[: max(0, MOST_OPEN - len(self.files))]:
            self._seen.add(path.name)
            try:
                self.files.append(self._opened(path))
            except (DataError, OSError, ValueError, KeyError, TypeError) as error:
                if path.exists():  # else another run has removed it to make room
                    logger.warning("%s; these texts pass through the frozen layers again", error)
                    _remove(path)

    def _opened(self, path: Path) -> ActivationFile:
        manifest = cache_entry.read_manifest(path)
        if manifest["source"] != self.identity:
            raise DataError(f"{path}: the activations belong to another model; delete the folder")
        cache_entry.check_files(path, manifest)
        index = np.load(path / _INDEX, allow_pickle=False)
        if index.dtype != INDEX:
            raise DataError(f"{path}: the index has a form that was not written; delete the folder")
        file = ActivationFile((path / _STATES).open("rb"), self.dtype, self.width, index)
        file.entry = path
        return file


def new_file(folder: Path) -> IO[bytes]:
    """An open file without a name.

    Raises:
        MAWError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=folder)
    except OSError as error:
        raise MAWError(f"cannot write activations to {folder}: {reason(error)}; see --cache-dir") from error


def _remove(entry: Path) -> None:
    """Removes a damaged entry, unless another run is writing it anew."""
    with contextlib.suppress(OSError), held(entry.with_name(f"{entry.name}.lock")) as lock:
        if lock:
            shutil.rmtree(entry, ignore_errors=True)
