"""Measures error rate and power of a run's tests on 1,000 simulated benchmarks, where the truth is known.

    python -m bench.significance             # some minutes
    python -m bench.significance --quick     # 20 benchmarks, to see that it works

A simulated benchmark has four datasets and five methods; a query's value under a method is nDCG@10 of one relevant
passage at a random rank, the same for all methods in two of three cases. The tests, families and corrections are those
of a run (`maw.evaluation.significance`, `maw.evaluation.confirmatory`, `maw.evaluation.exploratory`).

- Without any difference the share of benchmarks with a corrected p below 0.05 is the family-wise error. The lower end
  of its exact 95% binomial interval must not lie above 0.05.
- With a difference of the minimum detectable effect, a comparison must be found at its level in 80% of benchmarks, and
  after Holm's correction in no fewer.
- With the number of queries that `queries_needed` gives for an effect, the same.

The simulation draws metric values to test the tests; no result of this project comes from them.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any
from unittest import mock

import numpy as np
from scipy.stats import binomtest

import maw.evaluation.significance
from bench.common import claim, quick_parser, report, results_folder
from maw.config.tier1_config import Tier1Config
from maw.evaluation import confirmatory, exploratory
from maw.evaluation.confirmatory import LEVEL, METRIC
from maw.evaluation.method_pairs import significance
from maw.evaluation.metrics import PRIMARY, EvaluationResult
from maw.evaluation.power import POWER, detectable, queries_needed

METHODS = ("lora", "lora_matched", "full", "full_lowrank", "maw")
DATASETS = ("msmarco", "nq", "hotpotqa", "triviaqa")
QUERIES, BENCHMARKS = 100, 1000
SAME = 2 / 3
EFFECT = 0.25


def simulating() -> contextlib.AbstractContextManager[object]:
    """Leaves out what a simulation does not need: intervals."""
    return mock.patch.object(maw.evaluation.significance, "_BOOTSTRAP_DRAWS", 2)


def draw(shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """nDCG@10 of one relevant passage at a random rank; 0 below rank 10."""
    rank = random.geometric(0.2, shape)
    return np.where(rank <= 10, 1 / np.log2(rank + 1), 0.0)


def values_of(queries: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Method -> (queries,): no method is better than another."""
    shared = draw((queries,), random)
    return {name: np.where(random.random(queries) < SAME, shared, draw((queries,), random)) for name in METHODS}


def configuration(datasets: int) -> Tier1Config:
    """A run of all five methods on so many datasets."""
    return Tier1Config(datasets=list(DATASETS[:datasets]), methods=list(METHODS))


def simulate(
    number: int, queries: int = QUERIES, datasets: int = len(DATASETS), effect: float = 0.0, signs: int | None = None
) -> list[dict[str, Any]]:
    """The confirmatory family over a benchmark: its rows in summary/confirmatory.json.

    Args:
        number: seed of the benchmark.
        queries: of each dataset.
        datasets: how many.
        effect: how much better MAW is than every control.
        signs: random signs of each test; as many as the family needs, if not given.
    """
    random, config = np.random.default_rng(number), configuration(datasets)
    signs = signs or confirmatory.signs_for(confirmatory.family_size(config))
    results = []
    for dataset in config.datasets:
        values = values_of(queries, random)
        values["maw"] = values["maw"] + effect
        ids = [f"q{i}" for i in range(queries)]
        evaluations = {name: EvaluationResult(ids, {METRIC: each}) for name, each in values.items()}
        tests = significance(evaluations, [METRIC], permutations=signs, seed=int(random.integers(2**31)))
        results.append({"dataset": dataset, "confirmatory": confirmatory.confirm(tests, {}, config, signs)})
    return confirmatory.over_run(results)["comparisons"]


def found_anything(rows: list[dict[str, Any]]) -> tuple[bool, bool]:
    """Whether the p of any comparison is below the level: corrected, and uncorrected."""
    return any(row["significant"] for row in rows), any(row["p_value"] < LEVEL for row in rows)


