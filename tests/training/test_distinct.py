"""Groups of different depths: their weights against every order of every group, and GRPO's gradient against `all`."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from maw.attention.noise import noise_keys, uniform_noise
from maw.training.router.distinct import distinct_weights, draw_distinct, proposal
from maw.training.router.grpo import ADVANTAGE_EPSILON, group_advantages, grpo_loss, weighted_moments

D, G = 6, 3
SETS = torch.tensor(list(itertools.combinations(range(D), G)))
PLAIN = torch.cartesian_prod(*[torch.arange(D)] * G)
REWARD = torch.tensor([-2.0, -1.7, -2.4, -1.9, -3.0, -2.1], dtype=torch.float64)
POLICIES = {"flat": [0.0] * D, "mixed": [2.0, 1.0, 0.0, 0.5, -1.0, -2.0], "sharp": [0.0, 0.0, 9.0, 0.0, 0.0, 0.0]}
shapes = pytest.mark.parametrize("shape", POLICIES)


def policy_of(shape: str) -> Tensor:
    return torch.tensor(POLICIES[shape], dtype=torch.float64).log_softmax(-1)


def in_order(share: list[float], order: tuple[int, ...]) -> float:
    """Probability of draws without replacement in this order."""
    probability, left = 1.0, sum(share)
    for depth in order:
        probability, left = probability * share[depth] / left, left - share[depth]
    return probability


def of_set(share: list[float], depths: list[int]) -> float:
    return sum(in_order(share, order) for order in itertools.permutations(depths))


def probabilities(shape: str, exploration: float) -> Tensor:
    share = proposal(policy_of(shape)[None], exploration)[0].tolist()
    return torch.tensor([of_set(share, each) for each in SETS.tolist()], dtype=torch.float64)


@shapes
@pytest.mark.parametrize("exploration", [0.0, 0.1, 1.0])
def test_weights_are_those_of_every_order(shape, exploration):
    policy = policy_of(shape)
    share = proposal(policy[None], exploration)[0].tolist()
    got = distinct_weights(policy.expand(len(SETS), -1), SETS, exploration)
    for depths, weights in zip(SETS.tolist(), got.tolist(), strict=True):
        for depth, weight in zip(depths, weights, strict=True):
            others = [0.0 if d == depth else each for d, each in enumerate(share)]
            ratio = of_set(others, [d for d in depths if d != depth]) / of_set(share, depths)
            assert weight == pytest.approx(float(policy[depth].exp()) * ratio, rel=1e-6)
    chance = probabilities(shape, exploration)
    assert float(chance.sum()) == pytest.approx(1) and float(chance @ got.sum(1)) == pytest.approx(1)


@pytest.mark.parametrize(("size", "depths"), [(2, 3), (2, 1024), (8, 32), (31, 32), (200, 256), (511, 1024)])
@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("kind", [torch.float64, torch.float32])
def test_weights_of_draws_from_the_policy_itself_sum_to_one(size, depths, scale, kind):
    """sum_s q(s) P(S | s first) = P(S), whatever the sizes."""
    generator = torch.Generator().manual_seed(0)
    policy = (scale * torch.randn(4, depths, generator=generator)).log_softmax(-1).to(kind)
    group = draw_distinct(policy, torch.rand(4, depths, generator=generator).to(kind), size, 0.0)
    total = distinct_weights(policy, group, 0.0).sum(1)
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-6 if kind == torch.float64 else 2e-4, rtol=0)


def test_a_group_of_all_depths_has_the_policy_as_weights():
    policy = torch.stack([policy_of(shape) for shape in POLICIES]).float()
    depths = torch.arange(D).flip(0).expand(len(policy), -1)
    torch.testing.assert_close(distinct_weights(policy, depths, 0.3), policy.exp().flip(1))


def test_weights_of_a_policy_too_sharp_for_float32_are_finite():
    policy = torch.tensor([[300.0, 0.0, -300.0, -300.0]] * 2).log_softmax(-1)
    for exploration in (0.0, 0.1):
        weights = distinct_weights(policy, torch.tensor([[0, 1], [2, 3]]), exploration)
        assert torch.isfinite(weights).all() and float(weights[0, 0]) == pytest.approx(1, abs=0.2)
        advantage, _ = group_advantages(torch.tensor([[-1.0, -2.0]] * 2), weights)
        assert torch.isfinite(advantage).all()


def gradients(new: Tensor, old: Tensor, group: Tensor, advantage: Tensor, share: Tensor | None, clip: float = 0.2):
    """The gradient of each group's objective by the policy's logits, (groups, D), from the loss of training."""
    logits = new.expand(len(group), -1).clone().requires_grad_()
    old_log_prob = old.expand(len(group), -1).gather(1, group)
    result = grpo_loss(
        logits.log_softmax(-1)[:, None, None, None],
        old_log_prob[..., None, None],
        group[..., None, None],
        advantage,
        torch.zeros(D, dtype=new.dtype),
        clip=clip,
        beta=0.0,
        share_BG=share,
    )
    (found,) = torch.autograd.grad(-len(group) * result.loss, logits)
    return found


def reference(new: Tensor, old: Tensor, clip: float = 0.2) -> Tensor:
    """The gradient of a group of every depth, (D,)."""
    advantage, _ = group_advantages(REWARD[None], old.exp()[None])
    return gradients(new, old, torch.arange(D)[None], advantage, old.exp()[None], clip)[0]


def exact_advantages(old: Tensor, group: Tensor) -> Tensor:
    return ((REWARD - old.exp() @ REWARD) / (REWARD.std() + ADVANTAGE_EPSILON))[group]


@shapes
@pytest.mark.parametrize("exploration", [0.0, 0.1])
@pytest.mark.parametrize("moved", [0.0, 0.3])
def test_the_mean_over_all_groups_is_the_gradient_of_all_depths(shape, exploration, moved):
    """With exact mean and deviation; also where the policy has moved since and ratios are clipped."""
    old = policy_of(shape)
    new = (old + moved * torch.tensor([1.0, -1.0, 1.0, 0.0, -1.0, 1.0], dtype=torch.float64)).log_softmax(-1)
    chance = probabilities(shape, exploration)
    share = distinct_weights(old.expand(len(SETS), -1), SETS, exploration)
    advantage = exact_advantages(old, SETS)
    expected = reference(new, old)
    torch.testing.assert_close(chance @ gradients(new, old, SETS, advantage, share), expected, atol=1e-6, rtol=0)
    if moved:
        unclipped = reference(new, old, clip=0.9)
        assert shape == "sharp" or (unclipped - expected).abs().max() > 1e-3, "the clip must matter"
    wrong = {
        "no correction for the draw": old.exp()[SETS],
        "equal weights": torch.full_like(share, 1 / G),
        "weights of a plain draw": old.exp()[SETS] / proposal(old[None], exploration)[0][SETS] / G,
        "the proposal for the policy": proposal(old[None], exploration)[0][SETS] * share / old.exp()[SETS],
        "normalised": share / share.sum(1, keepdim=True),
    }
    if exploration == 0:  # the policy is the proposal, and weights sum to one
        del wrong["the proposal for the policy"], wrong["normalised"]
    if shape == "flat":
        wrong = {"no correction for the draw": wrong["no correction for the draw"]}
    for name, weights in wrong.items():
        error = (chance @ gradients(new, old, SETS, advantage, weights) - expected).abs().max()
        assert error > 1e-4 * expected.abs().max(), name


def moments(old: Tensor, group: Tensor, chance: Tensor, share: Tensor | None) -> tuple[float, float]:
    """Of gradients with each group's own mean and deviation: |bias| and root mean squared error, relative to |all|."""
    advantage, _ = group_advantages(REWARD[group], share)
    found, expected = gradients(old, old, group, advantage, share), reference(old, old)
    bias = (chance @ found - expected).norm() / expected.norm()
    return float(bias), float((chance @ ((found - expected) ** 2).sum(1)).sqrt() / expected.norm())


