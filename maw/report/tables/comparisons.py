"""Comparisons of methods: relative improvements, paired tests, runtimes, and the rows of metrics_comparison.csv.

`lora_vs_zeroshot_ndcg_cut_10` is the relative difference of LoRA's nDCG@10 to zero-shot's. `maw.config.methods`
decides the order of the methods and which pairs are compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from maw.config.methods import METHODS, comparisons, in_order
from maw.evaluation.metrics import FAMILIES, METRIC_LABELS, METRICS, PRIMARY, EvaluationResult
from maw.evaluation.significance import mean_intervals, paired_tests
from maw.report.significance_marks import run_p_values

_FAMILY_OF = {key: family for family, keys in FAMILIES.items() for key in keys}
_METRIC_ORDER = (*PRIMARY, *(key for key in METRICS if key not in PRIMARY))

CSV_HEADER = (
    *("dataset", "method", "metric", "label", "family", "value"),
    *("compared_with", "baseline_value", "difference", "relative", "ci_low", "ci_high", "p_value", "t_p_value"),
    *("effect_size", "test_family", "p_holm", "p_holm_run", "minimum_detectable_effect", "queries_needed"),
)
"""Columns of metrics_comparison.csv. A row with `compared_with` holds a difference, any other row a value with the
interval of its mean. `p_holm` is corrected over the test's family within the dataset, `p_holm_run` over the run."""

_TESTED = ("ci_low", "ci_high", "p_value", "t_p_value", "effect_size", "family", "p_holm")
_FOUND = ("minimum_detectable_effect", "queries_needed")


def improvements(evaluations: Mapping[str, EvaluationResult]) -> dict[str, float | None]:
    """Relative difference of every method to each earlier one in every metric, primary metrics first.

    Args:
        evaluations: method name -> its metrics on the test split.

    Returns:
        `{short}_vs_{short}_{metric}` -> (new - old) / old; None if old is 0.
    """
    return {
        f"{new.short}_vs_{old.short}_{metric}": relative(evaluations[new.name][metric], evaluations[old.name][metric])
        for metric in _METRIC_ORDER
        for new, old in comparisons(evaluations)
    }


def significance(
    evaluations: Mapping[str, EvaluationResult],
    metrics: Sequence[str] = PRIMARY,
    *,
    permutations: int = 10_000,
    seed: int = 0,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Paired tests of every method against each earlier one.

    Returns:
        `{short}_vs_{short}` -> metric -> the fields of `maw.evaluation.significance.PairedTest`.

    Raises:
        ValueError: two evaluations have different queries, or another order of them.
    """
    pairs = list(comparisons(evaluations))
    for new, old in pairs:
        if evaluations[new.name].query_ids != evaluations[old.name].query_ids:
            raise ValueError(f"{new.name} and {old.name} were evaluated on different queries; they cannot be paired")
    if not pairs:
        return {}
    a, b = (
        np.hstack([_columns(evaluations[each.name], metrics) for each in side]) for side in zip(*pairs, strict=True)
    )
    tests = iter(paired_tests(a, b, permutations=permutations, seed=seed))  # in one call: they share the random draws
    return {
        f"{new.short}_vs_{old.short}": {metric: dataclasses.asdict(next(tests)) for metric in metrics}
        for new, old in pairs
    }


def intervals(
    evaluations: Mapping[str, EvaluationResult], metrics: Sequence[str] = PRIMARY, *, seed: int = 0
) -> dict[str, dict[str, tuple[float, float]]]:
    """95% bootstrap interval of each method's mean metrics: `{short}` -> metric -> (low, high)."""
    found = {}
    for method in in_order(evaluations):
        ends = mean_intervals(_columns(evaluations[method.name], metrics), seed=seed)
        found[method.short] = dict(zip(metrics, ends, strict=True))
    return found


def runtime_summary(seconds: Mapping[str, float]) -> dict[str, float]:
    """`{short}_seconds` of each method, and their sum in seconds and in minutes."""
    total = sum(seconds.values())
    return {
        **{f"{method.short}_seconds": round(seconds[method.name], 2) for method in in_order(seconds)},
        "total_dataset_seconds": round(total, 2),
        "total_dataset_minutes": round(total / 60, 2),
    }


def comparison_rows(
    dataset_results: Iterable[Mapping[str, Any]], families: Iterable[Mapping[str, Any]] = ()
) -> Iterator[tuple[Any, ...]]:
    """Rows under `CSV_HEADER`: for each dataset, method and metric its value, then its differences to earlier methods.

    Tested metrics have an interval and a p-value. `families` are the families of tests over all datasets of the run.
    """
    over_run = run_p_values(families)
    for result in dataset_results:
        names = [method.name for method in METHODS if method.key in result["results"]]
        for method in in_order(names):
            metrics = result["results"][method.key]["metrics"]
            ends = result.get("intervals", {}).get(method.short, {})
            for metric in METRICS:
                about = (result["dataset"], method.name, metric, METRIC_LABELS[metric], _FAMILY_OF[metric])
                value = metrics[metric]
                yield (*about, value, *(None,) * 4, *ends.get(metric, (None, None)), *(None,) * 8)
                for new, old in comparisons(names):
                    if new is method:
                        baseline = result["results"][old.key]["metrics"][metric]
                        key = f"{new.short}_vs_{old.short}"
                        test = result.get("significance", {}).get(key, {}).get(metric, {})
                        yield (
                            *about,
                            value,
                            old.name,
                            baseline,
                            value - baseline,
                            relative(value, baseline),
                            *map(test.get, _TESTED),
                            over_run.get((result["dataset"], key, metric)),
                            *map(test.get, _FOUND),
                        )


def relative(new: float, old: float) -> float | None:
    """(new - old) / old; None if old is 0."""
    return (new - old) / old if old else None


def _columns(evaluation: EvaluationResult, metrics: Sequence[str]) -> np.ndarray:
    return np.column_stack([evaluation.per_query[metric] for metric in metrics])
