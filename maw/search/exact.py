"""Exact top-k by inner product, in blocks of passages, with trec_eval's order among equal scores.

    scores, rows = top_k(query_embeddings, passage_embeddings, 1000, corpus.tie_order())

The order is total: float32 score descending, then `tie_order` ascending. It also decides which of several equal scores
make the cut at k. A score and its tie order pack into one 64-bit key that sorts the same way (`maw.search.sort_keys`).

1. A block of passages is multiplied with tiles of up to 1,024 queries. Each core has tiles of its own, and on a CPU
   multiplies up to 4,096 passages at a time, whose scores stay in its cache.
2. Each query has a floor, its k-th best score so far, or hardly below it after the first product. Scores that reach
   the floor, equal ones included, go into the query's buffer as keys. All others are passed over.
3. When the buffer of any query of a tile would overflow, every buffer of the tile keeps its k largest keys, and the
   floors rise.

The matrix product takes most of the time. Memory above the arrays: one block of passages, the scores of one product
for each core, 24 bytes per query and result and 4 KB per query for buffers, and 8 bytes per passage for the way back
from tie orders to rows.

Letters: Q queries, N passages, C embedding size, K results per query, B passages of a block, R queries of a tile,
W keys that a query's buffer holds, H scores of a tile that reach the floor.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maw.search.checks import LARGEST, as_tensor, check_arguments, check_scores, largest, padded, rows_by_tie
from maw.search.sort_keys import NOTHING, best, pack, scores_of, ties_of

_QUERIES_PER_TILE = 1024
_PASSAGES_PER_PRODUCT = 4096  # on a CPU, so that scores stay in its cache
_FEWEST_QUERIES = 16  # smaller products may take another path in the library, which rounds otherwise
_QUERY_MULTIPLE, _PASSAGE_MULTIPLE, _BLOCK_MULTIPLE = 8, 64, 8
_ROOM = 512  # keys that a buffer holds beside 3k
_GROUPS, _GROUPS_PER_RESULT = 512, 4  # of the first product's scores; with more, fewer scores reach the first floor


def top_k(
    queries: Tensor | np.ndarray,
    passages: Tensor | np.ndarray,
    k: int,
    tie_order: Tensor | np.ndarray,
    *,
    block: int = 16_384,
) -> tuple[Tensor, Tensor]:
    """The k best passages of every query by exact inner product.

    Args:
        queries: query embeddings; the search runs on their device.
        passages: passage embeddings, on any device, or an array, which may be a memory map.
        k: how many to return.
        tie_order: for each passage its place among passages of equal score: 0 to N - 1, each once.
        block: how many passages are scored at once.

    Shapes:
        queries (Q, C), passages (N, C), tie_order (N,); both results (Q, min(k, N)).

    Returns:
        Scores, float32, best first, and the passages' rows, int64; both on the CPU.

    Raises:
        NotFiniteError: an embedding or a score that is not a finite number, with its row.
        ValueError: shapes that do not agree, k or block below one, a tie order that is not a permutation.
    """
    queries_QC = as_tensor(queries).float()
    check_arguments(queries_QC, passages, k, block)
    row_of_tie = rows_by_tie(tie_order, len(passages))
    k, size = min(k, len(passages)), block_size(len(passages), block)
    keys_QK = best(best_keys(queries_QC, passages, k, tie_order, size), k, ordered=True)
    return scores_of(keys_QK), row_of_tie[ties_of(keys_QK)]


def block_size(passages: int, block: int) -> int:
    """The number of passages in each block, at most about `block`; all blocks have nearly equally many.

    There are 1, 2, 4 or a multiple of 8 blocks, as far as the number of passages allows it, so that several processes
    have equally many.
    """
    blocks = max(1, -(-passages // block))
    multiple = min(_BLOCK_MULTIPLE, 1 << (blocks - 1).bit_length())
    blocks = -(-blocks // multiple) * multiple
    return _even_size(passages, max(1, -(-passages // blocks)), _PASSAGE_MULTIPLE)


def best_keys(
    queries_QC: Tensor, passages: Tensor | np.ndarray, k: int, tie_order: Tensor | np.ndarray, size: int
) -> Tensor:
    """The keys of each query's k best passages, in any order, (Q, k) on the CPU.

    Args:
        queries_QC: float32.
        k: no more than there are passages.
        tie_order: distinct numbers from 0 to 2**32 - 1, such as those of a part of a larger corpus.
        size: passages of a block, from `block_size`. With the whole corpus's, a part's scores have the same bits.
    """
    device = queries_QC.device
    largest_query = largest(queries_QC, "query", 0)
    if not k or not len(queries_QC):
        return torch.empty(len(queries_QC), k, dtype=torch.int64)
    # Threads do not share the caller's modes, and tensors of inference mode may not be changed outside of it.
    with torch.inference_mode(False), torch.no_grad(), full_precision(device), _workers(device) as (workers, run):
        tiles = _tiles(queries_QC, workers, min(len(passages), 3 * k + _ROOM), k)
        columns = _even_size(size, _PASSAGES_PER_PRODUCT, _PASSAGE_MULTIPLE) if device.type == "cpu" else size
        for start in range(0, len(passages), size):
            part_BC = as_tensor(passages[start : start + size]).to(device).float()  # less to copy, if it is float16
            ties_B = as_tensor(tie_order[start : start + size]).to(device, torch.int64)
            bound = queries_QC.shape[1] * largest_query * largest(part_BC, "passage", start)
            safe = bound < LARGEST / 2  # no sum of products can overflow
            # Products of one shape take one code path, which gives identical passages identical scores wherever they
            # stand. A shorter last product would take another, differ in the last bit, and hide a tie.
            passages_BC = padded(part_BC, -(-len(part_BC) // columns) * columns)
            list(run(partial(_search, passages_BC, ties_B, columns, start, safe), tiles))
        return torch.cat([best(tile.keys_RW, k) for tile in tiles]).cpu()


def _search(passages_BC: Tensor, ties_B: Tensor, columns: int, start: int, safe: bool, tile: Tile) -> None:
    """Scores a block of passages, which begins with number `start`, for a tile, `columns` passages at a time."""
    for part_BC, ties_P in zip(passages_BC.split(columns), ties_B.split(columns), strict=True):
        scores_RP = (tile.queries_RC @ part_BC.T)[: tile.count, : len(ties_P)]
        if not safe:
            check_scores(scores_RP, tile.first, start)
        tile.add(scores_RP, ties_P)
        start += columns


class Tile:
    """Some queries, each with a buffer of the keys of its best passages so far.

    Args:
        queries_RC: embeddings of the queries from number `first` on, `count` of them, and then zeros.
        width: number of keys that a buffer holds: more than k, or that of all passages.
    """

    def __init__(self, queries_RC: Tensor, first: int, count: int, width: int, k: int):
        self.queries_RC, self.first, self.count, self.width, self.k = queries_RC, first, count, width, k
        self.keys_RW = torch.full((count, width), NOTHING, device=queries_RC.device)
        self.filled_R = torch.zeros(count, dtype=torch.int64, device=queries_RC.device)
        self.floor_R = torch.full((count,), -torch.inf, device=queries_RC.device)

    def add(self, scores_RB: Tensor, ties_B: Tensor) -> None:
        """Puts the scores that can still be among the k best into the buffers."""
        rows, columns = scores_RB.shape
        if self.k < columns and self.floor_R.isneginf().all():
            self.floor_R = floor(scores_RB, self.k)
        hits_H = reaching(scores_RB, self.floor_R)
        row_R = torch.arange(rows, device=hits_H.device)
        start_R = torch.searchsorted(hits_H, row_R * columns)  # hits stand row by row
        count_R = torch.diff(start_R, append=start_R.new_tensor([len(hits_H)]))
        if (self.filled_R + count_R).amax() > self.width:
            self._make_room(scores_RB, ties_B)
            return
        row_H = row_R.repeat_interleave(count_R)
        column_H = hits_H - row_H * columns
        slot_H = (row_R * self.width + self.filled_R - start_R)[row_H]
        slot_H += torch.arange(len(hits_H), device=hits_H.device)
        self.keys_RW.view(-1)[slot_H] = pack(scores_RB.take(hits_H), ties_B[column_H])
        self.filled_R += count_R

    def _make_room(self, scores_RB: Tensor, ties_B: Tensor) -> None:
        """Keeps the k best keys of each buffer, and adds the scores again: all, or if that was done, half by half."""
        if self.filled_R.amax() > self.k:
            kept_RK = best(self.keys_RW, self.k)
            self.keys_RW.fill_(NOTHING)[:, : self.k] = kept_RK
            self.filled_R.fill_(self.k)
            self.floor_R = scores_of(kept_RK.amin(1))
            self.add(scores_RB, ties_B)
        else:
            middle = len(ties_B) // 2
            self.add(scores_RB[:, :middle], ties_B[:middle])
            self.add(scores_RB[:, middle:], ties_B[middle:])


def floor(scores_RB: Tensor, k: int) -> Tensor:
    """A score of each row that at least k of its scores reach, (R,): on a GPU the k-th best, else hardly below it.

    On a CPU it is the k-th largest of the maxima of small groups. It costs a fraction of the k-th best score, and few
    scores lie between the two.
    """
    if scores_RB.device.type != "cpu":
        return scores_RB.topk(k, dim=1).values[:, -1]
    scores = scores_RB.numpy()  # numpy is several times faster than torch here
    groups = min(scores.shape[1], max(_GROUPS, _GROUPS_PER_RESULT * k))
    size = scores.shape[1] // groups
    maxima = scores[:, : size * groups].reshape(len(scores), size, groups).max(1)
    # Row by row, since numpy copies what it partitions.
    return torch.tensor([np.partition(row, -k)[-k] for row in maxima])


def reaching(scores_RB: Tensor, floor_R: Tensor) -> Tensor:
    """The flat positions of the scores that are at least their row's floor, ascending, (H,)."""
    if scores_RB.device.type != "cpu":
        return (scores_RB >= floor_R[:, None]).flatten().nonzero()[:, 0]
    return torch.from_numpy(np.flatnonzero(scores_RB.numpy() >= floor_R[:, None].numpy()))  # faster than torch


