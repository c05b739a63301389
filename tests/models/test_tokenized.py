"""Batches of similar length: every text once, within budgets, padding only, and the next batch prepared ahead."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from conftest import random_texts
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

from maw.encoding.activation_cache import ActivationStore
from maw.models.batching import LENGTH_STEP, chunk_sizes, cut, windows
from maw.models.encode import encode
from maw.models.retriever import BaselineRetriever, MAWRetriever
from maw.models.tokenized import ahead

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60)


@given(LENGTHS, st.integers(1, 9), st.one_of(st.none(), st.integers(1, 200)))
def test_every_text_is_in_one_batch_and_no_budget_is_passed(lengths, size, budget):
    lengths = np.array(lengths)
    parts = list(cut(lengths, size, budget))
    assert sorted(np.concatenate(parts)) == list(range(len(lengths)))
    longest = [lengths[part].max() for part in parts]
    assert longest == sorted(longest, reverse=True)
    for part in parts:
        assert len(part) <= size
        assert budget is None or len(part) == 1 or len(part) * lengths[part].max() <= budget


@given(LENGTHS, st.integers(1, 200))
def test_chunks_are_as_large_as_the_budget_allows(lengths, budget):
    costs = np.sort(lengths)
    sizes = chunk_sizes(costs, budget)
    assert sum(sizes) == len(costs) and min(sizes) >= 1
    few = sorted([2**power for power in range(12)] + [3 * 2**power for power in range(10)])
    assert set(sizes) <= set(few)
    for end, size in zip(np.cumsum(sizes), sizes):
        larger = few[few.index(size) + 1]
        start = end - size
        assert start + larger > len(costs) or larger * costs[start + larger - 1] > budget


def test_without_a_budget_chunks_are_as_large_as_asked():
    assert chunk_sizes(np.ones(25), np.inf, 11) == [11, 11, 3]


def test_ahead_keeps_order_works_elsewhere_and_passes_errors_on():
    threads = []

    def make(item):
        threads.append(threading.get_ident())
        return item * item

    assert list(ahead(range(5), make)) == [0, 1, 4, 9, 16]
    assert threading.get_ident() not in threads
    assert list(ahead([], make)) == []
    with pytest.raises(ZeroDivisionError):
        list(ahead([1, 0], lambda item: 1 // item))


def test_windows_cover_the_order():
    order = np.arange(10_000)[::-1]
    assert np.array_equal(np.concatenate(windows(order)), order)
    assert max(map(len, windows(order))) == 4096


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_batches_hold_what_the_tokenizer_gives(tiny_settings, model_type):
    model = BaselineRetriever(tiny_settings(model_type))
    texts = random_texts(50, seed=4, longest=80)  # some are cut at 64 tokens
    source = model.source(texts, "document")
    order = np.argsort(-source.lengths(), kind="stable")
    seen = []
    for rows, inputs in source.batches(order, 8, 100):
        expected = model.tokenizer(
            [texts[row] for row in rows], padding=True, truncation=True, max_length=64, return_tensors="pt"
        )
        length = expected["input_ids"].shape[1]
        for name in ("input_ids", "attention_mask"):
            assert torch.equal(inputs[name][:, :length], expected[name])
        assert inputs["input_ids"].shape[1] == -(-length // LENGTH_STEP) * LENGTH_STEP
        assert not inputs["attention_mask"][:, length:].any()
        assert (inputs["input_ids"][:, length:] == model.tokenizer.pad_token_id).all()
        seen += list(rows)
    assert sorted(seen) == list(range(50))


@pytest.mark.parametrize("limit_gb", [1.0, 4e-6])
def test_stored_activations_come_in_the_same_batches(tiny_settings, tmp_path, limit_gb):
    model = BaselineRetriever(tiny_settings())
    source = model.source(random_texts(50, seed=4, longest=30), "document")
    order = np.argsort(-source.lengths(), kind="stable")
    with ActivationStore(tmp_path, limit_gb) as store:
        stored = store.source(source, model.encoder, torch.device("cpu"))
        seen = {}
        for rows, inputs in stored.batches(order, 8, 100):
            longest = int(inputs["attention_mask"].sum(1).max())
            assert len(rows) <= 8 and (len(rows) == 1 or len(rows) * longest <= 100)
            assert inputs["hidden"].shape[1] == -(-longest // LENGTH_STEP) * LENGTH_STEP
            embedding = model.encoder(inputs)["embedding"].detach()
            seen |= dict(zip(rows.tolist(), embedding))
        assert store.full == (limit_gb < 1)
    expected = model.encoder(source.batch(range(50)))["embedding"]
    torch.testing.assert_close(torch.stack([seen[row] for row in range(50)]), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model_type", ["bert", "qwen3"])
def test_a_text_without_a_token_is_the_same_alone_and_among_others(tiny_settings, tmp_path, model_type):
    """As a tokenizer that adds no special tokens makes of an empty text."""
    model = MAWRetriever(tiny_settings(model_type, route_by="token", router="soft"))
    model.tokenizer.backend_tokenizer.post_processor = processors.Sequence([])
    table = model.encoder.backbone.get_input_embeddings().weight.data
    table[model.tokenizer.pad_token_id] = table[-1]  # random models hold zeros there
    texts = ["", "a file of the text", "date", ""]
    alone, among = model.encode([""]), model.encode(texts)
    assert np.isfinite(among).all() and np.linalg.norm(alone) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(among[[0, 3]], np.repeat(alone, 2, 0), atol=1e-6)
    with ActivationStore(tmp_path, 1) as store:
        stored = store.source(model.source(texts, "document"), model.encoder, model.device)
        found = encode(model.encoder, stored)
    np.testing.assert_allclose(found.embeddings, among, atol=1e-6)
    assert np.isfinite(found.depth_share).all()
