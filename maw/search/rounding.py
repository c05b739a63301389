"""How far inner products in bfloat16 can be from those in float32, for `maw.search.look`.

With q, p in float32 and q~, p~ rounded to bfloat16, and lengths that are Euclidean,

    |q.p - q~.p~| <= |q - q~| |p| + |q~| |p - p~|
    |sum as computed - exact sum| <= g |q~| |p~| in bfloat16, g |q| |p| in float32; g = n u / (1 - n u), n = C + 4

Products of two bfloat16 numbers are exact in float32, where their sum is made. The second line holds for sums in any
order, fused or not (N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, section 3.1), with u =
2^-23, twice float32's own, so also for units that do not round to nearest. Numbers too small for float32, which units
may take for zero, have a term of their own. The result is then rounded to bfloat16, which keeps order: what is at
least t is, rounded, at least t rounded down.

Legend: N rows, C embedding size, R queries of a tile.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

UNIT = 2.0**-23
SMALLEST = 2.0**-126  # of the normal numbers, in both formats
MOST_TERMS = 2**16


class Rounded(NamedTuple):
    """Embeddings in bfloat16 (N, C), with bounds for each row (N,), float64; infinite or NaN where there is none."""

    values: Tensor
    length: Tensor
    """No less than the row's before it was rounded."""
    distance: Tensor
    """No less than that between it and what it was rounded to."""


class RoundedBlock(NamedTuple):
    """Passages in bfloat16 (N, C), with the largest length and distance of any, as in `Rounded`."""

    values: Tensor
    length: float
    distance: float


def rounded(values: Tensor, out: Tensor | None = None) -> Rounded:
    """Embeddings (N, C), float32, rounded, with the bounds of each row.

    Args:
        out: where to put the rounded ones.
    """
    out = torch.empty_like(values, dtype=torch.bfloat16) if out is None else out
    out.copy_(values)
    return Rounded(out, _length(values), _length(values - out.float()))  # the difference is exact


def _length(values: Tensor) -> Tensor:
    """No less than the length of each row; each square may have been lost for being too small."""
    terms = values.shape[1]
    measured = torch.linalg.vector_norm(values, dim=1).double()
    return measured * (1 + (terms + 4) * UNIT) + math.sqrt(terms * SMALLEST)


def largest_error(queries: Rounded, passages: RoundedBlock) -> Tensor:
    """How far a product in bfloat16 can be from that in float32, both as computed, before its result is rounded.

    Returns:
        For each query, (R,), float64; infinite or NaN where there is no bound.
    """
    terms = queries.values.shape[1]
    steps = (terms + 4) * UNIT
    growth = steps / (1 - steps) if terms <= MOST_TERMS else math.inf
    # No less than the lengths of what they were rounded to, and than their own.
    long_R, long = queries.length + queries.distance, passages.length + passages.distance
    rounding_R = queries.distance * passages.length + long_R * passages.distance
    sums_R = 2 * growth * long_R * long
    too_small_R = 4 * terms * SMALLEST * (1 + long_R + long)
    return (rounding_R + sums_R + too_small_R) * (1 + 2.0**-20)  # this computation's own rounding


def marks(floor_R: Tensor, error_R: Tensor) -> Tensor:
    """What a product in bfloat16 reaches wherever that in float32 reaches the floor.

    Args:
        floor_R: float32.
        error_R: from `largest_error`.

    Returns:
        (R,), float32, but numbers of bfloat16: rounded down.
    """
    lowest_R = (floor_R.double() - error_R).float()
    lowest_R = lowest_R.nextafter(lowest_R.new_tensor(-torch.inf))
    bits_R = lowest_R.view(torch.int32)
    away_R = bits_R + (bits_R < 0).int() * 0xFFFF  # cutting bits off would make a negative number larger
    mark_R = (away_R >> 16 << 16).view(torch.float32)
    return torch.where((mark_R > 0) & (mark_R < SMALLEST), 0.0, mark_R)
