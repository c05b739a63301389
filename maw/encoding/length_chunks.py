"""A batch run as chunks of texts of like length.

A random training batch is mostly padding, and with G routings of each text one layer's intermediate states no longer
fit a processor's caches. Texts do not see each other inside an encoder, so a batch may be cut at will: `LengthChunks`
sorts it by length, cuts it by a budget of tokens, leaves out what only other chunks needed as padding, and puts the
results back in order. On a GPU, where one large call is faster than several small ones, batches stay whole.

Letters: B texts, G samples of each text, T tokens; h is 1 or H and t is 1 or T by routing.
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
    """Stands in front of an encoder, or a parallel wrapper of one, and is called like it.

    Args:
        engine: what computes.
        tokens: most tokens of a chunk, samples included; one text is never cut.
    """

    def __init__(self, engine: nn.Module, tokens: int = CPU_TOKENS):
        super().__init__()
        self.engine, self.tokens = engine, tokens
        self.train(engine.training)  # a new module is in training mode, and what asks for the mode asks this one

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
            picked = None if depths is None else [_cut(each[rows], longest) for each in depths]
            parts.append(self.engine(chunk, mode, **_given(picked, None if keys is None else keys[rows])))
        return _joined(parts, order.argsort(), inputs["attention_mask"].shape[1])


def _given(depths: Any, keys: Any) -> dict[str, Any]:
    """Only what is given: a baseline's encoder knows neither."""
    return {name: each for name, each in (("depths", depths), ("keys", keys)) if each is not None}


def _cut(depth: Tensor, tokens: Tensor) -> Tensor:
    """Picks (B, G, h, t) without those of padding."""
    return depth if depth.shape[3] == 1 else depth[..., :tokens]


def _joined(parts: list[dict[str, Any]], order: Tensor, tokens: int) -> dict[str, Any]:
    joined = {}
    for name, first in parts[0].items():
        each = [part[name] for part in parts]
        if isinstance(first, list):
            joined[name] = [_rows([part[i] for part in each], order, tokens) for i in range(len(first))]
        else:
            joined[name] = torch.cat(each)[order]
    return joined


def _rows(parts: list[Tensor], order: Tensor, tokens: int) -> Tensor:
    """Picks (B, G, h, t) or states (B, G, h, t, F); where tokens are routed, with zeros for padding again."""
    if any(part.shape[3] > 1 for part in parts):
        behind = 0 if parts[0].dim() == 4 else 2
        parts = [F.pad(part, (0,) * behind + (0, tokens - part.shape[3])) for part in parts]
    return torch.cat(parts)[order]
