"""Rewards of router training, computed from the scores of a positive and its competitors."""

from __future__ import annotations

import torch
from torch import Tensor

REWARDS = ("log_prob", "reciprocal_rank", "ndcg")


def task_reward(kind: str, positive_BG: Tensor, others: Tensor) -> Tensor:
    """Reward of the positive's score among the candidates, (B, G): B texts, G samples of each.

    Args:
        kind: "log_prob", log-probability of the positive in the softmax over candidates; "reciprocal_rank"; or
            "ndcg", with the positive as the only relevant candidate.
        positive_BG: score of the positive.
        others: scores of the other candidates, (B, 1 or G, P); -inf for passages that are not candidates.

    Raises:
        ValueError: unknown kind.
    """
    if kind == "log_prob":
        return positive_BG - torch.logaddexp(positive_BG, others.logsumexp(-1))
    rank = 1 + (others > positive_BG[..., None]).sum(-1)
    if kind == "reciprocal_rank":
        return 1 / rank
    if kind == "ndcg":
        return 1 / torch.log2(1 + rank.float())
    raise ValueError(f"reward must be one of {', '.join(REWARDS)}, got {kind!r}")


ZERO_VARIANCE = 1e-6
"""Rewards that differ by less are equal but for rounding."""
