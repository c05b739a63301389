"""Every query's best passages so far, for `maw.search.exact`.

Of a tile of scores only those that reach the query's k-th best so far are looked at; they wait as keys
(`maw.search.sort_keys`) in a buffer, and when it is full the k best stay and the mark rises. Reaching is comparing
floats, so scores that tie with the k-th wait too, and the keys decide.

Legend: Q queries, C embedding size, K results per query, B passages of a block, R queries of a tile, H scores that
are looked at, W keys that a query's buffer holds.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from maw.search.sort_keys import NOTHING, best, pack, scores_of

_ROOM = 256  # the least room for keys beside the k best
_ROWS_AT_ONCE = 64


class Candidates:
    """Every query's best keys so far, with room for more.

    Args:
        queries_QC: the queries, for their number and device.
        k: how many to find; no more than there are.
        passages: how many there are.
        floor_Q: scores below which nothing is looked for, float32; it changes as better ones are found.
    """

    def __init__(self, queries_QC: Tensor, k: int, passages: int, floor_Q: Tensor | None = None):
        count, device = len(queries_QC), queries_QC.device
        self.k, self.room = k, max(k, _ROOM)
        self.width = min(passages, k + 2 * self.room)
        self.keys_QW = torch.full((count, self.width), NOTHING, device=device)
        self.filled_Q = torch.zeros(count, dtype=torch.int64, device=device)
        self.floor_Q = torch.full((count,), -torch.inf, device=device)
        if floor_Q is not None:
            self.floor_Q.copy_(floor_Q)

    def add(self, tile: slice, scores_RB: Tensor, ties_B: Tensor) -> None:
        """Takes from a tile of scores whatever can still be among the k best."""
        if self.k < len(ties_B) and self.floor_Q[tile].isneginf().all():
            self.floor_Q[tile] = highest(scores_RB, self.k)[:, 0]
        if self._take(tile, scores_RB, ties_B):
            return
        self._cut(tile)
        if not self._take(tile, scores_RB, ties_B):  # too many still: halves, down to what fits even if all is kept
            middle = len(ties_B) // 2
            self.add(tile, scores_RB[:, :middle], ties_B[:middle])
            self.add(tile, scores_RB[:, middle:], ties_B[middle:])

    def add_some(self, tile: slice, hits: Tensor, scores_H: Tensor, ties_B: Tensor) -> bool:
        """Takes those scores of a tile that reach the floor; False, and none taken, if there is no room for all.

        Args:
            hits: their flat positions, ascending.
        """
        for _ in range(2):
            high_H = scores_H >= self.floor_Q[tile][hits // len(ties_B)]
            if self._put(tile, hits[high_H], scores_H[high_H], ties_B):
                return True
            self._cut(tile)
        return False

    def _take(self, tile: slice, scores_RB: Tensor, ties_B: Tensor) -> bool:
        """Puts the scores that reach the floor into the buffer, as keys; False if a row has no room for its own."""
        hits = reaching(scores_RB, self.floor_Q[tile])
        if len(hits) > self.keys_QW[tile].numel():
            return False
        return self._put(tile, hits, scores_RB.take(hits), ties_B)

    def _put(self, tile: slice, hits: Tensor, scores_H: Tensor, ties_B: Tensor) -> bool:
        """Puts scores at such positions of a tile into the buffer; False if a row has no room for its own."""
        keys_RW, filled_R = self.keys_QW[tile], self.filled_Q[tile]
        row_R = torch.arange(len(filled_R), device=hits.device)
        first_R = torch.searchsorted(hits, row_R * len(ties_B))  # hits come row by row
        count_R = torch.diff(first_R, append=first_R.new_tensor([len(hits)]))
        fullest = int((filled_R + count_R).amax())
        if fullest > self.width:
            return False
        slot_R = row_R * self.width + filled_R - first_R
        slots = torch.arange(len(hits), device=hits.device) + slot_R.repeat_interleave(count_R)
        columns = hits - (row_R * len(ties_B)).repeat_interleave(count_R)
        keys_RW.view(-1)[slots] = pack(scores_H, ties_B[columns])
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


def reaching(scores_RB: Tensor, floor_R: Tensor, most: float = math.inf) -> Tensor:
    """Flat positions of the scores that reach their row's floor, ascending; not all of them if they are over `most`.

    On a CPU numpy is several times faster than torch, and takes a few rows at a time, whose mask stays in the cache.
    """
    if scores_RB.device.type != "cpu":
        return (scores_RB >= floor_R[:, None]).flatten().nonzero()[:, 0]
    scores, floor, columns = scores_RB.numpy(), floor_R[:, None].numpy(), scores_RB.shape[1]
    starts = range(0, len(scores), _ROWS_AT_ONCE)
    parts = [slice(start, start + _ROWS_AT_ONCE) for start in starts]
    hits, found = [], 0
    for part in parts:
        hits.append(np.flatnonzero(scores[part] >= floor[part]) + part.start * columns)
        found += len(hits[-1])
        if found > most:
            break
    return torch.from_numpy(np.concatenate(hits))


def highest(scores_RB: Tensor, k: int) -> Tensor:
    """The k best scores of each row, (R, k), the k-th first.

    On a CPU numpy partitions several times faster than torch selects.
    """
    if scores_RB.device.type == "cpu":
        scores = scores_RB.numpy()
        found = np.empty((len(scores), k), dtype=scores.dtype)
        for row, of_row in zip(scores, found, strict=True):  # a copy of one row at a time
            of_row[:] = np.partition(row, -k)[-k:]
        return torch.from_numpy(found)
    return scores_RB.topk(k, dim=1).values.flip(1)
