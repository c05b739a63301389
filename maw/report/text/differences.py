"""Differences between methods as text: detectable differences, the confirmatory family, the exploratory tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from maw.config.methods import comparisons, methods_of
from maw.evaluation.confirmatory import METRIC, key_of
from maw.evaluation.metrics import METRIC_LABELS, PRIMARY
from maw.report.significance_marks import RunValues, label_of, subject_in
from maw.report.text.format import as_table, clean, number, p_value, wrapped

BASELINE = "zero_shot"
_LABEL = METRIC_LABELS[METRIC]
COLUMNS = ("differ.", "rel.", "95% interval", "p", "Holm p")
MORE = ("t-test p", "effect d", "queries needed")


def effects_text(effects: Mapping[str, Mapping[str, Any]]) -> str:
    """The smallest differences that the confirmatory tests can find, from `smallest_effects`; empty without any."""
    if not effects:
        return ""
    rows = []
    for key, effect in effects.items():
        smallest = effect["minimum_detectable_effect"]
        if smallest is None:
            rows.append([_name(key), "not known", effect["no_effect_because"]])
        else:
            spread = f"{effect['validation_std_of_differences']:.4f} over {effect['validation_queries']:,} queries"
            rows.append([_name(key), f"{smallest:.4f}", spread])
    first = next(iter(effects.values()))
    about = (
        f"Before the results: the smallest true difference in {_LABEL} that the confirmatory tests find with a "
        f"probability of {first['power']:g}. They are two-sided, over {first['queries']:,} test queries, at level "
        f"{first['level']:.3g}; the spread of the differences is that on validation queries."
    )
    table = as_table([_LABEL, "smallest", "standard deviation on validation"], rows)
    return "\n".join([*wrapped("", about), table])


def dataset_differences(result: Mapping[str, Any], over_run: RunValues | None = None) -> str:
    """A dataset's differences in nDCG@10: the confirmatory comparisons first, then some of the others.

    Without `over_run`, from `run_p_values`, p is corrected within the dataset.
    """
    over_run = over_run or {}
    return "\n\n".join(part for part in (_confirmatory(result, over_run), _exploratory(result, over_run)) if part)


def run_differences(family: Mapping[str, Any]) -> str:
    """The confirmatory family over all datasets of a run, from `maw.evaluation.confirmatory.over_run`."""
    rows, firsts = [], list({row["comparison"].partition("_vs_")[0] for row in family.get("comparisons", ())})
    for row in family.get("comparisons", ()):
        name = f"{clean(row['dataset'])}: {_name(row['comparison'], short=len(firsts) == 1)}"
        rows.append([name, *cells(row, row.get("p_holm")), *_found(row)])
    who = label_of(firsts[0]).removesuffix(" Fine-tuned") if len(firsts) == 1 else "the subject"
    about = (
        f"Confirmatory: {who} against its controls, corrected by Holm over all {len(rows)} comparisons of the "
        f"run{_signs(family)}"
    )
    return "\n".join([*wrapped("", about), _confirmatory_table(rows)]) if rows else ""


def _confirmatory(result: Mapping[str, Any], over_run: RunValues) -> str:
    section = result.get("confirmatory", {})
    tests = section.get("comparisons", {})
    if not tests:
        return ""
    rows = [[_name(key), *cells(test, _p(result, key, test, over_run)), *_found(test)] for key, test in tests.items()]
    count, of_run = f"{len(rows)} comparison{'s' * (len(rows) != 1)}", section["run_family_size"]
    about = f"Confirmatory: corrected by Holm over the {count} of this dataset{_signs(section)}"
    if of_run > len(rows) and over_run:
        about = f"Confirmatory: corrected by Holm over all {of_run} comparisons of the run{_signs(section)}"
    elif of_run > len(rows):
        about += f"; over all {of_run} of the run in summary/confirmatory.json"
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
            rows.append([f"{new.label} vs {old.label}", *values, counts, *more_cells(test)])
    if not rows:
        return ""
    table = as_table([_LABEL, *COLUMNS, "better/worse/same", *MORE], rows)
    section = result.get("exploratory", {})
    signs = "" if confirmed else _signs(section)  # the confirmatory part has them already
    return "\n".join([*wrapped("", _exploratory_heading(section, signs, bool(over_run))), table])


def _exploratory_heading(section: Mapping[str, Any], signs: str, of_run: bool) -> str:
    if not section:
        return "Exploratory: not corrected for the number of tests"
    several = section["run_family_size"] > section["family_size"]
    tests = f"{section['family_size']} other tests of this dataset"
    if several and of_run:
        tests = f"{section['run_family_size']} other tests of the run"
    about = f"Exploratory: corrected by Holm over all {tests}, {len(PRIMARY)} metrics of every pair{signs}"
    if several and not of_run:
        about += f"; over all {section['run_family_size']} of the run in summary/exploratory.json"
    return about


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
        f"; {section['permutations']:,} random signs in place of {section['permutations_raised_from']:,}, so that a "
        "corrected p can fall below the level"
    )


def _name(key: str, *, short: bool = False) -> str:
    """A comparison by the labels of its methods."""
    new, old = map(label_of, key.split("_vs_"))
    return f"vs {old}" if short else f"{new} vs {old}"
