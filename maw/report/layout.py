"""Where a run's files lie.

    logs/tier1/
        msmarco_20250106_143022/
            zeroshot_metrics.json, lora_metrics.json, maw_metrics.json
                means, per-query values and that method's facts
            improvements.json   relative differences and paired tests
            runs/               rankings, judgements and per-query tables for other tools (`maw.report.tables.trec`)
            attention.json      what depths do with one text, where there are any
            (`maw.evaluation.routing.attention_example`) examples.json       queries on which methods differ most,
            with their passages (`maw.evaluation.query_examples`) dataset.json        all results of the dataset;
            written last routing_maw.png     what routing did (`maw.report.figures.routing_plots`)
            figures/            the page's figures for a paper, PDF and SVG (`maw.report.figures.paper_figures`)
            profile.json        where the time went, if asked for (`maw.runtime.profiler`)
        summary/
            benchmark_summary.txt, all_results.json, metrics_comparison.csv
            costs.csv           what each method took, beside what it reached (`maw.report.text.costs`)
            confirmatory.json   the family of tests on which claims are made, if a run has one
            (`maw.evaluation.confirmatory`) exploratory.json    all other tests, corrected over the run
            (`maw.evaluation.exploratory`) tables.tex, tables.md   for a paper (`maw.report.tables.paper`)
            report.html         one page with everything, the answer first (`maw.report.html`)

What stands in summary/ and the pictures are made from the dataset folders alone (`maw.report.rebuild`).

Per-query values are stored by column, with the query ids once: `pandas.DataFrame(per_query["metrics"],
index=per_query["query_ids"])` is the table, at a small part of the size that 36 copies of every id would
take. Numbers are written with all the digits it takes to read back the same float64.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from maw.config.methods import Method, in_order
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
    """Writes one dataset's folder, `<dataset>_<timestamp>`, with `_2`, `_3`, ... behind it if there is one
    already.

    Args:
        log_dir: folder of all runs; made if need be.
        dataset_result: the content of dataset.json.
        evaluations: method name -> its evaluation on the test split, for those methods that ran.
        timestamp: as in 20250106_143022.
        extras: each is given the folder and writes more files into it, before dataset.json says that all is there.
        folder: one that this run has chosen before, by `free_folder`: what it has written there already is replaced.

    Returns:
        The folder.

    Raises:
        MAWError: a name that is not safe as a folder's, a number that is not finite, a path that cannot be
            written.
    """
    if folder is None:
        folder = _new_folder(Path(log_dir), f"{_safe(dataset_result['dataset'])}_{_safe(timestamp)}")
    for method in in_order(evaluations):
        record = dataset_result["results"].get(method.key, {})
        write_json(
            folder / f"{method.short}_metrics.json",
            _method_content(dataset_result["dataset"], method, evaluations[method.name], record),
        )
    write_json(
        folder / "improvements.json",
        {key: dataset_result.get(key, {}) for key in _TESTS},
    )
    for write in extras:
        write(folder)
    write_json(folder / "dataset.json", dataset_result)
    return folder


def free_folder(log_dir: Path | str, dataset: str, timestamp: str) -> Path:
    """The folder that `write_dataset` would make now; it is not made.

    Raises:
        MAWError: a name that is not safe as a folder's.
    """
    name = f"{_safe(dataset)}_{_safe(timestamp)}"
    names = [name, *(f"{name}_{number}" for number in range(2, _REPEATS))]
    return next(folder for folder in (Path(log_dir) / each for each in names) if not folder.exists())


def write_profile(folder: Path, content: Mapping[str, Any]) -> Path:
    """Writes profile.json into a dataset's folder.

    Raises:
        MAWError: as `write_dataset`.
    """
    return write_json(folder / "profile.json", content)


def write_summary(
    log_dir: Path | str,
    dataset_results: Sequence[Mapping[str, Any]],
    family: Mapping[str, Any] | None = None,
    explored: Mapping[str, Any] | None = None,
    examples: Mapping[str, Mapping[str, Any]] | None = None,
    attention: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """Writes summary/ over all datasets of a run; an earlier run's is replaced, file by file.

    Args:
        log_dir: folder of all runs.
        dataset_results: the content of each dataset.json, in the order of the run.
        family: the confirmatory family over all datasets; nothing as long as some are not done, or if there is none.
        explored: the same of the exploratory family.
        examples: dataset -> the content of its examples.json, for those that have one.
        attention: dataset -> the content of its attention.json, likewise.

    Returns:
        The folder.

    Raises:
        MAWError: as `write_dataset`.
    """
    folder = Path(log_dir) / "summary"
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
            (folder / f"{name}.json").unlink(missing_ok=True)  # an earlier run's, of other results
    return folder


def _method_content(
    dataset: str, method: Method, evaluation: EvaluationResult, record: Mapping[str, Any]
) -> dict[str, Any]:
    """Content of one method's file: its entry in dataset.json, and what is too long to stand there."""
    return {
        "dataset": dataset,
        "method": method.name,
        **{key: value for key, value in record.items() if key != "metrics"},
        "metrics": dict(evaluation),
        "facts": evaluation.facts,
        "per_query": {"query_ids": evaluation.query_ids, "metrics": evaluation.per_query},
    }


def _safe(name: str) -> str:
    if not _SAFE_NAME.fullmatch(name):
        raise MAWError(
            f"{name[:120]!r} cannot name a folder: use up to 100 letters, digits, dots, hyphens and "
            "underscores, the first a letter or digit"
        )
    return name


def _new_folder(log_dir: Path, name: str) -> Path:
    """Makes a folder that was not there before; two runs never share one."""
    for number in range(1, _REPEATS):
        folder = log_dir / (name if number == 1 else f"{name}_{number}")
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
    raise MAWError(f"cannot make {log_dir / name}: it is there {_REPEATS - 1} times already; clear {log_dir}")
