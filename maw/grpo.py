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
   the batch. Negatives get no policy gradient.
2. The routers' states, the picks and the old log-probabilities are kept, and replayed `grpo_inner_epochs` times to
   update the routers alone.
3. The picks are handed to the encoder's update.

Letters: B texts, G samples, P passages, C embedding size, D depths; h is 1 or H and t is 1 or T by routing.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from maw.config import Tier1Config
from maw.contrastive import Batch
from maw.cpu import packed_weights
from maw.routing import noise_keys

ADVANTAGE_EPSILON = 1e-4
ZERO_VARIANCE = 1e-6  # rewards closer than this differ by rounding only

REWARDS = ("log_prob", "reciprocal_rank", "ndcg")


def task_reward(kind: str, positive_BG: Tensor, others: Tensor) -> Tensor:
    """How well the positive does among the candidates, (B, G).

    Args:
        kind: "log_prob", log-probability of the positive in the softmax over candidates; "reciprocal_rank"; or
            "ndcg", with the positive the only relevant candidate.
        positive_BG: score of the positive.
        others: scores of the other candidates, (B, 1 or G, P), -inf where a passage is none.

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
    """
    weight = torch.ones_like(old_log_prob) if weight is None else weight.expand_as(old_log_prob)
    log_policy = log_policy.expand(*action.shape, -1)
    log_prob = log_policy.gather(-1, action[..., None]).squeeze(-1)
    ratio = (log_prob - old_log_prob).exp()
    advantage = advantage_BG[:, :, None, None]
    gain = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    kl = (log_policy.exp() * (log_policy - log_reference)).sum(-1)
    clipped = ((ratio < 1 - clip) & (advantage < 0)) | ((ratio > 1 + clip) & (advantage > 0))
    return PolicyLoss(
        loss=_sample_mean(beta * kl - gain, weight),
        kl=_sample_mean(kl, weight).detach(),
        clip_fraction=_sample_mean(clipped.float(), weight),
    )


def _sample_mean(value: Tensor, weight: Tensor) -> Tensor:
    """Mean over the decisions of each sample, then over samples, so that long texts count no more than short ones."""
    return ((value * weight).sum((2, 3)) / weight.sum((2, 3))).mean()


@dataclass
class Rollout:
    """The routings that one side of a batch, queries or positives, tried; one entry of each list per MAW layer.

    Args:
        depths: picks, (B, G, h, t).
        states: what the routers saw, (B, 1 or G, h, t, F).
        reward_BG: what came of it.
        padding_BT: 1 for a token, 0 for padding.
        embedding_BC: the side's embeddings at greedy depths.
    """

    depths: list[Tensor]
    states: list[Tensor]
    reward_BG: Tensor
    padding_BT: Tensor
    embedding_BC: Tensor
    old_log_prob: list[Tensor] = field(default_factory=list)

    def weight(self, layer: int) -> Tensor:
        """Of each decision: padding counts nothing where tokens are routed."""
        depths = self.depths[layer]
        if depths.shape[-1] == 1:
            return torch.ones_like(depths, dtype=torch.float32)
        return self.padding_BT[:, None, None].expand_as(depths).float()


def try_routings(
    engine: nn.Module,
    queries: Mapping[str, Tensor],
    passages: Mapping[str, Tensor],
    batch: Batch,
    *,
    temperature: float,
    reward: str,
    query_picks: Mapping[str, object],
    passage_picks: Mapping[str, object],
) -> tuple[Rollout, Rollout]:
    """Rewards of many routings: of each query against greedy passages, and of each positive against greedy queries.

    Args:
        engine: MAW encoder, or a parallel wrapper of one; put in evaluation mode for the while.
        queries: encoder inputs of the B queries.
        passages: encoder inputs of the P passages, the B positives first.
        query_picks: `keys` or `depths` of the encoder's "group" mode, for the queries.
        passage_picks: the same for the positives.
    """
    was_training = engine.training
    engine.eval()
    size = len(batch.queries)
    positives = {name: each[:size] for name, each in passages.items()}
    with torch.no_grad(), packed_weights():
        query_BC, passage_PC = engine(queries)["embedding"], engine(passages)["embedding"]
        query_group = engine(queries, mode="group", **query_picks)
        positive_group = engine(positives, mode="group", **passage_picks)
        others = batch.comparable.clone()
        others[:, :size].fill_diagonal_(False)

        score_BGP = query_group["embedding"] @ passage_PC.T / temperature
        positive_BG = score_BGP[..., :size].diagonal(dim1=0, dim2=2).T
        query_reward = task_reward(reward, positive_BG, score_BGP.masked_fill(~others[:, None], -torch.inf))

        score_BP = (query_BC @ passage_PC.T / temperature).masked_fill(~others, -torch.inf)
        positive_BG = torch.einsum("bc,bgc->bg", query_BC, positive_group["embedding"]) / temperature
        passage_reward = task_reward(reward, positive_BG, score_BP[:, None])
    engine.train(was_training)
    sides = (
        (query_group, query_reward, queries, query_BC),
        (positive_group, passage_reward, positives, passage_PC[:size]),
    )
    return tuple(
        Rollout(group["depths"], group["states"], value, inputs["attention_mask"], embedding)
        for group, value, inputs, embedding in sides
    )


