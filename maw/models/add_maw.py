"""Adds depth attention to any supported Hugging Face model, outside of the benchmark.

    import maw
    model = maw.add_maw(AutoModel.from_pretrained("facebook/contriever"), layers=[12], depths=32, router="soft")
    print(maw.trained_parameters(model))
    ...                                                       # train it like any other model
    maw.save_maw(model, "my-maw")                             # safetensors and JSON, see `maw.models.save_maw`
    model = maw.load_maw(AutoModel.from_pretrained("facebook/contriever"), "my-maw")
    maw.attention_maps(model, ["a text"]).shape               # texts x heads x queries x keys x depths

Like `peft.get_peft_model`, `add_maw` freezes the model's own weights. It changes the model in place and returns it;
the model is called, moved and trained as before. Untrained, it computes the same as the pretrained model. A direct
call uses the routers' greedy depths, in training too: a `soft` router then learns from any loss; `grpo` and
`supervised` routers learn only from rewards of sampled depths, that is in `maw.training.train.train_retriever`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from maw.attention.architectures import Architecture, architecture_of
from maw.attention.depth_kernels import DiagonalKernels
from maw.attention.install import build_depth_attention
from maw.attention.layer import MAWAttentionLayer
from maw.attention.routers import ROUTERS
from maw.config.fields import Layers, Problem
from maw.config.layers import parse_layers
from maw.config.tier1_config import Tier1Config, gather
from maw.errors import ConfigError, ModelError
from maw.models.adaptation import check_depths, depth_options
from maw.models.encoder import NonMAWEncoder
from maw.models.pretrained import model_type_of
from maw.models.retriever import BaselineRetriever

_FIELD_OF = {"layers": "maw_layers", "depths": "depth_dim", "train_layers": "finetune_layers"}
_ARGUMENT_OF = {field: argument for argument, field in _FIELD_OF.items()}


def add_maw(
    model: nn.Module,
    layers: Layers = "last",
    depths: int = 32,
    router: str = "grpo",
    *,
    route_by: str = "sequence",
    depth_kernel: str = "gated",
    kernel_rank: int = 8,
    kernel_init_std: float | None = None,
    fixed_depth: int = 0,
    depth_values: bool = False,
    train_layers: Layers = "none",
    seed: int = 42,
) -> nn.Module:
    """Installs depth attention in some layers of a model, in place.

    The depth kernels, the routers, `train_layers` and a head on the encoder are trainable; the encoder's other weights
    are frozen. In a model with PEFT adapters, parameters that PEFT trains stay trainable.

    Args:
        model: a Hugging Face encoder or a model with a head on one; also wrapped by PEFT or sentence-transformers.
        layers: layer numbers from 1, or from the end with -1; or "last" or "all".
        depths: D, the number of weightings of every query-key pair.
        router: "grpo", "supervised", "soft" or "fixed".
        route_by: "sequence" for one depth per text, "head" for one per head, "token" for one per token.
        depth_kernel: "gated", "low_rank" or "diagonal".
        kernel_rank: rank of the change of a gated or low-rank kernel.
        kernel_init_std: standard deviation of the noise that makes depths differ; None: 1 for gates, 0.02 for diagonal
            kernels.
        fixed_depth: depth of the fixed router.
        depth_values: whether depths also change the values, an ablation that is not MAW.
        train_layers: layers whose own weights are trained too.
        seed: seed of the kernels' initial values.

    Returns:
        `model`.

    Raises:
        ConfigError: arguments that are wrong or contradict each other (all are listed); layers that the model lacks.
        ModelError: a family that cannot carry depth attention, with the reason; a model that has depth attention
            already; a language model that predicts the next token.
    """
    settings = {name: each for name, each in locals().items() if name != "model"}
    backbone, architecture = backbone_of(model)
    check_depths(backbone.config.name_or_path or type(model).__name__, architecture)
    if hasattr(backbone, "decoder"):
        text = f"the encoder is needed without its decoder; load it with {architecture.model_class}"
        raise ModelError(f"{type(model).__name__}: {text}")
    if architecture.causal and getattr(model, "get_output_embeddings", lambda: None)() is not None:
        text = "a router reads all tokens of a text, so the next token would leak into its prediction"
        raise ModelError(f"{type(model).__name__}: {text}; pass the model without its head, as AutoModel loads it")
    if maw_layers(model):
        raise ModelError("the model has depth attention already; load the pretrained model again")
    config = _checked(settings)
    count = len(architecture.layers(backbone))
    numbers, trained = (
        parse_layers(getattr(config, _FIELD_OF[name]), count, name) for name in ("layers", "train_layers")
    )
    if not numbers:
        raise ConfigError(["layers: none leaves the model as it is; name a layer"])
    from peft.tuners.tuners_utils import BaseTunerLayer  # here, because it takes seconds to import

    if not any(isinstance(module, BaseTunerLayer) for module in backbone.modules()):  # PEFT has frozen the rest
        backbone.requires_grad_(False)
    for number in trained:
        for parameter in architecture.own_parameters(architecture.layers(backbone)[number - 1]):
            parameter.requires_grad_(True)
    generator = torch.Generator().manual_seed(config.seed)
    for number in numbers:
        layer = architecture.layers(backbone)[number - 1]
        made = build_depth_attention(
            backbone, architecture, number, **depth_options(config, backbone), generator=generator
        )
        like = next(made.base.parameters())
        made.to(like.device).train(layer.training)
        for kernels in (made.kernels, made.value_kernels):
            if not isinstance(kernels, DiagonalKernels | None):  # these, and routers, need float32's precision
                kernels.to(like.dtype)
        architecture.replace_attention(layer, made)
    backbone.maw_settings = settings | {"layers": list(numbers), "train_layers": list(trained) or "none"}
    return model


def maw_layers(model: nn.Module) -> dict[int, MAWAttentionLayer]:
    """The model's depth attention modules by layer number from 1, bottom first."""
    backbone, architecture = backbone_of(model)
    modules = (architecture.attention(layer) for layer in architecture.layers(backbone))
    return {i: each for i, each in enumerate(modules, start=1) if isinstance(each, MAWAttentionLayer)}


