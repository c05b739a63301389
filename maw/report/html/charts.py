"""Charts as inline SVG, made by hand: they take their colours from the page, in light and in dark, and need no script.

Series differ in colour, dash and marker, so that they can be told apart without colours. Every chart has a title and
a description for screen readers; its numbers stand in a table beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from maw.report.html.markup import Markup, element, escaped, joined
from maw.report.series import Series

WIDTH, HEIGHT = 440, 280  # no wider, so that its text can be read where a phone shrinks it
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 14, 12, 46
_LABEL_ROOM = 24  # between the middles of two labels of the x axis
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 4")
_MARKERS = ("circle", "square", "diamond")  # with five dashes fifteen looks
_SERIES = 10  # colours of the page's style


@dataclass(frozen=True)
class Bar:
    """A bar from 0, with the ends of an interval."""

    name: str
    look: int
    value: float
    low: float | None = None
    high: float | None = None
    label: str = ""


def line_chart(
    title: str, series: Sequence[Series], *, x_name: str, y_name: str, log_x: bool = False, from_zero: bool = False
) -> Markup:
    """Lines with markers; nothing where no series has a point.

    Args:
        title: for screen readers.
        series: the lines.
        x_name, y_name: of the axes.
        log_x: whether x is on a logarithmic scale.
        from_zero: whether y begins at 0.
    """
    points = [(x, y) for each in series for x, y in each.points if y is not None]
    if not points:
        return Markup("")
    xs, ys = zip(*points, strict=True)
    x_at = _scale((min(xs), max(xs)), (_LEFT + 10, WIDTH - _RIGHT - 10), log=log_x)
    ticks = _ticks(0.0 if from_zero else min(ys), max(ys))
    y_at = _scale((ticks[0], ticks[-1]), (HEIGHT - _BOTTOM, _TOP))
    labels = sorted(set(xs)) if len(set(xs)) <= 12 else _ticks(min(xs), max(xs))
    shown = [
        _axes(ticks, y_at, [(x, f"{x:g}") for x in labels if min(xs) <= x <= max(xs)], x_at, x_name, y_name),
        *(_line(each, x_at, y_at) for each in series),
    ]
    ends = "; ".join(
        f"{each.name}: {found[0]:.4g} to {found[-1]:.4g}"
        for each in series
        if (found := [y for _, y in each.points if y is not None])
    )
    return figure(title, f"{y_name} by {x_name}. {ends}.", shown, HEIGHT, _legend(series))


def bar_chart(title: str, bars: Sequence[Bar], *, name: str) -> Markup:
    """Horizontal bars with intervals; values stand at their ends. Nothing where there are none."""
    if not bars:
        return Markup("")
    row, left, right = 34, 165, 58
    height = _TOP + row * len(bars) + _BOTTOM
    ticks = _ticks(0.0, max(max(each.value, each.high or 0.0) for each in bars) or 1.0)
    x_at = _scale((ticks[0], ticks[-1]), (left, WIDTH - right))
    bottom = _TOP + row * len(bars)
    shown = [
        joined(
            line_of((x_at(tick), _TOP), (x_at(tick), bottom), "grid")
            + text_at(x_at(tick), bottom + 16, f"{tick:g}", "tick middle")
            for tick in ticks
        ),
        text_at((left + WIDTH - right) / 2, bottom + 36, name, "axis middle"),
    ]
    for place, each in enumerate(bars):
        y, end = _TOP + row * place + 5, x_at(each.value)
        shown.append(text_at(left - 8, y + 16, each.name, "name end"))
        shown.append(
            Markup(
                f'<rect class="bar s{each.look % _SERIES}" x="{left}" y="{y}" width="{max(end - left, 0):.1f}" '
                f'height="{row - 10}"/>'
            )
        )
        last = end
        if each.low is not None and each.high is not None:
            middle, low, last = y + (row - 10) / 2, x_at(max(each.low, 0.0)), x_at(each.high)
            shown.append(line_of((low, middle), (last, middle), "whisker"))
            shown += [line_of((at, middle - 5), (at, middle + 5), "whisker") for at in (low, last)]
        shown.append(text_at(max(end, last) + 6, y + 16, each.label or f"{each.value:.4f}", "value"))
    about = "; ".join(
        f"{each.name} {each.value:.4f}" + (f" ({each.low:.4f} to {each.high:.4f})" if each.low is not None else "")
        for each in bars
    )
    return figure(title, f"{name}: {about}.", shown, height)


def histogram(title: str, shares: Sequence[float], look: int, *, name: str) -> Markup:
    """Shares by number from 0, as columns."""
    if not shares:
        return Markup("")
    height = 200
    ticks = _ticks(0.0, max(*shares, 0.01))
    y_at = _scale((ticks[0], ticks[-1]), (height - _BOTTOM, _TOP))
    step = (WIDTH - _LEFT - _RIGHT) / len(shares)
    every = max(1, math.ceil(len(shares) / 16))

    def x_at(place: float) -> float:
        return _LEFT + step * (place + 0.5)

    labels = [(float(place), str(place)) for place in range(0, len(shares), every)]
    columns = [
        Markup(
            f'<rect class="bar s{look % _SERIES}" x="{x_at(place) - 0.4 * step:.1f}" y="{y_at(share):.1f}" '
            f'width="{0.8 * step:.1f}" height="{max(y_at(0.0) - y_at(share), 0):.1f}"/>'
        )
        for place, share in enumerate(shares)
    ]
    most = max(range(len(shares)), key=lambda place: shares[place])
    about = f"Share of texts by {name}; the most frequent is {most}, with {shares[most]:.1%}."
    shown = [_axes(ticks, y_at, labels, x_at, name, "share", height), *columns]
    return figure(title, about, shown, height)


def swatch(look: int) -> Markup:
    """A small piece of a series' line, for tables and legends."""
    inside = f'<line class="line s{look % _SERIES}" x1="0" y1="6" x2="26" y2="6"{_dash(look)}/>{_marker(look, 13, 6)}'
    return Markup(f'<svg class="swatch" viewBox="0 0 26 12" aria-hidden="true" focusable="false">{inside}</svg>')


