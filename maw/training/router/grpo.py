"""Group Relative Policy Optimisation of depth routers.

As in Shao et al. 2024 (DeepSeekMath) and TRL: for each text sample G routings of the *same* text from the old policy,
reward each, and

    advantage  A_g = (r_g - mean(r)) / (std(r) + 1e-4)          (unbiased std, no value network)
    ratio      rho_g = pi(a_g) / pi_old(a_g)
    loss       -mean[min(rho A, clip(rho, 1 - eps, 1 + eps) A)] + beta KL(pi || pi_ref)

Departures, all because an action here is one of D depths rather than a sequence of tokens: KL is summed exactly over
the D depths instead of estimated from samples; a text's actions factorise over layers, heads and tokens, and ratio,
clipping and KL are taken for each of these decisions, with the text's advantage shared, and averaged.

A step, before the encoder is updated (`GRPOLearner.step`):
1. In evaluation mode and without gradient: passages at their greedy depth, G routings of each query; queries at their
   greedy depth, G routings of each positive. The reward is how well the positive then does among the candidates of
   the batch (`maw.training.router.rollout`). Negatives get no policy gradient.
2. The routers' states, the picks and the old log-probabilities are kept, and replayed `grpo_inner_epochs` times to
   update the routers alone.
3. The picks are handed to the encoder's update.

With `grpo_group="all"`, or "auto" where there are no more depths than samples, a group is every depth once instead of
G samples, and means over samples become expectations under the old policy: the same objective without sampling noise,
as D forward passes can afford it. Advantages then are (r_d - sum_d pi_old(d) r_d) / (std(r) + 1e-4), with the plain
std over depths, which stays away from zero when the policy is sharp: a sharp policy's samples are all alike, and their
group says nothing. It is for one decision a text: one MAW layer, routed by sequence.

Two terms against collapse may be added to the loss: `router_balance` times KL(mean policy of the batch || uniform),
and how far the entropy of a policy lies below `router_entropy_floor`.

Letters: B texts, G samples, K passages in the bank, C embedding size, D depths; h is 1 or H and t is 1 or T by
routing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from maw.attention.noise import gumbel_argmax, noise_keys, uniform_noise
from maw.config.tier1_config import Tier1Config, group_is_exact
from maw.evaluation.reward import ZERO_VARIANCE
from maw.runtime.devices import to_device
from maw.training.contrastive import Batch
from maw.training.router.learner import RouterLearner
from maw.training.router.rollout import Rollout, try_routings
from maw.training.state import State

ADVANTAGE_EPSILON = 1e-4
MOST_LOG_RATIO = 20.0
"""Of new to old probability: far above where clipping acts. Infinite, times a share of zero, it would be no number."""
SIDES = ("query", "document")


def group_advantages(reward_BG: Tensor) -> tuple[Tensor, Tensor]:
    """Advantages within each text's group, (B, G), and whether the group's rewards differ at all, (B,).

    A group without variance says nothing on which pick is better: its advantages are exactly zero.

    Raises:
        ValueError: groups of fewer than two samples.
    """
    if reward_BG.shape[1] < 2:
        raise ValueError(f"a group needs at least 2 samples, got {reward_BG.shape[1]}")
    std = reward_BG.std(1, unbiased=True, keepdim=True)
    varied = std > ZERO_VARIANCE
    advantage = (reward_BG - reward_BG.mean(1, keepdim=True)) / (std + ADVANTAGE_EPSILON)
    return torch.where(varied, advantage, 0), varied[:, 0]


def expected_advantages(reward_BD: Tensor, share_BD: Tensor) -> tuple[Tensor, Tensor]:
    """Advantages of every depth over what the policy expects, (B, D), and whether the rewards differ at all, (B,).

    Args:
        reward_BD: of every depth.
        share_BD: the policy's probability of it.
    """
    std = reward_BD.std(1, unbiased=True, keepdim=True)
    varied = std > ZERO_VARIANCE
    advantage = (reward_BD - (share_BD * reward_BD).sum(1, keepdim=True)) / (std + ADVANTAGE_EPSILON)
    return torch.where(varied, advantage, 0), varied[:, 0]


@dataclass(frozen=True)
class PolicyLoss:
    """The loss to minimise and what it was made of, all 0-dimensional."""

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
    """The clipped objective over the decisions of one layer.

    Args:
        log_policy: log-probability of every depth now, (B, 1 or G, h, t, D).
        old_log_prob: log-probability of the action when it was taken, (B, G, h, t).
        action: depth taken, int64 (B, G, h, t).
        advantage_BG: shared by all decisions of a sample.
        log_reference: the reference policy's log-probabilities, broadcastable to `log_policy`.
        clip: epsilon.
        beta: weight of KL(policy || reference).
        weight: of each decision, broadcastable to (B, G, h, t); padding's decisions weigh nothing.
        share_BG: of each sample in its group, summing to one over G; all alike, if not given.
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
        loss=_sample_mean(beta * kl - gain, weight, share_BG),
        kl=_sample_mean(kl, weight).detach(),
        clip_fraction=_sample_mean(clipped.float(), weight, share_BG),
    )


