"""Progress bars: drawn in a terminal, as lines in a file, as JSON for another program."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from datetime import timedelta

from maw.runtime import distributed
from maw.runtime.console import (
    _BAR,
    _NAMES,
    DELAY,
    LINE_EVERY,
    OBJECT_EVERY,
    Item,
    _in_notebook,
    _state,
    draws,
    event_line,
    where,
    write_line,
)

# ------------------------------------------------------------------------------------------------------------ the bars


class Bar:
    """How far one task is; this one says nothing.

    Args:
        stage: what is done, in a word or two.
        total: how many there are.
        unit: of what, in the singular.
        done: how many were done before.
    """

    def __init__(self, stage: str, total: int, unit: str, done: int = 0):
        self.stage, self.total, self.unit, self.done = stage, total, unit, done
        self.values: dict[str, float] = {}
        self._first, self._started = done, time.monotonic()

    def update(self, count: int = 1) -> None:
        """So many more are done."""
        self.done += count

    def note(self, **values: float) -> None:
        """What else to say with the next update: `loss`, or anything for JSON alone."""
        self.values = values

    def close(self) -> None:
        """Nothing more is to come."""

    @property
    def seconds(self) -> float:
        """Since the task began, here and now."""
        return time.monotonic() - self._started

    @property
    def rate(self) -> float | None:
        """How many a second, on average; None before the first."""
        return (self.done - self._first) / self.seconds if self.done > self._first and self.seconds else None

    @property
    def seconds_left(self) -> float | None:
        """At this rate."""
        return (self.total - self.done) / self.rate if self.rate else None

    @property
    def label(self) -> str:
        """Where the run is, and the stage."""
        place = where()
        epochs = f"/{place.pop('epochs')}" if "epochs" in place else ""
        named = [value if name in _NAMES else f"{name} {value}" for name, value in place.items()]
        return ": ".join([*([", ".join(named) + epochs] if named else []), self.stage])

    @property
    def notes(self) -> list[str]:
        """The loss, if it was noted, as people read it."""
        return [f"loss {self.values['loss']:.3f}"] if "loss" in self.values else []

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _DrawnBar(Bar):
    """By tqdm, in a terminal or a notebook; gone when the task is done."""

    def __init__(self, stage: str, total: int, unit: str, done: int = 0):
        super().__init__(stage, total, unit, done)
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a notebook without widgets, where text will do
            from tqdm.auto import tqdm

            look = {"bar_format": _BAR, "dynamic_ncols": not _in_notebook(), "delay": DELAY, "leave": False}
            amounts = {"total": total, "initial": done, "unit": f" {unit}"}
            self._tqdm = tqdm(desc=self.label, file=sys.stderr, **amounts, **look)

    def update(self, count: int = 1) -> None:
        super().update(count)
        self._tqdm.set_postfix_str(", ".join(self.notes), refresh=False)
        self._tqdm.update(count)

    def close(self) -> None:
        self._tqdm.close()


class _LineBar(Bar):
    """As lines, every half a minute: for files, pipes and the logs of job schedulers."""

    def __init__(self, stage: str, total: int, unit: str, done: int = 0):
        super().__init__(stage, total, unit, done)
        if _state.line_at == -math.inf:
            _state.line_at = time.monotonic()

    def update(self, count: int = 1) -> None:
        super().update(count)
        now = time.monotonic()
        if now - _state.line_at >= LINE_EVERY and self.rate:
            _state.line_at = now
            share = f" ({self.done / self.total:.0%})" if self.total else ""
            left = str(timedelta(seconds=round(self.seconds_left or 0)))
            pace = f"{self.rate:.3g} {self.unit}/s, {left} left"
            write_line(", ".join([f"{self.label}: {self.done:,}/{self.total:,}{share}", pace, *self.notes]))


class _JsonBar(Bar):
    """As JSON: when it begins, every second, and when it ends."""

    def __init__(self, stage: str, total: int, unit: str, done: int = 0):
        super().__init__(stage, total, unit, done)
        self._tell()

    def update(self, count: int = 1) -> None:
        super().update(count)
        if time.monotonic() - self._told >= OBJECT_EVERY:
            self._tell()

    def close(self) -> None:
        if self.done != self._said:
            self._tell()

    def _tell(self) -> None:
        self._told, self._said = time.monotonic(), self.done
        amounts = {"done": self.done, "total": self.total, "unit": self.unit, "seconds": round(self.seconds, 3)}
        pace = {"rate": _rounded(self.rate), "seconds_left": _rounded(self.seconds_left)}
        noted = {name: _rounded(value) for name, value in self.values.items()}
        write_line(event_line({"event": "progress", **where(), "stage": self.stage, **amounts, **pace, **noted}))


def bar(stage: str, total: int, unit: str, *, done: int = 0, shown: bool = True) -> Bar:
    """Something to say how far a task is with, as this console can show it; close it, or use it in a `with`.

    Args: as `Bar`.
        shown: False for a task that is not worth one.
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
    """The items, with a bar that says how many have been gone through.

    Args: as `bar`.
        items: with a length, or else with a `total`.
    """
    count = len(items) if total is None and isinstance(items, Sized) else total or 0
    with bar(stage, count, unit, shown=shown) as progress:
        for item in items:
            yield item
            progress.update()


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")
