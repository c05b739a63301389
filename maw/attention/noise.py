"""Counter-based random numbers for routing: a text gets the same numbers in any batch and on any device.

Letters: B texts, G samples of each text; h is 1 or H and t is 1 or T, as the router decides.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Constants of SplitMix64's finaliser (Steele, Lea and Flood 2014), as signed 64-bit integers.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)


def mix64(value: Tensor) -> Tensor:
    """SplitMix64's bijective hash of int64 tensors; integer arithmetic that wraps gives the same on every device."""
    value = value + _GOLDEN
    value = (value ^ _shift_right(value, 30)) * _FIRST
    value = (value ^ _shift_right(value, 27)) * _SECOND
    return value ^ _shift_right(value, 31)


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical right shift; PyTorch's own shift keeps the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def noise_keys(seed: int, step: int, index_B: Tensor, samples: int, stream: int = 0) -> Tensor:
    """One int64 key for each sample of each text, (B, G).

    Args:
        index_B: row of each text in the training data, in whatever batch or replica the text is.
        stream: separates texts that share a row, such as queries (0) and passages (1).
    """
    start = mix64(torch.full_like(index_B, seed))  # without it seed 42, stream 1 would equal seed 43, stream 0
    for part in (stream, step):
        start = mix64(start ^ part)
    per_text = mix64(start ^ index_B)
    return mix64(per_text[:, None] ^ torch.arange(samples, device=index_B.device))


def text_keys(input_ids_BT: Tensor, padding_BT: Tensor) -> Tensor:
    """A hash of each text's tokens without padding, int64 (B, 1)."""
    positions = torch.arange(input_ids_BT.shape[1], device=input_ids_BT.device)
    token_hash = mix64(mix64(input_ids_BT.long()) ^ positions) * padding_BT.long()
    return mix64(token_hash.sum(-1))[:, None]


def uniform_noise(keys_BG: Tensor, layer: int, heads: int, tokens: int, num_depths: int = 1) -> Tensor:
    """Uniform numbers in the open interval (0, 1) for one MAW layer, float32 (B, G, h, t, D).

    The counter runs token by token, so a token's numbers do not depend on padding.
    """
    counter = torch.arange(tokens * heads * num_depths, device=keys_BG.device)
    keys = mix64(keys_BG ^ mix64(torch.full_like(keys_BG, layer)))
    bits = _shift_right(mix64(keys[..., None] ^ counter), 41)  # 23 bits: with 24, float32 rounds the largest up to 1
    return ((bits.float() + 0.5) * 2.0**-23).unflatten(-1, (tokens, heads, num_depths)).transpose(2, 3)


def gumbel_argmax(logits: Tensor, noise: Tensor) -> Tensor:
    """Samples from softmax(logits) over the last dimension; `noise` is uniform in (0, 1) and broadcastable."""
    return (logits - torch.log(-torch.log(noise))).argmax(-1)
