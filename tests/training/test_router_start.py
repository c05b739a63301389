"""Routers that start from the clusters of the training texts' states."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import random_texts

from maw.attention.routers import Routing
from maw.models.retriever import BaselineRetriever, MAWRetriever
from maw.training.router.cluster_start import cluster_policy, start_from_clusters

ROUTES = ("sequence", "head", "token")


def blobs(seed=0):
    """States in three tight groups, and the group of each."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(3, 20)) * 4
    label = random.integers(0, 3, 300)
    return torch.from_numpy(centres[label] + 0.1 * random.normal(size=(300, 20))).float(), label


def test_a_policy_follows_the_clusters():
    states, label = blobs()
    weight, bias = cluster_policy(states, 3, seed=0, sharpness=1.0)
    policy = (states @ weight + bias).softmax(-1)
    picks = policy.argmax(-1).numpy()
    groups = [set(picks[label == each]) for each in range(3)]
    assert all(len(group) == 1 for group in groups) and len(set.union(*groups)) == 3
    assert (policy.max(-1).values > 0.99).all()


def test_it_is_the_posterior_of_a_mixture_of_gaussians():
    """Against the densities themselves, computed with the centres of the picks, where the width is a cluster's own."""
    random = np.random.default_rng(1)
    states = torch.from_numpy(random.normal(size=(200, 6))).float()
    weight, bias = cluster_policy(states, 4, seed=3, sharpness=1.0)
    log_odds = (states @ weight + bias).double()
    label = log_odds.argmax(-1).numpy()
    centres = np.stack([states.numpy()[label == d].mean(0) for d in range(4)])
    squares = ((states.numpy()[:, None] - centres) ** 2).sum(-1)
    width = squares[np.arange(200), label].mean() / states.shape[1]
    expected = torch.from_numpy(-squares / (2 * width)).double().softmax(-1)
    torch.testing.assert_close(log_odds.softmax(-1), expected, atol=1e-3, rtol=0)


def test_a_sharper_start_is_less_random_and_picks_the_same():
    states = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    blunt, sharp = (cluster_policy(states, 5, seed=0, sharpness=each) for each in (1.0, 20.0))
    policies = [(states @ weight + bias).softmax(-1) for weight, bias in (blunt, sharp)]
    entropy = [float(-torch.special.xlogy(p, p).sum(-1).mean()) for p in policies]
    assert entropy[1] < 0.5 * entropy[0]
    assert torch.equal(policies[0].argmax(-1), policies[1].argmax(-1))


@pytest.mark.parametrize("texts", [1, 2, 5, 8])
def test_fewer_texts_than_depths_leave_a_policy_that_can_be_taught(texts, recwarn):
    """Every text is then a cluster of no width, and a map made for that would be too large to be moved."""
    states = torch.randn(texts, 20, generator=torch.Generator().manual_seed(0))
    weight, bias = cluster_policy(states, 8, seed=0, sharpness=10.0)
    picks = (states @ weight + bias).argmax(-1)
    assert len(picks.unique()) == texts
    assert weight.abs().max() < 1e4
    assert not recwarn.list, "SciPy's advice is of no use to who trains a retriever"


@pytest.mark.parametrize("route_by", ROUTES)
@pytest.mark.parametrize("router", ["grpo", "soft"])
def test_the_start_changes_no_embedding_and_uses_many_depths(tiny_settings, route_by, router):
    settings = {"maw_layers": [2, 3], "depth_kernel": "low_rank", "depth_dim": 4, "route_by": route_by}
    model = MAWRetriever(tiny_settings(router=router, **settings))
    texts = random_texts(40, seed=5, longest=20)
    sources = [model.source(texts, "query"), model.source(texts[::-1], "document")]
    start_from_clusters(model.encoder, sources, [np.arange(40)] * 2, 0, 10.0)
    expected = BaselineRetriever(tiny_settings()).encode(texts)
    np.testing.assert_allclose(model.encode(texts), expected, atol=1e-6)
    inputs = sources[0].batch(np.arange(40))
    with torch.no_grad():
        taken = model.encoder(inputs, mode="group")["depths"]
    for picks in taken:
        picks = picks.argmax(-1) if picks.is_floating_point() else picks
        assert len(picks.unique()) == 4


def test_the_start_is_the_same_for_the_same_seed(tiny_settings):
    weights = []
    for seed in (0, 0, 1):
        model = MAWRetriever(tiny_settings(depth_kernel="low_rank", depth_dim=4))
        source = model.source(random_texts(40, seed=5), "query")
        start_from_clusters(model.encoder, [source], [np.arange(40)], seed, 10.0)
        weights.append(model.encoder.maw_attention[0].router.weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_routers_without_a_policy_are_left_alone(tiny_settings):
    """And nothing is computed for them."""
    model = MAWRetriever(tiny_settings(router="random", depth_kernel="low_rank", depth_dim=4))
    source = model.source(random_texts(10, seed=5), "query")
    calls = []
    with model.encoder.register_forward_hook(lambda *each: calls.append(each)):
        start_from_clusters(model.encoder, [source], [np.arange(10)], 0, 10.0)
    assert not calls and not list(model.encoder.maw_attention[0].router.parameters())


def test_padding_is_no_state(tiny_settings):
    """With tokens routed, only real tokens are looked at: texts padded further give the same start."""
    weights = []
    for length in (None, 30):
        model = MAWRetriever(
            tiny_settings(depth_kernel="low_rank", depth_dim=3, route_by="token", precision="float32")
        )
        texts = random_texts(30, seed=6)
        source = Padded(model.source(texts, "query"), length)
        start_from_clusters(model.encoder, [source], [np.arange(30)], 0, 10.0)
        weights.append(model.encoder.maw_attention[0].router.weight.detach())
    torch.testing.assert_close(weights[0], weights[1], atol=1e-4, rtol=1e-4)


class Padded:
    """A source whose batches are padded to a length."""

    def __init__(self, source, length):
        self.source, self.length = source, length

    def lengths(self):
        return self.source.lengths()

    def batches(self, order, size, budget):
        for rows, inputs in self.source.batches(order, size, budget):
            more = 0 if self.length is None else self.length - inputs["attention_mask"].shape[1]
            yield rows, {name: torch.nn.functional.pad(each, (0, more)) for name, each in inputs.items()}


def test_routing_without_a_plan_still_works(tiny_settings):
    model = MAWRetriever(tiny_settings(depth_kernel="low_rank", depth_dim=3))
    router = model.encoder.maw_attention[0].router
    picks = router(torch.randn(2, 2, 5, 8), Routing(torch.ones(2, 5, dtype=torch.long)))
    assert picks.shape == (2, 1, 1, 1)
