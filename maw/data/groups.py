"""Which queries must stay together: those that share a label, directly or by way of others.

groups = connected({"q1": ["module a", "passage 7"], "q2": ["passage 7"], "q3": ["module b"]})
groups["q1"] == groups["q2"] == "module a"
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def connected(labels: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """The group of every item: items with a label in common are in one group, and so on through chains of them.

    Args:
        labels: item -> its labels, at least one.

    Returns:
        Item -> the name of its group, the smallest label in it, whatever order items and labels come in.
    """
    if not labels:
        return {}
    pairs = [(number, label) for number, each in enumerate(labels.values()) for label in each]
    names = sorted({label for _, label in pairs})
    place = {label: number + len(labels) for number, label in enumerate(names)}
    ends = np.array([(number, place[label]) for number, label in pairs], np.int64).reshape(-1, 2)
    size = len(labels) + len(names)
    graph = coo_array((np.ones(len(ends), np.int8), (ends[:, 0], ends[:, 1])), shape=(size, size))
    _, part = connected_components(graph, directed=False)
    name_of: dict[int, str] = {}
    for name, number in zip(names, part[len(labels) :].tolist(), strict=True):
        name_of.setdefault(number, name)
    return {item: name_of[number] for item, number in zip(labels, part[: len(labels)].tolist(), strict=True)}
