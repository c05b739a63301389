"""Charts as SVG, which templates/parts.html writes.

They take their colours from the page, in light and in dark, and need no script. Series differ in colour, dash and
marker, so that they can be told apart without colours. Every chart has a title and a description for screen readers;
its numbers stand in a table beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from maw.report.chart_data import COLOURS, Bar, Cost, Series

WIDTH, HEIGHT = 400, 260  # no wider, so that its text can be read where a phone shrinks it
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 24, 12, 46
_LETTER, _TEXT = 7.5, 15  # mean width of a letter, in a wide font, and height of a line
_LONGEST_NAME = 22  # letters left of intervals
_DASHES = (None, "6 3", "2 3", "8 3 2 3", "1 4")
_MARKERS = ("circle", "square", "diamond")  # with five dashes fifteen looks
_CORNERS = {"square": ((-3, -3), (3, -3), (3, 3), (-3, 3)), "diamond": ((0, -4.5), (4.5, 0), (0, 4.5), (-4.5, 0))}

Shape = tuple[str, dict[str, Any], str]
"""An SVG element: tag, attributes, text."""

Place = Callable[[float], float]
"""A value -> its place in the drawing."""


@dataclass(frozen=True)
class Chart:
    """A drawing of `WIDTH` by `height`; `about` is for screen readers, a legend names the looks of series."""

    title: str
    about: str
    height: float
    shapes: Sequence[Shape]
    legend: Sequence[tuple[str, int]] = ()


def shape(tag: str, kind: str, text: str = "", **attributes: Any) -> Shape:
    """An SVG element of a class of the page's style; floats get one decimal, names hyphens for underscores."""
    written = {
        name.replace("_", "-"): f"{value:.1f}" if isinstance(value, float) else value
        for name, value in attributes.items()
    }
    return tag, {"class": kind, **written}, text


def y_axis_name(name: str, middle: float) -> Shape:
    """What the y axis shows, turned, left of the axis."""
    return shape("text", "axis middle", name, x=12, y=middle, transform=f"rotate(-90 12 {middle:g})")


def line_chart(
    title: str, series: Sequence[Series], *, x_name: str, y_name: str, log_x: bool = False, from_zero: bool = False
) -> Chart | None:
    """Lines with markers; nothing where no series has a point."""
    points = [(x, y) for each in series for x, y in each.points if y is not None]
    if not points:
        return None
    xs, ys = zip(*points, strict=True)
    x_at = _scale((min(xs), max(xs)), (_LEFT + 10, WIDTH - _RIGHT - 10), log=log_x)
    ticks = _ticks(0.0 if from_zero else min(ys), max(ys))
    y_at = _scale((ticks[0], ticks[-1]), (HEIGHT - _BOTTOM, _TOP))
    labels = sorted(set(xs)) if len(set(xs)) <= 12 else _ticks(min(xs), max(xs))
    labels = [(x, f"{x:,g}") for x in labels if min(xs) <= x <= max(xs)]
    shapes = list(_axes(ticks, y_at, labels, x_at, x_name, zoomed(y_name, ticks)))
    ends = []
    for each in series:
        there = [(x, y) for x, y in each.points if y is not None]
        if there:
            ends.append(f"{each.name}: {there[0][1]:.4g} to {there[-1][1]:.4g}")
            places = [(x_at(x), y_at(y)) for x, y in there]
            shapes.append(_line("polyline", each.look, points=" ".join(f"{x:.1f},{y:.1f}" for x, y in places)))
            shapes += [_marker(each.look, x, y) for x, y in places]
    legend = [(each.name, each.look) for each in series if each.points]
    return Chart(title, f"{y_name} by {x_name}. {'; '.join(ends)}.", HEIGHT, shapes, legend)


def interval_chart(title: str, bars: Sequence[Bar], *, name: str) -> Chart | None:
    """Means as points with their intervals, on an axis that shows no more than these; nothing without means."""
    if not bars:
        return None
    row, right = min(44.0, max(24.0, 190 / len(bars))), 58
    names = [shortened(each.name, _LONGEST_NAME) for each in bars]
    left = 22 + _LETTER * max(map(len, names))
    bottom = _TOP + row * len(bars)
    ends = [end for each in bars for end in (each.value, each.low, each.high) if end is not None]
    ticks, shown = _close_ticks(min(ends), max(ends))
    x_at = _scale(shown, (left, WIDTH - right))
    shapes, about = [], []
    for tick, label in zip(ticks, _labels(ticks), strict=True):
        shapes.append(shape("line", "grid", x1=x_at(tick), y1=_TOP, x2=x_at(tick), y2=bottom))
        shapes.append(shape("text", "tick middle", label, x=x_at(tick), y=bottom + 17))
    shapes.append(shape("text", "axis middle", zoomed(name, shown), x=(left + WIDTH - right) / 2, y=bottom + 38))
    for place, (each, written) in enumerate(zip(bars, names, strict=True)):
        y, says = _TOP + row * (place + 0.5), f"{each.value:.4f}"
        shapes.append(shape("text", "name end", written, x=left - 12, y=y + 4.5))
        if each.low is not None and each.high is not None:
            whisker = f"interval {colour(each.look)}"
            shapes.append(shape("line", whisker, x1=x_at(each.low), y1=y, x2=x_at(each.high), y2=y))
            says += f" ({each.low:.4f} to {each.high:.4f})"
        shapes.append(_marker(each.look, x_at(each.value), y))
        shapes.append(shape("text", "value end", f"{each.value:.4f}", x=WIDTH - 4, y=y + 4.5))
        about.append(f"{each.name} {says}")
    return Chart(title, f"{name}: {'; '.join(about)}.", bottom + _BOTTOM, shapes)


