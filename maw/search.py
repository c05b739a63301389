"""Exact top-k by inner product, in blocks, with trec_eval's order among equal scores.

    scores, rows = top_k(query_embeddings, passage_embeddings, 1000, corpus.tie_order())

`maw.evaluation` ranks every test and validation corpus with it, unless the configuration asks for FAISS
(`maw.approximate`).

The order is total: float32 score descending, then `tie_order` ascending, and it also decides which of several
equally scored passages make the cut at k. A score and a tie order pack into one 64-bit key that sorts the same way
(`maw.keys`).

Nearly all the time goes into the matrix product. Of a tile of scores only those that reach the query's k-th best so
far are looked at; they wait as keys in a buffer, and when it is full the k best stay and the mark rises. Reaching
is comparing floats, so scores that tie with the k-th wait too, and the keys decide. The first mark comes from a sample
of the passages, which saves most of the waiting; a query that it sets too high is searched again without.

Memory above the arrays: one block of passages, one tile of scores, 24 bytes per query and result, and 8 per passage
for the way back from tie orders to rows.

Legend: Q queries, N passages, C embedding size, K results per query, B passages of a block, R queries of a tile,
W keys that a query's buffer holds.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from torch import Tensor

from maw.errors import NotFiniteError
from maw.keys import NOTHING, best, pack, scores_of, ties_of

_QUERIES_PER_TILE = 1024
_ROOM = 256  # the least room for keys beside the k best
_ROWS_AT_ONCE = 64
_FEWEST_QUERIES = 16  # smaller products may take another path in the library, which rounds otherwise
_QUERY_MULTIPLE, _PASSAGE_MULTIPLE = 8, 64
LARGEST = torch.finfo(torch.float32).max


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
    wanted = min(k, len(passages))
    keys_QK = _best_keys(queries_QC, passages, wanted, tie_order, block, _rank_in_sample(wanted, len(passages), block))
    short_Q = (keys_QK == NOTHING).any(1)
    if short_Q.any():  # the sample promised them more than there is
        keys_QK[short_Q] = _best_keys(queries_QC[short_Q.to(queries_QC.device)], passages, wanted, tie_order, block, 0)
    return scores_of(keys_QK), row_of_tie[ties_of(keys_QK)]


def _best_keys(
    queries_QC: Tensor,
    passages: Tensor | np.ndarray,
    k: int,
    tie_order: Tensor | np.ndarray,
    block: int,
    rank_in_sample: int,
) -> Tensor:
    """The k best keys of every query, best first, on the CPU.

    Args:
        rank_in_sample: start from the score at this place in a sample of the passages: what does not reach it is
            passed over, and `NOTHING` stands in the place of what is missing then; 0 to start from nothing.
    """
    device = queries_QC.device
    largest_query = largest(queries_QC, "query", 0)
    found = _Best(queries_QC, k, len(passages))
    with torch.no_grad(), full_precision(device), _workers(device) as (workers, each):
        groups = _groups_of_tiles(queries_QC, workers)
        scores: list[Tensor | None] = [None] * workers  # all tiles have one shape, and each worker one memory for it

        def over_tiles(function: Callable[..., None], *arguments: object) -> None:
            for group in groups:
                list(each(partial(function, scores, *arguments), range(workers), *zip(*group, strict=True)))

        if rank_in_sample:
            over_tiles(_start_from, _sample(passages, block, device), found, rank_in_sample)
        for start, passages_BC, ties_B in _blocks(passages, tie_order, block, device):
            bound = queries_QC.shape[1] * largest_query * largest(passages_BC[: len(ties_B)], "passage", start)
            over_tiles(_rank, passages_BC, found, ties_B, start, bound)
    return best(found.keys_QW, found.k, ordered=True).cpu()


def _rank_in_sample(k: int, passages: int, block: int) -> int:
    """The place in an even sample of one block that few queries' k-th best falls short of; 0 if it would not pay.

    By chance a sample holds this many of the k best, four standard deviations above the mean, about once in fifty
    thousand queries; it then costs that query a second search. Passages in an order of their own may do it more often.
    """
    size = _even_size(passages, block, _PASSAGE_MULTIPLE)
    expected = size * k / max(passages, 1)
    rank = int(expected + 4 * math.sqrt(expected)) + 4
    return rank if 2 * rank <= k and rank <= size and 4 * size <= passages else 0


def _sample(passages: Tensor | np.ndarray, block: int, device: torch.device) -> Tensor:
    """As many passages as a block has, spread evenly."""
    size = _even_size(len(passages), block, _PASSAGE_MULTIPLE)
    rows = np.linspace(0, len(passages) - 1, size).astype(np.int64)
    picked = passages[torch.from_numpy(rows).to(passages.device)] if isinstance(passages, Tensor) else passages[rows]
    return as_tensor(picked).to(device, torch.float32)


def _start_from(
    scores: list[Tensor | None],
    sample_BC: Tensor,
    found: _Best,
    rank: int,
    worker: int,
    tile: slice,
    part_RC: Tensor,
) -> None:
    """Lets the queries of a tile start from their score at that place in the sample."""
    scores[worker] = torch.mm(part_RC, sample_BC.T, out=scores[worker])
    found.floor_Q[tile] = _kth(scores[worker][: tile.stop - tile.start], rank)


def _rank(
    scores: list[Tensor | None],
    passages_BC: Tensor,
    found: _Best,
    ties_B: Tensor,
    start: int,
    bound: float,
    worker: int,
    tile: slice,
    part_RC: Tensor,
) -> None:
    """Scores one tile, of the queries `tile` and the passages from `start`, and keeps what can be among the best."""
    scores[worker] = torch.mm(part_RC, passages_BC.T, out=scores[worker])
    scores_RB = scores[worker][: tile.stop - tile.start, : len(ties_B)]
    if not bound < LARGEST / 2:  # otherwise no sum of products can overflow
        _check_scores(scores_RB, tile.start, start)
    found.add(tile, scores_RB, ties_B)


class _Best:
    """Every query's best keys so far, with room for more.

    Args:
        queries_QC: the queries, for their number and device.
        k: how many to find; all passages, if there are fewer.
        passages: how many there are.
    """

    def __init__(self, queries_QC: Tensor, k: int, passages: int):
        count, device = len(queries_QC), queries_QC.device
        self.k = min(k, passages)
        self.room = max(self.k, _ROOM)
        self.width = min(passages, self.k + 2 * self.room)
        self.keys_QW = torch.full((count, self.width), NOTHING, device=device)
        self.filled_Q = torch.zeros(count, dtype=torch.int64, device=device)
        self.floor_Q = torch.full((count,), -torch.inf, device=device)

    def add(self, tile: slice, scores_RB: Tensor, ties_B: Tensor) -> None:
        """Takes from a tile of scores whatever can still be among the k best."""
        if self.k < len(ties_B) and self.floor_Q[tile].isneginf().all():
            self.floor_Q[tile] = _kth(scores_RB, self.k)
        if self._take(tile, scores_RB, ties_B):
            return
        self._cut(tile)
        if not self._take(tile, scores_RB, ties_B):  # too many still: halves, down to what fits even if all is kept
            middle = len(ties_B) // 2
            self.add(tile, scores_RB[:, :middle], ties_B[:middle])
            self.add(tile, scores_RB[:, middle:], ties_B[middle:])

    def _take(self, tile: slice, scores_RB: Tensor, ties_B: Tensor) -> bool:
        """Puts the scores that reach the floor into the buffer, as keys; False if a row has no room for its own."""
        keys_RW, filled_R = self.keys_QW[tile], self.filled_Q[tile]
        hits = _reaching(scores_RB, self.floor_Q[tile])
        if len(hits) > keys_RW.numel():
            return False
        row_R = torch.arange(len(filled_R), device=hits.device)
        first_R = torch.searchsorted(hits, row_R * len(ties_B))  # hits come row by row
        count_R = torch.diff(first_R, append=first_R.new_tensor([len(hits)]))
        fullest = int((filled_R + count_R).amax())
        if fullest > self.width:
            return False
        slot_R = row_R * self.width + filled_R - first_R
        slots = torch.arange(len(hits), device=hits.device) + slot_R.repeat_interleave(count_R)
        columns = hits - (row_R * len(ties_B)).repeat_interleave(count_R)
        keys_RW.view(-1)[slots] = pack(scores_RB.take(hits), ties_B[columns])
        filled_R += count_R
        if fullest > self.k + self.room:  # while the next tile's are still likely to fit
            self._cut(tile)
        return True

    def _cut(self, tile: slice) -> None:
        """Keeps the k best keys; the least of them is the new floor, or nothing where there are fewer than k."""
        keys_RW = self.keys_QW[tile]
        kept_RK = best(keys_RW, self.k)
        keys_RW[:, : self.k] = kept_RK
        keys_RW[:, self.k :] = NOTHING
        self.filled_Q[tile] = self.k
        self.floor_Q[tile] = torch.maximum(self.floor_Q[tile], scores_of(kept_RK.amin(1)))


def _reaching(scores_RB: Tensor, floor_R: Tensor) -> Tensor:
    """Flat positions of the scores that reach their row's floor, ascending.

    On a CPU numpy is several times faster than torch, and takes a few rows at a time, whose mask stays in the cache.
    """
    if scores_RB.device.type != "cpu":
        return (scores_RB >= floor_R[:, None]).flatten().nonzero()[:, 0]
    scores, floor, columns = scores_RB.numpy(), floor_R[:, None].numpy(), scores_RB.shape[1]
    starts = range(0, len(scores), _ROWS_AT_ONCE)
    parts = [slice(start, start + _ROWS_AT_ONCE) for start in starts]
    hits = [np.flatnonzero(scores[part] >= floor[part]) + part.start * columns for part in parts]
    return torch.from_numpy(np.concatenate(hits))


def _kth(scores_RB: Tensor, k: int) -> Tensor:
    """The k-th best score of each row; numpy partitions several times faster than torch selects."""
    if scores_RB.device.type == "cpu":
        return torch.tensor([np.partition(row, -k)[-k] for row in scores_RB.numpy()])
    return scores_RB.topk(k, dim=1).values[:, -1]


def rows_by_tie(tie_order: Tensor | np.ndarray, count: int) -> Tensor:
    """The passage at each place of the tie order, on the CPU.

    Raises:
        ValueError: the order is not a permutation of the `count` passages.
    """
    ties_N = as_tensor(tie_order).cpu().long()
    if ties_N.shape != (count,):
        raise ValueError(f"tie_order {tuple(ties_N.shape)} must be ({count},), one entry a passage")
    rows_N = torch.full((count,), -1)
    if count and ties_N.amin() >= 0 and ties_N.amax() < count:
        rows_N[ties_N] = torch.arange(count)
    if (rows_N < 0).any():
        raise ValueError(f"tie_order must hold 0 to {count - 1}, each once")
    return rows_N


def _blocks(
    passages: Tensor | np.ndarray, tie_order: Tensor | np.ndarray, block: int, device: torch.device
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(first row, passages, tie order) of near-equal blocks, the last padded with zeros to the others' size.

    Matrix products of one shape take one code path, which gives identical passages identical scores wherever
    they stand. An odd remainder would be computed by another path, differ in the last bit, and hide a tie.
    """
    size = _even_size(len(passages), block, _PASSAGE_MULTIPLE)
    for start in range(0, len(passages), size):
        part_BC = as_tensor(passages[start : start + size]).to(device, torch.float32)
        ties_B = as_tensor(tie_order[start : start + size]).to(device, torch.int64)
        yield start, padded(part_BC, size), ties_B


