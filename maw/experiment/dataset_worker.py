"""The process of one dataset, where a run has its datasets side by side (`maw.experiment.parallel_datasets`, which
starts it).

It reads its order, one line of JSON, and says what it logs and shows as lines of JSON. When its input closes the run's
own process is gone, and it ends at once: nobody holds the run's folder for it any more.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import threading
import traceback
from typing import IO, Any

from maw.errors import ConfigError, MAWError, is_out_of_memory
from maw.runtime import console, signals


class Voice:
    """Says things to the run's own process.

    Args:
        stream: where to.
    """

    def __init__(self, stream: IO[str]):
        self._stream, self._lock = stream, threading.Lock()

    def say(self, **message: Any) -> None:
        """One line."""
        line = json.dumps(message, default=_plain)
        with self._lock:
            self._stream.write(f"{line}\n")
            self._stream.flush()


def _plain(value: Any) -> Any:
    """numpy's numbers and arrays as Python's; anything else as its text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


class Shown(io.TextIOBase):
    """What stands for standard output: whatever is printed goes to the run's own process when it is flushed."""

    def __init__(self, voice: Voice):
        self._voice, self._held = voice, ""

    def write(self, words: str) -> int:
        self._held += words
        return len(words)

    def flush(self) -> None:
        if self._held:
            self._voice.say(show=self._held)
            self._held = ""


class Lines(io.TextIOBase):
    """What stands for standard error: whole lines go to the run's own process, whose console they are for."""

    def __init__(self, voice: Voice):
        self._voice, self._held = voice, ""

    def write(self, words: str) -> int:
        *whole, self._held = (self._held + words).split("\n")
        for line in whole:
            self._voice.say(line=line)
        return len(words)


class Sender(logging.Handler):
    """Sends log records to the run's own process, whose handlers see to them."""

    def __init__(self, voice: Voice):
        super().__init__(logging.DEBUG)
        self._voice = voice

    def emit(self, record: logging.LogRecord) -> None:
        """Sends one record, with its traceback in its message."""
        known = {"name": record.name, "levelno": record.levelno, "levelname": record.levelname}
        known |= {"msg": self.format(record), "created": record.created, "msecs": record.msecs}
        if hasattr(record, "event"):
            known["event"] = record.event
        self._voice.say(log=known, where=console.where())


def main() -> int:
    """Does what the order says; the exit code."""
    voice = Voice(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)  # what else writes to standard output is for people
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_run, daemon=True).start()
    logger, warned, sender = logging.getLogger("maw"), logging.getLogger("py.warnings"), Sender(voice)
    logger.setLevel(logging.DEBUG)
    for each in (logger, warned):
        each.addHandler(sender)
    logging.captureWarnings(True)
    with (
        signals.handlers(),
        contextlib.redirect_stdout(Shown(voice)) as shown,
        contextlib.redirect_stderr(Lines(voice)),
    ):
        voice.say(ready=True)  # for signals
        code = _run(order, voice)
        shown.flush()
    return code


def _run(order: dict[str, Any], voice: Voice) -> int:
    try:
        from maw.config.tier1_config import Tier1Config
        from maw.experiment.datasets import run_dataset_of

        config = Tier1Config.from_dict(order["config"])
        with console.configured(quiet=config.quiet, json_progress=config.json_progress):
            run_dataset_of(config, order["number"], resumed=order["resumed"])
    except KeyboardInterrupt:
        return 128 + 15
    except MAWError as error:
        voice.say(failed=str(error), problems=error.problems if isinstance(error, ConfigError) else [])
        return 1
    except Exception as error:  # noqa: BLE001 - the others go on, and the run says why this one did not
        if not is_out_of_memory(error):
            traceback.print_exc()
        voice.say(failed=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        return 1
    return 0


def _end_with_the_run() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)
