"""How much a router could gain, from the matrices of `maw.evaluation.routing.depth_scores`.

    gain = learnable_headroom(matrix.halves_2QD, matrix.noise_2QD)       # of choosing depths that suit the text
    gain.mean, gain.standard_error
    oracle_null([run_1, run_2, ...], matrix.ndcg_QD)                      # is the oracle better than chance?

The oracle is the mean over texts of the best depth's nDCG@10. It is high even if depths differ only by noise, because
the best of many random values is high. Three measures separate noise from suitability.

`learnable_headroom`: each text's depth is chosen on one half of the corpus and scored on the other, and compared with
the best fixed depth on the same half. This removes chance in the competing passages, but not in the positive, which is
in both halves: noise that moves a query towards its positive helps in both, and no router can predict it. So the gain
of texts that move between depths like other texts is subtracted. If the depths are noise, both gains have the same
distribution and the expected difference is zero; it is positive if a depth helps a text more than it would help
others. An effect that is the same for all texts (a common shift) counts as zero. Part of the remaining gain is not
learnable: random kernels move a text along its own features, which affects its ranking more than another text's
movement. Untrained kernels show this amount; a similar value is no reason to train a router.

`router_headroom`: the cross-validated gain of a router that is trained on the matrix itself, by ridge regression from
the router's state to each depth's value, over the best fixed depth of its training texts. Noise gives zero or less.

`oracle_null`: the oracle over R models trained in the same way without routing, from different seeds, compared with
the oracle over R depths.

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
_RIDGES = 10.0 ** np.arange(-3, 4)  # relative to the largest squared singular value


@dataclass(frozen=True)
class Gain:
    """The gain of each text, (Q,), with mean and standard error."""

    per_text: np.ndarray

    @property
    def mean(self) -> float:
        """Mean over texts."""
        return float(self.per_text.mean())

    @property
    def standard_error(self) -> float | None:
        """Standard error of the mean; None for a single text."""
        count = len(self.per_text)
        return float(self.per_text.std(ddof=1)) / math.sqrt(count) if count > 1 else None


def best_fixed_depth(value_QD: ArrayLike) -> int:
    """The depth with the highest mean; the lowest index if several are equal."""
    return int(np.asarray(value_QD).mean(0).argmax())


def oracle(value_QD: ArrayLike) -> float:
    """Mean over texts of the best depth's value."""
    return float(np.asarray(value_QD).max(1).mean())


def shuffled_means(
    value_QD: ArrayLike, depth_Q: ArrayLike, *, permutations: int = PERMUTATIONS, seed: int = 0
) -> np.ndarray:
    """The mean value after random permutations of the texts' depths, (P,)."""
    value_QD, depth_Q = np.asarray(value_QD), np.asarray(depth_Q)
    random, rows = np.random.default_rng([seed, 2]), np.arange(len(depth_Q))
    return np.array([value_QD[rows, random.permutation(depth_Q)].mean() for _ in range(permutations)])


def permutation_p_value(observed: float, shuffled_P: ArrayLike) -> float:
    """One-sided p-value (1 + count) / (1 + P), where `count` shuffled means reach the observed mean."""
    shuffled_P = np.asarray(shuffled_P)
    reached = shuffled_P >= observed - 1e-12 * max(1.0, abs(observed))
    return (1 + int(reached.sum())) / (1 + len(shuffled_P))


def split_gain(halves_2QD: ArrayLike) -> np.ndarray:
    """Gain of each text's best depth over the best fixed depth, both chosen on one half and scored on the other, (Q,).

    It is the mean of both directions. Of several best depths of a text, the one that is best over all texts on the
    choosing half counts.
    """
    halves = np.round(np.asarray(halves_2QD, dtype=np.float64), 12)  # values that differ by rounding become equal
    rows = np.arange(halves.shape[1])
    gains = []
    for choosing, scoring in (halves, halves[::-1]):
        by_mean = np.argsort(-choosing.mean(0), kind="stable")
        own = by_mean[choosing[:, by_mean].argmax(1)]
        gains.append(scoring[rows, own] - scoring[:, by_mean[0]])
    return np.mean(gains, axis=0)


