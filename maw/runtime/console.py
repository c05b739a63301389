"""The console: messages, results and machine-readable output of a run. Bars are in `progress_bars`.

    with at(dataset="pystdlib", method="lora", epoch=1, epochs=3):     # the context of all output inside
        for batch in track(batches, "training", "batch"):
            ...
        with bar("test documents", 5_601, unit="text") as progress:
            progress.update(128)
            progress.note(tokens_per_second=41_000.0)
    show("a table")                                                    # on standard output

Standard output has the plan and the results. Standard error has messages and progress:

    in a terminal or a notebook    a tqdm bar, with rate and time left
    elsewhere                      a line every half a minute, without control characters
    --json-progress                one JSON object a line, messages included; docs/console.md lists the fields
    --quiet                        warnings and errors only; standard output has only the results

Of several processes only the main one writes. This module imports nothing heavy; tqdm is imported for the first bar.
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
from typing import Any

from maw.errors import OutputClosedError
from maw.runtime import distributed
from maw.storage.files import json_line

SCHEMA = 1
"""Version of the --json-progress objects; it grows when a field is removed or changes its meaning."""


class _State:
    """Output mode and context of the run."""

    def __init__(self) -> None:
        self.quiet, self.json = False, False
        self.where: dict[str, Any] = {}
        self.line_at = -math.inf


_state = _State()


def configure(*, quiet: bool, json_progress: bool) -> None:
    """Sets the output mode, as `Tier1Config.quiet` and `json_progress`, until the block of `configured` ends."""
    _state.quiet, _state.json = quiet, json_progress


@contextlib.contextmanager
def configured(*, quiet: bool = False, json_progress: bool = False) -> Iterator[None]:
    """Sets the output mode for a block and restores it afterwards."""
    before = _state.quiet, _state.json
    configure(quiet=quiet, json_progress=json_progress)
    try:
        yield
    finally:
        _state.quiet, _state.json = before


@contextlib.contextmanager
def at(**context: Any) -> Iterator[None]:
    """Sets dataset, method, fold, seed, trial or epoch (of `epochs`) for all output of a block; None is left out."""
    before = _state.where
    _state.where = before | {name: value for name, value in context.items() if value not in (None, "")}
    try:
        yield
    finally:
        _state.where = before


def where() -> dict[str, Any]:
    """The context that `at` has set."""
    return dict(_state.where)


def draws() -> bool:
    """Whether bars are drawn: in a notebook or a capable terminal."""
    if _state.quiet or _state.json or distributed.rank_said():
        return False
    return _in_notebook() or (sys.stderr.isatty() and os.environ.get("TERM") != "dumb")


def _in_notebook() -> bool:
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and "IPKernelApp" in shell.config


def silence_libraries() -> None:
    """Turns off the bars of other libraries, mostly of downloads, where ours are not drawn either."""
    if draws():
        return
    os.environ.setdefault("TQDM_DISABLE", "1")  # tqdm reads it when it is imported
    os.environ.setdefault("IR_DATASETS_DL_DISABLE_PBAR", "true")
    if "huggingface_hub" in sys.modules:  # it has imported tqdm already
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()


def show(text: str) -> None:
    """Writes the plan, headings or results to standard output, unless --quiet is set."""
    if not _state.quiet:
        answer(text)


def answer(text: str) -> None:
    """Writes to standard output, also with --quiet; only the main process does.

    Raises:
        OutputClosedError: the reader has closed standard output.
    """
    if not distributed.is_main():
        return
    try:
        print(text, flush=True)  # noqa: T201 - the console is this module's business
    except BrokenPipeError as error:
        raise OutputClosedError(*error.args) from error


def event_line(event: Mapping[str, Any], created: float | None = None) -> str:
    """A JSON-able event as one line of strict JSON, time first; `created` is in seconds since 1970, default now."""
    moment = datetime.fromtimestamp(time.time() if created is None else created, UTC)
    return json_line({"time": moment.isoformat(timespec="milliseconds"), **event})


def write_line(line: str) -> None:
    """Writes a line to standard error, above a drawn bar; ignores a closed stream."""
    with contextlib.suppress(OSError, ValueError):  # a closed pipe or stream
        if draws() and "tqdm" in sys.modules:
            sys.modules["tqdm"].tqdm.write(line, file=sys.stderr)
        else:
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()


def end(exit_code: int, *lines: str) -> None:
    """Writes why the program ends. With --json-progress it is the last object, also after success.

    Processes other than the main one add their rank.
    """
    rank = distributed.rank_said()
    if _state.json and not rank:
        write_line(event_line({"event": "end", "exit_code": exit_code, "text": "\n".join(lines).strip() or None}))
        return
    prefix = f"process {rank}: " if rank else ""
    sys.stderr.write("".join(f"{prefix}{line}\n" for line in lines))


class ConsoleHandler(logging.Handler):
    """Writes log messages from `level` up (--quiet: WARNING) to standard error, as text or as JSON with events."""

    def __init__(self, level: int):
        super().__init__(max(level, logging.WARNING) if _state.quiet and not _state.json else level)
        self.events = _state.json and not distributed.rank_said()
        if self.events:
            self._least, self.level = level, logging.DEBUG  # events are logged at DEBUG

    def filter(self, record: logging.LogRecord) -> bool:
        if not self.events:
            return not (_state.quiet and hasattr(record, "in_results")) and super().filter(record)
        return (hasattr(record, "event") or record.levelno >= self._least) and super().filter(record)

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one message; warnings and errors carry their level."""
        name = record.levelname.lower()
        try:
            if self.events:
                message = {"event": "message", **where(), "level": name, "text": self.format(record)}
                write_line(event_line(getattr(record, "event", message), record.created))
            else:
                write_line(("" if record.levelno < logging.WARNING else f"{name}: ") + self.format(record))
        except (TypeError, ValueError):  # a value that JSON cannot hold
            self.handleError(record)
