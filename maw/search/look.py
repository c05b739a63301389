"""A first look in bfloat16 at which passages can be among a query's best, for `maw.search.exact`.

Processors with units for bfloat16 multiply in it several times as fast as in float32. What is known of the error
(`maw.search.rounding`) rules out nearly all passages; those that are left are scored again in float32, a few queries
at a time.

Scores have the same bits as without a first look. A matrix product adds up each of its numbers in an order that does
not depend on its shape, as long as that is not too small; where that begins depends on the processor and the library,
so it is tried out (`exact_shapes`).

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

from maw.search.candidates import Candidates, highest, reaching
from maw.search.checks import LARGEST
from maw.search.rounding import Rounded, RoundedBlock, largest_error, marks, rounded

_GROUPS = (4, 8, 16)  # of queries whose pairs are scored again together
_WIDTHS = range(128, 1025, 128)
_FULL = 512  # pairs of a group, from which on a larger one would multiply more in vain than it saves
_ROWS_AT_ONCE = 1024
_PAUSE = 3  # blocks that are searched without a look after the first in vain; twice as many after the next, and so on
_MOST_PAIRS = 1 / 32  # of a tile that are worth scoring again: above, a product of all takes less time

Shapes = dict[int, tuple[int, ...]]
"""Groups of queries, ascending, and the widths of products, ascending, that a group can make."""


class FirstLook:
    """Looks at every tile in bfloat16 first, for one search on a CPU.

    Args:
        tiles: (which queries, their embeddings in float32) of every tile, padded to one size, at least 16.
        shapes: from `exact_shapes`, for tiles of that size and for the search's blocks; not empty.
        each: the workers' `map`.
    """

    def __init__(
        self,
        tiles: Iterable[tuple[slice, Tensor]],
        shapes: Shapes,
        each: Callable[..., Iterable[Any]],
    ):
        self.shapes, self.each = shapes, each
        self.queries = {tile.start: rounded(part_RC) for tile, part_RC in tiles}
        self.longest = max(float(part.length.amax()) for part in self.queries.values())
        self.pause, self.wait = _PAUSE, 0
        self.vain: list[slice] = []  # tiles that left too many passages of the block for a look to be worth it
        self.block: RoundedBlock | None = None
        self.memory: dict[object, Tensor] = {}

    def take(self, passages_BC: Tensor) -> bool:
        """Takes on a block, or a sample, in place of the one before; False if it is to be searched without a look.

        That is where scores might overflow, or looks have lately been in vain for most tiles.
        """
        self.block = None
        if self._pauses():
            return False
        values_BC = self._memory("passages", *passages_BC.shape)
        parts = [slice(start, start + _ROWS_AT_ONCE) for start in range(0, len(passages_BC), _ROWS_AT_ONCE)]
        bounds = list(self.each(lambda part: _bounds(rounded(passages_BC[part], values_BC[part])), parts))
        length, distance = np.max(bounds, axis=0).tolist()  # of NaN and a number NaN
        if self.longest * length < LARGEST / 2:
            self.block = RoundedBlock(values_BC, length, distance)
        return self.block is not None

    def _pauses(self) -> bool:
        if 2 * len(self.vain) > len(self.queries):
            self.wait, self.pause = self.pause, 2 * self.pause
        self.vain = []
        self.wait -= 1
        return self.wait >= 0

    def highest(self, worker: int, tile: slice, k: int) -> Tensor:
        """A little less than the k best scores of each of the tile's queries, float32, the k-th first; nearly always.

        Half a step of bfloat16 less, which may have been added, and an eighth of the largest error, since errors of
        many products mostly cancel out.
        """
        scores_RB = self._scores(worker, tile)[: tile.stop - tile.start]
        error_R = largest_error(self.queries[tile.start], self._taken)[: len(scores_RB)].float()
        bits_RK = highest(scores_RB.view(torch.int16), k).int()
        positive = bool((bits_RK[:, 0] > 0).all())  # whose bits sort like integers, and above all others
        best_RK = (bits_RK << 16).view(torch.float32) if positive else highest(scores_RB.float(), k)
        return best_RK - best_RK.abs() * 2.0**-8 - error_R[:, None] / 8

    def add(
        self, worker: int, tile: slice, part_RC: Tensor, passages_BC: Tensor, ties_B: Tensor, found: Candidates
    ) -> bool:
        """Adds what a tile has for the candidates; False, and nothing added, where float32 does it in less time.

        That is where nothing is known of a query's k-th best yet, or too many passages come near it.
        """
        floor_R = found.floor_Q[tile]
        if self.block is None or floor_R.isneginf().any():
            return False
        error_R = largest_error(self.queries[tile.start], self.block)[: len(floor_R)]
        if not error_R.isfinite().all():
            return False
        scores_RB = self._scores(worker, tile)[: len(floor_R), : len(ties_B)]
        most = scores_RB.numel() * _MOST_PAIRS
        pairs_H = reaching_marks(scores_RB, marks(floor_R, error_R), most)
        if len(pairs_H) > most:
            self.vain.append(tile)
            return False
        scores_H = score_pairs(part_RC, passages_BC, pairs_H, len(ties_B), self.shapes)
        return found.add_some(tile, pairs_H, scores_H, ties_B)

    @property
    def _taken(self) -> RoundedBlock:
        assert self.block is not None
        return self.block

    def _scores(self, worker: int, tile: slice) -> Tensor:
        queries_RC, passages_BC = self.queries[tile.start].values, self._taken.values
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


def score_pairs(queries_RC: Tensor, passages_BC: Tensor, pairs_H: Tensor, columns: int, shapes: Shapes) -> Tensor:
    """The float32 scores, (H,), of some pairs of a query and a passage.

    Args:
        queries_RC: at least as many as the largest group, float32.
        passages_BC: float32.
        pairs_H: flat positions, ascending, in a tile of that many columns.
        columns: of that tile.
        shapes: of the products to make, from `exact_shapes`.
    """
    rows, size = queries_RC.shape
    group = next((each for each in shapes if each * len(pairs_H) >= _FULL * rows), max(shapes))
    widths = shapes[group]
    row_H = pairs_H // columns
    column_H = pairs_H - row_H * columns
    scores_H = torch.empty(len(pairs_H), dtype=torch.float32)
    chosen = torch.zeros(widths[-1], dtype=torch.int64)
    gathered = torch.empty(widths[-1], size, dtype=torch.float32)
    products = torch.empty(group * widths[-1], dtype=torch.float32)
    for first, start, end in _portions(pairs_H, rows, columns, group, widths[-1]):
        width = next(width for width in widths if width >= end - start)
        chosen[: end - start] = column_H[start:end]  # what stands behind them is scored too, and passed over
        torch.index_select(passages_BC, 0, chosen[:width], out=gathered[:width])
        product = products[: group * width].view(group, width)
        torch.mm(queries_RC[first : first + group], gathered[:width].T, out=product)
        places_H = (row_H[start:end] - first) * width + torch.arange(end - start)
        torch.index_select(products, 0, places_H, out=scores_H[start:end])
    return scores_H


def _portions(pairs_H: Tensor, rows: int, columns: int, group: int, most: int) -> Iterator[tuple[int, int, int]]:
    """(first query, first pair, end) of at most `most` pairs at a time, whose queries are a group in a row."""
    firsts = torch.arange(0, rows, group)
    ends = torch.searchsorted(pairs_H, (firsts + group) * columns).tolist()
    for first, start, end in zip(firsts.tolist(), [0, *ends[:-1]], ends, strict=True):
        for portion in range(start, end, most):
            yield min(first, rows - group), portion, min(portion + most, end)


@cache
def exact_shapes(rows: int, columns: int, size: int) -> Shapes:
    """Shapes in which products of few queries have the same bits as one of (rows, size) and (columns, size).

    Tried once for each shape of that one, with random numbers, on the calling thread; empty if there are none.
    """
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(rows, size, generator=generator, dtype=torch.float32)
    passages = torch.randn(min(columns, _ROWS_AT_ONCE), size, generator=generator, dtype=torch.float32)
    passages = passages.repeat(-(-columns // len(passages)), 1)[:columns]
    whole = queries @ passages.T

    def same(group: int, width: int) -> bool:
        picks = torch.randint(columns, (width,), generator=generator)
        parts = [slice(first, first + group) for first in (0, (rows - group) // 2, rows - group)]
        return all(torch.equal(queries[part] @ passages[picks].T, whole[part][:, picks]) for part in parts)

    shapes = {group: tuple(width for width in _WIDTHS if same(group, width)) for group in _GROUPS if group <= rows}
    return {group: widths for group, widths in shapes.items() if widths}
