"""Supervised routing: the router learns to classify each text by the depth with the best reward.

Every depth is tried on every text. With `route_by` "head" or "token" a try puts all heads and tokens of a text at one
depth, and the best depth is the label of all of them: D tries instead of D to the power of the number of actions.

If several depths have the best reward, the label is the one with the highest probability; a text whose depths all have
the same reward is not trained on. After a start from clusters all depths are equal, and the lowest index as label
would train depth 0 on every text.

Letters: B texts, D depths, K passages in the bank, C embedding size; h is 1 or H and t is 1 or T, as the router
decides.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from maw.evaluation.reward import ZERO_VARIANCE
from maw.training.contrastive import Batch
from maw.training.router.learner import RouterLearner
from maw.training.router.rollout import Embedded, Rollout, embed_greedy


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
        embedded: Embedded | None = None,
    ) -> tuple[Rollout, Rollout, dict[str, Tensor]]:
        """Labels the batch and updates the routers.

        Returns:
            The queries' rollout and the positives' rollout, whose only sample is the label; and statistics.
        """
        embedded = embedded or embed_greedy(self.engine, queries, passages)
        rollouts = self._rollouts(queries, passages, batch, bank_KC, embedded)
        labels = [self._labels(rollout) for rollout in rollouts]
        losses, entropies, agreements = [], [], []
        for rollout, label in zip(rollouts, labels, strict=True):
            differ_B = rollout.reward_BG.amax(1) - rollout.reward_BG.amin(1) > ZERO_VARIANCE
            for layer, log_policy in enumerate(self.engine({"states": self._state(rollout, label)}, mode="policy")):
                target = label[:, None, None].expand(len(log_policy), *log_policy.shape[2:4])
                weight = rollout.weight(layer)[:, 0].expand(target.shape)
                taught = weight * differ_B[:, None, None]
                log_policy = log_policy[:, 0]
                log_prob = log_policy.gather(-1, target[..., None]).squeeze(-1)
                losses.append(_mean(-log_prob, taught))
                entropies.append(_mean(-(log_policy.exp() * log_policy).sum(-1).detach(), weight))
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
        """The best depth of each text, (B,); of several, the most probable one in the first MAW layer."""
        log_policy = self.engine({"states": rollout.states}, mode="policy")[0][:, 0]  # (B, h, t, D)
        weight = rollout.weight(0)[:, 0, ..., None]
        log_policy_BD = (log_policy * weight).sum((1, 2)) / weight.sum((1, 2))
        best_B1 = rollout.reward_BG.amax(1, keepdim=True)
        return log_policy_BD.masked_fill(rollout.reward_BG < best_B1 - ZERO_VARIANCE, -torch.inf).argmax(1)

    def _state(self, rollout: Rollout, label: Tensor) -> list[Tensor]:
        """Each layer's state at the label; above the first MAW layer it depends on the depth below."""
        rows = torch.arange(len(label), device=label.device)
        return [s if s.shape[1] == 1 else s[rows, label][:, None] for s in rollout.states]

    def _labelled(self, rollout: Rollout, label: Tensor) -> Rollout:
        """The rollout reduced to the sample at the label."""
        rows = torch.arange(len(label), device=label.device)
        return Rollout(
            [depths[rows, label][:, None] for depths in rollout.depths],
            self._state(rollout, label),
            rollout.reward_BG[rows, label][:, None],
            rollout.padding_BT,
            rollout.batch_states,
            rollout.batch_padding_NT,
        )


def _mean(value: Tensor, weight: Tensor) -> Tensor:
    """The mean over actions; 0 if all weights are 0."""
    return (value * weight).sum() / weight.sum().clamp(min=1)
