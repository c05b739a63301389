"""The one sentence that a run is made for: whether MAW was better than its controls.

verdict(results, run_p_values([confirmatory.over_run(results)]))
# "No difference is shown between MAW and its control, in the one comparison fixed beforehand."
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from maw.confirmatory import LEVEL, METRIC
from maw.report.marks import RunValues, corrected_p


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
