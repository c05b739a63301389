"""Batches by length: how many texts go through the encoder at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

CPU_TOKENS = 2048  # of a batch on a CPU, samples included; measured best of 512 to 8192 on two cores
LENGTH_STEP = 16
"""Lengths of batches are multiples of it. A processor works on 16 numbers at once, and its fused attention takes up to
twice as long where a rest is left; its libraries also prepare a kernel for every new shape and keep it, so that fewer
shapes take less time and memory than a little padding costs."""
WINDOW = 4096  # texts tokenised at once: enough for batches of equal lengths, little enough to hold


def encoding_tokens(precision: torch.dtype) -> int:
    """Most tokens of a batch on a CPU that is only encoded: half as wide numbers leave room for twice as many."""
    return CPU_TOKENS * 4 // precision.itemsize


def padded_length(tokens: int) -> int:
    """The length of a batch whose longest text has so many tokens."""
    return -(-tokens // LENGTH_STEP) * LENGTH_STEP


def windows(order: np.ndarray) -> list[np.ndarray]:
    """Rows in groups of at most `WINDOW`."""
    return np.split(order, range(WINDOW, len(order), WINDOW))


def cut(lengths: np.ndarray, size: int, budget: int | None) -> Iterator[np.ndarray]:
    """Positions of texts in batches of like length, the longest batch first.

    Args:
        lengths: tokens of each text, (N,).
        size: most texts of a batch.
        budget: most tokens of a batch, padding to its longest text included; None for no limit.
    """
    order = np.argsort(lengths, kind="stable")
    sizes = chunk_sizes(lengths[order], np.inf if budget is None else budget, size)
    yield from reversed(np.split(order, np.cumsum(sizes)[:-1]))


def chunk_sizes(costs: np.ndarray, budget: float, most: float = np.inf) -> list[int]:
    """How many texts each chunk takes, where `costs`, ascending, is what each of them costs in tokens.

    A chunk costs the number of its texts times its largest cost, since shorter texts are padded. With a budget the
    numbers are two's powers and three times them: few, for the reason that `LENGTH_STEP` has.
    """
    sizes: list[int] = []
    start, count = 0, len(costs)
    while start < count:
        size = 1
        while start + size < count and size < most and (size + 1) * costs[start + size] <= budget:
            size += 1
        sizes.append(size if budget == np.inf else _round_down(size))
        start += sizes[-1]
    return sizes


def _round_down(size: int) -> int:
    """The largest of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... that is not above `size`."""
    power = 1 << (size.bit_length() - 1)
    return power * 3 // 2 if size >= power * 3 // 2 > power else power
