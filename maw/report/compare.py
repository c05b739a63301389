"""Paired tests between two runs on the same queries, judgements and corpus, with other models or settings.

    python tier_1.py compare logs/a logs/b                              # every method that both have
    python tier_1.py compare logs/a logs/b --method maw --against lora

A difference is the first run's value minus the second's, paired by query id over the queries that both tested. Runs
with another corpus, other judgements or another relevance level are refused: their values do not compare. Settings
that differ are listed, and a warning says where the runs left other passages out of the rankings (`self_passages`).

The tests are exploratory, since they were not planned before the runs. nDCG@10 over all datasets and methods is one
family, the other primary metrics are another; Holm's procedure corrects each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maw.config.methods import Method, find_method, methods_of
from maw.config.paths import found_again, identity
from maw.config.tier1_config import RESULT_NEUTRAL
from maw.errors import ConfigError, DataError
from maw.evaluation.confirmatory import LEVEL, METRIC, corrected, signs_for
from maw.evaluation.metrics import METRIC_LABELS, PRIMARY
from maw.evaluation.power import detectable, queries_needed
from maw.evaluation.significance import paired_tests
from maw.report.rebuild import find_folders, read_result
from maw.report.tables.trec import FOLDER, read_qrels
from maw.report.text.differences import COLUMNS, MORE, cells, more_cells
from maw.report.text.format import as_table, bullet, clean, fact, heading, wrapped
from maw.storage.files import read_json

_PERMUTATIONS = 10_000
_PLACES = ("log_dir", "cache_dir", "dry_run", "profile", "compress_logs", "run_files")
"""Settings that change no number."""


@dataclasses.dataclass(frozen=True)
class _Side:
    """One run on one dataset."""

    folder: Path
    result: Mapping[str, Any]

    @property
    def methods(self) -> list[str]:
        return [method.name for method in methods_of(self.result)]

    def values(self, method: Method) -> dict[str, Any]:
        """Per-query values of a method averaged over seeds: "query_ids" and "metrics"."""
        return read_json(self.folder / f"{method.short}_metrics.json")["per_query"]

    def qrels(self) -> dict[str, dict[str, int]] | None:
        """The judgements used; None if the run did not keep them."""
        path = self.folder / FOLDER / f"{self.result['dataset']}_qrels.trec"
        return read_qrels(path) if path.is_file() else None


def compare_runs(
    run_a: Path | str, run_b: Path | str, *, method: str | None = None, against: str | None = None
) -> dict[str, Any]:
    """Tests every method of the first run against the same method of the second run, or one pair of methods.

    Args:
        run_a, run_b: folders of two runs, as given to --log-dir.
        method: the method of the first run to test; if None, every method that both runs have.
        against: the method of the second run; if None, the same method.

    Returns:
        "runs"; "settings_that_differ", name -> both values; "warnings"; "datasets", name -> counts of common queries
        and of queries of one run only; "level", "correction", "permutations"; and "comparisons", a list with dataset,
        methods, metric, the fields of `maw.evaluation.significance.PairedTest`, "p_holm" and the effects as in a run.

    Raises:
        ConfigError: a run or a method does not exist, or `against` is given without `method`.
        DataError: the runs do not compare; one line with every reason.
    """
    if against and not method:
        text = "compare: --against names a method of the second run; name one of the first run with --method, too"
        raise ConfigError([text])
    first, second = _sides(run_a), _sides(run_b)
    shared = [name for name in first if name in second]
    if not shared:
        raise DataError(f"no dataset in common: {run_a} has {', '.join(first)}, {run_b} has {', '.join(second)}")
    pairs = {name: _pairs(first[name], second[name], method, against) for name in shared}
    if not any(pairs.values()):
        raise ConfigError(
            [f"compare: the runs have no such pair of methods: {_who_has(run_a, first)}; {_who_has(run_b, second)}"]
        )
    queries = {name: _common(first[name], second[name], pairs[name]) for name in shared if pairs[name]}
    reasons = [why for name in queries for why in _refusals(first[name], second[name], queries[name])]
    if reasons:
        raise DataError("the runs do not compare: " + "; ".join(reasons))
    size = sum(map(len, pairs.values()))
    signs = max(_PERMUTATIONS, signs_for(size * (len(PRIMARY) - 1)))
    rows = [
        row
        for name in queries
        for pair in pairs[name]
        for row in _tests(first[name], second[name], pair, queries[name], signs, size)
    ]
    headline = {number: row for number, row in enumerate(rows) if row["metric"] == METRIC}
    others = {number: row for number, row in enumerate(rows) if row["metric"] != METRIC}
    return {
        "runs": [str(run_a), str(run_b)],
        "settings_that_differ": _settings(first[shared[0]], second[shared[0]]),
        "warnings": [text for name in queries for text in _ranked_otherwise(first[name], second[name])],
        "datasets": {name: _counts(first[name], second[name], pairs[name], queries[name]) for name in queries},
        "level": LEVEL,
        "correction": "Holm's, with nDCG@10 as one family and all other metrics as another",
        "permutations": signs,
        "comparisons": [*corrected(headline).values(), *corrected(others).values()],
    }


def comparison_text(found: Mapping[str, Any]) -> str:
    """The result of `compare_runs` as text."""
    runs = [f"  {name:<7} {clean(path)}" for name, path in zip(("first", "second"), found["runs"], strict=True)]
    parts = ["\n".join([heading("Comparison of two runs", "="), *runs])]
    differ = [
        line
        for name, (a, b) in found["settings_that_differ"].items()
        for line in fact(name, f"{_shown(a)} in the first, {_shown(b)} in the second")
    ]
    parts.append("\n".join(["Settings that differ", *(differ or ["  none"])]))
    if found["warnings"]:
        parts.append("\n".join(["Warnings", *(line for text in found["warnings"] for line in bullet(text))]))
    counts = [
        line
        for name, each in found["datasets"].items()
        for line in fact(
            name,
            f"{each['queries']:,} common queries, {each['only_in_first']:,} only in the first, "
            f"{each['only_in_second']:,} only in the second",
        )
    ]
    parts.append("\n".join(["Datasets", *counts]))
    about = (
        f"First minus second. The correction is {found['correction']}; {found['permutations']:,} random signs. "
        "The tests are exploratory: they were not planned before the runs."
    )
    for title, rows in (
        (METRIC_LABELS[METRIC], [row for row in found["comparisons"] if row["metric"] == METRIC]),
        ("Other metrics", [row for row in found["comparisons"] if row["metric"] != METRIC]),
    ):
        parts.append(_table(title, rows))
    return "\n\n".join([*parts, "\n".join(wrapped("", about))])


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for row in rows:
        name = f"{clean(row['dataset'])}: {' vs '.join(dict.fromkeys(row['methods']))}"
        name += "" if row["metric"] == METRIC else f", {METRIC_LABELS[row['metric']]}"
        difference, _, *tests = cells(row, row["p_holm"])  # without the relative difference
        values = [f"{row['first']:.4f}", f"{row['second']:.4f}"]
        lines.append([name, *values, difference, *tests, *more_cells(row)])
    first, _, *columns = COLUMNS
    return as_table((title, "first", "second", first, *columns, *MORE), lines)


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _sides(run: Path | str) -> dict[str, _Side]:
    found = [_Side(folder, read_result(folder)) for folder in find_folders(run)]
    return {side.result["dataset"]: side for side in found}


def _pairs(a: _Side, b: _Side, method: str | None, against: str | None) -> list[tuple[Method, Method]]:
    wanted = [(name, name) for name in a.methods] if method is None else [(method, against or method)]
    return [(find_method(x), find_method(y)) for x, y in wanted if x in a.methods and y in b.methods]


def _who_has(run: Path | str, sides: Mapping[str, _Side]) -> str:
    names = dict.fromkeys(name for side in sides.values() for name in side.methods)
    return f"{run} has {', '.join(names)}"


def _common(a: _Side, b: _Side, pairs: Sequence[tuple[Method, Method]]) -> list[str]:
    """The queries that both runs tested, in the first run's order."""
    there = set(b.values(pairs[0][1])["query_ids"])
    return [query for query in a.values(pairs[0][0])["query_ids"] if query in there]


