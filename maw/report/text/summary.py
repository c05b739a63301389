"""Text reports: what the console shows of a dataset and at the end, and summary/benchmark_summary.txt.

Plain text, at most 100 columns, no colour. All of it comes from dataset.json: `result` is the content of one,
`results` those of a run, in order. `family` and `explored` are the confirmatory and the exploratory family over all
datasets, None until all are finished; without them p is corrected within the dataset. A fact that data or model
add to dataset.json appears under its own name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from maw.config.methods import Method, methods_of
from maw.config.paths import short_path
from maw.evaluation.confirmatory import LEVEL
from maw.evaluation.metrics import METRIC_LABELS, PRIMARY
from maw.report.significance_marks import LETTERS, NBSP, RunValues, beaten, run_p_values, verdict
from maw.report.text.costs import cost_table
from maw.report.text.differences import dataset_differences, run_differences
from maw.report.text.format import WIDTH, as_table, bullet, clean, fact, heading, number, wrapped
from maw.report.text.trainings import compute_table, rate_range, seeds_table, spread_line, tuning_table

_HEADLINE = PRIMARY[0]
_SETTINGS = ("seed", "seeds", "tune", "folds", "num_epochs", "batch_size", "weight_decay", "patience", "top_k")
_ANSWER_MATCH = "Answer match (not among the 36)"
_NO_ANSWERS = "not available"
_SHORT = {"recall_100": "R@100", "P_10": "P@10", "Rprec": "R-Prec", "success_5": "S@5"}
_MANY = 7  # runtimes, from which they stand in two columns on the console
_LETTERS = f"A letter after a value: significantly higher than the method with this letter (corrected p < {LEVEL:g})."
_LETTERS_OF_ONE = (
    f"A letter after {METRIC_LABELS[_HEADLINE]}: significantly higher than the method with this letter (corrected p < "
    f"{LEVEL:g}). The summary has the letters of all metrics."
)
_SHORT_NAMES = "R, P and S are recall, precision and success."
_WITHIN = "Here p is corrected over the tests of this dataset; in summary/ over those of the run."
NOTES = (
    "Every metric is a mean over the test queries, between 0 and 1. Higher is better.",
    "A letter after a value: it is significantly higher than that of the method with this letter, with p < "
    f"{LEVEL:g} in a two-sided paired randomisation test over queries, corrected by Holm's procedure.",
    "The 95% interval is a bootstrap over queries. It shows how much the value would change with other queries of the "
    "same kind, not with another training seed.",
    "Confirmatory tests are the comparisons planned before the run. All other tests are exploratory. Holm's procedure "
    "corrects p in each of these two families.",
    "Detectable is the smallest true difference that a confirmatory test detects in 80% of cases. It is computed from "
    "the standard deviation of the differences on validation queries. A difference that is not significant does not "
    "show that two methods are equal.",
    "Cohen's d (d_z) is the mean of the differences divided by their standard deviation. Queries needed is the number "
    "of test queries with which a test detects a true difference as large as the measured one in 80% of cases. The t "
    "test's p is not corrected.",
    "With several seeds, the values of a query are averaged over the seeds before any test.",
    "Better / worse / same are numbers of queries. Relative differences are divided by the second method's mean.",
)
"""Notes on how to read the numbers."""


def method_heading(method: Method, dataset: str) -> str:
    """The heading of a method on the console."""
    number = method.key.partition("_")[0]  # controls have none
    approach = f"approach {number}" if number.isdigit() else "control" if method.origin is None else "method"
    return f"\n{clean(dataset)}, {approach}: {method.approach}\n{method.description}."


def method_summary(record: Mapping[str, Any]) -> str:
    """A method's primary metrics and runtime, from its entry in dataset.json."""
    cells = [f"{METRIC_LABELS[key]} {record['metrics'][key]:.4f}" for key in PRIMARY]
    spread = spread_line(record)
    half = len(cells) // 2
    lines = ["".join(f"{cell:<19}" for cell in part).rstrip() for part in (cells[:half], cells[half:])]
    seconds = record["runtime_seconds"]
    return "\n".join(
        [f"{clean(record['approach'])} results (primary metrics):"]
        + [f"   {line}" for line in lines]
        + ([f"   {spread}"] if spread else [])
        + [f"   Runtime: {seconds:.2f} seconds ({seconds / 60:.2f} minutes){_cached(record)}"]
    )


