"""Base of GRPO and supervised routing: rollouts, and an optimizer of the routers with a guard against NaN.

The guard runs on the device. After an update that is not finite the routers stay as they were before it. `check`
reports it when the trainer reads the values (`maw.training.trainer`), once for each step of the encoder's optimizer,
together with the encoder's loss, so that a step waits for the GPU only once.

Letters: B texts, G samples, D depths, K passages in the bank, C embedding size; h is 1 or H and t is 1 or T, as the
router decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from maw.attention.routers import same_depth
from maw.config.tier1_config import Tier1Config
from maw.errors import NotFiniteError
from maw.training.contrastive import Batch
from maw.training.router.rollout import Embedded, Rollout, try_routings
from maw.training.sharded_batch import average_gradients
from maw.training.state import State, load_optimizer_state


class RouterLearner:
    """Trains the routers of a MAW encoder, but not the encoder, one batch at a time.

    Args:
        engine: the same encoder, possibly inside a parallel wrapper.
        temperature: temperature of the similarity.
    """

    def __init__(self, encoder: nn.Module, engine: nn.Module, config: Tier1Config, temperature: float):
        self.engine, self.config, self.temperature = engine, config, temperature
        self.routers = nn.ModuleList(layer.router for layer in encoder.maw_attention)
        self.optimizer = torch.optim.AdamW(self.routers.parameters(), lr=config.router_learning_rate, weight_decay=0.0)
        self.watched = torch.zeros(3, device=next(self.routers.parameters()).device)
        """Loss, gradient norm and largest reward of the last update, or of the first update that was not finite."""

    def state_dict(self) -> State:
        """The learner's state between steps, without the routers' weights.

        Raises:
            NotFiniteError: as `check`.
        """
        self.check(self.watched.tolist())
        return {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Loads what `state_dict` returned."""
        load_optimizer_state(self.optimizer, state["optimizer"])

    def check(self, watched: Sequence[float]) -> None:
        """Checks the values of `self.watched`, copied to the host.

        Raises:
            NotFiniteError: a reward, the loss or its gradient was not finite; the routers were not changed by it.
        """
        value, norm, largest = watched
        if not (math.isfinite(value) and math.isfinite(norm) and math.isfinite(largest)):
            raise NotFiniteError(
                f"router loss {value}, its gradient norm {norm} or the largest reward {largest} is not finite; the "
                "routers were not changed by it. Try lower learning rates"
            )

    def _step(self, loss: Tensor, rewards: Tensor) -> None:
        """Updates the routers, unless this update or an earlier one is not finite.

        Rewards are checked too: the loss hides a reward that is not finite, as a group without variance.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(self.routers.parameters())
        updated = [each for each in self.routers.parameters() if each.grad is not None]
        norm = nn.utils.get_total_norm([each.grad for each in updated])
        found = torch.stack((loss.detach(), norm, rewards.abs().max()))
        self.watched = torch.where(self.watched.isfinite().all(), found, self.watched)
        before = [each.detach().clone() for each in updated]
        self.optimizer.step()
        with torch.no_grad():
            finite = self.watched.isfinite().all()
            for each, old in zip(updated, before, strict=True):
                each.copy_(torch.where(finite, each, old))

    def _rollouts(
        self,
        queries: Mapping[str, Tensor],
        passages: Mapping[str, Tensor],
        batch: Batch,
        bank_KC: Tensor | None,
        embedded: Embedded,
        options: Sequence[Mapping[str, object]] | None = None,
        count: int | None = None,
    ) -> tuple[Rollout, Rollout]:
        """Rollouts of the first `count` queries and their positives, of all if None.

        Args:
            options: what the encoder's "group" mode gets, for both; None: every depth once.
        """
        count = len(batch.queries) if count is None else count
        sides = [{name: each[:count] for name, each in inputs.items()} for inputs in (queries, passages)]
        if options is None:
            masks = [inputs["attention_mask"] for inputs in sides]
            depths_D = torch.arange(self.routers[0].num_depths, device=masks[0].device)
            options = [{"depths": same_depth(self.routers, depths_D, count, mask.shape[1])} for mask in masks]
        return try_routings(
            self.engine,
            *sides,
            batch,
            embedded,
            temperature=self.temperature,
            reward=self.config.reward,
            query_options=options[0],
            positive_options=options[1],
            bank_KC=bank_KC,
        )
