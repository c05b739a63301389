"""The attention of one text at every depth, as `maw.evaluation.routing.attention_example` has kept it.

Depths differ little beside the attention itself, so that what is shown are differences, each with its scale: how far
every depth is from what is in use, and where what is in use has moved since before training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maw.config.methods import METHODS
from maw.report.html.heatmap import grid_table, heat_map
from maw.report.html.markup import Markup, details, element, joined, paragraph
from maw.report.series import _SHOWN, grids


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
