"""Training and evaluation over replicas, as under DataParallel, give the results of one model.

`Replicas` cuts and joins as `torch.nn.parallel.scatter` and `gather` do: every tensor along its first dimension,
inside dictionaries and lists, other arguments handed to all.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from maw.evaluation.evaluate import evaluate_retriever
from maw.models.retriever import MAWRetriever
from maw.training.train import train_retriever


class Replicas(nn.DataParallel):
    def __init__(self, module, count):
        nn.Module.__init__(self)
        self.module, self.count = module, count

    def forward(self, *args, **options):
        parts = zip(*(self._scatter(each) for each in (args, options)))
        return self._gather([self.module(*part, **more) for part, more in parts])

    def _scatter(self, value):
        if isinstance(value, torch.Tensor):
            return value.chunk(self.count)
        if isinstance(value, (tuple, list)):
            return [type(value)(part) for part in zip(*map(self._scatter, value))]
        if isinstance(value, dict):
            if not value:
                return [{}] * self.count
            return [dict(zip(value, part)) for part in zip(*map(self._scatter, value.values()))]
        return [value] * self.count

    def _gather(self, parts):
        first = parts[0]
        if isinstance(first, torch.Tensor):
            return torch.cat(parts)
        if isinstance(first, dict):
            return {name: self._gather([part[name] for part in parts]) for name in first}
        return [self._gather(list(each)) for each in zip(*parts)]


PAIRS = [
    *(("grpo", route_by) for route_by in ("sequence", "head", "token")),
    ("supervised", "head"), ("soft", "token"), ("random", "sequence"),
]  # fmt: skip
"""The router that learns by every kind of routing, the others by one each; `make faults` tries all of them."""


@pytest.mark.parametrize(
    ("router", "route_by"),
    [
        pytest.param(router, route_by, marks=() if (router, route_by) in PAIRS else pytest.mark.faults)
        for router in ("grpo", "supervised", "soft", "random")
        for route_by in ("sequence", "head", "token")
    ],
)
def test_replicas_change_nothing(tiny_settings, tiny_data, monkeypatch, router, route_by):
    monkeypatch.setattr("torch.optim.AdamW", torch.optim.SGD)  # Adam would make much of a rounding error
    found = []
    for count in (1, 3):
        for module in ("training.trainer", "encoding.embedding_cache"):
            monkeypatch.setattr(f"maw.{module}.replicate", lambda encoder, *_, count=count: Replicas(encoder, count))
        config = tiny_settings(
            router=router,
            route_by=route_by,
            maw_layers=[2, 3],
            num_epochs=1,
            num_negatives=0,
            encoder_update="mcl",
            learning_rate=0.05,
            kernel_learning_rate=0.05,
            router_learning_rate=0.05,
        )
        model = MAWRetriever(config)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for attention in model.encoder.maw_attention:
                for parameter in (*attention.kernels.parameters(), *attention.router.parameters()):
                    parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        history = train_retriever(model, tiny_data, tiny_data, config, "cpu")
        result = evaluate_retriever(model, tiny_data, config, "cpu")
        found.append((model.trained_state(), history[0], result))
    (weights, record, result), (other_weights, other_record, other_result) = found
    for name, each in weights.items():
        torch.testing.assert_close(other_weights[name], each, atol=2e-5, rtol=1e-3)
    statistics = ("train_loss", "router_loss", "reward_mean", "kl", "policy_entropy", "router_accuracy")
    for name in record.keys() & set(statistics):
        assert other_record[name] == pytest.approx(record[name], abs=1e-4), name
    assert dict(other_result) == pytest.approx(dict(result), abs=1e-6)
