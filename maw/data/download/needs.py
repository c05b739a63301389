"""Requirements of a dataset: files from its publishers and disk space.

Every loader with external sources has `needs(config, dataset)`, which downloads nothing; `maw.experiment.plan.plan`
adds the needs up and shows them before a run starts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class SourceFile:
    """One published file.

    Attributes:
        name: for display, such as "collectionandqueries.tar.gz".
        path: local path after the download; a copy may be placed there by hand.
        size: bytes; None if the publisher does not say.
    """

    name: str
    url: str
    path: Path
    size: int | None

    @property
    def present(self) -> bool:
        """Whether the file exists."""
        return self.path.is_file()


@dataclass(frozen=True)
class Needs:
    """Requirements of one dataset.

    Attributes:
        files: all source files, present ones included.
        passages: corpus name -> published number of passages, such as {"wikipedia 2018": 21015324}.
        disk_bytes: disk space for missing unpacked sources, stores and indexes, without the downloads.
        mean_characters: mean length of a passage, to estimate tokens.
        queries: split -> published number of queries; None if unknown beforehand.
        estimated: whether the number of passages is an estimate.
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
        """Bytes of the missing files of known size."""
        return sum(file.size or 0 for file in self.files if not file.present)
