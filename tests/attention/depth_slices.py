"""The slice of the 5-D attention tensor at a depth, and the attention output of that slice, by the definition."""

from __future__ import annotations


def select_depth(attn_BHQKD, depth):
    """The slice of the 5-D tensor at a depth, int64 (B, h, t): (B, H, Q, K)."""
    batch, heads, queries, keys, _ = attn_BHQKD.shape
    index = depth[..., None, None].expand(batch, heads, queries, keys, 1)
    return attn_BHQKD.gather(-1, index).squeeze(-1)


def mix_depth(attn_BHQKD, value, depth):
    """The attention output (B, H, Q, E) at a depth, int64 (B, h, t), from `MAWAttentionLayer.reference`."""
    if value.ndim == 5:  # (B, H, K, D, E); t is 1, because all query tokens read the same values
        batch, heads, keys, _, size = value.shape
        value = value.gather(3, depth[..., None, None].expand(batch, heads, keys, 1, size)).squeeze(3)
    return select_depth(attn_BHQKD, depth) @ value.to(attn_BHQKD.dtype)
