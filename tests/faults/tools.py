"""Faults for the matrix: changes to files, processes and disks."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import multiprocessing
import os
import random
import subprocess
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from conftest import random_texts


def truncate(path: Path, source: random.Random) -> None:
    """Cuts a file anywhere, its start included."""
    os.truncate(path, source.randrange(path.stat().st_size))


def flip(path: Path, source: random.Random) -> None:
    """Changes one bit."""
    with path.open("r+b") as file:
        place = source.randrange(path.stat().st_size)
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1 << source.randrange(8)]))


DAMAGE = {"truncated": truncate, "one bit flipped": flip}


def tree(folder: Path) -> dict[str, str]:
    """Everything below a folder: files by their hash, links by where they lead, other things by name."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"to {path.readlink()}"
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "-"
    return found


def beir_folder(folder: Path, queries: int = 10, prefix: str = "q") -> Path:
    """A folder in BEIR layout of 50 passages, in which each query is a few words of its passage."""
    texts = list(dict.fromkeys(random_texts(80, seed=11)))[:50]
    (folder / "qrels").mkdir(parents=True)
    rows = [{"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [
        {"_id": f"{prefix}{i}", "text": " ".join(texts[i].split()[:4]) + f" {'the ' * (i % 3)}"}
        for i in range(3 * queries)
    ]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    for number, split in enumerate(("train", "dev", "test")):
        part = range(number * queries, (number + 1) * queries)
        lines = ["query-id\tcorpus-id\tscore", *(f"{prefix}{i}\td{i}\t1" for i in part)]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


class Watched:
    """An object that is called in another way and otherwise is what it was."""

    def __init__(self, real: Any, call: Callable[..., Any]):
        self._real, self._call = real, call

    def __call__(self, *words: Any) -> Any:
        return self._call(*words)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


# ------------------------------------------------------------------------------------------------------ processes


class Child:
    """A process that runs a function of this one: what it gave, or in which error it ended."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        context = multiprocessing.get_context("fork")
        self._answer, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=_answering, args=(theirs, function, arguments), daemon=True)
        self.process.start()
        theirs.close()

    def result(self, timeout: float = 60) -> Any:
        """What the function gave.

        Raises:
            AssertionError: it raised something, ended without an answer, or took too long.
        """
        assert self._answer.poll(timeout), f"no answer within {timeout} s"
        try:
            good, value = self._answer.recv()
        except EOFError:
            self.process.join(5)
            raise AssertionError(f"ended without an answer, exit code {self.process.exitcode}") from None
        self.process.join(timeout)
        assert good, value
        return value


def _answering(answer: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        answer.send((True, function(*arguments)))
    except BaseException:  # noqa: BLE001 - whatever it is, the parent is told
        answer.send((False, traceback.format_exc()))
    finally:
        answer.close()
        os._exit(0)


class _Capabilities(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


def obey_permissions() -> None:
    """Gives up root's right to read and write whatever a file's permissions say (Linux); others have none."""
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    sets = (_Capabilities * 2)()
    assert libc.capget(header, sets) == 0, os.strerror(ctypes.get_errno())
    for kind in ("effective", "permitted"):
        setattr(sets[0], kind, getattr(sets[0], kind) & ~0b110)  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    assert libc.capset(header, sets) == 0, os.strerror(ctypes.get_errno())


# ---------------------------------------------------------------------------------------------------------- disks


def mount(folder: Path, size: int) -> bool:
    """Puts a file system of so many bytes at a folder; False where that is not allowed."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=777", "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def unmount(folder: Path) -> None:
    """Takes it away, in use or not."""
    subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


def make_read_only(folder: Path) -> None:
    """Lets a file system of `mount` be read only."""
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], capture_output=True, check=True)


@contextlib.contextmanager
def filled(folder: Path, left: int) -> Iterator[None]:
    """Leaves so many bytes free on the file system of a folder, for the while."""
    filler = folder / "filler"
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, free - left))
    try:
        yield
    finally:
        filler.unlink()
