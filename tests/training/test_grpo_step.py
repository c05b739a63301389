"""One step of the router learners on a real batch, against the same step written out text by text."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from conftest import random_texts

from maw.attention.noise import noise_keys, uniform_noise
from maw.models.retriever import MAWRetriever
from maw.training.contrastive import Batch
from maw.training.objective import GroupObjective, LearnedRoutingObjective, RandomRoutingObjective
from maw.training.router.distinct import distinct_weights, draw_distinct
from maw.training.router.grpo import GRPOLearner, group_advantages
from maw.training.router.rollout import Rollout, embed_greedy, try_routings
from maw.training.router.supervised import SupervisedLearner

B, P, G, D = 4, 6, 3, 4
TAU = 0.3
ROUTES = ("sequence", "head", "token")


def setting(tiny_settings, **changes):
    """A MAW model whose depths and routers differ, in training mode, and a batch with padding and masked pairs."""
    defaults = {"maw_layers": [2, 3], "grpo_group_size": G, "depth_dim": D, "grpo_share": 1.0}
    config = tiny_settings(**(defaults | changes))
    model = MAWRetriever(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for attention in model.encoder.maw_attention:
            for parameter in (*attention.kernels.parameters(), *attention.router.parameters()):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    queries = model.source(random_texts(B, seed=21), "query").batch(range(B))
    passages = model.source(random_texts(P, seed=22, longest=20), "document").batch(range(P))
    assert not queries["attention_mask"].all() and not passages["attention_mask"].all()
    candidate_mask = torch.ones(B, P, dtype=torch.bool)
    candidate_mask[0, 1] = candidate_mask[2, 3] = candidate_mask[3, 5] = False
    model.encoder.train()
    no_bank = torch.ones(B, 0, dtype=torch.bool)
    return model, config, queries, passages, Batch(np.array([7, 1, 30, 4]), np.arange(P), candidate_mask, no_bank)


def tried(model, queries, passages, batch, query_options, passage_options, kind="log_prob"):
    positives = {name: each[:B] for name, each in passages.items()}
    embedded = embed_greedy(model.encoder, queries, passages)
    options = {"query_options": query_options, "positive_options": passage_options}
    return try_routings(model.encoder, queries, positives, batch, embedded, temperature=TAU, reward=kind, **options)


def greedy(model, inputs):
    model.encoder.eval()
    with torch.no_grad():
        return model.encoder(inputs)["embedding"]


def at(model, inputs, depths):
    """Embeddings of each text at each of its samples' depths, (B, G, C), one sample after the other."""
    model.encoder.eval()
    with torch.no_grad():
        parts = [
            model.encoder(inputs, mode="group", depths=[d[:, g : g + 1] for d in depths])["embedding"]
            for g in range(depths[0].shape[1])
        ]
    return torch.cat(parts, dim=1)


def reward_by_hand(kind, scores, b, allowed):
    """Reward of a query whose positive stands at position b of `scores`."""
    others = [float(score) for p, score in enumerate(scores) if p != b and allowed[p]]
    own = float(scores[b])
    if kind == "log_prob":
        return own - math.log(math.exp(own) + sum(map(math.exp, others)))
    rank = 1 + sum(other > own for other in others)
    return 1 / rank if kind == "reciprocal_rank" else 1 / math.log2(1 + rank)


