"""Paired tests over queries: whether one method scores higher than another on the same queries.

    test = paired_test(maw.per_query["ndcg_cut_10"], lora.per_query["ndcg_cut_10"])
    test.mean_difference, test.p_value, (test.ci_low, test.ci_high)

    holm([0.01, 0.04, 0.03])                                        # corrected for a family of three

Reports use them for every pair of methods and every primary metric. `maw.evaluation.confirmatory` and
`maw.evaluation.exploratory` divide the tests into two families and correct each; `maw.evaluation.power` computes their
power.

The p-value is that of the two-sided randomisation test: if the methods were interchangeable, each query's difference
would have either sign with equal probability, so the observed mean difference is compared with those under random
signs. The test assumes no distribution, and the claims of a run rest on it. The paired t test is reported as well,
because papers report it. The interval is the percentile bootstrap over queries. None is corrected for the number of
tests; `holm` corrects p-values.

Values that differ only by rounding count as equal: a query that scores 0.1 under each of three seeds has the mean
0.10000000000000002, which is no gain over 0.1.

The effect size is Cohen's d_z, the mean of the differences divided by their standard deviation; unlike a test
statistic it does not grow with the number of queries.

The t test is SciPy's. SciPy's `permutation_test` and `bootstrap` give the same numbers (see the tests) from an array
of all resampled values; the matrix products here are much faster, need bounded memory, use the same draws for every
metric and pair of methods. Statsmodels' Holm gives the same bits, but collects garbage each time, for half a second.

Sources: Smucker, Allan and Carterette, "A Comparison of Statistical Significance Tests for Information
Retrieval Evaluation", CIKM 2007. Phipson and Smyth, "Permutation P-values Should Never Be Zero", 2010, for p
= (1 + count) / (1 + permutations). Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter
13. Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 6, 1979. Cohen,
"Statistical Power Analysis for the Behavioral Sciences", 1988, section 2.3.5, for d_z; Sakai, "Statistical Reform in
Information Retrieval?", SIGIR Forum 48, 2014, for reporting it beside p.

Letters: N queries, M metrics, R draws at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike

from maw.errors import MAWError

_BOOTSTRAP_DRAWS = 10_000
_NUMBERS_AT_A_TIME = 2**21
ROUNDING = 1e-12
"""Relative size below which a difference, or a spread of differences, counts as rounding."""


@dataclass(frozen=True)
class PairedTest:
    """A comparison of a first method with a second one, over the same queries."""

    mean_difference: float
    """Mean of first minus second."""
    relative: float | None
    """The mean difference as a share of the second's mean; None if that mean is 0."""
    ci_low: float
    """Lower end of the 95% interval of the mean difference."""
    ci_high: float
    """Upper end of that interval."""
    p_value: float
    """Two-sided p of the randomisation test, not corrected for other tests."""
    permutations: int
    """Number of sign assignments compared: as many as requested, or all 2**n if those are fewer."""
    n: int
    """Number of queries."""
    wins: int
    """Number of queries on which the first scores higher."""
    losses: int
    """Number of queries on which the first scores lower."""
    ties: int
    """Number of queries on which both score the same."""
    std_of_differences: float | None
    """Standard deviation of the differences (divisor n - 1), 0 if they vary only by rounding; None for one query."""
    effect_size: float | None
    """Cohen's d_z, mean divided by standard deviation of the differences; None if they do not vary."""
    t_statistic: float | None
    """Student's t of the differences; None if they do not vary."""
    t_p_value: float | None
    """Two-sided p of the paired t test, not corrected; None if the differences do not vary."""


def paired_test(a: ArrayLike, b: ArrayLike, *, permutations: int = 10_000, seed: int = 0) -> PairedTest:
    """Tests whether `a` and `b` differ in mean.

    Args:
        a: values of the first method, one for each query.
        b: values of the second method, for the same queries in the same order.
        permutations: number of random sign assignments. If all 2**n are no more (up to 13 queries for 10,000), they
            are enumerated and p is exact.
        seed: seed of the random signs and of the bootstrap.

    Shapes:
        a (N,), b (N,).

    Raises:
        MAWError: a value is not finite.
        ValueError: no values, or different lengths.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 1:
        raise ValueError(f"a has shape {a.shape}, not (N,); use paired_tests for several metrics")
    return paired_tests(a[:, None], b[:, None], permutations=permutations, seed=seed)[0]


def paired_tests(a: ArrayLike, b: ArrayLike, *, permutations: int = 10_000, seed: int = 0) -> list[PairedTest]:
    """`paired_test` for every column, with the same random draws for all columns.

    Shapes:
        a (N, M), b (N, M); M results.
    """
    a_NM, b_NM = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    _check(a_NM, b_NM, permutations)
    differences_NM = differences(a_NM, b_NM)
    n = len(differences_NM)
    for_signs, for_bootstrap = (np.random.default_rng(each) for each in np.random.SeedSequence(seed).spawn(2))
    means_M, baseline_M = differences_NM.mean(0), b_NM.mean(0)
    p_M, compared = _p_values(differences_NM, permutations, for_signs)
    low_M, high_M = np.quantile(_bootstrap_means(differences_NM, for_bootstrap), [0.025, 0.975], axis=0)
    wins_M, losses_M = (differences_NM > 0).sum(0), (differences_NM < 0).sum(0)
    std_M = differences_NM.std(0, ddof=1) if n > 1 else np.zeros_like(means_M)
    varies_M = std_M > ROUNDING * np.abs(differences_NM).max(0)
    t_M, t_p_M = _t_tests(differences_NM, varies_M)
    return [
        PairedTest(
            mean_difference=float(means_M[m]),
            relative=float(means_M[m] / baseline_M[m]) if baseline_M[m] else None,
            ci_low=float(low_M[m]),
            ci_high=float(high_M[m]),
            p_value=float(p_M[m]),
            permutations=compared,
            n=n,
            wins=int(wins_M[m]),
            losses=int(losses_M[m]),
            ties=n - int(wins_M[m]) - int(losses_M[m]),
            std_of_differences=float(std_M[m] * varies_M[m]) if n > 1 else None,
            effect_size=float(means_M[m] / std_M[m]) if varies_M[m] else None,
            t_statistic=float(t_M[m]) if varies_M[m] else None,
            t_p_value=float(t_p_M[m]) if varies_M[m] else None,
        )
        for m in range(differences_NM.shape[1])
    ]


def differences(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """`a` minus `b` in float64; exactly 0 where they differ only by rounding."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    found = a - b
    return np.where(np.abs(found) > ROUNDING * np.maximum(np.abs(a), np.abs(b)), found, 0.0)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected by Holm's step-down procedure, in the order given.

    It controls the family-wise error rate: the probability that any true null hypothesis is rejected is at most the
    level, for dependent tests too.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return corrected.tolist()


