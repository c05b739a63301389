"""Combines the trainings of one method: concatenates folds, then averages seeds per query.

    result = combine(runs)          # trainings with the seeds 42, 43, ... on the folds 1, 2, ...
    result.evaluation               # one value for each query, and their means; used in the tests
    result.record["spread"]         # spread of nDCG@10 over seeds

Tests are over queries. Values of one query under several seeds are not independent, so they are averaged before any
test. The spread of the seeds' means is reported separately.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from maw.evaluation.metrics import PRIMARY, EvaluationResult
from maw.experiment.method_trainer import TrainingResult

METRIC = PRIMARY[0]
_SUMS = ("encode_seconds", "search_seconds")
_FIRST = ("learning_rate", "training_history")  # those of the first training; "runs" has the others


@dataclass(frozen=True)
class MethodResult:
    """The result of one method over all its trainings.

    Attributes:
        record: JSON-able facts of `maw.experiment.method_trainer` over all trainings, and "runs", each one's record.
        evaluation: test queries of all folds, averaged over seeds.
        validation: validation queries of all folds, averaged over seeds; None if the method is not trained.
        by_seed: seed -> test queries of all folds, with their rankings.
        attention: that of the first training, see `maw.experiment.method_trainer.TrainingResult`.
    """

    record: dict[str, Any]
    evaluation: EvaluationResult
    validation: EvaluationResult | None
    by_seed: dict[int, EvaluationResult]
    attention: dict[str, Any] | None


def combine(runs: Sequence[TrainingResult]) -> MethodResult:
    """Concatenates folds, then averages seeds per query.

    Args:
        runs: the trainings of one method, every seed on every fold, in any order; at least one.

    Raises:
        ValueError: seeds were tested on different queries.
    """
    ordered = sorted(runs, key=lambda run: (run.seed, run.fold or 0))
    parts = [list(part) for _, part in groupby(ordered, key=lambda run: run.seed)]
    tests = [joined([run.evaluation for run in part]) for part in parts]
    evaluation = averaged(tests)
    validation = None
    if ordered[0].validation is not None:
        validation = averaged([joined([run.validation for run in part]) for part in parts])
    first = ordered[0].record
    record = {
        key: value
        for key, value in first.items()
        if key in _FIRST or all(run.record.get(key) == value for run in ordered)
    }
    record |= {"metrics": dict(evaluation), "evaluation": evaluation.facts}
    record.pop("seed", None)
    for key in ("training_seconds", "evaluation_seconds", "runtime_seconds"):
        record[key] = sum(run.record[key] for run in ordered)
    if all("energy" in run.record for run in ordered):
        record["energy"] = _energy([run.record["energy"] for run in ordered])
    if "steps" in first:
        record |= {key: sum(run.record[key] for run in ordered) for key in ("steps", "optimizer_steps")}
    if validation is not None:
        record[f"val_{METRIC}"] = validation[METRIC]
    if len(parts) > 1:
        record["spread"] = spread([test[METRIC] for test in tests])
    by_seed = {part[0].seed: test for part, test in zip(parts, tests, strict=True)}
    record["runs"] = [run.record for run in ordered]
    return MethodResult(record, evaluation, validation, by_seed, ordered[0].attention)


def _energy(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The sum over runs; null where the same devices were not measured in all of them."""
    devices = parts[0].get("measured_devices")
    if any(each.get("measured_devices") != devices or each["measured_joules"] is None for each in parts):
        return dict.fromkeys(parts[0]) | {"measured_devices": []}
    return {key: devices if key == "measured_devices" else sum(each[key] for each in parts) for key in parts[0]}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Spread of the seeds' means of nDCG@10, with the sample standard deviation (divisor n - 1)."""
    return {
        "metric": METRIC,
        "seeds": len(values),
        "mean": float(np.mean(values)),
        "std": float(np.std(values, ddof=1)),
        "min": min(values),
        "max": max(values),
    }


def joined(evaluations: Sequence[EvaluationResult]) -> EvaluationResult:
    """Concatenates evaluations of different queries, with their rankings if all have them at the same width.

    Raises:
        ValueError: two evaluations have the same query.
    """
    if len(evaluations) == 1:
        return evaluations[0]
    ids = [query_id for each in evaluations for query_id in each.query_ids]
    if len(set(ids)) < len(ids):
        raise ValueError("a query was evaluated on two folds; each query must count once")
    values = {key: np.concatenate([each.per_query[key] for each in evaluations]) for key in evaluations[0].per_query}
    facts = _facts([each.facts for each in evaluations], len(ids))
    match = [each.facts["answer_match"] for each in evaluations if "answer_match" in each.facts]
    if match:
        answered = [each["queries"] for each in match]
        shares = {key: _mean([each[key] for each in match], answered) for key in match[0] if key.startswith("top_")}
        facts["answer_match"] = shares | {"queries": sum(answered), "coverage": sum(answered) / len(ids)}
    rankings = [each.run for each in evaluations]
    run = None
    if all(rankings) and len({ranking["rows"].shape[1] for ranking in rankings}) == 1:
        run = {key: np.concatenate([ranking[key] for ranking in rankings]) for key in rankings[0]}
    return EvaluationResult(ids, values, run=run, facts=facts)


def averaged(evaluations: Sequence[EvaluationResult]) -> EvaluationResult:
    """Averages evaluations of the same queries, query by query.

    Raises:
        ValueError: the queries or their order differ.
    """
    first = evaluations[0]
    if len(evaluations) == 1:
        return first
    if any(each.query_ids != first.query_ids for each in evaluations):
        raise ValueError("seeds were tested on different queries; they cannot be averaged per query")
    values = {key: np.mean([each.per_query[key] for each in evaluations], axis=0) for key in first.per_query}
    facts = _facts([each.facts for each in evaluations], len(first.query_ids))
    match = [each.facts["answer_match"] for each in evaluations if "answer_match" in each.facts]
    if match:
        tops = [key for key in match[0] if key.startswith("top_")]
        means = {key: _mean([each[key] for each in match]) for key in tops}
        facts["answer_match"] = {key: means.get(key, value) for key, value in match[0].items() if key != "first_hit"}
    return EvaluationResult(first.query_ids, values, facts=facts)


def _facts(facts: Sequence[Mapping[str, Any]], queries: int) -> dict[str, Any]:
    """Facts shared by all evaluations, and sums of their times."""
    first = dict(facts[0])
    if not first:
        return first
    same = {key: value for key, value in first.items() if all(each.get(key) == value for each in facts)}
    sums = {key: sum(each[key] for each in facts) for key in _SUMS if key in first}
    found = {"split": first["split"], "evaluations": sum(each.get("evaluations", 1) for each in facts)}
    rate = {}
    if sums.get("search_seconds"):
        searched = sum(each["queries_per_second"] * each["search_seconds"] for each in facts)
        rate = {"queries_per_second": searched / sums["search_seconds"]}
    return same | found | {"queries": queries} | sums | rate


def _mean(values: Sequence[float | None], weights: Sequence[float] | None = None) -> float | None:
    """The weighted mean; None if a value with weight is missing."""
    weights = [1.0] * len(values) if weights is None else weights
    kept = [(value, weight) for value, weight in zip(values, weights, strict=True) if weight]
    if not kept or any(value is None for value, _ in kept):
        return None
    return sum(value * weight for value, weight in kept) / sum(weight for _, weight in kept)