@pytest.mark.parametrize("kind", ["log_prob", "reciprocal_rank", "ndcg"])
@pytest.mark.parametrize("route_by", ROUTES)
def test_rewards_of_both_sides_are_those_of_each_routing_by_itself(tiny_settings, route_by, kind):
    model, _, queries, passages, batch = setting(tiny_settings, route_by=route_by)
    keys = [noise_keys(0, 0, torch.arange(B), G, stream) for stream in (0, 1)]
    rollouts = tried(model, queries, passages, batch, {"keys": keys[0]}, {"keys": keys[1]}, kind)
    assert model.encoder.training, "the mode is given back"
    positives = {name: each[:B] for name, each in passages.items()}
    query_BC, passage_PC = greedy(model, queries), greedy(model, passages)
    query_BGC, positive_BGC = at(model, queries, rollouts[0].depths), at(model, positives, rollouts[1].depths)
    for b in range(B):
        allowed = batch.candidate_mask[b].tolist()
        for g in range(G):
            scores = passage_PC @ query_BGC[b, g] / TAU
            got = float(rollouts[0].reward_BG[b, g])
            assert got == pytest.approx(reward_by_hand(kind, scores, b, allowed), abs=1e-4)
            scores = passage_PC @ query_BC[b] / TAU
            scores[b] = positive_BGC[b, g] @ query_BC[b] / TAU
            got = float(rollouts[1].reward_BG[b, g])
            assert got == pytest.approx(reward_by_hand(kind, scores, b, allowed), abs=1e-4)
    assert all(rollout.reward_BG.std(1).max() > 1e-3 for rollout in rollouts) or kind != "log_prob"


def expected_routers(model, config, rollouts, reference):
    """The routers after the inner epochs, from the formulas, one text and one sample at a time."""
    routers = copy.deepcopy(torch.nn.ModuleList(layer.router for layer in model.encoder.maw_attention))
    old = copy.deepcopy(routers)
    optimizer = torch.optim.AdamW(routers.parameters(), lr=config.router_learning_rate, weight_decay=0.0)
    clipped = 0
    for _ in range(config.grpo_inner_epochs):
        losses = []
        for rollout in rollouts:
            for layer in range(len(routers)):
                per_sample = []
                for b in range(B):
                    rewards = rollout.reward_BG[b]
                    for g in range(G):
                        advantage = (rewards[g] - rewards.mean()) / (rewards.std() + 1e-4)
                        state = rollout.states[layer][b, g if rollout.states[layer].shape[1] > 1 else 0]
                        new, before, anchor = (
                            each[layer].logits(state).log_softmax(-1) for each in (routers, old, reference)
                        )
                        action = rollout.depths[layer][b, g]
                        decisions = []
                        for h in range(action.shape[0]):
                            for t in range(action.shape[1]):
                                if action.shape[1] > 1 and not rollout.padding_BT[b, t]:
                                    continue
                                a = int(action[h, t])
                                ratio = (new[h, t, a] - before[h, t, a]).exp()
                                bounded = ratio.clamp(1 - config.grpo_clip, 1 + config.grpo_clip)
                                clipped += float(bounded != ratio)
                                gain = torch.minimum(ratio * advantage, bounded * advantage)
                                kl = sum(new[h, t, d].exp() * (new[h, t, d] - anchor[h, t, d]) for d in range(D))
                                decisions.append(config.grpo_kl * kl - gain)
                        per_sample.append(torch.stack(decisions).mean())
                losses.append(torch.stack(per_sample).mean())
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert clipped, "the clip must matter"
    return routers


