"""Reports of a run, made from the files in its dataset folders: summary, tables, tests, figures.

    python tier_1.py report logs/tier1        # after an edit of this code, or if a file was lost

A run makes its reports in the same way, so the same files and code give the same bytes. No model,
collection or network is needed.

The folders of a run are those that `summary/all_results.json` names by dataset and time. Without that file they
are the newest folder of each dataset with the configuration of the newest one of all.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from maw.config.methods import methods_of
from maw.config.paths import identity
from maw.config.tier1_config import RESULT_NEUTRAL
from maw.errors import ConfigError, DataError, show, suggestion
from maw.evaluation import confirmatory, exploratory
from maw.evaluation.query_examples import ATTENTION
from maw.evaluation.query_examples import NAME as EXAMPLES
from maw.report import layout
from maw.report.figures import paper_figures, routing_plots
from maw.report.significance_marks import subject_in
from maw.storage.files import read_json

_NEEDED = ("dataset", "venue", "evaluated_at", "configuration", "results")


def write_reports(
    log_dir: Path | str,
    folders: Sequence[Path],
    *,
    drawn: Sequence[Path] = (),
    processes: int = 1,
    subject: str | None = None,
) -> Path:
    """Writes the figures into the dataset folders, and summary/ beside them; returns the summary's folder.

    Args:
        folders: of its finished datasets, in the order of the run.
        drawn: the folders whose figures are up to date.
        processes: number of processes that draw; more than one only if the program does nothing else.
        subject: the method that is compared with all others. If it is not the one that the run planned, the
            reports go to summary_SUBJECT/, the figures stay, and every test is exploratory.

    Raises:
        ConfigError: the run has no method `subject`.
        MAWError: a file cannot be read or written.
    """
    results = [read_result(folder) for folder in folders]
    known, place = [method.name for method in methods_of(*results)], "summary"  # enters those of users
    if subject is not None and subject not in known:
        text = f"{show(subject)} is no method of this run{suggestion(subject, known)}; it has {', '.join(known)}"
        raise ConfigError([f"--compare: {text}"])
    if subject is not None and subject != subject_in(results[0]):
        results, place, drawn = [exploratory.all_of(each, subject) for each in results], f"summary_{subject}", folders
    found, attention = (
        {
            result["dataset"]: read_json(folder / name)
            for folder, result in zip(folders, results, strict=True)
            if (folder / name).is_file()
        }
        for name in (EXAMPLES, ATTENTION)
    )
    to_draw = [
        (folder, result, attention.get(result["dataset"], {}))
        for folder, result in zip(folders, results, strict=True)
        if folder not in drawn
    ]
    with _in_background(_draw, to_draw, min(processes, len(to_draw))):
        done = len(results) == len(results[-1]["configuration"].get("datasets", results))
        family, explored = (each.over_run(results) if done else {} for each in (confirmatory, exploratory))
        return layout.write_summary(log_dir, results, family, explored, found, attention, name=place)


def _draw(folder: Path, result: Mapping[str, Any], attention: Mapping[str, Any]) -> None:
    routing_plots.write_routing_plots(folder, result)
    paper_figures.write_figures(folder, result, attention)


@contextlib.contextmanager
def _in_background(
    function: Callable[..., object], arguments: Sequence[tuple[Any, ...]], processes: int
) -> Iterator[None]:
    """Calls a function with each of the arguments, in other processes while the block runs, or here before it."""
    if processes < 2:
        for each in arguments:
            function(*each)
        yield
        return
    with ProcessPoolExecutor(processes, initializer=_follow_parent, initargs=(os.getpid(),)) as pool:
        try:
            calls = [pool.submit(function, *each) for each in arguments]
            yield
            for call in calls:
                call.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _follow_parent(parent: int) -> None:
    """Leaves Ctrl-C to the parent process, and ends this one when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent handles it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def find_folders(run_dir: Path | str) -> list[Path]:
    """The dataset folders of a run, in the order of the run.

    Raises:
        ConfigError: the folder does not exist or holds no results.
        MAWError: a result cannot be read, or the summary names one that is gone.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise ConfigError([f"{run_dir}: there is no such folder"])
    if (run_dir / "dataset.json").is_file() or run_dir.name == "summary":
        raise ConfigError([f"{run_dir}: is part of a run; give the run's folder, {run_dir.parent}"])
    found = {path.parent: read_result(path.parent) for path in sorted(run_dir.glob("*/dataset.json"))}
    if not found:
        raise ConfigError([f"{run_dir}: holds no results; give the --log-dir of a run, such as logs/tier1"])
    summary = run_dir / "summary" / "all_results.json"
    if summary.is_file():
        return [_named(found, name, each, summary) for name, each in read_json(summary).items()]
    newest = max(found.values(), key=lambda result: result["evaluated_at"])
    alike = [folder for folder, result in found.items() if _what_counts(result) == _what_counts(newest)]
    by_dataset = {
        found[folder]["dataset"]: folder for folder in sorted(alike, key=lambda each: found[each]["evaluated_at"])
    }
    return sorted(by_dataset.values(), key=lambda folder: found[folder]["evaluated_at"])


def _what_counts(result: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that can change a result; a resumed run may have changed the others."""
    return {name: value for name, value in identity(result["configuration"]).items() if name not in RESULT_NEUTRAL}


def _named(found: Mapping[Path, Mapping[str, Any]], name: str, result: Mapping[str, Any], summary: Path) -> Path:
    """The folder of a result that the summary names; of several from the same second, the one with its content."""
    same = [
        folder
        for folder, each in found.items()
        if each["dataset"] == name and each["evaluated_at"] == result.get("evaluated_at")
    ]
    if not same:
        raise DataError(
            f"{summary}: names results of {name}, evaluated {result.get('evaluated_at')}, but {summary.parent.parent} "
            "has no such folder; put it back, or delete the summary to use the folders that exist"
        )
    return max(same, key=lambda folder: (found[folder] == result, len(folder.name), folder.name))


def read_result(folder: Path) -> dict[str, Any]:
    """The content of a folder's dataset.json.

    Raises:
        MAWError: the file is missing or is not a dataset's result.
    """
    result = read_json(folder / "dataset.json")
    missing = [key for key in _NEEDED if not isinstance(result, dict) or key not in result]
    if missing:
        raise DataError(f"{folder / 'dataset.json'}: lacks {', '.join(missing)}; it is not a dataset's result")
    return result
