"""The paired test against enumeration, SciPy and its own null distribution."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from scipy import stats

from maw.errors import MAWError
from maw.evaluation.significance import PairedTest, mean_intervals, paired_test, paired_tests


def enumerated(differences: list[float]) -> float:
    """Share of all sign assignments with a sum at least as far from 0."""
    observed = abs(sum(differences))
    sums = [
        abs(sum(sign * each for sign, each in zip(signs, differences)))
        for signs in itertools.product([1, -1], repeat=len(differences))
    ]
    return sum(each >= observed - 1e-12 for each in sums) / len(sums)


@pytest.mark.parametrize(
    ("a", "p"),
    [
        ([1.0], 1.0),
        ([1.0, 1.0], 0.5),
        ([1.0, 1.0, 1.0], 0.25),
        ([1.0, 2.0, 3.0], 0.25),  # only all signs alike reach 6
        ([1.0, 1.0, -1.0], 1.0),
        ([3.0, 1.0, -1.0], 0.75),  # 3 + (0, 2 or -2): the observed 3 is not reached by 1
        ([0.0, 0.0, 1.0, 1.0], 0.5),
    ],
)
def test_small_cases_by_hand(a, p):
    test = paired_test(a, np.zeros(len(a)))
    assert test.p_value == p
    assert test.permutations == 2 ** len(a)


@pytest.mark.parametrize("seed", range(8))
def test_exact_up_to_thirteen_queries(seed):
    random = np.random.default_rng(seed)
    n = int(random.integers(1, 11))
    differences = random.choice([0.0, 0.1, -0.1, 0.3, 0.25], n)
    test = paired_test(differences, np.zeros(n))
    assert test.p_value == enumerated(differences.tolist())
    assert paired_test(np.ones(13), np.zeros(13)).permutations == 2**13
    assert paired_test(np.ones(14), np.zeros(14)).permutations == 10_000


@pytest.mark.parametrize("n", [8, 200])
def test_agrees_with_scipy(n):
    random = np.random.default_rng(n)
    a, b = random.random(n), random.random(n) - 0.05
    expected = stats.permutation_test(
        (a, b),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=20_000,
        rng=np.random.default_rng(0),
    ).pvalue
    got = paired_test(a, b, permutations=20_000).p_value
    assert got == expected if n == 8 else abs(got - expected) < 0.012


def test_agrees_with_the_normal_approximation_for_many_queries():
    random = np.random.default_rng(2)
    a, b = random.normal(0.07, 1, 2000), np.zeros(2000)
    test = paired_test(a, b)
    assert abs(test.p_value - stats.ttest_rel(a, b).pvalue) < 0.01
    half = 1.96 * a.std(ddof=1) / np.sqrt(2000)
    np.testing.assert_allclose([test.ci_low, test.ci_high], [a.mean() - half, a.mean() + half], atol=0.003)


def test_fields():
    test = paired_test([0.5, 0.5, 1.0, 0.0], [0.25, 0.5, 0.25, 1.0])
    assert (test.mean_difference, test.relative) == (0.0, 0.0)
    assert (test.n, test.wins, test.losses, test.ties) == (4, 2, 1, 1)
    assert paired_test([1.0, 0.0], [0.0, 0.0]).relative is None
    same = PairedTest(1.0, 0.5, 1.0, 1.0, 0.5, 4, 2, 2, 0, 0, 0.0, None, None, None)
    assert paired_test([3.0, 3.0], [2.0, 2.0]) == same
    alone = paired_test([1.0], [0.5])
    assert (alone.std_of_differences, alone.effect_size, alone.t_p_value) == (None, None, None)


def test_effect_size_and_t_test_by_hand():
    """Differences 1, 2, 3: mean 2, standard deviation 1, so d_z = 2 and t = 2 * sqrt(3)."""
    test = paired_test([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert (test.std_of_differences, test.effect_size) == (1.0, 2.0)
    assert test.t_statistic == pytest.approx(2 * np.sqrt(3))
    assert test.t_p_value == pytest.approx(2 * stats.t.sf(2 * np.sqrt(3), df=2))


@pytest.mark.parametrize("n", [2, 9, 300])
def test_the_t_test_is_scipys_and_statsmodels(n):
    from statsmodels.stats.weightstats import DescrStatsW

    random = np.random.default_rng(n)
    a, b = random.random((n, 3)), random.random((n, 3))
    b[:, 1] = a[:, 1] + 0.1  # differs by rounding alone
    tests = paired_tests(a, b)
    assert tests[1].t_p_value is None and tests[1].effect_size is None
    for column in (0, 2):
        expected = stats.ttest_rel(a[:, column], b[:, column])
        t, p, _ = DescrStatsW(a[:, column] - b[:, column]).ttest_mean()
        assert (tests[column].t_statistic, tests[column].t_p_value) == (expected.statistic, expected.pvalue)
        assert (tests[column].t_statistic, tests[column].t_p_value) == (pytest.approx(t), pytest.approx(p))
        d = a[:, column] - b[:, column]
        assert tests[column].effect_size == pytest.approx(expected.statistic / np.sqrt(n)) == d.mean() / d.std(ddof=1)


def test_the_interval_is_scipys_percentile_bootstrap():
    random = np.random.default_rng(11)
    a, b = random.random(150), random.random(150) ** 2
    options = {"method": "percentile", "n_resamples": 20_000, "rng": np.random.default_rng(1)}
    for values, got in (
        (a - b, (paired_test(a, b).ci_low, paired_test(a, b).ci_high)),
        (a, mean_intervals(a[:, None])[0]),
    ):
        expected = stats.bootstrap((values,), np.mean, **options).confidence_interval
        np.testing.assert_allclose(got, [expected.low, expected.high], atol=0.003)


def test_ranx_agrees():
    """The same values through ranx's own tests: Fisher's with the same share, the t test to the last digits."""
    pytest.importorskip("ranx", reason="ranx is compared with where it is installed (requirements-bench.txt)")
    from ranx.statistical_tests import fisher_randomization_test, paired_student_t_test

    random = np.random.default_rng(12)
    a, b = random.random(120), random.random(120) - 0.04
    test = paired_test(a, b, permutations=10_000)
    fisher, _ = fisher_randomization_test(b, a, n_permutations=10_000, random_seed=1)
    assert test.p_value == pytest.approx(fisher, abs=0.02)
    assert test.t_p_value == pytest.approx(paired_student_t_test(b, a)[0])


def test_many_columns_of_few_queries_are_counted_in_parts(monkeypatch):
    random = np.random.default_rng(8)
    a, b = random.random((6, 40)), random.random((6, 40))
    expected = [test.p_value for test in paired_tests(a, b)]
    monkeypatch.setattr("maw.evaluation.significance._NUMBERS_AT_A_TIME", 200)
    assert [test.p_value for test in paired_tests(a, b)] == expected
    assert expected == [enumerated((a - b)[:, column].tolist()) for column in range(40)]


@pytest.mark.parametrize("n", [1, 5, 300])
def test_identical_inputs_say_nothing(n):
    values = np.random.default_rng(0).random(n)
    test = paired_test(values, values)
    assert (test.p_value, test.mean_difference, test.ci_low, test.ci_high, test.ties) == (1.0, 0.0, 0.0, 0.0, n)


def test_equal_sums_in_another_order_of_adding_count_as_equal():
    differences = np.array([0.1, 0.2, -0.3] * 4)  # sums to 0 but for rounding
    assert paired_test(differences, np.zeros(12)).p_value == 1.0


def test_deterministic_and_dependent_on_the_seed():
    random = np.random.default_rng(1)
    a, b = random.random(50), random.random(50)
    assert paired_test(a, b, seed=3) == paired_test(a, b, seed=3)
    assert paired_test(a, b, seed=3) != paired_test(a, b, seed=4)


def test_swapping_the_methods_turns_the_sign():
    random = np.random.default_rng(4)
    a, b = random.random(60), random.random(60) + 0.1
    forth, back = paired_test(a, b), paired_test(b, a)
    assert forth.p_value == back.p_value
    assert forth.mean_difference == -back.mean_difference
    np.testing.assert_allclose([forth.ci_low, forth.ci_high], [-back.ci_high, -back.ci_low], atol=1e-12)
    assert (forth.wins, forth.losses) == (back.losses, back.wins)


def test_several_metrics_at_once_are_the_same_tests():
    random = np.random.default_rng(5)
    a, b = random.random((40, 3)), random.random((40, 3))
    for column, is_distributed in enumerate(paired_tests(a, b, seed=2)):
        alone = dataclasses.asdict(paired_test(a[:, column], b[:, column], seed=2))
        assert dataclasses.asdict(is_distributed) == pytest.approx(alone, abs=1e-12)


def test_result_does_not_depend_on_how_much_is_drawn_at_a_time(monkeypatch):
    random = np.random.default_rng(6)
    a, b = random.random(64), random.random(64)
    expected = paired_test(a, b, permutations=500)
    monkeypatch.setattr("maw.evaluation.significance._NUMBERS_AT_A_TIME", 64 * 17)
    assert dataclasses.asdict(paired_test(a, b, permutations=500)) == pytest.approx(dataclasses.asdict(expected))


def test_calibrated_when_there_is_no_difference():
    """Under the null, p is at most 0.05 in about 5% of cases, and the interval holds 0 in about 95%."""
    random = np.random.default_rng(7)
    tests = [paired_test(random.random(40), random.random(40), permutations=400, seed=each) for each in range(300)]
    assert 0.02 <= np.mean([test.p_value <= 0.05 for test in tests]) <= 0.085
    assert 0.40 <= np.mean([test.p_value <= 0.5 for test in tests]) <= 0.60
    assert 0.90 <= np.mean([test.ci_low <= 0 <= test.ci_high for test in tests]) <= 0.98


def test_a_clear_difference_reaches_the_smallest_p():
    test = paired_test(np.ones(200), np.zeros(200))
    assert test.p_value == 1 / 10_001


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], [1.0, 2.0]), ([[1.0]], [[1.0]])])
def test_inputs_that_do_not_fit(a, b):
    with pytest.raises(ValueError, match=r"\(|at least"):
        paired_test(a, b)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(value):
    with pytest.raises(MAWError, match="query number 2 of the second method"):
        paired_test([1.0, 1.0], [1.0, value])


def test_exact_enumeration_is_done_in_parts(monkeypatch):
    differences = np.random.default_rng(3).choice([0.1, -0.2, 0.3], 9)
    expected = paired_test(differences, np.zeros(9))
    assert expected.p_value == enumerated(differences.tolist())
    monkeypatch.setattr("maw.evaluation.significance._NUMBERS_AT_A_TIME", 9 * 50)
    assert paired_test(differences, np.zeros(9)).p_value == expected.p_value


@pytest.mark.parametrize("seeds", [3, 6, 7])
def test_values_that_differ_by_rounding_alone_are_ties(seeds):
    """A query's mean over seeds that all score it the same differs in its last bit from that score."""
    rank = np.random.default_rng(0).integers(1, 15, 300)
    one = np.column_stack([np.where(rank <= 10, 0.1, 0.0), 1 / rank, 1 / np.log2(1 + rank)])
    averaged = np.mean([one] * seeds, axis=0)
    assert (averaged != one).any(), "there is rounding to be taken for a difference"
    for test in paired_tests(averaged, one):
        assert (test.wins, test.losses, test.ties, test.mean_difference) == (0, 0, 300, 0.0)
        assert (test.p_value, test.effect_size, test.t_p_value) == (1.0, None, None)