def mean_intervals(values: ArrayLike, *, seed: int = 0) -> list[tuple[float, float]]:
    """95% interval of the mean of every column, by the percentile bootstrap over queries: M pairs.

    Args:
        values: (N, M), one row for each query.
    """
    values_NM = np.asarray(values, dtype=np.float64)
    drawn = _bootstrap_means(values_NM, np.random.default_rng(seed))
    return [(float(low), float(high)) for low, high in np.quantile(drawn, [0.025, 0.975], axis=0).T]


def _t_tests(differences_NM: np.ndarray, varies_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """t and its two-sided p, (M,) each; NaN in columns whose differences do not vary."""
    from scipy.stats import ttest_1samp  # here, because it takes a second to import

    t_M, p_M = np.full(len(varies_M), np.nan), np.full(len(varies_M), np.nan)
    if varies_M.any():
        t_M[varies_M], p_M[varies_M] = ttest_1samp(differences_NM[:, varies_M], 0.0)
    return t_M, p_M


def _p_values(differences_NM: np.ndarray, permutations: int, random: Generator) -> tuple[np.ndarray, int]:
    """Share of sign assignments whose sum is at least as far from 0 as the observed sum, (M,), and their number.

    Bits of 0 and 1 stand for the signs s: sum(s d) = 2 sum(bit d) - sum(d). Sums that differ only by rounding are
    equal.
    """
    n = len(differences_NM)
    observed_M = differences_NM.sum(0)
    limit_M = np.abs(observed_M) - 1e-12 * np.abs(differences_NM).sum(0)
    exact = n < permutations.bit_length()  # 2**n <= permutations
    batches = _all_bits(n) if exact else _in_parts(permutations, n, lambda _, rows: _random_bits(rows, n, random))
    count_M = sum(_reached(bits, differences_NM, observed_M, limit_M) for bits in batches)
    return (count_M / 2**n, 2**n) if exact else ((1 + count_M) / (1 + permutations), permutations)


def _reached(bits_RN: np.ndarray, differences_NM: np.ndarray, observed_M: np.ndarray, limit_M: np.ndarray) -> Any:
    """The number of sign assignments that reach the limit, (M,); computed in blocks of columns to bound memory."""
    width = max(1, _NUMBERS_AT_A_TIME // len(bits_RN))
    counts = []
    for first in range(0, len(observed_M), width):
        part = slice(first, first + width)
        sums_RM = 2 * (bits_RN @ differences_NM[:, part]) - observed_M[part]
        counts.append((np.abs(sums_RM) >= limit_M[part]).sum(0))
    return np.concatenate(counts)


def _all_bits(n: int) -> Iterator[np.ndarray]:
    def bits(start: int, rows: int) -> np.ndarray:
        return ((np.arange(start, start + rows)[:, None] >> np.arange(n)) & 1).astype(np.float64)

    return _in_parts(2**n, n, bits)


def _random_bits(rows: int, n: int, random: Generator) -> np.ndarray:
    packed = np.frombuffer(random.bytes(rows * -(-n // 8)), dtype=np.uint8).reshape(rows, -1)
    return np.unpackbits(packed, axis=1, count=n).astype(np.float64)


def _bootstrap_means(differences_NM: np.ndarray, random: Generator) -> np.ndarray:
    """Means of samples drawn with replacement, (draws, M): the counts of each query times its differences."""
    n = len(differences_NM)

    def counts(_: int, rows: int) -> np.ndarray:
        drawn = random.integers(0, n, size=(rows, n)) + np.arange(rows)[:, None] * n
        return np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)

    return np.concatenate([part @ differences_NM for part in _in_parts(_BOOTSTRAP_DRAWS, n, counts)]) / n


def _in_parts(total: int, n: int, draw: Callable[[int, int], np.ndarray]) -> Iterator[np.ndarray]:
    """Draws `total` rows of n numbers in blocks; `draw` gets a block's first row and its number of rows."""
    at_a_time = max(1, _NUMBERS_AT_A_TIME // n)
    for start in range(0, total, at_a_time):
        yield draw(start, min(at_a_time, total - start))


def _check(a_NM: np.ndarray, b_NM: np.ndarray, permutations: int) -> None:
    if a_NM.shape != b_NM.shape or a_NM.ndim != 2 or not a_NM.size:
        raise ValueError(f"a {a_NM.shape} and b {b_NM.shape} must have the same shape (queries, metrics), not empty")
    if permutations < 1:
        raise ValueError(f"permutations must be at least 1, not {permutations}")
    for name, values in (("first", a_NM), ("second", b_NM)):
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            raise MAWError(f"query number {bad[0][0] + 1} of the {name} method scores NaN or infinity")
