"""A score and a tie order in one 64-bit integer that sorts as they do together.

`maw.search.exact` and `maw.search.faiss_index` keep candidates as keys: merging lists of them, with trec_eval's order
among equal scores, is then no more than taking the largest integers.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_LOW_BITS = 2**32 - 1


def pack(scores: Tensor, ties: Tensor) -> Tensor:
    """int64 keys that sort as (score ascending, tie order descending); -0.0 counts as 0.0.

    The bits of a float32 sort like integers when it is positive; when it is negative, all but its sign are flipped.

    Args:
        scores: float32, finite.
        ties: int64, from 0 to 2**32 - 1.
    """
    bits = (scores + 0.0).view(torch.int32)
    return (_flipped(bits).long() << 32) + (_LOW_BITS - ties)


def scores_of(keys: Tensor) -> Tensor:
    """The float32 scores inside keys."""
    return _flipped((keys >> 32).int()).view(torch.float32)


def _flipped(bits: Tensor) -> Tensor:
    """All bits but the sign flipped, where that is set; done twice, it changes nothing."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def ties_of(keys: Tensor) -> Tensor:
    """The tie orders inside keys, int64."""
    return _LOW_BITS - (keys & _LOW_BITS)


NOTHING = int(pack(torch.tensor(-torch.inf), torch.tensor(_LOW_BITS)))
"""Below the key of every finite score; what stands where no candidate does."""


def best(keys_RW: Tensor, k: int, *, ordered: bool = False) -> Tensor:
    """The k largest keys of each row, largest first if `ordered`.

    On a CPU numpy's partition of 64-bit integers is several times faster than torch's top-k.
    """
    if keys_RW.device.type != "cpu":
        return keys_RW.topk(k, dim=1, sorted=ordered).values
    width = keys_RW.shape[1]
    kept_RK = keys_RW.numpy() if k == width else np.partition(keys_RW.numpy(), width - k, axis=1)[:, width - k :]
    return torch.from_numpy(np.sort(kept_RK, axis=1)[:, ::-1].copy() if ordered else kept_RK)
