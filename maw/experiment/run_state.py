"""What an unfinished run needs to go on: how it was started, and what of it is done.

    python tier_1.py --resume logs/tier1        # or last: the unfinished run under logs/ that was at work last

A run's folder is its `log_dir`. While the run is unfinished it holds

    state/run.json          settings, hashes of the code, libraries, number format; written before anything is computed
    state/model.json        hash of the model's weights and of all else that decides its output
    state/01/               of the first dataset: hashes of its data, which activations were stored, and each arm's
                            finished runs and trials (`maw.experiment.dataset_state`)
    checkpoints/*_latest    the training in progress (`maw.training.checkpoint_writer`)

and when the run has finished `state` is removed. To go on with other settings, code, libraries, weights or data would
mix two experiments in one result: it is refused, with every difference. Settings in `RESULT_NEUTRAL` change no result.

This module loads nothing heavy, so that a wrong --resume is answered at once.
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

from maw.config.methods import trained_methods
from maw.config.tier1_config import RESULT_NEUTRAL, Tier1Config
from maw.errors import ConfigError, DamagedError, MAWError
from maw.runtime import distributed
from maw.storage.checksummed import clear_temporaries, read_signed, write_signed
from maw.storage.files import sha256
from maw.storage.locks import is_held
from maw.storage.run_record import CHECKPOINT, CHECKPOINTS, LATEST, RUN, STATE, VERSION, read_run

LAST = "last"
_LIBRARIES = (
    "torch",
    "transformers",
    "tokenizers",
    "peft",
    "numpy",
    "scipy",
    "statsmodels",
    "pytrec-eval-terrier",
    "faiss-cpu",
    "faiss-gpu",
)
_LONGEST = 60


class RunState:
    """The state of one unfinished run.

    Args:
        log_dir: the run's folder.
        record: what run.json holds.
        resumed: whether the run goes on from what it had done before.
    """

    def __init__(self, log_dir: Path, record: Mapping[str, Any], resumed: bool):
        self.log_dir, self.folder = log_dir, log_dir / STATE
        self.record, self.resumed = record, resumed
        self.model_checked = False

    @property
    def id(self) -> str:
        """Tells the run from others in the same folder."""
        return self.record["id"]

    def dataset(self, number: int) -> Path:
        """Where the state of a dataset lies, from 1 in the order of the run."""
        return self.folder / f"{number:02d}"

    def record_or_compare(self, path: Path, what: str, found: Mapping[str, Any]) -> None:
        """Notes in a file what the run computes with, or compares it with what was noted when it started.

        Raises:
            ConfigError: it is not the same; one line for each difference.
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
        (self.folder / RUN).unlink(missing_ok=True)  # first, so that what a kill leaves is no run to go on with
        shutil.rmtree(self.folder, ignore_errors=True)


def open_run(config: Tier1Config, facts: Mapping[str, Any]) -> RunState:
    """Starts the state of a run, or takes up that of the run to resume; call it while the folder is locked.

    Of several processes the main one does, and the others read what it has written.

    Args:
        config: of the run; `resume` names the run to go on with.
        facts: JSON-able; what else to note of a new run.

    Raises:
        ConfigError: a run that cannot go on, with every difference; or a new one, where an unfinished one would be
            lost.
        MAWError: the folder cannot be written.
    """
    log_dir = Path(config.log_dir)
    if not distributed.is_main():
        return RunState(log_dir, _read_shared(log_dir), resumed=bool(config.resume))
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
        "config": config.to_dict() | {"restart": False},  # it is done, and going on does not ask for it again
        "code": code_hashes(),
        "libraries": _libraries(),
        "processes": distributed.this_process().count,
        **facts,
    }
    write_signed(log_dir / STATE / RUN, record)
    return RunState(log_dir, record, resumed=False)


def _read_shared(log_dir: Path) -> dict[str, Any]:
    """What the main process has written.

    Raises:
        MAWError: it is not there.
    """
    try:
        return read_run(log_dir)
    except ConfigError as error:
        text = "is not the folder that the main process sees; it must lie on a disk that all machines share"
        raise MAWError(f"--log-dir {log_dir}: {text}") from error


