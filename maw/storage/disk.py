"""Room on disk: space that is claimed before it is written to, and a folder of entries kept within a bound.

`maw.encoding.embedding_cache` keeps its entries so. An entry is a folder with a manifest.json, whose date says when
it was read last; beside it lie `NAME.lock`, held by whoever builds the entry, and while that goes on a folder
`NAME.*.tmp`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

logger = logging.getLogger(__name__)

GIGABYTE = 1e9
SPILL_BYTES = 1_000_000_000
"""Arrays above this size are kept in a file without a name, and not in memory."""
_ROOM_LOCK = "room.lock"
_ZEROS = 1 << 24


def claim(file: IO[bytes], size: int) -> None:
    """Makes the file `size` bytes long, with the disk space behind it.

    Whatever maps it then cannot run out of space, which would be a signal that ends the process.

    Raises:
        OSError: there is not so much space.
    """
    file.flush()
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    done = file.seek(0, os.SEEK_END)
    while done < size:
        done += file.write(bytes(min(_ZEROS, size - done)))
    file.flush()


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """One process at a time makes room."""
    from filelock import FileLock

    with FileLock(folder / _ROOM_LOCK):
        yield


def make_room(folder: Path, size: int, limit: int) -> None:
    """Removes the entries read longest ago until `size` bytes more stay within `limit`; call it under `only_one`.

    What runs that were killed left goes too, and the lock files of entries that are no more.

    Raises:
        OSError: the entries that other runs are writing leave too little.
    """
    entries, total = [], 0
    for path in folder.iterdir():
        if path.name.endswith(".tmp"):
            total += 0 if _cleared(path) else _size(path)
        elif path.is_dir():
            entries.append((_last_read(path), _size(path), path))
            total += entries[-1][1]
    for _, entry_size, path in sorted(entries):
        if total + size <= limit:
            break
        logger.info("removing %s, the embeddings read longest ago, to make room", path)
        shutil.rmtree(path, ignore_errors=True)
        total -= 0 if path.exists() else entry_size
    _clear_locks(folder)
    if total + size > limit:
        raise OSError(errno.ENOSPC, "what other runs are writing leaves too little of --embedding-cache-gb")


def _cleared(temporary: Path) -> bool:
    """Removes what a run that was killed left; False if the run is still at it."""
    with held(temporary.with_name(f"{temporary.name.partition('.')[0]}.lock")) as lock:
        if lock:
            shutil.rmtree(temporary, ignore_errors=True)
        return lock is not None


def _clear_locks(folder: Path) -> None:
    """Removes the lock files of entries that are not there.

    That is done while holding the lock, so never under someone who builds. One who opened the file just before and
    takes the lock of it just after would hold what no path leads to any more: `filelock` looks whether the file still
    has a name once it has its lock, and starts over with a new file if not.
    """
    from filelock import SoftFileLock

    for path in folder.glob("*.lock"):
        if path.name != _ROOM_LOCK and not path.with_suffix("").exists():
            with contextlib.suppress(OSError), held(path) as lock:
                # Where the disk knows no locks the file itself is the lock, and goes when it is released.
                if lock and not isinstance(lock, SoftFileLock):
                    path.unlink(missing_ok=True)


@contextlib.contextmanager
def held(path: Path) -> Iterator[object]:
    """The lock at `path`, or None if another has it now."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield None
        return
    try:
        yield lock
    finally:
        lock.release()


def _last_read(entry: Path) -> int:
    """In nanoseconds; 0, the first to go, for what is left of an entry."""
    with contextlib.suppress(OSError):
        return (entry / "manifest.json").stat().st_mtime_ns
    return 0


def _size(folder: Path) -> int:
    with contextlib.suppress(OSError):  # removed in the meantime, by hand or by the run that wrote it
        return sum(path.stat().st_size for path in folder.iterdir())
    return 0
