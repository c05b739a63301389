"""Rankings that leave out one passage of each query, exactly as if the corpus did not hold it for that query."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def leaving_out(search: Callable[[int], tuple[Any, ...]], k: int, left_out: np.ndarray | None) -> tuple[Any, ...]:
    """The k best passages of every query but the one that it leaves out.

    The order of a search is total, so of the k + 1 best passages those that remain are the k best of the others.

    Args:
        search: from k to scores, rows, and whatever else, which is passed on; see `maw.search.exact.top_k`.
        k: how many to return.
        left_out: each query's row to leave out, -1 for none, (Q,); None to leave out nothing.

    Returns:
        What `search` returns, at the width that it has for k. Where a query ranks all others, its last row is -1 and
        its last score -inf.
    """
    if left_out is None:
        return search(k)
    scores_QJ, rows_QJ, *rest = search(k + 1)
    found_QJ = rows_QJ == torch.from_numpy(left_out)[:, None]
    columns = torch.arange(min(k, rows_QJ.shape[1]))
    behind = found_QJ.any(1, keepdim=True) & (columns >= found_QJ.int().argmax(1, keepdim=True))
    index_QK = columns + behind.long()
    none_QK, index_QK = index_QK == rows_QJ.shape[1], index_QK.clamp(max=rows_QJ.shape[1] - 1)
    scores_QK, rows_QK = scores_QJ.gather(1, index_QK), rows_QJ.gather(1, index_QK)
    return scores_QK.masked_fill(none_QK, -torch.inf), rows_QK.masked_fill(none_QK, -1), *rest
