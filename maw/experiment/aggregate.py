"""All runs of one arm as one result: the folds of a seed joined, then the seeds averaged query by query.

    result = combine(runs)          # runs of the seeds 42, 43, ... on the folds 1, 2, ...
    result.evaluation               # one value a query, and their means; what is tested
    result.record["spread"]         # how far seeds differ in nDCG@10

Tests are over queries, and values of one query under several seeds are no independent observations of it: they are
averaged before any test. How much a seed matters is reported apart, by the spread of the seeds' means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from maw.evaluation.metrics import PRIMARY, EvaluationResult
from maw.experiment.arm import TrainingResult

METRIC = PRIMARY[0]
_SUMS = ("encode_seconds", "search_seconds")
_FIRST = ("learning_rate", "training_history")  # of the first run; the others' are in their own records


@dataclass(frozen=True)
class MethodResult:
    """An arm over all its runs.

    Attributes:
        record: JSON-able; for one run what `maw.experiment.arm` recorded of it, with "runs", the records of all.
        evaluation: test queries of all folds, averaged over seeds.
        validation: the same of the validation queries; None for an arm that is not trained.
        by_seed: seed -> test queries of all folds under that seed, with their rankings.
        attention: the first run's, see `maw.experiment.arm.TrainingResult`.
    """

    record: dict[str, Any]
    evaluation: EvaluationResult
    validation: EvaluationResult | None
    by_seed: dict[int, EvaluationResult]
    attention: dict[str, Any] | None


def combine(runs: Sequence[TrainingResult]) -> MethodResult:
    """Puts the runs of an arm together.

    Args:
        runs: every seed on every fold, in any order; at least one.

    Raises:
        ValueError: seeds that were measured on different queries.
    """
    ordered = sorted(runs, key=lambda run: (run.seed, run.fold or 0))
    parts = [list(part) for _, part in groupby(ordered, key=lambda run: run.seed)]
    tests = [joined([run.evaluation for run in part]) for part in parts]
    evaluation = averaged(tests)
    validation = None
    if ordered[0].validation is not None:
        validation = averaged([joined([run.validation for run in part]) for part in parts])
    first = ordered[0].record
    record = {key: value for key, value in first.items() if key in _FIRST or _same(key, ordered)}
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


def _same(key: str, runs: Sequence[TrainingResult]) -> bool:
    return all(run.record.get(key) == runs[0].record[key] for run in runs)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """How far the seeds' means of nDCG@10 lie apart; the standard deviation is that of a sample (divisor n - 1)."""
    return {
        "metric": METRIC,
        "seeds": len(values),
        "mean": float(np.mean(values)),
        "std": float(np.std(values, ddof=1)),
        "min": min(values),
        "max": max(values),
    }


def joined(evaluations: Sequence[EvaluationResult]) -> EvaluationResult:
    """Evaluations of different queries as one, with their rankings where all of them have one of the same corpus.

    Raises:
        ValueError: a query that two of them have.
    """
    if len(evaluations) == 1:
        return evaluations[0]
    ids = [query_id for each in evaluations for query_id in each.query_ids]
    if len(set(ids)) < len(ids):
        raise ValueError("a query was evaluated on two folds; each must count once")
    values = {key: np.concatenate([each.per_query[key] for each in evaluations]) for key in evaluations[0].per_query}
    facts = _facts([each.facts for each in evaluations], len(ids))
    match = [each.facts["answer_match"] for each in evaluations if "answer_match" in each.facts]
    if match:
        facts["answer_match"] = _joined_match(match, len(ids))
    rankings = [each.run for each in evaluations]
    run = None
    if all(rankings) and len({ranking["rows"].shape[1] for ranking in rankings}) == 1:
        run = {key: np.concatenate([ranking[key] for ranking in rankings]) for key in rankings[0]}
    return EvaluationResult(ids, values, run=run, facts=facts)


def averaged(evaluations: Sequence[EvaluationResult]) -> EvaluationResult:
    """Evaluations of the same queries as one, every value the mean of the query's values.

    Raises:
        ValueError: queries that differ, or come in another order.
    """
    first = evaluations[0]
    if len(evaluations) == 1:
        return first
    if any(each.query_ids != first.query_ids for each in evaluations):
        raise ValueError("seeds were measured on different queries; they cannot be averaged by query")
    values = {key: np.mean([each.per_query[key] for each in evaluations], axis=0) for key in first.per_query}
    facts = _facts([each.facts for each in evaluations], len(first.query_ids))
    match = [each.facts["answer_match"] for each in evaluations if "answer_match" in each.facts]
    if match:
        tops = [key for key in match[0] if key.startswith("top_")]
        means = {key: _mean([each[key] for each in match]) for key in tops}
        facts["answer_match"] = {key: means.get(key, value) for key, value in match[0].items() if key != "first_hit"}
    return EvaluationResult(first.query_ids, values, facts=facts)


def _facts(facts: Sequence[Mapping[str, Any]], queries: int) -> dict[str, Any]:
    """What several evaluations have in common, and what they took together; each one's own are in its run's record."""
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


def _joined_match(match: Sequence[Mapping[str, Any]], queries: int) -> dict[str, Any]:
    """The answer match over the queries of all folds."""
    answered = sum(each["queries"] for each in match)
    tops = [key for key in match[0] if key.startswith("top_")]
    weights = [each["queries"] for each in match]
    shares = {key: _mean([each[key] for each in match], weights) for key in tops}
    return {**shares, "queries": answered, "coverage": answered / queries}


def _mean(values: Sequence[float | None], weights: Sequence[float] | None = None) -> float | None:
    """The mean; None where a value that counts is missing."""
    weights = [1.0] * len(values) if weights is None else weights
    kept = [(value, weight) for value, weight in zip(values, weights, strict=True) if weight]
    if not kept or any(value is None for value, _ in kept):
        return None
    return sum(value * weight for value, weight in kept) / sum(weight for _, weight in kept)
