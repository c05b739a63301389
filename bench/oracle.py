"""Compares the oracle over depths with the oracle over as many models that differ in their seed alone.

    python -m bench.oracle            # half an hour on one core; to bench/research/oracle/pystdlib.json
    python -m bench.research --page   # the pages

The runs are in bench/experiments.py and are trained as those of `bench.research`; test queries are not read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bench.common import ROOT, commit, machine
from bench.experiments import ORACLE_LESSON, ORACLES, SEEDS_ALONE
from bench.trainings import Bench, configuration
from bench.tuned import paragraph, table
from maw.evaluation.routing.diagnostics import compare_with_seeds
from maw.storage.files import write_json

PATH = ROOT / "bench" / "research" / "oracle" / "pystdlib.json"
HEADER = ("eight of", "oracle", "mean", "oracle above the mean", "more than that of the seeds")
QUESTION = (
    "The best depth of each text, picked afterwards, is always better than the mean over depths, even if depths "
    "differ by chance. Is this gain larger than that of picking the best of eight models that have no routing and "
    "differ in their seed alone?"
)


def measure() -> dict[str, Any]:
    """Trains all models and compares them."""
    with Bench() as bench:
        seeds = [bench.fit(SEEDS_ALONE, seed)[0] for seed in SEEDS_ALONE.seeds]
        rows = []
        for run in ORACLES:
            config = configuration(run)
            (seed,) = run.seeds
            model, _ = bench.fit(run, seed)
            found = compare_with_seeds(model, seeds, bench.collection(config).validation, config, bench.device)
            rows.append({"label": run.label, "method": run.method, "settings": dict(run.settings), **found})
    return {"commit": commit(), "machine": machine(), "seeds": list(SEEDS_ALONE.seeds), "rows": rows}


def oracle_page(path: Path = PATH) -> str:
    """The oracle's page of the research log, as Markdown."""
    opening = f"# Research log: oracle\n\n{paragraph(QUESTION)}\n"
    if not path.exists():
        return f"{opening}\nNot run yet.\n"
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = [_seeds(content["rows"][0]), *(_depths(row) for row in content["rows"])]
    drawn = "Of 32 depths eight are drawn, a thousand times. Values are nDCG@10 on validation queries."
    where = f"{content['machine']['processor']}, commit {content['commit']}."
    parts = [opening, paragraph(ORACLE_LESSON), "", drawn, "", "    python -m bench.oracle", "", *table(HEADER, rows)]
    return "\n".join([*parts, "", where, ""])


def _seeds(row: Mapping[str, Any]) -> tuple[str, ...]:
    oracle, mean = row["oracle_null"], row["models_mean"]
    return SEEDS_ALONE.label, f"{oracle:.4f}", f"{mean:.4f}", f"{oracle - mean:+z.4f}", ""


def _depths(row: Mapping[str, Any]) -> tuple[str, ...]:
    oracle, mean = row["oracle_depths"], row["depths_mean"]
    return row["label"], f"{oracle:.4f}", f"{mean:.4f}", f"{oracle - mean:+z.4f}", f"{row['excess']:+z.4f}"


if __name__ == "__main__":
    torch.set_num_threads(1)  # a sum's order, and so its last digit, must not depend on the machine's cores
    write_json(PATH, measure())
