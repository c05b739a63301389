"""The tables of the page: numbers of a run as text, in rows and columns. Captions stand in the templates."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from maw.config.methods import Method, look_of, methods_of
from maw.evaluation.confirmatory import LEVEL, METRIC
from maw.evaluation.metrics import METRIC_LABELS, PRIMARY
from maw.report import chart_data
from maw.report.chart_data import Result
from maw.report.significance_marks import LETTERS, RunValues, beaten, corrected_p, versus
from maw.report.text.costs import costs, energy_devices, index, size, watt_hours
from maw.report.text.format import number, p_value


class Cell(NamedTuple):
    """A cell with more than plain text.

    Attributes:
        text: its text.
        strong: whether the text is bold.
        letters: superscript letters after the text.
        below: a remark under the text.
        look: number of the method's colour and mark, shown before the text; None for no mark.
    """

    text: str
    strong: bool = False
    letters: str = ""
    below: str = ""
    look: int | None = None


@dataclass(frozen=True)
class Table:
    """Rows under a header; the first cell labels the row. Columns from `numbers_from` on hold numbers."""

    header: Sequence[str | Cell]
    rows: Sequence[Sequence[str | Cell]]
    numbers_from: int = 1


def overview(results: Sequence[Result]) -> Table:
    """The headline metric, methods by datasets."""
    methods, columns = methods_of(*results), []
    for result in results:
        records = [result["results"].get(method.key) for method in methods]
        values = [record["metrics"][METRIC] if record else None for record in records]
        best = max(value for value in values if value is not None)
        columns.append([Cell(number(value, ".4f"), strong=value == best) for value in values])
    rows = [[method.label, *cells] for method, *cells in zip(methods, *columns, strict=True)]
    return Table(["Method", *(result["venue"] for result in results)], rows)


def coverage(results: Sequence[Result]) -> list[tuple[str, list[str]]]:
    """What a run covers: the names of facts, each with its lines."""
    data = []
    for result in results:
        about = result.get("data", {})
        train = about.get("splits", {}).get("train", {}).get("queries")
        test = result.get("tested_on", {}).get("queries") or about.get("splits", {}).get("test", {}).get("queries")
        passages = str(about.get("corpora", {}).get("test", {}).get("passages", ""))
        if passages.startswith("sampled: "):
            passages = f"{passages.removeprefix('sampled: ')}, sampled"
        counts = [f"{count:,} {name} queries" for count, name in ((train, "training"), (test, "test")) if count]
        line = ", ".join(filter(None, [*counts, passages]))
        data.append(f"{result['venue']}: {line}" if len(results) > 1 else line)
    settings, model = results[0].get("configuration", {}), results[0].get("model", {}).get("name")
    names = (("seeds", "seed"), ("num_epochs", "epoch"), ("folds", "fold"), ("tune", "trial"))
    counted = [(settings.get(key), name) for key, name in names]
    training = ", ".join(f"{count:,} {name}{'s' * (count != 1)}" for count, name in counted if count)
    dates = sorted({str(result["evaluated_at"])[:10] for result in results})
    found = {
        "Data": [line for line in data if line],
        "Model": [model] if model else [],
        "Methods": [", ".join(method.label for method in methods_of(*results))],
        "Training": [training] if training else [],
        "Evaluated": [" to ".join(dict.fromkeys((dates[0], dates[-1])))],
    }
    return [(name, lines) for name, lines in found.items() if lines]


def values(result: Result, over_run: RunValues) -> Table:
    """Every method's primary metrics with intervals and letters."""
    methods = methods_of(result)
    marks, ends = beaten(result, methods, over_run), result.get("intervals", {})

    def cell(method: Method, metric: str, best: float) -> Cell:
        value = result["results"][method.key]["metrics"][metric]
        interval = ends.get(method.short, {}).get(metric)
        below = f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else ""
        return Cell(f"{value:.4f}", value == best, marks.get((method.short, metric), ""), below)

    rows = []
    for metric in PRIMARY:
        best = max(result["results"][method.key]["metrics"][metric] for method in methods)
        rows.append([METRIC_LABELS[metric], *(cell(method, metric, best) for method in methods)])
    named = zip(LETTERS, methods, strict=False)
    return Table(["Metric", *(Cell(f"({letter}) {m.label}", look=look_of(m)) for letter, m in named)], rows)