def method_done(record: Mapping[str, Any]) -> str:
    """The line after a method has finished; test results follow later, after the detectable differences."""
    seconds, score = record["runtime_seconds"], record.get(f"val_{_HEADLINE}")
    found = "" if score is None else f"validation {METRIC_LABELS[_HEADLINE]} {score:.4f}; "
    return f"{clean(record['approach'])}: {found}{seconds:.2f} seconds ({seconds / 60:.2f} minutes){_cached(record)}"


def _cached(record: Mapping[str, Any]) -> str:
    """The note behind a runtime in which the documents were not encoded."""
    return "  (embeddings from cache)" if record.get("evaluation", {}).get("embeddings") == "from cache" else ""


def dataset_screen(result: Mapping[str, Any], over_run: RunValues | None = None) -> str:
    """One dataset on the console: primary metrics, runtimes and warnings, in one screen."""
    table, runtimes = _metrics_table(result, over_run, short=True), _runtimes(result, short=True)
    parts = [_title(result), table, runtimes, _warnings(result)]
    return "\n\n".join(part for part in parts if part)


def dataset_summary(result: Mapping[str, Any], over_run: RunValues | None = None) -> str:
    """All tables of one dataset: setting, primary metrics, differences, costs, runtimes and warnings."""
    parts = [
        _title(result),
        _setting(result),
        _metrics_table(result, over_run),
        _answer_match(result),
        dataset_differences(result, over_run),
        seeds_table(result),
        _training(result),
        tuning_table(result),
        compute_table(result),
        cost_table(result),
        _runtimes(result),
        _warnings(result),
    ]
    return "\n\n".join(part for part in parts if part)


def answers(
    results: Sequence[Mapping[str, Any]], families: Iterable[Mapping[str, Any] | None] = (), *, verbose: bool = False
) -> str:
    """The output of a quiet run: each dataset, with p corrected over the run."""
    over_run = run_p_values(families)
    return "\n\n".join((dataset_summary if verbose else dataset_screen)(each, over_run) for each in results)


def benchmark_summary(
    results: Sequence[Mapping[str, Any]],
    family: Mapping[str, Any] | None = None,
    explored: Mapping[str, Any] | None = None,
) -> str:
    """The whole run: an overview, every dataset, and how to read the numbers."""
    over_run = run_p_values([family, explored])
    overview = "\n\n".join(part for part in (_overview(results), claim(results, [family, explored])) if part)
    parts = [heading("Benchmark summary", "="), overview]
    parts += [run_differences(family)] if family and len(results) > 1 else []
    parts += [dataset_summary(result, over_run) for result in results]
    notes = [heading("How to read the numbers", "-"), *(line for note in NOTES for line in bullet(note))]
    return "\n\n\n".join([*parts, "\n".join(notes)]) + "\n"


def claim(results: Sequence[Mapping[str, Any]], families: Sequence[Mapping[str, Any] | None] = ()) -> str:
    """The verdict as console lines; empty if nothing was tested."""
    if not any(result.get("significance") for result in results):
        return ""
    lines = verdict(results, run_p_values(families)).lines()
    return "\n".join(part for line in lines for part in wrapped("", line)).replace(NBSP, " ")


def conclusion(
    results: Sequence[Mapping[str, Any]], families: Sequence[Mapping[str, Any] | None], log_dir: str
) -> str:
    """The end of a run: nDCG@10 of several datasets, the verdict, and where everything else is."""
    folder = Path(log_dir, "summary")
    where = (
        f"Report of the run:  {short_path(folder / 'report.html')}\n"
        f"Summary of the run: {short_path(folder / 'benchmark_summary.txt')}"
    )
    table = _headline_table(results) if len(results) > 1 else ""
    return "\n" + "\n\n".join(part for part in (table, claim(results, families), where) if part)


