"""What people read: the summary of a dataset on the console, and summary/benchmark_summary.txt.

Plain text, at most 100 columns, no colour. Everything in it comes from the dictionaries that dataset.json
holds; a fact that the data or the model adds there appears here under its own name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from maw.config.methods import METHODS, Method
from maw.evaluation.confirmatory import LEVEL
from maw.evaluation.metrics import METRIC_LABELS, PRIMARY
from maw.report.significance_marks import LETTERS, RunValues, beaten, methods_of, run_p_values, verdict
from maw.report.text.costs import cost_table
from maw.report.text.differences import dataset_differences, run_differences
from maw.report.text.format import WIDTH, as_table, bullet, clean, fact, heading, wrapped
from maw.report.text.protocol import compute_table, rate_range, seeds_table, spread_line, tuning_table

_HEADLINE = PRIMARY[0]
_SETTINGS = ("seed", "seeds", "tune", "folds", "num_epochs", "batch_size", "weight_decay", "patience", "top_k")
_ANSWER_MATCH = "Answer match (not among the 36)"
_NO_ANSWERS = "not available"
_WITHIN = "Letters go by p corrected within the dataset; over the run in summary/."
NOTES = (
    "Every metric is a mean over the test queries, between 0 and 1, higher is better.",
    f"A letter behind a value names a method it beats at p < {LEVEL:g}: a two-sided paired "
    "randomisation test over queries, corrected by Holm over the test's family.",
    "The 95% interval is a bootstrap over queries. It shows how far a mean difference could move with "
    "other queries of the kind, not with another training seed.",
    "Confirmatory are the comparisons fixed beforehand, corrected together by Holm's procedure; all others are "
    "exploratory, a family of their own. Detectable is the smallest true difference that a confirmatory test "
    "finds with a probability of 0.8, from the differences on validation queries.",
    "Effect d is Cohen's d_z: the mean of the differences by their standard deviation. Queries needed are those "
    "with which a test finds a true difference as large as the one found with a probability of 0.8, at the level "
    "0.05 by the number of tests of its family in the run. The t test's p is not corrected.",
    "With several seeds a query's values are averaged over them before anything is tested.",
    "Better / worse / same counts queries. Relative differences are to the second method's mean.",
)
"""What the numbers mean, a sentence or two each."""


def method_heading(method: Method, dataset: str) -> str:
    """What opens a method's part of the console output."""
    number = method.key.partition("_")[0]  # controls have none
    approach = f"approach {number}" if number.isdigit() else "control"
    return f"\n{clean(dataset)}, {approach}: {method.approach}\n{method.description}."


def method_summary(record: Mapping[str, Any]) -> str:
    """What closes it: the primary metrics and the runtime.

    Args:
        record: the method's entry in dataset.json's "results".
    """
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
    """What a method shows when it is done; its test results wait until it has been said what they can show."""
    seconds, score = record["runtime_seconds"], record.get(f"val_{_HEADLINE}")
    found = "" if score is None else f"validation {METRIC_LABELS[_HEADLINE]} {score:.4f}; "
    return f"{clean(record['approach'])}: {found}{seconds:.2f} seconds ({seconds / 60:.2f} minutes){_cached(record)}"


def _cached(record: Mapping[str, Any]) -> str:
    """What stands behind a runtime in which the documents were not encoded."""
    return "  (embeddings from cache)" if record.get("evaluation", {}).get("embeddings") == "from cache" else ""


def dataset_summary(result: Mapping[str, Any], over_run: RunValues | None = None) -> str:
    """One dataset: where its numbers come from, primary metrics, differences, costs and warnings.

    Args:
        result: the content of dataset.json.
        over_run: of `run_p_values`; without it, as long as datasets are missing, p is corrected within the dataset.
    """
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


def answers(results: Sequence[Mapping[str, Any]], families: Iterable[Mapping[str, Any] | None] = ()) -> str:
    """What a quiet run says in the end: of each dataset its metrics, differences and warnings.

    Args:
        results: the content of each dataset.json.
        families: the confirmatory and the exploratory one over all datasets.
    """
    over_run = run_p_values(families)
    texts = [
        text
        for each in results
        for text in (
            _title(each),
            _metrics_table(each, over_run),
            dataset_differences(each, over_run),
            _warnings(each),
        )
    ]
    return "\n\n".join(text for text in texts if text)


def benchmark_summary(
    results: Sequence[Mapping[str, Any]],
    family: Mapping[str, Any] | None = None,
    explored: Mapping[str, Any] | None = None,
) -> str:
    """The whole run: an overview, every dataset, and how to read the numbers.

    Args:
        results: the content of each dataset.json.
        family: the confirmatory family over all datasets, once all are done.
        explored: the exploratory one, likewise.
    """
    over_run = run_p_values([family, explored])
    overview = "\n\n".join(part for part in (_overview(results), claim(results, family)) if part)
    parts = [heading("Benchmark summary", "="), overview]
    parts += [run_differences(family)] if family and len(results) > 1 else []
    parts += [dataset_summary(result, over_run) for result in results]
    return "\n\n\n".join([*parts, reading_notes()]) + "\n"


def claim(results: Sequence[Mapping[str, Any]], family: Mapping[str, Any] | None = None) -> str:
    """`maw.report.significance_marks` as console lines, with the confirmatory family of a run; "" without tests."""
    if not any(result.get("significance") for result in results):
        return ""
    return "\n".join(wrapped("", verdict(results, run_p_values([family]))))


def reading_notes() -> str:
    """What the numbers mean."""
    return "\n".join([heading("How to read the numbers", "-"), *(line for note in NOTES for line in bullet(note))])


