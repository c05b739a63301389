"""The numbers behind the pictures, for the page and for paper figures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from maw.config.methods import Method, look_of, methods_of
from maw.evaluation.confirmatory import METRIC

NAMED_SHARE = 0.005  # a smaller share of picks is not named


def grids(example: Mapping[str, Any]) -> list[Grid]:
    """What is shown of one method: by head and depth, by depth and token, and three maps of tokens by tokens."""
    tokens, depths = example["tokens"], [str(depth) for depth in range(example["depths"])]
    used = [depth for depth, share in enumerate(example["picks"]) if share >= NAMED_SHARE]
    used = used if len(used) < len(depths) else []  # a mixture of all: none stands out
    received = _mean(example["used"])
    by_token = {"row_name": "token", "column_name": "attends to", "rows": tokens, "columns": tokens}
    head, farthest = example["head"], example["farthest"]
    return [
        Grid(
            "Distance of each depth's attention from that in use, by head",
            "head",
            "depth",
            [str(number + 1) for number in range(example["heads"])],
            depths,
            example["distance"],
            marked_columns=used,
        ),
        Grid(
            f"Attention that tokens receive at each depth, minus that in use, head {head}",
            "depth",
            "token",
            depths,
            tokens,
            _minus(example["received"], [received] * len(depths)),
            signed=True,
            marked_rows=used,
        ),
        Grid(f"Pretrained attention, head {head}", **by_token, values=example["pretrained"]),
        Grid(
            f"In use minus pretrained, head {head}",
            **by_token,
            values=_minus(example["used"], example["pretrained"]),
            signed=True,
        ),
        Grid(
            f"Most distant depth, {farthest}, minus in use, head {head}",
            **by_token,
            values=_minus(example["at_farthest"], example["used"]),
            signed=True,
        ),
    ]


def _mean(rows: list[list[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def _minus(some: list[list[float]], others: list[list[float]]) -> list[list[float]]:
    return [[a - b for a, b in zip(*pair, strict=True)] for pair in zip(some, others, strict=True)]


def attention_numbers(example: Mapping[str, Any]) -> dict[str, Any]:
    """What the heat maps of one method show, in numbers.

    Returns:
        `moved`: share of the head's attention on other tokens than before training; `least` and `most`: the same
        between what is in use and the other depths; `mean`: over all heads and depths; `in_use`: (depth, share) of
        the depths that are picked, the most frequent first.
    """
    row, picks = example["head"] - 1, example["picks"]
    distances = example["distance"][row]
    others = [each for each, share in zip(distances, picks, strict=True) if share < NAMED_SHARE] or distances
    every = [each for head in example["distance"] for each in head]
    return {
        "moved": example["distance_pretrained"][row],
        "least": min(others),
        "most": max(others),
        "mean": sum(every) / len(every),
        "in_use": [pick for pick in sorted(enumerate(picks), key=lambda pick: -pick[1]) if pick[1] >= NAMED_SHARE],
    }


@dataclass(frozen=True)
class Series:
    """A line: its name, the place of its look among the page's, and its points in order; y may be missing."""

    name: str
    look: int
    points: Sequence[tuple[float, float | None]]


@dataclass(frozen=True)
class Bar:
    """A mean: its name, the place of its look among the page's, its value, and the ends of its interval."""

    name: str
    look: int
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Cost(Bar):
    """A mean, and the seconds of training and test behind it."""

    seconds: float = 0.0


SHADES = 8


@dataclass(frozen=True)
class Grid:
    """Values with the names of their rows and columns.

    Attributes:
        title: what they are.
        row_name, column_name: what a row and a column is.
        rows, columns: the labels.
        values: by row and column.
        signed: whether they are differences, on both sides of zero.
        marked_rows, marked_columns: numbers of those with a frame around them.
    """

    title: str
    row_name: str
    column_name: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]
    signed: bool = False
    marked_rows: Sequence[int] = ()
    marked_columns: Sequence[int] = ()

    @cached_property
    def scale(self) -> float:
        """The largest value, whatever its sign; where all are zero, zero."""
        return max((abs(value) for row in self.values for value in row), default=0.0)

    @cached_property
    def digits(self) -> int:
        """Decimals that show three digits of the largest value."""
        return max(2, 2 - math.floor(math.log10(self.scale))) if self.scale else 2

    def shown(self, value: float) -> str:
        """A value of the grid, or an end of its scale."""
        return f"{value:{'+' if self.signed else ''}.{self.digits}f}"


