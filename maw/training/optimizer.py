"""Parameters of a model that are trained, each with its learning rate; and the schedule of the rates.

The way of a rate: a flag or the method's default (`maw.experiment.method_trainer.MethodTrainer`), or a trial's value
(`maw.experiment.tuning`), stands in the configuration of one training; `parameter_groups` hands it to AdamW.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from maw.config.methods import method_of
from maw.config.tier1_config import Tier1Config
from maw.errors import ConfigError
from maw.models.encoder import MAWWithGRPOEncoder
from maw.models.retriever import BaselineRetriever, MAWRetriever

DEFAULT_KERNEL_LEARNING_RATE = {"gated": 1.5e-2, "low_rank": 1e-2, "diagonal": 1e-2}


def learning_rate(model: BaselineRetriever, config: Tier1Config) -> float:
    """The rate for the layers or adapters of a model.

    It is the configuration's, or else the default of its method; without a method, of the one that the model's own
    configuration describes. 0 for a model with nothing to train.
    """
    if config.learning_rate is not None:
        return config.learning_rate
    method = model.method or method_of("maw" if isinstance(model, MAWRetriever) else "baseline", model.config)
    return method.learning_rate or 0.0


def rates(model: BaselineRetriever, config: Tier1Config) -> dict[str, float]:
    """The peak rates by which anything of the model is trained, by the setting that names each."""
    used = {model.rate_names.get(id(each), "learning_rate") for each in model.parameters() if each.requires_grad}
    own = model.method.rates if model.method else ()
    return {name: _rate(name, model, config) for name in (*RATES, *own) if name in used}


RATES = ("learning_rate", "kernel_learning_rate", "router_learning_rate")
"""Settings that are learning rates: of layers or adapters, of depth kernels, of routers."""


def with_rates(config: Tier1Config, rates: Mapping[str, float]) -> Tier1Config:
    """A configuration with these learning rates; those that are no setting are a method's own."""
    settings = {name: rate for name, rate in rates.items() if name in RATES}
    own = {name: rate for name, rate in rates.items() if name not in RATES}
    return replace(config, **settings, method_rates=config.method_rates | own)


def parameter_groups(model: BaselineRetriever, config: Tier1Config) -> list[dict[str, Any]]:
    """The groups of the encoder's optimizer, one for each rate and decay; "name" is the rate's setting.

    Only matrices decay. Depth kernels do not, since decay would pull them from one to zero, nor do biases and norms.
    Routers that a learner trains have an optimizer of their own and stand in no group.
    """
    groups: dict[tuple[str, float], list[nn.Parameter]] = {}
    apart = _learnt_apart(model)
    for parameter in (each for each in model.parameters() if each.requires_grad and id(each) not in apart):
        name = model.rate_names.get(id(parameter), "learning_rate")
        decay = config.weight_decay if name not in RATES[1:] and parameter.ndim >= 2 else 0.0
        groups.setdefault((name, decay), []).append(parameter)
    return [
        {"name": name, "params": params, "lr": _rate(name, model, config), "weight_decay": decay}
        for (name, decay), params in groups.items()
    ]


def warmup_decay(step: int, warmup: int, total: int) -> float:
    """Linear from zero to one over the warm-up, then linear to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (total - step) / max(1, total - warmup))


def _rate(name: str, model: BaselineRetriever, config: Tier1Config) -> float:
    if name not in RATES:
        assert model.method is not None
        return config.method_rates.get(name, model.method.rates[name])
    rate = getattr(config, name)
    if rate is None and name == "kernel_learning_rate":
        return DEFAULT_KERNEL_LEARNING_RATE[config.depth_kernel]
    if rate is None:
        raise ConfigError([f"{name}: no method describes what is trained of this model; set it"])
    return float(rate)


def _learnt_apart(model: BaselineRetriever) -> set[int]:
    """Ids of the parameters of routers that a learner trains."""
    if not isinstance(model.encoder, MAWWithGRPOEncoder):
        return set()
    routers = [attention.router for attention in model.encoder.maw_attention]
    return {id(each) for router in routers if router.trained_by != "loss" for each in router.parameters()}
