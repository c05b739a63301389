"""State of an unfinished run, and the checks before it is resumed.

    python tier_1.py --resume logs/tier1        # or last: the unfinished run under logs/ that wrote last

A run's folder is its `log_dir`. Until the run has finished, the folder holds

    state/run.json          settings, hashes of the code, libraries, number format, and the comparisons on which the
                            run bases its claim; written before anything is computed
    state/model.json        hashes of the model's weights and of all else that decides its output
    state/01/               of the first dataset: hashes of its data, its activation log, finished trainings and trials
                            (`maw.experiment.dataset_state`)
    checkpoints/*_latest    the training in progress (`maw.training.checkpoint_writer`)

A run is not resumed with other settings, code, libraries, weights, data or, if a method is trained, number of
processes, since that would mix two experiments in one result; the error lists every difference. Settings in
`RESULT_NEUTRAL` may differ.

This module imports nothing heavy, so that a wrong --resume is answered at once.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterator, Mapping
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from maw.config.method_files import code_of
from maw.config.methods import claim, trained_methods
from maw.config.paths import expand_home, folders_of, found_again, identity, is_folder
from maw.config.tier1_config import RESULT_NEUTRAL, Tier1Config
from maw.errors import ConfigError, DamagedError, MAWError
from maw.runtime import distributed
from maw.storage.checksummed import clear_temporaries, read_signed, write_signed
from maw.storage.files import sha256
from maw.storage.locks import is_held
from maw.storage.run_record import CHECKPOINT, CHECKPOINTS, LATEST, RUN, STATE, VERSION, read_run

LAST = "last"
_LIBRARIES = (
    *("torch", "transformers", "tokenizers", "peft", "numpy", "scipy", "statsmodels", "pytrec-eval-terrier"),
    *("faiss-cpu", "faiss-gpu"),
)
_LONGEST = 60


class RunState:
    """The state of an unfinished run: its folder, the content of run.json, and whether it was interrupted before."""

    def __init__(self, log_dir: Path, record: Mapping[str, Any], resumed: bool):
        self.log_dir, self.folder = log_dir, log_dir / STATE
        self.record, self.resumed = record, resumed
        self.model_checked = False

    @property
    def id(self) -> str:
        """Unique id of the run."""
        return self.record["id"]

    def dataset(self, number: int) -> Path:
        """The folder of a dataset's state; `number` counts from 1 in the order of the run."""
        return self.folder / f"{number:02d}"

    def record_or_compare(self, path: Path, what: str, found: Mapping[str, Any]) -> None:
        """Saves facts when a run starts, and compares them with those saved when it is resumed.

        Raises:
            ConfigError: the facts have changed; one line for each difference.
        """
        if not path.is_file():
            write_signed(path, {"found": found})
            return
        changed = differences(read_signed(path)["found"], found, what)
        if changed:
            raise ConfigError([refusal(self.log_dir), *changed])

    @distributed.main_only
    def finish(self) -> None:
        """Removes the state: the run has finished."""
        (self.folder / RUN).unlink(missing_ok=True)  # first, so that a kill here leaves no resumable run
        shutil.rmtree(self.folder, ignore_errors=True)


def open_run(config: Tier1Config, facts: Mapping[str, Any]) -> RunState:
    """Creates the state of a new run, or opens that of the run to resume; the folder must be locked.

    With several processes, the main one writes the state and the others read it.

    Args:
        config: the run's configuration; `resume` names the run to resume.
        facts: more JSON-able facts to save with a new run.

    Raises:
        ConfigError: the run to resume has changed, with every difference; or a new run would overwrite an unfinished
            one.
        MAWError: the folder cannot be written.
    """
    log_dir = Path(config.log_dir)
    if not distributed.is_main():
        try:
            return RunState(log_dir, read_run(log_dir), resumed=bool(config.resume))
        except ConfigError as error:
            text = "is not the folder that the main process writes; it must be on a disk that all machines share"
            raise MAWError(f"--log-dir {log_dir}: {text}") from error
    for folder in _written_by_runs(log_dir):
        clear_temporaries(folder)
    if config.resume:
        record = read_run(log_dir)
        problems = changes(record, config)
        if problems:
            raise ConfigError([refusal(log_dir), *problems])
        return RunState(log_dir, record, resumed=True)
    _make_way(log_dir, config.restart)
    record = {
        "version": VERSION,
        "id": secrets.token_hex(8),
        "started": datetime.now().isoformat(sep=" ", timespec="seconds"),
        "config": config.to_dict() | {"restart": False},  # done once, not again when the run is resumed
        "code": code_hashes() | code_of(config.methods),
        "claim": claim(config),
        "libraries": _libraries(),
        "processes": distributed.this_process().count,
        **facts,
    }
    write_signed(log_dir / STATE / RUN, record)
    return RunState(log_dir, record, resumed=False)