def cost_chart(title: str, costs: Sequence[Cost], *, x_name: str, y_name: str) -> Chart | None:
    """Quality by cost, a point for each method, with its name where there is room for all names, else a legend.

    Nothing where fewer than two methods have a cost.
    """
    if len(costs) < 2:
        return None
    seconds = [each.seconds for each in costs]
    log = max(seconds) > 10 * min(seconds)
    x_ticks = _log_ticks(min(seconds), max(seconds)) if log else _ticks(0.0, max(seconds))
    ends = [end for each in costs for end in (each.value, each.low, each.high) if end is not None]
    ticks, shown = _close_ticks(min(ends), max(ends))
    x_at = _scale((x_ticks[0], x_ticks[-1]), (_LEFT, WIDTH - _RIGHT), log=log)
    height = 240
    y_at = _scale(shown, (height - _BOTTOM, _TOP))
    labels = [(tick, f"{tick:,.0f}" if tick >= 1 else f"{tick:g}") for tick in x_ticks]
    x_name += " (logarithmic)" * log
    shapes = list(_axes(ticks, y_at, labels, x_at, x_name, zoomed(y_name, shown), height))
    points = [(each, x_at(each.seconds), y_at(each.value)) for each in costs]
    for each, x, _ in points:
        if each.low is not None and each.high is not None:
            whisker = f"interval thin {colour(each.look)}"
            shapes.append(shape("line", whisker, x1=x, y1=y_at(each.low), x2=x, y2=y_at(each.high)))
    shapes += [_marker(each.look, x, y) for each, x, y in points]
    names = _names_beside(points, height - _BOTTOM)
    about = "; ".join(f"{each.name} {each.value:.4f} for {each.seconds:,.0f}" for each in costs)
    legend = () if names else [(each.name, each.look) for each in costs]
    return Chart(title, f"{y_name} by {x_name}. {about}.", height, [*shapes, *names], legend)


def zoomed(name: str, shown: Sequence[float]) -> str:
    """The name of an axis, with a note where it does not start at zero."""
    return name if shown[0] == 0 else f"{name} (zoomed axis)"


def shortened(name: str, longest: int) -> str:
    """The name, cut with an ellipsis where it has more letters."""
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def spread(count: int, step: float, room: float) -> range:
    """The places of labels, from the first on and evenly spread, that have room for themselves."""
    return range(0, count, next((every for every in (1, 2, 4, 5, 8, 10, 16, 32) if every * step >= room), 64))


def _names_beside(points: Sequence[tuple[Cost, float, float]], bottom: float) -> list[Shape]:
    """The name of each point beside, above or below it; nothing if one of them has no room."""
    taken = [(x - 5, y - 5, x + 5, y + 5) for _, x, y in points]
    shapes = []
    for each, x, y in points:
        wide = _LETTER * len(each.name)
        places = (
            ("halo", x + 9, y + 4.5, x + 9),
            ("halo end", x - 9, y + 4.5, x - 9 - wide),
            ("halo middle", x, y - 10, x - wide / 2),
            ("halo middle", x, y + 19, x - wide / 2),
            *(("halo end", x + 4, y + shift, x + 4 - wide) for shift in (-10, 19)),
            *(("halo", x - 4, y + shift, x - 4) for shift in (-10, 19)),
        )
        for kind, text_x, text_y, first in places:
            box = (first - 3, text_y - 12, first + wide + 3, text_y - 12 + _TEXT)
            inside = box[0] >= _LEFT and box[2] <= WIDTH and box[1] >= 0 and box[3] <= bottom
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                shapes.append(shape("text", kind, each.name, x=text_x, y=text_y))
                break
        else:
            return []
    return shapes


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def histogram(title: str, shares: Sequence[float], look: int, *, name: str) -> Chart | None:
    """Shares by number from 0, as columns."""
    if not shares:
        return None
    height = 200
    ticks = _ticks(0.0, max(*shares, 0.01))
    y_at = _scale((ticks[0], ticks[-1]), (height - _BOTTOM, _TOP))
    step = (WIDTH - _LEFT - _RIGHT) / len(shares)

    def x_at(place: float) -> float:
        return _LEFT + step * (place + 0.5)

    labels = [(float(place), str(place)) for place in spread(len(shares), step, _label_room(str(len(shares))))]
    shapes = list(_axes(ticks, y_at, labels, x_at, name, "share", height))
    for place, share in enumerate(shares):
        x, y = x_at(place) - 0.4 * step, y_at(share)
        shapes.append(shape("rect", f"bar {colour(look)}", x=x, y=y, width=0.8 * step, height=y_at(0.0) - y))
    most = max(range(len(shares)), key=lambda place: shares[place])
    about = f"Share of texts by {name}; the most frequent is {most}, with {shares[most]:.1%}."
    return Chart(title, about, height, shapes)


