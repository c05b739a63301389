"""Adapters on linear maps of chosen layers, by the PEFT library: LoRA, and what else it has.

LoRA: W x becomes W x + (alpha / r) B A x, with B zero at the start. Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation
of Large Language Models". `maw.config.peft_methods` has the other kinds.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from maw.attention.architectures import Architecture

TARGETS = ("query_value", "all")
_EXPECTED = "Failed to load the CUDA extension|Setting boft_n_butterfly_factor|Unsupported layer type|Sparse invariant"
"""Warnings of PEFT's that say nothing about the adapters here."""


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
    add_adapters(backbone, architecture, layers, "LORA", {"r": rank, "lora_alpha": alpha}, targets)


def add_adapters(
    backbone: nn.Module,
    architecture: Architecture,
    layers: Iterable[int],
    kind: str,
    settings: Mapping[str, Any],
    targets: str = "query_value",
) -> None:
    """Adds adapters of one of PEFT's kinds to linear maps of `layers` (from 1), in place, and freezes all else.

    Unlike PEFT's `inject_adapter_in_model` it takes kinds whose adapters share tensors: each adapter refers to them,
    so nothing is lost with the object that PEFT makes around the model.

    Args:
        kind: a value of PEFT's `PeftType`.
        settings: of the configuration of that kind. Its `target_modules` win over `targets`, and its
            `layers_to_transform`, from 0, over `layers`.
        targets: as in `add_lora`.

    Raises:
        ValueError: as `add_lora`; or the settings are wrong, or name no module.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING  # takes seconds to import
    from peft.tuners.tuners_utils import check_target_module_exists

    config = PEFT_TYPE_TO_CONFIG_MAPPING[kind](**settings)
    numbers = settings.get("layers_to_transform")
    if numbers not in (None, []):
        layers = [number + 1 for number in ([numbers] if isinstance(numbers, int) else numbers)]
        config.layers_to_transform = None  # PEFT would look for the number in a module's name, which not all have
    layers = list(layers)
    names = {id(module): name for name, module in backbone.named_modules()}
    if config.target_modules is None:
        found = [names[id(each)] for each in _maps(backbone, architecture, layers, targets)]
    elif config.target_modules == "all-linear":
        found = [names[id(each)] for each in _maps(backbone, architecture, layers, "all")]
    else:
        inside = _chosen(backbone, architecture, layers)
        every = (names[id(module)] for each in inside for module in each.modules())
        found = [name for name in every if check_target_module_exists(config, name)]
        if not found:
            own = (name for name, module in inside[0].named_modules() if isinstance(module, nn.Linear))
            there = dict.fromkeys(name.rpartition(".")[2] for name in own)
            text = f"target_modules {settings['target_modules']} are in no layer that the run adapts"
            raise ValueError(f"{text}; its linear maps are {', '.join(there)}")
    config.target_modules = set(found)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_EXPECTED)
        PEFT_TYPE_TO_TUNER_MAPPING[kind](backbone, config, "default")
    for module in list(backbone.modules()):
        for name, shared in list(vars(module).items()):
            if isinstance(shared, nn.Module):  # FRoD's adapters refer to their projection without owning it
                module.add_module(f"shared_{name}", shared)


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
    found = []
    for own in _chosen(backbone, architecture, layers):
        if targets == "all":
            found += [module for module in own.modules() if isinstance(module, nn.Linear)]
        else:
            found += [own.get_submodule(name) for name in architecture.query_value_maps]
    return found


def _chosen(backbone: nn.Module, architecture: Architecture, layers: Iterable[int]) -> list[nn.Module]:
    modules = architecture.layers(backbone)
    for layer in layers:
        if not 1 <= layer <= len(modules):
            raise ValueError(f"layer {layer} is outside 1..{len(modules)}")
    return [modules[layer - 1] for layer in layers]
