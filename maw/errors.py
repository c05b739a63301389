"""What a user can mend: every message is complete in itself and says what was wrong, where, and what to do."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any


class MAWError(Exception):
    """Anything the package refuses or cannot do that its user can mend; `str` is one line."""


class ConfigError(MAWError):
    """A configuration that cannot run.

    Args:
        problems: every mistake found, one line each.
    """

    def __init__(self, problems: Sequence[str]):
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


class DataError(MAWError):
    """Data that is missing or malformed; the message names the file and line."""


class MemoryLimitError(MAWError):
    """There is not enough memory, and the message says what needs less."""


class NotFiniteError(MAWError):
    """A loss, gradient, embedding or score that is NaN or infinite: what training that diverges ends in."""


class DamagedError(MAWError):
    """A file of the program's own that is not as it was written; the message names it."""


class ModelError(MAWError):
    """A model that cannot be found, loaded or given depth attention."""


class OutputClosedError(BrokenPipeError):
    """Whatever read standard output has closed it, which is no mistake; other broken pipes of a run are."""


_NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out: Python's own, a GPU's, or that of torch's allocator on a CPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_MEMORY)


@contextlib.contextmanager
def error_context(where: str) -> Iterator[None]:
    """Puts the place in front of whatever turns out not to be finite inside the block."""
    try:
        yield
    except NotFiniteError as error:
        raise NotFiniteError(f"{where}: {error}") from error


_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_FULL_TEXT = os.strerror(errno.ENOSPC)


def reason(error: Exception) -> str:
    """Why something failed, on one line: the system's reason, or the first line of the error.

    A full disk is named as such, even if a library reports it in other words.
    """
    whole = getattr(error, "strerror", None) or str(error)
    lines = [" ".join(line.split()).rstrip(".") for line in whole.splitlines() if line.strip()]
    text = (lines or [type(error).__name__])[0]
    if getattr(error, "errno", None) in _FULL:
        return f"the disk is full ({text})"
    return f"the disk is full ({_FULL_TEXT})" if _FULL_TEXT in " ".join(whole.split()) else text


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200  # a path in full, and not a whole file that was pasted


def show(value: Any) -> str:
    """A short `repr` on one line, whatever the value is."""
    try:
        return " ".join(_SHORT.repr(value).split())
    except ValueError:  # an integer of more digits than Python writes
        return f"a {type(value).__name__} too long to show"


def closest(word: str, known: Iterable[str]) -> str:
    """What looks most like the word among what is known, or "" if nothing does."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1)), "")


def suggestion(word: str, known: Iterable[str]) -> str:
    """`closest` as " (did you mean ...?)", or nothing."""
    close = closest(word, known)
    return f" (did you mean {close}?)" if close else ""
