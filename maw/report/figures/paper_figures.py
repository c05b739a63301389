r"""Figures for a paper, as PDF with embedded fonts and as SVG, one column wide, in a dataset's `figures/`.

    \includegraphics[width=\columnwidth]{logs/tier1/msmarco_20250106_143022/figures/recall}

    ndcg_cut_10             bars with the 95% intervals of the means
    recall                  recall by number of passages
    training                validation nDCG@10 and training loss by epoch
    routing_maw             entropy, effective depths and greedy depths, one figure for each method that routes
    attention_maw           one text: heads by depths, and depths by tokens
    attention_maw_tokens    one text: tokens by tokens, pretrained, in use and at the most distant depth

They fit a column of ACM's and IEEE's two-column formats, with text of seven points and no title. Glyphs of the SVG are
outlines, so that it looks the same without the font. The same files of a run give the same bytes.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from maw.config.methods import methods_of
from maw.evaluation.confirmatory import METRIC
from maw.evaluation.metrics import METRIC_LABELS
from maw.report import chart_data
from maw.report.chart_data import COLOURS, RECALL, SHADES, Grid, Series
from maw.report.text.format import clean
from maw.storage.files import write_atomically

FOLDER = "figures"
WIDTH = 3.33  # inches
_SETTINGS = {
    "font.family": "DejaVu Sans",
    "font.size": 7,
    "axes.labelsize": 7,
    "axes.titlesize": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # TrueType: selectable text, and publishers ask for it
    "svg.fonttype": "path",
    "svg.hashsalt": "maw",  # the same ids inside each time
}
_DASHES = ("-", "--", ":", "-.", (0, (1, 3)))
_MARKERS = "osD"  # with five dashes: fifteen looks
_LABEL = METRIC_LABELS[METRIC]
_LABELS = 16  # the most on one axis
_TITLE = 46  # letters in a line
_TICKS = tuple(k for k in RECALL if k != 15)  # 15 has no room beside 10 and 20

Result = Mapping[str, Any]
Draw = Callable[[Any], object]


def write_figures(folder: Path, result: Result, attention: Mapping[str, Mapping[str, Any]]) -> list[Path]:
    """Writes every figure into a dataset's folder, each as PDF and as SVG.

    Raises:
        MAWError: a path cannot be written.
    """
    from matplotlib import rc_context  # imported late, since it is slow; without pyplot's global state
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    written = []
    with rc_context(_SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        for name, height, draw in _figures(result, attention):
            figure = Figure(figsize=(WIDTH, height), layout="constrained")
            draw(figure)
            # `savefig` would draw it once more for its layout. Without a date, the bytes are the same each time.
            pdf = partial(FigureCanvasPdf(figure).print_pdf, metadata={"CreationDate": None})
            written.append(write_atomically(folder / FOLDER / f"{name}.pdf", pdf))
            figure.set_layout_engine("none")  # the layout is computed once, not for each format
            svg = partial(FigureCanvasSVG(figure).print_svg, metadata={"Date": None})
            written.append(write_atomically(folder / FOLDER / f"{name}.svg", svg))
    return written


def _figures(result: Result, attention: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, float, Draw]]:
    """Name, height in inches and drawing function of each figure."""
    methods = methods_of(result)
    yield METRIC, 0.45 + 0.22 * len(methods), lambda figure: _bars(figure, result)
    yield "recall", 2.2 + 0.13 * -(-len(methods) // 2), lambda figure: _recall(figure, result)
    if any(True for _ in chart_data.histories(result)):
        yield "training", 3.4 + 0.13 * -(-len(methods) // 2), lambda figure: _training(figure, result)
    for method, history in chart_data.histories(result):
        if "val_routing" in history[0]:
            yield f"routing_{method.name}", 4.6, lambda figure, h=history: _routing(figure, h)
    for method in methods:
        if method.name in attention:
            shown = chart_data.grids(attention[method.name])
            tokens = [each for each in shown if each.row_name == "token"]
            across = [each for each in shown if each.row_name != "token"]
            yield f"attention_{method.name}", 5.2, lambda figure, g=across: _maps(figure, g)
            yield f"attention_{method.name}_tokens", 7.6, lambda figure, g=tokens: _maps(figure, g)


def _bars(figure: Any, result: Result) -> None:
    axis, every = figure.subplots(), chart_data.bars(result)
    for place, bar in enumerate(every):
        axis.barh(place, bar.value, height=0.7, color=COLOURS[bar.look % len(COLOURS)], alpha=0.75)
        low, high = (bar.value, bar.value) if bar.low is None else (bar.low, bar.high)
        if high > low:
            ends = [[bar.value - low], [high - bar.value]]
            axis.errorbar(bar.value, place, xerr=ends, color="black", lw=0.8, capsize=2)
        axis.text(max(high, bar.value), place, f" {bar.value:.4f}", va="center")
    axis.set_yticks(range(len(every)), [bar.name for bar in every])
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.set_xlim(left=0)
    axis.set_xlabel(_LABEL)


def _recall(figure: Any, result: Result) -> None:
    axis = figure.subplots()
    for line in chart_data.recall(result):
        _line(axis, line.points, line.look, line.name)
    axis.set_xscale("log")
    axis.set_xticks(_TICKS, [str(k) for k in _TICKS])
    axis.minorticks_off()
    axis.set_xlabel("passages")
    axis.set_ylabel("recall")
    _legend(figure, axis)


def _training(figure: Any, result: Result) -> None:
    axes = figure.subplots(2, 1, sharex=True)
    facts = {f"val_{METRIC}": f"validation {_LABEL}", "train_loss": "training loss"}
    for axis, (key, name) in zip(axes, facts.items(), strict=True):
        _epochs(axis, chart_data.by_epoch(result, key), name)
    axes[0].set_xlabel("")
    _legend(figure, axes[0])


def _routing(figure: Any, history: Sequence[Mapping[str, Any]]) -> None:
    entropy, effective, picks = figure.subplots(3, 1)
    _epochs(entropy, chart_data.sides(history, "policy_entropy"), "policy entropy (nats)", from_zero=True)
    _epochs(effective, chart_data.sides(history, "effective_depths"), "effective depths", from_zero=True)
    kept = chart_data.kept_epoch(history)
    for place, (side, name) in enumerate(chart_data.SIDES.items()):
        shares = chart_data.depth_shares(kept, side)
        picks.bar(np.arange(len(shares)) + 0.4 * place - 0.2, shares, width=0.4, color=COLOURS[place], label=name)
    picks.set_xlabel(f"depth, epoch {kept['epoch']}")
    picks.set_ylabel("share of texts")
    picks.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    _legend(figure, picks)


def _epochs(axis: Any, every: Sequence[Series], name: str, *, from_zero: bool = False) -> None:
    """Lines by epoch, with margins for a single epoch and for markers at the edge."""
    for series in every:
        _line(axis, series.points, series.look, series.name)
    last = max((x for series in every for x, _ in series.points), default=1)
    axis.set_xlim(0.5, last + 0.5)
    axis.margins(y=0.1)
    if from_zero:
        axis.set_ylim(0, 1.1 * max((y for each in every for _, y in each.points if y is not None), default=1) or 1)
    axis.set_xlabel("epoch")
    axis.set_ylabel(name)
    axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def _maps(figure: Any, shown: Sequence[Grid]) -> None:
    """Heat maps one below the other, each with its colour scale."""
    for axis, grid in zip(figure.subplots(len(shown), 1, squeeze=False)[:, 0], shown, strict=True):
        colours = _cells(axis, grid)
        axis.set(xlim=(0, len(grid.columns)), ylim=(len(grid.rows), 0))
        _labels(axis.set_xticks, grid.columns, rotation=90 if max(map(len, grid.columns)) > 3 else 0)
        _labels(axis.set_yticks, grid.rows)
        axis.set_xlabel(grid.column_name)
        axis.set_ylabel(grid.row_name)
        axis.set_title(textwrap.fill(grid.title, _TITLE))
        axis.tick_params(length=2, labelsize=6)
        for number in grid.marked_rows:
            axis.axhspan(number, number + 1, fill=False, edgecolor="black", linewidth=0.8)
        for number in grid.marked_columns:
            axis.axvspan(number, number + 1, fill=False, edgecolor="black", linewidth=0.8)
        bar = figure.colorbar(colours, ax=axis, pad=0.02, aspect=18, ticks=(-1, -0.5, 0, 0.5, 1))
        bar.ax.set_yticklabels([grid.shown(grid.scale * tick) for tick in bar.get_ticks()])
        bar.solids.set(rasterized=False, edgecolor="face", linewidth=0.1)
        bar.ax.tick_params(labelsize=6)


def _cells(axis: Any, grid: Grid) -> Any:
    """Draws the cells, all cells of one shade as one vector shape, to keep the file small.

    Returns:
        The mapping from shares of the grid's scale to colours, for the legend.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, LinearSegmentedColormap
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    ends = [COLOURS[0], "white", COLOURS[1]] if grid.signed else ["white", COLOURS[5]]
    edges = np.arange(-SHADES if grid.signed else 0, SHADES + 2) / SHADES - 0.5 / SHADES
    norm = BoundaryNorm(edges.clip(-1 if grid.signed else 0, 1), len(edges) - 1)
    colours = ScalarMappable(norm, LinearSegmentedColormap.from_list("maw", ends, len(edges) - 1))
    share_RC = np.asarray(grid.values) / (grid.scale or 1.0)
    shade_RC = np.rint(SHADES * share_RC).astype(int)
    square = np.array([(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)])
    codes = [Outline.MOVETO, *[Outline.LINETO] * 3, Outline.CLOSEPOLY]
    for shade in sorted(set(shade_RC.flat) - {0}):
        places = np.argwhere(shade_RC == shade)[:, ::-1]
        outline = Outline((places[:, None] + square).reshape(-1, 2), codes * len(places))
        axis.add_patch(PathPatch(outline, color=colours.to_rgba(shade / SHADES), linewidth=0.1))
    return colours


def _labels(place: Callable[..., object], labels: Sequence[str], **how: Any) -> None:
    """Labels at the middles of cells, as many as fit; never read as TeX mathematics."""
    every = -(-len(labels) // _LABELS)
    shown = range(0, len(labels), every)
    place(
        [number + 0.5 for number in shown], [clean(labels[number])[:12] for number in shown], parse_math=False, **how
    )


def _line(axis: Any, points: Sequence[tuple[float, float | None]], look: int, name: str) -> None:
    there = [(x, y) for x, y in points if y is not None]
    if there:
        style = {"linestyle": _DASHES[look % len(_DASHES)], "marker": _MARKERS[look % len(_MARKERS)]}
        axis.plot(*zip(*there, strict=True), color=COLOURS[look % len(COLOURS)], mfc="white", label=name, **style)


def _legend(figure: Any, axis: Any) -> None:
    """A legend below the figure, if any line has a name."""
    handles, names = axis.get_legend_handles_labels()
    if handles:
        figure.legend(handles, names, loc="outside lower center", ncols=2)