def find_run(text: str, log_dir: str | None = None) -> Path:
    """The folder that --resume names.

    Args:
        text: a run's folder; or "last", the unfinished run without a process that wrote last, if possible one with
            finished parts.
        log_dir: where to look for "last": this folder and those in it; the default parent of runs if None.

    Raises:
        ConfigError: there is no such run.
    """
    if text != LAST:
        return Path(expand_home(text))
    base = Path(expand_home(log_dir)) if log_dir else Path(Tier1Config.log_dir).parent
    folders = [base, *(sorted(base.iterdir()) if base.is_dir() else [])]
    found = [folder for folder in folders if (folder / STATE / RUN).is_file() and not is_held(folder)]
    if not found:
        raise ConfigError([f"--resume last: there is no unfinished run in {base} or in a folder of it"])
    begun = []  # a run that failed at its start must not hide an earlier one
    for folder in found:
        with contextlib.suppress(DamagedError, KeyError):
            if _has_work(folder, read_signed(folder / STATE / RUN)["id"]):
                begun.append(folder)
    return max(begun or found, key=_last_written)


def changes(record: Mapping[str, Any], config: Tier1Config) -> list[str]:
    """Settings, code and libraries that have changed since the run was started; one line each."""
    now = identity(config.to_dict())
    settings = found_again(record["config"], Path(config.log_dir), filter(is_folder, folders_of(now)))
    before = identity(Tier1Config.from_dict(settings).to_dict())
    settings = [name for name in now if name not in RESULT_NEUTRAL]
    found = differences({n: before[n] for n in settings}, {n: now[n] for n in settings}, "")
    if trained_methods(config):
        count = distributed.launched().count  # the command line asks before the processes are connected
        found += differences(record.get("processes", 1), count, "processes that train")
    try:
        code = code_hashes() | code_of(config.methods)
    except ConfigError as error:
        return [*found, *(f"  {problem}" for problem in error.problems)]
    found += differences(record["code"], code, "code")
    return found + differences(record["libraries"], _libraries(), "libraries")


def differences(before: Any, now: Any, name: str) -> list[str]:
    """One line for each value that differs, with its keys."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = sorted({*before, *now})
        return [line for key in keys for line in differences(before.get(key), now.get(key), f"{name} {key}".lstrip())]
    return [] if before == now else [f"  {name}: was {_short(before)}, is {_short(now)}"]


def code_hashes() -> dict[str, str]:
    """File -> first 16 digits of its SHA-256, for all modules of the package.

    Templates and style sheets (*.j2, *.html, *.css) are left out: they only lay out reports and change no result.
    `tier_1.py` is left out too: it starts a run and computes nothing.
    """
    package = Path(__file__).parents[1]
    return {path.relative_to(package.parent).as_posix(): sha256(path)[:16] for path in sorted(package.rglob("*.py"))}


def _libraries() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _make_way(log_dir: Path, restart: bool) -> None:
    """Removes the state of an unfinished run; refuses if it has finished parts and --restart is not given."""
    path, record = log_dir / STATE / RUN, None
    if path.is_file() and not restart:
        with contextlib.suppress(DamagedError):  # a damaged run cannot be resumed
            record = read_signed(path)
    if record is not None and _has_work(log_dir, record["id"]):
        text = f"{log_dir}: holds an unfinished run, started {record['started']}, that this one would replace"
        way = f"--resume {log_dir} continues it; --restart discards it; or choose another --log-dir"
        raise ConfigError([text, way])
    path.unlink(missing_ok=True)
    shutil.rmtree(log_dir / STATE, ignore_errors=True)


def _has_work(log_dir: Path, run: str) -> bool:
    """Whether an unfinished run has a finished training or trial, or a checkpoint."""
    state = log_dir / STATE
    runs = (path for path in state.glob("*/*/record.json") if path.parent.name != "activations")
    if any(runs) or any(state.glob("*/trials_*.json")):
        return True
    for path in (*_latest_checkpoints(log_dir), *state.glob(f"*/trial_{LATEST}/{CHECKPOINT}")):
        with contextlib.suppress(DamagedError, AttributeError):
            if (read_signed(path).get("run") or {}).get("id") == run:
                return True
    return False


def _latest_checkpoints(log_dir: Path) -> Iterator[Path]:
    return (log_dir / CHECKPOINTS).glob(f"*_{LATEST}/{CHECKPOINT}")


def _written_by_runs(log_dir: Path) -> Iterator[Path]:
    """Folders in which an interrupted run may have left temporary files."""
    yield from (log_dir, log_dir / "summary")
    for result in log_dir.glob("*/dataset.json"):  # its figures are written last
        yield from (result.parent, *result.parent.glob("*/"))
    for name in (STATE, CHECKPOINTS):
        yield log_dir / name
        for pattern in ("*/", "*/*/"):
            yield from (log_dir / name).glob(pattern)


def _last_written(log_dir: Path) -> int:
    paths = [*(log_dir / STATE).rglob("*"), *_latest_checkpoints(log_dir)]
    return max(path.stat().st_mtime_ns for path in paths)


def refusal(log_dir: Path) -> str:
    """The error line above the differences."""
    return f"--resume {log_dir}: the run cannot continue, since these have changed since it started:"


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
