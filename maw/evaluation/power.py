"""What a paired test over queries can find: the smallest difference, and the queries that a difference needs.

    minimum_detectable_effect(differences, 1000, level=0.05 / 3)    # what a test of 1,000 queries can find
    queries_needed(test.effect_size, level=0.05 / 3)                # to see a difference as large as the one found

The minimum detectable effect is the smallest true mean difference that a two-sided test finds with a given power. It
is that of the paired t test, whose power the randomisation test shares but for few queries.

The number of queries needed takes a difference that was found for the true one. It plans the next collection; it does
not say of this one whether a difference that is not significant is there.

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
"""The probability with which a difference is to be found."""
_MOST_QUERIES = 10_000_000  # beyond it the normal approximation is exact to the digits shown


def minimum_detectable_effect(
    differences: ArrayLike, queries: int, *, level: float, power: float = POWER
) -> float | None:
    """The smallest true mean difference that a two-sided test of so many queries finds with probability `power`.

    Args:
        differences: paired differences of queries of the kind, (N,), whose spread is taken.
        queries: that are tested.
        level: of the test; that of one test of a family, where it is corrected for several.
        power: the probability.

    Returns:
        The difference, in the metric's own units; None where differences that do not vary, or fewer than two, say
        nothing of the spread, or where so few queries are tested that no difference can reach the level.
    """
    differences = np.asarray(differences, dtype=np.float64)
    if len(differences) < 2:
        return None
    std = float(differences.std(ddof=1))
    return detectable(std if std > ROUNDING * np.abs(differences).max() else 0.0, queries, level=level, power=power)


def detectable(std: float | None, queries: int, *, level: float, power: float = POWER) -> float | None:
    """`minimum_detectable_effect` from the standard deviation of the differences; None where that is None or 0."""
    if not std or queries < fewest_queries(level):
        return None
    return _smallest_effect(queries, level, power) * std


_ROUNDING = 1e-6
"""A difference of so small a part of its standard deviation: to show it would take trillions of queries."""


def queries_needed(effect_size: float | None, *, level: float, power: float = POWER) -> int | None:
    """How many queries a two-sided test needs to find a true effect of that size with probability `power`.

    Args:
        effect_size: d_z, of either sign.
        level: of the test.
        power: the probability.

    Returns:
        The number; None where there is no effect to find but rounding, or no size is known.
    """
    if effect_size is None or not _ROUNDING < abs(effect_size) < math.inf:
        return None
    from scipy.stats import norm

    size, z = abs(effect_size), float(norm.isf(level / 2))
    fewest = fewest_queries(level)
    guess = ((z + float(norm.ppf(power))) / size) ** 2 + z * z / 2
    queries = max(fewest, math.ceil(guess))
    if queries > _MOST_QUERIES:
        return queries
    while queries > fewest and _power(size, queries - 1, level) >= power:
        queries -= 1
    while _power(size, queries, level) < power:
        queries += 1
    return queries


def fewest_queries(level: float) -> int:
    """Queries of which a randomisation test can reach the level at all: the smallest p of n queries is 2 / 2**n."""
    return max(2, math.ceil(math.log2(2 / level)))


@lru_cache(maxsize=1024)
def _smallest_effect(queries: int, level: float, power: float) -> float:
    """The smallest effect size d_z that so many queries find."""
    from scipy.optimize import brentq

    high = 8 / math.sqrt(queries)
    while _power(high, queries, level) <= power:
        high *= 2
    return float(brentq(lambda effect: _power(effect, queries, level) - power, 0.0, high, xtol=1e-9))


def _power(effect_size: float, queries: int, level: float) -> float:
    """The power of the two-sided paired t test.

    statsmodels has no number where a tail that hardly counts cannot be computed, as with some thousand queries: then
    it is the other tail alone.
    """
    from scipy.stats import nct, t
    from statsmodels.stats.power import TTestPower  # a second to import, and needed at the end of a run

    found = float(TTestPower().power(effect_size, queries, level, alternative="two-sided"))
    if math.isfinite(found):
        return found
    critical = t.isf(level / 2, queries - 1)
    return float(nct.sf(critical, queries - 1, effect_size * math.sqrt(queries)))
