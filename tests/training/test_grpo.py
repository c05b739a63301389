"""GRPO's parts against values worked out by hand, and the whole on a bandit with a known answer."""

from __future__ import annotations

import math

import pytest
import torch

from maw.attention.noise import noise_keys
from maw.attention.routers import GRPORouter, Routing
from maw.evaluation.reward import task_reward
from maw.training.router.grpo import collapse_penalty, group_advantages, grpo_loss


def test_advantages_by_hand():
    # mean 2, deviations -1, 0, 1; unbiased variance (1 + 0 + 1) / 2 = 1
    advantage, varied = group_advantages(torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]))
    expected = torch.tensor([[-1 / 1.0001, 0.0, 1 / 1.0001], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(advantage, expected, atol=1e-7, rtol=0)
    assert varied.tolist() == [True, False]


def test_a_group_that_differs_by_rounding_has_no_advantage():
    advantage, varied = group_advantages(torch.tensor([[0.3, 0.3 + 1e-7, 0.3]]))
    assert not advantage.any() and not varied.any()


def test_a_group_of_one_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        group_advantages(torch.ones(3, 1))


def decision(probabilities, old, action, advantage, *, clip=0.2, beta=0.0, reference=None):
    """One text, one sample, one decision."""
    log_policy = torch.tensor(probabilities).log().view(1, 1, 1, 1, -1)
    reference = torch.full((len(probabilities),), 1 / len(probabilities)) if reference is None else reference
    return grpo_loss(
        log_policy,
        torch.tensor(old).log().view(1, 1, 1, 1),
        torch.tensor(action).view(1, 1, 1, 1),
        torch.tensor([[advantage]]),
        torch.as_tensor(reference).log(),
        clip=clip,
        beta=beta,
    )


@pytest.mark.parametrize(
    ("new", "old", "advantage", "gain", "clipped"),
    [
        (0.5, 0.5, 2.0, 2.0, 0),  # ratio 1
        (0.55, 0.5, 2.0, 2.2, 0),  # ratio 1.1, inside
        (0.75, 0.5, 2.0, 2.4, 1),  # ratio 1.5, cut to 1.2
        (0.25, 0.5, 2.0, 1.0, 0),  # ratio 0.5 with a gain: the minimum keeps it
        (0.25, 0.5, -2.0, -1.6, 1),  # ratio 0.5, cut to 0.8
        (0.75, 0.5, -2.0, -3.0, 0),  # ratio 1.5 with a loss: the minimum keeps it
        (0.75, 0.5, 0.0, 0.0, 0),  # no advantage
    ],
)
def test_ratio_and_clipping_by_hand(new, old, advantage, gain, clipped):
    result = decision([new, 1 - new], old, 0, advantage)
    assert float(result.loss) == pytest.approx(-gain, abs=1e-6)
    assert float(result.clip_fraction) == clipped


def test_exact_kl_by_hand():
    # KL([.75, .25] || uniform) = .75 log 1.5 + .25 log .5
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    result = decision([0.75, 0.25], 0.75, 0, 0.0, beta=0.1)
    assert float(result.kl) == pytest.approx(expected, abs=1e-6)
    assert float(result.loss) == pytest.approx(0.1 * expected, abs=1e-6)
    # KL([.75, .25] || [.9, .1])
    expected = 0.75 * math.log(0.75 / 0.9) + 0.25 * math.log(0.25 / 0.1)
    result = decision([0.75, 0.25], 0.75, 0, 0.0, beta=0.1, reference=[0.9, 0.1])
    assert float(result.kl) == pytest.approx(expected, abs=1e-6)


def test_decisions_share_the_advantage_and_padding_counts_nothing():
    """One text, two samples, one head, three tokens of which the last is padding."""
    log_policy = torch.tensor([[0.5, 0.5], [0.8, 0.2], [0.01, 0.99]]).log().view(1, 1, 1, 3, 2)
    action = torch.tensor([[0, 0, 0], [1, 1, 1]]).view(1, 2, 1, 3)
    old = torch.full((1, 2, 1, 3), 0.5).log()
    weight = torch.tensor([1.0, 1.0, 0.0]).view(1, 1, 1, 3)
    result = grpo_loss(
        log_policy,
        old,
        action,
        torch.tensor([[1.0, -1.0]]),
        torch.tensor(0.5).log(),
        clip=0.2,
        beta=0.0,
        weight=weight,
    )
    # sample 0 (A = 1): ratios 1 and 1.6 -> 1 and 1.2; sample 1 (A = -1): ratios 1 and 0.4 -> -1 and -0.8
    assert float(result.loss) == pytest.approx(-((1 + 1.2) / 2 + (-1 - 0.8) / 2) / 2, abs=1e-6)
    assert float(result.clip_fraction) == pytest.approx(0.5)


def test_rewards_by_hand():
    positive = torch.tensor([[2.0, 0.0]])
    others = torch.tensor([[[1.0, -torch.inf, 0.5]]])
    log_prob = task_reward("log_prob", positive, others)
    for got, score in zip(log_prob[0], (2.0, 0.0), strict=True):
        assert float(got) == pytest.approx(score - math.log(math.exp(score) + math.exp(1) + math.exp(0.5)), abs=1e-6)
    assert task_reward("reciprocal_rank", positive, others)[0].tolist() == pytest.approx([1, 1 / 3])
    assert task_reward("ndcg", positive, others)[0].tolist() == pytest.approx([1, 1 / math.log2(4)])
    tie = task_reward("reciprocal_rank", torch.tensor([[1.0]]), torch.tensor([[[1.0, 2.0, 1.0]]]))
    assert float(tie) == 0.5, "a tie does not cost the positive its rank"
    with pytest.raises(ValueError, match="'luck'"):
        task_reward("luck", positive, others)


def run_bandit(seed: int, sign: float = 1.0, kl: float = 0.0, steps: int = 150) -> float:
    """Share of unseen texts for which a trained router picks the depth that a feature of the text calls for.

    The sign of a text's first feature says which of two depths of eight is rewarded.
    """
    generator = torch.Generator().manual_seed(seed)

    def texts(count):
        states = torch.randn(count, 1, 1, 8, generator=generator)
        return states, torch.where(states[:, 0, 0, 0] > 0, 3, 6)

    router = GRPORouter(1, 8, 8)
    optimizer = torch.optim.AdamW(router.parameters(), lr=3e-2, weight_decay=0.0)
    uniform = -torch.tensor(8.0).log()
    for step in range(steps):
        states, best = texts(32)
        routing = Routing(torch.ones(32, 1), keys_BG=noise_keys(seed, step, torch.arange(32), 8), samples=8)
        action = router(states, routing)
        advantage, _ = group_advantages((action[:, :, 0, 0] == best[:, None]).float())
        state = routing.states[0]
        old = None
        for _ in range(2):
            log_policy = router.logits(state).log_softmax(-1)
            if old is None:
                old = log_policy.detach().expand(32, 8, 1, 1, 8).gather(-1, action[..., None]).squeeze(-1)
            loss = grpo_loss(log_policy, old, action, sign * advantage, uniform, clip=0.2, beta=kl).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    states, best = texts(1000)
    return float((router(states, Routing(torch.ones(1000, 1)))[:, 0, 0, 0] == best).float().mean())


@pytest.mark.parametrize("seed", range(5))
def test_the_router_finds_the_best_depth(seed):
    assert run_bandit(seed) >= 0.95


def test_a_sign_error_is_caught():
    assert run_bandit(0, sign=-1.0) < 0.5


def test_strong_kl_to_uniform_keeps_the_policy_from_deciding():
    assert run_bandit(0, kl=100.0, steps=50) < 0.5


def test_advantages_over_every_depth_by_hand():
    reward, share = (
        torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]),
        torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]),
    )
    advantage, varied = group_advantages(reward, share)  # the policy expects 1.75; std 1
    expected = torch.tensor([[-0.75 / 1.0001, 0.25 / 1.0001, 1.25 / 1.0001], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(advantage, expected, atol=1e-6, rtol=0)
    assert varied.tolist() == [True, False]
    assert (share * advantage).sum(1).abs().max() < 1e-6  # a baseline: the policy itself has no advantage


def test_the_exact_objective_has_the_gradient_of_the_expected_reward():
    """With one pass, no clipping and advantages r: the gradient is that of sum_d pi(d) r_d."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, generator=generator, requires_grad=True)
    reward = torch.randn(3, 5, generator=generator)
    log_policy = logits.log_softmax(-1)
    action = torch.arange(5).expand(3, -1)[:, :, None, None]
    loss = grpo_loss(
        log_policy[:, None, None, None],
        log_policy.detach()[:, :, None, None],
        action,
        reward,
        torch.zeros(5),
        clip=0.2,
        beta=0.0,
        share_BG=log_policy.detach().exp(),
    ).loss
    (got,) = torch.autograd.grad(loss, logits)
    expected_reward = (logits.softmax(-1) * reward).sum(-1).mean()
    (expected,) = torch.autograd.grad(-expected_reward, logits)
    torch.testing.assert_close(got, expected, atol=1e-7, rtol=1e-5)
    wrong = grpo_loss(  # samples that all count alike are another objective
        logits.log_softmax(-1)[:, None, None, None],
        log_policy.detach()[:, :, None, None],
        action,
        reward,
        torch.zeros(5),
        clip=0.2,
        beta=0.0,
    ).loss
    assert (torch.autograd.grad(wrong, logits)[0] - expected).abs().max() > 0.01


def test_the_collapse_penalty_by_hand():
    sharp, even = torch.tensor([1 - 1e-6, 1e-6]), torch.tensor([0.5, 0.5])

    def penalty(policies, **weights):
        log_policy = torch.stack(policies).log()[:, None, None, None]
        return float(collapse_penalty(log_policy, torch.ones(len(policies), 1, 1, 1), **weights))

    log2 = math.log(2)
    assert penalty([sharp, sharp], balance=2.0, entropy_floor=0.0) == pytest.approx(2 * log2, abs=1e-4)
    # two sharp policies on different depths are in balance, and still below the floor
    assert penalty([sharp, sharp.flip(0)], balance=2.0, entropy_floor=0.0) == pytest.approx(0, abs=1e-4)
    assert penalty([sharp, sharp.flip(0)], balance=2.0, entropy_floor=0.3) == pytest.approx(0.3, abs=1e-4)
    assert penalty([even, even], balance=2.0, entropy_floor=0.3) == pytest.approx(0, abs=1e-6)
    assert penalty([even, even], balance=0.0, entropy_floor=1.0) == pytest.approx(1 - log2, abs=1e-6)


def test_the_collapse_penalty_leaves_padding_out():
    policy = torch.tensor([[0.5, 0.5], [1 - 1e-6, 1e-6]]).log()[None, None, None]  # one text of a token and a padding
    weight = torch.tensor([1.0, 0.0])[None, None, None]
    assert float(collapse_penalty(policy, weight, balance=1.0, entropy_floor=0.5)) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("balance", [0.0, 1.0])
def test_a_policy_too_sharp_for_float32_has_finite_gradients(balance):
    logits = torch.tensor([[300.0, 0.0, -300.0]] * 2).requires_grad_()
    log_policy = logits.log_softmax(-1)[:, None, None, None]
    collapse_penalty(log_policy, torch.ones(2, 1, 1, 1), balance=balance, entropy_floor=0.0).backward()
    assert torch.isfinite(logits.grad).all()


def test_a_probability_that_was_next_to_nothing_is_no_nan():
    """A share of zero times a ratio without bound, where every depth is in the group."""
    logits = torch.tensor([0.0, 110.0], requires_grad=True)
    log_policy = logits.log_softmax(-1).view(1, 1, 1, 1, 2)
    result = grpo_loss(
        log_policy,
        torch.tensor([-1e-9, -150.0]).view(1, 2, 1, 1),
        torch.tensor([0, 1]).view(1, 2, 1, 1),
        torch.tensor([[1.0, -1.0]]),
        torch.full((2,), 0.5).log(),
        clip=0.2,
        beta=0.01,
        share_BG=torch.tensor([[1.0, 0.0]]),
    )
    result.loss.backward()
    assert torch.isfinite(result.loss) and torch.isfinite(logits.grad).all()
