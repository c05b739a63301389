"""A run's log files: what it says, what happens as data, how long they are kept, and reading them back.

    logs/tier1/run_20250106_143022.log.gz      every message, with time and place
    logs/tier1/run_20250106_143022.jsonl.gz    one JSON object a line for each epoch, trial and result as they come

    from maw.runtime.run_log import read_events
    losses = [each["train_loss"] for each in read_events(path) if each["event"] == "epoch"]

A run in progress holds a lock, `run_....lock`, which goes with its process however that ends. When a run starts it
compresses what runs that were killed left, if logs are to be compressed, and removes the log files of the oldest runs
beyond `max_log_files`: only files of these names, only in the log folder itself, and never those of a run in progress.
Results and checkpoints are never removed.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
import os
import re
import shutil
import sys
import zlib
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from maw.errors import DataError, MAWError, reason, show
from maw.runtime.console import event_line, where
from maw.storage.locks import held

logger = logging.getLogger(__name__)

_RUN = re.compile(r"(run_(\d{8}_\d{6})(?:_(\d{1,3}))?)\.(?:log|jsonl)(?:\.gz)?", re.ASCII)
_MOST_OF_ONE_SECOND = 1000


def log_event(target: logging.Logger, event: str, **values: Any) -> None:
    """Says that something happened, and where in the run, for its .jsonl file and for --json-progress.

    Args:
        target: the logger of the module where it happened.
        event: what kind of thing, in one word.
        values: JSON-able, numpy's numbers included.
    """
    target.debug("%s", event, extra={"event": {"event": event, **where(), **values}})


class LogFile(logging.FileHandler):
    """A log that a full disk ends, with one warning, while the run goes on."""

    def __init__(self, path: Path):
        super().__init__(path, encoding="utf-8", errors="backslashreplace", delay=True)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self.failed = False

    def filter(self, record: logging.LogRecord) -> bool:
        return not hasattr(record, "event") and super().filter(record)

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one message; a disk that does not take it stops nothing."""
        try:
            super().emit(record)
        except OSError:  # of opening the file, which logging leaves to its caller
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Warns once of a disk that does not take any more; other errors are mistakes in the program."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self._fail(error)
        else:
            super().handleError(record)

    def close(self) -> None:
        """Closes the file; what a full disk did not take is not needed any more."""
        try:
            super().close()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        if not self.failed:
            sys.stderr.write(f"warning: {self.baseFilename}: cannot be written ({reason(error)}); the run goes on\n")
        self.failed = True


class EventFile(LogFile):
    """Of all messages those of `log_event`, as JSON, one a line; there is no file until the first."""

    def filter(self, record: logging.LogRecord) -> bool:
        return hasattr(record, "event") and logging.Filterer.filter(self, record)

    def format(self, record: logging.LogRecord) -> str:
        return event_line(vars(record)["event"], record.created)


class RunLogs:
    """The names of a new run's log files, and the lock that says that it is in progress.

    Args:
        folder: the log folder; it is made.
        keep: how many runs keep their log files, this one among them; 0 for all.
        compress: whether log files are compressed in the end.

    Raises:
        MAWError: the folder cannot be written.
    """

    def __init__(self, folder: Path, *, keep: int, compress: bool):
        self.compress = compress
        stamp = datetime.now().strftime("%Y%m%d_%H%M%S")
        self._stack = contextlib.ExitStack()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.log = self._new(folder, stamp)
            self.events = self.log.with_suffix(".jsonl")
            _tidy(folder, keep, compress, self.log.stem)
        except OSError as error:
            self._stack.close()
            raise MAWError(f"--log-dir {folder}: cannot be written to: {reason(error)}") from error

    def _new(self, folder: Path, stamp: str) -> Path:
        """An empty log file of this moment's name, locked; a second run in the same second gets a number."""
        for number in range(1, _MOST_OF_ONE_SECOND):
            path = folder / f"run_{stamp}{f'_{number}' if number > 1 else ''}.log"
            if any(path.with_name(f"{path.stem}{suffix}").exists() for suffix in (".log", ".log.gz", ".jsonl.gz")):
                continue
            if self._stack.enter_context(held(path.with_suffix(".lock"))) is None:
                continue  # another run, that has its lock and not its file yet
            path.touch(exist_ok=False)
            return path
        raise MAWError(f"--log-dir {folder}: holds too many logs of {stamp}")

    def finish(self) -> None:
        """Compresses the files, if that is wanted, and gives the lock back."""
        for path in (self.log, self.events):
            if self.compress and path.exists():
                _compress(path)
        self._stack.close()
        with contextlib.suppress(OSError):
            self.log.with_suffix(".lock").unlink(missing_ok=True)


