"""The files of a run, and writing them.

    logs/tier1/
        msmarco_20250106_143022/
            zeroshot_metrics.json, lora_metrics.json, maw_metrics.json
                means, per-query values and facts of one method
            improvements.json   relative differences and paired tests
            runs/               rankings, judgements and per-query tables for other tools (`maw.report.tables.trec`)
            attention.json      attention of one text at each depth (`maw.evaluation.routing.attention_example`)
            examples.json       queries on which methods differ most (`maw.evaluation.query_examples`)
            dataset.json        all results of the dataset; written last
            routing_maw.png     routing by epoch (`maw.report.figures.routing_plots`)
            figures/            figures for a paper, PDF and SVG (`maw.report.figures.paper_figures`)
            profile.json        time by stage, with --profile (`maw.runtime.profiler`)
        summary/
            benchmark_summary.txt, all_results.json, metrics_comparison.csv
            costs.csv           cost and quality of each method (`maw.report.text.costs`)
            confirmatory.json   tests that were fixed before the run, if it has any (`maw.evaluation.confirmatory`)
            exploratory.json    all other tests, corrected over the run (`maw.evaluation.exploratory`)
            tables.tex, tables.md   tables for a paper (`maw.report.tables.paper`)
            report.html         one page with all results (`maw.report.html`)

summary/ and the figures are made from the dataset folders alone (`maw.report.rebuild`).

Per-query values are stored by column, with the query ids once: `pandas.DataFrame(per_query["metrics"],
index=per_query["query_ids"])`. Numbers have all the digits that reproduce the same float64.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from maw.config.methods import in_order
from maw.errors import MAWError, reason
from maw.evaluation.metrics import EvaluationResult
from maw.report.html.page import report_page
from maw.report.tables import paper
from maw.report.tables.comparisons import CSV_HEADER, comparison_rows
from maw.report.tables.csv_file import write_csv
from maw.report.text.costs import cost_rows
from maw.report.text.summary import benchmark_summary
from maw.storage.files import write_json, write_text

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_REPEATS = 1000
_TESTS = ("improvements", "confirmatory", "exploratory", "significance")


def write_dataset(
    log_dir: Path | str,
    dataset_result: Mapping[str, Any],
    evaluations: Mapping[str, EvaluationResult],
    timestamp: str,
    extras: Sequence[Callable[[Path], object]] = (),
    *,
    folder: Path | None = None,
) -> Path:
    """Writes one dataset's folder, `<dataset>_<timestamp>`, or `<dataset>_<timestamp>_2` and so on if it exists.

    Args:
        dataset_result: the content of dataset.json.
        evaluations: method name -> its evaluation on the test split.
        extras: functions that take the folder and write more files into it, before dataset.json is written.
        folder: the folder that this run chose earlier with `free_folder`; its files are replaced.

    Returns:
        The folder.

    Raises:
        MAWError: a name is not safe as a folder's, a number is not finite, or a path cannot be written.
    """
    if folder is None:
        folder = _new_folder(Path(log_dir), f"{_safe(dataset_result['dataset'])}_{_safe(timestamp)}")
    for method in in_order(evaluations):
        record = dataset_result["results"].get(method.key, {})
        evaluation = evaluations[method.name]
        content = {  # the method's record in dataset.json, and what is too long for that file
            "dataset": dataset_result["dataset"],
            "method": method.name,
            **{key: value for key, value in record.items() if key != "metrics"},
            "metrics": dict(evaluation),
            "facts": evaluation.facts,
            "per_query": {"query_ids": evaluation.query_ids, "metrics": evaluation.per_query},
        }
        write_json(folder / f"{method.short}_metrics.json", content)
    write_json(folder / "improvements.json", {key: dataset_result.get(key, {}) for key in _TESTS})
    for write in extras:
        write(folder)
    write_json(folder / "dataset.json", dataset_result)
    return folder


def free_folder(log_dir: Path | str, dataset: str, timestamp: str) -> Path:
    """The folder that `write_dataset` would create now; it is not created.

    Raises:
        MAWError: a name is not safe as a folder's.
    """
    folders = _folders(Path(log_dir), f"{_safe(dataset)}_{_safe(timestamp)}")
    return next(folder for folder in folders if not folder.exists())


def write_summary(
    log_dir: Path | str,
    dataset_results: Sequence[Mapping[str, Any]],
    family: Mapping[str, Any] | None = None,
    explored: Mapping[str, Any] | None = None,
    examples: Mapping[str, Mapping[str, Any]] | None = None,
    attention: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    name: str = "summary",
) -> Path:
    """Writes summary/ over all datasets of a run; the files of an earlier run are replaced.

    Args:
        dataset_results: the content of each dataset.json, in the order of the run.
        family, explored: the confirmatory and the exploratory family over all datasets, once all are finished.
        examples, attention: dataset -> the content of its examples.json or attention.json, if it has one.
        name: of the folder.

    Returns:
        The folder.

    Raises:
        MAWError: as `write_dataset`.
    """
    folder = Path(log_dir) / name
    families = {"confirmatory": family, "exploratory": explored}
    rows = comparison_rows(dataset_results, [each for each in families.values() if each])
    write_json(folder / "all_results.json", {result["dataset"]: result for result in dataset_results})
    write_csv(folder / "metrics_comparison.csv", CSV_HEADER, rows)
    write_csv(folder / "costs.csv", *cost_rows(dataset_results))
    write_text(folder / "benchmark_summary.txt", benchmark_summary(dataset_results, family, explored))
    write_text(folder / "tables.tex", paper.latex(dataset_results, [family, explored]))
    write_text(folder / "tables.md", paper.markdown(dataset_results, [family, explored]))
    write_text(folder / "report.html", report_page(dataset_results, [family, explored], examples, attention))
    for name, content in families.items():
        if content:
            write_json(folder / f"{name}.json", content)
        else:
            (folder / f"{name}.json").unlink(missing_ok=True)  # that of an earlier run, of other results
    return folder


def _safe(name: str) -> str:
    if not _SAFE_NAME.fullmatch(name):
        raise MAWError(
            f"{name[:120]!r} cannot name a folder: use up to 100 letters, digits, dots, hyphens and "
            "underscores, the first a letter or digit"
        )
    return name


def _folders(log_dir: Path, name: str) -> list[Path]:
    return [log_dir / name, *(log_dir / f"{name}_{number}" for number in range(2, _REPEATS))]


def _new_folder(log_dir: Path, name: str) -> Path:
    """Creates a folder that did not exist; two runs never share one."""
    for folder in _folders(log_dir, name):
        try:
            log_dir.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
        except FileExistsError:
            if log_dir.is_dir():
                continue
            raise MAWError(f"cannot make {folder}: {log_dir} is a file; choose another --log-dir") from None
        except OSError as error:
            raise MAWError(
                f"cannot make {folder}: {reason(error)}; choose another --log-dir or mend this one"
            ) from error
        return folder
    raise MAWError(f"cannot make {log_dir / name}: it exists {_REPEATS - 1} times already; clear {log_dir}")
