"""Groups of different depths: draws without replacement, and the weights that make them an estimate over all depths.

A group of samples of a sharp policy holds one depth many times and says nothing. Here a group S holds G different
depths, drawn one after the other, each in proportion to q among those that are left:

    q(d) = (1 - x) pi_old(d) + x / D            (x: `grpo_exploration`)

The G largest of log q(d) + Gumbel noise are such a draw (Vieira 2014). The weight of a depth s of S is

    w(s) = pi_old(s) R(S, s),    R(S, s) = P(S | s is drawn first) / P(S)

(the unordered set estimator of Kool, van Hoof and Welling 2020, "Estimating gradients for discrete random variables
by sampling without replacement", with pi_old for q before R). P(S) counts every order of S. For a depth s the sum of
P(S) R(S, s) = P(S | s is drawn first) over all groups is one, so the mean over groups of sum_s w(s) f(s) is
sum_d pi_old(d) f(d), for every f that does not depend on the group. With G = D each R is 1 and w = pi_old: the group
`all`. The weights of a group sum to one on average, and exactly if x = 0 or G = D.

The advantage does depend on the group: by its mean m, weighted by w, and its standard deviation. Let W be
sum_s w(s) grad rho(s), whose mean is zero. The mean m costs -Cov(m, W), at most sd(m) sd(W), and nothing if G = D.
With a uniform policy it shrinks the gradient to (1 - 1/G) D / (D - 1) of that of `all`. The standard deviation only
scales a group's gradient, and costs at most the spread of that scale times the size of the gradient. Plain samples
have the same two biases. Their error is larger: with 32 depths, groups of 8 and a policy of 0.06 nats by 27 times
(`tests/training/test_distinct.py` has 6 depths and groups of 3).

R as an integral: depth d arrives at a time that is exponential with rate q(d), and the first G arrivals are the draw.
With a(s) = q(s) / (q of all depths outside S) and y the time of the first arrival outside S, in units of its mean,

    P(S) = integral over y of e^-y prod_s (1 - e^(-a(s) y)),    and R leaves the factor of s out above.

In x = log y the integrand is smooth and dies out on both sides, so the trapezoidal rule converges exponentially.

Letters: B texts, G depths of a group, D depths, N nodes of the rule.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LEFT = -18.0  # log y: below it is less than 1e-7 of the integral, since the integrand grows at least like y


def proposal(log_policy_BD: Tensor, exploration: float) -> Tensor:
    """The distribution q that groups are drawn from, (B, D)."""
    share = (1 - exploration) * log_policy_BD.exp() + exploration / log_policy_BD.shape[1]
    return share.clamp(min=torch.finfo(share.dtype).tiny)


def draw_distinct(log_policy_BD: Tensor, noise_BD: Tensor, size: int, exploration: float) -> Tensor:
    """Different depths of each text in the order of their draws, int64 (B, size); the noise is uniform in (0, 1)."""
    log_share_BD = proposal(log_policy_BD, exploration).log()
    return (log_share_BD - torch.log(-torch.log(noise_BD))).topk(size, dim=1).indices


def distinct_weights(log_policy_BD: Tensor, depths_BG: Tensor, exploration: float) -> Tensor:
    """The weight w of each depth of groups from `draw_distinct`, (B, G)."""
    share_BD = proposal(log_policy_BD, exploration)
    outside_B1 = share_BD.scatter(1, depths_BG, 0).sum(1, keepdim=True).clamp(min=torch.finfo(share_BD.dtype).tiny)
    size = depths_BG.shape[1]
    step = 0.5 / math.sqrt(size + 4)  # the peak is as narrow as that of y^G e^-y, and lies near G or below
    right = math.log(size + 12 * math.sqrt(size) + 40)
    log_y_N = torch.arange(_LEFT, right, step, dtype=share_BD.dtype, device=share_BD.device)
    arrived_BGN = (share_BD.gather(1, depths_BG) / outside_B1)[..., None] * log_y_N.exp()
    log_factor_BGN = torch.log(-torch.expm1(-arrived_BGN.clamp(min=torch.finfo(share_BD.dtype).tiny)))
    log_whole_B1N = log_factor_BGN.sum(1, keepdim=True) + log_y_N - log_y_N.exp()
    log_ratio_BG = (log_whole_B1N - log_factor_BGN).logsumexp(-1) - log_whole_B1N.logsumexp(-1)
    return (log_policy_BD.gather(1, depths_BG) + log_ratio_BG).exp()
