"""Signals that stop or save a run: Ctrl-C, and what batch systems send before they kill.

    with handlers():                # in the main thread of the command line; an import installs nothing
        ...
        with held_back():           # steps that must not be interrupted, such as a save
            ...
        check()                     # raises `Stopped` if SIGTERM or SIGINT came in the meantime

SIGTERM and SIGINT raise `Stopped` at once, or inside `held_back` at the next `check`. The system's own handling is
then restored, so a second signal ends the process at once. Where Python swallows exceptions, as in a library's
`__del__`, the next `check` raises `Stopped`. SIGUSR1, which SLURM and others can send some time before the end
(`--signal=USR1@300`), asks for a save at the next step; the run continues.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any


class Stopped(KeyboardInterrupt):
    """A signal, given by its number, has stopped the run."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number

    @property
    def name(self) -> str:
        """The signal's name, such as SIGTERM."""
        return signal.Signals(self.number).name

    @property
    def exit_code(self) -> int:
        """The exit code that shells expect: 143 for SIGTERM, 130 for SIGINT."""
        return 128 + self.number


class _Asked:
    """Pending requests, and the depth of nested `held_back` blocks."""

    stop: int | None = None
    save = False
    held = 0


_asked = _Asked()


@contextlib.contextmanager
def handlers() -> Iterator[None]:
    """Handles the signals inside the block.

    Signals that the process ignores from its start, as under nohup or in the background, stay ignored. Outside the
    main thread, where Python allows no handlers, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _asked.stop, _asked.save = None, False
    wanted = {signal.SIGTERM: _stop, signal.SIGINT: _stop}
    if hasattr(signal, "SIGUSR1"):
        wanted[signal.SIGUSR1] = _save
    wanted = {each: handler for each, handler in wanted.items() if signal.getsignal(each) != signal.SIG_IGN}
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    show = sys.unraisablehook

    def show_others(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, Stopped):  # its traceback would not help the user
            show(unraisable)

    sys.unraisablehook = show_others
    try:
        yield
    except ImportError as error:  # what an import of a module in C makes of `Stopped`
        if _asked.stop is None:
            raise
        raise Stopped(_asked.stop) from error
    finally:
        sys.unraisablehook = show
        for number, handler in before.items():
            signal.signal(number, handler)
        _asked.stop, _asked.save = None, False


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Delays signals to the next `check`."""
    _asked.held += 1
    try:
        yield
    finally:
        _asked.held -= 1


def check() -> None:
    """Raises a delayed `Stopped`, also inside `held_back`. Call it where no work is half done.

    Raises:
        Stopped: a signal asked the run to stop.
    """
    if _asked.stop is not None:
        raise Stopped(_asked.stop)


def stop_asked() -> bool:
    """Whether a signal asked the run to stop."""
    return _asked.stop is not None


def save_asked() -> bool:
    """Whether a signal asked for a save since the last call."""
    asked, _asked.save = _asked.save, False
    return asked


def _stop(number: int, _: FrameType | None) -> None:
    _asked.stop = number
    for each in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(each) is _stop:
            signal.signal(each, signal.SIG_DFL)
    if not _asked.held:
        raise Stopped(number)


def _save(_: int, __: FrameType | None) -> None:
    _asked.save = True