@pytest.mark.parametrize(("shape", "bias", "error"), [("flat", 0.34, 1.1), ("mixed", 0.76, 2.0), ("sharp", 0.51, 1.7)])
def test_bias_and_error_with_a_groups_own_mean_and_deviation(shape, bias, error):
    """The bias is bounded, and the error smaller than that of plain samples: 1.2, 2.7 and 50."""
    old, chance = policy_of(shape), probabilities(shape, 0.1)
    share = distinct_weights(old.expand(len(SETS), -1), SETS, 0.1)
    got = moments(old, SETS, chance, share)
    assert got[0] < bias and got[1] < error
    plain = moments(old, PLAIN, old.exp()[PLAIN].prod(1), None)
    assert got[1] < {"flat": 0.9, "mixed": 0.8, "sharp": 0.04}[shape] * plain[1]
    assert got[0] < plain[0] or shape == "sharp"

    def rms(value: Tensor) -> float:
        return float((chance @ value.flatten(1).square().sum(1)).sqrt())

    mean, _ = weighted_moments(REWARD[SETS], share)
    scale, own = REWARD.std() + ADVANTAGE_EPSILON, REWARD[SETS].std(1, keepdim=True) + ADVANTAGE_EPSILON
    with_own_mean = gradients(old, old, SETS, (REWARD[SETS] - mean) / scale, share)
    weight = gradients(old, old, SETS, torch.ones_like(share), share)
    of_mean = rms(mean - old.exp() @ REWARD) * rms(weight) / float(scale)
    of_deviation = rms(scale / own - 1) * rms(with_own_mean)
    assert got[0] * float(reference(old, old).norm()) < of_mean + of_deviation


