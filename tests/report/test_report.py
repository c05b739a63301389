"""Files of a run: the user's layout, strict JSON, harmless CSV, complete files, text that fits a terminal."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest

from maw.config import methods
from maw.config.method import Origin
from maw.config.methods import METHOD_NAMES, METHODS, Lora, add_method, comparisons, find_method, in_order
from maw.config.tier1_config import Tier1Config
from maw.errors import MAWError
from maw.evaluation import confirmatory, exploratory, method_pairs
from maw.evaluation.metrics import METRICS, PRIMARY, compute_metrics
from maw.experiment.dataset_result import runtime_summary
from maw.report.layout import write_dataset, write_summary
from maw.report.significance_marks import NBSP, beaten, run_p_values, verdict
from maw.report.tables import comparisons as tables
from maw.report.tables.csv_file import write_csv
from maw.report.text import differences
from maw.report.text import summary as text
from maw.storage.files import write_json, write_text

STAMP = "20250106_143022"
HOSTILE = ["=1+1", "+cmd", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", '=HYPERLINK("http://x")', "-", "+", "-1.5x"]


def make_evaluations(names=("zero_shot", "lora", "maw"), queries=30):
    """Runs of rising quality over the same queries: the relevant passage climbs by a few ranks."""
    random = np.random.default_rng(0)
    query_ids = [f"q{each}" for each in range(queries)]
    docs = [f"d{each}" for each in range(40)]
    start = random.integers(8, 25, queries)
    qrels = {query: {"d39": 1} for query in query_ids}
    found = {}
    for step, name in enumerate(names):
        ranks = np.maximum(start - step * random.integers(0, 8, queries), 0)
        rankings = [[*docs[:rank], "d39", *docs[rank:39]] for rank in ranks]
        found[name] = compute_metrics(query_ids, rankings, np.tile(-np.arange(40.0), (queries, 1)), qrels)
    return found


def make_result(evaluations, dataset="pystdlib", **changes):
    seconds = {name: 45.23 * (1 + each) for each, name in enumerate(evaluations)}
    return {
        "dataset": dataset,
        "venue": "Python standard library",
        "evaluated_at": "2025-01-06T14:30:22",
        "configuration": {"seed": 42, "num_epochs": 3, "batch_size": 32},
        "data": {
            "source": "the running Python's library",
            "splits": {"train": {"queries": 2000}, "test": {"queries": 30, "qrels_hash": "f" * 64}},
            "corpus_rule": "every function " * 20,
            "warnings": ["a warning on data"],
        },
        "model": {"pooling": "mean", "similarity": "cosine", "query_prefix": "query: ", "precision": "float32"},
        "results": {
            method.key: {
                "approach": method.approach,
                "description": method.description,
                "metrics": dict(evaluations[method.name]),
                "training_history": [{"epoch": 1, "loss": 0.5}],
                "trained_parameters": 1234567 if method.trained else 0,
                "learning_rate": 1e-3 if method.trained else None,
                "runtime_seconds": seconds[method.name],
                "runtime_minutes": seconds[method.name] / 60,
            }
            for method in in_order(evaluations)
        },
        "runtime_summary": runtime_summary(seconds),
        "improvements": method_pairs.improvements(evaluations),
        "significance": method_pairs.significance(evaluations, permutations=200),
        "warnings": ["not zero-shot: the model card names such data"],
        **changes,
    }


@pytest.fixture(scope="module")
def evaluations():
    return make_evaluations()


@pytest.fixture(scope="module")
def result(evaluations):
    return make_result(evaluations)


def files_under(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# Layout


def test_the_users_tree(tmp_path, result, evaluations):
    folder = write_dataset(tmp_path, result, evaluations, STAMP)
    write_summary(tmp_path, [result])
    assert folder == tmp_path / f"pystdlib_{STAMP}"
    names = ("dataset", "zeroshot_metrics", "lora_metrics", "maw_metrics", "improvements")
    assert files_under(tmp_path) == {f"pystdlib_{STAMP}/{name}.json" for name in names} | {
        "summary/benchmark_summary.txt",
        "summary/all_results.json",
        "summary/metrics_comparison.csv",
        "summary/costs.csv",
        "summary/tables.tex",
        "summary/tables.md",
        "summary/report.html",
    }
    assert json.loads((folder / "dataset.json").read_text()) == result
    assert json.loads((tmp_path / "summary" / "all_results.json").read_text()) == {"pystdlib": result}
    assert json.loads((folder / "improvements.json").read_text())["improvements"] == result["improvements"]


def test_per_query_values_come_back_exactly(tmp_path, result, evaluations):
    folder = write_dataset(tmp_path, result, evaluations, STAMP)
    for method in in_order(evaluations):
        content = json.loads((folder / f"{method.short}_metrics.json").read_text())
        evaluation = evaluations[method.name]
        assert content["metrics"] == dict(evaluation)
        assert content["per_query"]["query_ids"] == evaluation.query_ids
        assert list(content["per_query"]["metrics"]) == list(METRICS)
        for key, values in content["per_query"]["metrics"].items():
            np.testing.assert_array_equal(values, evaluation.per_query[key])


def test_a_folder_is_never_shared(tmp_path, result, evaluations):
    folders = [write_dataset(tmp_path, result, evaluations, STAMP).name for _ in range(3)]
    assert folders == [f"pystdlib_{STAMP}", f"pystdlib_{STAMP}_2", f"pystdlib_{STAMP}_3"]


def test_only_the_methods_that_ran(tmp_path, evaluations):
    some = {name: evaluations[name] for name in ("zero_shot", "maw")}
    result = make_result(some)
    folder = write_dataset(tmp_path, result, some, STAMP)
    write_summary(tmp_path, [result])
    assert not (folder / "lora_metrics.json").exists()
    assert set(result["significance"]) == {"maw_vs_zeroshot"}
    assert "LoRA Fine-tuned" not in (tmp_path / "summary" / "benchmark_summary.txt").read_text()


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a\0b", "x" * 300, "a\n", "/etc", "naïve", "-rf"])
def test_names_that_are_not_safe_for_a_folder(tmp_path, result, evaluations, name):
    with pytest.raises(MAWError, match="cannot name a folder"):
        write_dataset(tmp_path / "logs", {**result, "dataset": name}, evaluations, STAMP)
    with pytest.raises(MAWError, match="cannot name a folder"):
        write_dataset(tmp_path / "logs", result, evaluations, name)
    assert not (tmp_path / "logs").exists()


def test_log_dir_that_is_a_file(tmp_path, result, evaluations):
    (tmp_path / "logs").write_text("")
    with pytest.raises(MAWError, match="is a file"):
        write_dataset(tmp_path / "logs", result, evaluations, STAMP)
    with pytest.raises(MAWError, match=r"cannot write .*logs"):
        write_summary(tmp_path / "logs", [result])


def test_the_confirmatory_family_has_a_file_of_its_own(tmp_path, result, evaluations):
    held = {name: None if name == "zero_shot" else each for name, each in evaluations.items()}
    config = Tier1Config(datasets=["pystdlib", "msmarco"])
    effects = confirmatory.smallest_effects(held, 30, config)
    tests = result["significance"]
    section = confirmatory.confirm(tests, effects, config, 200)
    labelled = exploratory.label(tests, section, config)
    more = {"significance": labelled, "exploratory": exploratory.about(labelled, config, 200)}
    results = [{**result, **more, "dataset": name, "confirmatory": section} for name in config.datasets]
    family, explored = confirmatory.over_run(results), exploratory.over_run(results)
    folder = write_summary(tmp_path, results, family, explored)
    assert json.loads((folder / "confirmatory.json").read_text()) == family
    assert json.loads((folder / "exploratory.json").read_text()) == explored
    with (folder / "metrics_comparison.csv").open(newline="") as lines:
        rows = {
            (row["dataset"], row["metric"], row["method"], row["compared_with"]): row for row in csv.DictReader(lines)
        }
    for kept, about in ((family, "confirmatory"), (explored, "exploratory")):
        for row in kept["comparisons"]:
            new, old = row["comparison"].split("_vs_")
            names = [new, {"zeroshot": "zero_shot"}.get(old, old)]
            cells = rows[row["dataset"], row.get("metric", "ndcg_cut_10"), *names]
            assert cells["test_family"] == about and float(cells["p_holm_run"]) == row["p_holm"]
            assert float(cells["p_value"]) == row["p_value"]
            for key in ("effect_size", "t_p_value", "queries_needed", "minimum_detectable_effect"):
                assert cells[key] == ("" if row[key] is None else str(row[key]))
    summary = (folder / "benchmark_summary.txt").read_text()
    words, of_run = " ".join(summary.split()), "Holm's correction over all 2 tests of the run."
    first = words.index(of_run)
    assert words.count(of_run) == 3 and words.index("Confirmatory tests: ") < first < words.index(
        "Exploratory tests: "
    )
    assert "msmarco: MAW vs LoRA" in summary
    claims = [line.replace(NBSP, " ") for line in verdict(results, run_p_values([family])).lines()]
    assert all(line in words for line in claims)
    (claim,) = [line for line in claims if line.startswith("msmarco: MAW ")]
    assert re.search(r": [+-]0\.\d{4} \[[+-].*\], p ", claim) and claims[-1].endswith("p is corrected.")
    assert " ".join(text.claim(results[:1]).split()) in " ".join(text.benchmark_summary(results[:1]).split())
    assert "Holm's correction over all 58 tests of the run." in words
    assert "of this dataset" not in words
    alone = " ".join(text.dataset_summary(results[0]).split())
    assert "Holm's correction over 1 test of this dataset. summary/confirmatory.json has it over all 2 tests" in alone
    assert "Holm's correction over all 29 tests of this dataset. summary/exploratory.json has it over all 58" in alone
    assert max(map(len, summary.splitlines())) <= 100
    write_summary(tmp_path, results[:1])
    assert not (folder / "confirmatory.json").exists(), "an earlier run's is of other results"
    assert not (folder / "exploratory.json").exists()
    assert "correction over all 2 tests" not in " ".join((folder / "benchmark_summary.txt").read_text().split())


def test_one_run_has_one_p_for_each_test(tmp_path, evaluations):
    """Twice p = 0.03: significant in each dataset and not over the run, which every part of the summary goes by."""
    few = {name: evaluations[name] for name in ("lora", "maw")}
    config = Tier1Config(datasets=["pystdlib", "msmarco"], methods=list(few))
    result = make_result(few)
    test = result["significance"]["maw_vs_lora"]["ndcg_cut_10"] | {"p_value": 0.0306, "mean_difference": 0.02}
    tests = {"maw_vs_lora": {"ndcg_cut_10": test, "map": test}}
    section = confirmatory.confirm(tests, {}, config, 200)
    labelled = exploratory.label(tests, section, config)
    more = {"significance": labelled, "exploratory": exploratory.about(labelled, config, 200), "confirmatory": section}
    results = [{**result, **more, "dataset": name} for name in config.datasets]
    families = confirmatory.over_run(results), exploratory.over_run(results)
    folder = write_summary(tmp_path, results, *families)

    def values(summary):
        return [line for line in summary.splitlines() if line.startswith(("nDCG@10  ", "MAP "))]

    for whole in ((folder / "benchmark_summary.txt").read_text(), text.answers(results, families, verbose=True)):
        assert whole.count("0.0612") >= 2
        assert not [line for line in values(whole) if line.endswith(" a")]
        assert "  0.0306  0.0306" not in whole
    alone = text.dataset_summary(results[0])
    assert [line for line in values(alone) if line.endswith(" a")]
    assert "Here p is corrected over the tests of this dataset; in summary/ over those of the run." in " ".join(
        alone.split()
    )
    assert "in summary/" in " ".join(text.dataset_screen(results[0]).split())
    assert "in summary/" not in text.answers(results, families)
    assert "0.0612" not in alone and "of this dataset" in alone


def claimed(*differences, datasets=1, p=0.2, detectable=0.016, queries=1000):
    """Results of a run in which MAW differs by that much from each control, all with the same corrected p."""
    tests = {
        f"maw_vs_{short}": {
            "mean_difference": each,
            "ci_low": each - 0.01,
            "ci_high": each + 0.01,
            "p_value": p,
            "p_holm": p,
            "minimum_detectable_effect": detectable,
            "queries": queries,
            "power": 0.8,
        }
        for short, each in zip(("lora", "lora_matched", "full"), differences, strict=False)
    }
    significance = {key: {"ndcg_cut_10": test} for key, test in tests.items()}
    section = {"confirmatory": {"comparisons": tests}, "significance": significance}
    return [{"dataset": f"d{number}"} | section for number in range(datasets)]


def said(results, over_run=None):
    return [line.replace(NBSP, " ") for line in verdict(results, over_run or {}).lines()]


POWER = "With 1,000 test queries, this run detects a difference of 0.0160 nDCG@10 in 80% of cases."
CAUTION = "A difference that is not significant does not show that two methods are equal."
BRACKETS = "Brackets hold 95% intervals; p is corrected."


def test_the_verdict_has_effect_interval_p_and_what_it_can_detect():
    assert said(claimed(-0.0007, p=0.9)) == [
        f"{POWER} MAW and LoRA do not differ significantly: nDCG@10 -0.0007 (95% interval -0.0107 to +0.0093, "
        "p = 0.9000). This does not show that they are equal."
    ]
    assert said(claimed(0.02, p=0.01)) == [
        f"{POWER} MAW is significantly better than LoRA: nDCG@10 +0.0200 (95% interval +0.0100 to +0.0300, "
        "p = 0.0100)."
    ], "a significant difference needs no caution"
    assert said(claimed(0.02, -0.02, p=0.00001)) == [
        POWER,
        "In nDCG@10, MAW is significantly better than its control in 1 of 2 planned comparisons, significantly worse "
        "in 1, and not significantly different in 0.",
        "MAW is significantly better than LoRA: +0.0200 [+0.0100, +0.0300], p <0.0001.",
        "MAW is significantly worse than LoRA matched: -0.0200 [-0.0300, -0.0100], p <0.0001.",
        BRACKETS,
    ]
    by_run = {("d0", "maw_vs_lora", "ndcg_cut_10"): 0.03}
    *_, first, second, last = said(claimed(0.02, datasets=2), by_run)
    assert first.startswith("d0: MAW is significantly better than LoRA: ") and last == f"{CAUTION} {BRACKETS}"
    assert second.startswith("d1: MAW and LoRA do not differ significantly: ")


def test_what_a_run_can_detect_is_said_as_far_as_it_is_known():
    (one,), (other,) = claimed(0.01), claimed(0.01, detectable=0.02, queries=500)
    assert said([one, other | {"dataset": "d1"}])[0] == (
        "With 500 to 1,000 test queries, this run detects differences of 0.0160 to 0.0200 nDCG@10 in 80% of cases."
    )
    (unknown,) = claimed(0.01, detectable=None)
    assert "detects" not in " ".join(said([unknown]))
    assert said([one, unknown | {"dataset": "d1"}])[0] == f"{POWER[:-1]} (known for 1 of 2 comparisons)."


@pytest.mark.parametrize("p", [0.2, 0.00001])
def test_no_line_of_the_verdict_ends_inside_of_a_p_value(p):
    for length in range(1, 80):
        results = [{**claimed(0.02, p=p)[0], "dataset": name} for name in ("d" * length, "e")]
        assert "p = " in text.claim(results) or "p <" in text.claim(results)
        assert not any(line.endswith((" p", "=")) for line in text.claim(results).splitlines())


def test_a_difference_or_p_that_is_no_number_is_not_called_significant():
    for difference, p in ((0.02, math.nan), (math.nan, 0.01)):
        assert "MAW and LoRA do not differ significantly" in said(claimed(difference, p=p))[0]
    assert "MAW is significantly better than LoRA" in said(claimed(0.02, p=0.01))[0]


def test_one_comparison_of_a_run_with_several_is_told_to_be_corrected():
    (result,) = claimed(0.02, p=0.01)
    result["confirmatory"]["run_family_size"] = 2
    assert "corrected p = 0.0100" in said([result])[0]


def test_the_verdict_on_many_comparisons_counts_them_and_shows_the_significant_ones():
    by_run = {("d0", "maw_vs_lora", "ndcg_cut_10"): 0.03, ("d1", "maw_vs_full", "ndcg_cut_10"): 0.04}
    power, counts, *others, caution = said(claimed(0.02, 0.01, -0.01, datasets=2), by_run)
    assert (power, caution) == (POWER, f"{CAUTION} {BRACKETS}")
    assert counts == (
        "In nDCG@10, MAW is significantly better than its control in 1 of 6 planned comparisons, significantly worse "
        "in 1, and not significantly different in 4."
    )
    assert [line.split(":")[1] for line in others] == [
        " MAW is significantly better than LoRA", " MAW is significantly worse than Whole layers"
    ]  # fmt: skip
    assert said(claimed(0.02, 0.01, -0.01, datasets=2)) == [
        POWER,
        "In nDCG@10, MAW does not differ significantly from its controls in any of 6 planned comparisons.",
        CAUTION,
    ]


def test_without_a_planned_comparison_the_two_best_methods_are_compared(evaluations):
    result = make_result({name: evaluations[name] for name in ("zero_shot", "lora")})
    first, second, *_ = said([result])
    assert first.startswith("This run has no planned comparison, which needs MAW and a control such as LoRA.")
    assert second.startswith("LoRA ") and "Zero-shot" in second and ": nDCG@10 +" in second
    assert said([make_result({"lora": evaluations["lora"]})]) == ["This run has no test between methods."]


def end_of_a_run(evaluations, **changes):
    """A dataset's result, and what the console shows at its end."""
    config = Tier1Config(datasets=["pystdlib"], methods=list(evaluations))
    held = {name: None if name == "zero_shot" else each for name, each in evaluations.items()}
    result = make_result(evaluations, **changes)
    effects = confirmatory.smallest_effects(held, 30, config)
    result["confirmatory"] = confirmatory.confirm(result["significance"], effects, config, 200)
    return result, f"{text.dataset_screen(result)}\n\nWritten to logs\n{text.conclusion([result], [], 'logs/tier1')}"


