"""Exact top-k by inner product, in blocks, with trec_eval's order among equal scores.

    scores, rows = top_k(query_embeddings, passage_embeddings, 1000, corpus.tie_order())

`maw.evaluation` ranks every test and validation corpus with it.

The order is total: float32 score descending, then `tie_order` ascending, and it also decides which of several
equally scored passages make the cut at k. A score and a tie order pack into one 64-bit key that sorts the
same way, so merging blocks is an ordinary top-k over keys. Within a block only the scores are compared, which
is several times faster; the few rows whose k-th and next score are equal, and still matter, are then done
again over keys.

Memory above the arrays: one block of passages, one tile of scores, and the result.

Legend: Q queries, N passages, C embedding size, K results per query, B passages of a block, R queries of a
tile.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from maw.errors import MAWError

_QUERIES_PER_TILE = 512
_ROWS_BY_KEY = 64  # rows at a time on the exact path, where a tile's entry takes eight bytes instead of four
_QUERY_MULTIPLE, _PASSAGE_MULTIPLE = 8, 64
_LARGEST = torch.finfo(torch.float32).max
_LOW_BITS = 2**32 - 1


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
        tie_order: for each passage its place among passages of equal score, all different, 0 first.
        block: how many passages are scored at once.

    Shapes:
        queries (Q, C), passages (N, C), tie_order (N,); both results (Q, min(k, N)).

    Returns:
        Scores, float32, best first, and the passages' rows, int64; both on the CPU.

    Raises:
        MAWError: an embedding or a score that is not a finite number, with its row.
        ValueError: shapes that do not agree, k or block below one, a tie order out of range.
    """
    queries_QC = _tensor(queries).float()
    _check_arguments(queries_QC, passages, k, tie_order, block)
    largest_query = _largest(queries_QC, "query", 0)
    keys_QK, rows_QK = _empty(queries_QC), _empty(queries_QC)
    with torch.no_grad(), _full_precision(queries_QC.device):
        for start, passages_BC, ties_B in _blocks(passages, tie_order, block, queries_QC.device):
            bound = queries_QC.shape[1] * largest_query * _largest(passages_BC[: len(ties_B)], "passage", start)
            found = [
                _merge(keys_QK[tile], rows_QK[tile], scores_RB, ties_B, start, k)
                for tile, scores_RB in _tiles(queries_QC, passages_BC, len(ties_B), start, bound)
            ]
            if found:
                keys_QK, rows_QK = (torch.cat(parts) for parts in zip(*found, strict=True))
    keys_QK, order = keys_QK.sort(dim=1, descending=True)
    return _scores(keys_QK).cpu(), rows_QK.gather(1, order).cpu()


def _merge(
    keys_RK: Tensor, rows_RK: Tensor, scores_RB: Tensor, ties_B: Tensor, start: int, k: int
) -> tuple[Tensor, Tensor]:
    """The k best keys, and their rows, of the best so far and a tile of scores; in no particular order."""
    floor_R = _scores(keys_RK.amin(1)) if keys_RK.shape[1] == k else None
    columns_RK = _best_columns(scores_RB, ties_B, k, floor_R)
    keys = torch.cat([keys_RK, _keys(scores_RB.gather(1, columns_RK), ties_B[columns_RK])], 1)
    rows = torch.cat([rows_RK, columns_RK + start], 1)
    if keys.shape[1] <= k:
        return keys, rows
    keys, picked = keys.topk(k, dim=1, sorted=False)
    return keys, rows.gather(1, picked)


def _best_columns(scores_RB: Tensor, ties_B: Tensor, k: int, floor_R: Tensor | None) -> Tensor:
    """Columns holding each row's k best, in no particular order.

    Only scores that reach `floor_R`, the k-th found so far, can enter the result. Once most of the corpus is
    seen they are few, and taking as many columns as the fullest row needs takes them all. Where more than k
    compete, a tie across the cut is settled by `tie_order`.
    """
    count = scores_RB.shape[1]
    if floor_R is not None:
        count = int((scores_RB >= floor_R[:, None]).sum(1).amax())
    if count <= k:
        return scores_RB.topk(count, dim=1, sorted=False).indices
    scores_RK, columns_RK = scores_RB.topk(k + 1, dim=1)
    columns_RK = columns_RK[:, :k].clone()
    tied_R = scores_RK[:, k - 1] == scores_RK[:, k]
    if floor_R is not None:
        tied_R &= scores_RK[:, k] >= floor_R
    for part in tied_R.nonzero()[:, 0].split(_ROWS_BY_KEY):
        columns_RK[part] = _keys(scores_RB[part], ties_B).topk(k, dim=1, sorted=False).indices
    return columns_RK


