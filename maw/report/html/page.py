"""report.html: one file, no script, nothing fetched, readable on a phone and by a screen reader.

    text = report_page(results, families, examples)

What the page says stands in templates/, where page.html has its sections in order and page.css its look. Numbers come
from `tables`, `charts` and `heatmap`. Texts of passages, queries and file names are other people's: Jinja2 escapes all
that is not written in a template, and what would drive a terminal or turn the direction of the writing becomes a
replacement character. A content policy forbids the page to fetch or run anything, whatever its texts hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from maw.config.methods import in_order, look_of
from maw.evaluation.confirmatory import LEVEL, METRIC
from maw.evaluation.metrics import METRIC_LABELS
from maw.report import chart_data, significance_marks
from maw.report.html import charts, heatmap, tables
from maw.report.significance_marks import NBSP, label_of, run_p_values
from maw.report.text import costs
from maw.report.text.format import number, p_value
from maw.report.text.router import router_lines
from maw.report.text.summary import NOTES

if TYPE_CHECKING:
    from jinja2 import Environment


def report_page(
    results: Sequence[Mapping[str, Any]],
    families: Sequence[Mapping[str, Any] | None] = (),
    examples_of: Mapping[str, Mapping[str, Any]] | None = None,
    attention_of: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:
    """The page of a run.

    Args:
        results: the content of each dataset.json, in the order of the run.
        families: the families of tests over all datasets, once all are done.
        examples_of: dataset -> the content of its examples.json, where it has one.
        attention_of: dataset -> the content of its attention.json, where it has one.
    """
    page = environment().get_template("page.html")
    text = page.render(
        results=results,
        over_run=run_p_values(families),
        examples_of=examples_of or {},
        attention_of=attention_of or {},
    )
    unprintable = [each for each in set(text) - {"\n", "\t", NBSP} if not each.isprintable()]
    return text.translate(dict.fromkeys(map(ord, unprintable), "\N{REPLACEMENT CHARACTER}")) if unprintable else text


@cache
def environment() -> Environment:
    """The templates, and the functions that they call; loaded when the first page is written."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("maw.report.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"number": number, "p_value": p_value, "fact": fact, "label_of": label_of}
    made.globals |= {
        "charts": charts,
        "costs": costs,
        "heatmap": heatmap,
        "marks": significance_marks,
        "chart_data": chart_data,
        "router_lines": router_lines,
        "tables": tables,
        "LABEL": METRIC_LABELS[METRIC],
        "LEVEL": LEVEL,
        "in_order": in_order,
        "look_of": look_of,
        "METRIC": METRIC,
        "METRIC_LABELS": METRIC_LABELS,
        "NOTES": NOTES,
    }
    return made


def fact(value: Any) -> str:
    """A value of a list of facts, as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple | Mapping):
        return ", ".join(map(str, value)) or "none"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)
