"""Depth kernels: the D learned weightings of the product of query and key."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KERNEL_FAMILIES = ("diagonal", "low_rank")


class DiagonalKernels(nn.Module):
    """`W[h, d, e]`, one weight for each feature of each head at each depth.

    Depth 0 starts at exactly one; the others start at one plus noise, since depths that start alike stay alike. A
    router that mixes depths uses none of them by itself: then it is the mixture that starts at one.

    Args:
        rotary: tie the weights of the two features of a rotary pair (feature e and e + E/2).
        init_std: standard deviation of the noise.
        mixture_D: shares in which a new router mixes depths; None, if it picks one.
        generator: where the noise comes from.
    """

    def __init__(
        self,
        heads: int,
        head_size: int,
        depths: int,
        *,
        rotary: bool = False,
        init_std: float = 0.02,
        mixture_D: Tensor | None = None,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.rotary = rotary
        free = head_size // 2 if rotary else head_size
        noise_HDE = init_std * torch.randn(heads, depths, free, generator=generator)
        if mixture_D is None:
            noise_HDE[:, 0] = 0.0
        else:
            noise_HDE -= torch.einsum("d,hde->he", mixture_D, noise_HDE)[:, None]
        self.weight = nn.Parameter(1 + noise_HDE)

    @property
    def kernels_HDE(self) -> Tensor:
        """The kernels over all E features."""
        return torch.cat((self.weight, self.weight), dim=-1) if self.rotary else self.weight

    def features(self, hidden_BTC: Tensor) -> None:
        """A diagonal kernel looks at nothing but the query."""

    def forward(self, query_BHTE: Tensor, features: None, gate: Tensor) -> Tensor:
        """The query weighted by the picked kernels, (B, G, H, T, E).

        Args:
            gate: depths, int64 (B, G, h, t), or weights over depths, (B, G, h, t, D).
        """
        change_HDE = self.kernels_HDE - 1
        if gate.is_floating_point():
            change_HDE = change_HDE.to(gate.dtype)
            picked = torch.einsum("bghtd,hde->bghte", _over_heads(gate, change_HDE), change_HDE)
        else:
            heads, depths, _ = change_HDE.shape
            offsets = depths * torch.arange(heads, device=gate.device)[:, None]
            picked = F.embedding(gate + offsets, change_HDE.flatten(0, 1))  # (B, G, H, t, E)
        # q W as q + q (W - 1): in bfloat16 a weight near one has two digits, its distance from one has them all.
        query, picked = query_BHTE[:, None], picked.to(query_BHTE.dtype)
        if picked.shape[1] == 1 and not torch.is_grad_enabled():
            return query.addcmul_(query, picked)  # whoever calls has no other use of it
        return torch.addcmul(query, query, picked)

    def all_depths(self, query_BHTE: Tensor, hidden_BTC: Tensor) -> Tensor:
        """The query at every depth, (B, H, T, D, E)."""
        return query_BHTE[..., None, :] * self.kernels_HDE[:, None]


class LowRankKernels(nn.Module):
    """For each depth a change of rank R to the layer's query map: query + up[h, d] (down[d] hidden).

    `down` starts at random, different for each depth, and `up` at zero: every depth starts as ordinary attention, and
    the depths' gradients differ from the first step.
    """

    def __init__(
        self,
        heads: int,
        head_size: int,
        depths: int,
        *,
        hidden_size: int,
        rank: int = 4,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        scale = hidden_size**-0.5
        self.down = nn.Parameter(scale * torch.randn(depths, rank, hidden_size, generator=generator))
        self.up = nn.Parameter(torch.zeros(heads, depths, rank, head_size))

    def features(self, hidden_BTC: Tensor) -> Tensor:
        """`down` of every depth, (B, T, D, R): once for a text, whatever the number of its samples."""
        depths, rank, _ = self.down.shape
        return F.linear(hidden_BTC, self.down.flatten(0, 1)).unflatten(-1, (depths, rank))

    def forward(self, query_BHTE: Tensor, features: Tensor, gate: Tensor) -> Tensor:
        """As `DiagonalKernels.forward`; `features` are this class's own."""
        up = self.up.flatten(1, 2)  # (H, D*R, E)
        if not gate.is_floating_point():
            gate = F.one_hot(gate, self.up.shape[1]).to(features.dtype)
        gated = gate[..., None] * features[:, None, None]  # (B, G, h, T, D, R)
        change = gated.flatten(-2).to(features.dtype) @ up  # broadcasts h to H: (B, G, H, T, E)
        return query_BHTE[:, None] + change

    def all_depths(self, query_BHTE: Tensor, hidden_BTC: Tensor) -> Tensor:
        """The query at every depth, (B, H, T, D, E)."""
        change = torch.einsum("btdr,hdre->bhtde", self.features(hidden_BTC), self.up)
        return query_BHTE[..., None, :] + change


def _over_heads(gate: Tensor, kernels_HDE: Tensor) -> Tensor:
    """A gate shared by all heads, (B, G, 1, t, D), spelled out for each of them."""
    return gate.expand(-1, -1, len(kernels_HDE), -1, -1)


def build_kernels(
    family: str,
    heads: int,
    head_size: int,
    depths: int,
    *,
    hidden_size: int,
    rotary: bool,
    rank: int,
    init_std: float,
    mixture_D: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """The kernels of that family.

    Raises:
        ValueError: no family of that name.
    """
    if family == "diagonal":
        return DiagonalKernels(
            heads, head_size, depths, rotary=rotary, init_std=init_std, mixture_D=mixture_D, generator=generator
        )
    if family == "low_rank":
        return LowRankKernels(heads, head_size, depths, hidden_size=hidden_size, rank=rank, generator=generator)
    raise ValueError(f"depth kernel must be one of {', '.join(KERNEL_FAMILIES)}, got {family!r}")