def _keys(scores: Tensor, ties: Tensor) -> Tensor:
    """int64 keys that sort as (score ascending, tie order descending); -0.0 counts as 0.0.

    The bits of a float32 sort like integers when it is positive; when it is negative, all but its sign are
    flipped.
    """
    bits = (scores + 0.0).view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ordered.long() << 32) + (_LOW_BITS - ties)


def _scores(keys: Tensor) -> Tensor:
    """The float32 scores inside keys; the inverse of `_keys`."""
    ordered = (keys >> 32).int()
    return torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).view(torch.float32)


def _blocks(
    passages: Tensor | np.ndarray, tie_order: Tensor | np.ndarray, block: int, device: torch.device
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(first row, passages, tie order) of near-equal blocks, the last padded with zeros to the others' size.

    Matrix products of one shape take one code path, which gives identical passages identical scores wherever
    they stand. An odd remainder would be computed by another path, differ in the last bit, and hide a tie.
    """
    size = _even_size(len(passages), block, _PASSAGE_MULTIPLE)
    for start in range(0, len(passages), size):
        part_BC = _tensor(passages[start : start + size]).to(device, torch.float32)
        ties_B = _tensor(tie_order[start : start + size]).to(device, torch.int64)
        yield start, _padded(part_BC, size), ties_B


def _tiles(
    queries_QC: Tensor, passages_BC: Tensor, columns: int, start: int, bound: float
) -> Iterator[tuple[slice, Tensor]]:
    """(which queries, their scores) of near-equal groups of queries; padding is cut off again."""
    size = _even_size(len(queries_QC), _QUERIES_PER_TILE, _QUERY_MULTIPLE)
    for first in range(0, len(queries_QC), size):
        part_RC = queries_QC[first : first + size]
        scores_RB = (_padded(part_RC, size) @ passages_BC.T)[: len(part_RC), :columns]
        if not bound < _LARGEST / 2:  # otherwise no sum of products can overflow
            _check_scores(scores_RB, first, start)
        yield slice(first, first + len(part_RC)), scores_RB


def _even_size(count: int, limit: int, multiple: int) -> int:
    """Size of near-equal parts of at most about `limit`, a multiple of `multiple`."""
    parts = max(1, -(-count // limit))
    return max(1, -(-count // (parts * multiple))) * multiple


def _padded(part: Tensor, size: int) -> Tensor:
    return part if len(part) == size else torch.nn.functional.pad(part, (0, 0, 0, size - len(part)))


def _tensor(values: Tensor | np.ndarray) -> Tensor:
    """A tensor; an array is copied, since a memory map may be read-only and vanish under a view."""
    return values.detach() if isinstance(values, Tensor) else torch.from_numpy(np.array(values))


def _empty(queries_QC: Tensor) -> Tensor:
    return torch.empty(len(queries_QC), 0, dtype=torch.int64, device=queries_QC.device)


def _largest(values: Tensor, kind: str, start: int) -> float:
    """Largest absolute value; refuses NaN and infinity, which show in it."""
    if not values.numel():
        return 0.0
    largest = float(values.abs().amax())
    if not largest <= _LARGEST:
        row = start + int(values.isfinite().all(1).logical_not().nonzero()[0, 0])
        raise MAWError(
            f"the embedding of {kind} row {row} holds NaN or infinity: the model's weights or its "
            "precision are at fault; nothing was ranked"
        )
    return largest


def _check_scores(scores_RB: Tensor, first: int, start: int) -> None:
    finite = scores_RB.isfinite()
    if not bool(finite.all()):
        row, column = finite.logical_not().nonzero()[0].tolist()
        raise MAWError(
            f"the score of query row {first + row} and passage row {start + column} is beyond float32: their "
            "embeddings are too large; nothing was ranked"
        )


def _check_arguments(
    queries_QC: Tensor, passages: Tensor | np.ndarray, k: int, tie_order: Tensor | np.ndarray, block: int
) -> None:
    if queries_QC.ndim != 2 or passages.ndim != 2 or queries_QC.shape[1] != passages.shape[1]:
        raise ValueError(
            f"queries {tuple(queries_QC.shape)} and passages {tuple(passages.shape)} must be (Q, C), (N, C)"
        )
    if k < 1 or block < 1:
        raise ValueError(f"k and block must be at least 1, not {k} and {block}")
    if tuple(tie_order.shape) != (len(passages),):
        raise ValueError(f"tie_order {tuple(tie_order.shape)} must be ({len(passages)},), one entry a passage")
    if len(tie_order) and not (tie_order.min() >= 0 and tie_order.max() <= _LOW_BITS):
        raise ValueError(f"tie_order must lie in [0, {_LOW_BITS}]")


@contextlib.contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
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
