"""A cache entry: a folder built once by one process, with a manifest of its files' checksums."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from maw.errors import DataError, reason, show
from maw.storage.files import sha256

logger = logging.getLogger(__name__)


STORE_VERSION = 1
VERIFY_BYTES = 64 << 20
"""Files up to this size are compared with their SHA-256 whenever a store is opened, larger ones once in a process."""
_COMPARED: set[tuple[Any, ...]] = set()


def unwritable(folder: Path, error: OSError, what: str = "the passage store") -> DataError:
    """The error of a folder that cannot be written: where, why, and what to do."""
    return DataError(f"{folder}: cannot write {what} ({reason(error)}); free space or choose another cache_dir")


@contextlib.contextmanager
def only_builder(folder: Path, what: str = "the passage store") -> Iterator[None]:
    """Waits until no other process builds `folder`, and clears away what a builder that was killed left there.

    Raises:
        DataError: the folder's parent cannot be written.
    """
    from filelock import FileLock, Timeout

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{folder}.lock")
        try:
            lock.acquire(timeout=0.05)
        except Timeout:
            logger.info("waiting for another process that builds %s", folder)
            lock.acquire()
    except OSError as error:
        raise unwritable(folder, error, what) from error
    try:
        for stray in folder.parent.glob(f"{folder.name}.*.tmp"):
            shutil.rmtree(stray, ignore_errors=True)
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def new_folder(folder: Path, what: str = "the passage store") -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its place when the block ends well, and vanishes otherwise.

    Raises:
        DataError: it cannot be written.
    """
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".tmp", dir=folder.parent))
        yield temporary
        replace_folder(temporary, folder)
    except OSError as error:
        raise unwritable(folder, error, what) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def write_manifest(folder: Path, **values: Any) -> dict[str, Any]:
    """Writes manifest.json: `values`, and the size and hash of every file that is there already."""
    files = {path.name: [path.stat().st_size, sha256(path)] for path in sorted(folder.glob("[!.]*"))}
    manifest = {"version": STORE_VERSION, **values, "files": files}
    _write_json(folder / "manifest.json", manifest | {"sha256": json_sha(manifest)})
    return manifest


def _write_json(path: Path, value: Any) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(value, file, allow_nan=False)
        _sync(file)


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def json_sha(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("ascii")).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """A store's manifest.

    Raises:
        DataError: it is missing, damaged, or of another version.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        whole = manifest.pop("sha256") == json_sha(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        text = f"manifest.json cannot be read ({show(reason(error))[1:-1]}); delete the folder"
        raise DataError(f"{folder}: {text}") from error
    if not whole:
        raise DataError(f"{folder}: manifest.json was changed after it was written; delete the folder")
    if manifest["version"] != STORE_VERSION:
        raise DataError(f"{folder}: the store has version {manifest['version']}; delete it")
    return manifest


def check_files(folder: Path, manifest: Mapping[str, Any], *, once: bool = False) -> None:
    """Compares the size and the contents of each file with the manifest.

    Args:
        once: a large file that this process has compared before, and that has not been written to since, is not read
            again.
    """
    for name, (size, sha) in manifest["files"].items():
        path = folder / name
        try:
            stat = path.stat()
            seen = (str(path), stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, sha)
            good = stat.st_size == size
            if good and not (once and seen in _COMPARED):
                good = sha256(path) == sha
                if good and size > VERIFY_BYTES:
                    _COMPARED.add(seen)
        except OSError as error:
            raise DataError(f"{path}: the file cannot be read ({reason(error)}); delete the folder") from error
        if not good:
            raise DataError(f"{path}: the file was changed after it was written; delete the folder")


def replace_folder(new: Path, folder: Path) -> None:
    """Puts a whole new store in the place of an old one."""
    if folder.exists():  # whoever has the old store open keeps it: its files live until they are unmapped
        old = new.with_name(f"{new.name[:-4]}.old.tmp")
        folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    else:
        new.rename(folder)
    handle = os.open(folder.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
