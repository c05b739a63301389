"""A first look in bfloat16 at which passages can be among a query's best, for `maw.search`.

Processors with units for bfloat16 multiply in it several times as fast as in float32. What is known of the error
(`maw.rounding`) rules out nearly all passages; those that are left, on random unit vectors about a third more than
reach the mark, are scored again in float32, 16 queries at a time.

Scores have the same bits as without a first look. A matrix product adds up each of its numbers in an order that does
not depend on its shape, as long as that is not too small; where that begins depends on the processor and the library,
so it is tried out (`exact_widths`).

Legend: C embedding size, B passages of a block, R queries of a tile, H pairs that are scored again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maw.candidates import Candidates, kth, reaching
from maw.rounding import Rounded, RoundedBlock, largest_error, marks, rounded
from maw.vectors import LARGEST

GROUP = 16  # queries whose pairs are scored again together
_WIDTHS = range(128, 1025, 128)
_ROWS_AT_ONCE = 1024
_PATIENCE = 2  # first looks in a row that may have been in vain before a tile does without
_MOST_PAIRS = (
    1 / 32
)  # of a tile that are worth scoring again: one costs about so many times as much as in a whole tile


class FirstLook:
    """Looks at every tile in bfloat16 first, for one search on a CPU.

    Args:
        tiles: (which queries, their embeddings in float32) of every tile, padded to one size, at least `GROUP`.
        widths: from `exact_widths`, for tiles of that size and for the search's blocks; not empty.
        each: the workers' `map`.
    """

    def __init__(
        self,
        tiles: Iterable[tuple[slice, Tensor]],
        widths: tuple[int, ...],
        each: Callable[..., Iterable[Any]],
    ):
        self.widths, self.each = widths, each
        self.queries = {tile.start: rounded(part_RC) for tile, part_RC in tiles}
        self.longest = max(float(part.length.amax()) for part in self.queries.values())
        self.patience = dict.fromkeys(self.queries, _PATIENCE)
        self.block: RoundedBlock | None = None
        self.memory: dict[object, Tensor] = {}

    def take(self, passages_BC: Tensor) -> bool:
        """Takes on a block, or a sample, in place of the one before; False if its scores might overflow."""
        values_BC = self._memory("passages", *passages_BC.shape)
        parts = [slice(start, start + _ROWS_AT_ONCE) for start in range(0, len(passages_BC), _ROWS_AT_ONCE)]
        bounds = list(self.each(lambda part: _bounds(rounded(passages_BC[part], values_BC[part])), parts))
        length, distance = np.max(bounds, axis=0).tolist()  # of NaN and a number NaN
        self.block = RoundedBlock(values_BC, length, distance) if self.longest * length < LARGEST / 2 else None
        return self.block is not None

    def kth(self, worker: int, tile: slice, k: int) -> Tensor:
        """About the k-th best score of each of the tile's queries, float32."""
        scores_RB = self._scores(worker, tile)[: tile.stop - tile.start]
        bits_R = kth(scores_RB.view(torch.int16), k).int()
        if bool((bits_R > 0).all()):  # the bits of positive numbers sort like integers, and above all others
            return (bits_R << 16).view(torch.float32)
        return kth(scores_RB.float(), k)

    def add(
        self, worker: int, tile: slice, part_RC: Tensor, passages_BC: Tensor, ties_B: Tensor, found: Candidates
    ) -> bool:
        """Adds what a tile has for the candidates; False, and nothing added, where float32 does it in less time.

        That is where nothing is known of a query's k-th best yet, or too many passages come near it.
        """
        floor_R = found.floor_Q[tile]
        if self.block is None or not self.patience[tile.start] or floor_R.isneginf().any():
            return False
        self.patience[tile.start] -= 1
        error_R = largest_error(self.queries[tile.start], self.block)[: len(floor_R)]
        if not error_R.isfinite().all():
            return False
        scores_RB = self._scores(worker, tile)[: len(floor_R), : len(ties_B)]
        most = scores_RB.numel() * _MOST_PAIRS
        pairs_H = reaching_marks(scores_RB, marks(floor_R, error_R), most)
        if len(pairs_H) > most:
            return False
        scores_H = score_pairs(part_RC, passages_BC, pairs_H, len(ties_B), self.widths)
        if not found.add_some(tile, pairs_H, scores_H, ties_B):
            return False
        self.patience[tile.start] = _PATIENCE
        return True

    def _scores(self, worker: int, tile: slice) -> Tensor:
        assert self.block is not None
        queries_RC, passages_BC = self.queries[tile.start].values, self.block.values
        return torch.mm(queries_RC, passages_BC.T, out=self._memory(worker, len(queries_RC), len(passages_BC)))

    def _memory(self, owner: object, *shape: int) -> Tensor:
        """Memory of that shape that its owner had before, or new."""
        if owner not in self.memory or self.memory[owner].shape != shape:
            self.memory[owner] = torch.empty(shape, dtype=torch.bfloat16)
        return self.memory[owner]


