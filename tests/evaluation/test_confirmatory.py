"""The confirmatory family: its members, Holm by hand and by statsmodels, and its detectable effects."""

from __future__ import annotations

import json

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from maw.config.methods import find_method, subject_of
from maw.config.tier1_config import Tier1Config
from maw.evaluation import confirmatory, exploratory
from maw.evaluation.method_pairs import significance
from maw.evaluation.metrics import METRICS, EvaluationResult
from maw.evaluation.power import detectable, minimum_detectable_effect, queries_needed
from maw.evaluation.significance import _p_values, holm, paired_test

NAMES = ("zero_shot", "lora", "lora_matched", "full", "full_lowrank", "maw")


def config(datasets=("pystdlib",), methods=("zero_shot", "lora", "maw"), **changes):
    made = Tier1Config(datasets=list(datasets), **changes)
    made.methods = list(methods)
    return made


def evaluation(values):
    values = np.asarray(values, np.float64)
    return EvaluationResult([f"q{i}" for i in range(len(values))], dict.fromkeys(METRICS, values))


# ------------------------------------------------------------------------------------------------------ the family


def test_the_family():
    found = [confirmatory.key_of(*pair) for pair in confirmatory.pairs(config(methods=NAMES))]
    assert found == ["maw_vs_lora", "maw_vs_lora_matched", "maw_vs_full", "maw_vs_full_lowrank"]
    for names in (["zero_shot", "maw"], ["lora", "full"]):
        assert confirmatory.pairs(config(methods=names)) == []
    assert confirmatory.family_size(config(("pystdlib", "msmarco", "hotpotqa"), NAMES)) == 12
    assert confirmatory.METRIC == "ndcg_cut_10"


def test_enough_signs_are_drawn():
    assert confirmatory.signs_for(12) == 20 * 12 / 0.05 == 4800
    assert confirmatory.signs_for(7) == 2800
    smallest_p = 1 / (1 + 4800)
    assert 12 * smallest_p < 0.05, "the smallest p can reach the level when it is corrected"
    assert 12 * (1 / 101) > 0.05, "and could not with a hundred signs"


def test_the_larger_family_decides_how_many_signs_a_run_draws():
    """Three methods make three pairs, ten metrics each: on one dataset 30 tests, of which one is confirmatory."""
    one = config()
    assert (confirmatory.family_size(one), exploratory.family_size(one)) == (1, 29)
    assert exploratory.permutations_for(one) == 20 * 29 / 0.05 == 11_600
    assert exploratory.permutations_for(config(permutations=50_000)) == 50_000
    all_of_it = config(("pystdlib", "msmarco", "hotpotqa"), NAMES)
    assert exploratory.family_size(all_of_it) == 15 * 10 * 3 - 12
    signs = exploratory.permutations_for(all_of_it)
    assert exploratory.family_size(all_of_it) * (1 / (1 + signs)) < 0.05 / 19


def all_tests(values, run):
    return significance(values, permutations=10_000, seed=run.seed)


# ------------------------------------------------------------------------------------------------------------ Holm


def by_hand(p_values):
    """Multiply the k-th smallest of m by m - k + 1, never below its predecessor, never above 1."""
    order = np.argsort(p_values)
    found, highest = np.empty(len(p_values)), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, p_values[place] * (len(p_values) - rank)))
        found[place] = highest
    return found.tolist()


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([0.2]) == [0.2] and holm([]) == []
    random = np.random.default_rng(0)
    for size in (1, 2, 7, 20):
        p = random.random(size) ** 3
        assert holm(p) == pytest.approx(by_hand(p))
        assert holm(p) == multipletests(p, method="holm")[1].tolist()


def test_holm_keeps_the_family_error_rate():
    """Of families of five true nulls at most one in twenty has a corrected p below 0.05; of uncorrected ones, many."""
    p = np.random.default_rng(1).random((1000, 5))
    assert np.mean([min(by_hand(each)) < 0.05 for each in p]) < 0.065
    assert np.mean(p.min(1) < 0.05) > 0.2


def results_of(sizes, seed=0):
    """dataset.json of several datasets, on which MAW is better than LoRA by so much."""
    random = np.random.default_rng(seed)
    run = config([f"d{i}" for i in range(len(sizes))], NAMES)
    results = []
    for number, size in enumerate(sizes):
        base = random.random(60) * 0.5
        values = {name: evaluation(base + random.normal(0, 0.05, 60)) for name in NAMES[:-1]}
        values["maw"] = evaluation(base + size + random.normal(0, 0.05, 60))
        held = {name: None if name == "zero_shot" else each for name, each in values.items()}
        effects = confirmatory.smallest_effects(held, 60, run)
        tests = all_tests(values, run)
        section = confirmatory.confirm(tests, effects, run, 10_000)
        labelled = exploratory.label(tests, section, run)
        about = exploratory.about(labelled, run, 10_000)
        results.append(
            {"dataset": f"d{number}", "confirmatory": section, "exploratory": about, "significance": labelled}
        )
    return results, run


