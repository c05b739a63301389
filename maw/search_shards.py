"""Exact search by several processes: each ranks a part of the passages, and the best of all parts are put together.

    scores, rows = top_k_together(query_embeddings, passage_embeddings, 1000, corpus.tie_order())

The parts are made of the blocks in which one process would score the passages, so that scores have the same bits, and
candidates are compared as keys of score and tie order (`maw.keys`): the order is that of `maw.search.top_k`, among
equal scores in different parts and at the cut at k too. With fewer blocks than processes the blocks are smaller, and
last bits may differ from those of one process.

Legend: Q queries, N passages, K results per query.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from maw import distributed
from maw.errors import is_out_of_memory
from maw.keys import NOTHING, best, scores_of, ties_of
from maw.search import block_size, top_k, top_keys
from maw.vectors import as_tensor, check_arguments, rows_by_tie


def top_k_together(
    queries: Tensor, passages: Tensor | np.ndarray, k: int, tie_order: Tensor | np.ndarray, *, block: int = 16_384
) -> tuple[Tensor, Tensor]:
    """`maw.search.top_k`, with several processes each its part of the passages; all get the whole result.

    Args: as `top_k`, the same in every process.

    Raises:
        MemoryError, RuntimeError: memory ran out in one of them; in all.
    """
    if not distributed.together():
        return top_k(queries, passages, k, tie_order, block=block)
    place = distributed.place()
    row_of_tie = rows_by_tie(tie_order, len(passages))
    check_arguments(as_tensor(queries), passages, k, block)
    size, parts = divide(len(passages), block, place.count)
    part, wanted = parts[place.rank], min(k, len(passages))
    keys_QK = torch.full((len(queries), wanted), NOTHING)
    error: MemoryError | RuntimeError | None = None
    try:
        if part.stop > part.start:
            found = top_keys(queries, passages[part], wanted, tie_order[part], size)
            keys_QK[:, : found.shape[1]] = found
    except (MemoryError, RuntimeError) as wrong:
        if not is_out_of_memory(wrong):
            raise
        error = wrong
    if any(distributed.any_of(error is not None)):  # all try again with smaller blocks, or none
        raise error or MemoryError("out of memory in another process")
    keys_QK = merge(distributed.gathered(keys_QK), wanted)
    return scores_of(keys_QK), row_of_tie[ties_of(keys_QK)]


def divide(passages: int, block: int, count: int) -> tuple[int, list[slice]]:
    """The size of a block, and which passages each of `count` parts has: whole blocks, about equally many."""
    size = block_size(passages, min(block, -(-passages // count)))
    blocks = -(-passages // size)
    bounds = [min(passages, size * (blocks * number // count)) for number in range(count + 1)]
    return size, [slice(*pair) for pair in pairwise(bounds)]


def merge(parts: Sequence[Tensor], k: int) -> Tensor:
    """The k best keys of each query, best first, (Q, k), of those of all parts."""
    return best(torch.cat(list(parts), dim=1), k, ordered=True)
