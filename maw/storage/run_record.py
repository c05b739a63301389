"""The record of an unfinished run: run.json in the folder `state` of its `log_dir`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from maw.errors import ConfigError, MAWError
from maw.storage.checksummed import read_signed

STATE, RUN = "state", "run.json"
VERSION = 2
"""Of what `state` holds; higher by one when its files or the package's modules change so that no older run goes on."""


def read_run(log_dir: Path) -> dict[str, Any]:
    """How the unfinished run in a folder was started.

    Raises:
        ConfigError: there is none, or its record is damaged or of another version.
    """
    path = log_dir / STATE / RUN
    if not path.is_file():
        raise ConfigError([f"--resume {log_dir}: there is no unfinished run in this folder (no {path})"])
    try:
        record = read_signed(path)
    except MAWError as error:
        raise ConfigError([f"--resume {log_dir}: {error}; the run cannot go on"]) from error
    if record.get("version") != VERSION or not isinstance(record.get("config"), dict):
        text = f"{path} was written by another version of this program, which alone can go on with the run"
        raise ConfigError([f"--resume {log_dir}: {text}; to give it up, start the run anew with --restart"])
    return record


def is_unfinished(log_dir: Path | str) -> bool:
    """Whether the folder holds a run that can go on."""
    return (Path(log_dir) / STATE / RUN).is_file()


def is_finished(log_dir: Path) -> bool:
    """Whether a run came to its end in the folder and none has begun since."""
    return (log_dir / "summary" / "all_results.json").is_file() and not is_unfinished(log_dir)