def _counts(a: _Side, b: _Side, pairs: Sequence[tuple[Method, Method]], common: Sequence[str]) -> dict[str, int]:
    sizes = [len(side.values(method)["query_ids"]) for side, method in zip((a, b), pairs[0], strict=True)]
    return {"queries": len(common), "only_in_first": sizes[0] - len(common), "only_in_second": sizes[1] - len(common)}


def _refusals(a: _Side, b: _Side, common: Sequence[str]) -> list[str]:
    """The reasons why two runs on one dataset do not compare; empty if they do."""
    name = a.result["dataset"]
    old = list(dict.fromkeys(str(side.folder) for side in (a, b) if "tested_on" not in side.result))
    if old:
        return [
            f"{name}: results without facts on the test queries: {' and '.join(old)}; run it again with this version"
        ]
    if not common:
        return [f"{name}: they have no test query in common; give both the same --seed and --test-samples"]
    of_a, of_b = a.result["tested_on"], b.result["tested_on"]
    found = []
    if of_a["corpus_sha256"] != of_b["corpus_sha256"]:
        found.append(
            f"{name}: they searched different corpora ({of_a['corpus_sha256'][:12]} and "
            f"{of_b['corpus_sha256'][:12]}); give both the same --corpus-size, --test-samples and --seed"
        )
    if of_a["relevance_level"] != of_b["relevance_level"]:
        levels = f"{of_a['relevance_level']} and {of_b['relevance_level']}"
        found.append(f"{name}: passages are relevant from different grades on, {levels}")
    return found + _judged_otherwise(a, b, common)


