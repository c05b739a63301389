"""Cache entries: folders with a manifest of their files' checksums, each built once by one process.

    with only_builder(folder), new_folder(folder) as temporary:
        ...                                          # write files into `temporary`
        write_manifest(temporary, source=key)
    manifest = read_manifest(folder)
    check_files(folder, manifest)

Beside an entry `NAME` lie `NAME.lock`, which its builder holds, and while it is built a folder `NAME.*.tmp`.
`make_room` keeps a folder of entries below a size: it removes the entries that were read longest ago, by the date of
their manifest.json.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, SoftFileLock, Timeout

from maw.errors import DataError, reason
from maw.storage.files import flush, json_sha, read_json, sha256
from maw.storage.locks import held

logger = logging.getLogger(__name__)

STORE_VERSION = 1
VERIFY_BYTES = 64 << 20
"""Files up to this size are compared with their SHA-256 at each opening, larger ones once in a process."""
_MANIFEST, _ROOM_LOCK = "manifest.json", "room.lock"
_COMPARED: set[tuple[Any, ...]] = set()


def _unwritable(folder: Path, error: OSError, what: str = "the passage store") -> DataError:
    """The error for a folder that cannot be written."""
    return DataError(f"{folder}: cannot write {what} ({reason(error)}); free space or choose another cache_dir")


@contextlib.contextmanager
def only_builder(folder: Path, what: str = "the passage store") -> Iterator[None]:
    """Waits until no other process builds `folder`; removes what a killed builder left.

    Raises:
        DataError: the folder's parent cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{folder}.lock")
        try:
            lock.acquire(timeout=0.05)
        except Timeout:
            logger.info("waiting for another process that builds %s", folder)
            lock.acquire()
    except OSError as error:
        raise _unwritable(folder, error, what) from error
    try:
        for stray in folder.parent.glob(f"{folder.name}.*.tmp"):
            shutil.rmtree(stray, ignore_errors=True)
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def new_folder(folder: Path, what: str = "the passage store") -> Iterator[Path]:
    """A temporary folder that replaces `folder` at the end of the block, and is removed if the block fails.

    Raises:
        DataError: it cannot be written.
    """
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".tmp", dir=folder.parent))
        yield temporary
        _replace_folder(temporary, folder)
    except OSError as error:
        raise _unwritable(folder, error, what) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def write_manifest(folder: Path, *, unhashed: Collection[str] = (), **values: Any) -> dict[str, Any]:
    """Writes manifest.json: `values`, and size and SHA-256 of every file in the folder.

    `unhashed` names files whose parts have checksums elsewhere; the manifest has only their size.
    """
    files = {
        path.name: [path.stat().st_size, None if path.name in unhashed else sha256(path)]
        for path in sorted(folder.glob("[!.]*"))
    }
    manifest = {"version": STORE_VERSION, **values, "files": files}
    write_entry_json(folder / _MANIFEST, manifest | {"sha256": json_sha(manifest)})
    return manifest


def write_entry_json(path: Path, value: Any) -> None:
    """Writes a JSON file of an entry that is being built; OSError if it cannot be written."""
    with path.open("w", encoding="utf-8") as file:
        json.dump(value, file, allow_nan=False)
    flush(path)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an entry.

    Raises:
        DataError: it is missing, damaged, or of another version.
    """
    try:
        manifest = read_json(folder / _MANIFEST)
    except DataError as error:
        raise DataError(f"{error}; delete the folder") from error
    if not isinstance(manifest, dict) or manifest.pop("sha256", None) != json_sha(manifest):
        raise DataError(f"{folder}: manifest.json was changed after it was written; delete the folder")
    if manifest["version"] != STORE_VERSION:
        raise DataError(f"{folder}: the store has version {manifest['version']}; delete it")
    return manifest


def check_files(folder: Path, manifest: Mapping[str, Any], *, once: bool = False) -> None:
    """Compares size and SHA-256 of each file with the manifest.

    Args:
        once: skip a large file that this process has compared before, if nothing has written to it since.

    Raises:
        DataError: a file is missing or damaged.
    """
    for name, (size, sha) in manifest["files"].items():
        path = folder / name
        try:
            stat = path.stat()
        except OSError as error:
            raise DataError(f"{path}: the file cannot be read ({reason(error)}); delete the folder") from error
        seen = (str(path), stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, sha)
        good = stat.st_size == size
        if good and sha is not None and not (once and seen in _COMPARED):
            good = sha256(path) == sha
            if good and size > VERIFY_BYTES:
                _COMPARED.add(seen)
        if not good:
            raise DataError(f"{path}: the file was changed after it was written; delete the folder")


def _replace_folder(new: Path, folder: Path) -> None:
    """Renames a new entry to `folder`, and removes the old one."""
    if folder.exists():  # a process that has the old entry open keeps it: its files live until they are unmapped
        old = new.with_name(f"{new.name[:-4]}.old.tmp")
        folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    else:
        new.rename(folder)
    flush(folder.parent)


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Lets one process at a time make room in a folder of entries."""
    with FileLock(folder / _ROOM_LOCK):
        yield


def make_room(
    folder: Path, size: int, limit: int, *, keep_free: int = 0, setting: str = "--embedding-cache-gb"
) -> None:
    """Removes the entries that were read longest ago, until `size` more bytes fit in `limit`.

    Args:
        keep_free: bytes that must stay free on the disk.
        setting: flag of the limit, for messages.

    Also removes what killed runs left, and lock files without an entry. Call it inside `only_one`.

    Raises:
        OSError: the entries that other runs are writing leave too little space.
    """
    entries, total = [], 0
    for path in folder.iterdir():
        if path.name.endswith(".tmp"):
            with held(path.with_name(f"{path.name.partition('.')[0]}.lock")) as lock:
                if lock:  # no run is writing it
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    total += _size(path)
        elif path.is_dir():
            last_read = 0  # of half an entry, which is the first to go
            with contextlib.suppress(OSError):
                last_read = (path / _MANIFEST).stat().st_mtime_ns
            entries.append((last_read, _size(path), path))
            total += entries[-1][1]
    if keep_free:
        limit = min(limit, total + shutil.disk_usage(folder).free - keep_free)
    for _, entry_size, path in sorted(entries):
        if total + size <= limit:
            break
        logger.info("removing %s, the entry read longest ago, to make room", path)
        shutil.rmtree(path, ignore_errors=True)
        total -= 0 if path.exists() else entry_size
    _clear_locks(folder)
    if total + size > limit:
        raise OSError(errno.ENOSPC, f"what other runs are writing, or the disk, leaves too little of {setting}")


def entries_bytes(folder: Path) -> int:
    """Bytes of all entries in a folder, which may not exist."""
    with contextlib.suppress(OSError):
        return sum(_size(path) for path in folder.iterdir() if path.is_dir())
    return 0


def _clear_locks(folder: Path) -> None:
    """Removes the lock files that have no entry.

    The lock is held meanwhile, so that no builder loses it. A builder that opened the file before and locks it after
    would hold a lock without a path; `filelock` notices that once it has the lock, and starts over with a new file.
    """
    for path in folder.glob("*.lock"):
        if path.name != _ROOM_LOCK and not path.with_suffix("").exists():
            with contextlib.suppress(OSError), held(path) as lock:
                # Where the disk knows no locks, the file itself is the lock and is removed at its release.
                if lock and not isinstance(lock, SoftFileLock):
                    path.unlink(missing_ok=True)


def _size(folder: Path) -> int:
    with contextlib.suppress(OSError):  # removed meanwhile, by a user or by the run that wrote it
        return sum(path.stat().st_size for path in folder.iterdir())
    return 0
