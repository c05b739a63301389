r"""Tables for a paper, in LaTeX with booktabs and in Markdown.

    \input{logs/tier1/summary/tables}     % \usepackage{booktabs}

The first table has nDCG@10 of every method on every dataset, the next ones have more metrics of each dataset, the last
one has the confirmatory comparisons. Rows are methods, each with a letter. The best value of a column is bold.
Superscripts name the methods that it beats in a two-sided paired randomisation test, corrected by Holm
(`maw.report.significance_marks`). Numbers and digits are those of the other reports.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maw.config.methods import methods_of
from maw.evaluation.confirmatory import LEVEL, METRIC
from maw.evaluation.metrics import METRIC_LABELS
from maw.report.html.tables import Cell
from maw.report.significance_marks import LETTERS, RunValues, beaten, label_of, run_p_values
from maw.report.text.format import clean, number, p_value

COLUMNS = ("ndcg_cut_10", "map", "recip_rank_10", "recall_100", "P_10", "success_5")
"""Metrics of a dataset's table; the other reports have all ten tested metrics."""

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
_MARKDOWN = re.compile(r"[\\`*_{}\[\]<>#!|~&]")


@dataclass(frozen=True)
class Table:
    """A table before it is formatted: the first column is text, the others are cells."""

    name: str
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


def latex(results: Sequence[Mapping[str, Any]], families: Sequence[Mapping[str, Any] | None] = ()) -> str:
    """All tables of a run as LaTeX; `families` are the families of tests over all its datasets."""
    return "\n\n".join(["% needs \\usepackage{booktabs}", *map(_latex, paper_tables(results, families))]) + "\n"


def markdown(results: Sequence[Mapping[str, Any]], families: Sequence[Mapping[str, Any] | None] = ()) -> str:
    """All tables of a run as Markdown."""
    return "\n\n".join(map(_markdown, paper_tables(results, families))) + "\n"


def paper_tables(
    results: Sequence[Mapping[str, Any]], families: Sequence[Mapping[str, Any] | None] = ()
) -> list[Table]:
    """The tables of a run, before they are formatted."""
    over_run = run_p_values(families)
    tables = [_overview(results, over_run)] if len(results) > 1 else []
    tables += [_dataset(result, over_run) for result in results]
    return tables + _claims(families)


def _overview(results: Sequence[Mapping[str, Any]], over_run: RunValues) -> Table:
    """nDCG@10, methods by datasets; letters count all methods of the run."""
    methods = methods_of(*results)
    columns = [_column(result, METRIC, over_run, methods) for result in results]
    caption = f"{METRIC_LABELS[METRIC]} on each dataset. {_reading(over_run)}"
    names = tuple(clean(result["venue"]) for result in results)
    return Table("overview", caption, ("Method", *names), _rows(methods, columns))


def _dataset(result: Mapping[str, Any], over_run: RunValues) -> Table:
    methods = methods_of(result)
    columns = [_column(result, metric, over_run, methods) for metric in COLUMNS]
    queries = result.get("tested_on", {}).get("queries")
    title = clean(f"{result['venue']} ({result['dataset']})")
    caption = f"{title}{f', {queries:,} test queries' if queries else ''}. {_reading(over_run)}"
    header = ("Method", *(METRIC_LABELS[metric] for metric in COLUMNS))
    return Table(clean(result["dataset"]), caption, header, _rows(methods, columns))


def _rows(methods: Sequence[Any], columns: Sequence[Sequence[Cell]]) -> tuple[tuple[str, tuple[Cell, ...]], ...]:
    names = (f"({letter}) {method.label}" for letter, method in zip(LETTERS, methods, strict=False))
    return tuple(zip(names, zip(*columns, strict=True), strict=True))