@shapes
def test_the_bias_of_the_mean_is_minus_its_covariance_with_the_weights_gradient(shape):
    old, chance = policy_of(shape), probabilities(shape, 0.1)
    share = distinct_weights(old.expand(len(SETS), -1), SETS, 0.1)
    mean, _ = weighted_moments(REWARD[SETS], share)
    scale = REWARD.std() + ADVANTAGE_EPSILON
    found = chance @ gradients(old, old, SETS, (REWARD[SETS] - mean) / scale, share)
    weight = gradients(old, old, SETS, torch.ones_like(share), share)
    assert (chance @ weight).abs().max() < 1e-9
    covariance = chance @ ((mean - old.exp() @ REWARD) * weight) / scale
    torch.testing.assert_close(found - reference(old, old), -covariance, atol=1e-7, rtol=0)
    if shape == "flat":
        torch.testing.assert_close(found, (1 - 1 / G) * D / (D - 1) * reference(old, old), atol=1e-7, rtol=0)


def test_the_mean_and_deviation_of_a_group_by_its_weights():
    reward = torch.tensor([[1.0, 2.0, 4.0]])
    mean, std = weighted_moments(reward, torch.tensor([[0.2, 0.1, 0.1]]))  # that do not sum to one: .5, .25, .25
    assert float(mean) == pytest.approx(2.0) and float(std) == pytest.approx(1.5**0.5)
    advantage, _ = group_advantages(reward, torch.tensor([[0.2, 0.1, 0.1]]))
    assert advantage[0].tolist() == pytest.approx([(each - 2) / (float(reward.std()) + 1e-4) for each in (1, 2, 4)])
    mean, std = weighted_moments(reward, None)
    assert float(mean) == pytest.approx(7 / 3) and float(std) == pytest.approx(float(reward.std(correction=0)))


def test_kl_counts_in_full_whatever_the_weights_sum_to():
    log_policy = torch.tensor([0.7, 0.3]).log().view(1, 1, 1, 1, 2)
    share = torch.tensor([[0.3, 0.3]])
    arguments = (
        torch.zeros(1, 2, 1, 1),
        torch.tensor([0, 1]).view(1, 2, 1, 1),
        torch.zeros(1, 2),
        torch.tensor(0.5).log(),
    )
    result = grpo_loss(log_policy, *arguments, clip=0.2, beta=2.0, share_BG=share)
    assert float(result.loss) == pytest.approx(2 * float(result.kl))


@shapes
def test_draws_are_as_frequent_as_every_order_says(shape):
    count = 40_000
    noise = uniform_noise(noise_keys(0, 0, torch.arange(count), 1), 0, 1, 1, D)[:, 0, 0, 0]
    group = draw_distinct(policy_of(shape).float().expand(count, -1), noise, G, 0.1)
    assert all(len(set(each)) == G for each in group[:50].tolist())
    share = proposal(policy_of(shape)[None], 0.1)[0].tolist()
    code = (group * torch.tensor([D * D, D, 1])).sum(1).bincount(minlength=D**G) / count
    for order in itertools.permutations(range(D), G):
        got, expected = float(code[order[0] * D * D + order[1] * D + order[2]]), in_order(share, order)
        assert got == pytest.approx(expected, abs=4 * (expected / count) ** 0.5 + 1e-4)