def test_the_end_of_a_run_fits_a_screen(evaluations):
    """Three methods on one dataset, with warnings, as the console shows them."""
    result, shown = end_of_a_run(evaluations)
    assert len(shown.splitlines()) <= 40 and max(map(len, shown.splitlines())) <= 100
    for part in ("Metric ", "Runtime Summary:", "Warnings", "detects a difference of ", "MAW is significantly"):
        assert part in " ".join(shown.split()), part
    for part in ("t-test", "Exploratory", "Learning rate"):
        assert part not in shown and part in text.dataset_summary(result), part
    *_, page, last = shown.splitlines()
    assert page == "Report of the run:  logs/tier1/summary/report.html"
    assert last == "Summary of the run: logs/tier1/summary/benchmark_summary.txt"


def test_ten_methods_fit_a_screen_too():
    """Each has one line in the table, where only nDCG@10 has letters; runtimes are in order down two columns."""
    evaluations = make_evaluations([method.name for method in METHODS])
    seconds = runtime_summary({method.name: 100.0 + number for number, method in enumerate(METHODS)})
    result, shown = end_of_a_run(evaluations, runtime_summary=seconds)
    assert len(METHODS) == 10 and len(shown.splitlines()) <= 46 and max(map(len, shown.splitlines())) <= 100
    _, table, runtimes, *_ = shown.split("\n\n")
    header, _, *rows = table.splitlines()
    assert header.split()[3:8] == ["R@100", "MRR@10", "P@10", "F1@10", "R-Prec"]
    marks = beaten(result, METHODS)
    for method, row in zip(METHODS, rows, strict=False):
        values = [f"{evaluations[method.name][key]:.4f}" for key in PRIMARY]
        letters = marks.get((method.short, PRIMARY[0]), "")
        assert row.partition(") ")[2].removeprefix(method.label).split() == [
            values[0],
            *[letters] * bool(letters),
            *values[1:],
        ]
    assert "A letter after nDCG@10" in table and any(key == PRIMARY[0] for _, key in marks)
    found = [re.findall(r"([^: ][^:]+): +(\d+)\.\d\ds \(\S+ min\)", line) for line in runtimes.splitlines()[1:]]
    down = [line[column] for column in (0, 1) for line in found if len(line) > column]
    assert [name for name, _ in down] == [*(method.label for method in METHODS), "Total (dataset)"]
    assert [int(amount) for _, amount in down[:-1]] == list(range(100, 110))
    result["results"][METHODS[0].key]["evaluation"] = {"embeddings": "from cache"}
    assert "   Embeddings from cache: Zero-shot\n" in text.dataset_screen(result)


