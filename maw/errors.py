"""Errors that a user can correct. Each message says what is wrong, where, and what to do."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any


class MAWError(Exception):
    """Base class: a refusal or failure that the user can correct; `str` is one line."""


class ConfigError(MAWError):
    """A configuration that cannot run.

    Args:
        problems: all mistakes, one line each.
    """

    def __init__(self, problems: Sequence[str]):
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


class DataError(MAWError):
    """Missing or malformed data; the message names the file and line."""


class MemoryLimitError(MAWError):
    """Too little memory; the message says what needs less."""


class NotFiniteError(MAWError):
    """A loss, gradient, embedding or score is NaN or infinite, as when training diverges."""


class DamagedError(MAWError):
    """A file that the program wrote has changed since; the message names it."""


class ModelError(MAWError):
    """A model cannot be found or loaded, or cannot take depth attention."""


class OutputClosedError(BrokenPipeError):
    """The reader closed standard output (not an error). Other broken pipes are errors."""


_NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: in Python, on a GPU, or in torch's allocator on the CPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_MEMORY)


@contextlib.contextmanager
def error_context(where: str) -> Iterator[None]:
    """Prefixes the message of a NotFiniteError raised inside the block with `where`."""
    try:
        yield
    except NotFiniteError as error:
        raise NotFiniteError(f"{where}: {error}") from error


_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_FULL_TEXT = os.strerror(errno.ENOSPC)


def reason(error: BaseException) -> str:
    """Why something failed, on one line: the system's reason, or the first line of the error.

    A full disk reads the same whichever library reports it.
    """
    whole = getattr(error, "strerror", None) or str(error)
    lines = [" ".join(line.split()).rstrip(".") for line in whole.splitlines() if line.strip()]
    text = (lines or [type(error).__name__])[0]
    if getattr(error, "errno", None) in _FULL:
        return f"the disk is full ({text})"
    return f"the disk is full ({_FULL_TEXT})" if _FULL_TEXT in " ".join(whole.split()) else text


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200  # long enough for a path, too short for a pasted file


def show(value: Any) -> str:
    """A short `repr` on one line, for any value."""
    try:
        return " ".join(_SHORT.repr(value).split())
    except ValueError:  # an integer of more digits than Python writes
        return f"a {type(value).__name__} too long to show"


def closest(word: str, known: Iterable[str]) -> str:
    """The known word most similar to `word`, or "" if none is similar."""
    known = list(known)
    same = [each for each in known if each.lower() == word.strip().lower()]
    return next(iter(same or difflib.get_close_matches(word, known, n=1)), "")


def suggestion(word: str, known: Iterable[str]) -> str:
    """`closest` as " (did you mean ...?)", or ""."""
    close = closest(word, known)
    return f" (did you mean {close}?)" if close else ""
