"""Every report of a run from the files in its dataset folders: the summary, the table, the tests, the pictures.

    python tier_1.py report logs/tier1        # after an edit of this code, or where a file was lost

A run makes its reports in this way too, so that they come out byte for byte the same later, as long as neither the
files nor the code have changed. No model, no collection and no network is needed.

Which folders belong together: those that `summary/all_results.json` names, by dataset and time. Without that file, the
newest folder of each dataset with the configuration of the newest of all.
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

from maw.config.tier1_config import RESULT_NEUTRAL
from maw.errors import ConfigError, DataError
from maw.evaluation import confirmatory, exploratory
from maw.evaluation.query_examples import ATTENTION
from maw.evaluation.query_examples import NAME as EXAMPLES
from maw.report import layout
from maw.report.figures import paper_figures, routing_plots
from maw.storage.files import read_json

_NEEDED = ("dataset", "venue", "evaluated_at", "configuration", "results")


def write_reports(
    log_dir: Path | str, folders: Sequence[Path], *, drawn: Sequence[Path] = (), processes: int = 1
) -> Path:
    """Writes the pictures into the dataset folders, and summary/ beside them.

    Args:
        log_dir: folder of the run.
        folders: of its datasets, in the order of the run, as far as they are done.
        drawn: those of them whose pictures are as they would be written.
        processes: that draw, a dataset each at a time; more than one only where the program does nothing else.

    Returns:
        The summary's folder.

    Raises:
        MAWError: a file that cannot be read or written.
    """
    results = [read_result(folder) for folder in folders]
    found, attention = (_beside(name, folders, results) for name in (EXAMPLES, ATTENTION))
    to_draw = [
        (folder, result, attention.get(result["dataset"], {}))
        for folder, result in zip(folders, results, strict=True)
        if folder not in drawn
    ]
    with _elsewhere(_draw, to_draw, min(processes, len(to_draw))):
        return _write_summary(log_dir, results, found, attention)


def _write_summary(
    log_dir: Path | str, results: Sequence[Mapping[str, Any]], found: Mapping[str, Any], attention: Mapping[str, Any]
) -> Path:
    done = len(results) == len(results[-1]["configuration"].get("datasets", results))
    family, explored = (each.over_run(results) if done else {} for each in (confirmatory, exploratory))
    return layout.write_summary(log_dir, results, family, explored, found, attention)


def _draw(folder: Path, result: Mapping[str, Any], attention: Mapping[str, Any]) -> None:
    routing_plots.write_routing_plots(folder, result)
    paper_figures.write_figures(folder, result, attention)


@contextlib.contextmanager
def _elsewhere(
    function: Callable[..., object], arguments: Sequence[tuple[Any, ...]], processes: int
) -> Iterator[None]:
    """Calls a function with each of the arguments while the block runs, in so many processes; before it, in none."""
    if processes < 2:
        for each in arguments:
            function(*each)
        yield
        return
    with ProcessPoolExecutor(processes, initializer=_serve, initargs=(os.getpid(),)) as pool:
        try:
            calls = [pool.submit(function, *each) for each in arguments]
            yield
            for call in calls:
                call.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _serve(parent: int) -> None:
    """Leaves signals to the process that draws for others, and ends with it, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Control-C reaches them all: the parent answers it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _beside(name: str, folders: Sequence[Path], results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Dataset -> the content of that file in its folder, of those that have it."""
    pairs = zip(folders, results, strict=True)
    return {result["dataset"]: read_json(folder / name) for folder, result in pairs if (folder / name).is_file()}


def find_folders(run_dir: Path | str) -> list[Path]:
    """The dataset folders of a run, in its order.

    Args:
        run_dir: what --log-dir named.

    Raises:
        ConfigError: there is no such folder, or no result in it.
        MAWError: a result that cannot be read, or one that the summary names and that is gone.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise ConfigError([f"{run_dir}: there is no such folder"])
    if (run_dir / "dataset.json").is_file() or run_dir.name == "summary":
        raise ConfigError([f"{run_dir}: is a part of a run; name the folder around it, {run_dir.parent}"])
    found = {path.parent: read_result(path.parent) for path in sorted(run_dir.glob("*/dataset.json"))}
    if not found:
        raise ConfigError([f"{run_dir}: holds no results; name a folder that --log-dir named, such as logs/tier1"])
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
    """The settings of a result that can change one: a run that goes on may have others of the rest."""
    return {name: value for name, value in result["configuration"].items() if name not in RESULT_NEUTRAL}


def _named(found: Mapping[Path, Mapping[str, Any]], name: str, result: Mapping[str, Any], summary: Path) -> Path:
    """The folder of a result that the summary has; of several of one second the one with the same content."""
    same = [
        folder
        for folder, each in found.items()
        if each["dataset"] == name and each["evaluated_at"] == result.get("evaluated_at")
    ]
    if not same:
        raise DataError(
            f"{summary}: names {name}, evaluated {result.get('evaluated_at')}, of which {summary.parent.parent} has "
            "no folder; put it back, or delete the summary to go by the folders there are"
        )
    return max(same, key=lambda folder: (found[folder] == result, len(folder.name), folder.name))


def read_result(folder: Path) -> dict[str, Any]:
    """The content of a folder's dataset.json.

    Raises:
        MAWError: it is not there, or is no result of this program.
    """
    result = read_json(folder / "dataset.json")
    missing = [key for key in _NEEDED if not isinstance(result, dict) or key not in result]
    if missing:
        raise DataError(f"{folder / 'dataset.json'}: lacks {', '.join(missing)}: it is no result of a dataset")
    return result