@pytest.mark.parametrize(("route_by", "reference"), [("sequence", "uniform"), ("head", "slow"), ("token", "slow")])
def test_a_step_updates_the_routers_by_the_formulas_and_nothing_else(tiny_settings, route_by, reference):
    model, config, queries, passages, batch = setting(
        tiny_settings,
        route_by=route_by,
        grpo_reference=reference,
        grpo_reference_decay=0.9,
        grpo_kl=0.5,
        grpo_clip=0.1,
        router_learning_rate=0.05,
        grpo_inner_epochs=3,
        reward="log_prob",
        seed=5,
    )
    learner = GRPOLearner(model.encoder, model.encoder, config, TAU)
    with torch.no_grad():
        for parameter in learner.reference.parameters():
            parameter.mul_(0.5)  # a reference that differs from the policy
    anchor = copy.deepcopy(learner.reference)
    if reference == "uniform":
        for parameter in anchor.parameters():
            torch.nn.init.zeros_(parameter)
    before = {name: each.clone() for name, each in model.encoder.named_parameters()}
    twin = copy.deepcopy(model)
    *rollouts, statistics = learner.step(queries, passages, batch, step=3)

    keys = [noise_keys(5, 3, torch.from_numpy(batch.queries), G, stream) for stream in (0, 1)]
    wanted = tried(twin, queries, passages, batch, {"keys": keys[0]}, {"keys": keys[1]})
    for got, want in zip(rollouts, wanted):
        assert all(torch.equal(*pair) for pair in zip(got.depths, want.depths))
        torch.testing.assert_close(got.reward_BG, want.reward_BG)
    routers = expected_routers(twin, config, rollouts, anchor)
    for got, want in zip(learner.routers.parameters(), routers.parameters()):
        torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-3)
    changed = {n for n, each in model.encoder.named_parameters() if not torch.equal(each, before[n])}
    assert changed and all(".router." in name for name in changed)
    if reference == "slow":
        for slow, first, fast in zip(
            learner.reference.parameters(), anchor.parameters(), learner.routers.parameters()
        ):
            torch.testing.assert_close(slow, 0.9 * first + 0.1 * fast)
    rewards = torch.cat([rollout.reward_BG for rollout in rollouts])
    assert float(statistics["reward_mean"]) == pytest.approx(float(rewards.mean()), abs=1e-6)
    assert float(statistics["zero_variance_share"]) == 0
    for side, rollout in zip(("query", "document"), rollouts, strict=True):
        value = float(statistics[f"{side}_reward_mean"])
        assert value == pytest.approx(float(rollout.reward_BG.mean()), abs=1e-6)
    assert float(statistics["query_reward_mean"]) != float(statistics["document_reward_mean"])
    for name in ("kl", "clip_fraction", "policy_entropy", "reward_std", "zero_variance_share"):
        sides = [float(statistics[f"{side}_{name}"]) for side in ("query", "document")]
        assert float(statistics[name]) == pytest.approx(sum(sides) / 2, abs=1e-6)


@pytest.mark.parametrize("route_by", ROUTES)
def test_supervised_labels_are_the_best_depths_and_are_learnt(tiny_settings, route_by):
    model, config, queries, passages, batch = setting(
        tiny_settings, router="supervised", route_by=route_by, router_learning_rate=0.05
    )
    twin = copy.deepcopy(model)
    learner = SupervisedLearner(model.encoder, model.encoder, config, TAU)
    *rollouts, statistics = learner.step(queries, passages, batch, step=0)

    query_BC, passage_PC = greedy(twin, queries), greedy(twin, passages)
    positives = {name: each[:B] for name, each in passages.items()}
    routers = torch.nn.ModuleList(layer.router for layer in twin.encoder.maw_attention)
    optimizer = torch.optim.AdamW(routers.parameters(), lr=0.05, weight_decay=0.0)
    losses, right = [], []
    for side, (rollout, inputs) in enumerate(zip(rollouts, (queries, positives))):
        every = [
            torch.arange(D).view(1, D, 1, 1).expand(B, D, depths.shape[2], depths.shape[3])
            for depths in rollout.depths
        ]
        embeddings = at(twin, inputs, every)
        for b in range(B):
            rewards = []
            for d in range(D):
                scores = passage_PC @ (query_BC[b] if side else embeddings[b, d]) / TAU
                if side:
                    scores[b] = embeddings[b, d] @ query_BC[b] / TAU
                rewards.append(reward_by_hand("log_prob", scores, b, batch.candidate_mask[b].tolist()))
            label = int(np.argmax(rewards))
            assert all((depths[b] == label).all() for depths in rollout.depths)
            assert float(rollout.reward_BG[b, 0]) == pytest.approx(max(rewards), abs=1e-4)
        for layer, router in enumerate(routers):
            log_policy = router.logits(rollout.states[layer]).log_softmax(-1)[:, 0]  # (B, h, t, D)
            real = torch.ones(log_policy.shape[:3], dtype=torch.bool)
            if route_by == "token":
                real &= inputs["attention_mask"].bool()[:, None]
            target = rollout.depths[layer][:, 0].expand(real.shape)
            losses.append(torch.nn.functional.cross_entropy(log_policy[real], target[real]))
            right.append((log_policy.argmax(-1) == target)[real].float().mean())
    torch.stack(losses).mean().backward()
    optimizer.step()
    for got, want in zip(learner.routers.parameters(), routers.parameters()):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-3)
    assert float(statistics["router_loss"]) == pytest.approx(float(torch.stack(losses).mean().detach()), abs=1e-5)
    assert float(statistics["router_accuracy"]) == pytest.approx(float(torch.stack(right).mean()), abs=1e-6)


