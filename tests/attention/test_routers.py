"""Routers: their input, how they sample, and random numbers that do not depend on how a batch is divided."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import random_texts

from maw.attention.noise import mix64, noise_keys, text_keys, uniform_noise
from maw.attention.routers import ROUTERS, GRPORouter, Routing, build_router, masked_mean
from maw.config.tier1_config import kinds
from maw.models.retriever import MAWRetriever
from maw.training.objective import LEARNERS

B, H, T, E, D = 6, 2, 5, 4, 8


def queries(seed=0):
    return torch.randn(B, H, T, E, generator=torch.Generator().manual_seed(seed))


def padding():
    lengths = torch.tensor([5, 4, 3, 2, 1, 5])
    return (torch.arange(T) < lengths[:, None]).long()


def splitmix64(value: int) -> int:
    """The reference finaliser, in Python's unbounded integers (Steele, Lea and Flood 2014)."""
    mask = (1 << 64) - 1
    value = (value + 0x9E3779B97F4A7C15) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)


def test_mix64_is_splitmix64():
    values = [0, 1, 2**31, 2**63 - 1, -1, -(2**63), 1234567890123456789]
    got = mix64(torch.tensor(values))
    expected = [splitmix64(v % (1 << 64)) for v in values]
    assert [v % (1 << 64) for v in got.tolist()] == expected


def test_noise_is_uniform_and_independent_of_its_neighbours():
    keys = noise_keys(42, 7, torch.arange(500), 4)
    noise = uniform_noise(keys, 0, 1, 1, 50).flatten(0, 1).flatten(1)  # (2000, 50)
    assert 0 < noise.min() and noise.max() < 1
    assert abs(noise.mean() - 0.5) < 4 * math.sqrt(1 / 12 / noise.numel())
    counts = torch.histc(noise, 20, 0, 1)
    chi_square = ((counts - noise.numel() / 20) ** 2 / (noise.numel() / 20)).sum()
    assert chi_square < 43.8  # 99.9th percentile, 19 degrees of freedom
    correlation = torch.corrcoef(noise.T) - torch.eye(50)
    assert correlation.abs().max() < 5 / math.sqrt(len(noise))


def test_noise_of_a_text_depends_on_its_index_and_not_on_its_batch():
    index = torch.tensor([3, 1, 4, 15])
    whole = noise_keys(42, 7, index, 3)
    assert torch.equal(whole[2:], noise_keys(42, 7, index[2:], 3))
    assert torch.equal(whole[:, :2], noise_keys(42, 7, index, 2)), "more samples keep the first ones"
    different = [noise_keys(43, 7, index, 3), noise_keys(42, 8, index, 3), noise_keys(42, 7, index, 3, stream=1)]
    assert all((whole != other).all() for other in different)
    assert len(whole.unique()) == whole.numel()
    assert (uniform_noise(whole, 0, 1, 1, 4) != uniform_noise(whole, 1, 1, 1, 4)).any()


def test_no_two_seeds_steps_and_streams_share_noise():
    keys = [
        noise_keys(seed, step, torch.arange(8), 4, stream)
        for seed in range(8)
        for step in range(8)
        for stream in range(2)
    ]
    assert len(torch.stack(keys).unique()) == 8 * 8 * 2 * 8 * 4


def test_noise_of_a_token_does_not_depend_on_padding():
    keys = noise_keys(42, 7, torch.arange(5), 3)
    assert torch.equal(uniform_noise(keys, 0, H, 9, D)[:, :, :, :4], uniform_noise(keys, 0, H, 4, D))


def test_text_keys_do_not_see_padding_but_see_order():
    ids = torch.tensor([[2, 7, 8, 3, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]])
    short = text_keys(ids[:, :4], mask[:, :4])
    assert torch.equal(text_keys(ids, mask), short)
    assert not torch.equal(text_keys(torch.tensor([[2, 8, 7, 3]]), mask[:, :4]), short)


def test_masked_mean_leaves_padding_out():
    states = queries()
    expected = torch.stack([states[b, :, : int(n)].mean(1) for b, n in enumerate(padding().sum(1))])
    torch.testing.assert_close(masked_mean(states, padding()), expected)


def test_the_configuration_takes_the_names_of_all_routers():
    assert kinds()["router"].choices == tuple(ROUTERS)
    assert all(router.__doc__ and router.name == name for name, router in ROUTERS.items())
    assert {router.trained_by for router in ROUTERS.values()} == {*LEARNERS, "loss", "nothing"}


