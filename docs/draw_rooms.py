"""Draws docs/rooms.svg, the picture of docs/architecture.md, from the table of rooms in tests/test_rooms.py.

Run `python docs/draw_rooms.py` after a change of that table or of the words on the page.

An arrow stands for an import that no chain of other arrows implies. Where a room may import less than the arrows
below it say, words under its box name all that it may import.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

DOCS = Path(__file__).resolve().parent
PICTURE, PAGE = DOCS / "rooms.svg", DOCS / "architecture.md"

Rooms = Mapping[str, tuple[str, ...]]

BESIDE = {"training": 0, "attention": 0, "report": 2, "search": 2}
"""Columns of the rooms beside the main one, which is 1."""
HEART = "attention"
WIDTH, BOX, HEIGHT, GAP, MARGIN = 940, 280, 50, 24, 28
ENTERS, LEAVES = 17, 33
"""How far below its upper edge a line from the side enters a box, and one to the side leaves it."""
STYLE = """
    .paper { fill: #ffffff } .box { fill: #f6f8fa; stroke: #6e7781 } .heart { fill: #ddf4ff; stroke: #0969da }
    .name { fill: #1f2328; font-weight: 600 } .words { fill: #424a53 } .arrow { fill: none; stroke: #6e7781 }
    .head { fill: #6e7781 } text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif }
    .name { font-size: 15px }
    @media (prefers-color-scheme: dark) {
      .paper { fill: #0d1117 } .box { fill: #161b22; stroke: #8b949e } .heart { fill: #0c2d52; stroke: #58a6ff }
      .name { fill: #f0f6fc } .words { fill: #c9d1d9 } .arrow { stroke: #8b949e } .head { fill: #8b949e }
    }"""


def words_of(page: str) -> dict[str, str]:
    """Room -> what is in it, from the table on the page."""
    return {room: words.replace("`", "") for room, words in re.findall(r"^\| `(\w+)` \| ([^|]+) \|$", page, re.M)}


def reachable(rooms: Rooms, names: Iterable[str]) -> set[str]:
    """Those rooms and all that imports lead to from them."""
    found: set[str] = set()
    for name in names:
        found |= {name} | reachable(rooms, rooms[name])
    return found


def arrows(rooms: Rooms) -> list[tuple[str, str]]:
    """(room, what it may import), without what other imports lead to in any case."""
    found = []
    for room, below in rooms.items():
        for each in below:
            others = reachable(rooms, (other for other in below if other != each))
            if each not in others:
                found.append((room, each))
    return found


def levels(rooms: Rooms) -> dict[str, int]:
    """The row of each room, from 0 at the bottom: as high as the rooms that import it allow."""
    height: dict[str, int] = {}
    for room in rooms:  # each stands after those that it may import
        height[room] = max((height[each] + 1 for each in rooms[room]), default=0)
    for room in reversed([*rooms]):
        height[room] = min((height[other] - 1 for other in rooms if room in rooms[other]), default=height[room])
    return height


def note(rooms: Rooms, room: str) -> list[str]:
    """Lines that name all that a room may import, where the arrows say more."""
    below = rooms[room]
    return [] if reachable(rooms, below) == set(below) else ["imports only", ", ".join(below)]


def draw(rooms: Rooms, words: Mapping[str, str]) -> str:
    """The picture as SVG."""
    rows = levels(rooms)
    top = max(rows.values())
    left = {room: (MARGIN, (WIDTH - BOX) // 2, WIDTH - MARGIN - BOX)[BESIDE.get(room, 1)] for room in rooms}
    upper = {room: MARGIN + (top - rows[room]) * (HEIGHT + GAP) for room in rooms}
    height = 2 * MARGIN + (top + 1) * (HEIGHT + GAP) - GAP
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'role="img" aria-labelledby="title about">',
        '  <title id="title">The rooms of the package maw</title>',
        '  <desc id="about">Each arrow points from a room to one that it may import.</desc>',
        f"  <style>{STYLE}\n  </style>",
        '  <marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">',
        '    <path class="head" d="M0 0 8 4 0 8z"/>',
        "  </marker>",
        f'  <rect class="paper" width="{WIDTH}" height="{height}" rx="8"/>',
    ]
    for room, below in arrows(rooms):
        path = _path(left[room], upper[room], left[below], upper[below])
        lines.append(f'  <path class="arrow" marker-end="url(#head)" d="{path}"/>')
    for room in reversed([*rooms]):
        x, y = left[room], upper[room]
        kind = "heart" if room == HEART else "box"
        lines.append(f'  <rect class="{kind}" x="{x}" y="{y}" width="{BOX}" height="{HEIGHT}" rx="6"/>')
        lines.append(f'  <text class="name" x="{x + 12}" y="{y + 20}">{escape(room)}</text>')
        lines.append(f'  <text class="words" x="{x + 12}" y="{y + 39}">{escape(words[room])}</text>')
        for number, text in enumerate(note(rooms, room)):
            place = f'x="{x + BOX // 2 + 10}" y="{y + HEIGHT + 20 + 18 * number}"'
            lines.append(f'  <text class="words" {place}>{escape(text)}</text>')
    return "\n".join([*lines, "</svg>", ""])


def _path(from_x: int, from_y: int, to_x: int, to_y: int) -> str:
    """Straight down in a column; between columns around one corner, which lies in the column that is not the main."""
    middle = BOX // 2
    if from_x == to_x:
        return f"M{from_x + middle} {from_y + HEIGHT}V{to_y}"
    right = to_x > from_x
    if from_x == (WIDTH - BOX) // 2:  # out of the main column: to the side, then down
        return f"M{from_x + BOX * right} {from_y + LEAVES}H{to_x + middle}V{to_y}"
    return f"M{from_x + middle} {from_y + HEIGHT}V{to_y + ENTERS}H{to_x + BOX * (not right)}"


def main() -> None:
    """Writes the picture."""
    sys.path.insert(0, str(DOCS.parent / "tests"))
    from test_rooms import ROOMS

    PICTURE.write_text(draw(ROOMS, words_of(PAGE.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
