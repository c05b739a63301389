"""Runs zero-shot, LoRA and MAW retrieval over the datasets; notebooks import this module.

    python tier_1.py --preset offline            # no network: a packaged model, Python's own library as the data
    python tier_1.py --datasets beir:path/to/scifact --maw-layers 11,12 --num-epochs 5
    python tier_1.py --dry-run                   # shows what a run downloads, stores and encodes, and its time
    python tier_1.py --resume last               # continues an interrupted run, to the same results
    python tier_1.py report | compare | search | export | doctor     # other commands, see `maw.cli.commands`

    from tier_1 import Tier1Config, run_complete_benchmark
    results = run_complete_benchmark(Tier1Config.from_preset("offline"))

Importing this module imports neither torch nor a model: each public name is imported at its first use.

Exit codes of runs and commands:

    0      success
    1      any other error that the user can correct: damaged files, a full disk, runs that cannot be compared, a
           problem that `doctor` found
    2      a wrong command line, and nothing was started: an unknown flag or value, or a folder, model, dataset,
           method or seed that does not exist
    130    stopped by Ctrl-C (SIGINT), after saving
    141    the reader of standard output has closed it
    143    stopped by SIGTERM, after saving

SIGUSR1 saves and the run continues.
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
    """Imports a public name's module at its first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and runs the benchmark or a command.

    Args:
        argv: words after the program's name; default: those of this process.

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
        except BrokenPipeError:  # the reader of standard output has closed it, as `head` does
            code = 141
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        console.end(code, *lines)
    return code


def _run(argv: Sequence[str]) -> int:
    from maw.cli.commands import COMMANDS, run_command
    from maw.runtime import console, distributed

    process = distributed.launched()
    console.silence_libraries()
    if argv and argv[0] in COMMANDS:
        return run_command(argv) if process.rank == 0 else 0
    from maw.cli.flags import parse_command_line
    from maw.config.tier1_config import absolute_paths

    config = absolute_paths(parse_command_line(argv))
    console.configure(quiet=config.quiet, json_progress=config.json_progress)
    console.silence_libraries()
    with distributed.session(config.device), _run_folder_locked(config), _logging_to_files(config):
        try:
            from maw.experiment.benchmark import run_complete_benchmark

            run_complete_benchmark(config)
        except MAWError as error:
            logger.debug("stopped: %s", error)  # `main` writes it to the console
            raise
        except OutputClosedError:
            logger.debug("stopped: the reader of standard output has closed it")
            raise
        except (OSError, MemoryError, RuntimeError) as error:
            refusal = _system_refusal(error)
            if refusal is None:
                raise
            logger.debug("stopped: %s", refusal, exc_info=True)
            raise refusal from error
        except KeyboardInterrupt:
            logger.debug("interrupted")
            raise
    return 0


def _system_refusal(error: Exception) -> MAWError | None:
    """The one-line error for a refusal of the system, such as a full disk; None for a bug."""
    from maw.errors import reason

    if is_out_of_memory(error):
        return MAWError(f"out of memory ({reason(error)[:200]}); free memory, or see --dry-run for what a run needs")
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        return MAWError(f"{where}{reason(error)}; files written so far are whole")
    return None


@contextmanager
def _run_folder_locked(config: Tier1Config) -> Iterator[None]:
    """Locks the run's folder before slow imports, and tells a stopped run how to resume.

    Raises:
        MAWError: another run uses the folder.
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
                interrupt.add_note(f"; finished work is saved, and {command} continues the run")
            raise


@contextmanager
def _logging_to_files(config: Tier1Config) -> Iterator[None]:
    """Sends the package's log messages to the console and to files in `log_dir` (`maw.runtime.run_log`).

    A dry run, and all processes but the main one, log to the console only; the latter only errors.

    Raises:
        MAWError: the log file cannot be created.
    """
    from maw.runtime import distributed
    from maw.runtime.console import ConsoleHandler
    from maw.runtime.run_log import EventFile, LogFile, RunLogs

    level = logging.INFO if distributed.is_main() else logging.ERROR
    handlers: list[tuple[logging.Logger, logging.Handler]] = [(logger, ConsoleHandler(level))]
    files = None
    if distributed.is_main() and not config.dry_run:
        files = RunLogs(Path(config.log_dir), keep=config.max_log_files, compress=config.compress_logs)
        file, level = LogFile(files.log), logging.DEBUG
        handlers += [(logger, file), (logger, EventFile(files.events)), (logging.getLogger("py.warnings"), file)]
    logging.captureWarnings(True)
    logger.setLevel(level)
    for target, handler in handlers:
        target.addHandler(handler)
    try:
        yield
    finally:
        for target, handler in handlers:
            target.removeHandler(handler)
        logging.captureWarnings(False)
        for _, handler in handlers:
            handler.close()
        if files is not None:
            files.finish()


if __name__ == "__main__":
    sys.exit(main())
