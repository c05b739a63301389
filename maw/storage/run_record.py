"""File names in a run's folder, and the record of an unfinished run, state/run.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from maw.errors import ConfigError, MAWError
from maw.storage.checksummed import read_signed

STATE, RUN = "state", "run.json"
CHECKPOINTS, CHECKPOINT = "checkpoints", "checkpoint.json"
BEST, LATEST = "best", "latest"  # how the names of checkpoint folders end
VERSION = 2
"""Version of the state files. Raise it when older runs can no longer be resumed."""


def read_run(log_dir: Path) -> dict[str, Any]:
    """The record of the unfinished run in a folder: its configuration, code, libraries.

    Raises:
        ConfigError: there is no unfinished run, or its record is damaged or of another version.
    """
    path = log_dir / STATE / RUN
    if not path.is_file():
        raise ConfigError([f"--resume {log_dir}: there is no unfinished run in this folder (no {path})"])
    try:
        record = read_signed(path)
    except MAWError as error:
        raise ConfigError([f"--resume {log_dir}: {error}; the run cannot go on"]) from error
    if record.get("version") != VERSION or not isinstance(record.get("config"), dict):
        text = (
            f"{path} was written by another version of this program; only the version that wrote it can resume the run"
        )
        raise ConfigError([f"--resume {log_dir}: {text}; to give it up, start the run anew with --restart"])
    return record


def is_unfinished(log_dir: Path | str) -> bool:
    """Whether the folder has a run that can be resumed."""
    return (Path(log_dir) / STATE / RUN).is_file()


def is_finished(log_dir: Path) -> bool:
    """Whether a run ended in the folder, and none has started since."""
    return (log_dir / "summary" / "all_results.json").is_file() and not is_unfinished(log_dir)
