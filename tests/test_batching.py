"""A batch equals its texts one by one, and padding changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import FAMILIES, random_texts

from maw.errors import MAWError
from maw.models.encode import encode
from maw.models.retriever import BaselineRetriever, MAWRetriever


@pytest.fixture(params=["baseline", "sequence", "head", "token", "random", "soft", "values"])
def retriever(request, tiny_settings):
    def build(model_type):
        if request.param == "baseline":
            return BaselineRetriever(tiny_settings(model_type))
        router = request.param if request.param in ("random", "soft") else "grpo"
        route_by = request.param if request.param in ("head", "token") else "sequence"
        depths = {"router": router, "route_by": route_by, "depth_values": request.param == "values"}
        model = MAWRetriever(tiny_settings(model_type, maw_layers=[2, 3], **depths))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for attention in model.encoder.maw_attention:
                for parameter in (*attention.kernel_parameters(), *attention.router.parameters()):
                    parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        return model

    return build


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_batch_is_its_texts_one_by_one(retriever, model_type):
    model = retriever(model_type)
    texts = random_texts(7, seed=5)
    together = model.encode(texts, batch_size=7)
    alone = np.concatenate([model.encode([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=2e-6)
    assert np.abs(together[0] - together[1]).max() > 1e-3, "different texts must differ"


@pytest.mark.parametrize("model_type", FAMILIES)
def test_padding_changes_nothing(retriever, model_type):
    model = retriever(model_type)
    inputs = model.source(random_texts(4, seed=6), "document").batch(range(4))
    padded = {
        "input_ids": torch.nn.functional.pad(inputs["input_ids"], (0, 7)),
        "attention_mask": torch.nn.functional.pad(inputs["attention_mask"], (0, 7)),
    }
    with torch.no_grad():
        expected, got = (model(each)["embedding"] for each in (inputs, padded))
        torch.testing.assert_close(got, expected, atol=2e-6, rtol=0)
        leaking = padded | {"attention_mask": torch.ones_like(padded["attention_mask"])}
        assert not torch.allclose(model(leaking)["embedding"], expected, atol=1e-3), "the mask must matter"


def test_order_of_texts_and_batch_size_do_not_matter(tiny_settings):
    model = BaselineRetriever(tiny_settings())
    texts = random_texts(30, seed=7)
    expected = model.encode(texts, batch_size=30)
    shuffled = np.random.default_rng(0).permutation(30)
    got = model.encode([texts[i] for i in shuffled], batch_size=4)
    np.testing.assert_allclose(got, expected[shuffled], atol=2e-6)


def test_nothing_to_encode_and_broken_weights_are_said(tiny_settings):
    model = BaselineRetriever(tiny_settings())
    with pytest.raises(MAWError, match="no text"):
        model.encode([])
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(MAWError, match="not finite"):
        encode(model.encoder, model.source(["file"], "document"), label="test documents")


def test_encoding_is_without_dropout_and_gives_the_mode_back(tiny_settings):
    model = MAWRetriever(tiny_settings())
    texts = random_texts(6, seed=8)
    expected = model.encode(texts)
    model.encoder.train()
    np.testing.assert_array_equal(model.encode(texts), expected)
    assert model.encoder.training


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("kind", ["query", "document"])
def test_embeddings_are_the_models_states_pooled_as_it_says(tiny_settings, kind, pooling, similarity):
    """Against the backbone called by itself, one text at a time."""
    prefixes = {"query_prefix": "read ", "document_prefix": "the last "}
    model = BaselineRetriever(tiny_settings(pooling=pooling, similarity=similarity, **prefixes))
    texts = random_texts(5, seed=9)
    got = model.encode(texts, kind)
    for row, text in zip(got, texts):
        tokens = model.tokenizer(prefixes[f"{kind}_prefix"] + text, return_tensors="pt")
        with torch.no_grad():
            states = model.encoder.backbone(tokens["input_ids"]).last_hidden_state[0]
        expected = (states[0] if pooling == "cls" else states.mean(0)).numpy()
        if similarity == "cosine":
            expected = expected / np.linalg.norm(expected)
        np.testing.assert_allclose(row, expected, atol=1e-5)


def test_a_random_routers_picks_at_evaluation_follow_the_seed(tiny_settings):
    texts = random_texts(40, seed=10)
    shares = []
    for seed in (1, 1, 2):
        model = MAWRetriever(tiny_settings(router="random", seed=seed))
        shares.append(encode(model.encoder, model.source(texts, "document")).depth_share)
    np.testing.assert_array_equal(shares[0], shares[1])
    assert (shares[0] != shares[2]).any(axis=(1, 2)).mean() > 0.5