def _overview(results: Sequence[Mapping[str, Any]]) -> str:
    """nDCG@10 of every dataset, with notes on sampled corpora and dates."""
    sampled = []  # scores that published ones, of the whole corpus, do not compare with
    for result in results:
        searched = result.get("data", {}).get("corpora", {}).get("test", {}).get("passages", "")
        if searched.startswith("sampled"):
            sampled += bullet(f"{result['dataset']} {searched}; scores on the whole corpus would be lower")
    dates = sorted({clean(result["evaluated_at"]) for result in results})
    evaluated = f"Evaluated {dates[0]}" + (f" to {dates[-1]}" if len(dates) > 1 else "") if dates else ""
    return "\n\n".join(part for part in (_headline_table(results), "\n".join(sampled), evaluated) if part)


def _headline_table(results: Sequence[Mapping[str, Any]]) -> str:
    """nDCG@10, datasets by methods; methods are rows where they do not fit side by side."""
    methods = methods_of(*results)
    names, labels = [clean(result["dataset"]) for result in results], [method.label for method in methods]
    records = [[result["results"].get(method.key) for method in methods] for result in results]
    values = [[f"{each['metrics'][_HEADLINE]:.4f}" if each else "-" for each in row] for row in records]
    if max(map(len, names)) + sum(len(label) + 2 for label in labels) > WIDTH:
        names, labels, values = labels, names, [list(column) for column in zip(*values, strict=True)]
    rows = [[name, *row] for name, row in zip(names, values, strict=True)]
    return as_table([METRIC_LABELS[_HEADLINE], *labels], rows)


def _title(result: Mapping[str, Any]) -> str:
    return heading(clean(f"{result['venue']} ({result['dataset']})"), "=")


def _setting(result: Mapping[str, Any]) -> str:
    """Facts on data, model and training, one line each, except those with a section of their own."""
    settings = {key: value for key, value in result.get("configuration", {}).items() if key in _SETTINGS}
    sections = {"Data": result.get("data", {}), "Model": result.get("model", {}), "Training": settings}
    lines = []
    for name, facts in sections.items():
        body = [
            line
            for key, value in facts.items()
            if key != "warnings" and not (key == "answers" and str(value).startswith(_NO_ANSWERS))
            for line in fact(key, value)
        ]
        lines += [name, *body] if body else []
    return "\n".join(lines)


def _metrics_table(result: Mapping[str, Any], over_run: RunValues | None = None, *, short: bool = False) -> str:
    """Primary metrics by methods, with letters for the methods significantly surpassed.

    Methods are columns if they fit into the width, else rows, so that the values of one metric stay together. With
    `short` each row is a single line: names of metrics are short, and only the first metric has letters. A note
    explains the letters, and says so if p is corrected within the dataset although the run has more datasets.
    """
    methods = methods_of(result)
    marks = beaten(result, methods, over_run)
    names = [f"({letter}) " * bool(marks) + method.label for letter, method in zip(LETTERS, methods, strict=False)]
    labels, by_metric = [METRIC_LABELS[key] for key in PRIMARY], _cells(result, marks)
    beside = [max(map(len, column)) + 2 for column in zip(names, *by_metric, strict=True)]
    letters, more = _LETTERS, ""
    if max(map(len, labels)) + sum(beside) <= WIDTH:
        table = as_table(["Metric", *names], [[label, *row] for label, row in zip(labels, by_metric, strict=True)])
    else:
        if short:
            letters, more = _LETTERS_OF_ONE, _SHORT_NAMES
            labels = [_SHORT.get(key, METRIC_LABELS[key]) for key in PRIMARY]
            by_metric = _cells(result, marks, [_HEADLINE])
            beside = [max(map(len, (label, *row))) + 1 for label, row in zip(labels, by_metric, strict=True)]
            names = [name[: WIDTH - sum(beside)] for name in names]
        rows = [list(row) for row in zip(names, *by_metric, strict=True)]
        table = as_table(["Method", *labels], rows, gap=1 if short else 2)
    sections = [result[name] for name in ("confirmatory", "exploratory") if result.get(name)]
    several = any(section["run_family_size"] > section["family_size"] for section in sections)
    notes = [letters, _WITHIN if several and not over_run else ""] if marks else []
    note = " ".join(part for part in (*notes, more) if part)
    return "\n".join([table, *wrapped("", note)]) if note else table