def _bounds(part: Rounded) -> tuple[float, float]:
    return float(part.length.amax()), float(part.distance.amax())


def reaching_marks(scores_RB: Tensor, mark_R: Tensor, most: float = math.inf) -> Tensor:
    """Flat positions of the bfloat16 scores that reach their row's mark, from `marks`, as `reaching` gives them."""
    if bool((mark_R > 0).all()):  # the bits of positive numbers sort like integers, and above all others
        return reaching(scores_RB.view(torch.int16), (mark_R.view(torch.int32) >> 16).short(), most)
    return reaching(scores_RB.float(), mark_R, most)


def score_pairs(
    queries_RC: Tensor, passages_BC: Tensor, pairs_H: Tensor, columns: int, widths: tuple[int, ...]
) -> Tensor:
    """The float32 scores, (H,), of some pairs of a query and a passage.

    Args:
        queries_RC: at least `GROUP`, float32.
        passages_BC: float32.
        pairs_H: flat positions, ascending, in a tile of that many columns.
        columns: of that tile.
        widths: of the products to make, ascending, from `exact_widths`.
    """
    most, size = widths[-1], passages_BC.shape[1]
    row_H = pairs_H // columns
    column_H = pairs_H - row_H * columns
    scores_H = torch.empty(len(pairs_H), dtype=torch.float32)
    chosen, gathered = torch.zeros(most, dtype=torch.int64), torch.empty(most, size, dtype=torch.float32)
    products = torch.empty(GROUP * most, dtype=torch.float32)
    for first, start, end in _portions(pairs_H, len(queries_RC), columns, most):
        width = next(width for width in widths if width >= end - start)
        chosen[: end - start] = column_H[start:end]  # what stands behind them is scored too, and passed over
        torch.index_select(passages_BC, 0, chosen[:width], out=gathered[:width])
        product = products[: GROUP * width].view(GROUP, width)
        torch.mm(queries_RC[first : first + GROUP], gathered[:width].T, out=product)
        places_H = (row_H[start:end] - first) * width + torch.arange(end - start)
        torch.index_select(products, 0, places_H, out=scores_H[start:end])
    return scores_H


def _portions(pairs_H: Tensor, rows: int, columns: int, most: int) -> Iterator[tuple[int, int, int]]:
    """(first query, first pair, end) of at most `most` pairs at a time, whose queries are among `GROUP` in a row."""
    firsts = torch.arange(0, rows, GROUP)
    ends = torch.searchsorted(pairs_H, (firsts + GROUP) * columns).tolist()
    for first, start, end in zip(firsts.tolist(), [0, *ends[:-1]], ends, strict=True):
        for portion in range(start, end, most):
            yield min(first, rows - GROUP), portion, min(portion + most, end)


@cache
def exact_widths(rows: int, columns: int, size: int) -> tuple[int, ...]:
    """The widths at which products of `GROUP` queries have the same bits as one of (rows, size) and (columns, size).

    Tried once for each shape, with random numbers, on the calling thread; empty if there are none.
    """
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(rows, size, generator=generator, dtype=torch.float32)
    passages = torch.randn(min(columns, _ROWS_AT_ONCE), size, generator=generator, dtype=torch.float32)
    passages = passages.repeat(-(-columns // len(passages)), 1)[:columns]
    whole = queries @ passages.T
    groups = [slice(first, first + GROUP) for first in (0, (rows - GROUP) // 2, rows - GROUP)]

    def same(width: int) -> bool:
        picks = torch.randint(columns, (width,), generator=generator)
        return all(torch.equal(queries[each] @ passages[picks].T, whole[each][:, picks]) for each in groups)

    return tuple(width for width in _WIDTHS if same(width))