def _tiles(queries_QC: Tensor, workers: int, width: int, k: int) -> list[Tile]:
    """Tiles of near-equal size that hold all queries, about equally many for each worker; the last is padded."""
    count = len(queries_QC)
    size = max(_even_size(count, min(_QUERIES_PER_TILE, -(-count // workers)), _QUERY_MULTIPLE), _FEWEST_QUERIES)
    parts = [(first, queries_QC[first : first + size]) for first in range(0, count, size)]
    return [Tile(padded(part_RC, size), first, len(part_RC), width, k) for first, part_RC in parts]


@contextlib.contextmanager
def _workers(device: torch.device) -> Iterator[tuple[int, Callable[..., Iterable[Any]]]]:
    """Yields the number of workers, and a `map` that runs them at the same time.

    On a CPU each core makes and searches its own products: if all shared one product, all but one would be idle while
    numpy searches it.
    """
    count = torch.get_num_threads() if device.type == "cpu" else 1
    if count == 1:
        yield 1, map
        return
    with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            yield count, pool.map
        finally:
            torch.set_num_threads(count)  # the pool's threads changed it for every later thread


def _even_size(count: int, limit: int, multiple: int) -> int:
    """The size of near-equal parts of at most about `limit`, a multiple of `multiple`."""
    parts = max(1, -(-count // limit))
    return max(1, -(-count // (parts * multiple))) * multiple


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Keeps float32 products in float32, whatever faster mode the caller has allowed for training."""
    backends = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
