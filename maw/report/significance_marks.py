"""Which method beats which: the letters behind values in every table, and the p-value that decides.

A method's letter is its place among those that ran. A value bears the letters of the methods that it beats: the mean
is higher, and p, corrected by Holm over the test's family, is below 0.05. The family is that of the whole run where a
table is about the run, and its part in the dataset where it is about that alone. Results without corrected p, of an
earlier version, are marked by the p that they have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from maw.config.methods import METHODS, Method, comparisons
from maw.evaluation.confirmatory import LEVEL, METRIC, key_of

LETTERS = "abcdefghijklmnopqrstuvwxyz"

RunValues = Mapping[tuple[str, str, str], float]
"""(dataset, comparison, metric) -> p corrected over the run."""


def run_p_values(families: Iterable[Mapping[str, Any] | None]) -> dict[tuple[str, str, str], float]:
    """The corrected p of every test of a run, from its families over all datasets; nothing for those not there."""
    return {
        (row["dataset"], row["comparison"], row.get("metric", family.get("metric"))): row["p_holm"]
        for family in families
        if family
        for row in family.get("comparisons", ())
    }


def methods_of(result: Mapping[str, Any]) -> list[Method]:
    """The methods that ran, in order."""
    return [method for method in METHODS if method.key in result["results"]]


def methods_of_run(results: Sequence[Mapping[str, Any]]) -> list[Method]:
    """The methods that ran on any dataset, in order."""
    return [method for method in METHODS if any(method.key in result["results"] for result in results)]


def label_of(short: str) -> str:
    """What heads a method's column, by the name that stands in keys; that name itself, if no method has it."""
    return next((method.label for method in METHODS if method.short == short), short)


def look_of(method: Method) -> int:
    """The place of a method's colour, dash and marker: the same in every chart."""
    return METHODS.index(method)


def corrected_p(result: Mapping[str, Any], key: str, metric: str, over_run: RunValues | None = None) -> float | None:
    """A test's p corrected over the run, where that is given, or over its family in the dataset; None if untested."""
    test = result.get("significance", {}).get(key, {}).get(metric)
    if test is None:
        return None
    return (over_run or {}).get((result["dataset"], key, metric), test.get("p_holm", test["p_value"]))


def beaten(
    result: Mapping[str, Any], methods: Sequence[Method], over_run: RunValues | None = None
) -> dict[tuple[str, str], str]:
    """(method, metric) -> the letters of the methods it beats, in order; nothing for those that beat none.

    Args:
        result: the content of dataset.json.
        methods: those that ran, in the order of their letters.
        over_run: of `run_p_values`, to go by the families of the whole run.
    """
    names = dict(zip(methods, LETTERS, strict=False))
    found: dict[tuple[str, str], str] = {}
    for new, old in comparisons(method.name for method in methods):
        key = key_of(new, old)
        for metric, test in result.get("significance", {}).get(key, {}).items():
            p = corrected_p(result, key, metric, over_run)
            if p < LEVEL and test["mean_difference"]:
                winner, loser = (new, old) if test["mean_difference"] > 0 else (old, new)
                letters = found.get((winner.short, metric), "") + names[loser]
                found[winner.short, metric] = "".join(sorted(letters))
    return found


def comparisons_claimed(results: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], str]]:
    """The comparisons fixed beforehand: the content of the dataset.json that has it, and its key."""
    return [(result, key) for result in results for key in result.get("confirmatory", {}).get("comparisons", {})]


def verdict(results: Sequence[Mapping[str, Any]], over_run: RunValues) -> str:
    """The claim in one sentence.

    Args:
        results: the content of each dataset.json.
        over_run: of `run_p_values`; empty as long as datasets are missing, and p is then that of each dataset.
    """
    confirmed = comparisons_claimed(results)
    if not confirmed:
        return "No comparison of this run was fixed beforehand: it takes MAW and a control. All tests explore."
    better = worse = 0
    for result, key in confirmed:
        test = result["confirmatory"]["comparisons"][key]
        if corrected_p(result, key, METRIC, over_run) < LEVEL:
            better, worse = better + (test["mean_difference"] > 0), worse + (test["mean_difference"] < 0)
    size = len(confirmed)
    whom = "its control" if size == 1 else "its controls"
    if not better and not worse:
        of = "the one comparison" if size == 1 else f"any of the {size} comparisons"
        return f"No difference is shown between MAW and {whom}, in {of} fixed beforehand."
    if better and worse:
        return f"Mixed: of {size} comparisons fixed beforehand MAW is better in {better} and worse in {worse}."
    of = "the one comparison" if size == 1 else f"{better or worse} of the {size} comparisons"
    return f"MAW is {'better' if better else 'worse'} than {whom} in {of} fixed beforehand."
