"""A published corpus, streamed once from what ir_datasets fetches into a passage store.

ir_datasets fetches and unpacks; the passages are read here, from the files that it leaves: its own way to BEIR's
passages first writes a second, pickled copy of them all, and where such a copy lies it is preferred for any corpus.
Nothing pickled is ever loaded here. The zip and gzip files are read as they are, without an unpacked copy.

The passages are counted on the way, and a number other than the one published is an error. A store is found by
dataset, version and MD5; once it is there its source may be deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maw.config.tier1_config import Tier1Config, cache_folder
from maw.data.beir_format import line_finder, read_corpus, read_lines
from maw.data.corpus import Corpus
from maw.data.download.published import Inside, Published, ir_datasets, lock, published, reading
from maw.data.store import Record, Where
from maw.errors import DataError
from maw.runtime.progress_bars import track
from maw.storage import cache_entry

RULES = 1  # of reading and cleaning; a store made by others is never used
BYTES_BESIDE_TEXT = 60  # of a stored passage: id, offsets and index


@dataclass(frozen=True)
class Source:
    """A corpus as its publisher serves it.

    Attributes:
        id: its name in ir_datasets.
        file: what it is unpacked from.
        read: unpacks what must be, and gives the passages and row -> "file:line".
        mean_characters: of a passage, measured or from the size of the published file.
        unpacked: files that unpacking leaves, read in place of `file`; with their size in bytes.
    """

    id: str
    file: Published
    read: Callable[[], tuple[Iterable[Record], Where]]
    mean_characters: int
    unpacked: Mapping[Path, int] = field(default_factory=dict)

    def folder(self, config: Tier1Config) -> Path:
        """Where its store lies; apart from that of verified passages if sources are not verified."""
        unsure = "" if config.verify_sources else "-unverified"
        return cache_folder(config) / "corpora" / f"{self.id.replace('/', '-')}{unsure}"

    def stored(self, config: Tier1Config) -> bool:
        """Whether the store is there, so that the source is not needed any more."""
        stored = self._stored_source(config)
        return stored is not None and stored == self._source(config)

    def corpus(self, config: Tier1Config) -> Corpus:
        """The passages, from their store, which is built on first use.

        Raises:
            DataError: the source is malformed, or has another number of passages than was published.
        """
        expected = official(self.id, "docs") if config.verify_sources else None

        def make() -> tuple[Iterable[Record], Where, Mapping[str, Any]]:
            with lock(self.id, config), reading(self.file.path):
                records, where = self.read()
            return self._checked(records, expected), where, {}

        return Corpus.cached(self.folder(config), self._source(config), make)

    def disk_bytes(self, config: Tier1Config) -> int:
        """Room for the store and what is unpacked for it, as far as they are not there yet."""
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
            raise DataError(
                f"{self.file.path}: {self.id} has {expected} passages as published, and here are {count}; remove the "
                "file, and what was unpacked from it, and it is fetched again"
            )

    def _source(self, config: Tier1Config) -> dict[str, Any]:
        """All that the passages depend on; by the source's size and time where its MD5 is not looked at."""
        known = {"format": "ir_datasets", "rules": RULES, "dataset": self.id, "ir_datasets": version()}
        if config.verify_sources:
            return known | {"md5": self.file.md5}
        for path in (self.file.path, *self.unpacked):
            if path.is_file():
                stat = path.stat()
                return known | {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        stored = self._stored_source(config) or {}  # the source is gone: what was made of it is all there is
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
    """How many "docs" or "queries" a dataset has as published."""
    return getattr(ir_datasets().load(dataset), f"{kind}_metadata")()["count"]


def read_tsv(path: Path | Inside, columns: int) -> Iterator[list[str]]:
    """Yields the columns of each line that is not blank.

    Raises:
        DataError: another number of columns, or no UTF-8.
    """
    for number, line in read_lines(path):
        found = line.rstrip("\r\n").split("\t")
        if len(found) != columns:
            if line.isspace():
                continue
            raise DataError(f"{path}:{number}: {len(found)} columns instead of {columns}; the file is damaged")
        yield found


def beir_source(name: str, *, mean_characters: int) -> Source:
    """The corpus of a BEIR collection, read straight from the published zip archive."""
    file = published("beir", name)

    def read() -> tuple[Iterable[Record], Where]:
        path = Inside(file.path, f"{name}/corpus.jsonl")
        return read_corpus(path), line_finder(path)

    return Source(f"beir/{name}", file, read, mean_characters)
