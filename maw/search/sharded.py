"""Exact search by several processes: each ranks a part of the passages, and the best of all parts are merged.

    scores, rows = sharded_top_k(query_embeddings, passage_embeddings, 1000, corpus.tie_order())

The parts are whole blocks, those in which one process would score the passages, so that scores have the same bits.
Results are merged as keys of score and tie order (`maw.search.sort_keys`): the order is that of
`maw.search.exact.top_k`, also among equal scores of different parts and at the cut at k. With fewer blocks than
processes the blocks are smaller, and last bits may differ from those of one process.

Letters: Q queries, N passages, C embedding size, K results per query.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from maw.errors import is_out_of_memory
from maw.runtime import distributed
from maw.search.checks import as_tensor, check_arguments, rows_by_tie
from maw.search.exact import best_keys, block_size, top_k
from maw.search.sort_keys import NOTHING, best, scores_of, ties_of


def sharded_top_k(
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
    k, this = min(k, len(passages)), distributed.this_process()
    size, parts = divide(len(passages), block, this.count)
    own, ties = passages[parts[this.rank]], tie_order[parts[this.rank]]
    found = min(k, len(own))
    keys_QK = torch.full((len(queries_QC), k), NOTHING)  # of equal width everywhere, so that they can be gathered
    keys_QK[:, :found] = all_or_none(partial(best_keys, queries_QC, own, found, ties, size))
    keys_QK = best(torch.cat(list(distributed.gathered(keys_QK)), dim=1), k, ordered=True)
    return scores_of(keys_QK), row_of_tie[ties_of(keys_QK)]


def all_or_none(find: Callable[[], Tensor]) -> Tensor:
    """What `find` returns. If memory runs out in one process, it does in all, which may then try smaller blocks."""
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
