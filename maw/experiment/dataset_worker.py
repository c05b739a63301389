"""The worker process of one dataset, started by `maw.experiment.parallel_datasets`.

It reads its order from standard input, one line of JSON, and sends log records and output as lines of JSON. When its
input closes, the parent process is gone and no longer holds the lock on the run's folder, so the worker ends at once.
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
    """Sends messages to the parent process through a stream."""

    def __init__(self, stream: IO[str]):
        self._stream, self._lock = stream, threading.Lock()

    def say(self, **message: Any) -> None:
        """Sends one message as a line; numpy values become plain ones, other objects their text."""
        line = json.dumps(message, default=lambda each: each.tolist() if hasattr(each, "tolist") else str(each))
        with self._lock:
            self._stream.write(f"{line}\n")
            self._stream.flush()


class Shown(io.TextIOBase):
    """Replaces standard output: printed text is sent to the parent process when it is flushed."""

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
    """Replaces standard error: whole lines are sent to the parent process, for its console."""

    def __init__(self, voice: Voice):
        self._voice, self._held = voice, ""

    def write(self, words: str) -> int:
        *whole, self._held = (self._held + words).split("\n")
        for line in whole:
            self._voice.say(line=line)
        return len(words)


class Sender(logging.Handler):
    """Sends log records to the parent process, whose handlers write them."""

    def __init__(self, voice: Voice):
        super().__init__(logging.DEBUG)
        self._voice = voice

    def emit(self, record: logging.LogRecord) -> None:
        """Sends one record, with the traceback in its message."""
        known = {"name": record.name, "levelno": record.levelno, "levelname": record.levelname}
        known |= {"msg": self.format(record), "created": record.created, "msecs": record.msecs}
        known |= {name: getattr(record, name) for name in ("event", "in_results") if hasattr(record, name)}
        self._voice.say(log=known, where=console.where())


def main() -> int:
    """Runs the dataset of the order; returns the exit code."""
    voice = Voice(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)  # other writers to standard output go to standard error
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
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
        from maw.experiment.run_datasets import run_dataset_of

        config = Tier1Config.from_dict(order["config"])
        with console.configured(quiet=config.quiet, json_progress=config.json_progress):
            run_dataset_of(config, order["number"], resumed=order["resumed"])
    except KeyboardInterrupt:
        return 128 + 15
    except MAWError as error:
        voice.say(failed=str(error), problems=error.problems if isinstance(error, ConfigError) else [])
        return 1
    except Exception as error:  # noqa: BLE001 - the other datasets continue, and the parent reports this one
        if not is_out_of_memory(error):
            traceback.print_exc()
        voice.say(failed=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        return 1
    return 0


def _end_with_parent() -> None:
    sys.stdin.read()  # returns when the parent is gone
    os._exit(1)


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)