def confirmatory(result: Result, over_run: RunValues) -> Table:
    """The tests planned before the run, a column each: there are four at most, and eleven values."""
    tests = result.get("confirmatory", {}).get("comparisons", {})
    columns = [_test(result, key, METRIC, test, over_run) for key, test in tests.items()]
    names = [name for name in columns[0] if name != "metric"] if columns else []
    header, *rows = [[name, *(column[name] for column in columns)] for name in names] or [[]]
    return Table(header, rows)


def exploratory(result: Result, over_run: RunValues) -> Table:
    """All other tests, a row each."""
    confirmed = result.get("confirmatory", {}).get("comparisons", {})
    tests = [
        _test(result, key, metric, test, over_run)
        for key, by_metric in result.get("significance", {}).items()
        for metric, test in by_metric.items()
        if not (metric == METRIC and key in confirmed)
    ]
    return Table(list(tests[0]) if tests else [], [list(test.values()) for test in tests], numbers_from=2)


def _test(
    result: Result, key: str, metric: str, test: Mapping[str, Any], over_run: RunValues
) -> dict[str, str | Cell]:
    """What a test says, by the name of its column."""
    p = corrected_p(result, key, metric, over_run)
    return {
        "Comparison": versus(key),
        "metric": METRIC_LABELS[metric],
        "difference": f"{test['mean_difference']:+z.4f}",
        "relative": number(test["relative"], "+z.1%"),
        "95% interval": f"{test['ci_low']:+z.4f} to {test['ci_high']:+z.4f}",
        "p": p_value(test["p_value"]),
        "corrected p": Cell(p_value(p), strong=p is not None and p < LEVEL),
        "t-test p": p_value(test.get("t_p_value")),
        "Cohen's d": number(test.get("effect_size"), "+z.3f"),
        "detectable": number(test.get("minimum_detectable_effect"), ".4f"),
        "queries needed": number(test.get("queries_needed"), ",d"),
        "better / worse / same": f"{test['wins']} / {test['losses']} / {test['ties']}",
    }


def recall(result: Result) -> Table:
    """Recall at each cutoff."""
    rows = [[line.name, *(f"{value:.4f}" for _, value in line.points)] for line in chart_data.recall(result)]
    return Table(["Method", *(f"@{k}" for k in chart_data.RECALL)], rows)


def cost(result: Result) -> Table:
    """Cost and quality, a column for each method; energy where it was measured."""
    methods, devices = methods_of(result), energy_devices(result)
    records = [result["results"][method.key] for method in methods]
    took = [costs(record) for record in records]

    def row(name: str, key: str, form: str) -> list[str | Cell]:
        return [name, *(number(each[key], form) for each in took)]

    def evaluation(each: Mapping[str, Any]) -> Cell:
        cached = each["embeddings"] == "from cache"
        return Cell(number(each["evaluation_seconds"], ",.1f"), below="embeddings from cache" if cached else "")

    rows = [
        [METRIC_LABELS[METRIC], *(f"{record['metrics'][METRIC]:.4f}" for record in records)],
        row("trained parameters", "trained_parameters", ",d"),
        row("training steps", "steps", ",d"),
        row("training, seconds", "training_seconds", ",.1f"),
        ["test, seconds", *map(evaluation, took)],
        row("total, seconds", "runtime_seconds", ",.1f"),
        ["embeddings searched", *(size(each["embedding_bytes"]) for each in took)],
        ["index", *map(index, took)],
        [f"energy, Wh, {devices}", *(watt_hours(each["energy_joules"]) for each in took)],
    ]
    return Table(["Cost", *(method.label for method in methods)], rows if devices else rows[:-1])


def splits(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """Facts of each split; a SHA-256 is shortened to fit."""

    def plain(value: Any) -> str:
        if value is None:
            return "-"
        return f"{value:,}" if isinstance(value, int) else re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1", str(value))

    names = list(dict.fromkeys(key for split in found.values() for key in split))
    rows = [[name, *(plain(split.get(key)) for key in names)] for name, split in found.items()]
    return Table(["Split", *(name.replace("_", " ") for name in names)], rows)
