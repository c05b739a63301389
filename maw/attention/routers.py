"""Routers: each picks the attention depth of a text, a head or a token in one MAW layer.

Routing is a one-step bandit (a contextual bandit). The state is the layer's query states: their mean over the text's
tokens (`route_by="sequence"`: all heads share one state; `"head"`: each head has its own), or the query states of one
token (`"token"`). The action is a depth. States are detached: a router sends no gradient into the encoder. A router
sees one text only, never the other side of a query-passage pair.

Random numbers come from a counter-based hash (`maw.attention.noise`), not from a generator. The noise of a text
depends only on the seed, the step, the text's row in the training data and the sample, so splitting a batch changes no
depth. In router training the positive of a query uses the query's row in a stream of its own.

Letters: B texts, G samples of each text, H heads, T tokens, D depths, F features; h is 1 or H and t is 1 or T,
by `route_by`; M MAW layers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from maw.attention.noise import gumbel_argmax, uniform_noise

ROUTE_BY = ("sequence", "head", "token")
ROUTERS: dict[str, type[Router]] = {}
"""Every router by its name; a class with a name enters itself. `maw.config.tier1_config` has the same names."""


@dataclass
class Routing:
    """How the MAW layers pick depths in one forward pass, and what they picked and saw.

    Args:
        padding_BT: 1 for a token, 0 for padding; B counts texts, not samples.
        keys_BG: noise keys with which depths are sampled; None for greedy depths.
        depths: int64 depths to use instead of the routers' own, one (B, G, h, t) tensor for each MAW layer.
        text_keys_B1: hash of each text, from which a random router draws its depths outside training.
        samples: G.
    """

    padding_BT: Tensor
    keys_BG: Tensor | None = None
    depths: list[Tensor] | None = None
    text_keys_B1: Tensor | None = None
    samples: int = 1
    layer: int = 0  # index of the next MAW layer
    picked_depths: list[Tensor] = field(default_factory=list)  # per layer (B, G, h, t), or weights (B, G, h, t, D)
    states: list[Tensor] = field(default_factory=list)  # per layer (B, 1 or G, h, t, F), detached

    def flat_padding(self, batch: int) -> Tensor:
        """The padding mask of `batch` texts or, above the first MAW layer, samples of texts."""
        return self.padding_BT.repeat_interleave(batch // len(self.padding_BT), dim=0)


def masked_mean(states_BHTE: Tensor, padding_BT: Tensor) -> Tensor:
    """Mean over a text's real tokens, float32 (B, H, E).

    One matrix product sums the states in their own layout and number format; float16 states become float32 first,
    because a sum could exceed the largest float16 number.
    """
    states_BHTE = states_BHTE.float() if states_BHTE.dtype == torch.float16 else states_BHTE
    weights = padding_BT.to(states_BHTE.dtype)[:, None]  # (B, 1, T)
    with torch.autocast(states_BHTE.device.type, enabled=False):
        total_BC = torch.bmm(weights, states_BHTE.transpose(1, 2).flatten(2))[:, 0].float()
    count_B1 = padding_BT.sum(1, keepdim=True).clamp(min=1)
    return (total_BC / count_B1).unflatten(1, (states_BHTE.shape[1], -1))


class Router(nn.Module):
    """Interface of all routers; every MAW layer has one router.

    A subclass sets `name` and `trained_by`; its docstring's first line says what it does.

    Args:
        heads: H.
        head_size: E.
        depths: D.
        route_by: "sequence", "head" or "token".

    Raises:
        ValueError: unknown `route_by`.
    """

    name: ClassVar[str] = ""
    trained_by: ClassVar[str] = "nothing"
    """A learner of `maw.training.objective.LEARNERS`, "reward" or "labels"; or the encoder's "loss"; or "nothing"."""
    needs_text_keys: ClassVar[bool] = False
    """Whether depths are drawn from noise keys (training) and text hashes (evaluation)."""

    def __init_subclass__(cls) -> None:
        if "name" in vars(cls):
            ROUTERS[cls.name] = cls

    def __init__(self, heads: int, head_size: int, depths: int, route_by: str = "sequence"):
        super().__init__()
        if route_by not in ROUTE_BY:
            raise ValueError(f"route_by must be one of {', '.join(ROUTE_BY)}, got {route_by!r}")
        self.heads, self.num_depths, self.route_by = heads, depths, route_by

    def state(self, query_BHTE: Tensor, padding_BT: Tensor) -> Tensor:
        """The router's state, float32 (B, h, t, F), detached, from `query_BHTE` and `padding_BT` (1 for a token)."""
        query_BHTE = query_BHTE.detach()
        if self.route_by == "token":
            return query_BHTE.to(torch.float32, copy=True)  # kernels may change the query in place
        mean_BHE = masked_mean(query_BHTE, padding_BT)
        return mean_BHE.flatten(1)[:, None, None] if self.route_by == "sequence" else mean_BHE[:, :, None]

    @property
    def first_mixture_D(self) -> Tensor | None:
        """Weights (D,) with which a new soft router mixes the depths, equal for all texts; None for other routers."""
        return None

    def pick(self, state: Tensor, routing: Routing) -> Tensor:
        """A depth for each state: int64 (B, G, h, t), or weights over depths (B, G, h, t, D) of a soft router.

        Args:
            state: (B, 1 or G, h, t, F), from `state`.
            routing: its noise keys and number of samples are used.
        """
        raise TypeError(f"{type(self).__name__} is an interface; choose one of {', '.join(ROUTERS)}")

    def forward(self, query_BHTE: Tensor, routing: Routing) -> Tensor:
        """Picks the depths of one layer, and records state and depths in `routing`.

        Args:
            query_BHTE: query states of B texts, or of B * G samples above the first MAW layer.
            routing: how to pick; `routing.depths` replaces the router's own depths.

        Returns:
            As `pick`: int64 (B, G, h, t), or weights (B, G, h, t, D).
        """
        batch = query_BHTE.shape[0]
        state = self.state(query_BHTE, routing.flat_padding(batch))
        state = state.unflatten(0, (len(routing.padding_BT), -1))
        if routing.depths is not None:
            depth = routing.depths[routing.layer]
        else:
            with torch.autocast(state.device.type, enabled=False):  # a policy's probabilities need all their digits
                depth = self.pick(state, routing)
        routing.states.append(state)
        routing.picked_depths.append(depth)
        routing.layer += 1
        return depth


