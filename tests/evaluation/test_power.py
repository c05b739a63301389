"""Power of a test: the smallest difference and the needed queries, against statsmodels and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, nct, t
from statsmodels.stats.power import TTestPower

from maw.evaluation.power import detectable, fewest_queries, minimum_detectable_effect, queries_needed
from maw.evaluation.significance import _p_values

LEVELS = (0.05, 0.05 / 16, 0.05 / 500)


def upper_tail(effect, queries, level):
    """The power but for the chance, below 1e-5, of finding the effect with the wrong sign."""
    return nct.sf(t.isf(level / 2, queries - 1), queries - 1, effect * np.sqrt(queries))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("effect", [0.05, 0.11, 0.4, 1.1, -0.2])
def test_queries_needed_are_the_fewest_with_that_power(effect, level):
    queries = queries_needed(effect, level=level)
    assert upper_tail(abs(effect), queries, level) >= 0.8 - 1e-5
    if queries > fewest_queries(level):
        assert upper_tail(abs(effect), queries - 1, level) < 0.8
    power = TTestPower().power(abs(effect), queries, level)
    assert np.isnan(power) or power >= 0.8, "statsmodels has none for very many queries"
    solved = float(np.ravel(TTestPower().solve_power(effect_size=abs(effect), alpha=level, power=0.8))[0])
    if TTestPower().power(abs(effect), solved, level) == pytest.approx(0.8, abs=1e-4):  # else its search went astray
        assert queries == max(int(np.ceil(solved - 1e-6)), fewest_queries(level))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("queries", [20, 300, 7000, 50_000])
def test_the_smallest_effect_has_that_power(queries, level):
    effect = detectable(1.0, queries, level=level)
    assert upper_tail(effect, queries, level) == pytest.approx(0.8, abs=1e-5)
    solved = float(TTestPower().solve_power(nobs=queries, alpha=level, power=0.8))
    if TTestPower().power(solved, queries, level) == pytest.approx(0.8, abs=1e-4):
        assert effect == pytest.approx(solved, rel=2e-4)


def test_what_is_needed_and_what_can_be_found_are_each_others_inverse():
    for level in LEVELS:
        for queries in (60, 400, 3000):
            effect = detectable(1.0, queries, level=level)
            assert queries_needed(effect * 1.0001, level=level) in (queries, queries - 1)
            assert queries_needed(effect * 0.999, level=level) > queries


def test_small_effects_and_none():
    assert queries_needed(None, level=0.05) is None and queries_needed(0.0, level=0.05) is None
    assert queries_needed(1e-5, level=0.05) == pytest.approx((1.95996 + 0.84162) ** 2 * 1e10, rel=1e-4)
    assert queries_needed(1e3, level=0.05) == fewest_queries(0.05) == 6
    assert detectable(None, 100, level=0.05) is None


def test_few_queries_cannot_reach_a_level():
    """Of n queries the smallest two-sided p is 2 / 2**n."""
    for level in LEVELS:
        n = fewest_queries(level)
        assert 2 / 2**n <= level < 2 / 2 ** (n - 1)
        assert detectable(1.0, n - 1, level=level) is None and detectable(1.0, n, level=level) > 0


@pytest.mark.parametrize("level", LEVELS[:2])
def test_simulated_power_of_the_randomisation_test_is_as_computed(level):
    """At the queries needed the test finds the effect in 80% of cases; with half of them it does not."""
    random, effect = np.random.default_rng(4), 0.25
    queries = queries_needed(effect, level=level)

    def interval(n):
        differences = random.normal(effect, 1, (n, 1000))
        p, _ = _p_values(differences, 6400, random)
        return binomtest(int((p < level).sum()), 1000).proportion_ci(method="exact")

    found = interval(queries)
    assert found.low - 0.01 <= 0.8 <= found.high + 0.01
    assert interval(queries // 2).high < 0.7, "the planted error: half the queries"


def test_the_spread_decides():
    values = np.random.default_rng(0).normal(0, 0.2, 500)
    found = minimum_detectable_effect(values, 400, level=0.05)
    assert found == pytest.approx(detectable(float(values.std(ddof=1)), 400, level=0.05))
    assert minimum_detectable_effect(2 * values, 400, level=0.05) == pytest.approx(2 * found)


def test_rounding_is_no_effect_to_be_found():
    assert queries_needed(3e-17, level=0.05) is None and queries_needed(1e-5, level=0.05) > 10**10