def _legend(series: Sequence[Series]) -> Markup:
    items = (element("li", swatch(each.look), " ", each.name) for each in series if each.points)
    return element("ul", *items, class_="legend")


def figure(title: str, about: str, shown: Sequence[Markup], height: float, legend: Markup | str = "") -> Markup:
    """A drawing of `WIDTH` by `height` with its caption; `about` is for screen readers."""
    opening = f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" focusable="false"'
    drawing = Markup(f'{opening} aria-label="{escaped(f"{title}. {about}")}">{joined(shown, "")}</svg>')
    return element("figure", element("figcaption", title), drawing, legend)


def _axes(
    ticks: Sequence[float],
    y_at: Callable[[float], float],
    labels: Sequence[tuple[float, str]],
    x_at: Callable[[float], float],
    x_name: str,
    y_name: str,
    height: float = HEIGHT,
) -> Markup:
    bottom = height - _BOTTOM
    lines = [line_of((_LEFT, y_at(tick)), (WIDTH - _RIGHT, y_at(tick)), "grid") for tick in ticks]
    lines += [text_at(_LEFT - 6, y_at(tick) + 4, f"{tick:g}", "tick end") for tick in ticks]
    lines += [text_at(x_at(x), bottom + 17, label, "tick middle") for x, label in _apart(labels, x_at)]
    lines.append(text_at((_LEFT + WIDTH - _RIGHT) / 2, height - 6, x_name, "axis middle"))
    middle = (_TOP + bottom) / 2
    turned = f'transform="rotate(-90 12 {middle:g})"'
    lines.append(Markup(f'<text class="axis middle" x="12" y="{middle:g}" {turned}>{escaped(y_name)}</text>'))
    return joined(lines, "")


def _apart(labels: Sequence[tuple[float, str]], x_at: Callable[[float], float]) -> list[tuple[float, str]]:
    """The labels that do not run into the one before, the last one always."""
    kept: list[tuple[float, str]] = []
    for x, label in labels:
        if kept and x_at(x) - x_at(kept[-1][0]) < _LABEL_ROOM:
            if x != labels[-1][0]:
                continue
            kept.pop()
        kept.append((x, label))
    return kept


def _line(series: Series, x_at: Callable[[float], float], y_at: Callable[[float], float]) -> Markup:
    places = [(x_at(x), y_at(y)) for x, y in series.points if y is not None]
    if not places:
        return Markup("")
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    line = f'<polyline class="line s{series.look % _SERIES}" points="{path}"{_dash(series.look)}/>'
    return Markup(line + "".join(_marker(series.look, x, y) for x, y in places))


def _dash(look: int) -> str:
    dash = _DASHES[look % len(_DASHES)]
    return f' stroke-dasharray="{dash}"' if dash else ""


def _marker(look: int, x: float, y: float) -> str:
    kind, name = f"mark s{look % _SERIES}", _MARKERS[look % len(_MARKERS)]
    if name == "circle":
        return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>'
    corners = {
        "square": ((-3, -3), (3, -3), (3, 3), (-3, 3)),
        "diamond": ((0, -4.5), (4.5, 0), (0, 4.5), (-4.5, 0)),
    }[name]
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return f'<polygon class="{kind}" points="{points}"/>'


def line_of(start: tuple[float, float], end: tuple[float, float], kind: str) -> Markup:
    """A line of a class of the page's style."""
    return Markup(
        f'<line class="{kind}" x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}"/>'
    )


def text_at(x: float, y: float, text: str, kind: str) -> Markup:
    """Text of a class of the page's style."""
    return Markup(f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escaped(text)}</text>')


def _scale(values: tuple[float, float], places: tuple[float, float], *, log: bool = False) -> Callable[[float], float]:
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
