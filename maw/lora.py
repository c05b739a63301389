"""LoRA adapters on chosen layers, through PEFT.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models"; the implementation is PEFT's.
"""

from __future__ import annotations

from collections.abc import Iterable

from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from maw.architectures import Architecture


def add_lora(backbone: nn.Module, architecture: Architecture, layers: Iterable[int], *, rank: int, alpha: int) -> None:
    """Adds adapters to the query and value projections of `layers` (from 1), in place, and freezes all the rest.

    An adapter starts as no change at all: its second factor is zero.

    Raises:
        ValueError: a layer that the backbone does not have.
    """
    names = {id(module): name for name, module in backbone.named_modules()}
    modules = architecture.layers(backbone)
    targets = []
    for layer in layers:
        if not 1 <= layer <= len(modules):
            raise ValueError(f"layer {layer} is outside 1..{len(modules)}")
        targets += [f"{names[id(modules[layer - 1])]}.{target}" for target in architecture.lora_targets]
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, bias="none", target_modules=targets)
    inject_adapter_in_model(config, backbone)
