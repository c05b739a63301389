"""The attention of one text at every depth, as `maw.attention_example` has kept it.

Depths differ little beside the attention itself, so that what is shown are differences, each with its scale: how far
every depth is from what is in use, and where what is in use has moved since before training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maw.methods import METHODS
from maw.report.page.heatmap import Grid, grid_table, heat_map
from maw.report.page.markup import Markup, details, element, joined, paragraph

_SHOWN = 0.005  # a smaller share of picks is not named


def attention(found: Mapping[str, Mapping[str, Any]]) -> Markup:
    """Heat maps of every method with depths.

    Args:
        found: the content of attention.json; nothing is shown where it is empty.
    """
    if not found:
        return Markup("")
    opening = paragraph(
        "How one text attends to itself: what depths do to it, in the head where they differ most. It is one example, "
        "the first validation query of a fitting length, and says nothing of how good a depth is.",
        class_="soft",
    )
    return opening + joined(_method(method.label, found[method.name]) for method in METHODS if method.name in found)


def grids(example: Mapping[str, Any]) -> list[Grid]:
    """What is shown of one method: by head and depth, by depth and token, and three maps of tokens by tokens."""
    tokens, depths = example["tokens"], [str(depth) for depth in range(example["depths"])]
    used = [depth for depth, share in enumerate(example["picks"]) if share >= _SHOWN]
    used = used if len(used) < len(depths) else []  # a mixture of all: none stands out
    received = _mean(example["used"])
    by_token = {"row_name": "token", "column_name": "attends to", "rows": tokens, "columns": tokens}
    head, farthest = example["head"], example["farthest"]
    return [
        Grid(
            "Share of attention that lies elsewhere at a depth than in use, by head",
            "head",
            "depth",
            [str(number + 1) for number in range(example["heads"])],
            depths,
            example["distance"],
            marked_columns=used,
        ),
        Grid(
            f"Attention that tokens receive at each depth, minus in use, head {head}",
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
            f"Depth {farthest}, the farthest, minus in use, head {head}",
            **by_token,
            values=_minus(example["at_farthest"], example["used"]),
            signed=True,
        ),
    ]


def _method(label: str, example: Mapping[str, Any]) -> Markup:
    shown = grids(example)
    return joined(
        [
            element("h4", label),
            paragraph(
                element("span", example["text"], class_="query"),
                f" (query {example['query_id']}{', cut to the tokens shown' if example['cut'] else ''})",
            ),
            paragraph(_words(example)),
            element("div", *map(heat_map, shown), class_="charts"),
            details("The heat maps as tables", *map(grid_table, shown)),
        ]
    )


def _words(example: Mapping[str, Any]) -> str:
    """What the maps show, in numbers."""
    row = example["head"] - 1
    distances = example["distance"][row]
    others = [each for each, share in zip(distances, example["picks"], strict=True) if share < _SHOWN] or distances
    every = [each for head in example["distance"] for each in head]
    return (
        f"Layer {example['layer']}, head {example['head']} of {example['heads']}. In use: {_in_use(example)}. "
        f"Of this head's attention {example['distance_pretrained'][row]:.2%} lies on other tokens than before "
        f"training; between what is in use and the other depths it is {min(others):.2%} to {max(others):.2%}. "
        f"The mean over all heads and depths is {sum(every) / len(every):.2%}."
    )


def _in_use(example: Mapping[str, Any]) -> str:
    shares = sorted(enumerate(example["picks"]), key=lambda pair: -pair[1])
    named = [(depth, share) for depth, share in shares if share >= _SHOWN]
    if example["router"] == "soft":
        most = ", ".join(f"{depth} ({share:.0%})" for depth, share in named[:3])
        return f"a mixture of all depths, with most of {most}"
    if len(named) == 1:
        return f"depth {named[0][0]}"
    return "by token, depths " + ", ".join(f"{depth} ({share:.0%})" for depth, share in named)


def _mean(rows: list[list[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def _minus(some: list[list[float]], others: list[list[float]]) -> list[list[float]]:
    return [[a - b for a, b in zip(*pair, strict=True)] for pair in zip(some, others, strict=True)]
