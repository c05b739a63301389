"""Significance letters in tables, and the verdict of a run: its planned comparisons of a subject with its controls.

A letter behind a value: the mean is significantly higher than that of the method with this letter, with p below 0.05,
corrected by Holm over the test's family. Tables of a run use the family of the whole run, tables of one dataset the
part of it in that dataset.
Results of an earlier version that have no corrected p are marked by their uncorrected p.

`result` is the content of a dataset.json, `results` those of a run. `over_run` has the p corrected over the run, from
`run_p_values`; it is empty while datasets are missing, and p is then corrected within the dataset.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maw.config.methods import METHODS, Method, comparisons, find_method, is_known, methods_of, subject_of
from maw.evaluation.confirmatory import LEVEL, METRIC, key_of
from maw.evaluation.metrics import METRIC_LABELS
from maw.report.text.format import clean, p_value

LETTERS = "abcdefghijklmnopqrstuvwxyz"
MOST_LINES = 4
"""Planned comparisons of which each has a line in the verdict, significant or not."""

NBSP = "\N{NO-BREAK SPACE}"
"""In the verdict it keeps p and its value on one line."""

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
    """The name of the method whose comparisons were planned before the run."""
    return subject_of(result.get("configuration", {}).get("compare"))[0]


def short_label(short: str) -> str:
    """The method's label in sentences and in names of comparisons, such as LoRA."""
    return label_of(short).removesuffix(" Fine-tuned")


def versus(key: str) -> str:
    """A comparison by its methods, such as "MAW vs LoRA"; `key` is its name in files."""
    return " vs ".join(map(short_label, key.split("_vs_")))


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


@dataclass(frozen=True)
class Verdict:
    """What a run shows, in sentences. Parts that do not apply are empty.

    Attributes:
        summary: counts the outcomes of several comparisons, or says that none was planned.
        claims: a comparison's outcome, and its numbers; of more than four comparisons only the significant ones.
        power: the smallest difference that the planned tests detect.
        caution: what a difference that is not significant means, and what brackets hold.
    """

    summary: str
    claims: Sequence[tuple[str, str]]
    power: str
    caution: str

    def lines(self) -> list[str]:
        """The verdict as paragraphs, a single one if it has one comparison."""
        claims = [f"{outcome}: {numbers}" for outcome, numbers in self.claims]
        lines = [line for line in (self.power, self.summary, *claims, self.caution) if line]
        return lines if self.summary else [" ".join(lines)]


def verdict(results: Sequence[Mapping[str, Any]], over_run: RunValues) -> Verdict:
    """The verdict of a run on its planned comparisons; without any, on the two best methods of each dataset."""
    planned = [(each, key) for each in results for key in each.get("confirmatory", {}).get("comparisons", {})]
    shown = planned or [(each, key) for each in results for key in _best_two(each)]
    outcomes = [_outcome(result, key, over_run) for result, key in shown]
    signs = [sign for _, sign in outcomes]
    subject, summary = subject_in(results[0]) if results else "", ""
    name = short_label(find_method(subject).short if is_known(subject) else subject)
    if not shown:
        summary = "This run has no test between methods."
    elif not planned:
        why = f", which needs {name} and a control such as LoRA"
        if (results[0].get("configuration", {}).get("compare") or "").endswith(":"):  # see `exploratory.all_of`
            why = f" of {name}"
        summary = (
            f"This run has no planned comparison{why}. The test between the two methods with the highest means is "
            "exploratory."
        )
    elif len(signs) > 1 and not any(signs):
        summary = (
            f"In {METRIC_LABELS[METRIC]}, {name} does not differ significantly from its controls in any of "
            f"{len(signs)} planned comparisons."
        )
    elif len(signs) > 1:
        own = [sign if _is_first(subject, key) else -sign for sign, (_, key) in zip(signs, shown, strict=True)]
        summary = (
            f"In {METRIC_LABELS[METRIC]}, {name} is significantly better than its control in {own.count(1)} of "
            f"{len(own)} planned comparisons, significantly worse in {own.count(-1)}, and not significantly "
            f"different in {own.count(0)}."
        )
    claims = [
        (f"{clean(result['dataset'])}: " * (len(results) > 1) + outcome, _numbers(result, key, over_run, shown))
        for (outcome, sign), (result, key) in zip(outcomes, shown, strict=True)
        if sign or len(planned) <= MOST_LINES
    ]
    corrected = all("p_holm" in result["significance"][key][METRIC] for result, key in shown)
    caution = ["This does not show that they are equal."] * (0 in signs)
    if len(signs) > 1:
        caution = ["A difference that is not significant does not show that two methods are equal."] * (0 in signs)
        caution += [f"Brackets hold 95% intervals{'; p is corrected' * corrected}."] * bool(claims)
    return Verdict(summary, claims, power_sentence(planned_tests(results)), " ".join(caution))


