"""Heat maps as SVG, in the page's colours, light and dark; their numbers stand in a table beside them.

Values have eight shades on each side of zero: cells of one shade are one path, so that a map of a thousand cells takes
some twenty kilobytes. More is orange and less is blue, which people with any colour vision can tell apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from maw.report.chart_data import SHADES, Grid
from maw.report.html.charts import WIDTH, Chart, Shape, shape, shortened, spread, y_axis_name
from maw.report.html.tables import Table

MORE, LESS, AMOUNT = "heat s1", "heat s0", "heat s5"
_LEFT, _RIGHT, _TOP, _MOST_ROW, _MOST_HEIGHT = 92, 10, 8, 22, 330
_LETTER, _LINE, _LEGEND, _LONGEST_LABEL = 7.2, 17, 46, 10


def heat_map(grid: Grid) -> Chart | None:
    """The grid as a picture; nothing where it is empty."""
    if not grid.rows or not grid.columns:
        return None
    across = float(WIDTH - _LEFT - _RIGHT)
    wide = across / len(grid.columns)
    high = min(_MOST_ROW, wide if len(grid.rows) == len(grid.columns) else _MOST_ROW, _MOST_HEIGHT / len(grid.rows))
    down = high * len(grid.rows)
    labels, below = _column_labels(grid.columns, wide, _TOP + down)
    name = below + _LINE
    shapes = [
        shape("rect", "frame", x=_LEFT, y=_TOP, width=across, height=down),
        *_cells(grid, wide, high),
        *(shape("rect", "picked", x=_LEFT, y=_TOP + high * i, width=across, height=high) for i in grid.marked_rows),
        *(shape("rect", "picked", x=_LEFT + wide * i, y=_TOP, width=wide, height=down) for i in grid.marked_columns),
        *(
            shape(
                "text",
                "tick end",
                shortened(grid.rows[i], _LONGEST_LABEL),
                x=_LEFT - 6,
                y=_TOP + high * (i + 0.5) + 4.5,
            )
            for i in spread(len(grid.rows), high, 14)
        ),
        *labels,
        shape("text", "axis middle", grid.column_name, x=(_LEFT + WIDTH - _RIGHT) / 2, y=name),
        y_axis_name(grid.row_name, _TOP + down / 2),
        *_legend(grid, name + 14),
    ]
    return Chart(grid.title, _about(grid), name + _LEGEND, shapes)


def grid_table(grid: Grid) -> Table:
    """The grid's numbers."""

    def named(labels: Sequence[str], marked: Sequence[int]) -> list[str]:
        return [f"{label} (in use)" if number in marked else label for number, label in enumerate(labels)]

    header = [f"{grid.row_name} \\ {grid.column_name}", *named(grid.columns, grid.marked_columns)]
    names = named(grid.rows, grid.marked_rows)
    return Table(header, [[name, *map(grid.shown, row)] for name, row in zip(names, grid.values, strict=True)])


def _cells(grid: Grid, wide: float, high: float) -> list[Shape]:
    """A path for each shade."""
    paths: dict[tuple[str, int], list[str]] = {}
    for number, row in enumerate(grid.values):
        for column, value in enumerate(row):
            shade = round(SHADES * abs(value) / grid.scale) if grid.scale else 0
            if shade:
                place = f"M{_LEFT + wide * column:.1f} {_TOP + high * number:.1f}"
                path = f"{place}h{wide:.2f}v{high:.2f}h-{wide:.2f}z"
                paths.setdefault((_kind(grid, value), shade), []).append(path)
    return [
        shape("path", kind, fill_opacity=f"{shade / SHADES:g}", d="".join(parts))
        for (kind, shade), parts in sorted(paths.items())
    ]


def _kind(grid: Grid, value: float) -> str:
    return AMOUNT if not grid.signed else MORE if value > 0 else LESS


def _column_labels(columns: Sequence[str], wide: float, bottom: float) -> tuple[list[Shape], float]:
    """The labels below the columns, turned where they are long, and how far down they reach."""
    names = [shortened(each, _LONGEST_LABEL) for each in columns]
    middles = [_LEFT + wide * (i + 0.5) for i in range(len(names))]
    longest = max(map(len, names))
    if longest * _LETTER < max(wide, 3 * _LETTER):  # numbers, of which some may be left out
        places = spread(len(names), wide, longest * _LETTER + 8)
        return [shape("text", "tick middle", names[i], x=middles[i], y=bottom + 16) for i in places], bottom + 16
    turned = [
        shape("text", "tick end", name, transform=f"translate({x + 4:.1f} {bottom + 12:.1f}) rotate(-45)")
        for x, name in zip(middles, names, strict=True)
    ]
    return turned, bottom + 14 + 0.71 * _LETTER * longest


def _legend(grid: Grid, y: float) -> Iterator[Shape]:
    """The shades, from the lowest to the highest, with the values at both ends and at zero."""
    shades = range(-SHADES if grid.signed else 0, SHADES + 1)
    wide, middle = 150 / len(shades), (_LEFT + WIDTH - _RIGHT) / 2
    left = middle - 75
    yield shape("rect", "frame", x=left, y=y, width=150, height=10)
    for number, shade in enumerate(shades):
        if shade:
            opacity = f"{abs(shade) / SHADES:g}"
            place = {"x": left + wide * number, "y": y, "width": wide, "height": 10}
            yield shape("rect", _kind(grid, shade), fill_opacity=opacity, **place)
    yield shape("text", "tick end", grid.shown(-grid.scale) if grid.signed else "0", x=left - 6, y=y + 10)
    yield shape("text", "tick", grid.shown(grid.scale), x=left + 156, y=y + 10)
    if grid.signed:
        yield shape("line", "whisker", x1=middle, y1=y - 2, x2=middle, y2=y + 12)
        yield shape("text", "tick middle", "0", x=middle, y=y + 25)


def _about(grid: Grid) -> str:
    """For those who do not see it: what it spans, and where the most lies."""
    if not grid.scale:
        return f"{grid.row_name} by {grid.column_name}; every value is zero."
    cells = ((value, row, column) for row, each in enumerate(grid.values) for column, value in enumerate(each))
    value, row, column = max(cells, key=lambda cell: abs(cell[0]))
    where = f"{grid.row_name} {grid.rows[row]}, {grid.column_name} {grid.columns[column]}"
    return f"{grid.row_name} by {grid.column_name}; the largest value is {grid.shown(value)}, at {where}."
