"""Depth kernels: D learned weightings of the element-wise product of query and key.

Letters: B texts, G samples of each text, H heads, T tokens, D depths, E head size, C hidden size, R kernel rank;
h is 1 or H and t is 1 or T, as the router decides (see `maw.attention.routers`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KERNEL_FAMILIES = ("diagonal", "low_rank", "gated")


class DiagonalKernels(nn.Module):
    """`W[h, d, e]`: one weight for each head, depth and feature.

    Depth 0 starts at exactly 1. The other depths start at 1 plus noise, because equal depths get equal gradients and
    stay equal. A soft router never uses a depth alone: for it, the mixture of the depths starts at 1.

    Args:
        rotary: the two features of a rotary pair (e and e + E/2) share a weight.
        init_std: standard deviation of the noise.
        mixture_D: weights with which a new soft router mixes the depths; None for a router that picks one depth.
        generator: source of the noise.
    """

    def __init__(
        self,
        heads: int,
        head_size: int,
        num_depths: int,
        *,
        rotary: bool = False,
        init_std: float = 0.02,
        mixture_D: Tensor | None = None,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.rotary = rotary
        free = head_size // 2 if rotary else head_size
        noise_HDE = init_std * torch.randn(heads, num_depths, free, generator=generator)
        if mixture_D is None:
            noise_HDE[:, 0] = 0.0
        else:
            noise_HDE -= torch.einsum("d,hde->he", mixture_D, noise_HDE)[:, None]
        self.weight = nn.Parameter(1 + noise_HDE)

    @property
    def kernels_HDE(self) -> Tensor:
        """The kernels over all E features."""
        return torch.cat((self.weight, self.weight), dim=-1) if self.rotary else self.weight

    def forward(self, query_BHTE: Tensor, hidden_BTC: Tensor | None, depth: Tensor) -> Tensor:
        """The query times the kernels of the depths, (B, G, H, T, E).

        Args:
            hidden_BTC: what the layer's query was computed from; a diagonal kernel reads only the query.
            depth: int64 depths (B, G, h, t), or weights over all depths (B, G, h, t, D).
        """
        change_HDE = self.kernels_HDE - 1
        heads, num_depths, _ = change_HDE.shape
        if depth.is_floating_point():
            change_HDE = change_HDE.to(depth.dtype)
            picked = torch.einsum("bghtd,hde->bghte", depth.expand(-1, -1, heads, -1, -1), change_HDE)
        else:
            offsets = num_depths * torch.arange(heads, device=depth.device)[:, None]
            picked = F.embedding(depth + offsets, change_HDE.flatten(0, 1))  # (B, G, H, t, E)
        # q W is computed as q + q (W - 1): bfloat16 keeps two digits of W near 1, but all digits of W - 1.
        query, picked = query_BHTE[:, None], picked.to(query_BHTE.dtype)
        if picked.shape[1] == 1 and not torch.is_grad_enabled():
            return query.addcmul_(query, picked)  # in place: no caller uses the plain query again
        return torch.addcmul(query, query, picked)

    def all_depths(self, query_BHTE: Tensor, hidden_BTC: Tensor) -> Tensor:
        """The query at every depth, (B, H, T, D, E)."""
        return query_BHTE[..., None, :] * self.kernels_HDE[:, None]


class LowRankKernels(nn.Module):
    """A change of rank R to the layer's query map for each depth: query + up[h, d] (down[d] hidden).

    `down` starts at random and `up` at zero: every depth starts as ordinary attention, and the gradients of the depths
    differ from the first step. Each depth learns from its own texts alone.
    """

    def __init__(
        self,
        heads: int,
        head_size: int,
        num_depths: int,
        *,
        hidden_size: int,
        rank: int = 8,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.down = nn.Parameter(hidden_size**-0.5 * torch.randn(num_depths, rank, hidden_size, generator=generator))
        self.up = nn.Parameter(torch.zeros(heads, num_depths, rank, head_size))

    def forward(self, query_BHTE: Tensor, hidden_BTC: Tensor, depth: Tensor) -> Tensor:
        """As `DiagonalKernels.forward`."""
        if depth.shape[2:] == (1, 1):  # one depth for each text: its factors alone are read
            depth_BG = depth[:, :, 0, 0]
            down_BGRC = F.embedding(depth_BG, self.down.flatten(1)).unflatten(-1, self.down.shape[1:])
            up = F.embedding(depth_BG, self.up.transpose(0, 1).flatten(1))
            up_BGHRE = up.unflatten(-1, (len(self.up), *self.up.shape[2:]))
            features = (hidden_BTC @ down_BGRC.flatten(1, 2).mT).unflatten(-1, down_BGRC.shape[1:3])  # (B, T, G, R)
            return query_BHTE[:, None] + features.transpose(1, 2)[:, :, None] @ up_BGHRE
        features = self._features(hidden_BTC)
        if not depth.is_floating_point():
            depth = F.one_hot(depth, self.up.shape[1]).to(features.dtype)
        weighted = depth[..., None] * features[:, None, None]  # (B, G, h, T, D, R)
        change = weighted.flatten(-2).to(features.dtype) @ self.up.flatten(1, 2)  # broadcasts h to H: (B, G, H, T, E)
        return query_BHTE[:, None] + change

    def all_depths(self, query_BHTE: Tensor, hidden_BTC: Tensor) -> Tensor:
        """The query at every depth, (B, H, T, D, E)."""
        return query_BHTE[..., None, :] + torch.einsum("btdr,hdre->bhtde", self._features(hidden_BTC), self.up)

    def _features(self, hidden_BTC: Tensor) -> Tensor:
        """down[d] hidden for every depth, (B, T, D, R)."""
        return F.linear(hidden_BTC, self.down.flatten(0, 1)).unflatten(-1, self.down.shape[:2])


class GatedKernels(nn.Module):
    """One change of rank R to the layer's query map, of which every depth weighs the R parts in its own way.

    The query at depth d is query + sum_r gate[d, r] up[h, r] (down[r] hidden). Every text trains `down` and `up`,
    whatever its depth. `up` starts at zero, so each depth starts as ordinary attention; the gates start at 1 plus
    noise, so the depths come apart as `up` is trained. Depth 0 starts with all gates at 1.

    Args:
        init_std: standard deviation of the noise.
    """

    def __init__(
        self,
        heads: int,
        head_size: int,
        num_depths: int,
        *,
        hidden_size: int,
        rank: int = 8,
        init_std: float = 1.0,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        noise_DR = init_std * torch.randn(num_depths, rank, generator=generator)
        noise_DR[0] = 0.0
        self.gate = nn.Parameter(1 + noise_DR)
        self.down = nn.Parameter(hidden_size**-0.5 * torch.randn(rank, hidden_size, generator=generator))
        self.up = nn.Parameter(torch.zeros(heads, rank, head_size))

    def forward(self, query_BHTE: Tensor, hidden_BTC: Tensor, depth: Tensor) -> Tensor:
        """As `DiagonalKernels.forward`."""
        gate = depth @ self.gate.to(depth.dtype) if depth.is_floating_point() else F.embedding(depth, self.gate)
        return query_BHTE[:, None] + self._change(hidden_BTC, gate)

    def all_depths(self, query_BHTE: Tensor, hidden_BTC: Tensor) -> Tensor:
        """The query at every depth, (B, H, T, D, E)."""
        change_BDHTE = self._change(hidden_BTC, self.gate[None, :, None, None])
        return query_BHTE[..., None, :] + change_BDHTE.permute(0, 2, 3, 1, 4)

    def _change(self, hidden_BTC: Tensor, gate_BGhtR: Tensor) -> Tensor:
        """The change of the query, (B, G, H, T, E)."""
        features_BTR = F.linear(hidden_BTC, self.down)
        weighted = (features_BTR[:, None, None] * gate_BGhtR).to(features_BTR.dtype)  # (B, G, h, T, R)
        if weighted.shape[2] > 1:
            return weighted @ self.up
        change = weighted[:, :, 0] @ self.up.transpose(0, 1).flatten(1)  # all heads in one product: (B, G, T, C)
        return change.unflatten(-1, (len(self.up), -1)).transpose(2, 3)


def build_kernels(
    family: str,
    heads: int,
    head_size: int,
    num_depths: int,
    *,
    hidden_size: int,
    rotary: bool,
    rank: int,
    init_std: float,
    mixture_D: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """New kernels of a family, "diagonal", "low_rank" or "gated".

    Raises:
        ValueError: an unknown family.
    """
    sizes = (heads, head_size, num_depths)
    if family == "diagonal":
        return DiagonalKernels(*sizes, rotary=rotary, init_std=init_std, mixture_D=mixture_D, generator=generator)
    if family == "low_rank":
        return LowRankKernels(*sizes, hidden_size=hidden_size, rank=rank, generator=generator)
    if family == "gated":
        return GatedKernels(*sizes, hidden_size=hidden_size, rank=rank, init_std=init_std, generator=generator)
    raise ValueError(f"depth kernel must be one of {', '.join(KERNEL_FAMILIES)}, got {family!r}")
