"""Exact search by several processes: each ranks a part of the passages, and the best of all parts are put together.

    scores, rows = top_k_together(query_embeddings, passage_embeddings, 1000, corpus.tie_order())

The parts are made of the blocks in which one process would score the passages, so that scores have the same bits, and
candidates are compared as keys of score and tie order (`maw.search.sort_keys`): the order is that of
`maw.search.exact.top_k`, among equal scores in different parts and at the cut at k too. With fewer blocks than
processes the blocks are smaller, and last bits may differ from those of one process.

All start from one floor, a score that nearly every query's k best reach by what a sample of all passages says, of
which each process looks at its share. Without it each would have to keep the k best of its own part, which are more
than its share of the k best of all.

Legend: Q queries, N passages, C embedding size, K results per query.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from maw.errors import is_out_of_memory
from maw.runtime import distributed
from maw.search.candidates import highest
from maw.search.checks import as_tensor, check_arguments, rows_by_tie
from maw.search.exact import (
    best_keys,
    best_of_sample,
    block_size,
    looks_first,
    rank_in_sample,
    sample_size,
    too_few,
    top_k,
)
from maw.search.sort_keys import NOTHING, best, scores_of, ties_of


def top_k_together(
    queries: Tensor, passages: Tensor | np.ndarray, k: int, tie_order: Tensor | np.ndarray, *, block: int = 16_384
) -> tuple[Tensor, Tensor]:
    """`maw.search.exact.top_k`, with several processes each its part of the passages; all get the whole result.

    Args: as `top_k`, the same in every process.

    Raises:
        MemoryError, RuntimeError: memory ran out in one of them; in all.
    """
    if not distributed.is_distributed():
        return top_k(queries, passages, k, tie_order, block=block)
    queries_QC = as_tensor(queries).float()
    check_arguments(queries_QC, passages, k, block)
    row_of_tie = rows_by_tie(tie_order, len(passages))
    shard = Shard(passages, tie_order, min(k, len(passages)), block)
    floor_Q = shard.floor(queries_QC)
    keys_QK = shard.search(queries_QC, floor_Q)
    short_Q = too_few(keys_QK)
    if short_Q.any():
        keys_QK[short_Q] = shard.search(queries_QC[short_Q.to(queries_QC.device)], None)
    return scores_of(keys_QK), row_of_tie[ties_of(keys_QK)]


class Shard:
    """This process's part of the passages.

    Args:
        passages, tie_order, block: as in `top_k_together`.
        k: how many to find, no more than there are passages.
    """

    def __init__(self, passages: Tensor | np.ndarray, tie_order: Tensor | np.ndarray, k: int, block: int):
        place = distributed.this_process()
        self.size, parts = divide(len(passages), block, place.count)
        self.passages, self.tie_order = passages[parts[place.rank]], tie_order[parts[place.rank]]
        self.k, self.all, self.smallest = k, len(passages), min(part.stop - part.start for part in parts)
        self.count = place.count

    def floor(self, queries_QC: Tensor) -> Tensor | None:
        """A score that nearly every query's k best reach, (Q,), the same everywhere; None if it would not pay."""
        sample = sample_size(self.all, self.size, look=True)  # whether a look pays is each process's own affair
        share = min(sample // self.count, self.smallest)
        rank = rank_in_sample(self.k, self.all, share * self.count)
        if not 0 < rank <= share:
            return None
        look = looks_first(queries_QC, self.passages, self.size)
        find = partial(best_of_sample, queries_QC, self.passages, share, rank, self.size, look)
        return highest(torch.cat(distributed.gathered(all_or_none(find)), dim=1), rank)[:, 0].clone()

    def search(self, queries_QC: Tensor, floor_Q: Tensor | None) -> Tensor:
        """The k best keys of all processes' parts, (Q, k), best first, the same in every process."""
        keys_QK = torch.full((len(queries_QC), self.k), NOTHING)
        if count := min(self.k, len(self.passages)):
            look = looks_first(queries_QC, self.passages, self.size)
            find = partial(best_keys, queries_QC, self.passages, count, self.tie_order, self.size, floor_Q, look)
        else:
            find = partial(torch.empty, len(queries_QC), 0, dtype=torch.int64)
        keys_QK[:, :count] = all_or_none(find)
        return merge(distributed.gathered(keys_QK), self.k)


def all_or_none(find: Callable[[], Tensor]) -> Tensor:
    """What this process finds; where memory runs out in any, it does in all, which may then try smaller blocks."""
    error: MemoryError | RuntimeError | None = None
    try:
        found = find()
    except (MemoryError, RuntimeError) as wrong:
        if not is_out_of_memory(wrong):
            raise
        error = wrong
    if any(distributed.any_process(error is not None)):
        raise error or MemoryError("out of memory in another process")
    return found


def divide(passages: int, block: int, count: int) -> tuple[int, list[slice]]:
    """The size of a block, and which passages each of `count` parts has: whole blocks, about equally many."""
    size = block_size(passages, min(block, -(-passages // count)))
    blocks = -(-passages // size)
    bounds = [min(passages, size * (blocks * number // count)) for number in range(count + 1)]
    return size, [slice(*pair) for pair in pairwise(bounds)]


def merge(parts: Sequence[Tensor], k: int) -> Tensor:
    """The k best keys of each query, best first, (Q, k), of those of all parts."""
    return best(torch.cat(list(parts), dim=1), k, ordered=True)
