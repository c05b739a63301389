"""What the page says of one dataset: values and intervals, differences, curves, routing, cost, data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from maw.config.methods import Method
from maw.evaluation.confirmatory import LEVEL, METRIC
from maw.evaluation.metrics import METRIC_LABELS, PRIMARY
from maw.report.html.charts import Bar, bar_chart, histogram, line_chart, swatch
from maw.report.html.markup import Markup, details, element, facts, joined, paragraph, table
from maw.report.series import RECALL, SIDES, Result, Series, by_epoch, histories, kept_epoch, recall, sides
from maw.report.significance_marks import LETTERS, RunValues, beaten, corrected_p, label_of, look_of, methods_of
from maw.report.text.costs import cost_note, costs, energy_devices, size, watt_hours
from maw.report.text.format import p_value

_LABEL = METRIC_LABELS[METRIC]


def values(result: Result, over_run: RunValues) -> Markup:
    """Every method's primary metrics with intervals and letters, and the headline metric as bars."""
    methods = methods_of(result)
    marks, ends = beaten(result, methods, over_run), result.get("intervals", {})
    best = {metric: max(result["results"][method.key]["metrics"][metric] for method in methods) for metric in PRIMARY}

    def cell(method: Method, metric: str) -> Markup:
        value = result["results"][method.key]["metrics"][metric]
        text = element("strong" if value == best[metric] else "span", f"{value:.4f}")
        letters = marks.get((method.short, metric))
        interval = ends.get(method.short, {}).get(metric)
        return (
            text
            + (element("sup", f" {letters}") if letters else "")
            + (element("span", f"{interval[0]:.4f} to {interval[1]:.4f}", class_="soft") if interval else "")
        )

    rows = [[METRIC_LABELS[metric], *(cell(method, metric) for method in methods)] for metric in PRIMARY]
    family = "run" if over_run else "dataset"
    caption = (
        "Means over the test queries with their 95% bootstrap intervals. The best of a row is bold; a letter marks "
        f"a gain over the method of that letter with p < {LEVEL:g}, corrected by Holm over the test's family in the "
        f"{family}."
    )
    header = [
        "Metric",
        *(swatch(look_of(m)) + f" ({letter}) {m.label}" for letter, m in zip(LETTERS, methods, strict=False)),
    ]
    bars = [
        Bar(
            method.label,
            look_of(method),
            result["results"][method.key]["metrics"][METRIC],
            *(ends.get(method.short, {}).get(METRIC) or (None, None)),
        )
        for method in methods
    ]
    chart = bar_chart(f"{_LABEL} and its 95% interval", bars, name=_LABEL)
    return table(caption, header, rows, name="Values of every method") + chart


def differences(result: Result, over_run: RunValues) -> Markup:
    """The confirmatory tests, and all others on demand."""
    section = result.get("confirmatory", {})
    confirmed = section.get("comparisons", {})
    family = "run" if over_run else "dataset"
    columns = [[_name(key), *_cells(result, key, METRIC, test, over_run)] for key, test in confirmed.items()]
    header, *rows = zip(_HEADER, *columns, strict=True)  # a column each: there are four at most, and eleven values
    parts = [table(f"Confirmatory: {_LABEL}, fixed before the run; Holm over the {family}", header, rows)]
    parts = parts if columns else []
    explored = [
        [_name(key), METRIC_LABELS[metric], *_cells(result, key, metric, test, over_run)]
        for key, by_metric in result.get("significance", {}).items()
        for metric, test in by_metric.items()
        if not (metric == METRIC and key in confirmed)
    ]
    caption = f"Exploratory: every other pair and primary metric; Holm over all of them in the {family}"
    if explored:
        header = (_HEADER[0], "metric", *_HEADER[1:])
        shown = table(caption, header, explored, numbers_from=2)
        parts.append(details(f"Exploratory tests ({len(explored)})", shown))
    return joined(parts)


_HEADER = ("First minus second", "difference", "relative", "95% interval", "p", "Holm p", "t-test p", "d_z")
_HEADER += ("detectable", "queries needed", "better / worse / same")


def _cells(result: Result, key: str, metric: str, test: Mapping[str, Any], over_run: RunValues) -> list[Any]:
    p = corrected_p(result, key, metric, over_run)
    shown = element("strong", p_value(p)) if p is not None and p < LEVEL else p_value(p)
    return [
        f"{test['mean_difference']:+z.4f}",
        _number(test["relative"], "+z.1%"),
        f"{test['ci_low']:+z.4f} to {test['ci_high']:+z.4f}",
        p_value(test["p_value"]),
        shown,
        p_value(test.get("t_p_value")),
        _number(test.get("effect_size"), "+z.3f"),
        _number(test.get("minimum_detectable_effect"), ".4f"),
        _number(test.get("queries_needed"), ",d"),
        f"{test['wins']} / {test['losses']} / {test['ties']}",
    ]


