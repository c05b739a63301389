"""Fills what README and docs/console.md show of a run of `make run`, from the run's folder.

python docs/draw_first_run.py logs/tier1

It draws docs/first_run.svg, nDCG@10 of each method with its 95% interval, and replaces the README's table and verdict
and the example of a run's end in docs/console.md. Sentences on the machine and the time are edited by hand.
"""

from __future__ import annotations

import re
import sys
import textwrap
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# ruff: noqa: E402 - the package is found by the line above
from maw.config.methods import methods_of
from maw.evaluation import confirmatory, exploratory
from maw.evaluation.metrics import METRIC_LABELS
from maw.report.chart_data import Bar, bars
from maw.report.significance_marks import NBSP, beaten, short_label, verdict
from maw.report.text.summary import conclusion, dataset_screen
from maw.storage.files import read_json

PICTURE = ROOT / "docs" / "first_run.svg"
WIDTH, ROW, LEFT, RIGHT, TOP, BOTTOM = 720, 46, 170, 90, 44, 62
STEP = 0.01
"""Distance of the lines of the axis."""
STYLE = """
    .paper { fill: #ffffff } .line { stroke: #d0d7de } .words { fill: #424a53 }
    .name { fill: #1f2328; font-weight: 600 } .mean { fill: #0969da } .interval { stroke: #0969da; stroke-width: 3 }
    text { font: 14px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif } .words { font-size: 13px }
    @media (prefers-color-scheme: dark) {
      .paper { fill: #0d1117 } .line { stroke: #30363d } .words { fill: #c9d1d9 } .name { fill: #f0f6fc }
      .mean { fill: #58a6ff } .interval { stroke: #58a6ff }
    }"""


def picture(result: dict[str, Any]) -> str:
    """The SVG of a dataset's result, the content of its dataset.json."""
    found: list[Bar] = [each for each in bars(result) if each.low is not None]
    low = min(each.low for each in found) // STEP * STEP
    high = (max(each.high for each in found) // STEP + 1) * STEP
    place = lambda value: LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)  # noqa: E731
    bottom = TOP + ROW * len(found)
    parts = [f'<rect class="paper" width="{WIDTH}" height="{bottom + BOTTOM}"/>']
    parts.append(f'<text class="name" x="{LEFT}" y="26">nDCG@10, mean and 95% interval over the test queries</text>')
    for number in range(round((high - low) / STEP) + 1):
        value = low + number * STEP
        parts.append(f'<path class="line" d="M{place(value):.1f} {TOP}V{bottom}"/>')
        label = f'<text class="words" text-anchor="middle" x="{place(value):.1f}" y="{bottom + 20}">{value:.2f}</text>'
        parts.append(label if round(value / STEP) % 2 == 0 else "")
    for row, each in enumerate(found):
        y = TOP + ROW * (row + 0.5)
        parts += [
            f'<text class="name" text-anchor="end" x="{LEFT - 16}" y="{y + 5}">{escape(each.name)}</text>',
            f'<path class="interval" d="M{place(each.low):.1f} {y}H{place(each.high):.1f}"/>',
            f'<circle class="mean" cx="{place(each.value):.1f}" cy="{y}" r="7"/>',
            f'<text class="words" x="{WIDTH - RIGHT + 16}" y="{y + 5}">{each.value:.4f}</text>',
        ]
    note = f"The axis is zoomed: it begins at {low:.2f}. Intervals of one method; differences are tested by query."
    parts.append(f'<text class="words" x="24" y="{bottom + 46}">{note}</text>')
    size = f'viewBox="0 0 {WIDTH} {bottom + BOTTOM}" width="{WIDTH}"'
    title = "nDCG@10 of " + ", ".join(f"{each.name} {each.value:.4f}" for each in found)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img"><title>{escape(title)}</title>'
    return "\n".join([f"{head}<style>{STYLE}\n</style>", *filter(None, parts), "</svg>\n"])


def console_end(result: dict[str, Any], folder: str, log_dir: str = "logs/tier1") -> str:
    """What the console shows at the end of a run of one dataset; `folder` is that of the dataset."""
    families = [confirmatory.over_run([result]), exploratory.over_run([result])]
    return f"{dataset_screen(result)}\n\nWritten to {folder}\n{conclusion([result], families, log_dir)}"


def readme_table(result: dict[str, Any]) -> str:
    """The README's table of a result, and its verdict."""
    methods = methods_of(result)
    marks, records = beaten(result, methods), [result["results"][method.key] for method in methods]
    rows = [["", *(short_label(method.short) for method in methods)], ["---"] * (len(methods) + 1)]
    for key in ("ndcg_cut_10", "recall_100", "recip_rank_10"):
        letters = [" ".join(["", *(f"*{each}*" for each in marks.get((method.short, key), ""))]) for method in methods]
        values = [f"{record['metrics'][key]:.4f}{mark}" for record, mark in zip(records, letters, strict=True)]
        rows.append([METRIC_LABELS[key], *values])
    counts = [record["trained_parameters"] for record in records]
    rows.append(["trained parameters", *(f"{count:,}" if count else "none" for count in counts)])
    rows.append(["seconds", *(f"{record['runtime_seconds']:.0f}" for record in records)])
    said = " ".join(verdict([result], {}).lines()).replace(NBSP, " ")
    lines = ["| " + " | ".join(row).strip() + " |" for row in rows]
    return "\n".join([*lines, "", textwrap.fill(said, 119, break_on_hyphens=False), "", ""])


def main() -> None:
    """Fills everything from the newest dataset of the run in the folder that is named."""
    if len(sys.argv) != 2:
        sys.exit("give the folder of a finished run, such as logs/tier1")
    path = max(Path(sys.argv[1]).glob("*/dataset.json"), key=lambda each: each.stat().st_mtime)
    result = read_json(path)
    PICTURE.write_text(picture(result), encoding="utf-8")
    shown = console_end(result, f"logs/tier1/{path.parent.name}")
    for page, part, new in (
        ("docs/console.md", r"(?<=## The end of a run\n).*?```\n(.*?)```\n", f"{shown}\n"),
        ("README.md", r"(\| \| Zero-shot.*?)This is seed", readme_table(result)),
    ):
        text = (ROOT / page).read_text(encoding="utf-8")
        found = re.search(part, text, re.DOTALL)
        if found is None:
            sys.exit(f"{page} has no place for the run: {part}")
        (ROOT / page).write_text(text[: found.start(1)] + new + text[found.end(1) :], encoding="utf-8")


if __name__ == "__main__":
    main()
