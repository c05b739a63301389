"""Signals that end or save a run: what batch systems send before they kill, and Ctrl-C.

    with handlers():                # the command line, in the main thread; nothing is installed by importing
        ...
        with held_back():           # steps that must not be left half done, or a save
            ...
        check()                     # raises `Stopped` if SIGTERM or SIGINT came in the meantime

SIGTERM and SIGINT raise `Stopped` where the program is, or, inside `held_back`, at the next `check`. Then the system's
own handling is back in place, so that a second signal ends the process at once. Where Python lets no exception out, as
in a library's `__del__`, the next `check` raises it. SIGUSR1, which SLURM and others send
some time before the end (`--signal=USR1@300`), asks for a save at the next step; the run goes on.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


class Stopped(KeyboardInterrupt):
    """The run was asked to end.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number

    @property
    def name(self) -> str:
        """As in SIGTERM."""
        return signal.Signals(self.number).name

    @property
    def exit_code(self) -> int:
        """As shells have it: 143 for SIGTERM, 130 for SIGINT."""
        return 128 + self.number


class _Asked:
    """What has been asked for so far, and how many blocks deep the main thread holds it back."""

    stop: int | None = None
    save = False
    held = 0


_asked = _Asked()


@contextlib.contextmanager
def handlers() -> Iterator[None]:
    """Handles the signals inside the block.

    It leaves alone what the process was started to ignore, as nohup and shells do for jobs in the background, and
    does nothing outside the main thread, where Python cannot.
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
    show, sys.unraisablehook = sys.unraisablehook, _unless_stopped(sys.unraisablehook)
    try:
        yield
    finally:
        sys.unraisablehook = show
        for number, handler in before.items():
            signal.signal(number, handler)
        _asked.stop, _asked.save = None, False


def _unless_stopped(show: Callable[[Any], object]) -> Callable[[Any], None]:
    """`show` but for a `Stopped`, whose traceback would tell the user nothing."""

    def hook(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, Stopped):
            show(unraisable)

    return hook


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """A block that a signal ends nowhere but at a `check` inside it."""
    _asked.held += 1
    try:
        yield
    finally:
        _asked.held -= 1


def check() -> None:
    """Raises what was held back, inside a block of `held_back` too: it stands where nothing is half done.

    Raises:
        Stopped: the run was asked to end.
    """
    if _asked.stop is not None:
        raise Stopped(_asked.stop)


def stop_asked() -> bool:
    """Whether the run was asked to end."""
    return _asked.stop is not None


def save_asked() -> bool:
    """Whether a save was asked for since the last call."""
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
