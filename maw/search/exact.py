"""Exact top-k by inner product, in blocks, with trec_eval's order among equal scores.

    scores, rows = top_k(query_embeddings, passage_embeddings, 1000, corpus.tie_order())

`maw.evaluation.evaluate` ranks every test and validation corpus with it, unless the configuration asks for FAISS
(`maw.search.faiss_index`).

The order is total: float32 score descending, then `tie_order` ascending, and it also decides which of several
equally scored passages make the cut at k. A score and a tie order pack into one 64-bit key that sorts the same way
(`maw.search.sort_keys`).

Nearly all the time goes into the matrix product. Of a tile of scores only those that reach a mark, the query's k-th
best so far, are looked at and kept (`maw.search.candidates`). The first mark comes from a sample of the passages,
which saves most of the keeping; a query that it sets too high is searched again without. On a CPU where bfloat16 is
faster than float32, a first look in it (`maw.search.look`) leaves a small part of the products to make in float32,
with the same results.

Memory above the arrays: one block of passages, one tile of scores for each core, 24 bytes per query and
result, and 8 per passage for the way back from tie orders to rows.

Legend: Q queries, N passages, C embedding size, K results per query, B passages of a block, R queries of a tile.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from maw.runtime.precision import WORTH_IT, bfloat16_speed
from maw.search.candidates import Candidates, highest
from maw.search.checks import LARGEST, as_tensor, check_arguments, check_scores, largest, padded, rows_by_tie
from maw.search.look import FirstLook, exact_shapes
from maw.search.sort_keys import NOTHING, best, scores_of, ties_of

_QUERIES_PER_TILE = 1024
_FEWEST_QUERIES = 16  # smaller products may take another path in the library, which rounds otherwise
_QUERY_MULTIPLE, _PASSAGE_MULTIPLE, _BLOCK_MULTIPLE = 8, 64, 8
_QUERIES_TO_LOOK, _TERMS_TO_LOOK, _BLOCKS_TO_LOOK = 128, 128, 4  # for fewer, rounding and trying out cost too much

Scan = Literal["auto", "float32", "bfloat16"]


def top_k(
    queries: Tensor | np.ndarray,
    passages: Tensor | np.ndarray,
    k: int,
    tie_order: Tensor | np.ndarray,
    *,
    block: int = 16_384,
    scan: Scan = "auto",
) -> tuple[Tensor, Tensor]:
    """The k best passages of every query by exact inner product.

    Args:
        queries: query embeddings; the search runs on their device.
        passages: passage embeddings, on any device, or an array, which may be a memory map.
        k: how many to return.
        tie_order: for each passage its place among passages of equal score: 0 to N - 1, each once.
        block: how many passages are scored at once.
        scan: whether to look in bfloat16 first, which changes no bit of the results: "bfloat16" does wherever it can,
            with float32 embeddings on a CPU; "auto" where that is also faster.

    Shapes:
        queries (Q, C), passages (N, C), tie_order (N,); both results (Q, min(k, N)).

    Returns:
        Scores, float32, best first, and the passages' rows, int64; both on the CPU.

    Raises:
        NotFiniteError: an embedding or a score that is not a finite number, with its row.
        ValueError: shapes that do not agree, k or block below one, a tie order that is not a permutation, an
            unknown scan.
    """
    check_arguments(as_tensor(queries), passages, k, block)
    row_of_tie = rows_by_tie(tie_order, len(passages))
    if scan not in get_args(Scan):
        raise ValueError(f"scan must be one of {', '.join(get_args(Scan))}, not {scan!r}")
    queries_QC, size, wanted = as_tensor(queries).float(), block_size(len(passages), block), min(k, len(passages))
    look = looks_first(queries, passages, size, scan)
    sample = sample_size(len(passages), size, look)
    rank = rank_in_sample(wanted, len(passages), sample)
    floor_Q = best_of_sample(queries_QC, passages, sample, rank, size, look)[:, 0].clone() if rank else None
    keys_QK = best_keys(queries_QC, passages, wanted, tie_order, size, floor_Q, look)
    short_Q = too_few(keys_QK)
    if short_Q.any():
        keys_QK[short_Q] = best_keys(queries_QC[short_Q.to(queries_QC.device)], passages, wanted, tie_order, size)
    keys_QK = best(keys_QK, wanted, ordered=True)
    return scores_of(keys_QK), row_of_tie[ties_of(keys_QK)]


def block_size(passages: int, block: int) -> int:
    """The size of the near-equal blocks in which so many passages are scored, of at most about `block`.

    There are 1, 2, 4 or a multiple of 8 of them, as far as so few passages allow it, so that several processes have
    equally many.
    """
    blocks = max(1, -(-passages // block))
    is_distributed = min(_BLOCK_MULTIPLE, 1 << (blocks - 1).bit_length())
    blocks = -(-blocks // is_distributed) * is_distributed
    return _even_size(passages, max(1, -(-passages // blocks)), _PASSAGE_MULTIPLE)


def best_keys(
    queries_QC: Tensor,
    passages: Tensor | np.ndarray,
    k: int,
    tie_order: Tensor | np.ndarray,
    size: int,
    floor_Q: Tensor | None = None,
    look_first: bool = False,
) -> Tensor:
    """The k best of some passages as keys (`maw.search.sort_keys`), in any order, (Q, k) on the CPU.

    Args:
        queries_QC: float32.
        k: no more than there are passages.
        tie_order: any different numbers from 0 to 2**32 - 1, such as a part's of a larger corpus.
        size: of a block, from `block_size`. With the size of the whole corpus a part's scores have the same bits.
        floor_Q: scores to start from, float32: what does not reach them is passed over, and `NOTHING` stands in the
            place of what is missing then.
        look_first: in bfloat16.
    """
    device = queries_QC.device
    largest_query = largest(queries_QC, "query", 0)
    with _tiles(queries_QC, size, look_first) as (over_tiles, look):
        found = Candidates(queries_QC, k, len(passages), floor_Q)
        for start, passages_BC, ties_B in _blocks(passages, tie_order, size, device):
            looked = look is not None and look.take(passages_BC)  # then all is finite, and scores will be
            largest_passage = 0.0 if looked else largest(passages_BC[: len(ties_B)], "passage", start)
            bound = queries_QC.shape[1] * largest_query * largest_passage
            over_tiles(_rank, look if looked else None, passages_BC, found, ties_B, start, bound)
        return best(found.keys_QW, k).cpu()


def best_of_sample(
    queries_QC: Tensor, passages: Tensor | np.ndarray, sample: int, rank: int, size: int, look_first: bool = False
) -> Tensor:
    """About the `rank` best scores of every query in an even sample, float32, (Q, rank) on the CPU, the least first.

    Args:
        sample: how many passages; at least `rank`.
        size: of the blocks that are searched after it.
        look_first: in bfloat16; then scores are a little less than they are.
    """
    device = queries_QC.device
    with _tiles(queries_QC, size, look_first) as (over_tiles, look):
        best_QR = torch.empty(len(queries_QC), rank, device=device)
        sample_BC = _sample(passages, sample, device)
        looked = look is not None and look.take(sample_BC)
        over_tiles(_look_at_sample, look if looked else None, sample_BC, best_QR)
        return best_QR.cpu()


def too_few(keys_QK: Tensor) -> Tensor:
    """Which queries found less than their k best, (Q,): those whose sample promised more than there is."""
    return (keys_QK == NOTHING).any(1)


@contextlib.contextmanager
def _tiles(queries_QC: Tensor, size: int, look_first: bool) -> Iterator[tuple[Callable[..., None], FirstLook | None]]:
    """(what does something for every tile of queries, several at once, the look in bfloat16 if there is one).

    Each tile's function is called with the memory of all workers for scores, the arguments that are given, its
    worker's number, which queries it has, and their embeddings.
    """
    device = queries_QC.device
    # Threads do not share the caller's modes, and tensors of inference mode may not be changed outside of it.
    with torch.inference_mode(False), torch.no_grad(), full_precision(device), _workers(device) as (workers, each):
        groups = _groups_of_tiles(queries_QC, workers)
        look = _first_look(groups, size, each) if look_first else None
        scores: list[Tensor | None] = [None] * workers  # all tiles have one shape, and each worker one memory for it

        def over_tiles(function: Callable[..., None], *arguments: object) -> None:
            for group in groups:
                list(each(partial(function, scores, *arguments), range(workers), *zip(*group, strict=True)))

        yield over_tiles, look


def looks_first(queries: Tensor | np.ndarray, passages: Tensor | np.ndarray, size: int, scan: Scan = "auto") -> bool:
    """Whether to look in bfloat16 first, at blocks of that size."""
    if scan == "float32" or not _can_look(queries, passages):
        return False
    return scan == "bfloat16" or _looking_pays(queries, passages, size)


def _can_look(queries: Tensor | np.ndarray, passages: Tensor | np.ndarray) -> bool:
    """Whether embeddings are what `maw.search.look` is for."""
    on_cpu = all(not isinstance(each, Tensor) or each.device.type == "cpu" for each in (queries, passages))
    return on_cpu and all(each.dtype in (torch.float32, np.float32) for each in (queries, passages))


def _looking_pays(queries: Tensor | np.ndarray, passages: Tensor | np.ndarray, size: int) -> bool:
    enough = len(queries) >= _QUERIES_TO_LOOK and len(passages) >= _BLOCKS_TO_LOOK * size
    return enough and queries.shape[1] >= _TERMS_TO_LOOK and bfloat16_speed("cpu") >= WORTH_IT


def _first_look(
    groups: list[list[tuple[slice, Tensor]]], size: int, each: Callable[..., Iterable[Any]]
) -> FirstLook | None:
    """The look in bfloat16; None where products of few queries never have the bits of a tile's."""
    tiles = [tile for group in groups for tile in group]
    if not tiles:
        return None
    rows, terms = tiles[0][1].shape
    (shapes,) = each(exact_shapes, [rows], [size], [terms])  # by a worker, whose products these will be
    return FirstLook(tiles, shapes, each) if shapes else None