def test_several_datasets_end_with_a_table_of_all(evaluations):
    results = [make_result(evaluations, dataset=name) for name in ("one", "two")]
    shown = text.conclusion(results, [], "logs")
    row = next(line for line in shown.splitlines() if line.startswith("two"))
    means = [evaluations[name]["ndcg_cut_10"] for name in ("zero_shot", "lora", "maw")]
    assert row.split()[1:] == [f"{mean:.4f}" for mean in means]
    many = make_evaluations([method.name for method in METHODS])
    wide = text.conclusion([make_result(many, dataset=name) for name in ("one", "two")], [], "logs")
    assert wide.split()[:3] == ["nDCG@10", "one", "two"] and max(map(len, wide.splitlines())) <= 100


def test_only_some_pairs_are_shown_and_all_are_in_the_file(evaluations):
    def shown(names):
        result = make_result({name: evaluations[name] for name in names})
        lines = differences.dataset_differences(result).splitlines()
        names = [line.split("  ")[0] for line in lines if " vs " in line]  # columns that do not fit follow below
        return list(dict.fromkeys(names)), set(result["significance"])

    assert shown(("lora", "maw"))[0] == ["MAW vs LoRA"]
    names, all_pairs = shown(("zero_shot", "lora", "maw"))
    assert len(names) == len(all_pairs) == 3
    assert shown(("zero_shot", "lora"))[0] == ["LoRA vs Zero-shot"]