def curves(result: Result) -> Markup:
    """Recall by depth of the ranking, and validation and loss by epoch."""
    methods = methods_of(result)
    every = [Series(method.label, look_of(method), recall(result, method)) for method in methods]
    chart = line_chart("Recall by passages looked at", every, x_name="passages", y_name="recall", log_x=True)
    names = ["Method", *(f"@{k}" for k in RECALL)]
    rows = [[method.label, *(f"{value:.4f}" for _, value in recall(result, method))] for method in methods]
    val, loss = by_epoch(result, f"val_{METRIC}"), by_epoch(result, "train_loss")
    epochs = [
        line_chart(f"Validation {_LABEL} by epoch", val, x_name="epoch", y_name=_LABEL),
        line_chart("Training loss by epoch", loss, x_name="epoch", y_name="loss"),
    ]
    seeds = [record for method in methods if len(record := result["results"][method.key].get("runs", ())) > 1]
    note = paragraph("Curves are those of the first seed and fold.", class_="soft") if seeds else ""
    shown = element("div", *epochs, class_="charts") if any(epochs) else ""
    return joined([chart, details("Recall as a table", table("Recall", names, rows)), note, shown])


def routing(result: Result) -> Markup:
    """Entropy of the policies, effective depths and picks, of every method whose history tells."""
    parts = []
    for method, history in histories(result):
        if "val_routing" not in history[0]:
            continue
        kept = kept_epoch(history)
        charts = [
            line_chart(title, sides(history, key), x_name="epoch", y_name=name, from_zero=True)
            for key, title, name in (
                ("policy_entropy", "Entropy of the policy on validation texts", "nats"),
                ("effective_depths", "Effective depths of greedy picks", "depths"),
            )
        ]
        for side, name in SIDES.items():
            shares = np.asarray(kept["val_routing"][side]["depth_histogram"]).mean(0).tolist()
            title = f"Greedy picks of {name}, epoch {kept['epoch']}, the one that was kept"
            charts.append(histogram(title, shares, look_of(method), name="depth"))
        parts.append(element("h4", method.label) + element("div", *charts, class_="charts"))
    return joined(parts)


def cost(result: Result) -> Markup:
    """What each method took, beside what it reached."""
    methods = methods_of(result)
    devices = energy_devices(result)
    columns = [_took(result["results"][method.key], energy=bool(devices)) for method in methods]
    names = (_LABEL, "trained parameters", "training steps", "training s", "evaluation s", "all s")
    names = (*names, "embeddings searched", "index", *([f"energy, Wh, {devices}"] if devices else []))
    rows = [list(row) for row in zip(names, *columns, strict=True)]
    caption = "Cost beside quality; training includes all seeds, folds and trials"
    notes = []
    peak = result.get("environment", {}).get("peak_memory_bytes")
    if peak:
        notes.append(f"The program had at most {peak / 1e9:.2f} GB in use up to the end of this dataset.")
    notes.append(cost_note(result))
    shown = table(caption, ["Cost", *(method.label for method in methods)], rows)
    return joined([shown, *(paragraph(note, class_="soft") for note in notes)])


def _took(record: Mapping[str, Any], *, energy: bool) -> list[Any]:
    """The cells of one method."""
    took = costs(record)
    cached = element("span", "embeddings from cache", class_="soft") if took["embeddings"] == "from cache" else ""
    return [
        f"{record['metrics'][METRIC]:.4f}",
        f"{took['trained_parameters']:,}",
        f"{took['steps']:,}",
        _number(took["training_seconds"], ",.1f"),
        element("span", _number(took["evaluation_seconds"], ",.1f")) + cached,
        _number(took["runtime_seconds"], ",.1f"),
        size(took["embedding_bytes"]),
        took["search"] if took["index_bytes"] is None else f"{size(took['index_bytes'])} {took['search']}",
        *([watt_hours(took["energy_joules"])] if energy else []),
    ]


def data(result: Result) -> Markup:
    """Splits, corpus, model, and what there is to be warned of."""
    about = result.get("data", {})
    splits = about.get("splits", {})
    names = list(dict.fromkeys(key for split in splits.values() for key in split))
    rows = [[name, *(_plain(split.get(key)) for key in names)] for name, split in splits.items()]
    header = ["Split", *(name.replace("_", " ") for name in names)]
    rest = {key: value for key, value in about.items() if key not in ("splits", "warnings")}
    return joined(
        [
            table("Splits", header, rows),
            details("All facts on the data", facts(rest)) if rest else "",
            details("The model", facts(result["model"])) if result.get("model") else "",
        ]
    )


def warnings(result: Result) -> list[str]:
    """What a reader must know of this dataset's numbers."""
    return list(dict.fromkeys([*result.get("warnings", ()), *result.get("data", {}).get("warnings", ())]))


def _plain(value: Any) -> str:
    """A cell; a whole SHA-256, which the JSON files have, would push the others out of sight."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1", str(value))


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def _name(key: str) -> str:
    return " - ".join(map(label_of, key.split("_vs_")))
