"""Measures the reports of a run: time to write them, size of the page, and time until a browser has opened it.

    python -m bench.report              # some minutes
    python -m bench.report --quick      # 30 queries, to see that it works

The run has four datasets, three methods and 1,000 queries each, with all files that reports need: tests, intervals,
histories of ten epochs, examples, and the attention of one text over 32 depths in 12 heads of 16 tokens. Its values
are drawn as in `bench.significance`, so that they have the right size and shape; no result of this project comes from
them. One time is that of `python tier_1.py report` in its own process, with its start. The other is the time from the
request of the page to its load event in a headless Chromium, if one is installed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.browser import BROWSER, Browser
from bench.common import ROOT, claim, median, quick_parser, report, results_folder
from bench.significance import DATASETS, draw
from maw.config.methods import find_method, in_order
from maw.config.tier1_config import Tier1Config
from maw.data.collection import RetrievalData
from maw.data.from_dicts import as_retrieval_data
from maw.evaluation import confirmatory, exploratory, method_pairs
from maw.evaluation.metrics import METRICS, PRIMARY, EvaluationResult
from maw.evaluation.query_examples import ATTENTION, Examples
from maw.experiment.dataset_result import runtime_summary
from maw.report import layout
from maw.storage.files import write_json

NAMES = ("zero_shot", "lora", "maw")
QUERIES, PASSAGES, EPOCHS, ROUNDS = 1000, 2000, 10, 5
HEADS, DEPTHS, TOKENS = 12, 32, 16
SECONDS, BYTES, OPENS = "<= 20", "<= 3e6", "<= 1"


def write_run(folder: Path, queries: int) -> None:
    """Writes the files of a run of that size."""
    config = Tier1Config(datasets=list(DATASETS), methods=list(NAMES), log_dir=str(folder))
    signs = exploratory.permutations_for(config)
    for number, dataset in enumerate(DATASETS):
        random = np.random.default_rng(number)
        data = _data(queries)
        evaluations = {name: _evaluation(data, random) for name in NAMES}
        result = _result(dataset, evaluations, config, signs)
        examples = Examples(data, evaluations, {name: {42: each} for name, each in evaluations.items()})
        attention = {"maw": _attention(random)}
        extras = [examples.write, lambda place, content=attention: write_json(place / ATTENTION, content)]
        layout.write_dataset(folder, result, evaluations, f"20250106_14302{number}", extras)


def main() -> None:
    """Measures and reports."""
    quick = quick_parser(__doc__).parse_args().quick
    rounds = 1 if quick else ROUNDS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        write_run(folder, 30 if quick else QUERIES)
        seconds = [_rebuild_seconds(folder) for _ in range(rounds + 1)][1:]  # the first one warms the disk
        page = folder / "summary" / "report.html"
        opens = _open_seconds(page, rounds) if BROWSER else None
        size = page.stat().st_size
    rows = [[len(DATASETS), len(NAMES), 30 if quick else QUERIES, median(seconds), size, opens]]
    header = ["datasets", "methods", "queries", "s all reports", "bytes of report.html", "s until it is open"]
    claims = [
        claim("all reports of 4 datasets x 3 methods x 1,000 queries: seconds", "target", median(seconds), SECONDS),
        claim("report.html of the same: bytes", "target", float(size), BYTES),
        claim("report.html of the same, in a headless Chromium: seconds until it is open", "target", opens, OPENS),
    ]
    report("report", header, rows, results_folder(quick), claims)


def _rebuild_seconds(folder: Path) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "tier_1.py", "report", str(folder)], cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - started


def _open_seconds(page: Path, rounds: int) -> float:
    """The median; the browser is open already and has loaded the page once."""
    seconds = []
    with tempfile.TemporaryDirectory(
        ignore_cleanup_errors=True
    ) as profile:  # a process of the browser may still write
        browser = Browser(profile)
        try:
            for _ in range(rounds + 1):
                browser.open("about:blank")
                started = time.perf_counter()
                browser.open(page.as_uri())
                seconds.append(time.perf_counter() - started)
        finally:
            browser.close()
    return median(seconds[1:])


def _data(queries: int) -> RetrievalData:
    docs = {f"d{number}": f"passage {number}: {'the words of a passage ' * 25}" for number in range(PASSAGES)}
    asked = {f"q{number}": f"what is asked by the query of number {number}" for number in range(queries)}
    judged = {f"q{number}": {f"d{number % PASSAGES}": 1} for number in range(queries)}
    return as_retrieval_data({"queries": asked, "docs": docs, "qrels": judged})


def _evaluation(data: RetrievalData, random: np.random.Generator) -> EvaluationResult:
    count = len(data)
    values = {metric: draw((count,), random) for metric in METRICS}
    scores = -np.sort(-random.random((count, 10), np.float32), axis=1)
    return EvaluationResult(
        data.query_ids, values, {"rows": random.integers(PASSAGES, size=(count, 10)), "scores": scores}
    )


def _result(
    dataset: str, evaluations: Mapping[str, EvaluationResult], config: Tier1Config, signs: int
) -> dict[str, Any]:
    tests = method_pairs.significance(evaluations, permutations=signs)
    effects = confirmatory.smallest_effects(
        {name: None if name == "zero_shot" else each for name, each in evaluations.items()}, QUERIES, config
    )
    confirmed = confirmatory.confirm(tests, effects, config, signs)
    labelled = exploratory.label(tests, confirmed, config)
    return {
        "dataset": dataset,
        "venue": dataset,
        "evaluated_at": "2025-01-06T14:30:22",
        "configuration": config.to_dict(),
        "data": {"splits": {"test": {"queries": QUERIES, "judgements": QUERIES}}},
        "model": {"name": "a model", "layers": 12, "pooling": "mean"},
        "results": {method.key: _record(method.name, evaluations[method.name]) for method in in_order(NAMES)},
        "runtime_summary": runtime_summary(dict.fromkeys(NAMES, 60.0)),
        "improvements": method_pairs.improvements(evaluations),
        "intervals": method_pairs.intervals(evaluations),
        "confirmatory": confirmed,
        "exploratory": exploratory.about(labelled, config, signs),
        "significance": labelled,
        "environment": {"python": "3.11", "energy": {"processors": "measured by RAPL"}},
        "warnings": [],
    }


def _record(name: str, evaluation: EvaluationResult) -> dict[str, Any]:
    method = find_method(name)
    shares = {"depth_histogram": [[1 / DEPTHS] * DEPTHS], "effective_depths": [20.0], "top_share": [0.1]}
    shares |= {"policy_entropy": [2.5], "text_depth_mutual_information": [0.1], "depth_distance": 0.01}
    routing = {"val_routing": {"query": shares, "document": shares}} if method.retriever == "maw" else {}
    history = [
        {"epoch": epoch, "train_loss": 1 / epoch, f"val_{PRIMARY[0]}": 0.4 + epoch / 100, **routing}
        for epoch in range(1, EPOCHS + 1)
    ]
    took = {"training_seconds": 40.0, "evaluation_seconds": 20.0, "runtime_seconds": 60.0}
    energy = {"training_joules": 480.0, "evaluation_joules": 240.0, "measured_joules": 720.0}
    energy |= {"measured_devices": ["processors"]}
    return {
        "approach": method.approach,
        "description": method.description,
        "metrics": dict(evaluation),
        "trained_parameters": 1_000_000 if method.trained else 0,
        "evaluation": {"embeddings": "computed", "embedding_bytes": PASSAGES * 768 * 4},
        **({"training_history": history} if method.trained else {}),
        **took,
        "runs": [took | {"energy": energy} | ({"steps": 100, "optimizer_steps": 100} if method.trained else {})],
    }


def _attention(random: np.random.Generator) -> dict[str, Any]:
    """The record that `maw.evaluation.routing.attention_example` keeps for one method."""

    def rows(*shape: int) -> Any:
        return random.dirichlet(np.ones(shape[-1]), shape[:-1]).round(6).tolist()

    return {
        "query_id": "q0",
        "text": "what is asked by the query of number 0",
        "tokens": [f"token{number}" for number in range(TOKENS)],
        "cut": False,
        "layer": 12,
        "head": 1,
        "heads": HEADS,
        "depths": DEPTHS,
        "router": "grpo",
        "route_by": "sequence",
        "picks": [1.0] + [0.0] * (DEPTHS - 1),
        "distance": rows(HEADS, DEPTHS),
        "distance_pretrained": [0.01] * HEADS,
        "pretrained": rows(TOKENS, TOKENS),
        "used": rows(TOKENS, TOKENS),
        "farthest": DEPTHS - 1,
        "at_farthest": rows(TOKENS, TOKENS),
        "received": rows(DEPTHS, TOKENS),
    }


if __name__ == "__main__":
    main()
