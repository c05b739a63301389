"""Runs zero-shot, LoRA and MAW retrieval over the datasets, and is the module that notebooks import.

    python tier_1.py --preset offline            # no network: a packaged model, Python's own library as the data
    python tier_1.py --datasets beir:path/to/scifact --maw-layers 11,12 --num-epochs 5
    python tier_1.py --dry-run                   # what a run would download, store and encode, and how long it takes
    python tier_1.py export | search | doctor    # what else there is, see `maw.commands`; each has its own --help

    from tier_1 import Tier1Config, run_complete_benchmark
    results = run_complete_benchmark(Tier1Config.from_preset("offline"))

Importing this module loads neither torch nor a model: each public name is fetched when it is first used. Exit codes:
0 done, 1 something the user can mend, 2 a wrong configuration, 130 interrupted.
"""

from __future__ import annotations

import gzip
import importlib
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maw.errors import ConfigError, MAWError

if TYPE_CHECKING:
    from maw.config import Tier1Config

_HOMES = {
    "Tier1Config": "maw.config",
    "run_complete_benchmark": "maw.benchmark",
    "train_retriever": "maw.training",
    "evaluate_retriever": "maw.evaluation",
    "BaselineRetriever": "maw.retriever",
    "MAWRetriever": "maw.retriever",
    "NonMAWEncoder": "maw.encoder",
    "MAWWithGRPOEncoder": "maw.encoder",
    "MAWAttentionLayer": "maw.attention",
    "GRPORouter": "maw.routing",
    "load_checkpoint": "maw.checkpoint",
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
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except ConfigError as error:
        sys.stderr.writelines(f"{problem}\n" for problem in ("tier_1.py: cannot run:", *error.problems))
        return 2
    except MAWError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted; every file written so far is whole\n")
        return 130


def _run(argv: Sequence[str]) -> int:
    from maw.commands import COMMANDS, run_command

    if argv and argv[0] in COMMANDS:
        return run_command(argv)
    from maw.flags import parse_command_line

    config = parse_command_line(argv)
    with _logging_to(config):
        try:
            from maw.benchmark import run_complete_benchmark

            run_complete_benchmark(config)
        except MAWError as error:
            logger.debug("stopped: %s", error)  # the console gets it from `main`
            raise
        except KeyboardInterrupt:
            logger.debug("interrupted")
            raise
    return 0


class ConsoleHandler(logging.Handler):
    """Writes messages as plain lines to standard error, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one message; a warning or an error says that it is one."""
        from tqdm import tqdm

        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        try:
            tqdm.write(level + self.format(record), file=sys.stderr)
        except (OSError, ValueError):  # a closed pipe or stream
            self.handleError(record)


@contextmanager
def _logging_to(config: Tier1Config) -> Iterator[Path]:
    """Sends the package's messages to the console and, with time and place, to a file in `log_dir`.

    Raises:
        MAWError: the log file cannot be made.
    """
    path = _new_log_file(Path(config.log_dir))
    console, file = ConsoleHandler(logging.INFO), logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    warned = logging.getLogger("py.warnings")
    logging.captureWarnings(True)
    logger.setLevel(logging.DEBUG)
    handlers = [(logger, console), (logger, file), (warned, file)]
    for target, handler in handlers:
        target.addHandler(handler)
    try:
        yield path
    finally:
        for target, handler in handlers:
            target.removeHandler(handler)
        logging.captureWarnings(False)
        file.close()
        if config.compress_logs:
            _compress(path)


def _new_log_file(folder: Path) -> Path:
    """An empty log file of this moment's name; a second run in the same second gets a number."""
    stamp = datetime.now().strftime("%Y%m%d_%H%M%S")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(1, 1000):
            path = folder / f"run_{stamp}{f'_{number}' if number > 1 else ''}.log"
            try:
                path.touch(exist_ok=False)
            except FileExistsError:
                continue
            return path
    except OSError as error:
        raise MAWError(f"--log-dir {folder}: cannot be written to: {error.strerror}") from error
    raise MAWError(f"--log-dir {folder}: holds too many logs of {stamp}")


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
        sys.stderr.write(f"warning: {path}: not compressed: {error.strerror}\n")


if __name__ == "__main__":
    sys.exit(main())
