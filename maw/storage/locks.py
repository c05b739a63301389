"""Locks: one run at a time in a folder, and file locks that are taken without waiting.

    with run_lock(log_dir):
        ...

The operating system holds the lock on `run.lock` in the folder, so that it ends with its process in any case. Beside
it, `run.holder.json` names the process, for the message that a second run gets. Where a file system has no locks,
`filelock` uses the file itself as the lock, and removes it when its process has ended.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from maw.errors import MAWError, reason
from maw.storage.files import read_json, write_json

WAIT = 0.5
"""Seconds to wait for a process that is about to end."""
_LOCK, _HOLDER = "run.lock", "run.holder.json"
_held: dict[Path, int] = {}
"""The folders that this process has locked, and the threads that did."""


@contextlib.contextmanager
def run_lock(folder: Path | str) -> Iterator[None]:
    """Locks the folder. Inside another `run_lock` of the same folder and thread it does nothing.

    Raises:
        MAWError: another run works there, named by process, machine and start; or the folder cannot be written.
    """
    folder = Path(folder).resolve()
    if _held.get(folder) == threading.get_ident():
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _LOCK, thread_local=False)
        lock.acquire(timeout=WAIT)
    except Timeout:
        who = "it has not said who it is"
        with contextlib.suppress(MAWError, KeyError, TypeError):
            holder = read_json(folder / _HOLDER)
            who = f"process {holder['pid']} on {holder['host']}, since {holder['started']}"
        text = f"another run is at work there ({who}); wait for it, or choose another --log-dir"
        raise MAWError(f"{folder}: {text}") from None
    except OSError as error:
        raise MAWError(f"{folder}: cannot be locked: {reason(error)}; choose another --log-dir") from error
    _held[folder] = threading.get_ident()
    try:
        started = datetime.now().isoformat(sep=" ", timespec="seconds")
        write_json(folder / _HOLDER, {"pid": os.getpid(), "host": socket.gethostname(), "started": started})
        yield
    finally:
        del _held[folder]
        with contextlib.suppress(OSError):  # they do no harm if they stay
            (folder / _HOLDER).unlink(missing_ok=True)
            (folder / _LOCK).unlink(missing_ok=True)
        lock.release()


def is_held(folder: Path | str) -> bool:
    """Whether a run works in the folder."""
    path = Path(folder).resolve() / _LOCK
    if not path.exists():
        return False
    try:
        with FileLock(path, thread_local=False).acquire(timeout=0.2):  # longer than another `is_held` holds it
            return False
    except Timeout:
        return True
    except OSError:
        return False


@contextlib.contextmanager
def held(path: Path) -> Iterator[object]:
    """Takes the lock at `path` without waiting; None if another process holds it."""
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
