"""Checks an unverified archive before anything is read from it or unpacked.

Archives of published datasets are checked by MD5 (`maw.data.download.published`). With --no-verify-sources any file is
accepted, and checked here once.

Nothing is extracted under a name from an archive: ir_datasets writes single members, requested by full name, to paths
of its own, and other members are read as streams. So `..`, absolute names, links and devices have no effect; they are
refused anyway, because no publisher uses them. The danger is size: a kilobyte that unpacks to a terabyte fills the
disk. Text does not shrink to less than a hundredth.
"""

from __future__ import annotations

import gzip
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

from maw.errors import DataError, show

LARGEST_RATIO = 100
"""Largest ratio of unpacked to packed size; English text has about 3, and gzip's own limit is 1,032."""
ALWAYS_ALLOWED = 64 << 20  # bytes, unpacked
MOST_MEMBERS = 10_000
_CHUNK = 1 << 20


def look_through(path: Path) -> None:
    """Reads a zip or gzip file, and a tar archive inside it, to its end; other files pass.

    Raises:
        DataError: a member is no plain file or leads out of its folder, or there are too many members or bytes.
        OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error: the archive is damaged.
    """
    limit = max(ALWAYS_ALLOWED, LARGEST_RATIO * path.stat().st_size)
    with path.open("rb") as file:
        start = file.read(2)
    if start == b"PK":
        _look_through_zip(path, limit)
    elif start == b"\x1f\x8b":
        with gzip.open(path) as unpacked:
            bounded = _Bounded(path, unpacked, limit)
            if ".tar" in path.suffixes:
                with tarfile.open(fileobj=bounded, mode="r|") as archive:
                    for member in _few(path, archive):
                        _check_member(path, member.name, member.isfile() or member.isdir())
            while bounded.read(_CHUNK):
                pass


def _look_through_zip(path: Path, limit: int) -> None:
    total = 0
    with zipfile.ZipFile(path) as archive:
        for member in _few(path, archive.infolist()):
            mode = member.external_attr >> 16
            plain = stat.S_IFMT(mode) in (0, stat.S_IFREG, stat.S_IFDIR)
            _check_member(path, member.filename, plain)
            total += member.file_size  # zipfile unpacks no more than this declared size
            if total > limit:
                raise _too_large(path, limit)


def _few(path: Path, members: Iterator[zipfile.ZipInfo] | list[zipfile.ZipInfo] | tarfile.TarFile) -> Iterator:
    for number, member in enumerate(members, start=1):
        if number > MOST_MEMBERS:
            raise DataError(
                f"{path}: holds more than {MOST_MEMBERS:,} files, too many for a dataset; it was not unpacked"
            )
        yield member


def _check_member(path: Path, name: str, plain: bool) -> None:
    if not plain:
        raise DataError(f"{path}: holds a link or device, {show(name)}, which no dataset needs; it was not unpacked")
    parts = (*PurePosixPath(name).parts, *PureWindowsPath(name).parts)
    if ".." in parts or "\0" in name or PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor:
        raise DataError(f"{path}: holds a file that leads out of its folder, {show(name)}; it was not unpacked")


def _too_large(path: Path, limit: int) -> DataError:
    sizes = f"{path.stat().st_size:,} bytes unpack to more than {limit >> 20:,} MiB"
    return DataError(f"{path}: {sizes}, too much for text; it was not unpacked")


class _Bounded:
    """A stream that raises an error beyond a limit of bytes."""

    def __init__(self, path: Path, stream: BinaryIO, limit: int):
        self.path, self.stream, self.limit, self.count = path, stream, limit, 0

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.count += len(data)
        if self.count > self.limit:
            raise _too_large(self.path, self.limit)
        return data