# Numbers


def test_improvements_by_hand(evaluations):
    found = method_pairs.improvements(evaluations)
    assert list(found)[:4] == [
        "lora_vs_zeroshot_ndcg_cut_10",
        "maw_vs_lora_ndcg_cut_10",
        "maw_vs_zeroshot_ndcg_cut_10",
        "lora_vs_zeroshot_map",
    ]
    assert len(found) == 3 * 36
    new, old = evaluations["maw"]["map"], evaluations["lora"]["map"]
    assert found["maw_vs_lora_map"] == (new - old) / old
    assert evaluations["zero_shot"]["success_1"] == 0 and found["maw_vs_zeroshot_success_1"] is None


def test_significance_covers_every_pair_and_primary_metric(result):
    assert list(result["significance"]) == ["lora_vs_zeroshot", "maw_vs_lora", "maw_vs_zeroshot"]
    for tests in result["significance"].values():
        assert list(tests) == list(PRIMARY)
    test = result["significance"]["maw_vs_zeroshot"]["ndcg_cut_10"]
    metrics = [result["results"][find_method(each).key]["metrics"]["ndcg_cut_10"] for each in ("maw", "zero_shot")]
    assert test["mean_difference"] == pytest.approx(metrics[0] - metrics[1], abs=1e-12)
    assert test["ci_low"] < test["mean_difference"] < test["ci_high"]