def shares(rows_of: list[list[dict[str, Any]]], level: float) -> tuple[int, int]:
    """Number of benchmarks whose first comparison is significant: at `level`, and corrected over the family."""
    first = [rows[0] for rows in rows_of]
    return sum(row["p_value"] < level for row in first), sum(row["significant"] for row in first)


def interval(found: int, of: int) -> tuple[float, float]:
    """Exact 95% binomial interval of a share."""
    ends = binomtest(found, of).proportion_ci(method="exact")
    return float(ends.low), float(ends.high)


def spread_of_differences() -> float:
    """The standard deviation of differences between two methods, from very many queries."""
    values = values_of(1_000_000, np.random.default_rng(0))
    return float((values["maw"] - values["lora"]).std())


def seconds_of_a_run(queries: int, rounds: int) -> float:
    """All tests of four datasets and three methods in ten metrics, with intervals and corrections; the median."""
    random, names = np.random.default_rng(0), ("zero_shot", "lora", "maw")
    config = Tier1Config(datasets=list(DATASETS), methods=list(names))
    ids = [f"q{i}" for i in range(queries)]
    runs = [
        {name: EvaluationResult(ids, {key: draw((queries,), random) for key in PRIMARY}) for name in names}
        for _ in DATASETS
    ]
    signs, seconds = exploratory.permutations_for(config), []
    for _ in range(rounds):
        started = time.perf_counter()
        for evaluations in runs:
            tests = significance(evaluations, permutations=signs)
            exploratory.label(tests, confirmatory.confirm(tests, {}, config, signs), config)
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))


def main() -> None:
    """Simulates, measures, and reports."""
    quick = quick_parser(__doc__).parse_args().quick
    seconds = seconds_of_a_run(1000, 1 if quick else 5)
    with simulating():
        rows, claims = _simulated(20 if quick else BENCHMARKS)
    claims.append(claim("tests of 4 datasets x 3 methods x 1,000 queries: seconds", "target", seconds, "<= 10"))
    header = ["simulated", "found", "benchmarks", "95% from", "95% to"]
    report("significance", header, rows, results_folder(quick), claims)


def _simulated(benchmarks: int) -> tuple[list[list[Any]], list[dict[str, Any]]]:
    """Rows and claims of so many benchmarks with no difference, and as many with each of two."""
    false = np.sum([found_anything(simulate(number)) for number in range(benchmarks)], axis=0)
    level = LEVEL / confirmatory.family_size(configuration(len(DATASETS)))
    spread = spread_of_differences()
    sizes = {
        "minimum detectable effect": (QUERIES, detectable(spread, QUERIES, level=level)),
        "queries needed": (queries_needed(EFFECT, level=level), EFFECT * spread),
    }
    rows: list[list[Any]] = [
        ["no difference: any corrected p below 0.05", int(false[0]), benchmarks, *interval(int(false[0]), benchmarks)],
        ["no difference: any uncorrected one", int(false[1]), benchmarks, *interval(int(false[1]), benchmarks)],
    ]
    claims = [claim("family-wise error, lower end of its interval", "level", rows[0][3], "<= 0.05")]
    for what, (queries, effect) in sizes.items():
        found = [simulate(benchmarks + number, queries, effect=effect) for number in range(benchmarks)]
        alone, together = shares(found, level)
        low, high = interval(alone, benchmarks)
        rows.append([f"{what}: {queries} queries, difference {effect:.4f}", alone, benchmarks, low, high])
        rows.append([f"{what}: after Holm's correction", together, benchmarks, *interval(together, benchmarks)])
        away = max(low - POWER, POWER - high, 0.0)
        claims.append(claim(f"{what}: power's interval misses 0.8 by", "computed", away, "<= 0"))
    return rows, claims


if __name__ == "__main__":
    main()
