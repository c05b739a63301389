"""Differences between methods as text: detectable differences, confirmatory tests, exploratory tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from maw.config.methods import comparisons, methods_of
from maw.evaluation.confirmatory import METRIC, key_of
from maw.evaluation.metrics import METRIC_LABELS
from maw.report.significance_marks import RunValues, subject_in, versus
from maw.report.text.format import as_table, clean, number, p_value, wrapped

BASELINE = "zero_shot"
_LABEL = METRIC_LABELS[METRIC]
_PLANNED = "Confirmatory tests: the comparisons that were planned before the run."
COLUMNS = ("difference", "relative", "95% interval", "p", "corrected p")
MORE = ("t-test p", "Cohen's d", "queries needed")


def effects_text(effects: Mapping[str, Mapping[str, Any]]) -> str:
    """The smallest differences that the planned tests detect, from `smallest_effects`, which is not empty."""
    rows = []
    for key, effect in effects.items():
        smallest = effect["minimum_detectable_effect"]
        if smallest is None:
            rows.append([versus(key), "not known", effect["no_effect_because"]])
        else:
            spread = f"{effect['validation_std_of_differences']:.4f} over {effect['validation_queries']:,} queries"
            rows.append([versus(key), f"{smallest:.4f}", spread])
    first = next(iter(effects.values()))
    about = (
        f"Before the results: the smallest true difference in {_LABEL} that each planned test detects in "
        f"{first['power']:.0%} of cases, with {first['queries']:,} test queries, two-sided, at level "
        f"{first['level']:.3g}. It is computed from the differences on validation queries."
    )
    table = as_table([_LABEL, "detectable", "standard deviation on validation"], rows)
    return "\n".join([*wrapped("", about), table])


def dataset_differences(result: Mapping[str, Any], over_run: RunValues | None = None) -> str:
    """A dataset's differences in nDCG@10: the confirmatory comparisons first, then some of the others.

    Without `over_run`, from `run_p_values`, p is corrected within the dataset.
    """
    over_run = over_run or {}
    return "\n\n".join(part for part in (_confirmatory(result, over_run), _exploratory(result, over_run)) if part)


def run_differences(family: Mapping[str, Any]) -> str:
    """The confirmatory family over all datasets of a run, from `maw.evaluation.confirmatory.over_run`."""
    rows = []
    for row in family.get("comparisons", ()):
        name = f"{clean(row['dataset'])}: {versus(row['comparison'])}"
        rows.append([name, *cells(row, row.get("p_holm")), *_found(row)])
    about = f"{_PLANNED} Holm's correction over all {len(rows)} tests of the run.{_signs(family)}"
    return "\n".join([*wrapped("", about), _confirmatory_table(rows)]) if rows else ""


def _confirmatory(result: Mapping[str, Any], over_run: RunValues) -> str:
    section = result.get("confirmatory", {})
    tests = section.get("comparisons", {})
    if not tests:
        return ""
    rows = [[versus(key), *cells(test, _p(result, key, test, over_run)), *_found(test)] for key, test in tests.items()]
    about = f"{_PLANNED} {_correction(section, bool(over_run), 'confirmatory.json')}{_signs(section)}"
    return "\n".join([*wrapped("", about), _confirmatory_table(rows)])


def _exploratory(result: Mapping[str, Any], over_run: RunValues) -> str:
    """The subject against each method, each against zero-shot; all other pairs are in the JSON files only."""
    confirmed = result.get("confirmatory", {}).get("comparisons", {})
    pairs = list(comparisons(method.name for method in methods_of(result)))
    subject = subject_in(result)
    shown = [(new, old) for new, old in pairs if subject in (new.name, old.name) or old.name == BASELINE] or pairs
    rows = []
    for new, old in shown:
        key = key_of(new, old)
        test = result.get("significance", {}).get(key, {}).get(METRIC)
        if test and key not in confirmed:
            counts = f"{test['wins']} / {test['losses']} / {test['ties']}"
            values = cells(test, _p(result, key, test, over_run))
            rows.append([versus(key), *values, counts, *more_cells(test)])
    if not rows:
        return ""
    table = as_table([_LABEL, *COLUMNS, "better/worse/same", *MORE], rows)
    section = result.get("exploratory", {})
    about = "Exploratory tests: all other pairs of methods and metrics. "
    about += _correction(section, bool(over_run), "exploratory.json") if section else "Their p is not corrected."
    about += "" if confirmed or not section else _signs(section)  # the planned tests have the same signs
    return "\n".join([*wrapped("", about), table])


def _correction(section: Mapping[str, Any], of_run: bool, file: str) -> str:
    """Over which tests p is corrected; `file` is that of the tests over the whole run."""
    size, whole = section["family_size"], section["run_family_size"]
    if whole > size and of_run:
        return f"Holm's correction over all {whole} tests of the run."
    here = f"Holm's correction over {f'all {size} tests' if size > 1 else '1 test'} of this dataset."
    return here + f" summary/{file} has it over all {whole} tests of the run." * (whole > size)


def _confirmatory_table(rows: Sequence[Sequence[str]]) -> str:
    return as_table([_LABEL, *COLUMNS, "detectable", *MORE], rows)


def _p(result: Mapping[str, Any], key: str, test: Mapping[str, Any], over_run: RunValues) -> float | None:
    """A test's p in nDCG@10, corrected over the run if that is known, else within the dataset."""
    return over_run.get((result["dataset"], key, METRIC), test.get("p_holm"))


def cells(test: Mapping[str, Any], corrected: float | None) -> list[str]:
    """A test's cells under `COLUMNS`, with its corrected p."""
    return [
        f"{test['mean_difference']:+z.4f}",
        number(test["relative"], "+z.1%"),
        f"[{test['ci_low']:+z.4f}, {test['ci_high']:+z.4f}]",
        p_value(test["p_value"]),
        p_value(corrected),
    ]


def _found(test: Mapping[str, Any]) -> list[str]:
    return [number(test.get("minimum_detectable_effect"), ".4f"), *more_cells(test)]


def more_cells(test: Mapping[str, Any]) -> list[str]:
    """A test's cells under `MORE`."""
    found = (("effect_size", "+z.3f"), ("queries_needed", ",d"))
    return [p_value(test.get("t_p_value")), *(number(test.get(key), form) for key, form in found)]


def _signs(section: Mapping[str, Any]) -> str:
    if "permutations_raised_from" not in section:
        return ""
    return (
        f" The test draws {section['permutations']:,} random signs instead of "
        f"{section['permutations_raised_from']:,}, so that a corrected p can be below 0.05."
    )