def find_run(text: str, log_dir: str | None = None) -> Path:
    """The folder that --resume names.

    Args:
        text: a run's folder, or last: of the unfinished runs that no process is at, the one that wrote last;
            those with work in them come first.
        log_dir: where to look for the last one, itself or in it; where runs lie by default, if not given.

    Raises:
        ConfigError: there is none.
    """
    if text != LAST:
        return Path(text)
    base = Path(log_dir) if log_dir else Path(Tier1Config.log_dir).parent
    folders = [base, *(sorted(base.iterdir()) if base.is_dir() else [])]
    found = [folder for folder in folders if (folder / STATE / RUN).is_file() and not is_held(folder)]
    if not found:
        raise ConfigError([f"--resume last: there is no unfinished run in {base} or in a folder of it"])
    begun = [folder for folder in found if _has_begun(folder)]  # one that failed at its start hides no other
    return max(begun or found, key=_last_written)


def changes(record: Mapping[str, Any], config: Tier1Config) -> list[str]:
    """What is not as it was when a run was started, of settings, code and libraries; one line each."""
    before, now = Tier1Config.from_dict(record["config"]).to_dict(), config.to_dict()
    settings = [name for name in now if name not in RESULT_NEUTRAL]
    found = differences({n: before[n] for n in settings}, {n: now[n] for n in settings}, "")
    if trained_methods(config):
        count = distributed.launched().count  # the command line asks before the processes are joined
        found += differences(record.get("processes", 1), count, "processes that train")
    found += differences(record["code"], code_hashes(), "code")
    return found + differences(record["libraries"], _libraries(), "libraries")


def differences(before: Any, now: Any, name: str) -> list[str]:
    """One line for each value that differs, named by its keys."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = sorted({*before, *now})
        return [line for key in keys for line in differences(before.get(key), now.get(key), f"{name} {key}".lstrip())]
    return [] if before == now else [f"  {name}: was {_short(before)}, is {_short(now)}"]


def code_hashes() -> dict[str, str]:
    """File -> the start of its SHA-256, of all modules of the package, in every room.

    Templates and style sheets (*.j2, *.html, *.css) are left out: reports are made with them after all is computed, so
    they change no result. `tier_1.py` is left out too: it starts a run and computes nothing.
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
    """Removes the state of an unfinished run, unless there is work in it that nobody has given up."""
    path, record = log_dir / STATE / RUN, None
    if path.is_file() and not restart:
        with contextlib.suppress(DamagedError):  # what is damaged cannot be gone on with
            record = read_signed(path)
    if record is not None and _has_work(log_dir, record["id"]):
        text = f"{log_dir}: holds an unfinished run, started {record['started']}, that this one would replace"
        way = f"--resume {log_dir} goes on with it; --restart gives it up; or choose another --log-dir"
        raise ConfigError([text, way])
    path.unlink(missing_ok=True)
    shutil.rmtree(log_dir / STATE, ignore_errors=True)


def _has_work(log_dir: Path, run: str) -> bool:
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


def _has_begun(log_dir: Path) -> bool:
    with contextlib.suppress(DamagedError, KeyError):
        return _has_work(log_dir, read_signed(log_dir / STATE / RUN)["id"])
    return False


def _written_by_runs(log_dir: Path) -> Iterator[Path]:
    """The folders in which an interrupted run may have left temporary files."""
    yield from (log_dir, log_dir / "summary")
    for result in log_dir.glob("*/dataset.json"):  # whose pictures come last
        yield from (result.parent, *result.parent.glob("*/"))
    for name in (STATE, CHECKPOINTS):
        yield log_dir / name
        for pattern in ("*/", "*/*/"):
            yield from (log_dir / name).glob(pattern)


def _last_written(log_dir: Path) -> int:
    paths = [*(log_dir / STATE).rglob("*"), *_latest_checkpoints(log_dir)]
    return max(path.stat().st_mtime_ns for path in paths)


def refusal(log_dir: Path) -> str:
    """The line above the differences."""
    return f"--resume {log_dir}: the run cannot go on, for not all is as it was when it started:"


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
