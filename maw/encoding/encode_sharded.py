"""Encodes texts in several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from maw.errors import NotFiniteError
from maw.models.encode import Embeddings, check_finite, encode, in_memory
from maw.models.tokenized import Batch, Source
from maw.runtime import distributed

_ROWS_AT_ONCE = 16_384


def encode_sharded(
    encoder: nn.Module,
    source: Source,
    *,
    place: Callable[[tuple[int, ...]], np.ndarray],
    label: str | None = None,
    **options: Any,
) -> Embeddings:
    """As `maw.models.encode.encode`; every process encodes a share of the texts and gets all embeddings.

    Raises:
        NotFiniteError: an embedding of some process is not finite; every process raises it.
    """
    count = distributed.this_process().count
    if not distributed.is_distributed() or len(source) < count:
        return encode(encoder, source, place=place, label=label, **options)
    order = np.argsort(-source.lengths(), kind="stable")
    shares = [order[rank::count] for rank in range(count)]
    found, error = None, None
    try:
        found = encode(encoder, Share(source, shares[distributed.this_process().rank]), label=label, **options)
    except NotFiniteError as wrong:
        error = wrong
    failed, cut = distributed.any_process(error is not None, found is not None and found.cut)
    if failed:
        raise error or NotFiniteError(f"{label or 'encoding'}: an embedding of another process is not finite")
    whole_NC = _gather_texts(found.embeddings, shares, place)
    check_finite(whole_NC, label)  # again: `place` may have made a narrower array
    share_NMD = None if found.depth_share is None else _gather_texts(found.depth_share, shares, in_memory)
    return Embeddings(whole_NC, share_NMD, cut=cut)


class Share:
    """The source of some `rows` of another source."""

    def __init__(self, source: Source, rows: np.ndarray):
        self.source, self.rows = source, rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def cut(self) -> bool:
        """As `Source.cut`."""
        return self.source.cut

    def lengths(self) -> np.ndarray:
        """Lengths to sort texts by, (N,)."""
        return self.source.lengths()[self.rows]

    def batches(self, order: np.ndarray, size: int, budget: int | None) -> Iterator[Batch]:
        """As `TextSource.batches`."""
        position = np.full(len(self.source), -1, dtype=np.int64)
        position[self.rows] = np.arange(len(self.rows))
        for rows, inputs in self.source.batches(self.rows[order], size, budget):
            yield position[rows], inputs


def _gather_texts(
    own: np.ndarray, shares: Sequence[np.ndarray], place: Callable[[tuple[int, ...]], np.ndarray]
) -> np.ndarray:
    """Gathers the rows of all processes, (N, ...), in blocks, so that few rows are in memory twice."""
    whole = place((sum(map(len, shares)), *own.shape[1:]))
    for start in range(0, len(shares[0]), _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, len(shares[0]))  # no share is longer than the first
        part = np.zeros((stop - start, *own.shape[1:]), dtype=whole.dtype)
        mine = own[start:stop]
        with np.errstate(over="ignore"):
            part[: len(mine)] = mine
        for rows, got in zip(shares, distributed.gathered(torch.from_numpy(part)), strict=True):
            rows = rows[start:stop]
            whole[rows] = got[: len(rows)].numpy()
    return whole