def test_different_queries_are_not_paired(evaluations):
    other = make_evaluations(queries=29)
    with pytest.raises(ValueError, match="different queries"):
        method_pairs.significance({"zero_shot": evaluations["zero_shot"], "lora": other["lora"]})


def test_intervals_of_means(evaluations):
    found = method_pairs.intervals(evaluations)
    assert list(found) == ["zeroshot", "lora", "maw"] and list(found["maw"]) == list(PRIMARY)
    for name, short in (("zero_shot", "zeroshot"), ("maw", "maw")):
        low, high = found[short]["ndcg_cut_10"]
        values = evaluations[name].per_query["ndcg_cut_10"]
        half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
        assert (low, high) == (
            pytest.approx(values.mean() - half, abs=0.01),
            pytest.approx(values.mean() + half, abs=0.01),
        )


def test_runtime_summary():
    assert runtime_summary({"zero_shot": 45.23, "lora": 152.67, "maw": 185.32}) == {
        "zeroshot_seconds": 45.23,
        "lora_seconds": 152.67,
        "maw_seconds": 185.32,
        "total_dataset_seconds": 383.22,
        "total_dataset_minutes": 6.39,
    }


def test_comparison_table(tmp_path, result):
    path = write_summary(tmp_path, [result]) / "metrics_comparison.csv"
    with path.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert list(rows[0]) == list(tables.CSV_HEADER)
    assert len(rows) == 36 * (1 + 2 + 3)
    values = {(row["method"], row["metric"]): float(row["value"]) for row in rows if not row["compared_with"]}
    for method in (each for each in METHODS if each.by_default):
        for key in METRICS:
            assert values[method.name, key] == result["results"][method.key]["metrics"][key]
    row = next(row for row in rows if (row["method"], row["compared_with"], row["metric"]) == ("maw", "lora", "map"))
    test = result["significance"]["maw_vs_lora"]["map"]
    assert float(row["p_value"]) == test["p_value"] and float(row["ci_low"]) == test["ci_low"]
    assert float(row["relative"]) == result["improvements"]["maw_vs_lora_map"]
    assert (row["label"], row["family"]) == ("MAP", "other")