@pytest.mark.parametrize("route_by", ROUTES)
def test_depths_that_earn_the_same_teach_nothing_and_each_text_keeps_its_own(tiny_settings, route_by):
    """So are all depths of a start from clusters: as the label 0, every text would train depth 0 from then on."""
    model, config, queries, passages, batch = setting(tiny_settings, router="supervised", route_by=route_by)
    with torch.no_grad():
        for attention in model.encoder.maw_attention:
            attention.kernels.weight.fill_(1.0)
        first = model.encoder.maw_attention[0].router
        first.weight.mul_(10.0)  # so that texts differ in the depth that they like
    before = copy.deepcopy(model.encoder.maw_attention[0].router.state_dict())
    learner = SupervisedLearner(model.encoder, model.encoder, config, TAU)
    *rollouts, statistics = learner.step(queries, passages, batch, step=0)
    labels = []
    for rollout, inputs in zip(rollouts, (queries, passages), strict=True):
        with torch.no_grad():
            policy = first.logits(rollout.states[0]).log_softmax(-1)[:, 0]  # (B, h, t, D)
        for b in range(B):
            real = policy[b, :, : int(inputs["attention_mask"][b].sum())] if route_by == "token" else policy[b]
            labels.append(int(real.mean((0, 1)).argmax()))
            assert all((depths[b] == labels[-1]).all() for depths in rollout.depths)
    assert len(set(labels)) > 1
    assert all(torch.equal(each, before[name]) for name, each in first.state_dict().items())
    assert float(statistics["router_loss"]) == 0


def test_of_the_best_depths_alone_a_text_takes_the_one_it_likes(tiny_settings):
    model, config, queries, passages, batch = setting(tiny_settings, router="supervised", maw_layers=[3])
    attention = model.encoder.maw_attention[0]
    with torch.no_grad():
        attention.kernels.weight[:, 1:] = attention.kernels.weight[:, 1:2]  # depths 1, 2 and 3 are one
        attention.router.weight.zero_()
        attention.router.bias.copy_(torch.tensor([5.0, 0.0, 1.0, 0.0]))
    learner = SupervisedLearner(model.encoder, model.encoder, config, TAU)
    *rollouts, statistics = learner.step(queries, passages, batch, step=0)
    labels = torch.cat([rollout.depths[0].flatten() for rollout in rollouts])
    assert set(labels.tolist()) == {0, 2}, "never 1 or 3, and 0 where it is better"
    assert float(statistics["router_loss"]) > 0


class Recorder:
    """Stands in for a learner: hands out the rollouts that it was given."""

    def __init__(self, rollouts):
        self.rollouts = rollouts

    def step(self, queries, passages, batch, step, bank_KC=None, embedded=None):
        self.embedded = embedded
        return *self.rollouts, {}


