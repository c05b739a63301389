"""Datasets side by side: each in a process of its own, on GPUs or threads that no other one has.

    CUDA_VISIBLE_DEVICES=0,1,2,3 python tier_1.py --parallel-datasets         # four datasets, each on one GPU

The run's own process then computes nothing. It starts `maw.experiment.dataset_worker` for each dataset, as many at
once as there are shares of the machine, and the next one where one has ended. What they log comes to its console,
with the dataset's name in front, and to its log files, and so does how far they are; what they show is shown when the
dataset is done, so that reports do not mix.
Results go through the run's folder, as in a run that was interrupted. A dataset that fails keeps no other from ending.
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
"""Seconds between looks whether a signal asks for a save."""
STOPPED = (128 + signal.SIGTERM, -signal.SIGTERM)
"""Exit codes of a process that was asked to end, the second one before it could do so by itself."""
COMMAND = (sys.executable, "-P", "-m", "maw.experiment.dataset_worker")


@dataclass(frozen=True)
class Share:
    """A part of the machine.

    Attributes:
        environment: variables that keep a process to it.
        words: what it is, for people.
    """

    environment: dict[str, str]
    words: str


def shares(config: Tier1Config, device: torch.device) -> list[Share]:
    """The parts into which the run's GPUs, or threads, are divided for its datasets; one, if there is nothing to."""
    count = len(config.datasets)
    if device.type == "cuda" and device.index is None:
        groups = divided(_visible_gpus(), count)
        if not config.use_multi_gpu:
            groups = [group[:1] for group in groups]
        return [Share({"CUDA_VISIBLE_DEVICES": ",".join(group)}, _named("GPU", group)) for group in groups]
    if device.type == "cpu":
        groups = divided([str(number) for number in range(torch.get_num_threads())], count)
        return [Share({"OMP_NUM_THREADS": str(len(group))}, _counted(len(group), "thread")) for group in groups]
    return [Share({}, str(device))]


def divided(things: Sequence[str], count: int) -> list[list[str]]:
    """Things in at most `count` groups, none empty, of sizes that differ by one at most."""
    count = max(1, min(count, len(things)))
    bounds = [len(things) * number // count for number in range(count + 1)]
    return [list(things[start:stop]) for start, stop in pairwise(bounds)]


def _visible_gpus() -> list[str]:
    """The GPUs of this process as CUDA_VISIBLE_DEVICES names them."""
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(number) for number in range(count)]


def _named(kind: str, names: Sequence[str]) -> str:
    return f"{kind}{'s' * (len(names) != 1)} {', '.join(names)}"


def _counted(count: int, kind: str) -> str:
    return f"{count} {kind}{'s' * (count != 1)}"


def run_side_by_side(config: Tier1Config, state: RunState, parts: Sequence[Share]) -> dict[str, Any]:
    """All datasets of a run that are not done, each in a process of its own.

    Args:
        config: of the run, whose folder the caller holds.
        state: of the run.
        parts: of the machine, each for one dataset at a time.

    Returns:
        What dataset.json holds of each, by the dataset's name.

    Raises:
        MAWError: some failed, when the others are done.
        ConfigError: none could run with this configuration.
        Stopped: a signal asked for it; the datasets have saved what can be saved.
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
        console.show(f"\n{result['dataset']}: done before the run was interrupted")
    waiting = [number for number in states if number not in done]
    conductor = _Conductor(config, waiting, parts, state.resumed, write)
    failures = conductor.run()
    if failures and len(conductor.refused) == len(failures) and not done:
        raise ConfigError(list(dict.fromkeys(problem for each in conductor.refused for problem in each)))
    if failures:
        causes = "; ".join(f"{name}: {cause}" for name, cause in failures.items())
        again = f"--resume {shlex.quote(config.log_dir)} goes on with {'the rest' if done else 'them'}"
        others = "The others are done; " if done else ""
        raise MAWError(f"{len(failures)} of {len(states)} datasets failed. {causes}. {others}{again}")
    return {done[number]["dataset"]: done[number] for number in sorted(done)}


class _Process:
    """One dataset's process.

    Args:
        messages: gets (number, what it says), and (number, None) when it has ended.
    """

    def __init__(self, config: Tier1Config, number: int, share: Share, resumed: bool, messages: queue.Queue):
        self.number, self.share = number, share
        self.name = results_name(config.datasets[number - 1])
        self.shown: list[str] = []
        self.failure: str | None = None
        self.problems: list[str] = []  # of a configuration that cannot run
        self.ready = False  # for signals, which would end it before
        package = str(Path(__file__).parents[2])
        path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            COMMAND,
            env=os.environ | share.environment | {"PYTHONPATH": path, "TQDM_DISABLE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for the run's own process, which passes it on
        )
        order = {"config": config.to_dict(), "number": number, "resumed": resumed}
        try:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()  # and stays open: when it closes, this process is gone
        except BrokenPipeError:
            pass  # it has ended already, and that is noticed below
        threading.Thread(target=self._listen, args=(messages,), daemon=True).start()

    def _listen(self, messages: queue.Queue) -> None:
        for line in self.process.stdout:
            with contextlib.suppress(ValueError):  # the last line of one that was killed may be torn
                messages.put((self, json.loads(line)))
        self.process.wait()
        messages.put((self, None))

    def take(self, message: dict[str, Any]) -> None:
        """Passes on what the process says."""
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
        """Shows what was held back, and notes how the process ended."""
        if self.shown:
            console.show("".join(self.shown).rstrip("\n"))
        code = self.process.returncode
        if code and self.failure is None:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            self.failure = f"its process {how}"
        self.process.stdin.close()
        self.process.stdout.close()


class _Conductor:
    """The loop over the processes.

    Args:
        numbers: of the datasets to run, from 1.
        resumed: whether the run goes on from what it had done before.
        done: called when a dataset has ended well.
    """

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
        self.refused: list[list[str]] = []  # why those of the failures could not run whose configuration is at fault
        self.stopping = False

    def run(self) -> dict[str, str]:
        """Runs them; why it failed, for each one that did, by its name."""
        at_once = min(len(self.waiting), len(self.free))
        logger.info("%s side by side, %d at a time", _counted(len(self.waiting), "dataset"), at_once)
        try:
            with signals.held_back():
                while self.waiting or self.running:
                    signals.check()
                    while self.waiting and self.free:
                        self._start()
                    self._hear()
                    if signals.save_asked():
                        self._send(signal.SIGUSR1)
        except KeyboardInterrupt:
            self.stopping = True
            self._send(signal.SIGTERM)
            try:
                while self.running:
                    self._hear()
            except BaseException:  # in a notebook, where nothing else ends what is still at work
                self._send(signal.SIGKILL)
                raise
            raise
        except BaseException:
            self._send(signal.SIGKILL)
            raise
        return self.failures

    def _start(self) -> None:
        started = _Process(self.config, self.waiting.pop(0), self.free.pop(0), self.resumed, self.messages)
        self.running.append(started)
        logger.info("[%s] starts on %s", started.name, started.share.words)

    def _hear(self) -> None:
        """Takes in one message, if one comes soon."""
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
