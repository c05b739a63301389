"""The 36 metrics of a run against ranx and ir_measures computing the same ones, from ids and scores to every value.

    python -m bench.metrics             # 1,000 queries x 1,000 passages
    python -m bench.metrics --quick     # 100 x 100, to see that it works

Each side starts from what an evaluation has, (query ids, passage ids, scores, qrels), and ends with the means and
each query's values. ir_measures has no F1 and computes 35. ranx compiles with numba when first called, which takes
minutes once; that is left out, and shown apart. It computes on as many threads as `NUMBA_NUM_THREADS` says; the
others on one.

ranx is no dependency of the project: `pip install ranx==0.3.21`. Its bpref divides by zero where no judged passage is
not relevant, and passages of equal score have no order in it; so bpref is not compared, and the run here has no equal
scores.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.common import ROUNDS, alternate, median, quick_parser, ratio, report, results_folder
from maw.evaluation.metrics import METRICS, compute_metrics

RANX_NAMES = {
    "ndcg_cut": "ndcg",
    "map_cut": "map",
    "recip_rank": "mrr",
    "P": "precision",
    "Rprec": "r-precision",
    "success": "hit_rate",
    "F1": "f1",
}
IR_MEASURES_NAMES = {
    "ndcg_cut": "nDCG",
    "map_cut": "AP",
    "recip_rank": "RR",
    "recall": "R",
    "success": "Success",
    "ndcg": "nDCG",
    "map": "AP",
    "bpref": "Bpref",
}
DEFINED_OTHERWISE = {"bpref"}
"""Metrics of ranx whose values differ from trec_eval's by definition."""

Values = dict[str, np.ndarray]


def renamed(key: str, names: dict[str, str]) -> str:
    """trec_eval's key in another library's words."""
    name, _, cutoff = key.rpartition("_")
    return f"{names.get(name, name)}@{cutoff}" if cutoff.isdigit() else names.get(key, key)


def make_run(queries: int, depth: int) -> tuple[list[str], list[list[str]], np.ndarray, dict[str, dict[str, int]]]:
    """Ids and scores by seed, best first and without equal scores; for each query some judged passages found and some
    not. What they mean does not change how long measuring them takes."""
    random = np.random.default_rng(0)
    passages = [f"passage{number}" for number in range(100 * depth)]
    rankings = [[passages[each] for each in random.choice(100 * depth, depth, replace=False)] for _ in range(queries)]
    scores = np.linspace(1, 0, depth, dtype=np.float32) - random.random((queries, 1), dtype=np.float32)
    scores = -np.sort(-scores, axis=1)
    qrels = {}
    for number, docs in enumerate(rankings):
        judged = [docs[each] for each in random.integers(0, depth, 4)] + [passages[number], docs[number % depth]]
        qrels[f"query{number}"] = {doc: int(random.integers(0, 4)) for doc in judged} | {docs[depth // 3]: 1}
    return list(qrels), rankings, scores, qrels


def ours(query_ids: list[str], rankings: list[list[str]], scores: np.ndarray, qrels: Any) -> Values:
    """maw.evaluation.metrics."""
    return compute_metrics(query_ids, rankings, scores, qrels).per_query


def as_dictionaries(
    query_ids: list[str], rankings: list[list[str]], scores: np.ndarray
) -> dict[str, dict[str, float]]:
    """The run as both other libraries take it."""
    each = zip(query_ids, rankings, scores, strict=True)
    return {query: dict(zip(docs, row.tolist(), strict=True)) for query, docs, row in each}


def ranx_objects(query_ids: list[str], rankings: list[list[str]], scores: np.ndarray, qrels: Any) -> tuple[Any, Any]:
    """ranx's own form of run and qrels."""
    import ranx

    return ranx.Qrels(qrels), ranx.Run(as_dictionaries(query_ids, rankings, scores))


def ranx_values(qrels: Any, run: Any) -> Values:
    """ranx, from its own objects: every query's values, and the means that it takes itself."""
    import ranx

    names = {key: renamed(key, RANX_NAMES) for key in METRICS}
    found = ranx.evaluate(qrels, run, list(names.values()), return_mean=False)
    values = {key: np.asarray(found[name]) for key, name in names.items()}
    for each in values.values():
        each.mean()
    return values


def ir_measures_values(query_ids: list[str], rankings: list[list[str]], scores: np.ndarray, qrels: Any) -> Values:
    """ir_measures: every query's values and the means, in one call of its own."""
    import ir_measures

    names = {ir_measures.parse_measure(renamed(key, IR_MEASURES_NAMES)): key for key in METRICS if key != "F1_10"}
    run = as_dictionaries(query_ids, rankings, scores)
    _, per_query = ir_measures.calc(list(names), qrels, run)
    position = {query: number for number, query in enumerate(query_ids)}
    values = {key: np.zeros(len(query_ids)) for key in names.values()}
    for each in per_query:
        values[names[each.measure]][position[each.query_id]] = each.value
    return values


def agreement(got: Values, expected: Values, without: set[str]) -> tuple[int, float]:
    """How many metrics both have under one definition, and their largest difference for any query."""
    shared = (got.keys() & expected.keys()) - without
    return len(shared), max(float(np.abs(got[key] - expected[key]).max()) for key in shared)


def seconds_of(run: Callable[[], Any]) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> None:
    """Measures, compares values, and reports."""
    quick = quick_parser(__doc__).parse_args().quick
    queries, depth, rounds = (100, 100, 3) if quick else (1000, 1000, ROUNDS)
    case = make_run(queries, depth)
    first = seconds_of(lambda: ranx_values(*ranx_objects(*case)))
    made = ranx_objects(*case)
    order = np.argsort(case[0])  # ranx sorts queries by id
    expected, theirs = ours(*case), ranx_values(*made)
    theirs = {key: _by_query(values, order) for key, values in theirs.items()}
    agreements = {
        "ranx": agreement(theirs, expected, DEFINED_OTHERWISE),
        "ir_measures": agreement(ir_measures_values(*case), expected, set()),
    }
    seconds = alternate(
        {
            "ours": lambda: ours(*case),
            "ranx": lambda: ranx_values(*ranx_objects(*case)),
            "ranx, objects made before": lambda: ranx_values(*made),
            "ir_measures": lambda: ir_measures_values(*case),
        },
        rounds,
    )
    rows: list[list[Any]] = [
        [f"{name}, {queries:,} x {depth:,}: seconds", median(each), ratio(seconds, name, "ours"), "", ""]
        for name, each in seconds.items()
    ]
    rows.append(["ranx, first call, with compilation: seconds", first, "", "", ""])
    for name, (count, difference) in agreements.items():
        claim = f"{count} metrics of {name} are ours: largest difference"
        rows.append([claim, f"{difference:.1e}", "", "<= 1e-9", difference <= 1e-9])
        faster = ratio(seconds, name, "ours")
        rows.append([f"36 metrics are faster than {name}, everything included", faster, "", "> 1 times", faster > 1])
    report("metrics", ["claim", "measured", "times ours", "target", "met"], rows, results_folder(quick))


def _by_query(values: np.ndarray, order: np.ndarray) -> np.ndarray:
    placed = np.empty_like(values)
    placed[order] = values
    return placed


if __name__ == "__main__":
    main()
