"""Supervised routing: every depth is tried on every text, and the router is taught the best as a class label.

With `route_by` "head" or "token" the tries put a text's heads and tokens all at one depth, and the best of these is
the label of each of them: D tries instead of D to the power of the number of decisions.

Of depths that earn the same, the label is the one that the router likes most, and a text whose depths all earn the
same teaches it nothing. At a start from clusters all depths are alike, and the lowest number as the label would have
every text train depth 0 alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from maw.evaluation.reward import ZERO_VARIANCE
from maw.training.contrastive import Batch
from maw.training.router.learner import RouterLearner
from maw.training.router.rollout import Rollout, try_routings


class SupervisedLearner(RouterLearner):
    """Trains the routers of a MAW encoder as classifiers of the depth with the best reward.

    Args: as `maw.training.router.learner.RouterLearner`.
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
        labels = [self._labels(rollout) for rollout in rollouts]
        losses, entropies, agreements = [], [], []
        for rollout, label in zip(rollouts, labels, strict=True):
            differ_B = rollout.reward_BG.amax(1) - rollout.reward_BG.amin(1) > ZERO_VARIANCE
            for layer, log_policy in enumerate(self.engine({"states": self._state(rollout, label)}, mode="policy")):
                target = label[:, None, None].expand(len(log_policy), *log_policy.shape[2:4])
                decisions = rollout.weight(layer)[:, 0].expand(target.shape)
                taught = decisions * differ_B[:, None, None]
                log_policy = log_policy[:, 0]
                log_prob = log_policy.gather(-1, target[..., None]).squeeze(-1)
                losses.append(_mean(-log_prob, taught))
                entropies.append(_mean(-(log_policy.exp() * log_policy).sum(-1).detach(), decisions))
                agreements.append(_mean(log_policy.argmax(-1) == target, taught))
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
        return *(self._labelled(*each) for each in zip(rollouts, labels, strict=True)), statistics

    @torch.no_grad()
    def _labels(self, rollout: Rollout) -> Tensor:
        """The best depth of each text, (B,), as the first MAW layer's router likes them where several are."""
        log_policy = self.engine({"states": rollout.states}, mode="policy")[0][:, 0]  # (B, h, t, D)
        weight = rollout.weight(0)[:, 0, ..., None]
        liking_BD = (log_policy * weight).sum((1, 2)) / weight.sum((1, 2))
        best_B1 = rollout.reward_BG.amax(1, keepdim=True)
        return liking_BD.masked_fill(rollout.reward_BG < best_B1 - ZERO_VARIANCE, -torch.inf).argmax(1)

    def _state(self, rollout: Rollout, label: Tensor) -> list[Tensor]:
        """Each layer's state on the best path: above the first MAW layer it depends on the depth below."""
        rows = torch.arange(len(label), device=label.device)
        return [s if s.shape[1] == 1 else s[rows, label][:, None] for s in rollout.states]

    def _labelled(self, rollout: Rollout, label: Tensor) -> Rollout:
        rows = torch.arange(len(label), device=label.device)
        return Rollout(
            [depths[rows, label][:, None] for depths in rollout.depths],
            self._state(rollout, label),
            rollout.reward_BG[rows, label][:, None],
            rollout.padding_BT,
            rollout.embedding_BC,
        )


def _mean(value: Tensor, weight: Tensor) -> Tensor:
    """The mean over decisions; 0 where none counts."""
    return (value * weight).sum() / weight.sum().clamp(min=1)