# Methods


def test_methods_are_told_apart():
    for field in ("name", "short", "key", "label"):
        assert len({getattr(method, field) for method in METHODS}) == len(METHODS)
    assert find_method("maw").key == "3_maw_fine_tuned_retriever"
    assert [method.name for method in in_order(["maw", "zero_shot"])] == ["zero_shot", "maw"]
    assert [f"{new.short}-{old.short}" for new, old in comparisons(["maw", "zero_shot", "lora"])] == [
        "lora-zeroshot",
        "maw-lora",
        "maw-zeroshot",
    ]


def test_another_method_needs_no_other_change(tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "_KNOWN", dict(methods._KNOWN))
    for each in range(4, 10):
        own = type("Arm", (Lora,), {"name": f"arm{each}", "label": f"A rather long arm {each}"})()
        own.origin = Origin(f"/mine.py:Arm{each}", "mine.py:1", "/mine.py", "0" * 16)
        add_method(own)
    names = [*METHOD_NAMES, *(f"arm{each}" for each in range(4, 10))]
    evaluations = make_evaluations(names)
    result = make_result(evaluations)
    folder = write_dataset(tmp_path, result, evaluations, STAMP)
    write_summary(tmp_path, [result])
    assert (folder / "arm9_metrics.json").exists()
    assert "arm9_vs_maw_ndcg_cut_10" in result["improvements"]
    summary = (tmp_path / "summary" / "benchmark_summary.txt").read_text()
    assert "(p) A rather long arm 9" in summary
    assert max(map(len, summary.splitlines())) <= 100


def test_many_methods_stand_below_each_other(result):
    """All ten have a row for each metric's column, few ones a column for each metric's row."""
    evaluations = make_evaluations([method.name for method in METHODS])
    summary = text.dataset_summary(make_result(evaluations))
    lines = summary[summary.index("Method ") :].splitlines()
    assert lines[0].split()[:2] == ["Method", "nDCG@10"]
    for letter, method, line in zip("abcdefghij", METHODS, lines[2:]):
        name, value = line[: len(lines[0].split("nDCG@10")[0])], evaluations[method.name]["ndcg_cut_10"]
        assert name.strip().startswith(f"({letter}) {method.label}") and f"{value:.4f}" in line
    table = summary[summary.index("Method ") : summary.index("Approach")]
    for label in ("MAP", "Recall@100", "bpref", "nDCG"):
        assert sum(label in line.split() for line in table.splitlines()) == 1
    assert max(map(len, summary.splitlines())) <= 100
    few = text.dataset_summary(result)
    assert "Metric" in few and "Method " not in few


# Text


def test_summary_says_what_a_reader_needs(result):
    summary = text.benchmark_summary([result])
    for expected in (
        "Python standard library (pystdlib)",
        "train: queries 2,000",
        "test: queries 30, qrels hash ffffffffffff",
        'query prefix           "query: "',
        "MAW vs LoRA",
        "1,234,567",
        "Runtime Summary:",
        "   Zero-shot:       45.23s (0.75 min)",
        "   Total (dataset): 271.38s (4.52 min)",
        "not zero-shot: the model card names such data",
        "a warning on data",
        "Their p is not corrected.",
    ):
        assert expected in summary
    assert "f" * 13 not in summary
    assert max(map(len, summary.splitlines())) <= 100
    assert summary.isascii()