@dataclass(frozen=True)
class TrainedParameters:
    """Numbers of trained parameters of a model by kind; `print` shows them as one line."""

    kernels: int
    """Trained parameters of depth kernels."""
    routers: int
    """Trained parameters of routers."""
    other: int
    """All other trained parameters, such as those of layers, adapters or a head."""
    total: int
    """All parameters of the model, frozen ones included."""

    @property
    def trained(self) -> int:
        """All trained parameters."""
        return self.kernels + self.routers + self.other

    def __str__(self) -> str:
        parts = {"depth kernels": self.kernels, "routers": self.routers, "other": self.other}
        listed = ", ".join(f"{name} {count:,}" for name, count in parts.items())
        return f"trained: {self.trained:,} of {self.total:,} ({self.trained / self.total:.2%}): {listed}"


def trained_parameters(model: nn.Module) -> TrainedParameters:
    """Counts the trained parameters of a model: of depth kernels, of routers, and all others.

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
    """The Hugging Face encoder inside a model, and the architecture of its family.

    Raises:
        ModelError: the model has no Hugging Face encoder, or its family cannot carry depth attention.
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
        raise ModelError(f"{type(model).__name__} is not a Hugging Face model; pass AutoModel.from_pretrained(...)")
    return backbone, architecture_of(model_type_of(config.name_or_path or type(model).__name__, config.to_dict()))


def _checked(settings: Mapping[str, Any]) -> Tier1Config:
    """The arguments as a configuration, checked by the configuration's rules."""
    start = {"router_start": "uniform"}  # clusters are found by the trainer, which has texts
    config, problems = gather(start | {_FIELD_OF.get(name, name): each for name, each in settings.items()})
    if ROUTERS[config.router].needs_text_keys:  # it needs a hash of the text's tokens, which a layer does not have
        text = f"{config.router} is a control of the benchmark and needs its texts; use fixed"
        problems.append(Problem("router", text))
    if problems:
        raise ConfigError([f"{_ARGUMENT_OF.get(each.name, each.name)}: {each.text}" for each in problems])
    return config