def test_a_datasets_file_is_corrected_within_it_and_the_summary_over_the_run():
    results, _ = results_of([0.02, 0.015, 0.0])
    tests = [result["confirmatory"]["comparisons"] for result in results]
    for section, within in zip((result["confirmatory"] for result in results), tests):
        assert (section["family_size"], section["run_family_size"]) == (4, 12)
        p = [test["p_value"] for test in within.values()]
        assert [test["p_holm"] for test in within.values()] == pytest.approx(by_hand(p))
        assert [test["significant"] for test in within.values()] == [each < 0.05 for each in by_hand(p)]
    family = confirmatory.over_run(results)
    everything = [test["p_value"] for within in tests for test in within.values()]
    assert family["family_size"] == len(family["comparisons"]) == 12
    assert [row["p_holm"] for row in family["comparisons"]] == pytest.approx(by_hand(everything))
    assert [row["dataset"] for row in family["comparisons"]] == ["d0"] * 4 + ["d1"] * 4 + ["d2"] * 4
    within = [test["p_holm"] for each in tests for test in each.values()]
    assert any(row["p_holm"] > p for row, p in zip(family["comparisons"], within)), "a larger family corrects more"
    assert json.loads(json.dumps(family)) == family


def test_the_tests_are_the_paired_test_of_the_values():
    results, run = results_of([0.03])
    test = results[0]["confirmatory"]["comparisons"]["maw_vs_lora"]
    random = np.random.default_rng(0)
    base = random.random(60) * 0.5
    rows = [base + random.normal(0, 0.05, 60) for _ in NAMES[:-1]]
    maw = base + 0.03 + random.normal(0, 0.05, 60)
    expected = paired_test(maw, rows[1], permutations=10_000, seed=run.seed)
    assert test["p_value"] == expected.p_value
    assert test["mean_difference"] == pytest.approx(expected.mean_difference, abs=1e-12)
    assert (test["ci_low"], test["n"]) == (pytest.approx(expected.ci_low, abs=1e-12), 60)


def test_a_run_without_the_family_has_none():
    run = config(methods=["zero_shot", "lora"])
    values = {name: evaluation([0.5, 0.25]) for name in run.methods}
    assert confirmatory.confirm(all_tests(values, run), {}, run, 10_000) == {}
    assert confirmatory.smallest_effects(dict.fromkeys(run.methods), 2, run) == {}
    assert confirmatory.over_run([{"dataset": "d", "confirmatory": {}}]) == {}


def test_every_other_test_is_exploratory_and_corrected_in_a_family_of_its_own():
    results, _ = results_of([0.03, 0.0])
    for result in results:
        tests = {(key, metric): test for key, each in result["significance"].items() for metric, test in each.items()}
        assert len(tests) == 15 * 10
        explored = {key: test for key, test in tests.items() if test["family"] == "exploratory"}
        confirmed = {key[0] for key, test in tests.items() if test["family"] == "confirmatory"}
        assert confirmed == set(result["confirmatory"]["comparisons"]) and len(explored) == 150 - 4
        assert [test["p_holm"] for test in explored.values()] == pytest.approx(
            by_hand([test["p_value"] for test in explored.values()])
        )
        about = result["exploratory"]
        assert (about["family_size"], about["run_family_size"]) == (146, 292)
        assert (about["family"], about["correction"]) == ("exploratory", "Holm")
        for key in confirmed:
            kept = result["significance"][key]["ndcg_cut_10"]
            assert kept["p_holm"] == result["confirmatory"]["comparisons"][key]["p_holm"]
    family = exploratory.over_run(results)
    assert family["family_size"] == len(family["comparisons"]) == 292
    p = [row["p_value"] for row in family["comparisons"]]
    assert [row["p_holm"] for row in family["comparisons"]] == pytest.approx(by_hand(p))
    assert json.loads(json.dumps(family)) == family


def test_each_test_says_what_it_could_find_and_what_it_would_need():
    results, _ = results_of([0.03, 0.0])
    explored = results[0]["significance"]["maw_vs_zeroshot"]["map"]
    level = 0.05 / 292
    assert explored["level"] == level
    assert explored["queries_needed"] == queries_needed(explored["effect_size"], level=level)
    assert explored["minimum_detectable_effect"] > abs(explored["std_of_differences"]) / np.sqrt(60)
    confirmed = results[0]["confirmatory"]["comparisons"]["maw_vs_lora"]
    assert confirmed["queries_needed"] == queries_needed(confirmed["effect_size"], level=0.05 / 8)
    assert confirmed["level"] == 0.05 / 8 and "validation_queries" in confirmed