def _is_first(subject: str, key: str) -> bool:
    """Whether the subject is the first method of a comparison's key."""
    return is_known(subject) and key.startswith(f"{find_method(subject).short}_vs_")


def planned_tests(results: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The planned tests of a run."""
    return [test for each in results for test in each.get("confirmatory", {}).get("comparisons", {}).values()]


def power_sentence(tests: Sequence[Mapping[str, Any]]) -> str:
    """What planned tests detect, known before their results; empty if it is known for none of them.

    Args:
        tests: each with "minimum_detectable_effect", "queries" and "power".
    """
    effects = [test.get("minimum_detectable_effect") for test in tests]
    known = [each for each in effects if each is not None]
    if not known:
        return ""
    ends = [f"{each:.4f}" for each in (min(known), max(known))]
    size = f"a difference of {ends[0]}" if ends[0] == ends[1] else f"differences of {ends[0]} to {ends[1]}"
    counts = sorted({test["queries"] for test, each in zip(tests, effects, strict=True) if each is not None})
    queries = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    of_all = f" (known for {len(known)} of {len(effects)} comparisons)" if len(known) < len(effects) else ""
    return (
        f"With {queries} test queries, this run detects {size} {METRIC_LABELS[METRIC]} in {tests[0]['power']:.0%} of "
        f"cases{of_all}."
    )


def _best_two(result: Mapping[str, Any]) -> list[str]:
    """The key of the test between the two methods with the highest means; empty without such a test."""
    means = {method: result["results"][method.key]["metrics"][METRIC] for method in methods_of(result)}
    best = sorted(means, key=lambda method: -means[method])[:2]
    keys = [key_of(*pair) for pair in comparisons(method.name for method in best)]
    return [key for key in keys if METRIC in result.get("significance", {}).get(key, {})]


def _outcome(result: Mapping[str, Any], key: str, over_run: RunValues) -> tuple[str, int]:
    """Which of two methods is significantly better, as a sentence, and the sign of its difference; 0 if neither is."""
    new, old = map(short_label, key.split("_vs_"))
    difference = result["significance"][key][METRIC]["mean_difference"]
    p = corrected_p(result, key, METRIC, over_run)
    if p is not None and p < LEVEL and (difference > 0 or difference < 0):  # neither holds for NaN
        word, sign = ("better", 1) if difference > 0 else ("worse", -1)
        return f"{new} is significantly {word} than {old}", sign
    return f"{new} and {old} do not differ significantly", 0


def _numbers(result: Mapping[str, Any], key: str, over_run: RunValues, shown: Sequence[Any]) -> str:
    """The difference, its interval and p, with a full stop; short if `shown`, all comparisons, are several."""
    test, p = result["significance"][key][METRIC], corrected_p(result, key, METRIC, over_run)
    planned = key in result.get("confirmatory", {}).get("comparisons", {})
    family = result.get("confirmatory" if planned else "exploratory", {})
    p_text = f"p {'' if p_value(p).startswith('<') else '= '}{p_value(p)}".replace(" ", NBSP)
    difference, low, high = (f"{test[key]:+z.4f}" for key in ("mean_difference", "ci_low", "ci_high"))
    if len(shown) > 1:
        return f"{difference} [{low}, {high}], {p_text}."
    corrected = "corrected " * (family.get("run_family_size", 1) > 1 and "p_holm" in test)
    return f"{METRIC_LABELS[METRIC]} {difference} (95% interval {low} to {high}, {corrected}{p_text})."
