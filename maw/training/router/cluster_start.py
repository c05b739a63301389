"""Initial policy of a router: near uniform, or from clusters of the training texts' states.

With `router_start="clusters"` the initial policy prefers the same depth for similar texts. If all kernels start as
pretrained attention, the output does not change: MAW at step 0 is the pretrained model. `router_sharpness` says how
sure the policy is. A sure one makes each depth's texts its own, which low-rank and diagonal kernels need to come
apart, but leaves nothing to learn from in a group of its samples; gated kernels come apart without it.

The policy is the posterior of a mixture of Gaussians with one width:

    p(d | x) proportional to exp(-|z - c_d|^2 / (2 s^2))

z is the normalised state x in its principal directions. k-means finds the centres c_d among queries and passages of
the training split together. s^2 is the mean squared distance to the nearest centre for each direction, at least a
hundredth of the mean squared distance to the common mean, divided by `router_sharpness`. log p is linear in x up to a
constant, so it fits into the router's linear map.

Letters: B texts, N states, T tokens, F features, D depths, R directions; h is 1 or H and t is 1 or T, as the router
decides.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from maw.attention.routers import PolicyRouter
from maw.models.batching import encoding_tokens
from maw.models.cpu_kernels import packed_weights
from maw.models.encode import evaluating
from maw.models.tokenized import Source

DIRECTIONS = 16  # principal directions of the states
TEXTS = 2048  # most texts of each kind
STATES = 16_384  # most states of each kind, if tokens are routed
NARROWEST = 0.01  # least variance, relative to all states': with no more texts than depths a cluster has none
_BATCH = 128


def start_from_clusters(
    encoder: nn.Module, sources: Iterable[Source], rows: Iterable[np.ndarray], seed: int, sharpness: float
) -> None:
    """Initialises the routers of a MAW encoder from clusters of the texts' states, in place.

    Args:
        sources: sources of the encoder's inputs: queries and passages.
        rows: rows of the training texts in each source.
        sharpness: the Gaussians' variance is the clusters' variance divided by this.
    """
    if not any(isinstance(attention.router, PolicyRouter) for attention in encoder.maw_attention):
        return
    random = np.random.default_rng(seed)
    sides = [
        _states(encoder, source, random.choice(each, min(TEXTS, len(each)), replace=False), random)
        for source, each in zip(sources, rows, strict=True)
    ]
    for layer, attention in enumerate(encoder.maw_attention):
        router = attention.router
        if not isinstance(router, PolicyRouter):
            continue
        state_hNF = torch.cat([side[layer] for side in sides], dim=1)
        maps = [cluster_policy(router.norm(each), router.num_depths, seed, sharpness) for each in state_hNF]
        with torch.no_grad():
            router.weight.copy_(torch.stack([weight for weight, _ in maps]))
            router.bias.copy_(torch.stack([bias for _, bias in maps])[:, None])


def cluster_policy(state_NF: Tensor, num_depths: int, seed: int, sharpness: float) -> tuple[Tensor, Tensor]:
    """The linear map (F, D) and bias (D,) of the policy of the clusters of `state_NF`."""
    from scipy.cluster.vq import kmeans2  # here, because it takes a second to import

    mean_F = state_NF.mean(0)
    _, _, directions = torch.linalg.svd(state_NF - mean_F, full_matrices=False)
    directions_FR = directions[:DIRECTIONS].T
    point_NR = ((state_NF - mean_F) @ directions_FR).double().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about empty clusters, if there are fewer texts than depths
        centre_DR, label_N = kmeans2(point_NR, num_depths, iter=100, minit="++", seed=seed, missing="warn")
    within, whole = float(((point_NR - centre_DR[label_N]) ** 2).mean()), float((point_NR**2).mean())
    variance = max(within, NARROWEST * whole, 1e-12) / sharpness
    centre_DR = torch.from_numpy(centre_DR).float()
    weight_FD = directions_FR @ centre_DR.T / variance
    bias_D = -(centre_DR**2).sum(1) / (2 * variance) - mean_F @ weight_FD
    return weight_FD, bias_D


def _states(encoder: nn.Module, source: Source, rows: np.ndarray, random: np.random.Generator) -> list[Tensor]:
    """The routers' states of texts, float32 (h, N, F) for each MAW layer."""
    device = next(encoder.parameters()).device
    budget = encoding_tokens(encoder.precision) if device.type == "cpu" else None
    found: dict[int, list[Tensor]] = {}
    order = np.unique(rows)
    order = order[np.argsort(-source.lengths()[order], kind="stable")]
    with evaluating(encoder), torch.no_grad(), packed_weights():
        for part, inputs in source.batches(order, _BATCH, budget):
            inputs = {name: each.to(device) for name, each in inputs.items()}
            states = encoder(inputs, mode="group")["states"]  # per layer (B, 1, h, t, F)
            for i, (row, tokens) in enumerate(
                zip(part.tolist(), inputs["attention_mask"].sum(1).tolist(), strict=True)
            ):
                found[row] = [each[i, 0, :, :tokens].cpu() for each in states]  # :tokens keeps t = 1
    layers = [torch.cat(each, dim=1) for each in zip(*(found[row] for row in rows.tolist()), strict=True)]
    kept = torch.from_numpy(random.permutation(layers[0].shape[1])[:STATES])
    return [each[:, kept] for each in layers]
