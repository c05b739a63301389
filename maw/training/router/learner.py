"""What GRPO and supervised routing share: an optimizer of the routers alone, and its guard against NaN.

The guard stays on the device. An update that is not finite leaves the routers as they were, and so do all after it;
what was wrong is kept, and `check` says it when the training looks (`maw.training.trainer`): once for each step of the
encoder's optimizer, together with its own loss, so that a GPU is waited for at no other point of a step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from maw.attention.routers import same_depth
from maw.config.tier1_config import Tier1Config
from maw.errors import NotFiniteError
from maw.training.sharded_batch import average_gradients
from maw.training.state import State, load_optimizer_state


class RouterLearner:
    """What trains the routers of a MAW encoder apart from the encoder, one batch at a time.

    Args:
        encoder: MAW encoder.
        engine: the same, possibly inside a parallel wrapper.
        config: the settings of routers and rewards.
        temperature: of the similarity.
    """

    def __init__(self, encoder: nn.Module, engine: nn.Module, config: Tier1Config, temperature: float):
        self.engine, self.config, self.temperature = engine, config, temperature
        self.routers = nn.ModuleList(layer.router for layer in encoder.maw_attention)
        self.optimizer = torch.optim.AdamW(self.routers.parameters(), lr=config.router_learning_rate, weight_decay=0.0)
        self.watched = torch.zeros(3, device=next(self.routers.parameters()).device)
        """Loss, gradient norm and largest reward of the last update, or of the first that was not finite."""

    def state_dict(self) -> State:
        """What the learner carries from one step to the next, but the routers' weights.

        Raises:
            NotFiniteError: as `check`; nothing is to be saved then.
        """
        self.check(self.watched.tolist())
        return {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Takes back what `state_dict` gave."""
        load_optimizer_state(self.optimizer, state["optimizer"])

    def check(self, watched: Sequence[float]) -> None:
        """Looks at what was `watched`, once it is on the host.

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
        """One update of the routers, unless there is something in it, or was before, that is not finite.

        A reward that is not would not show in the loss: its group would count as one without variance.
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

    def every_depth(self, inputs: Mapping[str, Tensor], size: int) -> list[Tensor]:
        """Picks that put sample d of each of `size` texts at depth d, everywhere: for each layer (size, D, h, t)."""
        mask = inputs["attention_mask"]
        depths_D = torch.arange(self.routers[0].depths, device=mask.device)
        return same_depth(self.routers, depths_D, size, mask.shape[1])
