"""Significance letters in tables, and the verdict on the subject of a run against its controls.

A letter behind a value names a method with a significantly lower mean: p, corrected by Holm over the test's family, is
below 0.05. Tables of a run use the family of the whole run, tables of one dataset the part of it in that dataset.
Results of an earlier version that have no corrected p are marked by their uncorrected p.

`result` is the content of a dataset.json, `results` those of a run. `over_run` has the p corrected over the run, from
`run_p_values`; it is empty while datasets are missing, and p is then corrected within the dataset.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from maw.config.methods import METHODS, Method, comparisons, find_method, is_known, subject_of
from maw.evaluation.confirmatory import LEVEL, METRIC, key_of
from maw.evaluation.metrics import METRIC_LABELS
from maw.report.text.format import p_value

LETTERS = "abcdefghijklmnopqrstuvwxyz"
MOST_LINES = 4
"""Confirmatory comparisons of which each has a line in the verdict, significant or not."""

RunValues = Mapping[tuple[str, str, str], float]
"""(dataset, comparison, metric) -> p corrected over the run."""


def run_p_values(families: Iterable[Mapping[str, Any] | None]) -> dict[tuple[str, str, str], float]:
    """The corrected p of every test of a run, from its families over all datasets; a missing family adds none."""
    return {
        (row["dataset"], row["comparison"], row.get("metric", family.get("metric"))): row["p_holm"]
        for family in families
        if family
        for row in family.get("comparisons", ())
    }


def label_of(short: str) -> str:
    """The label of the method with that short name; the short name itself if there is no such method."""
    name = {each.short: each.name for each in METHODS}.get(short, short)
    return find_method(name).label if is_known(name) else short


def subject_in(result: Mapping[str, Any]) -> str:
    """The name of the method whose comparisons were fixed before the run."""
    return subject_of(result.get("configuration", {}).get("compare"))[0]


def corrected_p(result: Mapping[str, Any], key: str, metric: str, over_run: RunValues | None = None) -> float | None:
    """A test's p, corrected over the run if `over_run` has it, else over the dataset; None if untested."""
    test = result.get("significance", {}).get(key, {}).get(metric)
    if test is None:
        return None
    return (over_run or {}).get((result["dataset"], key, metric), test.get("p_holm", test["p_value"]))


def beaten(
    result: Mapping[str, Any], methods: Sequence[Method], over_run: RunValues | None = None
) -> dict[tuple[str, str], str]:
    """(method, metric) -> letters of the methods it beats; `methods` are in the order of their letters."""
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
    """The confirmatory comparisons: the content of the dataset.json that has each, and its key."""
    return [(result, key) for result in results for key in result.get("confirmatory", {}).get("comparisons", {})]


def verdict(results: Sequence[Mapping[str, Any]], over_run: RunValues) -> str:
    """The result of all confirmatory comparisons in one sentence, without their numbers."""
    claimed = comparisons_claimed(results)
    found = [(result, *outcome(result, key, over_run)) for result, key in claimed]
    if not found:
        planned = results[0].get("configuration", {}).get("compare") or ""
        if planned.endswith(":"):
            name = _plain(subject_in(results[0]))
            return f"The run did not fix the comparisons of {name} beforehand. All tests are exploratory."
        takes = f"it takes {_plain(subject_in(results[0]))} and a control"
        return f"No comparison of this run was fixed beforehand: {takes}. All tests are exploratory."
    if len(found) == 1:
        result, sentence, _ = found[0]
        return f"{_where(result, results)}{sentence} in {METRIC_LABELS[METRIC]}."
    subject = subject_in(results[0])
    signs = [sign if _is_first(subject, key) else -sign for (_, key), (*_, sign) in zip(claimed, found, strict=True)]
    better, worse = (signs.count(wanted) for wanted in (1, -1))
    return (
        f"{_plain(subject)} against its controls in {METRIC_LABELS[METRIC]}, {len(found)} comparisons: significantly "
        f"better in {better}, significantly worse in {worse}, no significant difference in "
        f"{len(found) - better - worse}."
    )


def verdict_lines(results: Sequence[Mapping[str, Any]], over_run: RunValues) -> list[str]:
    """The result of each confirmatory comparison with its numbers.

    Of more than four comparisons only the significant ones have a line, below a first line that counts them all.
    """
    confirmed = comparisons_claimed(results)
    if not confirmed:
        return [verdict(results, over_run)]
    lines, signs = [], []
    for result, key in confirmed:
        family, test = result["confirmatory"], result["confirmatory"]["comparisons"][key]
        sentence, sign = outcome(result, key, over_run)
        shown = p_value(corrected_p(result, key, METRIC, over_run))
        corrected = max(len(confirmed), family.get("run_family_size", 1)) > 1 and "p_holm" in test
        lines.append(
            f"{_where(result, results)}{sentence}: {METRIC_LABELS[METRIC]} {test['mean_difference']:+z.4f} "
            f"(95% interval {test['ci_low']:+z.4f} to {test['ci_high']:+z.4f}, "
            f"{'corrected ' * corrected}p {shown if shown.startswith('<') else f'= {shown}'})."
        )
        signs.append(sign)
    if len(lines) <= MOST_LINES:
        return lines
    return [verdict(results, over_run), *(line for line, sign in zip(lines, signs, strict=True) if sign)]


def _where(result: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> str:
    return f"{result['dataset']}: " if len(results) > 1 else ""


def outcome(result: Mapping[str, Any], key: str, over_run: RunValues) -> tuple[str, int]:
    """Which of two methods is significantly better, as a sentence, and the sign of its difference; 0 if neither is."""
    new, old = (_short(label_of(short)) for short in key.split("_vs_"))
    difference = result["confirmatory"]["comparisons"][key]["mean_difference"]
    p = corrected_p(result, key, METRIC, over_run)
    if p < LEVEL and (difference > 0 or difference < 0):  # neither holds for NaN
        word, sign = ("better", 1) if difference > 0 else ("worse", -1)
        return f"{new} is significantly {word} than {old}", sign
    return f"{new} and {old} do not differ significantly", 0


def _plain(name: str) -> str:
    return _short(find_method(name).label) if is_known(name) else name


def _short(label: str) -> str:
    return label.removesuffix(" Fine-tuned")


def _is_first(subject: str, key: str) -> bool:
    """Whether the subject is the first method of a comparison's key."""
    return is_known(subject) and key.startswith(f"{find_method(subject).short}_vs_")
