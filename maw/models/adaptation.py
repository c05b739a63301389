"""How the benchmark's own methods change a pretrained encoder, and what `Method.adapt` gets and gives.

    trained = method.adapt(backbone, context)        # changes the backbone in place; returns what is trained
    method.merge(backbone, context)                  # puts it into the pretrained weights, where that is possible

Each function here is the `adapt` or `merge` of a row of `maw.config.methods`, and does what a user's own class does.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from maw.attention.architectures import Architecture
from maw.attention.install import build_depth_attention, install_depths
from maw.config.peft_methods import Adapter
from maw.config.tier1_config import Tier1Config, kernel_noise
from maw.errors import ConfigError, ModelError
from maw.models import lora
from maw.models.cpu_kernels import use_faster_modules
from maw.models.lora import add_lora, matched_rank
from maw.models.pretrained import ModelSpec

logger = logging.getLogger(__name__)

Trained = Iterable[nn.Parameter] | Mapping[str, Iterable[nn.Parameter]] | None


@dataclass
class Context:
    """What a method may know of the model that it adapts and of the run.

    Attributes:
        config: the run's configuration as the method uses it, with its learning rates and its seed.
        spec: sizes of the model (`num_layers`, `num_heads`, `hidden_dim`), and how the run uses it.
        architecture: adapter of its family: where a layer keeps its attention and its linear maps.
        layers: the modules of the layers that the run adapts (MAW layers and those to fine-tune), by number from 1.
        finetune_layers: numbers of the layers that LoRA adapts and MAW trains whole, ascending.
        maw_layers: numbers of the layers with depths, ascending.
        dropout_layers: numbers of the layers that run with dropout in training; a method may set it. None: all in
            which something is trained or changed.
    """

    config: Tier1Config
    spec: ModelSpec
    architecture: Architecture
    layers: dict[int, nn.Module]
    finetune_layers: tuple[int, ...]
    maw_layers: tuple[int, ...]
    dropout_layers: tuple[int, ...] | None = None

    @property
    def seed(self) -> int:
        """The training's seed; random numbers of torch follow from it already."""
        return self.config.seed


def change_nothing(backbone: nn.Module, context: Context) -> Trained:
    """Zero-shot: nothing is trained."""
    return []


def as_configured(backbone: nn.Module, context: Context) -> Trained:
    """What `use_lora` and `train_layers` say, for a retriever that is made from Python without a method."""
    if context.config.use_lora:
        return add_adapters(backbone, context)
    return train_layers(backbone, context) if context.config.train_layers else change_nothing(backbone, context)


def add_adapters(backbone: nn.Module, context: Context) -> Trained:
    """LoRA on the maps that `lora_targets` names; on all maps, at the rank that has MAW's number of parameters."""
    config, architecture, rank = context.config, context.architecture, context.config.lora_rank
    layers = _adapted(context, "LoRA nothing to adapt", "use_lora")
    if config.lora_targets == "all":
        wanted = count_maw_parameters(backbone, context)
        rank = matched_rank(backbone, architecture, layers, wanted)
        logger.info("LoRA on all linear maps at rank %d, to match MAW's %d trained parameters", rank, wanted)
    alpha = rank * config.lora_alpha / config.lora_rank
    torch.manual_seed(context.seed)  # counting has drawn numbers
    add_lora(backbone, architecture, layers, rank=rank, alpha=alpha, targets=config.lora_targets)
    use_faster_modules(backbone)  # again, for the adapters' maps
    return None


def add_peft(backbone: nn.Module, context: Context, adapter: Adapter) -> Trained:
    """Adapters of another kind of PEFT's, where `lora` has its own."""
    settings = {**adapter.settings, **{key: getattr(context.config, name) for key, name in adapter.from_run.items()}}
    layers = _adapted(context, "a PEFT method nothing to adapt", "use_lora")
    lora.add_adapters(backbone, context.architecture, layers, adapter.kind, settings, context.config.lora_targets)
    use_faster_modules(backbone)  # again, for the adapters' maps
    return None


def merge_adapters(backbone: nn.Module, context: Context) -> None:
    """Puts each adapter into the weight of its map, and removes it."""
    for name, module in list(backbone.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, own = name.rpartition(".")
            setattr(backbone.get_submodule(parent), own, module.get_base_layer())


def train_layers(backbone: nn.Module, context: Context) -> Trained:
    """Whole layers."""
    return _weights(context, _adapted(context, "nothing to train", "train_layers"))


def add_depths(backbone: nn.Module, context: Context) -> Trained:
    """Depth attention in `maw_layers`; `finetune_layers` are trained whole, all other layers without dropout."""
    check_depths(context.spec.name, context.architecture)
    if not context.maw_layers:
        text = "maw_layers: none leaves a MAWRetriever without MAW; name a layer, or use BaselineRetriever"
        raise ConfigError([text])
    options = depth_options(context.config, backbone)
    installed = install_depths(backbone, context.architecture, context.maw_layers, seed=context.seed, **options)
    own = [parameter for each in installed for parameter in (*each.kernel_parameters(), *each.router.parameters())]
    theirs = {id(parameter) for parameter in own}
    context.dropout_layers = context.finetune_layers
    whole = (each for each in _weights(context, context.finetune_layers) if id(each) not in theirs)
    return {
        "learning_rate": whole,
        "kernel_learning_rate": [each for layer in installed for each in layer.kernel_parameters()],
        "router_learning_rate": [each for layer in installed for each in layer.router.parameters()],
    }


def check_depths(name: str, architecture: Architecture) -> None:
    """Raises ModelError for a family that cannot carry depth attention, with the reason."""
    if architecture.no_depths:
        raise ModelError(f"model {name} cannot carry MAW: {architecture.no_depths}")


def depth_options(config: Tier1Config, backbone: nn.Module) -> dict[str, Any]:
    """Arguments of `maw.attention.install.build_depth_attention` from a configuration."""
    return {
        "depths": config.depth_dim,
        "kernels": {
            "family": config.depth_kernel,
            "rank": min(config.kernel_rank, backbone.config.hidden_size),  # a higher rank adds no expressiveness
            "init_std": kernel_noise(config),
        },
        "router": {"name": config.router, "route_by": config.route_by, "fixed_depth": config.fixed_depth},
        "depth_values": config.depth_values,
    }


def count_maw_parameters(backbone: nn.Module, context: Context) -> int:
    """The number of parameters that MAW trains in a plain backbone: whole layers, depth kernels and routers."""
    trained = list(_weights(context, context.finetune_layers))
    options = depth_options(context.config, backbone) | {"depth_values": False}
    for number in context.maw_layers:
        attention = build_depth_attention(backbone, context.architecture, number, **options)
        trained += [*attention.kernel_parameters(), *attention.router.parameters()]
    return sum(parameter.numel() for parameter in trained)


def _adapted(context: Context, what: str, setting: str) -> list[int]:
    """Numbers of the layers that a method without depths adapts, ascending.

    Raises:
        ConfigError: there is none.
    """
    layers = sorted({*context.finetune_layers, *(context.maw_layers if context.config.adapt_maw_layers else ())})
    if not layers:
        text = f"finetune_layers: none leaves {what}; name a layer, or leave {setting} False"
        raise ConfigError([text])
    return layers


def _weights(context: Context, numbers: Iterable[int]) -> list[nn.Parameter]:
    """The weights of some layers, without those that other layers use, too."""
    return [each for number in numbers for each in context.architecture.own_parameters(context.layers[number])]