class GRPOLearner:
    """Trains the routers of a MAW encoder on the reward of their own picks, one batch at a time.

    Args:
        encoder: MAW encoder with `grpo` routers.
        engine: the same, possibly inside a parallel wrapper.
        config: group size, inner epochs, clip, KL weight and reference, reward, router learning rate.
        temperature: of the similarity.
    """

    def __init__(self, encoder: nn.Module, engine: nn.Module, config: Tier1Config, temperature: float):
        self.engine, self.config, self.temperature = engine, config, temperature
        self.routers = nn.ModuleList(layer.router for layer in encoder.maw_attention)
        self.reference = copy.deepcopy(self.routers).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.routers.parameters(), lr=config.router_learning_rate, weight_decay=0.0)

    def step(
        self, queries: Mapping[str, Tensor], passages: Mapping[str, Tensor], batch: Batch, step: int
    ) -> tuple[Rollout, Rollout, dict[str, Tensor]]:
        """Samples, rewards and updates the routers; the rollouts are then the encoder's to use.

        Returns:
            The queries' rollout, the positives', and statistics (0-dimensional tensors).
        """
        config = self.config
        index = torch.from_numpy(batch.queries).to(batch.comparable.device)
        keys = [noise_keys(config.seed, step, index, config.grpo_group_size, stream) for stream in (0, 1)]
        rollouts = try_routings(
            self.engine,
            queries,
            passages,
            batch,
            temperature=self.temperature,
            reward=config.reward,
            query_picks={"keys": keys[0]},
            passage_picks={"keys": keys[1]},
        )
        with torch.no_grad():
            for rollout in rollouts:
                old = self._log_policies(rollout)
                rollout.old_log_prob = [
                    p.expand(*a.shape, -1).gather(-1, a[..., None]).squeeze(-1)
                    for p, a in zip(old, rollout.depths, strict=True)
                ]
        statistics = self._update(rollouts)
        self._follow()
        return *rollouts, statistics

    def _log_policies(self, rollout: Rollout) -> list[Tensor]:
        return self.engine({"states": rollout.states}, mode="policy")

    def _update(self, rollouts: Sequence[Rollout]) -> dict[str, Tensor]:
        """Replays the rollouts; only the routers have gradients here, since their states are detached."""
        advantages = [group_advantages(rollout.reward_BG) for rollout in rollouts]
        for _ in range(self.config.grpo_inner_epochs):
            terms, entropies = [], []
            for rollout, (advantage, _) in zip(rollouts, advantages, strict=True):
                for layer, log_policy in enumerate(self._log_policies(rollout)):
                    weight = rollout.weight(layer)
                    terms.append(
                        grpo_loss(
                            log_policy,
                            rollout.old_log_prob[layer],
                            rollout.depths[layer],
                            advantage,
                            self._log_reference(rollout, layer),
                            clip=self.config.grpo_clip,
                            beta=self.config.grpo_kl,
                            weight=weight,
                        )
                    )
                    entropy = -(log_policy.exp() * log_policy).sum(-1).detach()
                    entropies.append(_sample_mean(entropy.expand_as(weight), weight))
            loss = torch.stack([term.loss for term in terms]).mean()
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
        varied = torch.cat([varied for _, varied in advantages])
        rewards = torch.cat([rollout.reward_BG for rollout in rollouts])
        return {
            "router_loss": loss.detach(),
            "kl": torch.stack([term.kl for term in terms]).mean(),
            "clip_fraction": torch.stack([term.clip_fraction for term in terms]).mean(),
            "policy_entropy": torch.stack(entropies).mean(),
            "reward_mean": rewards.mean(),
            "reward_std": rewards.std(1).mean(),
            "zero_variance_share": 1 - varied.float().mean(),
        }

    @torch.no_grad()
    def _log_reference(self, rollout: Rollout, layer: int) -> Tensor:
        if self.config.grpo_reference == "uniform":
            depths = self.routers[layer].depths
            return -torch.tensor(float(depths), device=rollout.reward_BG.device).log()
        return self.reference[layer].logits(rollout.states[layer]).log_softmax(-1)

    @torch.no_grad()
    def _follow(self) -> None:
        """Moves a slow reference a little towards the routers."""
        if self.config.grpo_reference == "slow":
            for slow, fast in zip(self.reference.parameters(), self.routers.parameters(), strict=True):
                slow.lerp_(fast, 1 - self.config.grpo_reference_decay)
