"""All tests of a run that are not confirmatory: every other pair of methods, and every other primary metric.

They were not fixed beforehand, so nothing is claimed on them: they say where to look next. They are a family of their
own, labelled "exploratory" in every file, and corrected by Holm's procedure too, in dataset.json within the dataset
and in `summary/exploratory.json` over all datasets of the run. Holm's holds however the tests depend on each other,
and those of one run depend much: ten metrics of one ranking.

Random signs are drawn `20 * size / 0.05` times or more for the larger of the two families, so that a corrected p can
fall below the level in either; both families see the same draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from maw.config.methods import comparisons
from maw.config.tier1_config import Tier1Config
from maw.evaluation import confirmatory
from maw.evaluation.confirmatory import LEVEL, METRIC, Tests, about_family, about_run, corrected, signs_for
from maw.evaluation.metrics import PRIMARY
from maw.evaluation.power import detectable, queries_needed


def family_size(config: Tier1Config) -> int:
    """How many exploratory tests a run has, over all its datasets."""
    tested = len(list(comparisons(config.methods))) * len(PRIMARY) * len(config.datasets)
    return tested - confirmatory.family_size(config)


def permutations_for(config: Tier1Config) -> int:
    """How many random signs a run draws: as many as configured, or more where one of its families needs more."""
    largest = max(family_size(config), confirmatory.family_size(config))
    return max(config.permutations, signs_for(largest))


def label(tests: Tests, confirmed: Mapping[str, Any], config: Tier1Config) -> dict[str, dict[str, dict[str, Any]]]:
    """Every test with its family and the p corrected within the family and the dataset.

    Args:
        tests: of all pairs on the test queries of a dataset.
        confirmed: what `maw.evaluation.confirmatory.confirm` made of some of them.
        config: of the run.

    Returns:
        What dataset.json holds under "significance": comparison -> metric -> the test, with "family", "p_holm",
        "significant", "minimum_detectable_effect" and "queries_needed". The effect of an exploratory test is that of
        the spread of its own differences; of a confirmatory one it was stated before the result.
    """
    level = LEVEL / max(family_size(config), 1)
    taken = confirmed.get("comparisons", {})
    open_ = {
        (key, metric): dict(test)
        | {
            "level": level,
            "minimum_detectable_effect": detectable(test["std_of_differences"], test["n"], level=level),
            "queries_needed": queries_needed(test["effect_size"], level=level),
        }
        for key, by_metric in tests.items()
        for metric, test in by_metric.items()
        if not (metric == METRIC and key in taken)
    }
    explored = corrected(open_)
    return {
        key: {
            metric: {"family": "exploratory"} | explored[key, metric]
            if (key, metric) in explored
            else {"family": "confirmatory"} | taken[key]
            for metric in by_metric
        }
        for key, by_metric in tests.items()
    }


def about(labelled: Tests, config: Tier1Config, signs: int) -> dict[str, Any]:
    """What dataset.json holds under "exploratory": what all those tests have in common; empty where there are none.

    Args:
        labelled: of `label`.
        config: of the run.
        signs: random signs that the tests drew.
    """
    size = sum(test["family"] == "exploratory" for by_metric in labelled.values() for test in by_metric.values())
    if not size:
        return {}
    return about_family("exploratory", size, signs, config) | {"run_family_size": family_size(config)}


def over_run(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The whole family, corrected together; empty where the run has none.

    Args:
        results: the content of each dataset.json, of all datasets of the run.
    """
    sections = [result["exploratory"] for result in results if result.get("exploratory")]
    found = {
        (result["dataset"], key, metric): {name: value for name, value in test.items() if name != "family"}
        for result in results
        for key, by_metric in result.get("significance", {}).items()
        for metric, test in by_metric.items()
        if test.get("family") == "exploratory"
    }
    if not found or not sections:
        return {}
    rows = [
        {"dataset": dataset, "comparison": key, "metric": metric} | test
        for (dataset, key, metric), test in corrected(found).items()
    ]
    return about_run(sections, len(rows)) | {"comparisons": rows}