def _cells(
    result: Mapping[str, Any], marks: Mapping[tuple[str, str], str], marked: Sequence[str] = PRIMARY
) -> list[list[str]]:
    """Values of the primary metrics, for each metric those of all methods; those of `marked` with their letters."""
    widest = max([len(letters) for (_, key), letters in marks.items() if key in marked], default=0)

    def cell(method: Method, key: str) -> str:
        mark = f" {marks.get((method.short, key), '')}".ljust(widest + 1) if key in marked else ""
        return f"{result['results'][method.key]['metrics'][key]:.4f}{mark if widest > 0 else ''}"

    return [[cell(method, key) for method in methods_of(result)] for key in PRIMARY]


def _answer_match(result: Mapping[str, Any]) -> str:
    """Share of queries with an answer in their first k passages; a line if the data lacks expected answers.

    A collection that might be expected to have answers and has none says "answers": "not available" in its facts.
    """
    answers = result.get("data", {}).get("answers")
    if str(answers).startswith(_NO_ANSWERS):
        return "\n".join(wrapped("", f"{_ANSWER_MATCH}: {clean(answers)}"))
    found = {method: result["results"][method.key].get("evaluation", {}) for method in methods_of(result)}
    found = {method: facts["answer_match"] for method, facts in found.items() if "answer_match" in facts}
    if not found:
        none = isinstance(answers, Mapping) and not answers.get("with_answers", 1)
        return f"{_ANSWER_MATCH}: {_NO_ANSWERS}" if none else ""
    first = next(iter(found.values()))
    cutoffs = [key for key in first if key.startswith("top_")]
    rows = [
        [f"Top-{key.removeprefix('top_')}", *(number(match[key], ".4f") for match in found.values())]
        for key in cutoffs
    ]
    table = as_table([_ANSWER_MATCH, *(method.label for method in found)], rows)
    return f"{table}\nover the {first['queries']:,} queries with answers ({first['coverage']:.1%} of all)"


def _training(result: Mapping[str, Any]) -> str:
    """Table of trained parameters and learning rates."""
    rows = []
    for method in methods_of(result):
        record = result["results"][method.key]
        count = record.get("trained_parameters")
        rows.append([clean(record["approach"])[:50], f"{count:,}" if count else "none", rate_range(record)])
    return as_table(["Approach", "Trained parameters", "Learning rate"], rows)


def _runtimes(result: Mapping[str, Any], *, short: bool = False) -> str:
    """Seconds of each method and of all; with `short` those of many methods are in two columns, if they fit."""
    summary = result.get("runtime_summary", {})
    records = result["results"]
    lines = [
        (method.label, summary.get(f"{method.short}_seconds"), _cached(records.get(method.key, {})))
        for method in methods_of(result)
    ]
    lines.append(("Total (dataset)", summary.get("total_dataset_seconds"), ""))
    lines = [line for line in lines if line[1] is not None]
    width = max((len(label) for label, _, _ in lines), default=0) + 2
    body = [f"   {label + ':':<{width}}{seconds:.2f}s ({seconds / 60:.2f} min)" for label, seconds, _ in lines]
    wide = max(map(len, body), default=0)
    if short and len(body) >= _MANY and 2 * wide <= WIDTH:
        cached = ", ".join(label for label, _, note in lines if note)
        body += [f"   Embeddings from cache: {cached}"] if cached else []
        half = (len(body) + 1) // 2
        body = [f"{a:<{wide}}{b}".rstrip() for a, b in zip_longest(body[:half], body[half:], fillvalue="")]
    else:
        body = [line + note for line, (_, _, note) in zip(body, lines, strict=True)]
    return "\n".join(["Runtime Summary:", *body]) if body else ""


def _warnings(result: Mapping[str, Any]) -> str:
    found = dict.fromkeys([*result.get("warnings", ()), *result.get("data", {}).get("warnings", ())])
    return "\n".join(["Warnings", *(line for text in found for line in bullet(text))]) if found else ""
