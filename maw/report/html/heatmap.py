"""Heat maps as inline SVG, in the page's colours, light and dark; their numbers stand in a table beside them.

Values have eight shades on each side of zero: cells of one shade are one path, so that a map of a thousand cells takes
some twenty kilobytes. More is orange and less is blue, which people with any colour vision can tell apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from maw.report.html.charts import WIDTH, figure, line_of, text_at
from maw.report.html.markup import Markup, escaped, table
from maw.report.series import SHADES, Grid

MORE, LESS, AMOUNT = "heat s1", "heat s0", "heat s5"
_LEFT, _RIGHT, _TOP, _MOST_ROW, _MOST_HEIGHT = 92, 10, 8, 22, 330
_LETTER, _LINE, _LEGEND, _LONGEST_LABEL = 7.2, 17, 46, 10


def heat_map(grid: Grid) -> Markup:
    """The grid as a picture; nothing where it is empty."""
    if not grid.rows or not grid.columns:
        return Markup("")
    wide = (WIDTH - _LEFT - _RIGHT) / len(grid.columns)
    high = min(_MOST_ROW, wide if len(grid.rows) == len(grid.columns) else _MOST_ROW, _MOST_HEIGHT / len(grid.rows))
    bottom = _TOP + high * len(grid.rows)
    labels, below = _column_labels(grid.columns, wide, bottom)
    name = below + _LINE
    shown = [
        Markup(f'<rect class="frame" x="{_LEFT}" y="{_TOP}" {_size(WIDTH - _LEFT - _RIGHT, high * len(grid.rows))}/>'),
        *_cells(grid, wide, high),
        *(_frame(_LEFT, _TOP + high * row, WIDTH - _LEFT - _RIGHT, high) for row in grid.marked_rows),
        *(_frame(_LEFT + wide * column, _TOP, wide, bottom - _TOP) for column in grid.marked_columns),
        *_row_labels(grid.rows, high),
        *labels,
        text_at((_LEFT + WIDTH - _RIGHT) / 2, name, grid.column_name, "axis middle"),
        _turned(grid.row_name, (_TOP + bottom) / 2),
        *_legend(grid, name + 14),
    ]
    return figure(grid.title, _about(grid), shown, name + _LEGEND)


def grid_table(grid: Grid) -> Markup:
    """The grid's numbers."""
    corner = f"{grid.row_name} \\ {grid.column_name}"
    marked = dict.fromkeys(grid.marked_rows, " (in use)")
    rows = [
        [f"{label}{marked.get(number, '')}", *map(grid.shown, values)]
        for number, (label, values) in enumerate(zip(grid.rows, grid.values, strict=True))
    ]
    header = [corner, *(f"{c} (in use)" if n in grid.marked_columns else c for n, c in enumerate(grid.columns))]
    return table(grid.title, header, rows)


def _cells(grid: Grid, wide: float, high: float) -> list[Markup]:
    """A path for each shade."""
    paths: dict[tuple[str, int], list[str]] = {}
    for number, row in enumerate(grid.values):
        for column, value in enumerate(row):
            shade = round(SHADES * abs(value) / grid.scale) if grid.scale else 0
            if shade:
                kind = AMOUNT if not grid.signed else MORE if value > 0 else LESS
                place = f"M{_LEFT + wide * column:.1f} {_TOP + high * number:.1f}"
                paths.setdefault((kind, shade), []).append(f"{place}h{wide:.2f}v{high:.2f}h-{wide:.2f}z")
    return [
        Markup(f'<path class="{kind}" fill-opacity="{shade / SHADES:g}" d="{"".join(parts)}"/>')
        for (kind, shade), parts in sorted(paths.items())
    ]


def _column_labels(columns: Sequence[str], wide: float, bottom: float) -> tuple[list[Markup], float]:
    """The labels below the columns, turned where they are long, and how far down they reach."""
    names = [_short(each) for each in columns]
    longest = max(map(len, names))
    if longest * _LETTER < max(wide, 3 * _LETTER):  # numbers, of which some may be left out
        places = _some(len(names), wide, longest * _LETTER + 8)
        return [text_at(_LEFT + wide * (i + 0.5), bottom + 16, names[i], "tick middle") for i in places], bottom + 16
    turned = [
        Markup(
            f'<text class="tick end" transform="translate({x:.1f} {bottom + 12:.1f}) rotate(-45)">{escaped(t)}</text>'
        )
        for x, t in ((_LEFT + wide * (i + 0.5) + 4, name) for i, name in enumerate(names))
    ]
    return turned, bottom + 14 + 0.71 * _LETTER * longest


def _row_labels(rows: Sequence[str], high: float) -> list[Markup]:
    places = _some(len(rows), high, 14)
    return [text_at(_LEFT - 6, _TOP + high * (i + 0.5) + 4.5, _short(rows[i]), "tick end") for i in places]


def _some(count: int, step: float, room: float) -> range:
    """Numbers of labels that have room for themselves, from the first on."""
    return range(0, count, next((every for every in (1, 2, 4, 5, 8, 10, 16, 32) if every * step >= room), 64))


def _legend(grid: Grid, y: float) -> Iterable[Markup]:
    """The shades, from the lowest to the highest, with the values at both ends and at zero."""
    first = -SHADES if grid.signed else 0
    shades = range(first, SHADES + 1)
    wide, left = 150 / len(shades), (_LEFT + WIDTH - _RIGHT) / 2 - 75
    yield Markup(f'<rect class="frame" x="{left:g}" y="{y:g}" {_size(150, 10)}/>')
    for number, shade in enumerate(shades):
        if shade:
            kind = AMOUNT if not grid.signed else MORE if shade > 0 else LESS
            place = f'x="{left + wide * number:.1f}" y="{y:g}" {_size(wide, 10)}'
            yield Markup(f'<rect class="{kind}" fill-opacity="{abs(shade) / SHADES:g}" {place}/>')
    low = grid.shown(-grid.scale) if grid.signed else "0"
    yield text_at(left - 6, y + 10, low, "tick end")
    yield text_at(left + 156, y + 10, grid.shown(grid.scale), "tick")
    if grid.signed:
        yield line_of((left + 75, y - 2), (left + 75, y + 12), "whisker")
        yield text_at(left + 75, y + 25, "0", "tick middle")


def _about(grid: Grid) -> str:
    """For those who do not see it: what it spans, and where the most lies."""
    if not grid.scale:
        return f"{grid.row_name} by {grid.column_name}; every value is zero."
    cells = ((value, row, column) for row, each in enumerate(grid.values) for column, value in enumerate(each))
    value, row, column = max(cells, key=lambda cell: abs(cell[0]))
    where = f"{grid.row_name} {grid.rows[row]}, {grid.column_name} {grid.columns[column]}"
    return f"{grid.row_name} by {grid.column_name}; the largest value is {grid.shown(value)}, at {where}."


def _frame(x: float, y: float, wide: float, high: float) -> Markup:
    return Markup(f'<rect class="picked" x="{x:.1f}" y="{y:.1f}" {_size(wide, high)}/>')


def _size(wide: float, high: float) -> str:
    return f'width="{wide:.1f}" height="{high:.1f}"'


def _turned(name: str, middle: float) -> Markup:
    place = f'x="12" y="{middle:g}" transform="rotate(-90 12 {middle:g})"'
    return Markup(f'<text class="axis middle" {place}>{escaped(name)}</text>')


def _short(label: str) -> str:
    return label if len(label) <= _LONGEST_LABEL else f"{label[: _LONGEST_LABEL - 1]}…"