RECALL = (1, 3, 5, 10, 15, 20, 100, 1000)
SIDES = {"query": "queries", "document": "documents"}

Result = Mapping[str, Any]


def bars(result: Result) -> list[Bar]:
    """The headline metric of each method, with its 95% interval."""
    ends = result.get("intervals", {})
    return [
        Bar(
            method.label,
            look_of(method),
            result["results"][method.key]["metrics"][METRIC],
            *(ends.get(method.short, {}).get(METRIC) or (None, None)),
        )
        for method in methods_of(result)
    ]


def quality_by_cost(results: Sequence[Result]) -> list[Cost]:
    """The headline metric and the seconds of each method that ran on every dataset.

    Of several datasets the mean of the metric and the sum of the seconds. The test queries of two datasets are
    independent, so the interval of the mean has the root of the sum of their squared half-widths, divided by their
    number.
    """
    found, count = [], len(results)
    for method in methods_of(*results):
        records = [result["results"].get(method.key, {}) for result in results]
        seconds = [record.get("runtime_seconds") or 0.0 for record in records]
        if all(seconds):
            means = [record["metrics"][METRIC] for record in records]
            mean = sum(means) / count
            ends = [result.get("intervals", {}).get(method.short, {}).get(METRIC) for result in results]
            low, high = None, None
            if all(ends):
                low = mean - math.hypot(*(each - end[0] for each, end in zip(means, ends, strict=True))) / count
                high = mean + math.hypot(*(each - end[1] for each, end in zip(means, ends, strict=True))) / count
            found.append(Cost(method.label, look_of(method), mean, low, high, sum(seconds)))
    return found


def recall(result: Result) -> list[Series]:
    """Recall of each method by the number of ranked passages."""

    def points(metrics: Mapping[str, float]) -> list[tuple[float, float]]:
        return [(float(k), metrics[f"recall_{k}"]) for k in RECALL]

    every = methods_of(result)
    return [Series(each.label, look_of(each), points(result["results"][each.key]["metrics"])) for each in every]


def by_epoch(result: Result, key: str) -> list[Series]:
    """A fact of every epoch, of each method that has a history."""
    return [
        Series(method.label, look_of(method), [(each["epoch"], each.get(key)) for each in history])
        for method, history in histories(result)
    ]


def kept_epoch(history: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The record of the epoch whose weights were kept."""
    return max(history, key=lambda each: (each[f"val_{METRIC}"], -each["epoch"]))


def routes(history: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a method has several depths to choose from."""
    return "val_routing" in history[0] and len(depth_shares(history[0], "query")) > 1


def depth_shares(record: Mapping[str, Any], side: str) -> list[float]:
    """The share of texts at each greedy depth in an epoch, the mean over MAW layers."""
    return np.asarray(record["val_routing"][side]["depth_histogram"]).mean(0).tolist()


def sides(history: Sequence[Mapping[str, Any]], key: str) -> list[Series]:
    """A fact of queries and of documents by epoch, the mean over MAW layers."""

    def mean(record: Mapping[str, Any], side: str) -> float | None:
        value = record["val_routing"][side].get(key)
        return None if value is None else float(np.mean(value))

    return [
        Series(name, look, [(each["epoch"], mean(each, side)) for each in history])
        for look, (side, name) in enumerate(SIDES.items())
    ]


def histories(result: Result) -> Iterator[tuple[Method, Sequence[Mapping[str, Any]]]]:
    """The methods that were trained, with what each epoch recorded."""
    for method in methods_of(result):
        history = result["results"][method.key].get("training_history")
        if history:
            yield method, history


COLOURS = (
    *("#0072b2", "#d55e00", "#555555", "#8a6d00", "#aa3377"),
    *("#3a3a98", "#994455", "#117733", "#007a5a", "#b0488f"),
)