def _groups_of_tiles(queries_QC: Tensor, workers: int) -> list[list[tuple[slice, Tensor]]]:
    """(which queries, their embeddings) of near-equal tiles, one for each worker at a time.

    The last tile is padded with zeros to the others' size.
    """
    count = len(queries_QC)
    size = _even_size(count, max(1, min(_QUERIES_PER_TILE, -(-count // workers))), _QUERY_MULTIPLE)
    size = max(size, _FEWEST_QUERIES)
    parts = [slice(first, min(first + size, count)) for first in range(0, count, size)]
    tiles = [(part, padded(queries_QC[part], size)) for part in parts]
    return [tiles[first : first + workers] for first in range(0, len(tiles), workers)]


@contextlib.contextmanager
def _workers(device: torch.device) -> Iterator[tuple[int, Callable[..., Iterable[None]]]]:
    """(how many tiles are worked on at once, a `map` that does so).

    On a CPU each core has a tile of its own, product and selection: a product shared by all cores would leave all but
    one idle while numpy selects.
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
    """Size of near-equal parts of at most about `limit`, a multiple of `multiple`."""
    parts = max(1, -(-count // limit))
    return max(1, -(-count // (parts * multiple))) * multiple


def padded(part: Tensor, size: int) -> Tensor:
    """The part with rows of zeros up to that many."""
    return part if len(part) == size else torch.nn.functional.pad(part, (0, 0, 0, size - len(part)))


def as_tensor(values: Tensor | np.ndarray) -> Tensor:
    """A tensor of the same memory where torch can have it; a copy of what is read-only, as most memory maps are."""
    if isinstance(values, Tensor):
        return values.detach()
    shared = values.flags.writeable and values.flags.c_contiguous
    return torch.from_numpy(values if shared else np.array(values, order="C"))


def largest(values: Tensor, kind: str, start: int) -> float:
    """Largest absolute value of embeddings.

    Args:
        values: some rows of them.
        kind: "query" or "passage", for the message.
        start: the number of the first row, for the message.

    Raises:
        NotFiniteError: NaN or infinity, which show in the largest value.
    """
    if not values.numel():
        return 0.0
    low, high = values.aminmax()
    found = float(torch.maximum(-low, high))
    if not found <= LARGEST:
        row = start + int(values.isfinite().all(1).logical_not().nonzero()[0, 0])
        raise NotFiniteError(
            f"the embedding of {kind} row {row} holds NaN or infinity: the model's weights or its "
            "precision are at fault; nothing was ranked"
        )
    return found


def _check_scores(scores_RB: Tensor, first: int, start: int) -> None:
    finite = scores_RB.isfinite()
    if not bool(finite.all()):
        row, column = finite.logical_not().nonzero()[0].tolist()
        raise NotFiniteError(
            f"the score of query row {first + row} and passage row {start + column} is beyond float32: their "
            "embeddings are too large; nothing was ranked"
        )


def check_arguments(queries_QC: Tensor, passages: Tensor | np.ndarray, k: int, block: int = 1) -> None:
    """Refuses shapes that do not agree, and a k or a block below one.

    Raises:
        ValueError: what does not fit.
    """
    if queries_QC.ndim != 2 or passages.ndim != 2 or queries_QC.shape[1] != passages.shape[1]:
        raise ValueError(
            f"queries {tuple(queries_QC.shape)} and passages {tuple(passages.shape)} must be (Q, C), (N, C)"
        )
    if k < 1 or block < 1:
        raise ValueError(f"k and block must be at least 1, not {k} and {block}")


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