@dataclass(frozen=True)
class LayerTerms:
    """What one side's texts and one MAW layer add to the routers' loss, all 0-dimensional.

    Attributes:
        grpo: loss, KL and clipping.
        penalty: of `collapse_penalty`.
        entropy: of the policy, in nats; without gradient.
    """

    grpo: PolicyLoss
    penalty: Tensor
    entropy: Tensor


def _mean(sides: Sequence[Sequence[LayerTerms]], value: Callable[[LayerTerms], Tensor]) -> Tensor:
    """The mean of a value over all layers of some sides."""
    return torch.stack([value(term) for terms in sides for term in terms]).mean()


def _sample_mean(value: Tensor, weight: Tensor, share_BG: Tensor | None = None) -> Tensor:
    """Mean over the decisions of each sample, then over samples, so that long texts count no more than short ones."""
    mean_BG = (value * weight).sum((2, 3)) / weight.sum((2, 3))
    return mean_BG.mean() if share_BG is None else (mean_BG * share_BG).sum(1).mean()


def collapse_penalty(log_policy: Tensor, weight: Tensor, *, balance: float, entropy_floor: float) -> Tensor:
    """What is added to a router's loss to keep its depths in use, 0-dimensional.

    Args:
        log_policy: (B, 1 or G, h, t, D).
        weight: of each decision, broadcastable to (B, 1 or G, h, t).
        balance: times KL of the mean policy of each head over the batch from uniform.
        entropy_floor: the entropy, in nats, below which a policy's distance from it is added.
    """
    policy = log_policy.exp()
    weight = weight[:, : log_policy.shape[1]].expand(log_policy.shape[:-1])[..., None]
    mean_hD = (policy * weight).sum((0, 1, 3)) / weight.sum((0, 1, 3))
    mean_hD = mean_hD.clamp(min=torch.finfo(mean_hD.dtype).tiny)  # the gradient of x log x has no value at zero
    divergence = math.log(policy.shape[-1]) + (mean_hD * mean_hD.log()).sum(-1).mean()
    entropy = -(policy * log_policy).sum(-1)
    return balance * divergence + _sample_mean((entropy_floor - entropy).clamp(min=0), weight[..., 0])


