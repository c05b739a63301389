"""Confirmatory tests, planned before the run: nDCG@10 of a subject against each control, on every dataset.

The subject is MAW with its four controls, unless `compare` says otherwise (`maw.config.methods.claim`).

All other tests of a run are exploratory (`maw.evaluation.exploratory`). The family of confirmatory tests is corrected
by Holm's procedure: over all datasets in `summary/confirmatory.json`, and within a dataset in the dataset's own file.

Before it shows a test result, a run states the minimum detectable effect of each comparison (`smallest_effects`): with
power 0.8 at level 0.05 / (size of the family), the level of Holm's first step, from the spread of the differences
between the two methods on validation queries.

A corrected p can be below 0.05 only if the uncorrected p can be small enough. So at least `20 * size / 0.05` random
signs are drawn; if the configuration asks for fewer, the number is raised and the result files state it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from maw.config.methods import Method, claim, in_order
from maw.config.tier1_config import Tier1Config
from maw.evaluation.metrics import PRIMARY, EvaluationResult
from maw.evaluation.power import POWER, fewest_queries, minimum_detectable_effect, queries_needed
from maw.evaluation.significance import differences, holm

METRIC = PRIMARY[0]
LEVEL = 0.05
SIGNS_PER_LEVEL = 20

Tests = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Comparison -> metric -> the fields of `maw.evaluation.significance.PairedTest`."""


def pairs(config: Tier1Config) -> list[tuple[Method, Method]]:
    """The comparisons of the family, of the subject and each control; the later method in the order comes first."""
    planned = claim(config)
    if planned is None:
        return []
    order = in_order(config.methods)  # of two methods of users, too: that in which the run names them
    both = (sorted(in_order([planned["subject"], control]), key=order.index) for control in planned["controls"])
    return sorted(((new, old) for old, new in both), key=lambda pair: order.index(pair[1]))


def key_of(new: Method, old: Method) -> str:
    """The name of a comparison in files, such as maw_vs_lora."""
    return f"{new.short}_vs_{old.short}"


def family_size(config: Tier1Config) -> int:
    """The number of comparisons in a run's family, over all its datasets."""
    return len(pairs(config)) * len(config.datasets)


def signs_for(size: int) -> int:
    """The number of random signs with which the smallest corrected p of a family is well below the level."""
    return math.ceil(SIGNS_PER_LEVEL * size / LEVEL)


def smallest_effects(
    validations: Mapping[str, EvaluationResult | None], queries: int, config: Tier1Config
) -> dict[str, dict[str, Any]]:
    """The minimum detectable effect of each comparison, from validation values.

    Args:
        validations: method name -> values of its best epochs on the validation queries, averaged over seeds, or None.

    Returns:
        Comparison -> "minimum_detectable_effect", or None with the reason in "no_effect_because"; "queries" of the
        test, "validation_queries" and "validation_std_of_differences"; "level" and "power".
    """
    found = {}
    for new, old in pairs(config):
        if new.name not in validations or old.name not in validations:
            continue
        about: dict[str, Any] = {"queries": queries, "level": LEVEL / family_size(config), "power": POWER}
        a, b = validations[new.name], validations[old.name]
        if a is None or b is None or a.query_ids != b.query_ids:
            why = {"minimum_detectable_effect": None, "no_effect_because": "there are no validation values of both"}
            found[key_of(new, old)] = about | why
            continue
        found_Q = differences(a.per_query[METRIC], b.per_query[METRIC])
        effect = minimum_detectable_effect(found_Q, queries, level=about["level"])
        about |= {"validation_queries": len(found_Q), "minimum_detectable_effect": effect}
        if effect is not None:
            about["validation_std_of_differences"] = float(found_Q.std(ddof=1))
        elif len(found_Q) < 2 or queries < fewest_queries(about["level"]):
            about["no_effect_because"] = "there are too few validation or test queries"
        else:
            about["no_effect_because"] = "their differences on validation queries do not vary"
        found[key_of(new, old)] = about
    return found


def confirm(tests: Tests, effects: Mapping[str, Mapping[str, Any]], config: Tier1Config, signs: int) -> dict[str, Any]:
    """The family's tests on one dataset, corrected within it: "confirmatory" of dataset.json, or empty.

    Args:
        tests: tests of all pairs on the test queries, with values averaged over seeds.
        signs: number of random signs that the tests drew.
    """
    level = LEVEL / max(family_size(config), 1)
    found = {}
    for key in (key_of(*pair) for pair in pairs(config)):
        if METRIC in tests.get(key, {}):
            test = dict(tests[key][METRIC])
            needed = {"queries_needed": queries_needed(test["effect_size"], level=level)}
            found[key] = test | dict(effects.get(key, {})) | needed
    if not found:
        return {}
    about = about_family("confirmatory", len(found), signs, config)
    return {"metric": METRIC} | about | {"run_family_size": family_size(config), "comparisons": corrected(found)}


def over_run(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The family's tests over all datasets, corrected together, from the contents of all dataset.json."""
    found = {
        (result["dataset"], key): test
        for result in results
        for key, test in result.get("confirmatory", {}).get("comparisons", {}).items()
    }
    return family_over_run("confirmatory", results, found, ("dataset", "comparison"))


def family_over_run(
    name: str,
    results: Sequence[Mapping[str, Any]],
    tests: Mapping[tuple[str, ...], Mapping[str, Any]],
    columns: tuple[str, ...],
) -> dict[str, Any]:
    """A family's tests over all datasets, corrected together, and its shared facts; empty without tests."""
    sections = [result[name] for result in results if result.get(name)]
    if not tests or not sections:
        return {}
    shared = {key: each for key, each in sections[0].items() if key not in ("run_family_size", "comparisons")}
    rows = [dict(zip(columns, key, strict=True)) | test for key, test in corrected(tests).items()]
    return shared | {"family_size": len(rows), "comparisons": rows}


def about_family(name: str, size: int, signs: int, config: Tier1Config) -> dict[str, Any]:
    """Facts that all tests of a family share, with the configured number of random signs if it was raised."""
    raised = {"permutations_raised_from": config.permutations} if signs > config.permutations else {}
    fixed = {"family": name, "level": LEVEL, "power": POWER, "correction": "Holm"}
    return fixed | {"family_size": size, "permutations": signs} | raised


def corrected(tests: Mapping[Any, Mapping[str, Any]]) -> dict[Any, dict[str, Any]]:
    """The tests with p corrected by Holm's procedure as one family, and whether it is below the level."""
    found = holm([test["p_value"] for test in tests.values()])
    return {
        key: dict(test) | {"p_holm": p, "significant": p < LEVEL}
        for (key, test), p in zip(tests.items(), found, strict=True)
    }
