"""The comparisons on which claims are made, fixed beforehand: nDCG@10, MAW against its controls, on every dataset.

All other tests of a run are exploratory (`maw.evaluation.exploratory`). Those of the family are corrected together by
Holm's procedure, over all datasets of the run: `summary/confirmatory.json` has the whole family, a dataset's own file
the part of it that was measured there, corrected within the dataset.

Before any test result is shown a run says how small a difference it could find at all (`smallest_effects`): at the
level that a test of the family has to reach if no other is below it, 0.05 by the family's size, with a power of 0.8,
from the spread of the differences between the two arms on validation queries.

A corrected p can fall below 0.05 only if the uncorrected one can fall far enough, so random signs are drawn at least
`20 * size / 0.05` times: where a run asks for fewer, they are raised, and its files say so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from maw.config.methods import Method, in_order
from maw.config.tier1_config import Tier1Config
from maw.evaluation.metrics import PRIMARY, EvaluationResult
from maw.evaluation.power import POWER, fewest_queries, minimum_detectable_effect, queries_needed
from maw.evaluation.significance import differences, holm

METRIC = PRIMARY[0]
SUBJECT = "maw"
CONTROLS = ("lora", "lora_matched", "full", "full_lowrank")
LEVEL = 0.05
SIGNS_PER_LEVEL = 20

Tests = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Comparison -> metric -> the fields of `maw.evaluation.significance.PairedTest`."""


def pairs(names: Iterable[str]) -> list[tuple[Method, Method]]:
    """The comparisons of the family among the methods named: (MAW, control), in the order of the methods."""
    methods = in_order(names)
    subject = next((method for method in methods if method.name == SUBJECT), None)
    return [(subject, method) for method in methods if method.name in CONTROLS] if subject else []


def key_of(new: Method, old: Method) -> str:
    """What a comparison is called in files, such as maw_vs_lora."""
    return f"{new.short}_vs_{old.short}"


def family_size(config: Tier1Config) -> int:
    """How many comparisons the family of a run has, over all its datasets."""
    return len(pairs(config.methods)) * len(config.datasets)


def signs_for(size: int) -> int:
    """How many random signs let the smallest p of a family of that size fall well below the level once corrected."""
    return math.ceil(SIGNS_PER_LEVEL * size / LEVEL)


def smallest_effects(
    validations: Mapping[str, EvaluationResult | None], queries: int, config: Tier1Config
) -> dict[str, dict[str, Any]]:
    """What each comparison could find, from validation values alone.

    Args:
        validations: method name -> its best epochs on the validation queries, averaged over seeds; None for one that
            has none.
        queries: that will be tested.
        config: of the run, for the size of the family.

    Returns:
        Comparison -> "minimum_detectable_effect", None with the reason under "no_effect_because"; "queries" to be
        tested, "validation_queries" and the standard deviation of their differences; "level" and "power".
    """
    found = {}
    for new, old in pairs(validations):
        about: dict[str, Any] = {"queries": queries, "level": LEVEL / family_size(config), "power": POWER}
        a, b = validations[new.name], validations[old.name]
        if a is None or b is None or a.query_ids != b.query_ids:
            why = {"minimum_detectable_effect": None, "no_effect_because": "there are no validation values of both"}
            found[key_of(new, old)] = about | why
            continue
        found_Q = differences(a.per_query[METRIC], b.per_query[METRIC])
        effect = minimum_detectable_effect(found_Q, queries, level=about["level"], power=POWER)
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
    """The family's tests on one dataset, corrected within it.

    Args:
        tests: of all pairs on the test queries, every value averaged over seeds.
        effects: of `smallest_effects`.
        config: of the run.
        signs: random signs that the tests drew.

    Returns:
        What dataset.json holds under "confirmatory"; empty where the run has no such comparison.
    """
    level = LEVEL / max(family_size(config), 1)
    found = {}
    for key in (key_of(*pair) for pair in pairs(config.methods)):
        if METRIC in tests.get(key, {}):
            test = dict(tests[key][METRIC])
            needed = {"queries_needed": queries_needed(test["effect_size"], level=level)}
            found[key] = test | dict(effects.get(key, {})) | needed
    if not found:
        return {}
    about = about_family("confirmatory", len(found), signs, config)
    return {"metric": METRIC} | about | {"run_family_size": family_size(config), "comparisons": corrected(found)}


def over_run(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The whole family, corrected together; empty where the run has none.

    Args:
        results: the content of each dataset.json, of all datasets of the run.
    """
    sections = [result["confirmatory"] for result in results if result.get("confirmatory")]
    found = {
        (result["dataset"], key): test
        for result in results
        for key, test in result.get("confirmatory", {}).get("comparisons", {}).items()
    }
    rows = [{"dataset": dataset, "comparison": key} | test for (dataset, key), test in corrected(found).items()]
    return about_run(sections, len(rows)) | {"comparisons": rows} if rows else {}


def about_run(sections: Sequence[Mapping[str, Any]], size: int) -> dict[str, Any]:
    """What `about_family` said of each dataset's part of a family, of the whole of it."""
    of_datasets = ("run_family_size", "comparisons")
    return {key: value for key, value in sections[0].items() if key not in of_datasets} | {"family_size": size}


def about_family(name: str, size: int, signs: int, config: Tier1Config) -> dict[str, Any]:
    """What holds for all tests of a family; how many random signs were asked for, if more were drawn."""
    raised = {"permutations_raised_from": config.permutations} if signs > config.permutations else {}
    fixed = {"family": name, "level": LEVEL, "power": POWER, "correction": "Holm"}
    return fixed | {"family_size": size, "permutations": signs} | raised


def corrected(tests: Mapping[Any, Mapping[str, Any]]) -> dict[Any, dict[str, Any]]:
    """The tests with their p corrected as one family, and whether it is below the level."""
    found = holm([test["p_value"] for test in tests.values()])
    return {
        key: dict(test) | {"p_holm": p, "significant": p < LEVEL}
        for (key, test), p in zip(tests.items(), found, strict=True)
    }
