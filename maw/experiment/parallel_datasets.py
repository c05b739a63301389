"""Runs datasets in parallel: each in its own process, on its own GPUs or threads.

    CUDA_VISIBLE_DEVICES=0,1,2,3 python tier_1.py --parallel-datasets         # four datasets, each on one GPU

The parent process computes nothing. It starts `maw.experiment.dataset_worker` for each dataset, as many at once as
there are shares of the machine, and the next one when one ends. Log records and progress of the workers go to the
parent's console and log files, with the dataset's name in front. Reports are held back until the dataset is finished,
so that they do not mix. Results pass through the run's folder, as in a resumed run. If a dataset fails, the others
continue.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from maw.config.tier1_config import Tier1Config
from maw.data.dataset_table import results_name
from maw.errors import ConfigError, MAWError
from maw.experiment.dataset_state import DatasetState
from maw.experiment.run_state import RunState
from maw.report.rebuild import write_reports
from maw.runtime import console, signals

logger = logging.getLogger(__name__)

LOOK_EVERY = 0.5
"""Seconds between checks for signals."""
STOPPED = (128 + signal.SIGTERM, -signal.SIGTERM)
"""Exit codes of a worker after SIGTERM; the second one if it had no handler yet."""
COMMAND = (sys.executable, "-P", "-m", "maw.experiment.dataset_worker")


@dataclass(frozen=True)
class Share:
    """A part of the machine for one worker.

    Attributes:
        environment: environment variables that limit a process to it.
        words: its description in messages.
    """

    environment: dict[str, str]
    words: str


def shares(config: Tier1Config, device: torch.device) -> list[Share]:
    """Divides the run's GPUs or threads among its datasets; one share if they cannot be divided."""
    count = len(config.datasets)
    if device.type == "cuda" and device.index is None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
        groups = divided(names[: torch.cuda.device_count()], count)
        if not config.use_multi_gpu:
            groups = [group[:1] for group in groups]
        return [
            Share({"CUDA_VISIBLE_DEVICES": ",".join(group)}, f"GPU{'s' * (len(group) != 1)} {', '.join(group)}")
            for group in groups
        ]
    if device.type == "cpu":
        groups = divided([str(number) for number in range(torch.get_num_threads())], count)
        return [Share({"OMP_NUM_THREADS": str(len(group))}, _counted(len(group), "thread")) for group in groups]
    return [Share({}, str(device))]


