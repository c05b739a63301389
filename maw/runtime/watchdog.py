"""Common end of several processes: a thread in each watches the others.

A process that fails writes the reason to the launcher's key-value store, which all watchers read every second. A
killed process writes nothing, so watchers also check the processes of their own machine. A watcher ends its process if
that does not end by itself within some seconds, because a process that waits inside NCCL handles no signal.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

from maw.errors import MAWError

LOOK_EVERY, GRACE, REASON_WAIT = 1.0, 10.0, 4.0
"""Seconds between checks, seconds that a process has to end after a failure, and seconds to wait for its reason."""


class PeerError(MAWError):
    """Another process of the run has failed; the message says which and why, if known."""


class Watcher(threading.Thread):
    """Watches the other processes; when one fails and this process does not end by itself, ends it."""

    def __init__(self, rank: int, count: int):
        import torch.distributed as dist

        super().__init__(name="watcher", daemon=True)
        self.rank, self.count, self._over = rank, count, threading.Event()
        self._lock = threading.Lock()  # one request at a time on the connection
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        patience = timedelta(seconds=60)
        self._store = dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=patience)
        self._prefix = f"maw/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/"
        self._store.set(f"{self._prefix}process/{rank}", f"{os.getpid()} {socket.gethostname()}")
        self._local: dict[int, int] = {}
        self._found: str | None = None

    def run(self) -> None:
        """Watches until the session ends."""
        for rank in range(self.count):
            pid, host = self._get(f"process/{rank}").split(" ", 1)
            if host == socket.gethostname() and rank != self.rank:
                self._local[rank] = int(pid)
        while not self._over.wait(LOOK_EVERY):
            found = self._look()
            if found and not self._over.wait(GRACE):
                sys.stderr.write(f"error: process {self.rank}: stopped because another process failed: {found}\n")
                sys.stderr.flush()
                os._exit(1)

    def stop(self) -> None:
        """Stops watching: the process ends by itself."""
        self._over.set()

    def report(self, error: BaseException) -> None:
        """Writes why this process fails, unless another failed before."""
        self.stop()
        if isinstance(error, PeerError):
            return
        text = line_of(error) if isinstance(error, MAWError) else f"{type(error).__name__}: {line_of(error)}"
        with contextlib.suppress(RuntimeError):
            self._set_once(f"process {self.rank} of {self.count}: {text}")
        if self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            time.sleep(2.5 * LOOK_EVERY)  # this process owns the store, and the others have yet to read it

    def cause(self, error: BaseException) -> str:
        """Why a collective operation failed: a process's reason, a dead process, or the error itself."""
        until = time.monotonic() + REASON_WAIT
        found = self._look()
        while not found and time.monotonic() < until:
            time.sleep(0.1)
            found = self._look()
        return found or f"another process of the run cannot be reached ({line_of(error)})"

    def _look(self) -> str | None:
        """The reason of a failure, once one is known."""
        if self._found is not None:
            return self._found
        gone = self._gone()
        try:
            with self._lock:
                failed = self._store.check([f"{self._prefix}failed"])
            self._found = self._get("failed") if failed else self._set_once(gone) if gone else None
        except RuntimeError as error:  # the store belongs to the launcher or to process 0
            time.sleep(LOOK_EVERY)  # the connection may break shortly before its process is gone
            self._found = gone or self._gone() or f"process 0 or the launcher is gone ({line_of(error)})"
        return self._found

    def _gone(self) -> str | None:
        """Names the first dead process of this machine."""
        for rank, pid in self._local.items():
            if _is_gone(pid):
                return f"process {rank} of {self.count} ended without a word: it was killed or it crashed"
        return None

    def _set_once(self, text: str) -> str:
        """Writes the reason of the failure, unless there is one; returns the stored reason."""
        with self._lock:
            return self._store.compare_set(f"{self._prefix}failed", "", text).decode() or text

    def _get(self, key: str) -> str:
        with self._lock:
            return self._store.get(self._prefix + key).decode()


def _is_gone(pid: int) -> bool:
    """Whether a process of this machine has ended, zombies included."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state in ("Z", "X")


def line_of(error: BaseException) -> str:
    """An error's message on one line, at most 500 characters."""
    return " ".join(str(error).split())[:500] or type(error).__name__
