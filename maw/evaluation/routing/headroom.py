"""Is there anything for a router to gain? What the matrices of `maw.evaluation.routing.depth_scores` say, in numbers.

    gain = learnable_headroom(matrix.halves_2QD, matrix.noise_2QD)       # of choosing depths that suit the text
    gain.mean, gain.standard_error
    oracle_null([run_1, run_2, ...], matrix.ndcg_QD)                      # is the oracle better than chance?

The oracle, the mean over texts of the best depth's nDCG@10, is high even where depths differ by noise: the best of
many draws is good. Three measures tell noise from suitability.

`learnable_headroom`: each text's depth is chosen on one half of the corpus and scored on the other, against the best
fixed depth chosen on the same half. That alone removes the luck of which passages compete. It does not remove the
luck of the positive, which stands in both halves: noise that happens to move a query towards its positive does so in
both, and no router could foresee it. So the same is measured with every text moved between depths as another text
moves, and subtracted. If the depths are noise the two have the same distribution and the difference is zero in
expectation; it is larger where a depth does something for a text that it would not do for others. What a depth does
for all texts alike (a common shift) counts as nothing, even if it helps some of them. Not all that is left can be
learnt: a kernel at random moves a text along the text's own features, which matters more to its ranking than another
text's movement does. Untrained kernels show how much that is; a value like theirs is no reason to train a router.

`router_headroom`: a router is trained on the matrix itself, a ridge regression from the router's state to each
depth's value, and picks for texts that it has not seen, against the best fixed depth of the texts it has seen. Noise
gives zero or less.

`oracle_null`: the oracle over R models trained alike without routing from different seeds, against that over R depths.

Letters: Q texts, D depths, F features of a router's state, R models, P permutations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

FOLDS = 5
PERMUTATIONS = 100
_RIDGES = 10.0 ** np.arange(-3, 4)  # of the largest squared singular value


@dataclass(frozen=True)
class Gain:
    """A mean over texts with its standard error; what it is a mean of, (Q,), is kept for tests."""

    per_text: np.ndarray

    @property
    def mean(self) -> float:
        """Mean over texts."""
        return float(self.per_text.mean())

    @property
    def standard_error(self) -> float | None:
        """Of the mean; None for a single text."""
        count = len(self.per_text)
        return float(self.per_text.std(ddof=1)) / math.sqrt(count) if count > 1 else None


def best_fixed_depth(value_QD: ArrayLike) -> int:
    """The depth of the highest mean, the first of equal ones."""
    return int(np.asarray(value_QD).mean(0).argmax())


def oracle(value_QD: ArrayLike) -> float:
    """Mean over texts of the best depth's value."""
    return float(np.asarray(value_QD).max(1).mean())


def shuffled_means(
    value_QD: ArrayLike, picks_Q: ArrayLike, *, permutations: int = PERMUTATIONS, seed: int = 0
) -> np.ndarray:
    """The mean value where each text takes the pick of another, for many random permutations, (P,)."""
    value_QD, picks_Q = np.asarray(value_QD), np.asarray(picks_Q)
    random, rows = np.random.default_rng([seed, 2]), np.arange(len(picks_Q))
    return np.array([value_QD[rows, random.permutation(picks_Q)].mean() for _ in range(permutations)])


def permutation_p_value(observed: float, shuffled_P: ArrayLike) -> float:
    """One-sided: how often shuffled picks do at least as well; (1 + count) / (1 + P), which is never zero."""
    shuffled_P = np.asarray(shuffled_P)
    reached = shuffled_P >= observed - 1e-12 * max(1.0, abs(observed))
    return (1 + int(reached.sum())) / (1 + len(shuffled_P))


def split_gain(halves_2QD: ArrayLike) -> np.ndarray:
    """What each text gains over the best fixed depth, both chosen on one half and scored on the other, (Q,).

    The mean of both directions. Among depths that are equally good for a text on the half that chooses, the one that
    is best over all texts there is taken.
    """
    halves = np.round(np.asarray(halves_2QD, dtype=np.float64), 12)  # what differs by rounding is equally good
    rows = np.arange(halves.shape[1])
    gains = []
    for choosing, scoring in (halves, halves[::-1]):
        by_mean = np.argsort(-choosing.mean(0), kind="stable")
        own = by_mean[choosing[:, by_mean].argmax(1)]
        gains.append(scoring[rows, own] - scoring[:, by_mean[0]])
    return np.mean(gains, axis=0)


def learnable_headroom(halves_2QD: ArrayLike, noise_2QD: ArrayLike) -> Gain:
    """`split_gain` beyond that of noise; see the top of this file.

    Args:
        halves_2QD: value of each text at each depth on two halves of the corpus.
        noise_2QD: the same with texts moved between depths as other texts move.
    """
    return Gain(split_gain(halves_2QD) - split_gain(noise_2QD))


