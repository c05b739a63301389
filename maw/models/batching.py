"""Batches of texts of similar length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import torch

Number = TypeVar("Number", int, np.ndarray)

CPU_TOKENS = 2048  # most tokens of a batch on a CPU, samples included; the fastest of 512 to 8192 on two cores
LENGTH_STEP = 16
"""The length of a batch is a multiple of it. A processor works on 16 numbers at once: fused attention takes up to
twice as long at other lengths. Its libraries also compile and keep a kernel for each shape, so few shapes save more
time and memory than padding costs."""
WINDOW = 4096  # texts tokenised at once: enough to form batches of equal lengths, few enough for memory


def encoding_tokens(precision: torch.dtype) -> int:
    """Most tokens of a batch on a CPU without gradients: 2048 in float32, 4096 in a 16-bit format."""
    return CPU_TOKENS * 4 // precision.itemsize


def padded_length(tokens: Number) -> Number:
    """`tokens`, a number or an array, rounded up to a multiple of `LENGTH_STEP`."""
    return -(-tokens // LENGTH_STEP) * LENGTH_STEP


def windows(order: np.ndarray) -> list[np.ndarray]:
    """Splits rows into groups of at most `WINDOW`."""
    return np.split(order, range(WINDOW, len(order), WINDOW))


def cut(lengths: np.ndarray, size: int, budget: int | None) -> Iterator[np.ndarray]:
    """Yields the positions of texts, grouped into batches of similar length, the longest batch first.

    Args:
        lengths: tokens of each text, (N,).
        size: most texts of a batch.
        budget: most tokens of a batch, padding included; None for no limit.
    """
    order = np.argsort(lengths, kind="stable")
    sizes = chunk_sizes(lengths[order], np.inf if budget is None else budget, size)
    yield from reversed(np.split(order, np.cumsum(sizes)[:-1]))


def chunk_sizes(costs: np.ndarray, budget: float, most: float = np.inf) -> list[int]:
    """Number of texts in each chunk, where `costs` are the tokens of each text, ascending.

    A chunk of n texts costs n times its largest cost, because shorter texts are padded: at most `budget`, with at most
    `most` texts. With a budget n is 2^i or 3 * 2^i, so that few shapes occur (see `LENGTH_STEP`).
    """
    sizes: list[int] = []
    start, count = 0, len(costs)
    while start < count:
        size = 1
        while start + size < count and size < most and (size + 1) * costs[start + size] <= budget:
            size += 1
        if budget != np.inf:  # round down to 1, 2, 3, 4, 6, 8, 12, 16, 24, ...
            power = 1 << (size.bit_length() - 1)
            size = power * 3 // 2 if size >= power * 3 // 2 > power else power
        sizes.append(size)
        start += size
    return sizes