def _tidy(folder: Path, keep: int, compress: bool, own: str) -> None:
    """Compresses and removes log files of earlier runs, as the module says."""
    runs: dict[tuple[str, int], list[Path]] = defaultdict(list)
    for path in folder.iterdir():
        match = _RUN.fullmatch(path.name)
        if match and match[1] != own and path.is_file() and not path.is_symlink():
            runs[match[2], int(match[3] or 1)].append(path)
    ordered = sorted(runs)
    excess = set(ordered[: max(0, len(ordered) + 1 - keep)] if keep else ())  # this run is one of those to keep
    for run in ordered:
        files = runs[run]
        plain = [path for path in files if path.suffix != ".gz"]
        name = _RUN.fullmatch(files[0].name)
        if name and (run in excess or (compress and plain)):
            _tidy_run(folder / f"{name[1]}.lock", files if run in excess else (), plain if compress else ())


def _tidy_run(lock: Path, to_remove: Iterable[Path], to_compress: Iterable[Path]) -> None:
    """Removes or compresses the files of one run, unless it is in progress."""
    with contextlib.suppress(OSError), held(lock) as mine:
        if mine is None:
            return
        removed = list(to_remove)
        for path in removed:
            path.unlink(missing_ok=True)
        for path in to_compress:
            if path not in removed:
                path.with_name(f"{path.name}.gz.tmp").unlink(missing_ok=True)
                _compress(path)
        lock.unlink(missing_ok=True)
        if removed:
            logger.debug("removed the log files of an old run: %s", ", ".join(path.name for path in removed))


def _compress(path: Path) -> None:
    """Puts `path`.gz in the place of the file; if that fails the file stays as it is."""
    packed, temporary = path.with_name(f"{path.name}.gz"), path.with_name(f"{path.name}.gz.tmp")
    try:
        with path.open("rb") as source, temporary.open("wb") as target:
            with gzip.open(target, "wb") as stream:
                shutil.copyfileobj(source, stream)
            target.flush()
            os.fsync(target.fileno())
        temporary.replace(packed)
        path.unlink()
    except OSError as error:
        temporary.unlink(missing_ok=True)
        sys.stderr.write(f"warning: {path}: not compressed: {reason(error)}\n")


def read_events(path: Path | str) -> list[dict[str, Any]]:
    """What happened in a run, in order, also while it is still in progress.

    Args:
        path: its .jsonl or .jsonl.gz file.

    Raises:
        DataError: a line that is no JSON object, with its number. The last line may be one: that is what a run that
            was killed, or a disk that was full, leaves; it is passed over with a warning.
    """
    path = Path(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            lines = file.read().split(b"\n")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({reason(error)})") from error
    while lines and not lines[-1].strip():
        lines.pop()
    events = []
    for number, line in enumerate(lines, start=1):
        try:
            events.append(_event(line))
        except (ValueError, RecursionError) as error:
            if number < len(lines):
                raise DataError(
                    f"{path}:{number}: not an event ({show(str(error))[1:-1]}); the log is damaged"
                ) from error
            logger.warning("%s:%d: the last line was cut short, and is passed over", path, number)
    return events


def _event(line: bytes) -> dict[str, Any]:
    value = json.loads(line.decode("utf-8"))
    if not isinstance(value, dict) or not isinstance(value.get("event"), str):
        raise ValueError("it is no object with an event")
    return value