def router_headroom(
    state_QF: ArrayLike, target_QD: ArrayLike, value_QD: ArrayLike, *, folds: int = FOLDS, seed: int = 0
) -> Gain | None:
    """What a cross-validated router gains over the best fixed depth.

    Args:
        state_QF: what routers see of the texts.
        target_QD: what the ridge regression learns to foretell.
        value_QD: what its picks, and the fixed depth, are scored by.

    Returns:
        The gain; None with fewer than two texts in a fold.
    """
    state, target, value = (np.asarray(each, dtype=np.float64) for each in (state_QF, target_QD, value_QD))
    count = len(state)
    if count < 2 * folds:
        return None
    state = state / np.sqrt((state**2).mean(1, keepdims=True)).clip(min=1e-12)
    target = target - target.mean(1, keepdims=True)  # how hard a text is says nothing about its depth
    gain = np.empty(count)
    for held_out in np.array_split(np.random.default_rng([seed, 3]).permutation(count), folds):
        seen = np.setdiff1d(np.arange(count), held_out)
        picks = _ridge(state[seen], target[seen], state[held_out]).argmax(1)
        gain[held_out] = value[held_out, picks] - value[held_out, best_fixed_depth(value[seen])]
    return Gain(gain)


def _ridge(state_QF: np.ndarray, target_QD: np.ndarray, new_PF: np.ndarray) -> np.ndarray:
    """Predictions (P, D) of ridge regression, its strength chosen by generalised cross-validation.

    Among the strengths is infinity, the mean of the targets: nothing is learnt where there is nothing to learn.
    Source: Golub, Heath and Wahba, "Generalized Cross-Validation as a Method for Choosing a Good Ridge Parameter",
    Technometrics 1979.
    """
    count = len(state_QF)
    center_F, mean_D = state_QF.mean(0), target_QD.mean(0)
    centred_QD = target_QD - mean_D
    u, s, vt = np.linalg.svd(state_QF - center_F, full_matrices=False)
    projected = u.T @ centred_QD
    best, weights = (centred_QD**2).sum() / (1 - 1 / count) ** 2, np.zeros((len(s), target_QD.shape[1]))
    for ridge in _RIDGES * max(s[0], 1e-12) ** 2:
        kept = s**2 / (s**2 + ridge)
        residual = ((centred_QD - u @ (kept[:, None] * projected)) ** 2).sum()
        criterion = residual / (1 - min((kept.sum() + 1) / count, 1 - 1e-9)) ** 2
        if criterion < best:
            best, weights = criterion, (s / (s**2 + ridge))[:, None] * projected
    return mean_D + (new_PF - center_F) @ vt.T @ weights


def oracle_null(
    runs: Sequence[ArrayLike], value_QD: ArrayLike, *, draws: int = 1000, seed: int = 0
) -> dict[str, float | int]:
    """The oracle over models that differ by their seed alone, against that over as many depths of one MAW model.

    Args:
        runs: R models trained alike without routing, each its value for every text, (Q,), in the same order.
        value_QD: the MAW model's value for the same texts at each depth.
        draws: random sets of R depths over which the depths' oracle is averaged.

    Returns:
        "models", R; "oracle_null" and "models_mean", over the models; "oracle_depths" and "depths_mean", over R
        depths of D, drawn without replacement, mean of all draws; "excess", by how much the depths' oracle exceeds
        their mean beyond what the models' does. An excess of zero or less: depths differ no more usefully than seeds.

    Raises:
        ValueError: fewer than two models, more models than depths, or arrays of different texts.
    """
    runs_RQ, value_QD = np.asarray(runs, dtype=np.float64), np.asarray(value_QD, dtype=np.float64)
    models = len(runs_RQ)
    if runs_RQ.ndim != 2 or value_QD.ndim != 2 or runs_RQ.shape[1] != len(value_QD):
        raise ValueError(f"runs {runs_RQ.shape} and depths {value_QD.shape} must be (R, Q) and (Q, D), the same texts")
    if not 2 <= models <= value_QD.shape[1]:
        raise ValueError(f"{models} models must be at least 2, and no more than the {value_QD.shape[1]} depths")
    random, depths = np.random.default_rng([seed, 4]), value_QD.shape[1]
    sets = [random.choice(depths, models, replace=False) for _ in range(draws)]
    found = {
        "models": models,
        "oracle_null": float(runs_RQ.max(0).mean()),
        "models_mean": float(runs_RQ.mean()),
        "oracle_depths": float(np.mean([value_QD[:, each].max(1).mean() for each in sets])),
        "depths_mean": float(value_QD.mean()),
    }
    own, null = found["oracle_depths"] - found["depths_mean"], found["oracle_null"] - found["models_mean"]
    return found | {"excess": own - null}