def test_a_run_of_one_method_has_no_tests():
    run = config(methods=["zero_shot"])
    assert exploratory.family_size(run) == 0 and exploratory.permutations_for(run) == run.permutations
    assert all_tests({"zero_shot": evaluation([0.5, 0.1])}, run) == {}
    assert (
        exploratory.about(exploratory.label({}, {}, run), run, 100) == {} == exploratory.over_run([{"dataset": "d"}])
    )


def test_the_family_wise_error_stays_at_the_level_and_uncorrected_tests_would_not():
    """A sample of bench/significance.py: simulated benchmarks without any difference."""
    from bench.significance import found_anything, interval, simulate, simulating

    count = 50
    with simulating():
        false = [found_anything(simulate(number, queries=40, datasets=3, signs=4800)) for number in range(count)]
    corrected, uncorrected = (sum(each) for each in zip(*false))
    assert interval(corrected, count)[0] <= 0.05
    assert interval(uncorrected, count)[0] > 0.05, (
        "the planted error: p taken as it is finds differences where there are none"
    )


# ------------------------------------------------------------------------------------------ minimum detectable effect


@pytest.mark.parametrize("level", [0.05, 0.05 / 12])
@pytest.mark.parametrize("queries", [50, 400])
def test_the_power_is_what_was_promised(queries, level):
    """Simulated: differences of the kind that nDCG has, most of them 0, shifted to the effect that was computed."""
    random = np.random.default_rng(2)

    def differences(shape):
        return np.where(random.random(shape) < 0.4, random.normal(0, 0.3, shape), 0.0)

    effect = minimum_detectable_effect(differences(4000), queries, level=level)

    def found(shift):
        """How often the randomisation test of this project finds a true difference of that size."""
        p, _ = _p_values(differences((queries, 1000)) + shift, 2400, random)
        return np.mean(p < level)

    assert found(effect) == pytest.approx(0.8, abs=0.04)
    assert found(effect / 2) < 0.5, "half of it is mostly missed"
    assert found(0.0) < 1.5 * level


def test_more_queries_find_smaller_effects_and_a_larger_family_needs_larger_ones():
    values = np.random.default_rng(0).normal(0, 0.2, 500)
    sizes = [minimum_detectable_effect(values, n, level=0.05) for n in (50, 500, 5000)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[1] == pytest.approx(values.std(ddof=1) * (1.96 + 0.8416) / np.sqrt(500), rel=0.01)
    levels = [minimum_detectable_effect(values, 500, level=0.05 / size) for size in (1, 4, 16)]
    assert levels == sorted(levels)
    assert minimum_detectable_effect(values + 3, 500, level=0.05) == pytest.approx(sizes[1]), "only the spread counts"


@pytest.mark.parametrize(("values", "queries"), [([], 500), ([0.1], 500), ([0.1, 0.2], 0), ([0.1, 0.2], 6)])
def test_where_nothing_can_be_said(values, queries):
    """Of six queries 2 / 2**6 = 0.03 is the smallest p, above the level of a family of four."""
    assert minimum_detectable_effect(values, queries, level=0.0125) is None


@pytest.mark.parametrize("gain", [0.0, 0.1])
def test_differences_that_do_not_vary_say_nothing_of_what_could_be_found(gain):
    lora = np.random.default_rng(0).random(40)
    test = paired_test(lora + gain, lora)
    assert test.std_of_differences == 0.0 and detectable(test.std_of_differences, 500, level=0.05) is None
    assert minimum_detectable_effect((lora + gain) - lora, 500, level=0.05) is None
    held = {"lora": evaluation(lora), "maw": evaluation(lora + gain)}
    found = confirmatory.smallest_effects(held, 900, config())["maw_vs_lora"]
    assert found["minimum_detectable_effect"] is None and "do not vary" in found["no_effect_because"]
    assert "too few" in confirmatory.smallest_effects(held, 2, config())["maw_vs_lora"]["no_effect_because"]


def test_effects_come_from_validation_and_the_size_of_the_family():
    random = np.random.default_rng(3)
    lora, maw = random.random(200), random.random(200)
    run = config(("pystdlib", "msmarco"))
    held = {"zero_shot": None, "lora": evaluation(lora), "maw": evaluation(maw)}
    found = confirmatory.smallest_effects(held, 900, run)
    effect = found["maw_vs_lora"]
    assert effect["minimum_detectable_effect"] == minimum_detectable_effect(maw - lora, 900, level=0.025)
    assert effect["validation_std_of_differences"] == pytest.approx(np.std(maw - lora, ddof=1))
    assert (effect["level"], effect["queries"], effect["validation_queries"]) == (0.025, 900, 200)
    for lora_values in (None, evaluation(lora[:5])):
        found = confirmatory.smallest_effects({"lora": lora_values, "maw": evaluation(maw)}, 900, run)["maw_vs_lora"]
        assert found["minimum_detectable_effect"] is None and "no validation values" in found["no_effect_because"]


def test_find_method_still_knows_its_own():
    assert find_method("maw").name == subject_of(None)[0]
