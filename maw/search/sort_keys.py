"""Keys: a score and a tie order in one 64-bit integer, which sorts by score and then by tie order.

The searches of this folder keep candidates as keys. To merge lists of candidates, with trec_eval's order among equal
scores, is then to take the largest integers.

Letters: R rows, such as queries, W keys of a row, k results of a row.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_LOW_BITS = 2**32 - 1


def pack(scores: Tensor, ties: Tensor) -> Tensor:
    """Keys, int64: a higher score has a larger key, and so has a lower tie order among equal scores. -0.0 equals 0.0.

    Args:
        scores: float32, finite.
        ties: tie orders, int64, from 0 to 2**32 - 1.
    """
    bits = (scores + 0.0).view(torch.int32)
    return (_flipped(bits).long() << 32) + (_LOW_BITS - ties)


def scores_of(keys: Tensor) -> Tensor:
    """The float32 scores inside keys."""
    return _flipped((keys >> 32).int()).view(torch.float32)


def _flipped(bits: Tensor) -> Tensor:
    """Bits of float32 as integers that sort as the numbers do, and back.

    The bits of positive numbers do already; of negative ones all bits but the sign are flipped.
    """
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def ties_of(keys: Tensor) -> Tensor:
    """The tie orders inside keys, int64."""
    return _LOW_BITS - (keys & _LOW_BITS)


NOTHING = int(pack(torch.tensor(-torch.inf), torch.tensor(_LOW_BITS)))
"""The key of an empty place: below the key of every finite score."""


def best(keys_RW: Tensor, k: int, *, ordered: bool = False) -> Tensor:
    """The k largest keys of each row, (R, k), largest first if `ordered`."""
    if keys_RW.device.type != "cpu":
        return keys_RW.topk(k, dim=1, sorted=ordered).values
    keys, cut = keys_RW.numpy(), keys_RW.shape[1] - k  # numpy is several times faster than torch here
    kept = np.partition(keys, cut, axis=1)[:, cut:] if cut else keys
    return torch.from_numpy(np.sort(kept, axis=1)[:, ::-1].copy() if ordered else kept)
