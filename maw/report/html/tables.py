"""The tables of the page: numbers of a run as text, in rows and columns. Captions stand in the templates."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from maw.config.methods import Method
from maw.evaluation.confirmatory import LEVEL, METRIC
from maw.evaluation.metrics import METRIC_LABELS, PRIMARY
from maw.report import series
from maw.report.series import Result
from maw.report.significance_marks import (
    LETTERS,
    RunValues,
    beaten,
    corrected_p,
    label_of,
    look_of,
    methods_of,
    methods_of_run,
)
from maw.report.text.costs import costs, energy_kind, size, watt_hours
from maw.report.text.format import p_value


class Cell(NamedTuple):
    """A cell that is more than text: bold, with letters above the line, a remark below, or a method's look before."""

    text: str
    strong: bool = False
    letters: str = ""
    below: str = ""
    look: int | None = None


@dataclass(frozen=True)
class Table:
    """Rows below a header; the first cell of each heads its row, and numbers stand from a column on."""

    header: Sequence[str | Cell]
    rows: Sequence[Sequence[str | Cell]]
    numbers_from: int = 1


def number(value: float | None, form: str) -> str:
    """A number in a form of `format`; a dash where there is none."""
    return "-" if value is None else f"{value:{form}}"


def overview(results: Sequence[Result]) -> Table:
    """The headline metric, datasets by methods."""
    methods, rows = methods_of_run(results), []
    for result in results:
        records = [result["results"].get(method.key) for method in methods]
        values = [record["metrics"][METRIC] if record else None for record in records]
        best = max(value for value in values if value is not None)
        rows.append([result["venue"], *(Cell(number(value, ".4f"), strong=value == best) for value in values)])
    return Table(["Dataset", *(method.label for method in methods)], rows)


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


_TEST = ("First minus second", "difference", "relative", "95% interval", "p", "Holm p", "t-test p", "d_z")
_TEST += ("detectable", "queries needed", "better / worse / same")


def confirmatory(result: Result, over_run: RunValues) -> Table:
    """The tests fixed before the run, a column each: there are four at most, and eleven values."""
    tests = result.get("confirmatory", {}).get("comparisons", {})
    columns = [[_name(key), *_cells(result, key, METRIC, test, over_run)] for key, test in tests.items()]
    header, *rows = zip(_TEST, *columns, strict=True)
    return Table(header, rows if tests else [])


def exploratory(result: Result, over_run: RunValues) -> Table:
    """All other tests, a row each."""
    confirmed = result.get("confirmatory", {}).get("comparisons", {})
    rows = [
        [_name(key), METRIC_LABELS[metric], *_cells(result, key, metric, test, over_run)]
        for key, by_metric in result.get("significance", {}).items()
        for metric, test in by_metric.items()
        if not (metric == METRIC and key in confirmed)
    ]
    return Table([_TEST[0], "metric", *_TEST[1:]], rows, numbers_from=2)


def _cells(result: Result, key: str, metric: str, test: Mapping[str, Any], over_run: RunValues) -> list[str | Cell]:
    p = corrected_p(result, key, metric, over_run)
    return [
        f"{test['mean_difference']:+z.4f}",
        number(test["relative"], "+z.1%"),
        f"{test['ci_low']:+z.4f} to {test['ci_high']:+z.4f}",
        p_value(test["p_value"]),
        Cell(p_value(p), strong=p is not None and p < LEVEL),
        p_value(test.get("t_p_value")),
        number(test.get("effect_size"), "+z.3f"),
        number(test.get("minimum_detectable_effect"), ".4f"),
        number(test.get("queries_needed"), ",d"),
        f"{test['wins']} / {test['losses']} / {test['ties']}",
    ]


def _name(key: str) -> str:
    return " - ".join(map(label_of, key.split("_vs_")))


def recall(result: Result) -> Table:
    """Recall at each cutoff."""
    rows = [[line.name, *(f"{value:.4f}" for _, value in line.points)] for line in series.recall(result)]
    return Table(["Method", *(f"@{k}" for k in series.RECALL)], rows)


def cost(result: Result) -> Table:
    """What each method took, beside what it reached, a column each."""
    names = (METRIC_LABELS[METRIC], "trained parameters", "training steps", "training s", "evaluation s", "all s")
    names = (*names, "embeddings searched", "index", f"energy, Wh, {energy_kind(result)}")
    methods = methods_of(result)
    columns = (_took(result["results"][method.key]) for method in methods)
    return Table(["Cost", *(method.label for method in methods)], list(zip(names, *columns, strict=True)))


def _took(record: Mapping[str, Any]) -> list[str | Cell]:
    took = costs(record)
    cached = "embeddings from cache" if took["embeddings"] == "from cache" else ""
    return [
        f"{record['metrics'][METRIC]:.4f}",
        f"{took['trained_parameters']:,}",
        f"{took['steps']:,}",
        number(took["training_seconds"], ",.1f"),
        Cell(number(took["evaluation_seconds"], ",.1f"), below=cached),
        number(took["runtime_seconds"], ",.1f"),
        size(took["embedding_bytes"]),
        took["search"] if took["index_bytes"] is None else f"{size(took['index_bytes'])} {took['search']}",
        watt_hours(took["energy_joules"]),
    ]


def splits(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """What each split has; of a whole SHA-256, which would push the others out of sight, the first digits."""

    def plain(value: Any) -> str:
        if value is None:
            return "-"
        return f"{value:,}" if isinstance(value, int) else re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1", str(value))

    names = list(dict.fromkeys(key for split in found.values() for key in split))
    rows = [[name, *(plain(split.get(key)) for key in names)] for name, split in found.items()]
    return Table(["Split", *(name.replace("_", " ") for name in names)], rows)