def learnable_headroom(halves_2QD: ArrayLike, noise_2QD: ArrayLike) -> Gain:
    """`split_gain` minus that of noise; see the module's docstring, and `DepthMatrix` of `depth_scores`."""
    return Gain(split_gain(halves_2QD) - split_gain(noise_2QD))


def router_headroom(
    state_QF: ArrayLike, target_QD: ArrayLike, value_QD: ArrayLike, *, folds: int = FOLDS, seed: int = 0
) -> Gain | None:
    """The gain of a cross-validated router over the best fixed depth.

    Args:
        state_QF: the texts' router states.
        target_QD: values that the ridge regression learns to predict.
        value_QD: values that score the router's depths and the fixed depth.

    Returns:
        The gain; None with fewer than two texts for each fold.
    """
    state, target, value = (np.asarray(each, dtype=np.float64) for each in (state_QF, target_QD, value_QD))
    count = len(state)
    if count < 2 * folds:
        return None
    state = state / np.sqrt((state**2).mean(1, keepdims=True)).clip(min=1e-12)
    target = target - target.mean(1, keepdims=True)  # a text's difficulty does not depend on its depth
    gain = np.empty(count)
    for held_out in np.array_split(np.random.default_rng([seed, 3]).permutation(count), folds):
        seen = np.setdiff1d(np.arange(count), held_out)
        depth = _ridge(state[seen], target[seen], state[held_out]).argmax(1)
        gain[held_out] = value[held_out, depth] - value[held_out, best_fixed_depth(value[seen])]
    return Gain(gain)


def _ridge(state_QF: np.ndarray, target_QD: np.ndarray, new_PF: np.ndarray) -> np.ndarray:
    """Predictions (P, D) of ridge regression for P new texts; generalised cross-validation chooses its strength.

    The strength may be infinite; the prediction is then the mean of the targets.
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
    """Compares the oracle over models of different seeds with the oracle over as many depths of one MAW model.

    Args:
        runs: values (Q,) of R models trained in the same way without routing, for the same texts in the same order.
        value_QD: the MAW model's value for the same texts at each depth.
        draws: number of random sets of R depths.

    Returns:
        "models", R; "oracle_null" and "models_mean", over the models; "oracle_depths" and "depths_mean", over R of the
        D depths, drawn without replacement, mean over all draws; "excess", (oracle - mean) of depths minus (oracle -
        mean) of models. With an excess of zero or less, depths differ no more usefully than seeds.

    Raises:
        ValueError: fewer than two models, more models than depths, or arrays of different texts.
    """
    runs_RQ, value_QD = np.asarray(runs, dtype=np.float64), np.asarray(value_QD, dtype=np.float64)
    models = len(runs_RQ)
    if runs_RQ.ndim != 2 or value_QD.ndim != 2 or runs_RQ.shape[1] != len(value_QD):
        raise ValueError(f"runs {runs_RQ.shape} and depths {value_QD.shape} must be (R, Q) and (Q, D), the same texts")
    if not 2 <= models <= value_QD.shape[1]:
        raise ValueError(f"the number of models must be from 2 to the {value_QD.shape[1]} depths, got {models}")
    random, num_depths = np.random.default_rng([seed, 4]), value_QD.shape[1]
    sets = [random.choice(num_depths, models, replace=False) for _ in range(draws)]
    found = {
        "models": models,
        "oracle_null": float(runs_RQ.max(0).mean()),
        "models_mean": float(runs_RQ.mean()),
        "oracle_depths": float(np.mean([value_QD[:, each].max(1).mean() for each in sets])),
        "depths_mean": float(value_QD.mean()),
    }
    own, null = found["oracle_depths"] - found["depths_mean"], found["oracle_null"] - found["models_mean"]
    return found | {"excess": own - null}
