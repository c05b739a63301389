"""What a router could gain: against values worked out by hand, on noise, and on a signal put there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maw.data.from_dicts import as_retrieval_data
from maw.evaluation.routing.depth_scores import DepthScorer
from maw.evaluation.routing.headroom import (
    Gain,
    best_fixed_depth,
    learnable_headroom,
    oracle,
    oracle_null,
    permutation_p_value,
    router_headroom,
    shuffled_means,
    split_gain,
)

MATRIX = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.2, 0.0, 0.5]])


def test_oracle_and_best_fixed_depth_by_hand():
    assert oracle(MATRIX) == pytest.approx((1 + 1 + 0.5) / 3)
    assert best_fixed_depth(MATRIX) == 2  # means 0.4, 0.333, 0.5
    assert best_fixed_depth([[1.0, 1.0], [0.0, 0.0]]) == 0


def test_shuffled_picks_keep_their_histogram():
    # One text takes depth 1, two take depth 0: the three ways to hand them out have these means.
    possible = {(0.0 + 0.0 + 0.2) / 3, (1.0 + 1.0 + 0.2) / 3, (1.0 + 0.0 + 0.0) / 3}
    means = shuffled_means(MATRIX, [0, 1, 0], permutations=400, seed=1)
    assert {round(float(each), 9) for each in means} == {round(each, 9) for each in possible}
    assert means.mean() == pytest.approx(sum(possible) / 3, abs=0.03)
    np.testing.assert_array_equal(means, shuffled_means(MATRIX, [0, 1, 0], permutations=400, seed=1))


def test_picks_of_one_depth_cannot_be_shuffled():
    means = shuffled_means(MATRIX, [2, 2, 2], permutations=10)
    assert means == pytest.approx(0.5)
    assert permutation_p_value(0.5, means) == 1.0


def test_permutation_p_value_by_hand():
    assert permutation_p_value(0.5, [0.1, 0.2, 0.5, 0.7]) == pytest.approx(3 / 5)  # what is equal counts
    assert permutation_p_value(0.9, [0.1, 0.2, 0.5, 0.7]) == pytest.approx(1 / 5)


def test_permutation_p_value_is_even_under_the_null():
    random = np.random.default_rng(0)
    found = []
    for _ in range(200):
        value, picks = random.random((30, 4)), random.integers(0, 4, 30)
        observed = value[np.arange(30), picks].mean()
        found.append(permutation_p_value(observed, shuffled_means(value, picks, permutations=99)))
    assert np.mean(np.array(found) <= 0.05) < 0.09 and abs(np.mean(found) - 0.5) < 0.06


def test_split_gain_by_hand():
    # First half: the best fixed depth is 0 (means 0.7, 0.5); texts choose 0 and 1.
    first = [[1.0, 0.2], [0.4, 0.8]]
    # Second half: the best fixed depth is 1 (means 0.35, 0.45); texts choose 0 and 1.
    second = [[0.6, 0.3], [0.1, 0.6]]
    forth = np.array([0.6 - 0.6, 0.6 - 0.1])  # chosen on the first, scored on the second
    back = np.array([1.0 - 0.2, 0.8 - 0.8])
    np.testing.assert_allclose(split_gain([first, second]), (forth + back) / 2)


def test_a_tie_goes_to_the_depth_that_is_best_over_all():
    # Text 0 ties on the half that chooses; taking the first depth in place of the best one would lose 1 there.
    half = [[0.5, 0.5], [0.1, 0.9], [0.1, 0.9]]
    other = [[0.0, 1.0], [0.1, 0.9], [0.1, 0.9]]
    np.testing.assert_allclose(split_gain([half, other]), 0)
    np.testing.assert_allclose(split_gain([np.array(half) + [[1e-15, 0]], other]), 0)


def test_choosing_on_the_other_half_is_no_oracle():
    """Depths equal but for independent noise on each half gain nothing; chosen and scored on one half they would."""
    halves = np.random.default_rng(0).random((2, 4000, 8))
    gain = Gain(split_gain(halves))
    assert abs(gain.mean) < 3 * gain.standard_error < 0.03
    assert split_gain([halves[0], halves[0]]).mean() > 0.3


def test_the_learnable_headroom_is_what_noise_does_not_gain():
    halves, noise = np.array([MATRIX, MATRIX]), np.array([MATRIX[::-1], MATRIX[::-1]])
    gain = learnable_headroom(halves, noise)
    np.testing.assert_allclose(gain.per_text, split_gain(halves) - split_gain(noise))
    assert gain.mean == pytest.approx(0.0)
    assert gain.standard_error == pytest.approx(gain.per_text.std(ddof=1) / np.sqrt(3))
    assert Gain(np.array([1.0])).standard_error is None


# ------------------------------------------------------------------------------------- simulated depths of embeddings


QUERIES, PASSAGES, SIZE, DEPTHS = 150, 700, 24, 6


def simulated(kind: str, seed: int):
    """(matrix, states): texts whose depths are noise, or suit a class of texts each.

    A query is its passage plus an error. "noise": depths move it at random. "suited": the depth of the query's own
    class takes half of the error away as well. "shift": each depth moves all queries by the same vector.
    """
    random = np.random.default_rng(seed)
    documents = unit(random.normal(size=(PASSAGES, SIZE)))
    queries = documents[:QUERIES] + 1.6 * random.normal(size=(QUERIES, SIZE)) / np.sqrt(SIZE)
    size = 1 if kind == "shift" else QUERIES
    every = queries[:, None] + 0.6 * random.normal(size=(size, DEPTHS, SIZE)) / np.sqrt(SIZE)
    own = random.integers(0, DEPTHS, QUERIES)
    if kind == "suited":
        every[np.arange(QUERIES), own] -= 0.5 * (queries - documents[:QUERIES])
    state = np.concatenate((np.eye(DEPTHS)[own], random.normal(size=(QUERIES, 12))), axis=1)
    data = as_retrieval_data(
        {
            "queries": [f"query {i}" for i in range(QUERIES)],
            "docs": [f"passage {i}" for i in range(PASSAGES)],
            "qrels": {i: {i: 1} for i in range(QUERIES)},
        }
    )
    every = unit(every)
    scorer = DepthScorer(
        data,
        every[:, 0],
        documents,
        temperature=0.05,
        normalize=True,
        reward="log_prob",
        device=torch.device("cpu"),
        seed=seed,
    )
    return scorer.of_queries(np.arange(QUERIES), every), state


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def noise():
    return [simulated("noise", seed) for seed in range(8)]


@pytest.fixture(scope="module")
def suited():
    return [simulated("suited", seed) for seed in range(2)]


def pooled(gains):
    return Gain(np.concatenate([each.per_text for each in gains]))


def test_noise_has_an_oracle_but_no_learnable_headroom(noise):
    gain = pooled(learnable_headroom(matrix.halves_2QD, matrix.noise_2QD) for matrix, _ in noise)
    assert abs(gain.mean) < 2 * gain.standard_error < 0.02
    assert np.mean([oracle(m.ndcg_QD) - m.ndcg_QD.mean(0).max() for m, _ in noise]) > 0.1


def test_two_halves_alone_are_fooled_by_noise(noise):
    """The error that the subtraction is there to catch: a positive in both halves makes its luck count in both."""
    naive = pooled([Gain(split_gain(matrix.halves_2QD)) for matrix, _ in noise])
    assert naive.mean > 0.05 and naive.mean > 5 * naive.standard_error


def test_a_shift_common_to_all_texts_is_not_counted():
    gain = pooled(learnable_headroom(m.halves_2QD, m.noise_2QD) for m, _ in (simulated("shift", s) for s in range(4)))
    assert abs(gain.mean) < 3 * gain.standard_error


def test_suited_depths_have_learnable_headroom(suited):
    gain = pooled(learnable_headroom(matrix.halves_2QD, matrix.noise_2QD) for matrix, _ in suited)
    assert gain.mean > 0.08 and gain.mean > 5 * gain.standard_error


@pytest.mark.parametrize("target", ["ndcg_QD", "reward_QD"])
def test_a_cross_validated_router_gains_where_depths_suit_and_not_on_noise(noise, suited, target):
    found, nothing = (
        pooled(router_headroom(state, getattr(matrix, target), matrix.ndcg_QD) for matrix, state in cases)
        for cases in (suited, noise)
    )
    assert found.mean > 0.05 and found.mean > 4 * found.standard_error
    assert nothing.mean < 2 * nothing.standard_error


def test_a_router_that_can_see_the_class_is_nearly_the_oracle():
    random = np.random.default_rng(0)
    own = random.integers(0, 3, 200)
    state = np.concatenate((4 * np.eye(3)[own], random.normal(size=(200, 5))), axis=1)
    value = np.eye(3)[own]
    gain = router_headroom(state, value, value, seed=3)
    best = value.mean(0).max()
    assert gain.mean == pytest.approx(1 - best, abs=0.05)
    assert router_headroom(state, value, value, seed=3).mean == gain.mean
    blind = router_headroom(state[random.permutation(200)], value, value)
    assert blind.mean < 0.05


def test_a_router_is_not_judged_on_texts_that_it_was_trained_on():
    """With more features than texts the regression fits its own texts; out of fold that is worth nothing."""
    random = np.random.default_rng(1)
    gain = router_headroom(random.normal(size=(100, 300)), random.random((100, 5)), random.random((100, 5)))
    assert abs(gain.mean) < 3 * gain.standard_error


def test_too_few_texts_for_folds():
    assert router_headroom(np.ones((9, 2)), MATRIX[[0] * 9], MATRIX[[0] * 9]) is None


def test_oracle_null_by_hand():
    runs = [[1.0, 0.0], [0.0, 1.0]]
    depths = [[1.0, 0.4, 0.4], [1.0, 0.4, 0.4]]
    found = oracle_null(runs, depths, draws=3000)
    assert (found["models"], found["oracle_null"], found["models_mean"]) == (2, 1.0, 0.5)
    # Of the pairs of depths two of three hold depth 0: 2/3 * 1 + 1/3 * 0.4.
    assert found["oracle_depths"] == pytest.approx(0.8, abs=0.02)
    assert found["depths_mean"] == pytest.approx(0.6)
    assert found["excess"] == pytest.approx(0.2 - 0.5, abs=0.02)


def test_oracle_null_needs_the_same_texts_and_enough_depths():
    with pytest.raises(ValueError, match="the same texts"):
        oracle_null([[1.0, 0.0], [0.0, 1.0]], MATRIX)
    with pytest.raises(ValueError, match="must be from 2 to the 3 depths"):
        oracle_null([[1.0, 0.0, 1.0]], MATRIX)