class GRPOLearner(RouterLearner):
    """Trains `grpo` routers on the reward of their own picks.

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
    ) -> tuple[Rollout, Rollout, dict[str, Tensor]]:
        """Samples, rewards and updates the routers; the rollouts are then the encoder's to use.

        Returns:
            The queries' rollout, the positives', and statistics (0-dimensional tensors): of both together, and with
            "query_" and "document_" before the name of each.
        """
        config = self.config
        index = to_device(torch.from_numpy(batch.queries), batch.candidate_mask.device)
        samples = 1 if self.tries_all else config.grpo_group_size
        keys = [noise_keys(config.seed, step, index, samples, stream) for stream in (0, 1)]
        picks = [{"keys": each} for each in keys]
        if self.tries_all:
            picks = [{"depths": self.every_depth(each, len(index))} for each in (queries, passages)]
        rollouts = try_routings(
            self.engine,
            queries,
            passages,
            batch,
            temperature=self.temperature,
            reward=config.reward,
            query_picks=picks[0],
            passage_picks=picks[1],
            bank_KC=bank_KC,
        )
        with torch.no_grad():
            for rollout, key_BG in zip(rollouts, keys, strict=True):
                self._remember(rollout, key_BG)
        statistics = self._update(rollouts)
        self._follow()
        return *rollouts, statistics

    @property
    def tries_all(self) -> bool:
        """Whether a group is every depth once."""
        return group_is_exact(self.config, len(self.routers))

    def _remember(self, rollout: Rollout, key_BG: Tensor) -> None:
        """Keeps what the policy thinks of the picks before it changes, and which one it drew."""
        policies = self._log_policies(rollout)
        rollout.old_log_prob = [
            p.expand(*a.shape, -1).gather(-1, a[..., None]).squeeze(-1)
            for p, a in zip(policies, rollout.depths, strict=True)
        ]
        if self.tries_all:
            log_share_BD = rollout.old_log_prob[0][:, :, 0, 0]
            rollout.share_BG = log_share_BD.exp()
            noise = uniform_noise(key_BG, 0, 1, 1, log_share_BD.shape[1])[:, 0, 0, 0]
            rollout.drawn_B = gumbel_argmax(log_share_BD, noise)

    def _log_policies(self, rollout: Rollout) -> list[Tensor]:
        return self.engine({"states": rollout.states}, mode="policy")

    def _update(self, rollouts: Sequence[Rollout]) -> dict[str, Tensor]:
        """Replays the rollouts; only the routers have gradients here, since their states are detached."""
        advantages = [
            group_advantages(rollout.reward_BG)
            if rollout.share_BG is None
            else expected_advantages(rollout.reward_BG, rollout.share_BG)
            for rollout in rollouts
        ]
        rewards = torch.cat([rollout.reward_BG for rollout in rollouts])
        for _ in range(self.config.grpo_inner_epochs):
            sides = [self._terms(rollout, each) for rollout, (each, _) in zip(rollouts, advantages, strict=True)]
            loss = _mean(sides, lambda term: term.grpo.loss) + _mean(sides, lambda term: term.penalty)
            self._step(loss, rewards)
        by_side = [
            {
                "kl": _mean([terms], lambda term: term.grpo.kl),
                "clip_fraction": _mean([terms], lambda term: term.grpo.clip_fraction),
                "policy_entropy": _mean([terms], lambda term: term.entropy),
                "reward_mean": rollout.reward_BG.mean(),
                "reward_std": rollout.reward_BG.std(1).mean(),
                "zero_variance_share": 1 - varied.float().mean(),
            }
            for terms, rollout, (_, varied) in zip(sides, rollouts, advantages, strict=True)
        ]
        both = {name: torch.stack([each[name] for each in by_side]).mean() for name in by_side[0]}
        apart = {
            f"{side}_{name}": value for side, each in zip(SIDES, by_side, strict=True) for name, value in each.items()
        }
        return {"router_loss": loss.detach()} | both | apart

    def _terms(self, rollout: Rollout, advantage: Tensor) -> list[LayerTerms]:
        """What each MAW layer adds to the routers' loss, bottom first."""
        found = []
        for layer, log_policy in enumerate(self._log_policies(rollout)):
            weight = rollout.weight(layer)
            loss = grpo_loss(
                log_policy,
                rollout.old_log_prob[layer],
                rollout.depths[layer],
                advantage,
                self._log_reference(rollout, layer),
                clip=self.config.grpo_clip,
                beta=self.config.grpo_kl,
                weight=weight,
                share_BG=rollout.share_BG,
            )
            penalty = collapse_penalty(
                log_policy,
                weight,
                balance=self.config.router_balance,
                entropy_floor=self.config.router_entropy_floor,
            )
            entropy = -(log_policy.exp() * log_policy).sum(-1).detach()
            found.append(LayerTerms(loss, penalty, _sample_mean(entropy.expand_as(weight), weight)))
        return found

    @torch.no_grad()
    def _log_reference(self, rollout: Rollout, layer: int) -> Tensor:
        if self.config.grpo_reference == "uniform":
            depths = self.routers[layer].num_depths
            return -torch.full((), float(depths), device=rollout.reward_BG.device).log()
        return self.reference[layer].logits(rollout.states[layer]).log_softmax(-1)

    @torch.no_grad()
    def _follow(self) -> None:
        """Moves a slow reference a little towards the routers."""
        if self.config.grpo_reference == "slow":
            for slow, fast in zip(self.reference.parameters(), self.routers.parameters(), strict=True):
                slow.lerp_(fast, 1 - self.config.grpo_reference_decay)
