"""Runs zero-shot, LoRA and MAW retrieval over the datasets, and is the module that notebooks import.

    python tier_1.py --preset offline            # no network: a packaged model, Python's own library as the data
    python tier_1.py --datasets beir:path/to/scifact --maw-layers 11,12 --num-epochs 5
    python tier_1.py --dry-run                   # what a run would download, store and encode, and how long it takes
    python tier_1.py --resume last               # goes on with a run that was interrupted, to the same results
    python tier_1.py report | compare | search | export | doctor     # what else there is, see `maw.cli.commands`

    from tier_1 import Tier1Config, run_complete_benchmark
    results = run_complete_benchmark(Tier1Config.from_preset("offline"))

Importing this module loads neither torch nor a model: each public name is fetched when it is first used.

Exit codes, of runs and commands: 0 done; 2 the command line is wrong, and nothing was begun (a flag or a value that is
none, or a folder, model, dataset, method or seed that it names and that is not there); 1 anything else that the user
can mend (damaged files, a full disk, runs that do not compare, a problem that `doctor` found); 130 stopped by Ctrl-C
(SIGINT) and 143 by SIGTERM, both after saving; 141 whoever read standard output has closed it. SIGUSR1 saves and goes
on.
"""

from __future__ import annotations

import importlib
import logging
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maw.errors import ConfigError, MAWError, OutputClosedError, is_out_of_memory

if TYPE_CHECKING:
    from maw.config.tier1_config import Tier1Config

_HOMES = {
    "Tier1Config": "maw.config.tier1_config",
    "run_complete_benchmark": "maw.experiment.benchmark",
    "train_retriever": "maw.training.train",
    "evaluate_retriever": "maw.evaluation.evaluate",
    "BaselineRetriever": "maw.models.retriever",
    "MAWRetriever": "maw.models.retriever",
    "NonMAWEncoder": "maw.models.encoder",
    "MAWWithGRPOEncoder": "maw.models.encoder",
    "MAWAttentionLayer": "maw.attention.layer",
    "GRPORouter": "maw.attention.routers",
    "load_checkpoint": "maw.training.checkpoint",
    "cleanup_checkpoints": "maw.training.checkpoint",
}
__all__ = list(_HOMES)

logger = logging.getLogger("maw")


def __getattr__(name: str) -> Any:
    """Imports a public name's module when the name is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and runs the benchmark.

    Args:
        argv: the words after the program's name; those of this process, if not given.

    Returns:
        The exit code.
    """
    from maw.runtime import distributed, signals

    with signals.handlers():
        return distributed.end_process(_main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    from maw.runtime import console
    from maw.runtime.signals import Stopped

    code, lines = 0, []
    with console.configured():
        try:
            code = _run(argv)
        except ConfigError as error:
            code, lines = 2, ["tier_1.py: cannot run:", *error.problems]
        except MAWError as error:
            code, lines = 1, [f"error: {error}"]
        except KeyboardInterrupt as interrupt:
            code, how = 130, "interrupted"
            if isinstance(interrupt, Stopped):
                code, how = interrupt.exit_code, f"stopped by {interrupt.name}"
            lines = [f"\n{how}{''.join(getattr(interrupt, '__notes__', ()))}"]
        except BrokenPipeError:  # whoever read standard output has seen enough, as `head` has
            code = 141
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        console.end(code, *lines)
    return code


def _run(argv: Sequence[str]) -> int:
    from maw.cli.commands import COMMANDS, run_command
    from maw.runtime import console, distributed

    place = distributed.launched()
    console.silence_libraries()
    if argv and argv[0] in COMMANDS:
        return run_command(argv) if place.rank == 0 else 0
    from maw.cli.flags import parse_command_line

    config = parse_command_line(argv)
    console.configure(quiet=config.quiet, json_progress=config.json_progress)
    console.silence_libraries()
    with distributed.session(config.device), _alone_in(config), _logging_to(config):
        try:
            from maw.experiment.benchmark import run_complete_benchmark

            run_complete_benchmark(config)
        except MAWError as error:
            logger.debug("stopped: %s", error)  # the console gets it from `main`
            raise
        except OutputClosedError:
            logger.debug("stopped: standard output was closed by whatever read it")
            raise
        except (OSError, MemoryError, RuntimeError) as error:
            translated = _translated(error)
            if translated is None:
                raise
            logger.debug("stopped: %s", translated, exc_info=True)
            raise translated from error
        except KeyboardInterrupt:
            logger.debug("interrupted")
            raise
    return 0


def _translated(error: Exception) -> MAWError | None:
    """What the system refuses, as one line; None for what is no more than a mistake in the program."""
    from maw.errors import reason

    if is_out_of_memory(error):
        return MAWError(f"out of memory ({reason(error)[:200]}); free some, or see --dry-run for what takes it")
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        return MAWError(f"{where}{reason(error)}; files written so far are whole")
    return None


@contextmanager
def _alone_in(config: Tier1Config) -> Iterator[None]:
    """Holds the run's folder, before anything heavy is loaded; notes how a run that is stopped there goes on.

    Raises:
        MAWError: another run is at work in the folder.
    """
    from maw.runtime import distributed

    if config.dry_run or not distributed.is_main():
        yield
        return
    from maw.storage.locks import run_lock
    from maw.storage.run_record import is_unfinished

    with run_lock(config.log_dir):
        try:
            yield
        except KeyboardInterrupt as interrupt:
            if is_unfinished(config.log_dir):
                command = f"python tier_1.py --resume {shlex.quote(config.log_dir)}"
                interrupt.add_note(f"; what is done is saved, and {command} goes on with it")
            raise


@contextmanager
def _logging_to(config: Tier1Config) -> Iterator[None]:
    """Sends the package's messages to the console and, with time and place, to files in `log_dir`
    (`maw.runtime.run_log`).

    Raises:
        MAWError: the log file cannot be made.
    """
    from maw.runtime import distributed
    from maw.runtime.console import ConsoleHandler
    from maw.runtime.run_log import EventFile, LogFile, RunLogs

    if not distributed.is_main():
        with _heard(logging.ERROR):
            yield
        return
    if config.dry_run:  # which leaves nothing behind
        with _heard(logging.INFO):
            yield
        return
    files = RunLogs(Path(config.log_dir), keep=config.max_log_files, compress=config.compress_logs)
    console, file, events = ConsoleHandler(logging.INFO), LogFile(files.log), EventFile(files.events)
    warned = logging.getLogger("py.warnings")
    logging.captureWarnings(True)
    logger.setLevel(logging.DEBUG)
    handlers = [(logger, console), (logger, file), (logger, events), (warned, file)]
    for target, handler in handlers:
        target.addHandler(handler)
    try:
        yield
    finally:
        for target, handler in handlers:
            target.removeHandler(handler)
        logging.captureWarnings(False)
        file.close()
        events.close()
        files.finish()


@contextmanager
def _heard(level: int) -> Iterator[None]:
    """Sends messages of that level or above to the console, and nothing to a file.

    Of the processes of a run all but one say what is wrong alone.
    """
    from maw.runtime.console import ConsoleHandler

    console = ConsoleHandler(level)
    logger.setLevel(level)
    logger.addHandler(console)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        logger.removeHandler(console)


if __name__ == "__main__":
    sys.exit(main())
