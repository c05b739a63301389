"""A batch divided into chunks of similar length gives the results of the whole batch."""

from __future__ import annotations

import pytest
import torch
from conftest import random_texts

from maw.encoding.length_chunks import LengthChunks
from maw.evaluation.evaluate import evaluate_retriever
from maw.models.batching import LENGTH_STEP
from maw.models.retriever import BaselineRetriever, MAWRetriever

TEXTS = 9


def inputs_of(model):
    return model.source(random_texts(TEXTS, seed=8, longest=20), "document").batch(range(TEXTS))


def routed(tiny_settings, route_by):
    model = MAWRetriever(tiny_settings(route_by=route_by, maw_layers=[2, 3]))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for attention in model.encoder.maw_attention:
            for parameter in (*attention.kernels.parameters(), *attention.router.parameters()):
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def test_a_baselines_embeddings_and_gradients(tiny_settings):
    model = BaselineRetriever(tiny_settings(use_lora=True))
    inputs = inputs_of(model)
    found = []
    for engine in (model.encoder, LengthChunks(model.encoder, tokens=20)):
        model.zero_grad()
        embedding = engine(inputs)["embedding"]
        (embedding * torch.arange(16)).sum().backward()
        found.append([embedding.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for got, want in zip(*found):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tokens", [1, 30, 10_000])
@pytest.mark.parametrize("route_by", ["sequence", "head", "token"])
def test_routings_states_and_embeddings(tiny_settings, route_by, tokens):
    model = routed(tiny_settings, route_by)
    inputs = inputs_of(model)
    chunked = LengthChunks(model.encoder, tokens)
    keys = torch.arange(TEXTS * 3).view(TEXTS, 3)
    whole, cut = model.encoder(inputs, mode="group", keys=keys), chunked(inputs, mode="group", keys=keys)
    torch.testing.assert_close(cut["embedding"], whole["embedding"], atol=2e-6, rtol=1e-5)
    real = inputs["attention_mask"].bool()
    for name in ("depths", "states"):
        for got, want in zip(cut[name], whole[name]):
            assert got.shape == want.shape
            if route_by == "token":  # what padding would have picked is nobody's business
                got, want = (each.permute(0, 3, 1, 2, *range(4, each.dim()))[real] for each in (got, want))
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    given = chunked(inputs, mode="group", depths=whole["depths"])
    torch.testing.assert_close(given["embedding"], whole["embedding"], atol=2e-6, rtol=1e-5)
    for name, want in model.encoder(inputs).items():
        torch.testing.assert_close(chunked(inputs)[name], want, atol=2e-6, rtol=1e-5)


def test_chunks_keep_to_the_budget_and_hold_no_needless_padding(tiny_settings):
    model = BaselineRetriever(tiny_settings())
    inputs = inputs_of(model)
    seen = []
    handle = model.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]["attention_mask"]))
    LengthChunks(model.encoder, tokens=30)(inputs)
    handle.remove()
    assert len(seen) > 2 and sum(map(len, seen)) == TEXTS
    longest = [int(mask.sum(1).max()) for mask in seen]
    assert all(len(mask) * tokens <= 30 or len(mask) == 1 for mask, tokens in zip(seen, longest))
    assert all(mask.shape[1] - tokens < LENGTH_STEP for mask, tokens in zip(seen, longest))


def test_samples_count_in_the_budget(tiny_settings):
    model = routed(tiny_settings, "sequence")
    inputs = inputs_of(model)
    seen = []
    handle = model.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]["attention_mask"]))
    LengthChunks(model.encoder, tokens=60)(inputs, mode="group", keys=torch.arange(TEXTS * 3).view(TEXTS, 3))
    handle.remove()
    assert len(seen) > 2
    assert all(3 * len(mask) * int(mask.sum(1).max()) <= 60 or len(mask) == 1 for mask in seen)


@pytest.mark.parametrize("training", [True, False])
def test_evaluating_leaves_the_mode_as_it_was(tiny_settings, tiny_data, training):
    config = tiny_settings()
    model = MAWRetriever(config).train(training)
    evaluate_retriever(model, tiny_data, config, "cpu")
    assert model.encoder.training == training
    layers = model.encoder.architecture.layers(model.encoder.backbone)
    assert [layer.training for layer in layers] == [False, False, training]
