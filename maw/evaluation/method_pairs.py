"""Comparisons of every pair of methods on one dataset: relative differences, paired tests, intervals of the means.

`lora_vs_zeroshot_ndcg_cut_10` is the relative difference of LoRA's nDCG@10 to zero-shot's. `maw.config.methods`
decides the order of the methods and which pairs are compared. `maw.evaluation.confirmatory` and
`maw.evaluation.exploratory` correct the p-values within their families.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from maw.config.methods import comparisons, in_order
from maw.evaluation.metrics import METRICS, PRIMARY, EvaluationResult
from maw.evaluation.significance import mean_intervals, paired_tests


def improvements(evaluations: Mapping[str, EvaluationResult]) -> dict[str, float | None]:
    """Relative difference of every method to each earlier one in every metric, primary metrics first.

    Returns:
        `{short}_vs_{short}_{metric}` -> (new - old) / old; None if old is 0.
    """
    return {
        f"{new.short}_vs_{old.short}_{metric}": relative(evaluations[new.name][metric], evaluations[old.name][metric])
        for metric in (*PRIMARY, *(key for key in METRICS if key not in PRIMARY))
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


def relative(new: float, old: float) -> float | None:
    """(new - old) / old; None if old is 0."""
    return (new - old) / old if old else None


def _columns(evaluation: EvaluationResult, metrics: Sequence[str]) -> np.ndarray:
    return np.column_stack([evaluation.per_query[metric] for metric in metrics])
