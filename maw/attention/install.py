"""Builds depth attention for a Hugging Face layer."""

from __future__ import annotations

from collections.abc import Mapping
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
    """Depth attention around the attention module of a layer (from 1), which stays where it is.

    Args: as `MAWWithGRPOEncoder`; `generator` is where the kernels' noise comes from.
    """
    attention = architecture.attention(architecture.layers(backbone)[layer - 1])
    heads, size = architecture.heads(attention)
    known: dict[str, Any] = {"heads": heads, "head_size": size, "depths": depths}
    chooser = build_router(**known, **router)
    start = {
        "hidden_size": backbone.config.hidden_size,
        "mixture_D": chooser.first_mixture_D,
        "generator": generator,
    }
    of_query = build_kernels(**known, **kernels, **start, rotary=architecture.rotary)
    of_value = build_kernels(**known, **kernels, **start, rotary=False) if depth_values else None
    return MAWAttentionLayer(attention, architecture, of_query, chooser, of_value)
