"""Builds depth attention for a Hugging Face layer, and puts it into an encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from maw.attention.architectures import Architecture
from maw.attention.depth_kernels import build_kernels
from maw.attention.layer import MAWAttentionLayer
from maw.attention.routers import build_router


def build_depth_attention(
    backbone: nn.Module,
    architecture: Architecture,
    layer: int,
    *,
    depths: int,
    kernels: Mapping[str, Any],
    router: Mapping[str, Any],
    depth_values: bool = False,
    generator: torch.Generator | None = None,
) -> MAWAttentionLayer:
    """Makes depth attention around the attention module of a layer; the caller puts it into the backbone.

    Args: as `MAWWithGRPOEncoder`, and
        layer: number of the layer, from 1.
        generator: source of the kernels' noise.
    """
    attention = architecture.attention(architecture.layers(backbone)[layer - 1])
    if not hasattr(attention, "config"):  # MPNet's attention has none; `Architecture.attend` reads the backend's name
        attention.config = backbone.config
    heads, head_size = architecture.heads(attention)
    made_router = build_router(heads=heads, head_size=head_size, depths=depths, **router)
    options = {
        "heads": heads,
        "head_size": head_size,
        "num_depths": depths,
        "hidden_size": backbone.config.hidden_size,
        "mixture_D": made_router.first_mixture_D,
        "generator": generator,
        **kernels,
    }
    query_kernels = build_kernels(**options, rotary=architecture.rotary)
    value_kernels = build_kernels(**options, rotary=False) if depth_values else None
    return MAWAttentionLayer(attention, architecture, query_kernels, made_router, value_kernels)


def install_depths(
    backbone: nn.Module, architecture: Architecture, layers: Sequence[int], *, seed: int, **options: Any
) -> list[MAWAttentionLayer]:
    """Puts depth attention into some layers (from 1) of an encoder, in place; returns it, as `layers` are named.

    Args: as `build_depth_attention`, and
        seed: seed of the kernels' noise.
    """
    generator = torch.Generator().manual_seed(seed)
    installed = []
    for number in layers:
        made = build_depth_attention(backbone, architecture, number, generator=generator, **options)
        architecture.replace_attention(architecture.layers(backbone)[number - 1], made)
        installed.append(made)
    return installed
