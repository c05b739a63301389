"""Group Relative Policy Optimisation of depth routers.

As in Shao et al. 2024 (DeepSeekMath) and TRL. For each text the old policy samples G actions a_g (depths), each gets a
reward r_g, and

    advantage  A_g = (r_g - mean(r)) / (std(r) + 1e-4)          (unbiased std, no value network)
    ratio      rho_g = pi(a_g) / pi_old(a_g)
    loss       -mean[min(rho A, clip(rho, 1 - eps, 1 + eps) A)] + beta KL(pi || pi_ref)

where pi_ref is uniform, or a slow copy of the policy (`grpo_reference`).

Departures, because an action is one of D depths and not a sequence of tokens: KL is the exact sum over the D depths,
not an estimate from samples; a text has one action for each layer, head and token; ratio, clipping and KL are computed
for each action, with the text's advantage, and averaged.

One step (`GRPOLearner.step`):
1. Rollouts, in evaluation mode without gradients: G depths of each query against the passages of the batch, and G
   depths of each positive against its query. The reward measures the positive's score among the batch's candidates
   (`maw.training.router.rollout`). Only the first `grpo_share` of a batch, which is a random part of the texts, gets
   rollouts: they cost more than the encoder's update. Negatives get no policy gradient.
2. The routers alone are updated `grpo_inner_epochs` times from the stored states, depths and old log-probabilities.

With `grpo_group="all"` a group holds every depth once, and expectations under the old policy replace means over
samples: the same objective without sampling noise, for D forward
passes. The advantage is then (r_d - sum_d pi_old(d) r_d) / (std(r) + 1e-4), where std is over depths and unweighted:
std stays above zero even when the policy nearly always picks one depth. `grpo_group="distinct"` is the same for G
passes: G different depths, each with a weight in place of pi_old (`maw.training.router.distinct`). Both are possible
with one depth for each text: one MAW layer, routed by sequence. Where a text has several (heads, tokens, layers),
samples of a group differ in all of them, and groups are sampled.

Two terms against collapse can be added to the loss: `router_balance` times KL(mean policy of the batch || uniform),
and the amount by which a policy's entropy is below `router_entropy_floor`.

Letters: B texts, G samples, K passages in the bank, C embedding size, D depths; h is 1 or H and t is 1 or T, as the
router decides.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from maw.attention.noise import gumbel_argmax, noise_keys, uniform_noise
from maw.config.tier1_config import Tier1Config, group_kind, group_share
from maw.evaluation.reward import ZERO_VARIANCE
from maw.runtime.devices import to_device
from maw.training.contrastive import Batch
from maw.training.router.distinct import distinct_weights, draw_distinct
from maw.training.router.learner import RouterLearner
from maw.training.router.rollout import Embedded, Rollout, embed_greedy
from maw.training.state import State

ADVANTAGE_EPSILON = 1e-4
MOST_LOG_RATIO = 20.0
"""Largest log-ratio of new to old probability, far above the clipping; an infinite ratio times a share of 0 is NaN."""
FLAT = 0.005
"""A group whose rewards have a smaller standard deviation by the loss's weights is flat."""
SIDES = ("query", "document")


