"""Published corpora, streamed once from the files of ir_datasets into a passage store.

ir_datasets downloads and unpacks; this module reads the passages from those files. ir_datasets' own reader of BEIR
first writes a second, pickled copy of all passages, and prefers such a copy for any corpus. No pickle is loaded here.
Zip and gzip files are read directly, without an unpacked copy.

The passages are counted, and a count other than the published one is an error. A store is found by dataset, version
and MD5; once it exists its source may be deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maw.config.tier1_config import Tier1Config, cache_folder
from maw.data.beir_format import line_finder, read_corpus, read_lines
from maw.data.corpus import Corpus
from maw.data.download.published import DOWNLOAD_AGAIN, Inside, Published, ir_datasets, lock, published, reading
from maw.data.store import Record, Where
from maw.errors import DataError
from maw.runtime.progress_bars import track
from maw.storage import cache_entry

RULES = 1  # version of reading and cleaning; a store of another version is not used
BYTES_BESIDE_TEXT = 60  # id, offsets and index of a stored passage


@dataclass(frozen=True)
class Source:
    """A corpus as its publisher serves it.

    Attributes:
        read: unpacks what is needed; returns the passages and row -> "file:line".
        mean_characters: mean length of a passage, measured or from the size of the published file.
        unpacked: unpacked files that are read in place of `file`, with their size in bytes.
    """

    id: str
    file: Published
    read: Callable[[], tuple[Iterable[Record], Where]]
    mean_characters: int
    unpacked: Mapping[Path, int] = field(default_factory=dict)

    def folder(self, config: Tier1Config) -> Path:
        """Folder of the store; unverified passages have one of their own."""
        unsure = "" if config.verify_sources else "-unverified"
        return cache_folder(config) / "corpora" / f"{self.id.replace('/', '-')}{unsure}"

    def stored(self, config: Tier1Config) -> bool:
        """Whether the store exists, so that the source is no longer needed."""
        stored = self._stored_source(config)
        return stored is not None and stored == self._source(config)

    def corpus(self, config: Tier1Config) -> Corpus:
        """The passages, from their store, which is built at first use from a source of the published size."""
        expected = official(self.id, "docs") if config.verify_sources else None

        def make() -> tuple[Iterable[Record], Where, Mapping[str, Any]]:
            with lock(self.id, config), reading(self.file.path):
                records, where = self.read()
            return self._checked(records, expected), where, {}

        return Corpus.cached(self.folder(config), self._source(config), make)

    def disk_bytes(self, config: Tier1Config) -> int:
        """Disk space for the store and unpacked files, as far as they are missing."""
        if self.stored(config):
            return 0
        unpacked = sum(size for path, size in self.unpacked.items() if not path.is_file())
        return unpacked + official(self.id, "docs") * (self.mean_characters + BYTES_BESIDE_TEXT)

    def _checked(self, records: Iterable[Record], expected: int | None) -> Iterator[Record]:
        count, total = 0, official(self.id, "docs")
        with reading(self.file.path):
            for record in track(records, f"storing {self.id}", "passage", total=total):
                count += 1
                yield record
        if expected is not None and count != expected:
            text = f"{self.id} has {expected} passages as published, but this file has {count}"
            raise DataError(f"{self.file.path}: {text}; {DOWNLOAD_AGAIN}")

    def _source(self, config: Tier1Config) -> dict[str, Any]:
        """Everything that the passages depend on; size and time of the source if its MD5 is not checked."""
        known = {"format": "ir_datasets", "rules": RULES, "dataset": self.id, "ir_datasets": version()}
        if config.verify_sources:
            return known | {"md5": self.file.md5}
        for path in (self.file.path, *self.unpacked):
            if path.is_file():
                stat = path.stat()
                return known | {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        stored = self._stored_source(config) or {}  # the source is gone, so its store's record counts
        return known | {key: stored[key] for key in ("size", "mtime_ns") if key in stored}

    def _stored_source(self, config: Tier1Config) -> dict[str, Any] | None:
        try:
            return cache_entry.read_manifest(self.folder(config))["source"]
        except DataError:
            return None


def version() -> str:
    """The version of ir_datasets."""
    return ir_datasets().__version__


def official(dataset: str, kind: str) -> int:
    """The published number of "docs" or "queries" of a dataset."""
    return getattr(ir_datasets().load(dataset), f"{kind}_metadata")()["count"]


def read_tsv(path: Path | Inside, columns: int) -> Iterator[list[str]]:
    """Yields the columns of each line that is not blank.

    Raises:
        DataError: a wrong number of columns, or invalid UTF-8.
    """
    for number, line in read_lines(path):
        found = line.rstrip("\r\n").split("\t")
        if len(found) != columns:
            if line.isspace():
                continue
            raise DataError(f"{path}:{number}: {len(found)} columns instead of {columns}; the file is damaged")
        yield found


def beir_source(name: str, *, mean_characters: int) -> Source:
    """The corpus of a BEIR collection, read from the published zip archive."""
    file = published("beir", name)

    def read() -> tuple[Iterable[Record], Where]:
        path = Inside(file.path, f"{name}/corpus.jsonl")
        return read_corpus(path), line_finder(path)

    return Source(f"beir/{name}", file, read, mean_characters)
