"""Trials, seeds, folds and compute as people read them: a line when one is done, and tables at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from maw.config.methods import METHODS, Method
from maw.evaluation.confirmatory import METRIC
from maw.evaluation.metrics import METRIC_LABELS
from maw.report.text.format import as_table

RATE_NAMES = {
    "learning_rate": "learning rate",
    "kernel_learning_rate": "kernel rate",
    "router_learning_rate": "router rate",
}
"""What a rate is called, by its setting."""
_LABEL = METRIC_LABELS[METRIC]
_SCORE = f"val_{METRIC}"


def trial_line(trial: Mapping[str, Any], trials: int, best: bool) -> str:
    """One trial of a search.

    Args:
        trial: its record.
        trials: how many there will be.
        best: whether it is the best so far.
    """
    rates = ", ".join(f"{RATE_NAMES.get(name, name)} {rate:g}" for name, rate in trial["rates"].items())
    score = trial[_SCORE]
    found = "diverged" if score is None else f"validation {_LABEL} {score:.4f}{', best so far' * best}"
    return f"   trial {trial['trial']} of {trials}: {rates}: {found} ({trial['seconds']:.1f} s)"


def run_line(record: Mapping[str, Any]) -> str:
    """One run of a method that has several: its record of dataset.json's "runs"."""
    which = f"seed {record['seed']}" + (f", fold {record['fold']}" if "fold" in record else "")
    found = f"validation {_LABEL} {record[_SCORE]:.4f} in epoch {record['best_epoch']}"
    return f"   {which}: {found} ({record['runtime_seconds']:.1f} s)"


def spread_line(record: Mapping[str, Any]) -> str:
    """Mean and standard deviation over a method's seeds; nothing where there is one."""
    spread = record.get("spread")
    return f"{_LABEL} over {spread['seeds']} seeds: {spread['mean']:.4f} +/- {spread['std']:.4f}" if spread else ""


def seeds_table(result: Mapping[str, Any]) -> str:
    """How far the seeds of each method lie apart; nothing where there is one."""
    rows = []
    for method, record in _records(result):
        spread = record.get("spread")
        if spread:
            values = (spread[key] for key in ("mean", "std", "min", "max"))
            rows.append([method.label, *(f"{value:.4f}" for value in values), str(spread["seeds"])])
    return as_table([f"{_LABEL} over seeds", "mean", "std", "lowest", "highest", "seeds"], rows) if rows else ""


def tuning_table(result: Mapping[str, Any]) -> str:
    """The rates that each search chose; nothing where none was made."""
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
    """What training took, trials included; nothing where no method trains."""
    rows = []
    for method, record in _records(result):
        cost = compute(record)
        if cost:
            counts = (f"{cost[key]:,}" for key in ("runs", "trials", "steps", "optimizer_steps"))
            rows.append([method.label, *counts, f"{cost['seconds']:,.1f}"])
    return as_table(["Training compute", "runs", "trials", "steps", "updates", "seconds"], rows) if rows else ""


def compute(record: Mapping[str, Any]) -> dict[str, Any]:
    """What training a method took over its runs and trials; empty for one that is not trained.

    Steps are batches that went forward and back, optimizer steps the updates that came of them. Those of a trial that
    diverged are not known, and not counted.
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
    """A warning if a method's searches left rates at the edge of what they tried, else nothing."""
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
    """A method's learning rate, or from where to where it goes over its folds."""
    rates = [run.get("learning_rate") for run in record.get("runs", [record])]
    rates = [rate for rate in rates if rate is not None]
    if not rates:
        return "-"
    low, high = min(rates), max(rates)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _records(result: Mapping[str, Any]) -> Iterator[tuple[Method, Mapping[str, Any]]]:
    return ((method, result["results"][method.key]) for method in METHODS if method.key in result["results"])


def _searches(result: Mapping[str, Any]) -> list[tuple[Method, Mapping[str, Any]]]:
    return [(method, search) for method, record in _records(result) for search in record.get("tuning", ())]
