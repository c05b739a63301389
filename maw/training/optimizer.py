"""Parameters of a model that are trained, each with its learning rate; and the schedule of the rates.

The way of a rate: a flag or the method's default (`maw.experiment.method_trainer.MethodTrainer`), or a trial's value
(`maw.experiment.tuning`), stands in the configuration of one training; `parameter_groups` hands it to AdamW.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from maw.config.methods import method_of
from maw.config.tier1_config import Tier1Config
from maw.errors import ConfigError
from maw.models.retriever import BaselineRetriever, MAWRetriever

DEFAULT_KERNEL_LEARNING_RATE = 1e-2


def learning_rate(model: BaselineRetriever, config: Tier1Config) -> float:
    """The rate for the layers or adapters of a model that is trained from Python, where no method is named.

    It is the configuration's, or else the default of the method that the model's own configuration describes; 0 for a
    model with nothing to train.
    """
    if config.learning_rate is not None:
        return config.learning_rate
    return method_of("maw" if isinstance(model, MAWRetriever) else "baseline", model.config).learning_rate or 0.0


def rates(model: BaselineRetriever, config: Tier1Config) -> dict[str, float]:
    """The peak rates by which anything of the model is trained, by the setting that names each."""
    kinds = _parameter_kinds(model)
    used = {kinds.get(id(each), "learning_rate") for each in model.parameters() if each.requires_grad}
    return {name: _rate(name, config) for name in RATES if name in used}


RATES = ("learning_rate", "kernel_learning_rate", "router_learning_rate")
"""Settings that are learning rates: of layers or adapters, of depth kernels, of routers."""


def parameter_groups(model: BaselineRetriever, config: Tier1Config) -> list[dict[str, Any]]:
    """The groups of the encoder's optimizer, one for each rate and decay; "name" is the rate's setting.

    Only matrices decay. Depth kernels do not, since decay would pull them from one to zero, nor do biases and norms.
    Routers that a learner trains have an optimizer of their own and stand in no group.
    """
    groups: dict[tuple[str, float], list[nn.Parameter]] = {}
    kinds = _parameter_kinds(model)
    apart = _learnt_apart(model)
    for parameter in (each for each in model.parameters() if each.requires_grad and id(each) not in apart):
        name = kinds.get(id(parameter), "learning_rate")
        decay = config.weight_decay if name == "learning_rate" and parameter.ndim >= 2 else 0.0
        groups.setdefault((name, decay), []).append(parameter)
    return [
        {"name": name, "params": params, "lr": _rate(name, config), "weight_decay": decay}
        for (name, decay), params in groups.items()
    ]


def warmup_decay(step: int, warmup: int, total: int) -> float:
    """Linear from zero to one over the warm-up, then linear to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (total - step) / max(1, total - warmup))


def _rate(name: str, config: Tier1Config) -> float:
    rate = getattr(config, name)
    if rate is None and name == "kernel_learning_rate":
        return DEFAULT_KERNEL_LEARNING_RATE
    if rate is None:
        raise ConfigError([f"{name}: no method describes what is trained of this model; set it"])
    return float(rate)


def _parameter_kinds(model: BaselineRetriever) -> dict[int, str]:
    """Parameter's id -> the setting of its rate, for depth kernels and routers; all others are layers or adapters."""
    if not isinstance(model, MAWRetriever):
        return {}
    kinds = {}
    for attention in model.encoder.maw_attention:
        kinds |= {id(parameter): "kernel_learning_rate" for parameter in attention.kernel_parameters()}
        kinds |= {id(parameter): "router_learning_rate" for parameter in attention.router.parameters()}
    return kinds


def _learnt_apart(model: BaselineRetriever) -> set[int]:
    """Ids of the parameters of routers that a learner trains."""
    if not isinstance(model, MAWRetriever):
        return set()
    routers = [attention.router for attention in model.encoder.maw_attention]
    return {id(each) for router in routers if router.trained_by != "loss" for each in router.parameters()}
