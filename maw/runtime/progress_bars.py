"""Progress bars: drawn in a terminal, as lines in a file, as JSON for another program."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from datetime import timedelta
from typing import TypeVar

from maw.runtime import distributed
from maw.runtime.console import _in_notebook, _state, draws, event_line, where, write_line

Item = TypeVar("Item")

LINE_EVERY, OBJECT_EVERY, DELAY = 30.0, 1.0, 0.5
"""Seconds between lines, seconds between JSON objects of one task, and seconds before a bar is first drawn."""
LEAST_DONE = 0.02
"""Share of a task that must be done before its pace is told."""
_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"


class Bar:
    """Progress of one task; this base class writes nothing.

    Args:
        stage: the task, in a word or two.
        unit: name of one item, in the singular.
        done: number of items done before.
    """

    def __init__(self, stage: str, total: int, unit: str, done: int = 0):
        self.stage, self.total, self.unit, self.done = stage, total, unit, done
        self.values: dict[str, float] = {}
        self._first, self._started = done, time.monotonic()
        self._start()

    def _start(self) -> None:
        """Shows the bar."""

    def update(self, count: int = 1) -> None:
        """Adds `count` finished items."""
        self.done += count

    def note(self, **values: float) -> None:
        """Sets values for the next update: `loss` is shown, others appear in JSON only."""
        self.values = values

    def close(self) -> None:
        """Ends the task."""

    @property
    def seconds(self) -> float:
        """Time since the task began in this process."""
        return time.monotonic() - self._started

    @property
    def rate(self) -> float | None:
        """Mean number of items a second; None before the first item."""
        return (self.done - self._first) / self.seconds if self.done > self._first and self.seconds else None

    @property
    def seconds_left(self) -> float | None:
        """Remaining time at the mean rate."""
        return (self.total - self.done) / self.rate if self.rate else None

    @property
    def label(self) -> str:
        """Context of the run and name of the stage."""
        context = where()
        epochs = f"/{context.pop('epochs')}" if "epochs" in context else ""
        named = [value if name in ("dataset", "method") else f"{name} {value}" for name, value in context.items()]
        return ": ".join([*([", ".join(named) + epochs] if named else []), self.stage])

    @property
    def notes(self) -> list[str]:
        """The loss as text, if `note` has set it."""
        return [f"loss {self.values['loss']:.3f}"] if "loss" in self.values else []

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _DrawnBar(Bar):
    """A tqdm bar in a terminal or notebook; it disappears when the task ends."""

    def _start(self) -> None:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a notebook without widgets gets a text bar
            from tqdm.auto import tqdm

            look = {"bar_format": _FORMAT, "dynamic_ncols": not _in_notebook(), "delay": DELAY, "leave": False}
            amounts = {"total": self.total, "initial": self.done, "unit": f" {self.unit}"}
            self._tqdm = tqdm(desc=self.label, file=sys.stderr, **amounts, **look)

    def update(self, count: int = 1) -> None:
        super().update(count)
        self._tqdm.set_postfix_str(", ".join(self.notes), refresh=False)
        self._tqdm.update(count)

    def close(self) -> None:
        self._tqdm.close()


class _LineBar(Bar):
    """A line every half a minute: for files, pipes and logs of job schedulers."""

    def _start(self) -> None:
        if _state.line_at == -math.inf:
            _state.line_at = time.monotonic()

    def update(self, count: int = 1) -> None:
        super().update(count)
        now = time.monotonic()
        if now - _state.line_at >= LINE_EVERY and self.rate:
            _state.line_at = now
            share = f" ({self.done / self.total:.0%})" if self.total else ""
            left = str(timedelta(seconds=round(self.seconds_left or 0)))
            # The first items of a task wait for what it prepares, and would promise hours.
            known = self.done - self._first >= self.total * LEAST_DONE
            pace = [f"{self.rate:.3g} {self.unit}/s, {left} left"] if known else []
            write_line(", ".join([f"{self.label}: {self.done:,}/{self.total:,}{share}", *pace, *self.notes]))


class _JsonBar(Bar):
    """JSON objects: at the start, every second and at the end."""

    def _start(self) -> None:
        self._write()

    def update(self, count: int = 1) -> None:
        super().update(count)
        if time.monotonic() - self._told >= OBJECT_EVERY:
            self._write()

    def close(self) -> None:
        if self.done != self._written:
            self._write()

    def _write(self) -> None:
        self._told, self._written = time.monotonic(), self.done
        amounts = {"done": self.done, "total": self.total, "unit": self.unit, "seconds": round(self.seconds, 3)}
        pace = {"rate": _rounded(self.rate), "seconds_left": _rounded(self.seconds_left)}
        noted = {name: _rounded(value) for name, value in self.values.items()}
        write_line(event_line({"event": "progress", **where(), "stage": self.stage, **amounts, **pace, **noted}))


def bar(stage: str, total: int, unit: str, *, done: int = 0, shown: bool = True) -> Bar:
    """The progress bar that suits this console; close it, or use it in a `with`.

    Args: as `Bar`.
        shown: False for a bar that writes nothing.
    """
    if not shown or distributed.rank_said() or (_state.quiet and not _state.json):
        kind = Bar
    elif _state.json:
        kind = _JsonBar
    else:
        kind = _DrawnBar if draws() else _LineBar
    return kind(stage, total, unit, done)


def track(
    items: Iterable[Item], stage: str, unit: str, *, total: int | None = None, shown: bool = True
) -> Iterator[Item]:
    """Yields the items and shows how many are done.

    Args: as `bar`.
        items: with a length, or with a `total`.
    """
    count = len(items) if total is None and isinstance(items, Sized) else total or 0
    with bar(stage, count, unit, shown=shown) as progress:
        for item in items:
            yield item
            progress.update()


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")