def swatch(look: int) -> list[Shape]:
    """A small piece of a series' line, for tables and legends: 26 by 12."""
    return [_line("line", look, x1=0, y1=6, x2=26, y2=6), _marker(look, 13, 6)]


def colour(look: int) -> str:
    """The class that gives a shape the colour of a look."""
    return f"s{look % len(COLOURS)}"


def _line(tag: str, look: int, **place: Any) -> Shape:
    return shape(tag, f"line {colour(look)}", stroke_dasharray=_DASHES[look % len(_DASHES)], **place)


def _marker(look: int, x: float, y: float) -> Shape:
    kind, name = f"mark {colour(look)}", _MARKERS[look % len(_MARKERS)]
    if name == "circle":
        return shape("circle", kind, cx=x, cy=y, r=3.5)
    return shape("polygon", kind, points=" ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in _CORNERS[name]))


def _axes(
    ticks: Sequence[float],
    y_at: Place,
    labels: Sequence[tuple[float, str]],
    x_at: Place,
    x_name: str,
    y_name: str,
    height: float = HEIGHT,
) -> Iterator[Shape]:
    bottom = height - _BOTTOM
    yield shape("line", "grid", x1=_LEFT, y1=bottom, x2=WIDTH - _RIGHT, y2=bottom)
    for tick, label in zip(ticks, _labels(ticks), strict=True):
        yield shape("line", "grid", x1=_LEFT, y1=y_at(tick), x2=WIDTH - _RIGHT, y2=y_at(tick))
        yield shape("text", "tick end", label, x=_LEFT - 6, y=y_at(tick) + 4)
    for x, label in _apart(labels, x_at):
        inside = WIDTH - _LETTER * len(label) / 2
        yield shape("text", "tick middle", label, x=min(x_at(x), inside), y=bottom + 17)
    yield shape("text", "axis middle", x_name, x=(_LEFT + WIDTH - _RIGHT) / 2, y=height - 6)
    yield y_axis_name(y_name, (_TOP + bottom) / 2)


def _apart(labels: Sequence[tuple[float, str]], x_at: Place) -> list[tuple[float, str]]:
    """The labels that do not run into the one before, the last one always."""
    kept: list[tuple[float, str]] = []
    for x, label in labels:
        if kept and x_at(x) - x_at(kept[-1][0]) < _label_room(label, kept[-1][1]):
            if x != labels[-1][0]:
                continue
            kept.pop()
        kept.append((x, label))
    return kept


def _label_room(label: str, before: str = "") -> float:
    """What the middles of two labels of the x axis keep apart; one label stands beside others as long as itself."""
    return _LETTER * (len(label) + len(before or label)) / 2 + 8


def _scale(values: tuple[float, float], places: tuple[float, float], *, log: bool = False) -> Place:
    """Value -> place; the middle where all values are the same."""
    low, high = map(math.log, values) if log else values

    def at(value: float) -> float:
        share = 0.5 if high == low else ((math.log(value) if log else value) - low) / (high - low)
        return places[0] + share * (places[1] - places[0])

    return at


def _ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that enclose both."""
    span = (high - low) or abs(high) or 1.0
    raw = span / about
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(each * magnitude for each in (1, 2, 2.5, 5, 10) if each * magnitude >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(place * step, 12) for place in range(first, max(last, first + 1) + 1)]


def _close_ticks(low: float, high: float) -> tuple[list[float], tuple[float, float]]:
    """Round numbers between the ends of an axis, and these ends: close around the values, or zero if that is near."""
    ticks, margin = _ticks(low, high, 4), 0.06 * (high - low) or math.inf
    ends = (0.0 if ticks[0] == 0 else max(ticks[0], low - margin), min(ticks[-1], high + margin))
    return [tick for tick in ticks if ends[0] <= tick <= ends[1]], ends


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten that enclose both."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    first = max(tick for tick in every if tick <= low * (1 + 1e-9))
    last = min(tick for tick in every if tick >= high * (1 - 1e-9))
    return [tick for tick in every if first <= tick <= last]


def _labels(ticks: Sequence[float]) -> list[str]:
    """The ticks with as many decimals as the one that needs the most."""
    decimals = max(len(f"{tick:.6f}".rstrip("0").partition(".")[2]) for tick in ticks)
    return [f"{tick:,.{decimals}f}" for tick in ticks]