def test_the_encoder_trains_at_samples_of_the_policy_and_rewards_compare_with_its_embeddings(tiny_settings):
    """The first depths that a sampled group would hold, with a bank or without."""
    model, config, queries, passages, batch = setting(tiny_settings)
    model.encoder.eval()
    learner = Recorder((None, None))
    got, _ = LearnedRoutingObjective(model.encoder, TAU, learner, config)(queries, passages, batch, 7)
    positives = {name: each[:B] for name, each in passages.items()}
    keys = [noise_keys(config.seed, 7, torch.from_numpy(batch.queries), G, stream) for stream in (0, 1)]
    query_BC, positive_BC = (
        model.encoder(inputs, mode="group", keys=each)["embedding"][:, 0].detach()
        for inputs, each in zip((queries, positives), keys)
    )
    passage_PC = torch.cat((positive_BC, greedy(model, passages)[B:]))
    allowed = [each.tolist() for each in batch.candidate_mask]
    rewards = [reward_by_hand("log_prob", passage_PC @ query_BC[b] / TAU, b, allowed[b]) for b in range(B)]
    assert float(got.detach()) == pytest.approx(-np.mean(rewards), abs=1e-4)
    torch.testing.assert_close(learner.embedded.query_BC, query_BC, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(learner.embedded.passage_PC, passage_PC, atol=1e-5, rtol=1e-4)
    assert not learner.embedded.query_BC.requires_grad


@pytest.mark.parametrize("group", ["sampled", "distinct"])
def test_only_a_share_of_a_batch_gets_a_group(tiny_settings, group):
    """Its rollouts and the gain are those of these texts in the whole batch; all texts count for the balance."""
    changes = {"maw_layers": [3], "grpo_group": group, "depth_dim": 6, "router_balance": 0.0}

    def step(share, balance=0.0):
        model, config, *inputs, batch = setting(
            tiny_settings, **changes | {"router_balance": balance}, grpo_share=share
        )
        found = GRPOLearner(model.encoder, model.encoder, config, TAU).step(*inputs, batch, 5)
        return model.encoder.maw_attention[0].router, found

    _, whole = step(1.0)
    router, half = step(0.5)
    for two, four in zip(half[:2], whole[:2], strict=True):
        assert two.reward_BG.shape == (2, G)
        assert torch.equal(two.depths[0], four.depths[0][:2])
        torch.testing.assert_close(two.reward_BG, four.reward_BG[:2], atol=1e-5, rtol=1e-5)
        assert len(two.batch_states[0]) == B
    assert float(half[2]["reward_mean"]) == pytest.approx(
        float(torch.cat([each.reward_BG[:2] for each in whole[:2]]).mean()), abs=1e-5
    )
    assert float(half[2]["policy_entropy"]) == pytest.approx(float(whole[2]["policy_entropy"]), abs=0.05)
    balanced, _ = step(0.5, balance=1.0)
    assert not torch.equal(balanced.bias, router.bias)


def test_groups_that_train_the_encoder_are_those_of_all_texts(tiny_settings):
    model, config, *inputs, batch = setting(tiny_settings, encoder_update="mcl", grpo_share=0.25)
    query, *_ = GRPOLearner(model.encoder, model.encoder, config, TAU).step(*inputs, batch, 0)
    assert len(query.reward_BG) == B


@pytest.mark.parametrize("update", ["all_group", "mcl"])
def test_the_encoder_trains_on_the_samples_that_the_update_names(tiny_settings, update):
    model, config, queries, passages, batch = setting(tiny_settings, encoder_update=update, mcl_temperature=0.5)
    keys = [noise_keys(0, 0, torch.arange(B), G, stream) for stream in (0, 1)]
    rollouts = tried(model, queries, passages, batch, {"keys": keys[0]}, {"keys": keys[1]}, "log_prob")
    model.encoder.eval()
    objective = GroupObjective(model.encoder, TAU, Recorder(rollouts), config, steps=1)
    got, _ = objective(queries, passages, batch, 0)

    negative_NC = greedy(model, passages)[B:]
    positives = {name: each[:B] for name, each in passages.items()}
    query_BGC, positive_BGC = at(model, queries, rollouts[0].depths), at(model, positives, rollouts[1].depths)
    expected = 0.0
    for b in range(B):
        rewards = [float(rollouts[0].reward_BG[b, g] + rollouts[1].reward_BG[b, g]) / 0.5 for g in range(G)]
        weights = {"all_group": [1 / G] * G, "mcl": [math.exp(r) / sum(map(math.exp, rewards)) for r in rewards]}[
            update
        ]
        for g in range(G):
            candidates = torch.cat((positive_BGC[:, g], negative_NC))
            scores = candidates @ query_BGC[b, g] / TAU
            reward = reward_by_hand("log_prob", scores, b, batch.candidate_mask[b].tolist())
            expected -= weights[g] * reward / B
    assert float(got.detach()) == pytest.approx(expected, abs=1e-4)


def test_random_routing_draws_anew_at_every_step_and_for_each_side(tiny_settings):
    model, _, queries, passages, batch = setting(tiny_settings, router="random")
    model.encoder.eval()
    objective = RandomRoutingObjective(model.encoder, TAU, seed=3)
    for step in (0, 1):
        got, _ = objective(queries, passages, batch, step)
        with torch.no_grad():
            query_BC, passage_PC = (
                model.encoder(inputs, mode="group", keys=noise_keys(3, step, torch.from_numpy(rows), 1, stream))[
                    "embedding"
                ][:, 0]
                for stream, (inputs, rows) in enumerate(((queries, batch.queries), (passages, batch.passages)))
            )
        rewards = [
            reward_by_hand("log_prob", passage_PC @ query_BC[b] / TAU, b, batch.candidate_mask[b].tolist())
            for b in range(B)
        ]
        assert float(got.detach()) == pytest.approx(-np.mean(rewards), abs=1e-4)


def every_depth_tried(tiny_settings, **changes):
    """A model of one MAW layer whose groups are every depth, and what its learner makes of a batch."""
    changes = {"maw_layers": [3], "grpo_group": "all", "grpo_kl": 0.0} | changes
    model, config, queries, passages, batch = setting(tiny_settings, **changes)
    learner = GRPOLearner(model.encoder, model.encoder, config, TAU)
    before = copy.deepcopy(model.encoder.maw_attention[0].router)
    rollouts = learner.step(queries, passages, batch, 5)
    return model, queries, passages, batch, before, rollouts


def test_a_group_of_all_holds_every_depth_with_its_share_of_the_policy(tiny_settings):
    model, queries, passages, _batch, before, (query, positive, _) = every_depth_tried(tiny_settings)
    for rollout, inputs in ((query, queries), (positive, {n: each[:B] for n, each in passages.items()})):
        assert rollout.depths[0].flatten(1).tolist() == [list(range(D))] * B
        state = rollout.states[0][:, 0, 0, 0]
        share = before.logits(state[:, None, None]).softmax(-1)[:, 0, 0].detach()
        torch.testing.assert_close(rollout.share_BG, share, atol=1e-6, rtol=0)
        torch.testing.assert_close(rollout.share_BG.sum(1), torch.ones(B), atol=1e-6, rtol=0)
        for d in range(D):
            assert at(model, inputs, [rollout.depths[0][:, d : d + 1]]).shape[1] == 1
    assert (query.reward_BG.std(1) > 1e-4).all(), "depths differ"


def test_what_the_policy_draws_from_a_group_of_all_follows_its_shares(tiny_settings):
    """Over many steps the drawn depths are as frequent as the policy says."""
    model, config, queries, passages, batch = setting(tiny_settings, maw_layers=[3], grpo_group="all")
    learner = GRPOLearner(model.encoder, model.encoder, config, TAU)
    rollout = learner.step(queries, passages, batch, 0)[0]
    counts = torch.zeros(B, D)
    for step in range(600):
        rollout.drawn_B = None
        learner._remember(rollout, noise_keys(0, step, torch.arange(B), 1))
        counts[torch.arange(B), rollout.drawn_B] += 1
    assert (counts / 600 - rollout.share_BG).abs().max() < 0.08


def test_an_exact_step_raises_the_expected_advantage(tiny_settings):
    changes = {"router_learning_rate": 0.01, "grpo_inner_epochs": 4}
    model, *_, before, (query, positive, _) = every_depth_tried(tiny_settings, **changes)
    router = model.encoder.maw_attention[0].router
    for rollout in (query, positive):
        state = rollout.states[0]
        gain = router.logits(state).softmax(-1) - before.logits(state).softmax(-1)
        advantage, _ = group_advantages(rollout.reward_BG, rollout.share_BG)
        assert (gain[:, 0, 0, 0] * advantage).sum(1).mean() > 0


def test_balance_spreads_a_policy_that_sits_on_one_depth(tiny_settings):
    def effective(balance):
        model, config, queries, passages, batch = setting(
            tiny_settings, maw_layers=[3], router_balance=balance, router_learning_rate=0.05, grpo_kl=0.0
        )
        router = model.encoder.maw_attention[0].router
        with torch.no_grad():
            router.bias[..., 1] += 4
        learner = GRPOLearner(model.encoder, model.encoder, config, TAU)
        for step in range(15):
            query, *_ = learner.step(queries, passages, batch, step)
        mean = router.logits(query.states[0]).softmax(-1).flatten(0, -2).mean(0)
        return float(-(mean * mean.log()).sum().detach())

    assert effective(5.0) > effective(0.0) + 0.3


@pytest.mark.parametrize(("start", "expected"), [(None, [0.5, 0.5, 0.5]), (8.0, [8.0, 2.0, 0.5])])
def test_the_temperature_of_mcl_falls_geometrically(tiny_settings, start, expected):
    model, config, *_ = setting(tiny_settings, mcl_temperature=0.5, mcl_start_temperature=start)
    objective = GroupObjective(model.encoder, TAU, Recorder(()), config, steps=3)
    assert [objective._mcl_temperature(step) for step in range(3)] == pytest.approx(expected)


def test_mcl_sampled_draws_by_the_weights_of_mcl(tiny_settings):
    model, config, queries, passages, batch = setting(tiny_settings, encoder_update="mcl_sampled", mcl_temperature=0.3)
    keys = [noise_keys(0, 0, torch.arange(B), G, stream) for stream in (0, 1)]
    rollout, _ = tried(model, queries, passages, batch, {"keys": keys[0]}, {"keys": keys[1]})
    objective = GroupObjective(model.encoder, TAU, Recorder(()), config, steps=1)
    counts = torch.zeros(B, G)
    for step in range(600):
        counts[torch.arange(B), objective._picked(rollout, batch, step, 2, 0.3)] += 1
    assert (counts / 600 - (rollout.reward_BG / 0.3).softmax(1)).abs().max() < 0.08


def distinct(tiny_settings, **changes):
    """A model of one MAW layer whose groups are different depths, and what its learner makes of a batch."""
    changes = {"maw_layers": [3], "grpo_group": "distinct", "depth_dim": 6, "router_learning_rate": 0.05} | changes
    model, config, queries, passages, batch = setting(tiny_settings, **changes)
    learner = GRPOLearner(model.encoder, model.encoder, config, TAU)
    before = copy.deepcopy(model.encoder.maw_attention[0].router)
    return model, config, queries, passages, batch, before, learner.step(queries, passages, batch, 5)


def test_a_distinct_group_is_drawn_from_the_old_policy_and_weighted(tiny_settings):
    model, config, queries, passages, batch, before, (*rollouts, statistics) = distinct(tiny_settings)
    spreads = []
    sides = (queries, {n: each[:B] for n, each in passages.items()})
    for stream, (rollout, inputs) in enumerate(zip(rollouts, sides, strict=True)):
        policy = before.logits(rollout.states[0]).log_softmax(-1)[:, 0, 0, 0].detach()
        noise = uniform_noise(noise_keys(config.seed, 5, torch.from_numpy(batch.queries), 1, stream), 0, 1, 1, 6)
        group = draw_distinct(policy, noise[:, 0, 0, 0], G, 0.1)
        assert torch.equal(rollout.depths[0][..., 0, 0], group)
        assert all(len(set(each)) == G for each in group.tolist())
        torch.testing.assert_close(rollout.share_BG, distinct_weights(policy, group, 0.1), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(rollout.old_log_prob[0][..., 0, 0], policy.gather(1, group))
        assert set(rollout.drawn_B.tolist()) <= set(range(G))
        at(model, inputs, rollout.depths)
        for reward, share in zip(rollout.reward_BG.tolist(), rollout.share_BG.tolist(), strict=True):
            mean = sum(r * s for r, s in zip(reward, share)) / sum(share)
            spreads.append(math.sqrt(sum(s * (r - mean) ** 2 for r, s in zip(reward, share)) / sum(share)))
    assert float(statistics["weighted_reward_std"]) == pytest.approx(np.mean(spreads), abs=1e-5)
    assert float(statistics["query_weighted_reward_std"]) == pytest.approx(np.mean(spreads[:B]), abs=1e-5)
    assert float(statistics["flat_group_share"]) == np.mean(np.array(spreads) < 0.005)


def test_a_distinct_step_updates_the_router_by_its_weights(tiny_settings):
    changes = {"grpo_inner_epochs": 2, "grpo_kl": 0.5, "grpo_clip": 0.1}
    model, *_, before, (*rollouts, _) = distinct(tiny_settings, **changes)
    router = copy.deepcopy(before)
    optimizer = torch.optim.AdamW(router.parameters(), lr=0.05, weight_decay=0.0)
    for _ in range(2):
        losses = []
        for rollout in rollouts:
            for b in range(B):
                new, old = (each.logits(rollout.states[0][b]).log_softmax(-1)[0, 0, 0] for each in (router, before))
                share, reward = rollout.share_BG[b], rollout.reward_BG[b]
                advantage = (reward - (share * reward).sum() / share.sum()) / (reward.std() + 1e-4)
                depths = rollout.depths[0][b, :, 0, 0]
                ratio = (new - old.detach())[depths].exp()
                gain = share @ torch.minimum(ratio * advantage, ratio.clamp(0.9, 1.1) * advantage)
                losses.append(0.5 * (new.exp() * (new + math.log(6))).sum() - gain)
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
    for got, want in zip(model.encoder.maw_attention[0].router.parameters(), router.parameters()):
        torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-3)


def test_a_texts_group_does_not_depend_on_its_batch(tiny_settings):
    *_, batch, _, whole = distinct(tiny_settings)
    model, config, queries, passages, _ = setting(tiny_settings, maw_layers=[3], grpo_group="distinct", depth_dim=6)
    rows = [2, 0]
    part = Batch(batch.queries[rows], np.array(rows), torch.ones(2, 2, dtype=torch.bool), torch.ones(2, 0).bool())
    queries, passages = ({n: each[rows] for n, each in inputs.items()} for inputs in (queries, passages))
    got = GRPOLearner(model.encoder, model.encoder, config, TAU).step(queries, passages, part, 5)
    for two, four in zip(got[:2], whole[:2], strict=True):
        assert torch.equal(two.depths[0], four.depths[0][rows])
        assert torch.equal(two.drawn_B, four.drawn_B[rows])


def test_a_distinct_group_as_large_as_the_depths_is_all_of_them(tiny_settings):
    steps = [every_depth_tried(tiny_settings, grpo_group=kind, grpo_group_size=D) for kind in ("all", "distinct")]
    routers = [model.encoder.maw_attention[0].router for model, *_ in steps]
    assert all(torch.equal(*pair) for pair in zip(*(each.parameters() for each in routers)))


def test_what_a_distinct_group_draws_for_the_encoder_follows_the_policy(tiny_settings):
    """Its weights average to the policy; normalised within a group, as here, nearly."""
    model, config, queries, _, batch = setting(tiny_settings, maw_layers=[3], grpo_group="distinct", depth_dim=6)
    learner = GRPOLearner(model.encoder, model.encoder, config, TAU)
    with torch.no_grad():
        states = model.encoder(queries, mode="group")["states"]
        policy = model.encoder({"states": states}, mode="policy")[0][:, 0, 0, 0]
    count, index, row = 2000, torch.from_numpy(batch.queries), torch.arange(B)
    drawn, mean = torch.zeros(B, 6), torch.zeros(B, 6)
    for step in range(count):
        keys = noise_keys(0, step, index, 1)
        depths = draw_distinct(policy, uniform_noise(keys, 0, 1, 1, 6)[:, 0, 0, 0], G, 0.1)
        padding = queries["attention_mask"]
        rollout = Rollout([depths[..., None, None]], states, torch.zeros(B, G), padding, states, padding)
        with torch.no_grad():
            learner._remember(rollout, keys)
        drawn[row, depths[row, rollout.drawn_B]] += 1 / count
        mean.scatter_add_(1, depths, rollout.share_BG / count)
    assert (mean - policy.exp()).abs().max() < 0.02
    assert (drawn - policy.exp()).abs().max() < 0.06
