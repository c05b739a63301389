"""Draws docs/first_run.svg, the picture of the README: nDCG@10 of each method of a run, with its 95% interval.

python docs/draw_first_run.py logs/tier1
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from maw.report.chart_data import Bar, bars  # noqa: E402 - the package is found by the line above
from maw.storage.files import read_json  # noqa: E402

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
    parts.append(f'<text class="words" x="{LEFT}" y="{bottom + 46}">{note}</text>')
    size = f'viewBox="0 0 {WIDTH} {bottom + BOTTOM}" width="{WIDTH}"'
    title = "nDCG@10 of " + ", ".join(f"{each.name} {each.value:.4f}" for each in found)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img"><title>{escape(title)}</title>'
    return "\n".join([f"{head}<style>{STYLE}\n</style>", *filter(None, parts), "</svg>\n"])


def main() -> None:
    """Draws the newest dataset of the run in the folder that is named."""
    if len(sys.argv) != 2:
        sys.exit("give the folder of a finished run, such as logs/tier1")
    path = max(Path(sys.argv[1]).glob("*/dataset.json"), key=lambda each: each.stat().st_mtime)
    PICTURE.write_text(picture(read_json(path)), encoding="utf-8")


if __name__ == "__main__":
    main()