def _overview(results: Sequence[Mapping[str, Any]]) -> str:
    """The headline metric, datasets by methods."""
    methods = [method for method in METHODS if any(method.key in result["results"] for result in results)]
    rows = []
    for result in results:
        records = [result["results"].get(method.key) for method in methods]
        values = [f"{record['metrics'][_HEADLINE]:.4f}" if record else "-" for record in records]
        rows.append([clean(result["dataset"]), *values])
    table = as_table([METRIC_LABELS[_HEADLINE], *(method.label for method in methods)], rows)
    return "\n\n".join([table, *_sampled(results), *_evaluated(results)])


def _sampled(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which numbers are not of a whole corpus, and so not comparable with published ones."""
    lines = []
    for result in results:
        searched = result.get("data", {}).get("corpora", {}).get("test", {}).get("passages", "")
        if searched.startswith("sampled"):
            lines += bullet(f"{result['dataset']} {searched}; scores on the whole corpus would be lower")
    return ["\n".join(lines)] if lines else []


def _evaluated(results: Sequence[Mapping[str, Any]]) -> list[str]:
    dates = sorted({clean(result["evaluated_at"]) for result in results})
    return [f"Evaluated {dates[0]}" + (f" to {dates[-1]}" if len(dates) > 1 else "")] if dates else []


def _title(result: Mapping[str, Any]) -> str:
    return heading(clean(f"{result['venue']} ({result['dataset']})"), "=")


def _setting(result: Mapping[str, Any]) -> str:
    """Facts on data, model and training, a line each."""
    settings = {key: value for key, value in result.get("configuration", {}).items() if key in _SETTINGS}
    sections = {"Data": result.get("data", {}), "Model": result.get("model", {}), "Training": settings}
    lines = []
    for name, facts in sections.items():
        body = [line for key, value in facts.items() if _is_setting(key, value) for line in fact(key, value)]
        lines += [name, *body] if body else []
    return "\n".join(lines)


def _is_setting(key: str, value: Any) -> bool:
    """Whether a fact stands in the list of facts; what has a part of its own does not."""
    return key != "warnings" and not (key == "answers" and str(value).startswith(_NO_ANSWERS))


def _metrics_table(result: Mapping[str, Any], over_run: RunValues | None = None) -> str:
    """Primary metrics by methods, with letters for the methods significantly surpassed, and what the letters go by
    where that is not the whole of a run of several datasets.

    Where so many methods do not fit beside each other they stand below each other, so that one metric's values can
    still be read at a glance.
    """
    methods = methods_of(result)
    marks = beaten(result, methods, over_run)
    widest = max([len(letters) for letters in marks.values()], default=0)

    def cell(method: Method, key: str) -> str:
        mark = f" {marks.get((method.short, key), ''):<{widest}}" if widest else ""
        return f"{result['results'][method.key]['metrics'][key]:.4f}{mark}"

    names = [f"({letter}) {method.label}" for letter, method in zip(LETTERS, methods, strict=False)]
    labels = [METRIC_LABELS[key] for key in PRIMARY]
    by_metric = [[cell(method, key) for method in methods] for key in PRIMARY]
    beside = [max(map(len, column)) + 2 for column in zip(names, *by_metric, strict=True)]
    if max(map(len, labels)) + sum(beside) <= WIDTH:
        table = as_table(["Metric", *names], [[label, *row] for label, row in zip(labels, by_metric, strict=True)])
    else:
        by_method = zip(*by_metric, strict=True)
        table = as_table(["Method", *labels], [[name, *row] for name, row in zip(names, by_method, strict=True)])
    return f"{table}\n{_WITHIN}" if marks and not over_run and _of_several(result) else table


def _of_several(result: Mapping[str, Any]) -> bool:
    """Whether the run has tests on other datasets, too, with which these are corrected in the end."""
    sections = (result.get(name, {}) for name in ("confirmatory", "exploratory"))
    return any(section["run_family_size"] > section["family_size"] for section in sections if section)


def _answer_match(result: Mapping[str, Any]) -> str:
    """Share of queries with an answer in their first k passages, or that the data has no answers.

    A collection whose facts say "answers": "not available", with a reason or without, is one that might be expected
    to have some.
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
    rows = [[f"Top-{key.removeprefix('top_')}", *(_share(match[key]) for match in found.values())] for key in cutoffs]
    table = as_table([_ANSWER_MATCH, *(method.label for method in found)], rows)
    return f"{table}\nover the {first['queries']:,} queries with answers ({first['coverage']:.1%} of all)"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _training(result: Mapping[str, Any]) -> str:
    """What each method trained, and how fast it learned."""
    rows = []
    for method in methods_of(result):
        record = result["results"][method.key]
        count = record.get("trained_parameters")
        rows.append([clean(record["approach"])[:50], f"{count:,}" if count else "none", rate_range(record)])
    return as_table(["Approach", "Trained parameters", "Learning rate"], rows)


def _runtimes(result: Mapping[str, Any]) -> str:
    summary = result.get("runtime_summary", {})
    records = result["results"]
    lines = [
        (method.label, summary.get(f"{method.short}_seconds"), _cached(records.get(method.key, {})))
        for method in METHODS
    ]
    lines.append(("Total (dataset)", summary.get("total_dataset_seconds"), ""))
    lines = [line for line in lines if line[1] is not None]
    width = max((len(label) for label, _, _ in lines), default=0) + 2
    body = [
        f"   {label + ':':<{width}}{seconds:.2f}s ({seconds / 60:.2f} min){note}" for label, seconds, note in lines
    ]
    return "\n".join(["Runtime Summary:", *body]) if body else ""


def _warnings(result: Mapping[str, Any]) -> str:
    found = dict.fromkeys([*result.get("warnings", ()), *result.get("data", {}).get("warnings", ())])
    return "\n".join(["Warnings", *(line for text in found for line in bullet(text))]) if found else ""
