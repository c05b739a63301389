"""The tuned runs: the kept values, and their tables in the research log."""

from __future__ import annotations

import json

import pytest

from bench import tuned
from bench.experiments import TUNED
from maw.cli.flags import parse_command_line
from maw.config.methods import find_method

NDCG = "ndcg_cut_10"
SIDE = {
    "greedy": 0.5,
    "shuffled": 0.48,
    "learnt": {
        "fixed": 0.49,
        "against_fixed": {"mean_difference": 0.01, "p_value": 0.03},
        "against_shuffled_p_value": 0.001,
    },
}


def trained(value, **more):
    """A method's record in dataset.json, as far as it is read."""
    trials = [{f"val_{NDCG}": 0.4}, {f"val_{NDCG}": None}, {f"val_{NDCG}": 0.6}]
    search = {"chosen": {"learning_rate": 3e-3, "router_learning_rate": 1e-3}, "trials": trials, "at_edge": {}}
    return {
        "metrics": {NDCG: value},
        "spread": {"std": 0.002},
        "trained_parameters": 12_288,
        "tuning": [search],
        "steps": 63,
        "runtime_seconds": 10.0,
    } | more


@pytest.fixture
def dataset():
    use = {"query": {"effective_depths": [5.04], "top_share": [0.33]}}
    use["document"] = use["query"] | {"effective_depths": [4.26]}
    unshuffled = SIDE | {"shuffled": None, "learnt": SIDE["learnt"] | {"against_shuffled_p_value": None}}
    sides = {"query": SIDE, "document": unshuffled}
    run = {
        "evaluation": {"routing": use},
        "best_epoch": 2,
        "training_history": [
            {
                "epoch": epoch,
                "val_routing": {side: {"depth_distance": 0.01 * epoch} | facts for side, facts in sides.items()},
            }
            for epoch in (1, 2)
        ],
    }
    test = {"mean_difference": -0.002, "relative": -0.004, "ci_low": -0.01, "ci_high": 0.006, "p_value": 0.5}
    zero_shot = {
        "metrics": {NDCG: 0.4},
        "trained_parameters": 0,
        "runtime_seconds": 1.0,
        "evaluation": {"documents": 5601},
    }
    family = {"maw_vs_lora": test | {"p_holm": 1.0, "minimum_detectable_effect": 0.0151}}
    return {
        "evaluated_at": "2026-01-01T00:00:00",
        "data": {"splits": {name: {"queries": 1234} for name in ("train", "validation", "test")}},
        "results": {
            find_method("zero_shot").key: zero_shot,
            find_method("lora").key: trained(0.55),
            find_method("maw").key: trained(0.548, runs=[run, run]),
        },
        "significance": {
            "maw_vs_lora": {NDCG: test},
            "maw_vs_zeroshot": {NDCG: test | {"mean_difference": 0.1}},
            "lora_vs_zeroshot": {NDCG: test},
        },
        "confirmatory": {"comparisons": family},
    }


def test_what_is_kept_is_shown(dataset):
    content = tuned.kept(dataset)
    assert json.loads(json.dumps(content)) == content, "it is a file's content"
    page = tuned.tuned_page(TUNED[0], content)
    assert f"    {TUNED[0].command}" in page and "1,234 training" in page and "5,601 passages" in page
    assert "| lora | layers 0.003, router 0.001 | 0.6000 | 0.5500 | 0.0020 | 12,288 |" in page
    assert "| zero_shot |  |  | 0.4000 |  | 0 |" in page
    assert "| lora | -0.0020 | -0.4% | -0.0100 to +0.0060 | 0.5000 | 1.0000 | 0.0151 |" in page
    assert "| zeroshot | +0.1000 |" in page and "| exploratory |  |" in page
    assert "| query, 1 | 5.0 | 33% | 0.02 | 0.5000 | 0.4900 | +0.0100 | 0.030 | 0.4800 | 0.001 |" in page
    assert "| document, 2 | 4.3 | 33% | 0.02 | 0.5000 | 0.4900 | +0.0100 | 0.030 |  |  |" in page
    assert "lora_vs_zeroshot" not in page


def test_a_run_that_is_missing_is_said_to_be(tmp_path):
    pages = dict(tuned.tuned_pages(tmp_path))
    assert tuple(pages) == TUNED and all(
        "Not run yet." in page and each.command in page for each, page in pages.items()
    )


@pytest.mark.parametrize("tuned_run", TUNED, ids=lambda each: each.name)
def test_the_commands_are_ones_that_the_command_line_takes(tuned_run, tmp_path):
    """With folders in place of those that stand for the reader's own."""
    words = tuned_run.command.replace("\\\n", " ").split()
    assert words[:3] == ["OMP_NUM_THREADS=1", "python", "tier_1.py"]
    for name in ("nq", "msmarco"):
        (tmp_path / name / "qrels").mkdir(parents=True)
        for file in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
            (tmp_path / name / file).write_text("not read yet")
    words = [word.replace("path/to", str(tmp_path)) for word in words[3:]]
    config = parse_command_line(words)
    assert (config.tune, config.seeds, config.precision) == (3, 3, "bfloat16") and "maw" in config.methods
