"""Power of a paired test over queries: minimum detectable effect, and number of queries needed.

    minimum_detectable_effect(differences, 1000, level=0.05 / 3)    # the smallest difference for 1,000 queries
    queries_needed(test.effect_size, level=0.05 / 3)                # queries that detect an effect of this size

The minimum detectable effect is the smallest true mean difference that a two-sided test detects with a given power. It
is computed for the paired t test; the randomisation test has nearly the same power except with few queries.

`queries_needed` treats the observed difference as the true one. It helps to plan the next collection; it does not tell
whether a difference exists that is not significant here.

Sources: Cohen, "Statistical Power Analysis for the Behavioral Sciences", 1988, chapter 2, and Sakai, "Topic set size
design", Information Retrieval Journal 19, 2016, for power and the number of queries. Hoenig and Heisey, "The Abuse of
Power", The American Statistician 55, 2001, for what power computed from the result itself cannot say. Guenther,
"Sample Size Formulas for Normal Theory T Tests", The American Statistician 35, 1981, for the first guess.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from maw.evaluation.significance import ROUNDING

POWER = 0.8
"""The probability of detecting a true difference."""
_MOST_QUERIES = 10_000_000  # above it the normal approximation is exact to the digits shown


def minimum_detectable_effect(differences: ArrayLike, queries: int, *, level: float) -> float | None:
    """The smallest true mean difference that a two-sided test detects with probability `POWER`.

    Args:
        differences: paired differences of similar queries, (N,), from which the spread is estimated.
        queries: number of tested queries.
        level: level of the test; for a family of tests the level of one of them.

    Returns:
        The difference in the metric's units; None if there are fewer than two differences or they do not vary, or if
        no difference can reach the level with so few queries.
    """
    differences = np.asarray(differences, dtype=np.float64)
    if len(differences) < 2:
        return None
    std = float(differences.std(ddof=1))
    return detectable(std if std > ROUNDING * np.abs(differences).max() else 0.0, queries, level=level)


def detectable(std: float | None, queries: int, *, level: float) -> float | None:
    """`minimum_detectable_effect` from the standard deviation of the differences; None if that is None or 0."""
    if not std or queries < fewest_queries(level):
        return None
    return _smallest_effect(queries, level) * std


_ROUNDING = 1e-6
"""Effect size below which a difference is rounding; to detect it would take trillions of queries."""


def queries_needed(effect_size: float | None, *, level: float) -> int | None:
    """The number of queries with which a two-sided test detects an effect with probability `POWER`.

    Args:
        effect_size: d_z, of either sign.

    Returns:
        The number; None if the effect size is unknown, not finite, or only rounding.
    """
    if effect_size is None or not _ROUNDING < abs(effect_size) < math.inf:
        return None
    from scipy.stats import norm

    size, z = abs(effect_size), float(norm.isf(level / 2))
    fewest = fewest_queries(level)
    guess = ((z + float(norm.ppf(POWER))) / size) ** 2 + z * z / 2
    queries = max(fewest, math.ceil(guess))
    if queries > _MOST_QUERIES:
        return queries
    while queries > fewest and _power(size, queries - 1, level) >= POWER:
        queries -= 1
    while _power(size, queries, level) < POWER:
        queries += 1
    return queries


def fewest_queries(level: float) -> int:
    """The fewest queries n with which a randomisation test can reach the level: its smallest p is 2 / 2**n."""
    return max(2, math.ceil(math.log2(2 / level)))


@lru_cache(maxsize=1024)
def _smallest_effect(queries: int, level: float) -> float:
    """The effect size d_z at which the test has this power."""
    from scipy.optimize import brentq

    high = 8 / math.sqrt(queries)
    while _power(high, queries, level) <= POWER:
        high *= 2
    return float(brentq(lambda effect: _power(effect, queries, level) - POWER, 0.0, high, xtol=1e-9))


def _power(effect_size: float, queries: int, level: float) -> float:
    """The power of the two-sided paired t test.

    With thousands of queries statsmodels returns NaN if it cannot compute the far tail, which hardly counts; then the
    power is that of the near tail.
    """
    from scipy.stats import nct, t
    from statsmodels.stats.power import TTestPower  # here, because it takes a second to import

    found = float(TTestPower().power(effect_size, queries, level, alternative="two-sided"))
    if math.isfinite(found):
        return found
    critical = t.isf(level / 2, queries - 1)
    return float(nct.sf(critical, queries - 1, effect_size * math.sqrt(queries)))