def divided(things: Sequence[str], count: int) -> list[list[str]]:
    """At most `count` groups of things, none empty, with sizes that differ by at most one."""
    count = max(1, min(count, len(things)))
    bounds = [len(things) * number // count for number in range(count + 1)]
    return [list(things[start:stop]) for start, stop in pairwise(bounds)]


def _counted(count: int, kind: str) -> str:
    return f"{count} {kind}{'s' * (count != 1)}"


def run_side_by_side(config: Tier1Config, state: RunState, parts: Sequence[Share]) -> dict[str, Any]:
    """Runs all unfinished datasets of a run, each in its own process.

    Args:
        config: the run's configuration; the caller holds the lock on its folder.
        parts: shares of the machine, each for one dataset at a time.

    Returns:
        Dataset -> the content of its dataset.json.

    Raises:
        MAWError: a dataset failed; raised after the others have finished.
        ConfigError: no dataset can run with this configuration.
        Stopped: a signal stopped the run; the datasets have saved their state.
    """
    states = {number: DatasetState(state, number, config) for number in range(1, len(config.datasets) + 1)}
    done: dict[int, dict[str, Any]] = {}

    def write() -> None:
        before = [states[number].results_folder for number in done]
        done.update({n: found for n, each in states.items() if n not in done and (found := each.results())})
        if done:
            folders = [states[number].results_folder for number in sorted(done)]
            write_reports(config.log_dir, folders, drawn=before)

    write()
    for result in done.values():
        console.show(f"\n{result['dataset']}: finished before the run was interrupted")
    waiting = [number for number in states if number not in done]
    conductor = _Conductor(config, waiting, parts, state.resumed, write)
    failures = conductor.run()
    if failures and len(conductor.refused) == len(failures) and not done:
        raise ConfigError(list(dict.fromkeys(problem for each in conductor.refused for problem in each)))
    if failures:
        causes = "; ".join(f"{name}: {cause}" for name, cause in failures.items())
        again = f"--resume {shlex.quote(config.log_dir)} continues {'the rest' if done else 'them'}"
        others = "The others are finished; " if done else ""
        raise MAWError(f"{len(failures)} of {len(states)} datasets failed. {causes}. {others}{again}")
    return {done[number]["dataset"]: done[number] for number in sorted(done)}


class _Process:
    """The worker process of one dataset.

    It puts (itself, message) into `messages`, and (itself, None) when it has ended.
    """

    def __init__(self, config: Tier1Config, number: int, share: Share, resumed: bool, messages: queue.Queue):
        self.number, self.share = number, share
        self.name = results_name(config.datasets[number - 1])
        self.shown: list[str] = []
        self.failure: str | None = None
        self.problems: list[str] = []  # mistakes in the configuration
        self.ready = False  # for signals; before that they would kill it
        package = str(Path(__file__).parents[2])
        path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            COMMAND,
            env=os.environ | share.environment | {"PYTHONPATH": path, "TQDM_DISABLE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C reaches the parent only, which passes it on
        )
        order = {"config": config.to_dict(), "number": number, "resumed": resumed}
        try:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()  # it stays open: the worker ends when it closes
        except BrokenPipeError:
            pass  # it has ended already, which the thread below reports

        def listen() -> None:
            for line in self.process.stdout:
                with contextlib.suppress(ValueError):  # the last line of a killed process may be cut
                    messages.put((self, json.loads(line)))
            self.process.wait()
            messages.put((self, None))

        threading.Thread(target=listen, daemon=True).start()

    def take(self, message: dict[str, Any]) -> None:
        """Handles one message of the process."""
        if "show" in message:
            self.shown.append(message["show"])
        elif "line" in message:
            console.write_line(message["line"])
        elif "ready" in message:
            self.ready = True
        elif "failed" in message:
            self.failure, self.problems = message["failed"], message["problems"]
        else:
            record = logging.makeLogRecord(message["log"])
            record.msg = f"[{self.name}] {record.msg}"
            with console.at(**message["where"]):
                logger_of_it = logging.getLogger(record.name)
                if logger_of_it.isEnabledFor(record.levelno):
                    logger_of_it.handle(record)

    def end(self) -> None:
        """Shows the held back output, and records how the process ended."""
        if self.shown:
            console.show("".join(self.shown).rstrip("\n"))
        code = self.process.returncode
        if code and self.failure is None:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            self.failure = f"its process {how}"
        self.process.stdin.close()
        self.process.stdout.close()


class _Conductor:
    """Starts the workers and handles their messages; calls `done` when a dataset has finished."""

    def __init__(
        self,
        config: Tier1Config,
        numbers: Sequence[int],
        parts: Sequence[Share],
        resumed: bool,
        done: Callable[[], None],
    ):
        self.config, self.resumed, self.done = config, resumed, done
        self.waiting, self.free = list(numbers), list(parts)
        self.running: list[_Process] = []
        self.messages: queue.Queue[tuple[_Process, dict[str, Any] | None]] = queue.Queue()
        self.failures: dict[str, str] = {}
        self.refused: list[list[str]] = []  # problems of the failures due to the configuration
        self.stopping = False

    def run(self) -> dict[str, str]:
        """Runs all workers; returns dataset -> cause for those that failed."""
        at_once = min(len(self.waiting), len(self.free))
        logger.info("%s in parallel, %d at a time", _counted(len(self.waiting), "dataset"), at_once)
        try:
            with signals.held_back():
                while self.waiting or self.running:
                    signals.check()
                    while self.waiting and self.free:
                        number, share = self.waiting.pop(0), self.free.pop(0)
                        self.running.append(_Process(self.config, number, share, self.resumed, self.messages))
                        logger.info("[%s] starts on %s", self.running[-1].name, share.words)
                    self._receive()
                    if signals.save_asked():
                        self._send(signal.SIGUSR1)
        except KeyboardInterrupt:
            self.stopping = True
            self._send(signal.SIGTERM)
            try:
                while self.running:
                    self._receive()
            except BaseException:  # in a notebook nothing else ends the workers
                self._send(signal.SIGKILL)
                raise
            raise
        except BaseException:
            self._send(signal.SIGKILL)
            raise
        return self.failures

    def _receive(self) -> None:
        """Handles one message, if one comes within `LOOK_EVERY` seconds."""
        try:
            process, message = self.messages.get(timeout=LOOK_EVERY)
        except queue.Empty:
            return
        if message is not None:
            process.take(message)
            return
        process.end()
        self.running.remove(process)
        self.free.append(process.share)
        if process.failure is None:
            self.done()
        elif self.stopping and process.process.returncode in STOPPED:
            logger.info("[%s] stopped", process.name)
        else:
            self.failures[process.name] = process.failure
            self.refused += [process.problems] if process.problems else []
            logger.error("[%s] failed: %s", process.name, process.failure)

    def _send(self, number: int) -> None:
        for each in self.running:
            if each.ready or number != signal.SIGUSR1:
                each.process.send_signal(number)
