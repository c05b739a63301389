"""The rows of metrics_comparison.csv."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from maw.config.methods import comparisons, methods_of
from maw.evaluation.method_pairs import relative
from maw.evaluation.metrics import FAMILIES, METRIC_LABELS, METRICS
from maw.report.significance_marks import run_p_values

_FAMILY_OF = {key: family for family, keys in FAMILIES.items() for key in keys}

CSV_HEADER = (
    *("dataset", "method", "metric", "label", "family", "value"),
    *("compared_with", "baseline_value", "difference", "relative", "ci_low", "ci_high", "p_value", "t_p_value"),
    *("effect_size", "test_family", "p_holm", "p_holm_run", "minimum_detectable_effect", "queries_needed"),
)
"""Columns of metrics_comparison.csv. A row with `compared_with` holds a difference, any other row a value with the
interval of its mean. `p_holm` is corrected over the test's family within the dataset, `p_holm_run` over the run."""

_TESTED = ("ci_low", "ci_high", "p_value", "t_p_value", "effect_size", "family", "p_holm")
_FOUND = ("minimum_detectable_effect", "queries_needed")


def comparison_rows(
    dataset_results: Iterable[Mapping[str, Any]], families: Iterable[Mapping[str, Any]] = ()
) -> Iterator[tuple[Any, ...]]:
    """Rows under `CSV_HEADER`: for each dataset, method and metric its value, then its differences to earlier methods.

    Tested metrics have an interval and a p-value. `families` are the families of tests over all datasets of the run.
    """
    over_run = run_p_values(families)
    for result in dataset_results:
        methods = methods_of(result)
        names = [method.name for method in methods]
        for method in methods:
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
