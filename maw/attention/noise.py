"""Random numbers for routing: the same for a text in any batch, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

# The finaliser of SplitMix64 (Steele, Lea and Flood 2014), the constants as signed 64-bit integers.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)


def mix64(value: Tensor) -> Tensor:
    """A bijective hash of int64 tensors, the same on every device (integer arithmetic that wraps)."""
    value = value + _GOLDEN
    value = (value ^ _shift_right(value, 30)) * _FIRST
    value = (value ^ _shift_right(value, 27)) * _SECOND
    return value ^ _shift_right(value, 31)


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical shift: PyTorch's own keeps the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def noise_keys(seed: int, step: int, index_B: Tensor, samples: int, stream: int = 0) -> Tensor:
    """One int64 key for each sample of each text, (B, G).

    Args:
        index_B: row of each text in the training data, whatever batch and replica hold it.
        stream: tells apart texts that share an index, such as queries (0) and passages (1).
    """
    start = mix64(torch.full_like(index_B, seed))  # else seed 42, stream 1 would be seed 43, stream 0
    for part in (stream, step):
        start = mix64(start ^ part)
    per_text = mix64(start ^ index_B)
    return mix64(per_text[:, None] ^ torch.arange(samples, device=index_B.device))


def text_keys(input_ids_BT: Tensor, padding_BT: Tensor) -> Tensor:
    """A hash of each text's tokens, int64 (B, 1), that padding does not change."""
    positions = torch.arange(input_ids_BT.shape[1], device=input_ids_BT.device)
    token_hash = mix64(mix64(input_ids_BT.long()) ^ positions) * padding_BT.long()
    return mix64(token_hash.sum(-1))[:, None]


def uniform_noise(keys_BG: Tensor, layer: int, heads: int, tokens: int, depths: int = 1) -> Tensor:
    """Uniform numbers in the open interval (0, 1), float32 (B, G, h, t, depths), for one MAW layer.

    Numbers are counted token by token, so those of a token do not depend on how far its text is padded.
    """
    counter = torch.arange(tokens * heads * depths, device=keys_BG.device)
    keys = mix64(keys_BG ^ mix64(torch.full_like(keys_BG, layer)))
    bits = _shift_right(mix64(keys[..., None] ^ counter), 41)  # 23 bits: with 24, float32 rounds the largest up to 1
    return ((bits.float() + 0.5) * 2.0**-23).unflatten(-1, (tokens, heads, depths)).transpose(2, 3)


def gumbel_argmax(logits: Tensor, noise: Tensor) -> Tensor:
    """A draw from softmax(logits) over the last dimension: argmax(logits + Gumbel noise).

    Args:
        noise: uniform in (0, 1), broadcastable to the logits.
    """
    return (logits - torch.log(-torch.log(noise))).argmax(-1)
