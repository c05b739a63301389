"""Plots of routing by epoch, one PNG for each method that routes.

    write_routing_plots(folder, result)     # folder/routing_maw.png, from the content of dataset.json

All values come from the method's "training_history" (`maw.evaluation.routing.diagnostics`). A panel whose values are
missing is left out, for example without diagnostics or for a router without a policy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from maw.report import chart_data
from maw.report.chart_data import SIDES
from maw.storage.files import write_atomically

COLOURS = {"query": "#1f6fb4", "document": "#d9660c"}
_GREY, _WIDTH, _ROW = "#666666", 11.0, 2.9  # inches
_LINES = {
    "oracle": ("oracle", "#2a8f4f", "-"),
    "greedy": ("router", "#b3202c", "-"),
    "best_fixed": ("best fixed depth", "#000000", "--"),
    "shuffled": ("router's picks shuffled", "#b3202c", ":"),
}

History = Sequence[Mapping[str, Any]]


def write_routing_plots(folder: Path, result: Mapping[str, Any]) -> list[Path]:
    """Writes `routing_<method>.png` into a dataset's folder for each method with routing in its history.

    Raises:
        MAWError: a path cannot be written.
    """
    written = []
    for method, history in chart_data.histories(result):
        if "val_routing" in history[0]:
            path = folder / f"routing_{method.name}.png"
            approach = result["results"][method.key].get("approach", method.approach)
            write_routing_plot(path, f"{approach}, {result['venue']}", history)
            written.append(path)
    return written


def write_routing_plot(path: Path, title: str, history: History) -> None:
    """Draws one method's history, one point for each epoch; histograms are those of the best epoch.

    Raises:
        MAWError: the path cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # imported late, since it is slow; without pyplot's global state

    kept = chart_data.kept_epoch(history)
    panels = _panels(history, kept)
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(_WIDTH, _ROW * rows + 0.5), dpi=120, layout="constrained")
    about = f"{title}\nrouting on validation; epoch {kept['epoch']} of {len(history)} was kept"
    figure.suptitle(about, fontsize=11, parse_math=False)
    axes = figure.subplots(rows, 2, squeeze=False).flatten()
    for axis, (name, draw) in zip(axes, panels, strict=False):
        axis.set_title(name, fontsize=10, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
        draw(axis)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    write_atomically(path, FigureCanvasAgg(figure).print_png)  # `savefig` would draw it twice, for its layout


def _panels(history: History, kept: Mapping[str, Any]) -> list[tuple[str, Callable[[Any], None]]]:
    """Title and drawing function of each panel; two panels share a row."""
    routing = kept["val_routing"]
    depths = len(routing["query"]["depth_histogram"][0])

    def sides(key: str, limit: float | None = None, limit_name: str = "") -> Callable[[Any], None]:
        return lambda axis: _sides(axis, history, key, limit, limit_name)

    panels = [
        ("Training loss", lambda axis: _curve(axis, history, [r["train_loss"] for r in history], color="black")),
        ("Validation nDCG@10", lambda axis: _validation(axis, history)),
    ]
    if "policy_entropy" in routing["query"]:
        panels.append(("Policy entropy (nats)", sides("policy_entropy", float(np.log(depths)), "uniform policy")))
        name = "Information between text and sampled depth (nats)"
        panels.append((name, sides("text_depth_mutual_information")))
    panels.append(("Effective number of greedy depths", sides("effective_depths", depths, "all depths alike")))
    if routing["query"].get("depth_distance") is not None:
        panels.append(("Cosine distance between depths", sides("depth_distance")))
    if len(panels) % 2:
        panels.append(("Share of the depth picked most", sides("top_share", 1.0)))
    panels += [(f"Greedy depths, {name}", partial(_histogram, kept, side)) for side, name in SIDES.items()]
    for side, name in SIDES.items():
        if "per_depth" in routing[side]:
            panels.append((f"nDCG@10 with {name} at one depth", partial(_per_depth, routing[side], side)))
    return panels


def _curve(axis: Any, history: History, values: Sequence[float | None], **style: Any) -> None:
    """Values by epoch, without missing ones."""
    points = [(record["epoch"], each) for record, each in zip(history, values, strict=True) if each is not None]
    if points:
        axis.plot(*zip(*points, strict=True), **({"marker": "o", "markersize": 4} | style))
    axis.set_xlabel("epoch", fontsize=8)
    axis.set_xlim(0.5, history[-1]["epoch"] + 0.5)
    axis.xaxis.get_major_locator().set_params(integer=True)


def _validation(axis: Any, history: History) -> None:
    _curve(axis, history, [r["val_ndcg_cut_10"] for r in history], color=_LINES["greedy"][1], label="router")
    if any("oracle" in record["val_routing"]["query"] for record in history):
        for key, marker in (("oracle", "^"), ("best_fixed", "s")):
            label, colour, style = _LINES[key]
            values = [record["val_routing"]["query"].get(key) for record in history]
            _curve(axis, history, values, color=colour, linestyle=style, marker=marker, label=f"{label} of queries")
    axis.legend(fontsize=8, frameon=False)


def _sides(axis: Any, history: History, key: str, limit: float | None, limit_name: str) -> None:
    """A statistic of queries and of documents by epoch, averaged over MAW layers, with a line at its limit."""
    for line, colour, marker in zip(chart_data.sides(history, key), COLOURS.values(), "oD", strict=True):
        values = [value for _, value in line.points]
        _curve(axis, history, values, color=colour, marker=marker, fillstyle="none", label=line.name)
    if limit is not None:
        axis.axhline(limit, color=_GREY, linewidth=0.8, linestyle="--", label=limit_name or None)
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=8, frameon=False)


def _histogram(kept: Mapping[str, Any], side: str, axis: Any) -> None:
    shares = chart_data.depth_shares(kept, side)
    axis.bar(np.arange(len(shares)), shares, color=COLOURS[side], width=0.8)
    axis.set_xlabel("depth", fontsize=8)
    axis.set_ylabel("share of picks", fontsize=8)
    axis.set_ylim(0, max(1.05 * max(shares), 0.1))
    axis.xaxis.get_major_locator().set_params(integer=True)


def _per_depth(facts: Mapping[str, Any], side: str, axis: Any) -> None:
    values = facts["per_depth"]
    axis.plot(np.arange(len(values)), values, "o", markersize=4, color=COLOURS[side])
    for key, (label, colour, style) in _LINES.items():
        if facts[key] is not None:
            axis.axhline(facts[key], color=colour, linestyle=style, linewidth=1.2, label=f"{label} {facts[key]:.4f}")
    axis.set_xlabel("depth", fontsize=8)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
