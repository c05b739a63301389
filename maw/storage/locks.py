"""One run at a time in a folder.

    with run_lock(log_dir):
        ...

The lock is the operating system's, on `run.lock` in the folder, so that it goes with its holder however that ends.
Beside it `run.holder.json` says who has it, for the message that a second run gets. Where a file system knows no locks
`filelock` takes the file itself for the lock, and clears it away when its holder is no more.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from maw.errors import MAWError, reason
from maw.storage.files import read_json, write_json

WAIT = 0.5
"""Seconds to wait for a holder that is just going."""
_LOCK, _HOLDER = "run.lock", "run.holder.json"
_held: dict[Path, int] = {}
"""The folders that this process holds, each with the thread that does."""


@contextlib.contextmanager
def run_lock(folder: Path | str) -> Iterator[None]:
    """Holds the folder; inside a block that does already, in the same thread, this does nothing.

    Raises:
        MAWError: another run is at work there, named by process, machine and start; or the folder cannot be written.
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
        raise MAWError(_refusal(folder)) from None
    except OSError as error:
        raise MAWError(f"{folder}: cannot be locked: {reason(error)}; choose another --log-dir") from error
    _held[folder] = threading.get_ident()
    try:
        write_json(folder / _HOLDER, _about_me())
        yield
    finally:
        del _held[folder]
        with contextlib.suppress(OSError):  # no longer needed, and no harm if they stay
            (folder / _HOLDER).unlink(missing_ok=True)
            (folder / _LOCK).unlink(missing_ok=True)
        lock.release()


def is_held(folder: Path | str) -> bool:
    """Whether a run is at work in the folder."""
    path = Path(folder).resolve() / _LOCK
    if not path.exists():
        return False
    try:
        with FileLock(path, thread_local=False).acquire(timeout=0.2):  # longer than another look at it takes
            return False
    except Timeout:
        return True
    except OSError:
        return False


def _about_me() -> dict[str, Any]:
    started = datetime.now().isoformat(sep=" ", timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": started}


def _refusal(folder: Path) -> str:
    who = "it has not said who it is"
    with contextlib.suppress(MAWError, KeyError, TypeError):
        holder = read_json(folder / _HOLDER)
        who = f"process {holder['pid']} on {holder['host']}, since {holder['started']}"
    return f"{folder}: another run is at work there ({who}); wait for it, or choose another --log-dir"