def _column(result: Mapping[str, Any], metric: str, over_run: RunValues, methods: Sequence[Any]) -> list[Cell]:
    marks = beaten(result, methods, over_run)
    values = [result["results"].get(method.key, {}).get("metrics", {}).get(metric) for method in methods]
    texts = [number(value, ".4f") for value in values]
    best = max((text for text in texts if text != "-"), default=None)
    return [
        Cell(text, text == best, marks.get((method.short, metric), ""))
        for text, method in zip(texts, methods, strict=True)
    ]


def _claims(families: Sequence[Mapping[str, Any] | None]) -> list[Table]:
    """The confirmatory family; empty if the run has none or is unfinished."""
    family = next((each for each in families if each and each["family"] == "confirmatory"), None)
    if family is None:
        return []
    rows = []
    for row in family["comparisons"]:
        new, old = map(label_of, row["comparison"].split("_vs_"))
        cells = (
            Cell(f"{row['mean_difference']:+z.4f}", row["significant"]),
            Cell(f"[{row['ci_low']:+z.4f}, {row['ci_high']:+z.4f}]"),
            Cell(p_value(row["p_value"])),
            Cell(p_value(row["p_holm"]), row["significant"]),
            Cell(number(row["effect_size"], "+z.3f")),
            Cell(number(row.get("minimum_detectable_effect"), ".4f")),
        )
        rows.append((f"{clean(row['dataset'])}: {new} - {old}", cells))
    size = f"{len(rows)} comparison{'s' * (len(rows) != 1)}"
    caption = (
        f"Confirmatory comparisons in {METRIC_LABELS[METRIC]}: difference, 95% bootstrap interval, p of the paired "
        f"randomisation test ({family['permutations']:,} signs), p corrected by Holm over {size}, "
        f"Cohen's d_z, and the smallest difference detectable with power {family['power']:g}. Bold: "
        f"corrected p < {LEVEL:g}."
    )
    header = ("Comparison", "Difference", "95% interval", "p", "Holm p", "d_z", "Detectable")
    return [Table("confirmatory", caption, header, tuple(rows))]


def _reading(over_run: RunValues) -> str:
    family = "its family of tests in the run" if over_run else "its family of tests in the dataset"
    return (
        "Best values are bold; a letter marks a significant gain over the method of that letter (two-sided paired "
        f"randomisation test over queries, corrected by Holm over {family}, p < {LEVEL:g})."
    )


def _latex(table: Table) -> str:
    def cell(each: Cell) -> str:
        text = each.text if each.text == "-" else re.sub(r"[-+<]", lambda sign: f"${sign[0]}$", each.text)
        text = rf"\textbf{{{text}}}" if each.strong else text
        return f"{text}$^{{{each.letters}}}$" if each.letters else text

    lines = [" & ".join([_in_latex(name), *map(cell, cells)]) + r" \\" for name, cells in table.rows]
    header = " & ".join(map(_in_latex, table.header)) + r" \\"
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{_in_latex(table.caption)}}}",
            rf"  \label{{tab:{re.sub(r'[^A-Za-z0-9-]+', '-', table.name)}}}",
            rf"  \begin{{tabular}}{{l{'l' * (len(table.header) - 1)}}}",
            r"    \toprule",
            f"    {header}",
            r"    \midrule",
            *(f"    {line}" for line in lines),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
        ]
    )


def _markdown(table: Table) -> str:
    def cell(each: Cell) -> str:
        text = f"**{each.text}**" if each.strong else each.text
        return f"{text} <sup>{each.letters}</sup>" if each.letters else text

    lines = [[_in_markdown(name), *map(cell, cells)] for name, cells in table.rows]
    header = [list(map(_in_markdown, table.header)), ["---", *["---:"] * (len(table.header) - 1)]]
    rows = "\n".join(f"| {' | '.join(row)} |" for row in [*header, *lines])
    return f"{_in_markdown(table.caption)}\n\n{rows}"


def _in_latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def _in_markdown(text: str) -> str:
    """The text with Markdown and HTML markup escaped."""
    return _MARKDOWN.sub(lambda found: f"\\{found[0]}", text)
