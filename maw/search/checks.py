"""Checks of what a search is given, before anything is ranked."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from maw.errors import NotFiniteError

LARGEST = torch.finfo(torch.float32).max


def padded(part: Tensor, size: int) -> Tensor:
    """The part, with rows of zeros behind it up to `size` rows."""
    return part if len(part) == size else torch.nn.functional.pad(part, (0, 0, 0, size - len(part)))


def as_tensor(values: Tensor | np.ndarray) -> Tensor:
    """A tensor that shares the values' memory; of a read-only array, as most memory maps are, a copy."""
    if isinstance(values, Tensor):
        return values.detach()
    shared = values.flags.writeable and values.flags.c_contiguous
    return torch.from_numpy(values if shared else np.array(values, order="C"))


def largest(values: Tensor, kind: str, start: int) -> float:
    """The largest absolute value of embeddings; `kind`, "query" or "passage", and first row are for the message.

    Raises:
        NotFiniteError: an embedding holds NaN or infinity; the message names its row.
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


def check_scores(scores_RB: Tensor, first: int, start: int) -> None:
    """Refuses scores that are not finite; `first` and `start` number the first query and the first passage.

    Raises:
        NotFiniteError: a score is not finite; the message names its query and passage.
    """
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
        ValueError: an argument does not fit; the message says which.
    """
    if queries_QC.ndim != 2 or passages.ndim != 2 or queries_QC.shape[1] != passages.shape[1]:
        raise ValueError(
            f"queries {tuple(queries_QC.shape)} and passages {tuple(passages.shape)} must be (Q, C), (N, C)"
        )
    if k < 1 or block < 1:
        raise ValueError(f"k and block must be at least 1, not {k} and {block}")


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
