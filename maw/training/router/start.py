"""Where a router begins: near uniform, or with the clusters that the training texts' states fall into.

A router whose depths are all alike has nothing to learn from, and depths that every text trains alike stay alike. With
`router_start="clusters"` a new policy sends like texts to like depths before the first step, so each depth is trained
on texts of its own and the depths come apart. As long as all kernels start as the pretrained attention this changes no
output: MAW at step 0 is still the pretrained model.

The policy is the posterior of a mixture of Gaussians of one width: p(d | x) in proportion to exp(-|z - c_d|^2 / 2
s^2), with z the main directions of the normalised state, c_d the centres that k-means finds among queries and passages
of the training split together, and s^2 the mean squared distance to the nearest centre along one direction, no less
than a hundredth of that to the common mean, divided by `router_sharpness`. It is linear in x but for a constant, so
the router's map holds it.

Letters: N states, F features, D depths, R directions; h is 1 or H by how the router routes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn

from maw.attention.routers import PolicyRouter
from maw.models.tokenized import Source

DIRECTIONS = 16  # of the state's features that clusters are sought in
TEXTS = 2048  # of each kind that are looked at
STATES = 16_384  # of each kind, where tokens are routed
NARROWEST = 0.01  # of all states' variance: with no more texts than depths a cluster has none
_BATCH = 64


def start_from_clusters(
    encoder: nn.Module,
    sources: Iterable[Source],
    rows: Iterable[np.ndarray],
    seed: int,
    sharpness: float,
) -> None:
    """Sets the routers of a MAW encoder to the clusters of the texts' states, in place.

    Args:
        encoder: a MAW encoder whose kernels have not been trained.
        sources: where the encoder's inputs come from: queries, passages.
        rows: the texts of each source that are trained on.
        seed: of the choice of texts and of the first centres.
        sharpness: how much narrower than the clusters the Gaussians are.
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


def cluster_policy(state_NF: Tensor, depths: int, seed: int, sharpness: float) -> tuple[Tensor, Tensor]:
    """The linear map (F, D) and bias (D,) of a policy that follows the clusters of `state_NF`."""
    mean_F = state_NF.mean(0)
    _, _, directions = torch.linalg.svd(state_NF - mean_F, full_matrices=False)
    directions_FR = directions[:DIRECTIONS].T
    point_NR = ((state_NF - mean_F) @ directions_FR).double().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of clusters without a text, where there are fewer texts than depths
        centre_DR, label_N = kmeans2(point_NR, depths, iter=100, minit="++", seed=seed, missing="warn")
    within, whole = float(((point_NR - centre_DR[label_N]) ** 2).mean()), float((point_NR**2).mean())
    variance = max(within, NARROWEST * whole, 1e-12) / sharpness
    centre_DR = torch.from_numpy(centre_DR).float()
    weight_FD = directions_FR @ centre_DR.T / variance
    bias_D = -(centre_DR**2).sum(1) / (2 * variance) - mean_F @ weight_FD
    return weight_FD, bias_D


def _states(encoder: nn.Module, source: Source, rows: np.ndarray, random: np.random.Generator) -> list[Tensor]:
    """What the routers see of texts at the pretrained attention: for each MAW layer float32 (h, N, F)."""
    parts: list[list[Tensor]] = []
    was_training = encoder.training
    encoder.eval()
    device = next(encoder.parameters()).device
    with torch.no_grad():
        for start in range(0, len(rows), _BATCH):
            inputs = {name: each.to(device) for name, each in source.batch(rows[start : start + _BATCH]).items()}
            mask = inputs["attention_mask"].bool()
            states = encoder(inputs, mode="group")["states"]  # per layer (B, 1, h, t, F)
            parts.append([_flat(each[:, 0], mask).cpu() for each in states])
    encoder.train(was_training)
    layers = [torch.cat(each, dim=1) for each in zip(*parts, strict=True)]
    kept = torch.from_numpy(random.permutation(layers[0].shape[1])[:STATES])
    return [each[:, kept] for each in layers]


def _flat(state_BhtF: Tensor, mask_BT: Tensor) -> Tensor:
    """States of texts, or of their real tokens, side by side: (h, N, F)."""
    state_hBtF = state_BhtF.transpose(0, 1)
    return state_hBtF[:, :, 0] if state_hBtF.shape[2] == 1 else state_hBtF[:, mask_BT]