def test_letters_name_the_methods_beaten(result):
    def with_test(p, difference):
        test = {**result["significance"]["maw_vs_zeroshot"]["map"], "p_value": p, "mean_difference": difference}
        only = {"maw_vs_zeroshot": {"map": test}}
        table = text.dataset_summary({**result, "significance": only})
        return next(line for line in table.splitlines() if line.startswith("MAP "))

    assert with_test(0.01, 0.1).endswith(" a")
    assert with_test(0.05, 0.1)[-1].isdigit()
    worse = with_test(0.01, -0.1)
    assert worse.split()[2] == "c" and worse[-1].isdigit()


def test_answer_match_has_a_table_of_its_own(result):
    assert "Answer match" not in text.dataset_summary(result)
    match = {"top_1": 0.5, "top_5": 0.625, "top_20": 0.75, "top_100": None, "queries": 16, "coverage": 0.53125}
    match["first_hit"] = [1, 0, None]
    records = {
        key: record | {"evaluation": {"answer_match": match}} if key != "2_lora_fine_tuned_retriever" else record
        for key, record in result["results"].items()
    }
    summary = text.dataset_summary({**result, "results": records})
    lines = summary[summary.index("Answer match (not among the 36)") :].splitlines()
    assert lines[0].split()[-3:] == ["Zero-shot", "MAW", "Fine-tuned"]
    assert [line.split() for line in lines[2:6]] == [
        ["Top-1", "0.5000", "0.5000"],
        ["Top-5", "0.6250", "0.6250"],
        ["Top-20", "0.7500", "0.7500"],
        ["Top-100", "-", "-"],
    ]
    assert lines[6] == "over the 16 queries with answers (53.1% of all)"
    assert "first hit" not in summary and "first_hit" not in summary


@pytest.mark.parametrize("fact", ["not available: BEIR gives no answers", {"test_queries": 30, "with_answers": 0}])
def test_a_collection_without_answers_says_so_once(result, fact):
    summary = text.dataset_summary({**result, "data": {**result["data"], "answers": fact}})
    assert summary.count("Answer match (not among the 36): not available") == 1
    assert summary.count("not available") == 1


def test_after_each_method(result):
    record = result["results"]["2_lora_fine_tuned_retriever"]
    summary = text.method_summary(record)
    assert summary.startswith("LoRA Fine-tuned results (primary metrics):")
    assert f"nDCG@10 {record['metrics']['ndcg_cut_10']:.4f}" in summary
    assert "Runtime: 90.46 seconds (1.51 minutes)" in summary
    assert text.method_heading(METHODS[1], "NQ").startswith("\nNQ, approach 2: LoRA Fine-tuned\n")
    assert text.method_heading(find_method("maw"), "NQ").startswith("\nNQ, approach 3: MAW Fine-tuned\n")
    assert text.method_heading(find_method("full"), "NQ").startswith("\nNQ, control: Whole Layers\n")


def test_a_runtime_without_encoding_is_said_to_be_one(result):
    key = "1_normal_retriever"
    for embeddings, note in (("from cache", "  (embeddings from cache)"), ("computed", "")):
        record = {**result["results"][key], "evaluation": {"embeddings": embeddings}}
        summary = text.dataset_summary({**result, "results": {**result["results"], key: record}})
        (line,) = (line for line in summary.splitlines() if line.startswith("   Zero-shot: "))
        assert line == f"   Zero-shot:       45.23s (0.75 min){note}"
        assert ("embeddings from cache" in summary) is bool(note)
        assert text.method_summary(record).endswith(f"Runtime: 45.23 seconds (0.75 minutes){note}")


def test_text_that_would_drive_a_terminal_is_only_shown(result):
    hostile = "\x1b[2Jbad\u202ename\nsecond line\0"
    summary = text.benchmark_summary(
        [
            {
                **result,
                "venue": hostile,
                "warnings": [hostile],
                "data": {hostile: hostile, "nested": {hostile: {"a": hostile}}},
            }
        ]
    )
    assert "\x1b" not in summary and "\u202e" not in summary and "\0" not in summary
    assert "?[2Jbad?name second line?" in summary
    assert max(map(len, summary.splitlines())) <= 100


def test_a_relative_difference_to_nothing_is_left_out(result):
    test = {**result["significance"]["maw_vs_lora"]["ndcg_cut_10"], "relative": None}
    summary = text.dataset_summary({**result, "significance": {"maw_vs_lora": {"ndcg_cut_10": test}}})
    row = next(line for line in summary.splitlines() if line.startswith("MAW vs LoRA"))
    assert row.split()[4] == "-"


# Files


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -np.inf, np.float32("nan"), np.array([1.0, np.nan])])
def test_json_names_the_number_that_is_not_finite(tmp_path, value):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(MAWError, match=r"a\.json: results\.2_lora\.history\.1\.loss") as raised:
        write_json(path, {"results": {"2_lora": {"history": [{}, {"loss": value}]}}})
    assert "\n" not in str(raised.value)
    assert path.read_text() == "old" and files_under(tmp_path) == {"a.json"}


