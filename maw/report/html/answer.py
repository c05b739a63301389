"""The first lines of the page: who wins, by how much, how sure, and what could have been seen at all.

What is claimed is the confirmatory family's: MAW against its controls in nDCG@10. Where a run has none, the best
method is set against the next one, and the page says that nobody fixed that comparison beforehand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from maw.config.methods import Method, comparisons
from maw.evaluation.confirmatory import LEVEL, METRIC, key_of
from maw.evaluation.metrics import METRIC_LABELS
from maw.report.html.markup import Markup, element, joined, paragraph
from maw.report.significance_marks import RunValues, comparisons_claimed, corrected_p, label_of, methods_of, verdict
from maw.report.text.format import p_value

_LABEL = METRIC_LABELS[METRIC]


def answer(results: Sequence[Mapping[str, Any]], over_run: RunValues) -> Markup:
    """The box at the top.

    Args:
        results: the content of each dataset.json.
        over_run: the corrected p of every test over the run; empty as long as datasets are missing.
    """
    confirmed = comparisons_claimed(results)
    parts = [paragraph(element("strong", verdict(results, over_run)))]
    parts += [_confirmed(result, key, over_run, alone=len(results) == 1) for result, key in confirmed]
    if len(results) == 1 or not confirmed:  # else the table below the box has the means
        parts += [_highest(result, with_test=not confirmed, over_run=over_run) for result in results]
    return element("div", joined(parts), class_="answer")


def _confirmed(result: Mapping[str, Any], key: str, over_run: RunValues, *, alone: bool) -> Markup:
    test = result["confirmatory"]["comparisons"][key]
    p, difference = corrected_p(result, key, METRIC, over_run), test["mean_difference"]
    new, old = map(label_of, key.split("_vs_"))
    where = "" if alone else f"{result['venue']}: "
    family = "run" if over_run else "dataset"
    if p < LEVEL:
        says = f"{where}{new} is {'better' if difference > 0 else 'worse'} than {old} by {_amount(test)}"
        kind = "good" if difference > 0 else "bad"
    else:
        says, kind = f"{where}{new} and {old} do not differ significantly ({_amount(test)})", None
    smallest = test.get("minimum_detectable_effect")
    could = (
        f" A true difference of {smallest:.4f} would have been found with a probability of {test['power']:.0%}."
        if smallest is not None and p >= LEVEL
        else ""
    )
    interval = f"95% interval {test['ci_low']:+z.4f} to {test['ci_high']:+z.4f}"
    sure = f"; {interval}, p {p_value(p)} after Holm's correction in the {family}."
    return paragraph(element("span", says, class_=kind), f"{sure}{could}")


def _highest(result: Mapping[str, Any], *, with_test: bool, over_run: RunValues) -> Markup:
    """The highest mean, and how it stands to the next."""
    methods = sorted(methods_of(result), key=lambda method: -_value(result, method))
    best = methods[0]
    text = f"Highest mean {_LABEL} on {result['venue']}: {best.label}, {_value(result, best):.4f}"
    if len(methods) > 1:
        first, next_ = (f"{_value(result, method):.4f}" for method in methods[:2])
        text += f", {'level with' if first == next_ else 'before'} {methods[1].label}, {next_}"
    pair = next((pair for pair in comparisons(m.name for m in methods[:2]) if len(methods) > 1), None)
    test = result.get("significance", {}).get(key_of(*pair), {}).get(METRIC) if pair and with_test else None
    if test:
        p = corrected_p(result, key_of(*pair), METRIC, over_run)
        text += f" (p {p_value(p)}, corrected with all exploratory tests)"
    return paragraph(f"{text}.")


def _amount(test: Mapping[str, Any]) -> str:
    share = "" if test["relative"] is None else f", {test['relative']:+z.1%}"
    return f"{test['mean_difference']:+z.4f} {_LABEL}{share}"


def _value(result: Mapping[str, Any], method: Method) -> float:
    return result["results"][method.key]["metrics"][METRIC]
