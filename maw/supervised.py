"""Supervised routing: every depth is tried on every text, and the router is taught the best as a class label.

With `route_by` "head" or "token" the tries put a text's heads and tokens all at one depth, and the best of these is
the label of each of them: D tries instead of D to the power of the number of decisions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from maw.contrastive import Batch
from maw.rollout import Rollout, try_routings
from maw.router_learner import RouterLearner


class SupervisedLearner(RouterLearner):
    """Trains the routers of a MAW encoder as classifiers of the depth with the best reward.

    Args: as `maw.router_learner.RouterLearner`.
    """

    def step(
        self,
        queries: Mapping[str, Tensor],
        passages: Mapping[str, Tensor],
        batch: Batch,
        step: int,
        bank_KC: Tensor | None = None,
    ) -> tuple[Rollout, Rollout, dict[str, Tensor]]:
        """Labels the batch, updates the routers, and returns rollouts whose only sample is the label itself."""
        rollouts = try_routings(
            self.engine,
            queries,
            passages,
            batch,
            temperature=self.temperature,
            reward=self.config.reward,
            query_picks={"depths": self.every_depth(queries, len(batch.queries))},
            passage_picks={"depths": self.every_depth(passages, len(batch.queries))},
            bank_KC=bank_KC,
        )
        losses, entropies, agreements = [], [], []
        for rollout in rollouts:
            label = rollout.reward_BG.argmax(1)
            for layer, log_policy in enumerate(self.engine({"states": self._state(rollout, label)}, mode="policy")):
                target = label[:, None, None].expand(len(log_policy), *log_policy.shape[2:4])
                share = rollout.weight(layer)[:, 0].expand(target.shape)
                share = share / share.sum()
                log_policy = log_policy[:, 0]
                log_prob = log_policy.gather(-1, target[..., None]).squeeze(-1)
                losses.append(-(log_prob * share).sum())
                entropies.append(-((log_policy.exp() * log_policy).sum(-1) * share).sum().detach())
                agreements.append(((log_policy.argmax(-1) == target) * share).sum())
        loss = torch.stack(losses).mean()
        rewards = torch.cat([rollout.reward_BG for rollout in rollouts])
        self._step(loss, rewards)
        statistics = {
            "router_loss": loss.detach(),
            "router_accuracy": torch.stack(agreements).mean(),
            "policy_entropy": torch.stack(entropies).mean(),
            "reward_mean": rewards.mean(),
            "reward_std": rewards.std(1).mean(),
        }
        return *(self._labelled(rollout) for rollout in rollouts), statistics

    def _state(self, rollout: Rollout, label: Tensor) -> list[Tensor]:
        """Each layer's state on the best path: above the first MAW layer it depends on the depth below."""
        rows = torch.arange(len(label), device=label.device)
        return [s if s.shape[1] == 1 else s[rows, label][:, None] for s in rollout.states]

    def _labelled(self, rollout: Rollout) -> Rollout:
        label = rollout.reward_BG.argmax(1)
        rows = torch.arange(len(label), device=label.device)
        return Rollout(
            [depths[rows, label][:, None] for depths in rollout.depths],
            self._state(rollout, label),
            rollout.reward_BG[rows, label][:, None],
            rollout.padding_BT,
            rollout.embedding_BC,
        )
