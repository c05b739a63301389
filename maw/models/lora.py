"""LoRA adapters on chosen layers, by PEFT: W x becomes W x + (alpha / r) B A x, with B zero at the start.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models".
"""

from __future__ import annotations

from collections.abc import Iterable

from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from maw.attention.architectures import Architecture

TARGETS = ("query_value", "all")


def add_lora(
    backbone: nn.Module,
    architecture: Architecture,
    layers: Iterable[int],
    *,
    rank: int,
    alpha: float,
    targets: str = "query_value",
) -> None:
    """Adds adapters to linear maps of `layers` (from 1), in place, and freezes all other weights.

    Args:
        targets: "query_value" for these two projections, "all" for every linear map of a layer.

    Raises:
        ValueError: a layer that the backbone does not have, or unknown targets.
    """
    names = {id(module): name for name, module in backbone.named_modules()}
    modules = [names[id(each)] for each in _maps(backbone, architecture, layers, targets)]
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, bias="none", target_modules=modules)
    inject_adapter_in_model(config, backbone)


def matched_rank(backbone: nn.Module, architecture: Architecture, layers: Iterable[int], parameters: int) -> int:
    """The rank at which adapters on all linear maps of `layers` have a number of parameters nearest to `parameters`.

    Each rank of an adapter has as many parameters as its map has inputs and outputs. The rank may exceed the hidden
    size: it matches the number of parameters, not the expressiveness.

    Returns:
        The rank, at least 1.
    """
    each_rank = sum(one.in_features + one.out_features for one in _maps(backbone, architecture, layers, "all"))
    return max(1, round(parameters / each_rank))


def _maps(backbone: nn.Module, architecture: Architecture, layers: Iterable[int], targets: str) -> list[nn.Module]:
    if targets not in TARGETS:
        raise ValueError(f"targets must be one of {', '.join(TARGETS)}, got {targets!r}")
    modules = architecture.layers(backbone)
    found = []
    for layer in layers:
        if not 1 <= layer <= len(modules):
            raise ValueError(f"layer {layer} is outside 1..{len(modules)}")
        own = modules[layer - 1]
        if targets == "all":
            found += [module for module in own.modules() if isinstance(module, nn.Linear)]
        else:
            found += [own.get_submodule(name) for name in architecture.query_value_maps]
    return found
