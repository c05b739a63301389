"""How the processes of a run end together: a thread in each looks whether the others are still there.

A process that fails says why in the launcher's key-value store, where the others' watchers look every second. A
process that was killed says nothing: watchers look for those of their own machine too. Whoever is not out of its work
some seconds later is ended by its watcher, since a process that waits inside NCCL hears no signal.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from maw.errors import MAWError

LOOK_EVERY, GRACE, WORD = 1.0, 10.0, 4.0
"""Seconds: between looks at the others, for leaving once one has failed, and to wait for its word."""
FAILED_CODE = 1


class PeerError(MAWError):
    """Another process of the run has failed; the message says which and why, as far as it is known."""


class Watcher(threading.Thread):
    """Looks whether the others are still there, and ends this process if one is not and it does not end by itself.

    Args:
        rank: of this process.
        count: of processes.
    """

    def __init__(self, rank: int, count: int):
        import torch.distributed as dist

        super().__init__(name="watcher", daemon=True)
        self.rank, self.count, self._over = rank, count, threading.Event()
        self._lock = threading.Lock()  # one question at a time on the connection
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        patience = timedelta(seconds=60)
        self._store = dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=patience)
        self._prefix = f"maw/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/"
        self._set(f"process/{rank}", f"{os.getpid()} {socket.gethostname()}")
        self._local: dict[int, int] = {}
        self._found: str | None = None

    def run(self) -> None:
        """Looks until the session is over."""
        for rank in range(self.count):
            pid, host = self._get(f"process/{rank}").split(" ", 1)
            if host == socket.gethostname() and rank != self.rank:
                self._local[rank] = int(pid)
        while not self._over.wait(LOOK_EVERY):
            found = self._look()
            if found:
                self._over.wait(GRACE)
                if not self._over.is_set():
                    self._end(found)

    def stop(self) -> None:
        """The session is over, well or not: the process ends by itself."""
        self._over.set()

    def report(self, error: BaseException) -> None:
        """Says why this process fails, unless another has failed before."""
        self.stop()
        if isinstance(error, PeerError):
            return
        with contextlib.suppress(RuntimeError):
            self._set_once(f"process {self.rank} of {self.count}: {_described(error)}")
        if self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            time.sleep(2.5 * LOOK_EVERY)  # the store is in this process, and the others have yet to read it

    def cause(self, error: BaseException) -> str:
        """Why a call to the others failed: what one of them said, which of them is gone, or the call's own error."""
        until = time.monotonic() + WORD
        found = self._look()
        while not found and time.monotonic() < until:
            time.sleep(0.1)
            found = self._look()
        return found or f"another process of the run cannot be reached ({line_of(error)})"

    def _look(self) -> str | None:
        """What is known of a failure, once it is known for good."""
        if self._found is None:
            self._found = self._ask()
        return self._found

    def _ask(self) -> str | None:
        gone = self._gone()
        try:
            if self._check("failed"):
                return self._get("failed")
            return self._set_once(gone) if gone else None
        except RuntimeError as error:  # the store is the launcher's, or that of process 0
            time.sleep(LOOK_EVERY)  # its connection may be gone some moments before it is
            return gone or self._gone() or f"process 0, or the launcher, is gone ({line_of(error)})"

    def _gone(self) -> str | None:
        """Says which process of this machine is gone, the first of them."""
        for rank, pid in self._local.items():
            if _is_gone(pid):
                return f"process {rank} of {self.count} ended without a word; it was killed, or crashed"
        return None

    def _end(self, cause: str) -> None:
        sys.stderr.write(f"error: process {self.rank}: stopped, since another failed: {cause}\n")
        sys.stderr.flush()
        os._exit(FAILED_CODE)

    def _set_once(self, text: str) -> str:
        """Sets the cause of the failure if there is none yet; what it is then."""
        with self._lock:
            return self._store.compare_set(f"{self._prefix}failed", "", text).decode() or text

    def _set(self, key: str, value: str) -> None:
        with self._lock:
            self._store.set(self._prefix + key, value)

    def _get(self, key: str) -> str:
        with self._lock:
            return self._store.get(self._prefix + key).decode()

    def _check(self, key: str) -> bool:
        with self._lock:
            return self._store.check([self._prefix + key])


def _is_gone(pid: int) -> bool:
    """Whether a process of this machine has ended, even if nobody has asked for its exit code yet."""
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


def _described(error: BaseException) -> str:
    named = isinstance(error, MAWError)
    return line_of(error) if named else f"{type(error).__name__}: {line_of(error)}"


def line_of(error: BaseException) -> str:
    """An error's message on one line, of a length that can be read."""
    words: Sequence[str] = str(error).split()
    return " ".join(words)[:500] or type(error).__name__
