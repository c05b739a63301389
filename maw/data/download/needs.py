"""What a dataset needs before it can be loaded: files from its publishers, and room on disk.

Every loader with sources elsewhere has a `needs(config)` that says so without fetching anything;
`maw.experiment.plan.plan` adds the answers up and shows them before a run starts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class SourceFile:
    """One file that a publisher serves.

    Attributes:
        name: for people, such as "collectionandqueries.tar.gz".
        url: where it comes from.
        path: where it lies once fetched, and where a copy may be placed by hand.
        size: bytes; None where the publisher does not say.
    """

    name: str
    url: str
    path: Path
    size: int | None

    @property
    def present(self) -> bool:
        """Whether the file is there already."""
        return self.path.is_file()


@dataclass(frozen=True)
class Needs:
    """What one dataset needs.

    Attributes:
        dataset: its name in `config.datasets`.
        files: all source files, those that are present too.
        passages: corpus name -> number of passages as published, such as {"wikipedia 2018": 21015324}.
        disk_bytes: room for unpacked sources, stores and indexes that are not there yet, beside the downloads.
        mean_characters: of a passage, to estimate tokens.
        queries: split -> number of queries as published; None where it is not known beforehand.
        estimated: whether the number of passages is no more than an estimate.
    """

    dataset: str
    files: tuple[SourceFile, ...] = ()
    passages: dict[str, int] = field(default_factory=dict)
    disk_bytes: int = 0
    mean_characters: int = 0
    queries: dict[str, int | None] = field(default_factory=dict)
    estimated: bool = False

    @property
    def download_bytes(self) -> int:
        """Bytes of the files that are missing and whose size is known."""
        return sum(file.size or 0 for file in self.files if not file.present)
