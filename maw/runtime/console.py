"""What a run says while it works: every progress bar, message and summary goes through here.

    with at(dataset="pystdlib", method="lora", epoch=1, epochs=3):     # where the run is: part of all that is said
        for batch in track(batches, "training", "batch"):
            ...
        with bar("test documents", 5_601, unit="text") as progress:
            progress.update(128)
            progress.note(tokens_per_second=41_000.0)
    show("a table")                                                    # on standard output

Standard output has the plan and the results. Standard error has messages, and how far the task at hand is:

    in a terminal or a notebook    a bar of tqdm, with rate and time left
    elsewhere                      a line every half a minute, without control characters
    --json-progress                one JSON object a line, messages included; docs/console.md has the fields
    --quiet                        nothing but warnings and errors; on standard output the answer alone

Of several processes the main one alone speaks. This module loads nothing heavy, and tqdm when a bar is drawn.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

from maw.errors import OutputClosedError
from maw.runtime import distributed
from maw.storage.files import json_line

Item = TypeVar("Item")

SCHEMA = 1
"""Of the objects of --json-progress; a field that goes or changes its meaning makes it 2."""
LINE_EVERY, OBJECT_EVERY, DELAY = 30.0, 1.0, 0.5
"""Seconds: between lines, between objects of one task, and before a bar is drawn, so that short ones never are."""
_NAMES = ("dataset", "method")  # that speak for themselves
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"


class _State:
    """How to speak, and where the run is."""

    def __init__(self) -> None:
        self.quiet, self.json = False, False
        self.where: dict[str, Any] = {}
        self.line_at = -math.inf


_state = _State()


# ---------------------------------------------------------------------------------------------------- how, and where


def configure(*, quiet: bool, json_progress: bool) -> None:
    """From here on the console is as `Tier1Config.quiet` and `json_progress` say, to the end of the block of
    `configured`."""
    _state.quiet, _state.json = quiet, json_progress


@contextlib.contextmanager
def configured(*, quiet: bool = False, json_progress: bool = False) -> Iterator[None]:
    """A block with a console of its own, as `configure` sets it."""
    before = _state.quiet, _state.json
    configure(quiet=quiet, json_progress=json_progress)
    try:
        yield
    finally:
        _state.quiet, _state.json = before


@contextlib.contextmanager
def at(**place: Any) -> Iterator[None]:
    """A block of one dataset, method, fold, seed, trial or epoch (of `epochs`); None leaves a name out."""
    before = _state.where
    _state.where = before | {name: value for name, value in place.items() if value not in (None, "")}
    try:
        yield
    finally:
        _state.where = before


def where() -> dict[str, Any]:
    """What `at` says, as far as the run is in any."""
    return dict(_state.where)


def draws() -> bool:
    """Whether bars are drawn: in a notebook, or in a terminal that can."""
    if _state.quiet or _state.json or distributed.rank_said():
        return False
    return _in_notebook() or (sys.stderr.isatty() and os.environ.get("TERM") != "dumb")


def _in_notebook() -> bool:
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and "IPKernelApp" in shell.config


def silence_libraries() -> None:
    """Keeps the libraries' own bars, of downloads for the most part, off a console on which ours are not drawn."""
    if draws():
        return
    os.environ.setdefault("TQDM_DISABLE", "1")  # tqdm looks when it is loaded
    os.environ.setdefault("IR_DATASETS_DL_DISABLE_PBAR", "true")
    if "huggingface_hub" in sys.modules:  # has loaded tqdm already
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()


# -------------------------------------------------------------------------------------------------- messages, and text


def show(text: str) -> None:
    """Puts plan, headings and results on standard output."""
    if not _state.quiet:
        answer(text)


def answer(text: str) -> None:
    """Puts on standard output what a quiet run, too, is made for; of several processes the main one does.

    Raises:
        OutputClosedError: nobody reads it any more.
    """
    if not distributed.is_main():
        return
    try:
        print(text, flush=True)  # noqa: T201 - the console is this module's business
    except BrokenPipeError as error:
        raise OutputClosedError(*error.args) from error


def event_line(event: Mapping[str, Any], created: float | None = None) -> str:
    """An event as one line of strict JSON, its time first.

    Args:
        event: JSON-able, with a name under "event".
        created: seconds since 1970; now, if not given.
    """
    moment = datetime.fromtimestamp(time.time() if created is None else created, UTC)
    return json_line({"time": moment.isoformat(timespec="milliseconds"), **event})


def write_line(line: str) -> None:
    """Writes a line to standard error, above a bar if one is drawn; one that nobody can read is lost."""
    with contextlib.suppress(OSError, ValueError):  # a closed pipe or stream
        if draws() and "tqdm" in sys.modules:
            sys.modules["tqdm"].tqdm.write(line, file=sys.stderr)
        else:
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()


def end(exit_code: int, *lines: str) -> None:
    """Writes why the program ends, if not well; with --json-progress as its last object, also if well.

    Of several processes all but the main one say which they are.
    """
    rank = distributed.rank_said()
    if _state.json and not rank:
        write_line(event_line({"event": "end", "exit_code": exit_code, "text": "\n".join(lines).strip() or None}))
        return
    said = f"process {rank}: " if rank else ""
    sys.stderr.write("".join(f"{said}{line}\n" for line in lines))


class ConsoleHandler(logging.Handler):
    """Writes messages to standard error, above a bar if there is one: plain, or as JSON with what happens as data.

    Args:
        level: of the messages that are written; with --quiet warnings at least.
    """

    def __init__(self, level: int):
        super().__init__(max(level, logging.WARNING) if _state.quiet and not _state.json else level)
        self.events = _state.json and not distributed.rank_said()
        if self.events:
            self._least, self.level = level, logging.DEBUG  # events come as details

    def filter(self, record: logging.LogRecord) -> bool:
        if not self.events:
            return super().filter(record)
        return (hasattr(record, "event") or record.levelno >= self._least) and super().filter(record)

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one message; a warning or an error says that it is one."""
        name = record.levelname.lower()
        try:
            if self.events:
                message = {"event": "message", **where(), "level": name, "text": self.format(record)}
                write_line(event_line(getattr(record, "event", message), record.created))
            else:
                write_line(("" if record.levelno < logging.WARNING else f"{name}: ") + self.format(record))
        except (TypeError, ValueError):  # a number that JSON cannot hold
            self.handleError(record)
