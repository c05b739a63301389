"""What of a model is trained, and at which rate."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from torch import nn

from maw.config.methods import method_of
from maw.config.tier1_config import Tier1Config
from maw.models.retriever import BaselineRetriever, MAWRetriever

DEFAULT_KERNEL_LEARNING_RATE = 1e-2


def learning_rate(model: BaselineRetriever, config: Tier1Config) -> float:
    """The rate for the model's layers or adapters: the configuration's, or the default of the method that it is.

    Without either, for a model that has nothing to train, it is 0.
    """
    if config.learning_rate is not None:
        return config.learning_rate
    return method_of("maw" if isinstance(model, MAWRetriever) else "baseline", model.config).learning_rate or 0.0


def rates(model: BaselineRetriever, config: Tier1Config) -> dict[str, float]:
    """The peak rates by which anything of the model is trained, by the setting that names each."""
    kinds = _parameter_kinds(model)
    used = {kinds.get(id(parameter), "layer") for parameter in model.parameters() if parameter.requires_grad}
    found = {}
    if "layer" in used:
        found["learning_rate"] = learning_rate(model, config)
    if "kernel" in used:
        found["kernel_learning_rate"] = config.kernel_learning_rate or DEFAULT_KERNEL_LEARNING_RATE
    if used & {"router", "apart"}:
        found["router_learning_rate"] = config.router_learning_rate
    return found


def parameter_groups(model: BaselineRetriever, config: Tier1Config) -> list[dict[str, Any]]:
    """What the encoder's optimizer trains, by rate and decay.

    Weight decay is for matrices alone. A kernel must not be pulled from one to zero, so it has none; neither have
    biases and norms. Routers that a learner trains have an optimizer of their own and are left out here.
    """
    rate = learning_rate(model, config)
    kernel_rate = config.kernel_learning_rate or DEFAULT_KERNEL_LEARNING_RATE
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    kinds = _parameter_kinds(model)
    for parameter in (each for each in model.parameters() if each.requires_grad):
        kind = kinds.get(id(parameter), "layer")
        if kind == "layer":
            decay = config.weight_decay if parameter.ndim >= 2 else 0.0
            groups[rate, decay].append(parameter)
        elif kind == "kernel":
            groups[kernel_rate, 0.0].append(parameter)
        elif kind == "router":
            groups[config.router_learning_rate, 0.0].append(parameter)
    return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]


def _parameter_kinds(model: BaselineRetriever) -> dict[int, str]:
    if not isinstance(model, MAWRetriever):
        return {}
    kinds = {}
    for attention in model.encoder.maw_attention:
        kinds |= {id(parameter): "kernel" for parameter in attention.kernel_parameters()}
        learnt_apart = attention.router.trained_by != "loss"
        kinds |= {id(parameter): "apart" if learnt_apart else "router" for parameter in attention.router.parameters()}
    return kinds


def _warmup_decay(step: int, warmup: int, total: int) -> float:
    """Linear from zero to one over the warm-up, then linear to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (total - step) / max(1, total - warmup))