def test_json_holds_what_python_and_numpy_hold(tmp_path):
    value = {
        "array": np.array([[0.1, 2.0], [3.0, 1e-300]]),
        "numbers": (np.float32(0.5), np.int64(-3), np.bool_(True), True, None, 7),
        "path": Path("a/b"),
        "text": ["ünïcode", "\udc80", "a\nb\0"],
        "empty": [{}, [], ""],
        3: -0.0,
    }
    back = json.loads(write_json(tmp_path / "a.json", value).read_text(encoding="utf-8"))
    assert back == {
        "array": [[0.1, 2.0], [3.0, 1e-300]],
        "numbers": [0.5, -3, True, True, None, 7],
        "path": "a/b",
        "text": ["ünïcode", "\udc80", "a\nb\0"],
        "empty": [{}, [], ""],
        "3": 0.0,
    }


def test_json_keeps_every_digit(tmp_path):
    values = np.random.default_rng(0).random(500) * 10.0 ** np.random.default_rng(1).integers(-300, 300, 500)
    assert json.loads(write_json(tmp_path / "a.json", values).read_text()) == values.tolist()


def test_json_of_something_else_is_a_mistake_in_the_program(tmp_path):
    with pytest.raises(TypeError, match=r"a\.0 is a set"):
        write_json(tmp_path / "a.json", {"a": [{1}]})
    with pytest.raises(TypeError, match="two keys"):
        write_json(tmp_path / "a.json", {1: "a", "1": "b"})


def test_csv_cells_cannot_become_formulas(tmp_path):
    path = write_csv(tmp_path / "a.csv", ["id"], [[each] for each in HOSTILE])
    with path.open(newline="") as lines:
        assert [row[0] for row in csv.reader(lines)][1:] == ["'" + each for each in HOSTILE]


def test_csv_numbers_stay_numbers(tmp_path):
    row = [-0.5, -3, "-1.5e-3", "+4", np.float32(-0.5), 0.1 + 0.2, None, "plain", 'quo"te,d', "é"]
    path = write_csv(tmp_path / "a.csv", [f"c{each}" for each in range(len(row))], [row])
    with path.open(newline="", encoding="utf-8") as lines:
        back = list(csv.reader(lines))[1]
    expected = ["-0.5", "-3", "-1.5e-3", "+4", "-0.5", "0.30000000000000004", "", "plain", 'quo"te,d', "é"]
    assert back == expected


def test_csv_refuses_what_is_not_finite(tmp_path):
    with pytest.raises(MAWError, match=r"a\.csv: value in row 2 is nan"):
        write_csv(tmp_path / "a.csv", ["id", "value"], [["a", 1.0], ["b", float("nan")]])
    assert not files_under(tmp_path)


WRITERS = {
    "json": lambda path: write_json(path, {"a": 1}),
    "csv": lambda path: write_csv(path, ["a"], [[1]]),
    "text": lambda path: write_text(path, "new"),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_a_failure_halfway_leaves_the_old_file(tmp_path, monkeypatch, write, call, error):
    path = tmp_path / "a"
    path.write_text("old")

    def fail(*_args, **_options):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(MAWError) as raised:
        write(path)
    monkeypatch.undo()
    assert str(path) in str(raised.value) and os.strerror(error) in str(raised.value)
    assert path.read_text() == "old" and files_under(tmp_path) == {"a"}
    write(path)
    assert path.read_text() != "old"


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_an_interruption_halfway_leaves_the_old_file(tmp_path, monkeypatch, write):
    path = tmp_path / "a"
    path.write_text("old")

    def interrupt(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(path)
    assert path.read_text() == "old" and files_under(tmp_path) == {"a"}


def test_a_full_disk_in_the_summary_keeps_the_earlier_one(tmp_path, result, monkeypatch):
    folder = write_summary(tmp_path, [result])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(*_args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(MAWError, match="No space left"):
        write_summary(tmp_path, [{**result, "venue": "another"}])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_writers_flush_before_they_rename(tmp_path, monkeypatch):
    order, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("fsync"), fsync(handle))[1])
    monkeypatch.setattr(os, "replace", lambda *paths: (order.append("rename"), replace(*paths))[1])
    write_text(tmp_path / "a", "x")
    assert order == ["fsync", "rename", "fsync"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(MAWError, match=r"cannot write .*Permission denied"):
        write_text(tmp_path / "a", "x")


def test_a_difference_that_rounds_to_zero_has_no_minus():
    test = {"mean_difference": -1e-6, "relative": -1e-5, "ci_low": -0.01, "ci_high": 0.01, "p_value": 0.9}
    assert differences.cells(test, None)[:3] == ["+0.0000", "+0.0%", "[-0.0100, +0.0100]"]