@pytest.mark.parametrize(("route_by", "shape"), [("sequence", (1, 1)), ("head", (H, 1)), ("token", (H, T))])
@pytest.mark.parametrize("name", sorted(ROUTERS))
def test_shapes_and_range_of_every_router(name, route_by, shape):
    router = build_router(name, H, E, D, route_by)
    for keys in (None, noise_keys(0, 0, torch.arange(B), 3)):
        samples = 1 if keys is None else 3
        routing = Routing(padding(), keys_BG=keys, text_keys_B1=torch.arange(B)[:, None], samples=samples)
        taken = router(queries(), routing)
        assert taken.shape[:4] == (B, samples, *shape)
        if name == "soft":
            torch.testing.assert_close(taken.sum(-1), torch.ones(taken.shape[:4]))
        else:
            assert taken.dtype == torch.int64 and 0 <= taken.min() and taken.max() < D
    assert not routing.states[0].requires_grad


@pytest.mark.parametrize("name", ["grpo", "supervised"])
def test_a_new_policy_is_greedy_for_depth_zero_and_nearly_uniform(name):
    router = build_router(name, H, E, D)
    routing = Routing(padding())
    assert (router(queries(), routing) == 0).all()
    probabilities = router.logits(routing.states[0]).softmax(-1).detach()
    assert probabilities.max() / probabilities.min() == pytest.approx(math.exp(0.1), rel=1e-5)


def test_samples_follow_the_policy():
    router = GRPORouter(H, E, 4)
    with torch.no_grad():
        router.bias.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]).log())
    keys = noise_keys(0, 0, torch.arange(B), 4000)
    taken = router(queries(), Routing(padding(), keys_BG=keys, samples=4000))
    share = torch.bincount(taken.flatten(), minlength=4) / taken.numel()
    torch.testing.assert_close(share, torch.tensor([0.1, 0.2, 0.3, 0.4]), atol=0.015, rtol=0)


def test_a_text_is_routed_by_itself_alone():
    """Changing every other text of the batch, and the padding's content, changes no pick."""
    router = GRPORouter(H, E, D, "head")
    with torch.no_grad():
        router.weight.normal_(generator=torch.Generator().manual_seed(0))
    states = queries()
    first = router(states, Routing(padding()))[1]
    others = queries(seed=9)
    others[1] = torch.where(padding()[1][None, :, None].bool(), states[1], others[1])
    assert torch.equal(router(others, Routing(padding()))[1], first)


def test_a_random_router_is_a_hash_of_the_text_at_evaluation():
    router = build_router("random", H, E, D)
    keys = text_keys(torch.arange(2000)[:, None], torch.ones(2000, 1))
    state = torch.zeros(2000, H, 1, E)
    routing = lambda: Routing(torch.ones(2000, 1), text_keys_B1=keys)
    first, second = router(state, routing()), router(state, routing())
    assert torch.equal(first, second)
    counts = torch.bincount(first.flatten(), minlength=D)
    assert counts.min() > 200, "all depths are used about alike"
    with pytest.raises(ValueError, match="keys"):
        router(state, Routing(torch.ones(2000, 1)))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="'word'"):
        build_router("grpo", H, E, D, "word")
    with pytest.raises(ValueError, match=r"0\.\.7, got 8"):
        build_router("fixed", H, E, D, fixed_depth=8)


def test_a_router_never_bends_the_states_it_sees():
    states = queries().requires_grad_(True)
    for name in ("grpo", "soft"):
        routing = Routing(padding())
        build_router(name, H, E, D, "token")(states, routing)
        assert not routing.states[0].requires_grad


def test_a_policy_does_not_depend_on_the_length_of_a_state():
    router = GRPORouter(H, E, D, "head")
    with torch.no_grad():
        router.weight.normal_(generator=torch.Generator().manual_seed(0))
    state = torch.randn(B, H, 1, E, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(router.logits(100 * state), router.logits(state), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("bits", [0, -1])
def test_noise_never_reaches_zero_or_one(monkeypatch, bits):
    """The extreme bits come once in millions of draws: a one would be a depth that does not exist."""
    monkeypatch.setattr("maw.attention.noise.mix64", lambda value: torch.full_like(value, bits))
    noise = uniform_noise(torch.zeros(1, 1, dtype=torch.int64), 0, 1, 1)
    assert 0 < float(noise) < 1
    router = build_router("random", H, E, D)
    taken = router(queries(), Routing(padding(), keys_BG=torch.zeros(B, 1, dtype=torch.int64)))
    assert taken.min() >= 0 and taken.max() < D


@pytest.mark.parametrize("route_by", ["sequence", "head", "token"])
def test_states_are_the_same_with_and_without_gradient(tiny_settings, route_by):
    """Without gradient the kernels weigh the query in place; what the routers saw must not change with it."""
    model = MAWRetriever(tiny_settings(maw_layers=[2, 3], route_by=route_by, kernel_init_std=0.5))
    inputs = model.source(random_texts(4, seed=3), "query").batch(range(4))
    keys = noise_keys(0, 0, torch.arange(4), 3)
    with torch.no_grad():
        without = model.encoder(inputs, mode="group", keys=keys)
    with_gradient = model.encoder(inputs, mode="group", keys=keys)
    for got, expected in zip(without["states"], with_gradient["states"], strict=True):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)
