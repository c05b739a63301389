"""Trials, seeds, folds and compute as text: a line after each training, and tables at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from maw.config.methods import Method, methods_of
from maw.evaluation.confirmatory import METRIC
from maw.evaluation.metrics import METRIC_LABELS
from maw.report.text.format import as_table

RATE_NAMES = {
    "learning_rate": "learning rate",
    "kernel_learning_rate": "kernel rate",
    "router_learning_rate": "router rate",
}
"""The name of each rate in reports, by its setting."""
_LABEL = METRIC_LABELS[METRIC]
_SCORE = f"val_{METRIC}"


def trial_line(trial: Mapping[str, Any], trials: int, best: bool) -> str:
    """The record of one trial; `trials` is their number, `best` whether this one is the best so far."""
    rates = ", ".join(f"{RATE_NAMES.get(name, name)} {rate:g}" for name, rate in trial["rates"].items())
    score = trial[_SCORE]
    found = "diverged" if score is None else f"validation {_LABEL} {score:.4f}{', best so far' * best}"
    return f"   trial {trial['trial']} of {trials}: {rates}: {found} ({trial['seconds']:.1f} s)"


def run_line(record: Mapping[str, Any]) -> str:
    """One training of a method that has several; `record` is an entry of dataset.json's "runs"."""
    which = f"seed {record['seed']}" + (f", fold {record['fold']}" if "fold" in record else "")
    found = f"validation {_LABEL} {record[_SCORE]:.4f} in epoch {record['best_epoch']}"
    return f"   {which}: {found} ({record['runtime_seconds']:.1f} s)"


def spread_line(record: Mapping[str, Any]) -> str:
    """Mean and standard deviation over a method's seeds; empty for one seed."""
    spread = record.get("spread")
    return f"{_LABEL} over {spread['seeds']} seeds: {spread['mean']:.4f} +/- {spread['std']:.4f}" if spread else ""


def seeds_table(result: Mapping[str, Any]) -> str:
    """Table of each method's spread over seeds; empty for one seed."""
    rows = []
    for method, record in _records(result):
        spread = record.get("spread")
        if spread:
            values = (spread[key] for key in ("mean", "std", "min", "max"))
            rows.append([method.label, *(f"{value:.4f}" for value in values), str(spread["seeds"])])
    return as_table([f"{_LABEL} over seeds", "mean", "std", "lowest", "highest", "seeds"], rows) if rows else ""


def tuning_table(result: Mapping[str, Any]) -> str:
    """Table of the rates that each search chose; empty without a search."""
    names = [name for name in RATE_NAMES if any(name in search["chosen"] for _, search in _searches(result))]
    rows = [
        [
            f"{method.label}{', fold ' + str(search['fold']) if 'fold' in search else ''}",
            *(f"{search['chosen'][name]:g}" if name in search["chosen"] else "-" for name in names),
            f"{search['trials'][search['chosen_trial'] - 1][_SCORE]:.4f}",
            str(len(search["trials"])),
        ]
        for method, search in _searches(result)
    ]
    header = ["Tuned on validation", *(RATE_NAMES[name] for name in names), f"val. {_LABEL}", "trials"]
    return as_table(header, rows) if rows else ""


def compute_table(result: Mapping[str, Any]) -> str:
    """Table of what training took, trials included; empty if no method trains."""
    rows = []
    for method, record in _records(result):
        cost = compute(record)
        if cost:
            counts = (f"{cost[key]:,}" for key in ("runs", "trials", "steps", "optimizer_steps"))
            rows.append([method.label, *counts, f"{cost['seconds']:,.1f}"])
    return as_table(["Training compute", "runs", "trials", "steps", "updates", "seconds"], rows) if rows else ""


def compute(record: Mapping[str, Any]) -> dict[str, Any]:
    """Steps and seconds of all trainings and trials of a method; empty for a method that is not trained.

    A step is one batch forward and backward, an optimizer step one update of the weights. Steps of a trial that
    diverged are unknown and not counted.
    """
    runs = [run for run in record.get("runs", ()) if "steps" in run]
    if not runs:
        return {}
    trials = [trial for search in record.get("tuning", ()) for trial in search["trials"]]
    return {
        "runs": len(runs),
        "trials": len(trials),
        "steps": sum(each.get("steps", 0) for each in (*runs, *trials)),
        "optimizer_steps": sum(each.get("optimizer_steps", 0) for each in (*runs, *trials)),
        "seconds": sum(run["training_seconds"] for run in runs) + sum(trial["seconds"] for trial in trials),
    }


def edge_warning(method: Method, searches: Sequence[Mapping[str, Any]]) -> str:
    """A warning if a search chose the lowest or highest rate it tried; else empty."""
    found = [
        f"{RATE_NAMES.get(name, name)} {search['chosen'][name]:g}, the {edge}"
        + (f" in fold {search['fold']}" if "fold" in search else "")
        for search in searches
        for name, edge in search["at_edge"].items()
    ]
    if not found:
        return ""
    return (
        f"{method.label}: trials chose values at the edge of those tried ({'; '.join(found)}); more trials may find "
        "better ones"
    )


def rate_range(record: Mapping[str, Any]) -> str:
    """A method's learning rate, or its lowest and highest over the folds."""
    rates = [run.get("learning_rate") for run in record.get("runs", [record])]
    rates = [rate for rate in rates if rate is not None]
    if not rates:
        return "-"
    low, high = min(rates), max(rates)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _records(result: Mapping[str, Any]) -> Iterator[tuple[Method, Mapping[str, Any]]]:
    return ((method, result["results"][method.key]) for method in methods_of(result))


def _searches(result: Mapping[str, Any]) -> list[tuple[Method, Mapping[str, Any]]]:
    return [(method, search) for method, record in _records(result) for search in record.get("tuning", ())]