def _judged_otherwise(a: _Side, b: _Side, common: Sequence[str]) -> list[str]:
    name, hashes = a.result["dataset"], [side.result["tested_on"]["qrels_sha256"] for side in (a, b)]
    if hashes[0] == hashes[1]:
        return []
    qrels = [side.qrels() for side in (a, b)]
    if None in qrels:
        return [
            f"{name}: the judgements differ ({hashes[0][:12]} and {hashes[1][:12]}), and one run did not keep them"
        ]
    other = [query for query in common if qrels[0].get(query) != qrels[1].get(query)]
    if not other:
        return []
    return [f"{name}: {len(other):,} of {len(common):,} common queries are judged differently, such as {other[0]!r}"]


def _ranked_otherwise(a: _Side, b: _Side) -> list[str]:
    """A warning if one run left passages out by another rule; a run before there was a rule left out none."""
    tested = [side.result["tested_on"] for side in (a, b)]
    rules, counts = (
        [each.get("self_passages", "keep") for each in tested],
        [each.get("left_out", 0) for each in tested],
    )
    alike = counts[0] == counts[1] and (not counts[0] or tested[0]["qrels_sha256"] == tested[1]["qrels_sha256"])
    if rules[0] == rules[1] or alike:
        return []
    pairs = zip(rules, counts, strict=True)
    how = [f"{count:,} queries left out the passage of their id by {rule}" for rule, count in pairs]
    return [
        f"{a.result['dataset']}: the runs ranked other passages: in the first {how[0]}, in the second {how[1]}; give "
        "both the same --self-passages"
    ]


def _tests(
    a: _Side, b: _Side, pair: tuple[Method, Method], common: Sequence[str], signs: int, size: int
) -> list[dict[str, Any]]:
    values = [_columns(side.values(method), common) for side, method in zip((a, b), pair, strict=True)]
    seed = a.result["configuration"].get("seed", 0)
    rows = []
    for column, test in enumerate(paired_tests(*values, permutations=signs, seed=seed)):
        level = LEVEL / (size if PRIMARY[column] == METRIC else size * (len(PRIMARY) - 1))
        rows.append(
            {
                "dataset": a.result["dataset"],
                "methods": [method.name for method in pair],
                "metric": PRIMARY[column],
                "first": float(values[0][:, column].mean()),
                "second": float(values[1][:, column].mean()),
                **dataclasses.asdict(test),
                "level": level,
                "minimum_detectable_effect": detectable(test.std_of_differences, test.n, level=level),
                "queries_needed": queries_needed(test.effect_size, level=level),
            }
        )
    return rows


def _columns(values: Mapping[str, Any], common: Sequence[str]) -> np.ndarray:
    """(N, M): the primary metrics of the common queries."""
    place = {query: row for row, query in enumerate(values["query_ids"])}
    rows = [place[query] for query in common]
    return np.column_stack([np.asarray(values["metrics"][metric], np.float64)[rows] for metric in PRIMARY])


def _settings(a: _Side, b: _Side) -> dict[str, list[Any]]:
    """Differing settings that can change a result, and differing facts on the model."""
    one, other = (
        identity(found_again(each.result["configuration"], each.folder.parent))
        | {
            f"model_{key}": fact
            for key, fact in each.result.get("model", {}).items()
            if key in ("weights_sha256", "precision")
        }
        for each in (a, b)
    )
    names = [name for name in dict.fromkeys([*one, *other]) if name not in (*_PLACES, *RESULT_NEUTRAL)]
    return {name: [one.get(name), other.get(name)] for name in names if one.get(name) != other.get(name)}
