"""Exploratory tests: all tests of a run that are not confirmatory, on all pairs of methods and all primary metrics.

They were not planned before the run, so they support no claim; they show where to look next. Every file labels them
"exploratory". Holm's procedure corrects them as a family of their own, in dataset.json within the dataset and in
`summary/exploratory.json` over all datasets. It is valid for dependent tests, such as ten metrics of one ranking.

At least `20 * size / 0.05` random signs are drawn for the larger of the two families, so that corrected p-values of
both can be below the level; both families use the same draws.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from maw.config.methods import comparisons
from maw.config.tier1_config import Tier1Config
from maw.evaluation import confirmatory
from maw.evaluation.confirmatory import LEVEL, METRIC, Tests, about_family, corrected, family_over_run, signs_for
from maw.evaluation.metrics import PRIMARY
from maw.evaluation.power import detectable, queries_needed
from maw.evaluation.significance import PairedTest


def family_size(config: Tier1Config) -> int:
    """The number of exploratory tests of a run, over all its datasets."""
    tested = len(list(comparisons(config.methods))) * len(PRIMARY) * len(config.datasets)
    return tested - confirmatory.family_size(config)


def permutations_for(config: Tier1Config) -> int:
    """The number of random signs of a run: the configured number, or more if one of its families needs more."""
    largest = max(family_size(config), confirmatory.family_size(config))
    return max(config.permutations, signs_for(largest))


def label(tests: Tests, confirmed: Mapping[str, Any], config: Tier1Config) -> dict[str, dict[str, dict[str, Any]]]:
    """Every test of a dataset with its family, and p corrected within family and dataset.

    Returns:
        "significance" of dataset.json: comparison -> metric -> the test, with "family", "p_holm", "significant",
        "minimum_detectable_effect" and "queries_needed". The minimum detectable effect of an exploratory test comes
        from the spread of its own differences; that of a confirmatory test was stated before the result.
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


def all_of(result: Mapping[str, Any], subject: str) -> dict[str, Any]:
    """The content of a dataset.json as a report on a subject that the run did not fix beforehand: no test confirms.

    The methods of users in it must be known (`maw.config.methods.methods_of`).
    """
    configuration = {**result["configuration"], "compare": f"{subject}:"}  # a subject, and no comparison with it
    config = Tier1Config.from_dict(configuration)
    fields = [each.name for each in dataclasses.fields(PairedTest)]
    tests = {
        key: {metric: {name: test[name] for name in fields if name in test} for metric, test in by_metric.items()}
        for key, by_metric in result.get("significance", {}).items()
    }
    labelled = label(tests, {}, config)
    signs = result.get("exploratory", result.get("confirmatory", {})).get("permutations", config.permutations)
    changed = {"confirmatory": {}, "significance": labelled, "exploratory": about(labelled, config, signs)}
    return {**result, "configuration": configuration, **changed}


def about(labelled: Tests, config: Tier1Config, signs: int) -> dict[str, Any]:
    """Facts for "exploratory" of dataset.json, which all exploratory tests share; empty if there are none."""
    size = sum(test["family"] == "exploratory" for by_metric in labelled.values() for test in by_metric.values())
    if not size:
        return {}
    return about_family("exploratory", size, signs, config) | {"run_family_size": family_size(config)}


def over_run(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The family's tests over all datasets, corrected together, from the contents of all dataset.json."""
    found = {
        (result["dataset"], key, metric): {name: value for name, value in test.items() if name != "family"}
        for result in results
        for key, by_metric in result.get("significance", {}).items()
        for metric, test in by_metric.items()
        if test.get("family") == "exploratory"
    }
    return family_over_run("exploratory", results, found, ("dataset", "comparison", "metric"))
