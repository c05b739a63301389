"""Log files of a run: messages, events as JSON, their retention, and reading them back.

    logs/tier1/run_20250106_143022.log.gz      every message, with time and module
    logs/tier1/run_20250106_143022.jsonl.gz    one JSON object a line for each epoch, trial and result

    from maw.runtime.run_log import read_events
    losses = [each["train_loss"] for each in read_events(path) if each["event"] == "epoch"]

A run in progress holds a lock, `run_....lock`, which the system releases when its process ends. A run that starts
compresses the logs of killed runs, if logs are compressed, and removes the log files of the oldest runs beyond
`max_log_files`: only files of these names, directly in the log folder, and never those of a run in progress. Results
and checkpoints are never removed.
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
from datetime import datetime
from pathlib import Path
from typing import Any

from maw.errors import DataError, MAWError, reason, show
from maw.runtime.console import event_line, where
from maw.storage.locks import held

logger = logging.getLogger(__name__)

_RUN = re.compile(r"(run_(\d{8}_\d{6})(?:_(\d{1,3}))?)\.(?:log|jsonl)(?:\.gz)?", re.ASCII)
_MAX_PER_SECOND = 1000


def log_event(target: logging.Logger, event: str, **values: Any) -> None:
    """Logs an event, its kind in one word, with JSON-able values and the context of the run.

    It goes to the .jsonl file and to --json-progress, through `target`, the logger of the calling module.
    """
    target.debug("%s", event, extra={"event": {"event": event, **where(), **values}})


def warn_of_data(target: logging.Logger, warning: str) -> None:
    """Logs a warning that the dataset's results list too; on the console a quiet run shows it only there."""
    target.warning("%s", warning, extra={"in_results": True})


class LogFile(logging.FileHandler):
    """A log file. If the disk refuses it, it warns once and the run continues."""

    def __init__(self, path: Path):
        super().__init__(path, encoding="utf-8", errors="backslashreplace", delay=True)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self.failed = False

    def filter(self, record: logging.LogRecord) -> bool:
        return not hasattr(record, "event") and super().filter(record)

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one message; a refusing disk stops nothing."""
        try:
            super().emit(record)
        except OSError:  # from opening the file, which logging does not handle
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Warns once about a refusing disk; other errors are bugs."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self._fail(error)
        else:
            super().handleError(record)

    def close(self) -> None:
        """Closes the file; an error of the disk is only a warning."""
        try:
            super().close()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        if not self.failed:
            sys.stderr.write(f"warning: {self.baseFilename}: cannot be written ({reason(error)}); the run goes on\n")
        self.failed = True


class EventFile(LogFile):
    """The events of `log_event`, one JSON object a line; the first event creates the file."""

    def filter(self, record: logging.LogRecord) -> bool:
        return hasattr(record, "event") and logging.Filterer.filter(self, record)

    def format(self, record: logging.LogRecord) -> str:
        return event_line(vars(record)["event"], record.created)


class RunLogs:
    """Log files of a new run, and the lock that marks it as in progress.

    `keep` runs keep their log files, this one included; 0 keeps all. `compress` applies to the end of this run too.

    Raises:
        MAWError: the folder cannot be written.
    """

    def __init__(self, folder: Path, *, keep: int, compress: bool):
        self.compress = compress
        stamp = datetime.now().strftime("%Y%m%d_%H%M%S")
        self._stack = contextlib.ExitStack()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.log = self._new_log(folder, stamp)
            self.events = self.log.with_suffix(".jsonl")
            _tidy(folder, keep, compress, self.log.stem)
        except OSError as error:
            self._stack.close()
            raise MAWError(f"--log-dir {folder}: cannot be written to: {reason(error)}") from error

    def _new_log(self, folder: Path, stamp: str) -> Path:
        """Creates and locks an empty log file; a second run in the same second gets a number."""
        for number in range(1, _MAX_PER_SECOND):
            path = folder / f"run_{stamp}{f'_{number}' if number > 1 else ''}.log"
            if any(path.with_name(f"{path.stem}{suffix}").exists() for suffix in (".log", ".log.gz", ".jsonl.gz")):
                continue
            if self._stack.enter_context(held(path.with_suffix(".lock"))) is None:
                continue  # another run holds this lock and has not created its file yet
            path.touch(exist_ok=False)
            return path
        raise MAWError(f"--log-dir {folder}: holds too many logs of {stamp}")

    def finish(self) -> None:
        """Compresses the files, if wanted, and releases the lock."""
        for path in (self.log, self.events):
            if self.compress and path.exists():
                _compress(path)
        self._stack.close()
        with contextlib.suppress(OSError):
            self.log.with_suffix(".lock").unlink(missing_ok=True)


def _tidy(folder: Path, keep: int, compress: bool, own: str) -> None:
    """Compresses and removes log files of earlier runs, as the module says."""
    runs: dict[tuple[str, int, str], list[Path]] = defaultdict(list)
    for path in folder.iterdir():
        match = _RUN.fullmatch(path.name)
        if match and match[1] != own and path.is_file() and not path.is_symlink():
            runs[match[2], int(match[3] or 1), match[1]].append(path)
    ordered = sorted(runs)
    excess = set(ordered[: max(0, len(ordered) + 1 - keep)] if keep else ())  # + 1: this run
    for run in ordered:
        plain = [path for path in runs[run] if path.suffix != ".gz"]
        if run in excess:
            _tidy_run(folder / f"{run[2]}.lock", to_remove=runs[run], to_compress=[])
        elif compress and plain:
            _tidy_run(folder / f"{run[2]}.lock", to_remove=[], to_compress=plain)


def _tidy_run(lock: Path, to_remove: list[Path], to_compress: list[Path]) -> None:
    """Removes or compresses files of one run, unless it is in progress."""
    with contextlib.suppress(OSError), held(lock) as mine:
        if mine is None:
            return
        for path in to_remove:
            path.unlink(missing_ok=True)
        for path in to_compress:
            _compress(path)
        lock.unlink(missing_ok=True)
        if to_remove:
            logger.debug("removed the log files of an old run: %s", ", ".join(path.name for path in to_remove))


def _compress(path: Path) -> None:
    """Replaces the file by `path`.gz; after an error the file stays as it is."""
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
    """Reads the events of a run in order, also while it is in progress.

    Args:
        path: its .jsonl or .jsonl.gz file.

    Raises:
        DataError: a line is no JSON object with an event; the message has its number. A bad last line, as a killed run
            or a full disk leaves it, is only a warning.

    Returns:
        One dictionary per event.
    """
    path = Path(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            lines = file.read().split(b"\n")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({reason(error)})") from error
    while lines and not lines[-1].strip():
        lines.pop()
    events: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            event = json.loads(line.decode("utf-8"))
            good = isinstance(event, dict) and isinstance(event.get("event"), str)
            problem = "" if good else 'no JSON object with "event"'
        except (ValueError, RecursionError) as error:
            problem = show(reason(error))[1:-1]
        if not problem:
            events.append(event)
        elif number < len(lines):
            raise DataError(f"{path}:{number}: not an event ({problem}); the log is damaged")
        else:
            logger.warning("%s:%d: the last line is incomplete and is skipped", path, number)
    return events