def group_advantages(reward_BG: Tensor, share_BG: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Advantages within each text's group, (B, G), and whether the group's rewards differ, (B,).

    The advantages of a group with equal rewards are exactly zero.

    Args:
        reward_BG: reward of each sample or, with `share_BG`, of each depth.
        share_BG: weight of each depth (`Rollout.share_BG`); None for samples, which have equal weights.

    Raises:
        ValueError: groups of fewer than two samples.
    """
    if share_BG is None and reward_BG.shape[1] < 2:
        raise ValueError(f"a group needs at least 2 samples, got {reward_BG.shape[1]}")
    expected, _ = weighted_moments(reward_BG, share_BG)
    std = reward_BG.std(1, unbiased=True, keepdim=True)
    varied = std > ZERO_VARIANCE
    advantage = (reward_BG - expected) / (std + ADVANTAGE_EPSILON)
    return torch.where(varied, advantage, 0), varied[:, 0]


def weighted_moments(reward_BG: Tensor, share_BG: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each group by the loss's weights of its samples, (B, 1) each; None: equal."""
    share_BG = torch.ones_like(reward_BG) if share_BG is None else share_BG
    share_BG = share_BG / share_BG.sum(1, keepdim=True).clamp(min=torch.finfo(share_BG.dtype).tiny)
    mean = (share_BG * reward_BG).sum(1, keepdim=True)
    return mean, (share_BG * (reward_BG - mean) ** 2).sum(1, keepdim=True).sqrt()


@dataclass(frozen=True)
class PolicyLoss:
    """The loss to minimise and its statistics, all 0-dimensional."""

    loss: Tensor
    kl: Tensor
    clip_fraction: Tensor


def grpo_loss(
    log_policy: Tensor,
    old_log_prob: Tensor,
    action: Tensor,
    advantage_BG: Tensor,
    log_reference: Tensor,
    *,
    clip: float,
    beta: float,
    weight: Tensor | None = None,
    share_BG: Tensor | None = None,
) -> PolicyLoss:
    """The clipped objective over the actions of one layer.

    Args:
        log_policy: the policy's current log-probabilities, (B, 1 or G, h, t, D).
        old_log_prob: the old policy's log-probability of the action, (B, G, h, t).
        action: sampled depth, int64 (B, G, h, t).
        advantage_BG: advantage of all actions of a sample.
        log_reference: the reference policy's log-probabilities, broadcastable to `log_policy`.
        clip: epsilon.
        beta: weight of KL(policy || reference).
        weight: weight of each action, broadcastable to (B, G, h, t); 0 for padding.
        share_BG: weight of each sample's gain (`Rollout.share_BG`); None for equal weights, 1 / G.
    """
    weight = torch.ones_like(old_log_prob) if weight is None else weight.expand_as(old_log_prob)
    log_policy = log_policy.expand(*action.shape, -1)
    log_prob = log_policy.gather(-1, action[..., None]).squeeze(-1)
    ratio = (log_prob - old_log_prob).clamp(max=MOST_LOG_RATIO).exp()
    advantage = advantage_BG[:, :, None, None]
    gain = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    kl = (log_policy.exp() * (log_policy - log_reference)).sum(-1)
    clipped = ((ratio < 1 - clip) & (advantage < 0)) | ((ratio > 1 + clip) & (advantage > 0))
    return PolicyLoss(
        loss=beta * _sample_mean(kl, weight) - _sample_mean(gain, weight, share_BG),
        kl=_sample_mean(kl, weight).detach(),
        clip_fraction=_sample_mean(clipped.float(), weight, share_BG),
    )


def _mean(sides: Sequence[Sequence[dict[str, Tensor]]], name: str) -> Tensor:
    """The mean of a term over all layers of some sides."""
    return torch.stack([terms[name] for layers in sides for terms in layers]).mean()


def _sample_mean(value: Tensor, weight: Tensor, share_BG: Tensor | None = None) -> Tensor:
    """Mean over the actions of each sample, then over samples, so that texts count alike whatever their length."""
    mean_BG = (value * weight).sum((2, 3)) / weight.sum((2, 3))
    return mean_BG.mean() if share_BG is None else (mean_BG * share_BG).sum(1).mean()


def collapse_penalty(log_policy: Tensor, weight: Tensor, *, balance: float, entropy_floor: float) -> Tensor:
    """Penalty against unused depths, added to a router's loss, 0-dimensional.

    Args:
        log_policy: (B, 1 or G, h, t, D).
        weight: weight of each action, broadcastable to (B, 1 or G, h, t).
        balance: weight of KL(mean policy of each head over the batch || uniform).
        entropy_floor: entropy in nats; the penalty includes the amount by which a policy's entropy is below it.
    """
    policy = log_policy.exp()
    weight = weight[:, : log_policy.shape[1]].expand(log_policy.shape[:-1])[..., None]
    mean_hD = (policy * weight).sum((0, 1, 3)) / weight.sum((0, 1, 3))
    mean_hD = mean_hD.clamp(min=torch.finfo(mean_hD.dtype).tiny)  # the gradient of x log x has no value at zero
    divergence = math.log(policy.shape[-1]) + (mean_hD * mean_hD.log()).sum(-1).mean()
    entropy = -(policy * log_policy).sum(-1)
    return balance * divergence + _sample_mean((entropy_floor - entropy).clamp(min=0), weight[..., 0])


class GRPOLearner(RouterLearner):
    """Trains `grpo` routers on the rewards of their sampled depths.

    Args: as `RouterLearner`.
    """

    def __init__(self, encoder: nn.Module, engine: nn.Module, config: Tier1Config, temperature: float):
        super().__init__(encoder, engine, config, temperature)
        self.reference = copy.deepcopy(self.routers).requires_grad_(False)

    def state_dict(self) -> State:
        return super().state_dict() | {"reference": dict(self.reference.state_dict())}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self.reference.load_state_dict(state["reference"])

    def step(
        self,
        queries: Mapping[str, Tensor],
        passages: Mapping[str, Tensor],
        batch: Batch,
        step: int,
        bank_KC: Tensor | None = None,
        embedded: Embedded | None = None,
    ) -> tuple[Rollout, Rollout, dict[str, Tensor]]:
        """Samples depths, computes their rewards and updates the routers.

        Args:
            embedded: the batch as the encoder's update embeds it; None: at greedy depths.

        Returns:
            The queries' rollout and the positives' rollout, for the encoder's update; and statistics (0-dimensional
            tensors): means of both sides, and those of each side with the prefix "query_" or "document_".
        """
        config = self.config
        embedded = embedded or embed_greedy(self.engine, queries, passages)
        count = math.ceil(group_share(config) * len(batch.queries))
        index = to_device(torch.from_numpy(batch.queries[:count]), batch.candidate_mask.device)
        kind = group_kind(config, len(self.routers))
        samples = config.grpo_group_size if kind == "sampled" else 1
        keys = [noise_keys(config.seed, step, index, samples, stream) for stream in (0, 1)]
        options = None
        if kind == "sampled":
            options = [{"keys": each} for each in keys]
        elif kind == "distinct":
            sides = (embedded.query_states, embedded.positive_states)
            options = [{"depths": [self._drawn(each[0][:count], key)]} for each, key in zip(sides, keys, strict=True)]
        rollouts = self._rollouts(queries, passages, batch, bank_KC, embedded, options, count)
        with torch.no_grad():
            for rollout, key_BG in zip(rollouts, keys, strict=True):
                self._remember(rollout, key_BG)
        statistics = self._update(rollouts)
        if config.grpo_reference == "slow":
            with torch.no_grad():
                for slow, fast in zip(self.reference.parameters(), self.routers.parameters(), strict=True):
                    slow.lerp_(fast, 1 - config.grpo_reference_decay)
        return *rollouts, statistics

    @torch.no_grad()
    def _drawn(self, state: Tensor, key_B1: Tensor) -> Tensor:
        """A group of different depths for each text, (B, G, 1, 1), from the states of the only MAW layer."""
        log_policy_BD = self.engine({"states": [state]}, mode="policy")[0][:, 0, 0, 0]
        noise_BD = uniform_noise(key_B1, 0, 1, 1, log_policy_BD.shape[1])[:, 0, 0, 0]
        size, exploration = self.config.grpo_group_size, self.config.grpo_exploration
        return draw_distinct(log_policy_BD, noise_BD, size, exploration)[..., None, None]

    def _remember(self, rollout: Rollout, key_BG: Tensor) -> None:
        """Adds the old policy's log-probabilities and, if depths differ, their weights and one depth drawn by them."""
        policies = self.engine({"states": rollout.states}, mode="policy")
        rollout.old_log_prob = [
            p.expand(*a.shape, -1).gather(-1, a[..., None]).squeeze(-1)
            for p, a in zip(policies, rollout.depths, strict=True)
        ]
        kind = group_kind(self.config, len(self.routers))
        if kind == "sampled":
            return
        rollout.share_BG = rollout.old_log_prob[0][:, :, 0, 0].exp()
        if kind == "distinct":
            policy_BD, depths_BG = policies[0][:, 0, 0, 0], rollout.depths[0][:, :, 0, 0]
            rollout.share_BG = distinct_weights(policy_BD, depths_BG, self.config.grpo_exploration)
        # The numbers of layer 0 have drawn the group, so those of layer 1 draw from it.
        noise = uniform_noise(key_BG, int(kind == "distinct"), 1, 1, rollout.share_BG.shape[1])[:, 0, 0, 0]
        rollout.drawn_B = gumbel_argmax(rollout.share_BG.log(), noise)

    def _update(self, rollouts: Sequence[Rollout]) -> dict[str, Tensor]:
        """Updates the routers from the rollouts; the states are detached, so only routers get gradients."""
        advantages = [group_advantages(rollout.reward_BG, rollout.share_BG) for rollout in rollouts]
        rewards = torch.cat([rollout.reward_BG for rollout in rollouts])
        for _ in range(self.config.grpo_inner_epochs):
            sides = [self._terms(rollout, each) for rollout, (each, _) in zip(rollouts, advantages, strict=True)]
            loss = _mean(sides, "loss") + _mean(sides, "penalty")
            self._step(loss, rewards)
        spreads = [weighted_moments(rollout.reward_BG, rollout.share_BG)[1] for rollout in rollouts]
        by_side = [
            {name: _mean([layers], name) for name in ("kl", "clip_fraction", "policy_entropy")}
            | {
                "reward_mean": rollout.reward_BG.mean(),
                "reward_std": rollout.reward_BG.std(1).mean(),
                "zero_variance_share": 1 - varied.float().mean(),
                "weighted_reward_std": spread.mean(),
                "flat_group_share": (spread < FLAT).float().mean(),
            }
            for layers, rollout, (_, varied), spread in zip(sides, rollouts, advantages, spreads, strict=True)
        ]
        both = {name: torch.stack([each[name] for each in by_side]).mean() for name in by_side[0]}
        apart = {
            f"{side}_{name}": value for side, each in zip(SIDES, by_side, strict=True) for name, value in each.items()
        }
        return {"router_loss": loss.detach()} | both | apart

    def _terms(self, rollout: Rollout, advantage: Tensor) -> list[dict[str, Tensor]]:
        """Terms of the routers' loss, and statistics without gradient, of each MAW layer; all 0-dimensional."""
        found = []
        policies = (self.engine({"states": each}, mode="policy") for each in (rollout.states, rollout.batch_states))
        for layer, (log_policy, log_batch) in enumerate(zip(*policies, strict=True)):
            grpo = grpo_loss(
                log_policy,
                rollout.old_log_prob[layer],
                rollout.depths[layer],
                advantage,
                self._log_reference(rollout, layer),
                clip=self.config.grpo_clip,
                beta=self.config.grpo_kl,
                weight=rollout.weight(layer),
                share_BG=rollout.share_BG,
            )
            # No reward is needed for these: all texts of the batch count, also those without a group.
            weight = rollout.batch_weight(layer)
            penalty = collapse_penalty(
                log_batch, weight, balance=self.config.router_balance, entropy_floor=self.config.router_entropy_floor
            )
            entropy = _sample_mean(-(log_batch.exp() * log_batch).sum(-1).detach(), weight)
            found.append(vars(grpo) | {"penalty": penalty, "policy_entropy": entropy})
        return found

    @torch.no_grad()
    def _log_reference(self, rollout: Rollout, layer: int) -> Tensor:
        """The reference policy's log-probabilities in one layer."""
        if self.config.grpo_reference == "uniform":
            num_depths = self.routers[layer].num_depths
            return -torch.full((), float(num_depths), device=rollout.reward_BG.device).log()
        return self.reference[layer].logits(rollout.states[layer]).log_softmax(-1)
