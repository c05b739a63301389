"""Depth attention for any supported Hugging Face model, outside of a benchmark.

    import maw
    model = maw.add_maw(AutoModel.from_pretrained("facebook/contriever"), layers=[12], depths=32, router="soft")
    print(maw.trained_parameters(model))
    ...                                                       # train it as any other model
    maw.save_maw(model, "my-maw")                             # safetensors and JSON, see `maw.models.save_maw`
    model = maw.load_maw(AutoModel.from_pretrained("facebook/contriever"), "my-maw")
    maw.attention_maps(model, ["a text"]).shape               # texts x heads x queries x keys x depths

As `peft.get_peft_model` does, `add_maw` freezes what the model had; it changes the model in place and returns it, and
it is called, moved and trained as before. At its start it computes what the pretrained one does. Called directly a
model takes its routers' greedy depths, in training too: a `soft` router then learns from any loss, while `grpo` and
`supervised` routers learn from the reward of sampled depths, which `maw.training.train.train_retriever` alone draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from maw.attention.architectures import Architecture, architecture_of
from maw.attention.install import build_depth_attention
from maw.attention.layer import MAWAttentionLayer
from maw.attention.routers import ROUTERS
from maw.config.fields import Layers, Problem
from maw.config.layers import parse_layers
from maw.config.tier1_config import Tier1Config, gather
from maw.errors import ConfigError, ModelError
from maw.models.encoder import NonMAWEncoder
from maw.models.pretrained import model_type_of
from maw.models.retriever import BaselineRetriever, depth_options

_FIELD_OF = {"layers": "maw_layers", "depths": "depth_dim", "train_layers": "finetune_layers"}
_ARGUMENT_OF = {field: argument for argument, field in _FIELD_OF.items()}


def add_maw(
    model: nn.Module,
    layers: Layers = "last",
    depths: int = 32,
    router: str = "grpo",
    *,
    route_by: str = "sequence",
    depth_kernel: str = "diagonal",
    kernel_rank: int = 4,
    kernel_init_std: float = 0.02,
    fixed_depth: int = 0,
    depth_values: bool = False,
    train_layers: Layers = "none",
    seed: int = 42,
) -> nn.Module:
    """Installs depth attention in some layers of a model, in place.

    The model's own weights are frozen, but for a head on the encoder and `train_layers`; depth kernels and routers are
    to be trained. Of a model with adapters of PEFT what PEFT left to be trained still is.

    Args:
        model: a Hugging Face encoder or a model with a head on one; also wrapped by PEFT or sentence-transformers.
        layers: where, from 1, or from the end with -1; or "last" or "all".
        depths: D, weightings of every query-key pair.
        router: who picks a depth: "grpo", "supervised", "soft" or "fixed".
        route_by: what shares a pick: "sequence", "head" or "token".
        depth_kernel: "diagonal" or "low_rank".
        kernel_rank: of a low-rank kernel.
        kernel_init_std: noise that sets diagonal depths apart.
        fixed_depth: of the fixed router.
        depth_values: let depths change the values too, an ablation that is not MAW.
        train_layers: layers whose own weights are to be trained too.
        seed: of the kernels' start.

    Returns:
        `model`.

    Raises:
        ConfigError: arguments that are wrong or contradict each other, all of them; layers that the model lacks.
        ModelError: a family that cannot carry depth attention, with the reason; a model that has it already; a
            language model that predicts a next token.
    """
    settings = {name: each for name, each in locals().items() if name != "model"}
    backbone, architecture = backbone_of(model)
    if architecture.causal and getattr(model, "get_output_embeddings", lambda: None)() is not None:
        text = "a depth is picked from all tokens of a text, so a model that predicts the next one would see it"
        raise ModelError(f"{type(model).__name__}: {text}; pass the model below its head, as AutoModel gives it")
    if maw_layers(model):
        raise ModelError("the model has depth attention already; load it anew to install another one")
    config = _checked(settings)
    count = len(architecture.layers(backbone))
    numbers, trained = (
        parse_layers(getattr(config, _FIELD_OF[name]), count, name) for name in ("layers", "train_layers")
    )
    if not numbers:
        raise ConfigError(["layers: none leaves the model as it is; name a layer"])
    if not any(isinstance(module, BaseTunerLayer) for module in backbone.modules()):  # PEFT has frozen what it adapts
        backbone.requires_grad_(False)
    for number in trained:
        architecture.layers(backbone)[number - 1].requires_grad_(True)
    generator = torch.Generator().manual_seed(config.seed)
    for number in numbers:
        layer = architecture.layers(backbone)[number - 1]
        made = build_depth_attention(
            backbone, architecture, number, **depth_options(config, backbone), generator=generator
        )
        _place(made, layer)
        architecture.replace_attention(layer, made)
    backbone.maw_settings = settings | {"layers": list(numbers), "train_layers": list(trained) or "none"}
    return model


def maw_layers(model: nn.Module) -> dict[int, MAWAttentionLayer]:
    """The depth attention of a model by the number of its layer, from 1, bottom first."""
    backbone, architecture = backbone_of(model)
    modules = (architecture.attention(layer) for layer in architecture.layers(backbone))
    return {i: each for i, each in enumerate(modules, start=1) if isinstance(each, MAWAttentionLayer)}


@dataclass(frozen=True)
class TrainedParameters:
    """How many numbers of a model training may change, by what they are; `print` shows it as one line."""

    kernels: int
    """Numbers of depth kernels."""
    routers: int
    """Numbers of routers."""
    other: int
    """All others that training may change, such as layers, adapters or a head."""
    total: int
    """All of the model, frozen ones included."""

    @property
    def trained(self) -> int:
        """All that training may change."""
        return self.kernels + self.routers + self.other

    def __str__(self) -> str:
        parts = {"depth kernels": self.kernels, "routers": self.routers, "other": self.other}
        listed = ", ".join(f"{name} {count:,}" for name, count in parts.items())
        return f"trained: {self.trained:,} of {self.total:,} ({self.trained / self.total:.2%}): {listed}"


def trained_parameters(model: nn.Module) -> TrainedParameters:
    """Counts the numbers of a model that training may change: depth kernels, routers, and all others.

    Raises:
        ModelError: as `backbone_of`.
    """
    layers = maw_layers(model).values()
    kernels = {id(p) for layer in layers for p in layer.kernel_parameters()}
    routers = {id(p) for layer in layers for p in layer.router.parameters()}
    counts = {"kernels": 0, "routers": 0, "other": 0, "total": 0}
    for parameter in model.parameters():
        counts["total"] += parameter.numel()
        if parameter.requires_grad:
            kind = "kernels" if id(parameter) in kernels else "routers" if id(parameter) in routers else "other"
            counts[kind] += parameter.numel()
    return TrainedParameters(**counts)


def backbone_of(model: nn.Module) -> tuple[nn.Module, Architecture]:
    """The Hugging Face encoder inside a model, and the adapter of its family.

    Raises:
        ModelError: there is none, or it cannot carry depth attention.
    """
    if isinstance(model, BaselineRetriever):
        model = model.encoder
    if isinstance(model, NonMAWEncoder):
        return model.backbone, model.architecture
    if isinstance(model, nn.Sequential) and len(model):  # sentence-transformers
        model = getattr(model[0], "auto_model", model)
    if hasattr(model, "get_base_model"):  # PEFT
        model = model.get_base_model()
    backbone = getattr(model, "base_model", model)
    config = getattr(backbone, "config", None)
    if config is None or not hasattr(config, "model_type"):
        raise ModelError(f"{type(model).__name__} is no Hugging Face model; pass one of AutoModel.from_pretrained")
    return backbone, architecture_of(model_type_of(config.name_or_path or type(model).__name__, config.to_dict()))


def _checked(settings: Mapping[str, Any]) -> Tier1Config:
    """The arguments as the configuration that holds the rules for them."""
    start = {"router_start": "uniform"}  # clusters are a trainer's to find: there are no texts here
    config, problems = gather(start | {_FIELD_OF.get(name, name): each for name, each in settings.items()})
    if ROUTERS[config.router].needs_text_keys:  # which a layer does not see
        text = f"{config.router} is a control of the benchmark, which hands it the texts; use fixed"
        problems.append(Problem("router", text))
    if problems:
        raise ConfigError([f"{_ARGUMENT_OF.get(each.name, each.name)}: {each.text}" for each in problems])
    return config


def _place(made: MAWAttentionLayer, layer: nn.Module) -> None:
    """Device and mode of the layer; the router, and weights near one, stay in float32, which they need."""
    like = next(made.base.parameters())
    made.to(like.device).train(layer.training)
    for kernels in (made.kernels, made.value_kernels):
        if kernels is not None and hasattr(kernels, "down"):
            kernels.to(like.dtype)