class PolicyRouter(Router):
    """A linear softmax policy over depths, of the normalised state; one linear map, or one for each head.

    The map starts at zero with a small bias for depth 0: a new router samples almost uniformly, and its greedy depth
    is the pretrained model's own attention.
    """

    FIRST_PREFERENCE = 0.1

    def __init__(self, heads: int, head_size: int, depths: int, route_by: str = "sequence"):
        super().__init__(heads, head_size, depths, route_by)
        groups, features = (1, heads * head_size) if route_by == "sequence" else (heads, head_size)
        self.norm = nn.RMSNorm(features, elementwise_affine=False)
        self.weight = nn.Parameter(torch.zeros(groups, features, depths))
        self.bias = nn.Parameter(torch.zeros(groups, 1, depths))
        with torch.no_grad():
            self.bias[..., 0] = self.FIRST_PREFERENCE

    def logits(self, state: Tensor) -> Tensor:
        """Unnormalised log-probabilities of all depths, (..., h, t, D), from `state`, (..., h, t, F)."""
        state = self.norm(state)
        weight, bias = self.weight.to(state.dtype), self.bias.to(state.dtype)  # a whole model may be in bfloat16
        if len(weight) == 1:  # one plain product; einsum would copy the map for every text
            return state @ weight[0] + bias
        return torch.einsum("...htf,hfd->...htd", state, weight) + bias

    def pick(self, state: Tensor, routing: Routing) -> Tensor:
        logits = self.logits(state)
        if routing.keys_BG is None:
            return logits.argmax(-1).expand(-1, routing.samples, -1, -1)
        return gumbel_argmax(logits, uniform_noise(routing.keys_BG, routing.layer, *logits.shape[2:]))


class GRPORouter(PolicyRouter):
    """Trained by group-relative policy optimisation on the rewards of its sampled depths.

    Source: Shao et al. 2024; see `maw.training.router.grpo`.
    """

    name = "grpo"
    trained_by = "reward"


class SupervisedRouter(PolicyRouter):
    """Trained as a classifier of the depth with the best reward (see `maw.training.router.supervised`)."""

    name = "supervised"
    trained_by = "labels"


class SoftRouter(PolicyRouter):
    """Mixes all depths instead of picking one: the expected kernel under the policy, trained by the encoder's loss."""

    name = "soft"
    trained_by = "loss"

    @property
    def first_mixture_D(self) -> Tensor:
        return self.bias.detach()[0, 0].softmax(-1)

    def pick(self, state: Tensor, routing: Routing) -> Tensor:
        return self.logits(state).softmax(-1).expand(-1, routing.samples, -1, -1, -1)


class RandomRouter(Router):
    """Uniformly random depths: new ones at every training step; at evaluation a hash of the seed and the text."""

    name = "random"
    needs_text_keys = True

    def pick(self, state: Tensor, routing: Routing) -> Tensor:
        keys = routing.text_keys_B1 if routing.keys_BG is None else routing.keys_BG
        if keys is None:
            raise ValueError("a random router needs the texts' keys: pass keys or text_keys in the inputs")
        noise = uniform_noise(keys, routing.layer, *state.shape[2:4])[..., 0]
        return (noise * self.num_depths).long().expand(-1, routing.samples, -1, -1)


class FixedRouter(Router):
    """Always picks the same depth: MAW without routing."""

    name = "fixed"

    def __init__(self, heads: int, head_size: int, depths: int, route_by: str = "sequence", fixed_depth: int = 0):
        super().__init__(heads, head_size, depths, route_by)
        if not 0 <= fixed_depth < depths:
            raise ValueError(f"fixed_depth must be in 0..{depths - 1}, got {fixed_depth}")
        self.fixed_depth = fixed_depth

    def pick(self, state: Tensor, routing: Routing) -> Tensor:
        batch, _, heads, tokens, _ = state.shape
        return torch.full((batch, routing.samples, heads, tokens), self.fixed_depth, device=state.device)


def same_depth(routers: Iterable[Router], depths_G: Tensor, batch: int, tokens: int) -> list[Tensor]:
    """Depths that put sample g of every text at depths_G[g] everywhere: for each router int64 (batch, G, h, t)."""
    found = []
    for router in routers:
        heads = 1 if router.route_by == "sequence" else router.heads
        positions = tokens if router.route_by == "token" else 1
        found.append(depths_G[None, :, None, None].expand(batch, -1, heads, positions))
    return found


def build_router(
    name: str, heads: int, head_size: int, depths: int, route_by: str = "sequence", fixed_depth: int = 0
) -> Router:
    """The router of that name.

    Raises:
        ValueError: no router of that name.
    """
    if name not in ROUTERS:
        raise ValueError(f"router must be one of {', '.join(ROUTERS)}, got {name!r}")
    options = {"fixed_depth": fixed_depth} if name == FixedRouter.name else {}
    return ROUTERS[name](heads, head_size, depths, route_by, **options)