def sample_size(passages: int, size: int, look: bool) -> int:
    """Of a block; where scores in bfloat16 cost little, two, but no more than a quarter of all."""
    return max(size, min(2 * size, passages // (4 * _PASSAGE_MULTIPLE) * _PASSAGE_MULTIPLE)) if look else size


def rank_in_sample(k: int, passages: int, size: int) -> int:
    """The place in an even sample of that size that few queries' k-th best falls short of; 0 if it would not pay.

    By chance a sample holds this many of the k best, four standard deviations above the mean, about once in fifty
    thousand queries; it then costs that query a second search. Passages in an order of their own may do it more often.
    """
    expected = size * k / max(passages, 1)
    rank = int(expected + 4 * math.sqrt(expected)) + 4
    return rank if 2 * rank <= k and rank <= size and 4 * size <= passages else 0


def _sample(passages: Tensor | np.ndarray, size: int, device: torch.device) -> Tensor:
    """So many passages, spread evenly."""
    rows = np.linspace(0, len(passages) - 1, size).astype(np.int64)
    picked = passages[torch.from_numpy(rows).to(passages.device)] if isinstance(passages, Tensor) else passages[rows]
    return as_tensor(picked).to(device).float()


def _look_at_sample(
    scores: list[Tensor | None],
    look: FirstLook | None,
    sample_BC: Tensor,
    best_QR: Tensor,
    worker: int,
    tile: slice,
    part_RC: Tensor,
) -> None:
    """Fills in the best scores of a tile's queries."""
    rank = best_QR.shape[1]
    if look is not None:
        best_QR[tile] = look.highest(worker, tile, rank)
    else:
        best_QR[tile] = highest((part_RC @ sample_BC.T)[: tile.stop - tile.start], rank)


def _rank(
    scores: list[Tensor | None],
    look: FirstLook | None,
    passages_BC: Tensor,
    found: Candidates,
    ties_B: Tensor,
    start: int,
    bound: float,
    worker: int,
    tile: slice,
    part_RC: Tensor,
) -> None:
    """Scores one tile, of the queries `tile` and the passages from `start`, and keeps what can be among the best."""
    if look is not None and look.add(worker, tile, part_RC, passages_BC, ties_B, found):
        return
    product = scores[worker] = torch.mm(part_RC, passages_BC.T, out=scores[worker])
    scores_RB = product[: tile.stop - tile.start, : len(ties_B)]
    if not bound < LARGEST / 2:  # otherwise no sum of products can overflow
        check_scores(scores_RB, tile.start, start)
    found.add(tile, scores_RB, ties_B)


def _blocks(
    passages: Tensor | np.ndarray, tie_order: Tensor | np.ndarray, size: int, device: torch.device
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(first row, passages, tie order) of blocks, the last padded with zeros to the others' size.

    Matrix products of one shape take one code path, which gives identical passages identical scores wherever
    they stand. An odd remainder would be computed by another path, differ in the last bit, and hide a tie.
    """
    for start in range(0, len(passages), size):
        part_BC = as_tensor(passages[start : start + size]).to(device).float()  # half as much to copy, if it is half
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
