"""Leaves padding out of a layer, wherever tokens do not meet.

    tokens = RealTokens(padding_BT)
    with tokens.alone():
        hidden = tokens.put(layer(tokens.take(hidden_BTC), attention_mask))

Linear maps, norms and activations treat each token by itself, so they can run over the real tokens of a batch, as one
row of N tokens. In attention tokens meet: `maw.models.cpu_kernels.attention` puts queries, keys and values back into
their places, and takes the result out again. (ModernBERT, Warner et al. 2024, calls this unpadding.)

Letters: B texts, T tokens of a text with padding, N real tokens of all texts, C hidden size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from torch import Tensor

ROWS = 64
"""N is a multiple of it, because oneDNN compiles a kernel for each number of rows."""
_alone: ContextVar[RealTokens | None] = ContextVar("alone", default=None)


class RealTokens:
    """Where the real tokens of a padded batch are.

    N is their number, rounded up to a multiple of `ROWS` by repetitions of the first, which are not put back.

    Args:
        padding_BT: true or 1 for real tokens, of which there must be one.
    """

    def __init__(self, padding_BT: Tensor):
        real = padding_BT.flatten().bool()
        rows = real.nonzero()[:, 0]
        self.shape = padding_BT.shape
        self.rows = torch.cat([rows, rows[:1].expand(-len(rows) % ROWS)])
        # Padding gets some token's values: any finite value works, because attention and pooling ignore it.
        self.places = (real.cumsum(0) - 1).clamp(min=0)

    @property
    def fewer(self) -> bool:
        """Whether N is smaller than B * T."""
        return len(self.rows) < self.shape.numel()

    def take(self, states_BT: Tensor) -> Tensor:
        """(B, T, ...) to (1, N, ...)."""
        return states_BT.flatten(0, 1).index_select(0, self.rows)[None]

    def put(self, states_1N: Tensor) -> Tensor:
        """(1, N, ...) to (B, T, ...)."""
        return states_1N[0].index_select(0, self.places).unflatten(0, self.shape)

    def put_heads(self, *states_1HNE: Tensor) -> tuple[Tensor, ...]:
        """(1, H, N, E) to (B, H, T, E), each."""
        texts, heads = self.shape[0], states_1HNE[0].shape[1]
        head_H1 = torch.arange(heads, device=self.places.device)[:, None]
        rows = (self.places.view(texts, 1, -1) * heads + head_H1).flatten()
        by_token = (each.transpose(1, 2).flatten(0, 2) for each in states_1HNE)  # rows of one head of one token
        return tuple(each.index_select(0, rows).view(texts, heads, self.shape[1], -1) for each in by_token)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """In the block attention gets its states from `take`, and gives its result so; for this thread alone."""
        token = _alone.set(self)
        try:
            yield
        finally:
            _alone.reset(token)


def tokens_alone() -> RealTokens | None:
    """The tokens of the block `RealTokens.alone`; None outside of such a block."""
    return _alone.get()
