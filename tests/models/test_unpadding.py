"""Layers over real tokens alone: the same bits as with padding, and only where nothing but attention mixes tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import FAMILIES, random_texts

from maw.attention.architectures import ARCHITECTURES
from maw.models import encoder as encoders
from maw.models.cpu_kernels import packed_weights, rows_are_alone
from maw.models.encode import encode
from maw.models.retriever import BaselineRetriever
from maw.models.unpadding import ROWS, RealTokens, tokens_alone
from maw.runtime.profiler import profiling, watch

UNPADDED = [each for each in FAMILIES if ARCHITECTURES[each].unpads]
TEXTS = [*random_texts(9, seed=3), "file", "file " * 40, *random_texts(30, seed=4)]
MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 1, 1, 1], [1, 1, 1, 1]])


def skip_unless_alone(dtype):
    with torch.no_grad(), packed_weights():
        if not rows_are_alone(dtype):
            pytest.skip(f"this processor has no packed {dtype} products whose rows depend on no other")


@pytest.fixture(autouse=True)
def one_row_depends_on_no_other():
    skip_unless_alone(torch.float32)


@pytest.fixture
def taken(monkeypatch):
    """The number of tokens of each batch that ran without padding."""
    found, take = [], RealTokens.take
    monkeypatch.setattr(RealTokens, "take", lambda self, states: found.append(len(self.rows)) or take(self, states))
    return found


def embeddings(retriever, texts=TEXTS):
    return encode(retriever.encoder, retriever.source(texts, "document")).embeddings


def with_padding(monkeypatch, retriever, texts=TEXTS):
    with monkeypatch.context() as patch:
        patch.setattr(encoders, "rows_are_alone", lambda dtype: False)
        return embeddings(retriever, texts)


def test_real_tokens_are_taken_and_put_back():
    states = torch.randn(4, 4, 3, generator=torch.Generator().manual_seed(0))
    tokens = RealTokens(MASK)
    row = tokens.take(states)
    assert row.shape == (1, ROWS, 3)
    assert torch.equal(row[0, : MASK.sum()], states[MASK.bool()])
    back = tokens.put(row)
    assert back.shape == states.shape
    assert torch.equal(back[MASK.bool()], states[MASK.bool()])
    assert back.isfinite().all()
    assert not tokens.fewer  # 64 rows are more than 16 places
    assert RealTokens(MASK.repeat(1, 16)[:, :60]).fewer


def test_heads_are_put_back_as_tokens_are():
    tokens = RealTokens(MASK)
    states = torch.randn(2, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    rows = [tokens.take(each).unflatten(-1, (3, 2)).transpose(1, 2) for each in states]  # (1, H, N, E)
    for found, row in zip(tokens.put_heads(*rows), rows):
        assert found.shape == (4, 3, 4, 2)
        assert found.is_contiguous()
        assert torch.equal(found, tokens.put(row.transpose(1, 2)).transpose(1, 2))


def test_the_families_are_those_of_bert():
    assert UNPADDED == ["bert", "roberta", "xlm-roberta", "electra", "distilbert"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("model_type", UNPADDED)
def test_embeddings_have_the_same_bits_as_with_padding(model_type, precision, tiny_settings, monkeypatch, taken):
    retriever = BaselineRetriever(tiny_settings(model_type, precision=precision))
    skip_unless_alone(retriever.precision)
    found = embeddings(retriever)
    assert taken
    assert all(rows % ROWS == 0 for rows in taken)
    taken.clear()
    assert np.array_equal(found, with_padding(monkeypatch, retriever))
    assert not taken


def test_a_text_at_the_wrong_place_would_be_noticed(tiny_settings, monkeypatch):
    retriever = BaselineRetriever(tiny_settings())
    right = with_padding(monkeypatch, retriever)
    put = RealTokens.put
    monkeypatch.setattr(RealTokens, "put", lambda self, states: put(self, states.roll(1, 1)))
    assert np.abs(embeddings(retriever) - right).max() > 0.01


def test_attention_that_sees_one_long_text_would_be_noticed(tiny_settings, monkeypatch):
    retriever = BaselineRetriever(tiny_settings())
    right = with_padding(monkeypatch, retriever)
    layers = retriever.encoder.architecture
    monkeypatch.setattr("maw.models.cpu_kernels.tokens_alone", lambda: None)
    monkeypatch.setattr(type(layers), "layer_inputs", lambda self, backbone, *_: [{"attention_mask": None}] * 12)
    assert np.abs(embeddings(retriever) - right).max() > 0.01


@pytest.mark.parametrize("model_type", sorted({*FAMILIES} - {*UNPADDED}))
def test_other_families_run_with_padding(model_type, tiny_settings, taken):
    embeddings(BaselineRetriever(tiny_settings(model_type)))
    assert not taken


def test_attention_of_transformers_own_gets_padding(tiny_settings, monkeypatch, taken):
    retriever = BaselineRetriever(tiny_settings())
    right = embeddings(retriever)
    taken.clear()
    retriever.encoder.backbone.set_attn_implementation("sdpa")
    np.testing.assert_allclose(embeddings(retriever), right, atol=1e-6)
    assert not taken


def test_layers_that_a_method_changes_run_with_padding(tiny_settings):
    """What a method adds may mix the tokens of a text."""
    retriever = BaselineRetriever(tiny_settings(use_lora=True, finetune_layers="last"))
    encoder = retriever.encoder
    layers = encoder.architecture.layers(encoder.backbone)
    assert encoder.pretrained_layers == len(layers) - 1
    alone: dict[int, set[bool]] = {-2: set(), -1: set()}
    for number, seen in alone.items():
        layers[number].register_forward_pre_hook(lambda *_, seen=seen: seen.add(tokens_alone() is not None))
    embeddings(retriever)
    assert True in alone[-2]
    assert alone[-1] == {False}


def test_gradients_and_other_threads_run_with_padding(tiny_settings, taken):
    retriever = BaselineRetriever(tiny_settings())
    batch = retriever.source(TEXTS, "document").batch(range(len(TEXTS)))
    with packed_weights():
        retriever.encoder(batch)
    with torch.no_grad():
        retriever.encoder(batch)  # plain products, whose bits depend on their height
    assert not taken
    with torch.no_grad(), packed_weights():
        retriever.encoder(batch)
    assert taken
    assert tokens_alone() is None


def test_products_that_depend_on_their_height_are_noticed(monkeypatch):
    from maw.models import cpu_kernels

    product = cpu_kernels._product
    monkeypatch.setattr(cpu_kernels, "_product", lambda rows, *rest: product(rows, *rest) + 1e-7 * len(rows))
    cpu_kernels._tried_rows.cache_clear()
    with torch.no_grad(), packed_weights():
        assert not rows_are_alone(torch.float32)
    cpu_kernels._tried_rows.cache_clear()


def test_work_is_counted_as_with_padding(tiny_settings, monkeypatch, taken):
    def work():
        retriever = BaselineRetriever(tiny_settings())
        with profiling() as profile:
            watch(retriever.encoder)
            embeddings(retriever)
        return profile.root.flops

    without = work()
    assert taken
    monkeypatch.setattr(encoders, "rows_are_alone", lambda dtype: False)
    assert without == work() > 0


def test_a_failing_layer_ends_the_block():
    def fail():
        with RealTokens(MASK).alone():
            assert tokens_alone() is not None
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert tokens_alone() is None
