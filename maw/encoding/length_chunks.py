"""Splits a batch into chunks of texts of similar length.

A random training batch is mostly padding, and with G samples of each text the states of one layer exceed a processor's
caches. Texts are independent inside an encoder, so `LengthChunks` sorts a batch by length, splits it by a budget of
tokens, removes padding, and restores the order of the results. On a GPU one large call is faster, so batches stay
whole.

Letters: B texts, G samples of each text, T tokens; h is 1 or H and t is 1 or T, as the router decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maw.models.batching import CPU_TOKENS, chunk_sizes, padded_length

_BY_TOKEN = ("input_ids", "attention_mask", "hidden")


class LengthChunks(nn.Module):
    """Wraps an encoder, or a parallel wrapper of one, and is called like it.

    `tokens` is the most tokens of a chunk, samples included; a longer text is a chunk of its own.
    """

    def __init__(self, engine: nn.Module, tokens: int = CPU_TOKENS):
        super().__init__()
        self.engine, self.tokens = engine, tokens
        self.train(engine.training)  # a new module starts in training mode

    def forward(
        self,
        inputs: Mapping[str, Any],
        mode: str = "embed",
        *,
        depths: Sequence[Tensor] | None = None,
        keys: Tensor | None = None,
    ) -> Any:
        """As the encoder's own forward."""
        if mode not in ("embed", "group") or inputs["attention_mask"].device.type != "cpu":
            return self.engine(inputs, mode, **_given(depths, keys))
        lengths = inputs["attention_mask"].sum(1)
        samples = 1 if keys is None and depths is None else (depths[0] if depths else keys).shape[1]
        order = lengths.argsort(stable=True)
        parts = []
        for rows in order.split(chunk_sizes((lengths[order] * samples).numpy(), self.tokens)):
            longest = padded_length(int(lengths[rows].max()))
            chunk = {n: each[rows, :longest] if n in _BY_TOKEN else each[rows] for n, each in inputs.items()}
            own = None if depths is None else [each[rows, ..., :longest] for each in depths]  # :longest keeps t = 1
            parts.append(self.engine(chunk, mode, **_given(own, None if keys is None else keys[rows])))
        order, tokens = order.argsort(), inputs["attention_mask"].shape[1]
        joined = {}
        for name, first in parts[0].items():
            found = [part[name] for part in parts]
            if isinstance(first, list):
                joined[name] = [_joined(layer, order, tokens) for layer in zip(*found, strict=True)]
            else:
                joined[name] = torch.cat(found)[order]
        return joined


def _given(depths: Any, keys: Any) -> dict[str, Any]:
    """The arguments that are not None: a baseline's encoder accepts neither."""
    return {name: each for name, each in (("depths", depths), ("keys", keys)) if each is not None}


def _joined(parts: Sequence[Tensor], order: Tensor, tokens: int) -> Tensor:
    """Depths (B, G, h, t) or states (B, G, h, t, F) of all chunks; if t is T, zeros stand for padding."""
    if any(part.shape[3] > 1 for part in parts):
        behind = 0 if parts[0].dim() == 4 else 2
        parts = [F.pad(part, (0,) * behind + (0, tokens - part.shape[3])) for part in parts]
    return torch.cat(parts)[order]
