"""Texts at their greedy picks, at every depth and at other texts' picks; entropy and information of policies."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import random_texts

from maw.encoding.activation_cache import ActivationStore
from maw.evaluation.routing.depth_encoder import DepthReader, PolicyCounts, entropy_of
from maw.models.retriever import MAWRetriever

CPU = torch.device("cpu")
LN2 = math.log(2)
WAYS = {
    "sequence": {},
    "head": {"route_by": "head"},
    "token": {"route_by": "token"},
    "two_layers": {"maw_layers": [2, 3]},
    "two_layers_token": {"maw_layers": [2, 3], "route_by": "token", "depth_kernel": "low_rank"},
}


def retriever(tiny_settings, **options):
    """A model whose depths differ, and whose router picks different ones."""
    model = MAWRetriever(tiny_settings(kernel_init_std=0.5, **options))
    torch.manual_seed(1)
    for attention in model.encoder.maw_attention:
        for name, parameter in (*attention.kernels.named_parameters(), *attention.router.named_parameters()):
            if name in ("up", "weight") and not parameter.any():
                torch.nn.init.normal_(parameter, std=0.3)
    return model


def reader(model, texts, source=None):
    return DepthReader(model.encoder, source or model.source(texts, "query"), batch_size=8, device=CPU)


def fixed(model, tiny_settings, depth, **options):
    """The same model with a fixed router."""
    other = MAWRetriever(tiny_settings(router="fixed", fixed_depth=depth, **options))
    other.encoder.load_state_dict(model.encoder.state_dict(), strict=False)
    return other


@pytest.mark.parametrize("way", WAYS)
def test_every_depth_is_what_a_fixed_router_gives(tiny_settings, way):
    texts = random_texts(20, seed=3)
    model = retriever(tiny_settings, **WAYS[way])
    rows = np.array([1, 2, 5, 7, 11, 19])
    every = reader(model, texts).at_every_depth(rows)
    assert every.shape == (6, 4, 16)
    for depth in range(4):
        expected = fixed(model, tiny_settings, depth, **WAYS[way]).encode([texts[row] for row in rows], "query")
        np.testing.assert_allclose(every[:, depth], expected, atol=2e-6)
    assert np.abs(every[:, 0] - every[:, 1]).max() > 1e-3, "depths must differ for this to say anything"


def test_many_depths_are_read_in_parts(tiny_settings, monkeypatch):
    model, texts = retriever(tiny_settings), random_texts(6)
    whole = reader(model, texts).at_every_depth(np.arange(6))
    monkeypatch.setattr("maw.evaluation.routing.depth_encoder.DEPTHS_AT_ONCE", 3)
    np.testing.assert_allclose(reader(model, texts).at_every_depth(np.arange(6)), whole, atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_own_picks_give_the_greedy_embeddings_and_others_do_not(tiny_settings, way):
    texts = random_texts(12, seed=4)
    model = retriever(tiny_settings, **WAYS[way])
    read, rows = reader(model, texts), np.arange(12)
    taken = read.greedy(rows).depths
    assert len({each.tobytes() for each in taken}) > 1, "texts must be routed differently"
    found = read.at_depths_of(rows, taken, np.stack([rows, np.roll(rows, 1)], axis=1))
    np.testing.assert_allclose(found[:, 0], model.encode(texts, "query"), atol=2e-6)
    assert np.abs(found[:, 1] - found[:, 0]).max() > 1e-3


def test_stored_activations_change_nothing(tiny_settings, tmp_path):
    model, texts = retriever(tiny_settings), random_texts(9)
    plain = model.source(texts, "query")
    rows = np.array([0, 3, 8])
    with ActivationStore(tmp_path / "activations", 1) as store:
        stored = reader(model, texts, store.source(plain, model.encoder, CPU))
        np.testing.assert_allclose(stored.at_every_depth(rows), reader(model, texts).at_every_depth(rows), atol=1e-6)


def test_picks_are_those_of_the_evaluation(tiny_settings):
    texts = random_texts(10)
    for router in ("grpo", "random", "fixed"):
        model = retriever(tiny_settings, router=router)
        inputs = model.source(texts, "query").batch(range(10))
        share = model.encoder(inputs)["depth_share"][:, 0]
        picks = reader(model, texts).greedy(np.arange(10)).depth_B
        assert picks.tolist() == share.argmax(1).tolist(), router


@pytest.mark.parametrize(
    ("way", "one"), [("sequence", True), ("head", False), ("token", False), ("two_layers", False)]
)
def test_only_a_text_with_one_decision_has_a_pick(tiny_settings, way, one):
    greedy = reader(retriever(tiny_settings, **WAYS[way]), random_texts(5)).greedy(np.arange(5))
    assert (greedy.depth_B is not None) == one
    assert len(greedy.facts) == len(greedy.depths[0])
    assert greedy.state_BF.shape == (5, 16)


def test_a_soft_router_has_a_policy_but_no_picks(tiny_settings):
    greedy = reader(retriever(tiny_settings, router="soft"), random_texts(5)).greedy(np.arange(5))
    assert greedy.depths is None and greedy.depth_B is None
    assert greedy.facts[0].entropy > 0 and greedy.facts[0].greedy_information is None


def test_a_random_router_has_picks_but_no_policy(tiny_settings):
    (facts,) = reader(retriever(tiny_settings, router="random"), random_texts(30)).greedy(np.arange(30)).facts
    assert facts.entropy is None and facts.mutual_information is None
    assert facts.greedy_information > 0.5


def test_the_mode_of_the_encoder_stays(tiny_settings):
    model = retriever(tiny_settings)
    for mode in (True, False):
        model.encoder.train(mode)
        reader(model, random_texts(3)).at_every_depth(np.arange(3))
        assert model.encoder.training is mode
        assert model.encoder.backbone.encoder.layer[2].training is mode


# ------------------------------------------------------------------------------------------ entropy and information


def facts_of(probabilities, picks=None, padding=None):
    """Facts of policies given as (B, h, t, D) lists."""
    log_policy = torch.tensor(probabilities).log()
    batch, _, tokens, depths = log_policy.shape
    padding = torch.ones(batch, tokens, dtype=torch.long) if padding is None else torch.tensor(padding)
    counts = PolicyCounts()
    picks = None if picks is None else torch.tensor(picks)
    for i in range(batch):  # text by text: the order and size of batches must not matter
        counts.add(log_policy[i : i + 1], None if picks is None else picks[i : i + 1], padding[i : i + 1], depths)
    return counts.facts()


def test_entropy_by_hand():
    np.testing.assert_allclose(entropy_of(np.array([[0.5, 0.5], [1.0, 0.0]])), [LN2, 0.0])


def test_one_policy_for_all_texts_has_entropy_and_no_information():
    facts = facts_of([[[[0.5, 0.5]]], [[[0.5, 0.5]]]], picks=[[[0]], [[0]]])
    assert facts.entropy == pytest.approx(LN2)
    assert facts.mutual_information == pytest.approx(0, abs=1e-12)
    assert facts.greedy_information == pytest.approx(0)


def test_certain_policies_that_differ_have_information_and_no_entropy():
    facts = facts_of([[[[1.0, 0.0]]], [[[0.0, 1.0]]]], picks=[[[0]], [[1]]])
    assert facts.entropy == pytest.approx(0)
    assert facts.mutual_information == pytest.approx(LN2)
    assert facts.greedy_information == pytest.approx(LN2)


def test_information_of_unequal_policies_by_hand():
    # Mean policy (0.5, 0.5): ln 2; each has the entropy of (0.9, 0.1).
    each = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    facts = facts_of([[[[0.9, 0.1]]], [[[0.1, 0.9]]]])
    assert facts.mutual_information == pytest.approx(LN2 - each, abs=1e-6)


def test_heads_that_always_take_their_own_depth_know_nothing_of_the_text():
    """Pooled over heads the picks would look balanced; each head has one depth for all texts."""
    heads = [[[1.0, 0.0]], [[0.0, 1.0]]]
    facts = facts_of([heads, heads], picks=[[[0], [1]], [[0], [1]]])
    assert facts.greedy_information == pytest.approx(0)
    assert facts.mutual_information == pytest.approx(0)


def test_padding_counts_nothing_and_long_texts_no_more_than_short_ones():
    first, second = [1.0, 0.0], [0.0, 1.0]
    # One text of one token at depth 0 and padding at depth 1; one of three tokens at depth 1.
    facts = facts_of(
        [[[first, second, second]], [[second, second, second]]],
        picks=[[[0, 1, 1]], [[1, 1, 1]]],
        padding=[[1, 0, 0], [1, 1, 1]],
    )
    assert facts.greedy_information == pytest.approx(LN2)
    assert facts.mutual_information == pytest.approx(LN2)
