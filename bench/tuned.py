"""Results of the tuned runs of every method, for the research log: taken from a run's dataset.json, and shown.

    OMP_NUM_THREADS=1 python tier_1.py ... --log-dir logs/pystdlib     # the commands are in bench/experiments.py
    python -m bench.tuned pystdlib logs/pystdlib/*/dataset.json        # to bench/research/tuned/pystdlib.json

The command line does the runs, with test queries; this module computes no score.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.common import ROOT, commit, machine
from bench.experiments import TUNED, Tuned
from maw.config.methods import METHODS
from maw.storage.files import write_json

FOLDER = ROOT / "bench" / "research" / "tuned"
NDCG = "ndcg_cut_10"
ROUTED = "maw"
"""The method whose router is tested."""
PAIR = ("mean_difference", "relative", "ci_low", "ci_high", "p_value")

Content = Mapping[str, Any]


def kept(dataset: Content) -> dict[str, Any]:
    """The part of a dataset.json that the page needs."""
    methods = {each.name: dataset["results"][each.key] for each in METHODS if each.key in dataset["results"]}
    against = {
        key.removeprefix("maw_vs_"): {name: tests[NDCG][name] for name in PAIR}
        for key, tests in dataset["significance"].items()
        if key.startswith("maw_vs_")
    }
    family = dataset["confirmatory"]["comparisons"]
    for key, test in family.items():
        more = {name: test[name] for name in ("p_holm", "minimum_detectable_effect")}
        against[key.removeprefix("maw_vs_")] = {name: test[name] for name in PAIR} | more
    return {
        "measured_at": dataset["evaluated_at"],
        "commit": commit(),
        "machine": machine(),
        "sizes": {split: len_of(dataset, split) for split in ("train", "validation", "test")},
        "passages": methods["zero_shot"]["evaluation"]["documents"],
        "arms": {name: _method(record) for name, record in methods.items()},
        "maw_against": against,
        "routing": [_against_controls(run) for run in methods[ROUTED]["runs"]],
        "depths": [run["evaluation"]["routing"] for run in methods[ROUTED]["runs"]],
        "distance": [_best(run)["val_routing"] for run in methods[ROUTED]["runs"]],
    }


def len_of(dataset: Content, split: str) -> int:
    """Number of queries of a split."""
    return dataset["data"]["splits"][split]["queries"]


def _best(run: Content) -> Content:
    return next(each for each in run["training_history"] if each["epoch"] == run["best_epoch"])


def _against_controls(run: Content) -> Content:
    """The router against one depth for all, and against its depths shuffled between texts, on validation."""
    sides = _best(run)["val_routing"]
    keys = ("fixed", "against_fixed", "against_shuffled_p_value")
    return {
        side: {"routed": facts["greedy"], "shuffled": facts["shuffled"]} | {key: facts["learnt"][key] for key in keys}
        for side, facts in sides.items()
    }


def _method(record: Content) -> dict[str, Any]:
    tuning = record.get("tuning", [{}])[0]
    return {
        NDCG: record["metrics"][NDCG],
        "std_over_seeds": record.get("spread", {}).get("std"),
        "trained_parameters": record["trained_parameters"],
        "rates": tuning.get("chosen"),
        "trials": len(tuning.get("trials", [])),
        "at_edge": tuning.get("at_edge"),
        "validation": tuning and max(t[f"val_{NDCG}"] or 0 for t in tuning["trials"]),
        "steps": record.get("steps", 0),
        "seconds": record["runtime_seconds"],
    }


# ---------------------------------------------------------------------------------------------------------- the pages


METHOD_HEADER = (
    "method",
    "rates chosen",
    "validation, best trial",
    "test nDCG@10",
    "sd over seeds",
    "trained numbers",
)
TEST_HEADER = ("MAW against", "difference", "relative", "95% interval", "p", "Holm p", "detectable")
ROUTER_HEADER = (
    "MAW's router, by seed",
    "effective depths",
    "largest share",
    "distance of depths",
    "routed",
    "best fixed",
    "difference",
    "p",
    "shuffled",
    "p",
)


def tuned_page(tuned: Tuned, content: Content | None) -> str:
    """The page of one dataset, as Markdown; without a result it says so."""
    lines = [f"# Research log: {tuned.title}", ""]
    lines += [paragraph(tuned.lesson), ""] if tuned.lesson and content else []
    lines += [f"    {tuned.command}", ""]
    if content is None:
        return "\n".join([*lines, "Not run yet.", ""])
    sizes, methods = content["sizes"], content["arms"]
    seeds = range(len(content["routing"]))
    lines += [
        f"{sizes['train']:,} training, {sizes['validation']:,} validation and {sizes['test']:,} test queries; "
        f"{content['passages']:,} passages. {content['machine']['processor']}, commit {content['commit']}.",
        "",
        *table(METHOD_HEADER, [_method_row(name, record) for name, record in methods.items()]),
        "",
        *table(TEST_HEADER, [_test_row(name, test) for name, test in content["maw_against"].items()]),
        "",
        *table(ROUTER_HEADER, [_routed(content, seed, side) for side in ("query", "document") for seed in seeds]),
        "",
    ]
    return "\n".join(lines)


def _method_row(name: str, record: Content) -> tuple[str, ...]:
    rates = [
        f"{(key.removesuffix('learning_rate') or 'layers').rstrip('_')} {rate:g}"
        for key, rate in (record["rates"] or {}).items()
    ]
    return (
        name,
        ", ".join(rates),
        f"{record['validation']:.4f}" if record["validation"] else "",
        f"{record[NDCG]:.4f}",
        f"{record['std_over_seeds']:.4f}" if record["std_over_seeds"] is not None else "",
        f"{record['trained_parameters']:,}",
    )


def _test_row(name: str, test: Content) -> tuple[str, ...]:
    return (
        name,
        f"{test['mean_difference']:+z.4f}",
        f"{test['relative']:+z.1%}",
        f"{test['ci_low']:+z.4f} to {test['ci_high']:+z.4f}",
        f"{test['p_value']:.4f}",
        f"{test['p_holm']:.4f}" if "p_holm" in test else "exploratory",
        f"{test['minimum_detectable_effect']:.4f}" if test.get("minimum_detectable_effect") else "",
    )


def _routed(content: Content, index: int, side: str) -> tuple[str, ...]:
    test, use = content["routing"][index][side], content["depths"][index][side]
    against, distance = test["against_fixed"], content["distance"][index][side]["depth_distance"]
    p_shuffled = test["against_shuffled_p_value"]
    return (
        f"{side}, {index + 1}",
        ", ".join(f"{each:.1f}" for each in use["effective_depths"]),
        ", ".join(f"{each:.0%}" for each in use["top_share"]),
        "" if distance is None else f"{distance:.1g}",
        f"{test['routed']:.4f}",
        f"{test['fixed']:.4f}",
        f"{against['mean_difference']:+z.4f}",
        f"{against['p_value']:.3f}",
        "" if test["shuffled"] is None else f"{test['shuffled']:.4f}",
        "" if p_shuffled is None else f"{p_shuffled:.3f}",
    )


def paragraph(text: str) -> str:
    """A text, wrapped to the page's width."""
    return textwrap.fill(text, 119, break_long_words=False, break_on_hyphens=False)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *rows)]


def tuned_pages(folder: Path = FOLDER) -> Iterator[tuple[Tuned, str]]:
    """Each dataset and its page."""
    for tuned in TUNED:
        path = folder / f"{tuned.name}.json"
        yield tuned, tuned_page(tuned, json.loads(path.read_text(encoding="utf-8")) if path.exists() else None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=[each.name for each in TUNED])
    parser.add_argument("file", type=Path, help="the dataset.json of the run")
    options = parser.parse_args()
    write_json(FOLDER / f"{options.name}.json", kept(json.loads(options.file.read_text(encoding="utf-8"))))
