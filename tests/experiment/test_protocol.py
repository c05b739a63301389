"""Seeds, trials and folds from end to end, on a tiny model and a folder in BEIR layout."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from conftest import random_texts

from maw.config.methods import find_method
from maw.evaluation.power import minimum_detectable_effect
from maw.evaluation.significance import holm, paired_test
from maw.report.text import trainings

LORA, MAW, ZERO = (find_method(name) for name in ("lora", "maw", "zero_shot"))
METRIC = "ndcg_cut_10"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A BEIR folder of 80 passages in which each query is a few words of its passage."""
    folder = tmp_path_factory.mktemp("data") / "tiny"
    (folder / "qrels").mkdir(parents=True)
    passages = list(dict.fromkeys(random_texts(120, seed=11)))[:80]
    queries = {" ".join(text.split()[1:5]) + " of": number for number, text in reversed(list(enumerate(passages)))}
    rows = [(f"q{i}", text, f"d{number}") for i, (text, number) in enumerate(queries.items())]
    corpus = [{"_id": f"d{i}", "text": text} for i, text in enumerate(passages)]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)))
    (folder / "queries.jsonl").write_text("\n".join(json.dumps({"_id": q, "text": text}) for q, text, _ in rows))
    third = len(rows) // 3
    for number, split in enumerate(("train", "dev", "test")):
        lines = [f"{q}\t{d}\t1" for q, _, d in rows[number * third : (number + 1) * third]]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")
    return folder


def settings(models, tmp, folder, **changes):
    from maw.config.tier1_config import Tier1Config

    small = {"depth_dim": 4, "num_epochs": 2, "batch_size": 8, "eval_batch_size": 16, "grpo_group_size": 3}
    small |= {"top_k": 20, "permutations": 200, "num_negatives": 0, "device": "cpu", "precision": "float32"}
    places = {"cache_dir": str(tmp / "cache"), "log_dir": str(tmp / "logs"), "model": str(models("bert"))}
    return Tier1Config(datasets=[f"beir:{folder}"], **(small | places | changes))


@pytest.fixture(scope="module")
def finished(models, tmp_path_factory, folder):
    """A whole run: 2 seeds, 3 trials, 3 folds. (configuration, its result, what the console showed, its folder)."""
    import contextlib
    import io

    from maw.experiment.benchmark import run_complete_benchmark

    tmp = tmp_path_factory.mktemp("run")
    config = settings(models, tmp, folder, seeds=2, tune=3, folds=3, verbose=True)
    console = io.StringIO()
    with contextlib.redirect_stdout(console):
        result = run_complete_benchmark(config)["beir_tiny"]
    return config, result, console.getvalue(), tmp / "logs"


def records(result):
    return {method.name: result["results"][method.key] for method in (ZERO, LORA, MAW)}


def test_every_arm_ran_every_seed_on_every_fold(finished):
    _, result, _, _ = finished
    found = records(result)
    for name in ("lora", "maw"):
        runs = found[name]["runs"]
        assert [(run["seed"], run["fold"]) for run in runs] == [(s, f) for s in (42, 43) for f in (1, 2, 3)]
        assert all(len(run["metrics"]) == 36 and len(run["training_history"]) == 2 for run in runs)
        assert {run["trained_parameters"] for run in runs} == {found[name]["trained_parameters"]}
    assert len(found["zero_shot"]["runs"]) == 1, "what is not trained runs once"
    assert "tuning" not in found["zero_shot"] and found["zero_shot"]["training_seconds"] == 0


def test_no_arm_sees_more_than_another(finished):
    _, result, _, _ = finished
    found = records(result)
    trials = {name: [len(search["trials"]) for search in found[name]["tuning"]] for name in ("lora", "maw")}
    assert trials["lora"] == trials["maw"] == [3, 3, 3]
    for key in ("steps", "optimizer_steps"):
        assert [run[key] for run in found["lora"]["runs"]] == [run[key] for run in found["maw"]["runs"]]
        assert trainings.compute(found["lora"])[key] == trainings.compute(found["maw"])[key] > 0
    tested = [run["evaluation"]["queries"] for run in found["lora"]["runs"]]
    assert tested == [run["evaluation"]["queries"] for run in found["maw"]["runs"]] == [24] * 6
    planted = {**found["lora"], "tuning": found["lora"]["tuning"] * 2}
    assert trainings.compute(planted)["trials"] != trainings.compute(found["maw"])["trials"], "it would be seen"


def test_the_chosen_rates_are_those_of_the_best_trial_and_train_the_runs(finished):
    _, result, _, _ = finished
    for name in ("lora", "maw"):
        record = records(result)[name]
        assert [search["fold"] for search in record["tuning"]] == [1, 2, 3]
        for search in record["tuning"]:
            best = search["trials"][search["chosen_trial"] - 1]
            assert best[f"val_{METRIC}"] == max(trial[f"val_{METRIC}"] for trial in search["trials"])
            for run in (run for run in record["runs"] if run["fold"] == search["fold"]):
                assert run["rates"] == search["chosen"] == best["rates"]
                same = run[f"val_{METRIC}"] == best[f"val_{METRIC}"]
                assert same or run["seed"] == 43, "the trial's own seed trains the same model again"


def test_seeds_share_the_data_and_differ_in_training(finished):
    _, result, _, _ = finished
    for name in ("lora", "maw"):
        runs = records(result)[name]["runs"]
        for fold in (1, 2, 3):
            one, other = (run for run in runs if run["fold"] == fold)
            assert one["training_history"][0]["train_loss"] != other["training_history"][0]["train_loss"]
    assert [each["test"] for each in result["data"]["rounds"].values()] == [24, 24, 24]


def test_metrics_are_means_over_all_queries_and_seeds(finished):
    _, result, _, logs = finished
    (dataset,) = logs.glob("beir_tiny_*")
    per_query = {}
    for method in (ZERO, LORA, MAW):
        content = json.loads((dataset / f"{method.short}_metrics.json").read_text())
        per_query[method.name] = content["per_query"]
        values = content["per_query"]["metrics"][METRIC]
        record = records(result)[method.name]
        assert len(values) == 72 == len(set(content["per_query"]["query_ids"]))
        assert np.mean(values) == pytest.approx(record["metrics"][METRIC], abs=1e-12)
        if method.trained:
            means = [np.mean([r["metrics"][METRIC] for r in record["runs"] if r["seed"] == s]) for s in (42, 43)]
            assert record["metrics"][METRIC] == pytest.approx(np.mean(means)), "folds of one size"
            found = [record["spread"][key] for key in ("std", "min", "max")]
            assert found == pytest.approx([np.std(means, ddof=1), min(means), max(means)])
    assert len({tuple(each["query_ids"]) for each in per_query.values()}) == 1, "the same rounds for all arms"


def test_the_confirmatory_test_is_over_72_averaged_queries(finished):
    config, result, console, logs = finished
    (dataset,) = logs.glob("beir_tiny_*")
    values = {
        method.name: json.loads((dataset / f"{method.short}_metrics.json").read_text())["per_query"]["metrics"][METRIC]
        for method in (LORA, MAW)
    }
    section = result["confirmatory"]
    test = section["comparisons"]["maw_vs_lora"]
    expected = paired_test(values["maw"], values["lora"], permutations=11_600, seed=config.seed)
    assert (section["permutations"], section["permutations_raised_from"]) == (11_600, 200)
    assert test["n"] == 72 and test["p_value"] == expected.p_value and test["p_holm"] == holm([expected.p_value])[0]
    assert "11,600 random signs instead of 200" in " ".join(console.split())
    summary = json.loads((logs / "summary" / "confirmatory.json").read_text())
    assert summary["comparisons"][0]["dataset"] == "beir_tiny"
    assert summary["comparisons"][0]["p_holm"] == test["p_holm"]
    assert json.loads((dataset / "improvements.json").read_text())["confirmatory"] == section


def test_what_can_be_found_is_said_before_any_result(finished):
    _, result, console, _ = finished
    effect = result["confirmatory"]["comparisons"]["maw_vs_lora"]
    smallest = effect["minimum_detectable_effect"]
    assert effect["validation_queries"] == effect["queries"] == 72 and effect["level"] == 0.05
    unit = minimum_detectable_effect([-1.0, 1.0], 72, level=0.05) / np.sqrt(2)
    assert smallest == pytest.approx(unit * effect["validation_std_of_differences"])
    before, _, after = console.partition("Before the results")
    assert f"{smallest:.4f}" in after.splitlines()[5] + after.splitlines()[4]
    for method in (LORA, MAW, ZERO):
        score = f"nDCG@10 {records(result)[method.name]['metrics'][METRIC]:.4f}"
        assert f"{score} " not in before.replace(f"validation {score}", "") and score in after
    assert "results (primary metrics)" not in before


def test_the_console_has_a_line_for_each_trial_and_run(finished):
    _, result, console, _ = finished
    lines = [line.strip() for line in console.splitlines()]
    assert sum(line.startswith("trial ") for line in lines) == 2 * 3 * 3
    assert sum(line.startswith(("seed 42, fold", "seed 43, fold")) for line in lines) == 2 * 2 * 3
    assert any("over 2 seeds: " in line and "+/-" in line for line in lines)
    tables = (
        "nDCG@10 over seeds",
        "Tuned on validation",
        "Training compute",
        "Confirmatory tests: ",
        "Exploratory tests: ",
    )
    assert all(any(line.startswith(table) for line in lines) for table in tables)
    shown = console[console.index("tiny (BEIR folder) (beir_tiny)") :]
    assert shown.index("Confirmatory") < shown.index("Exploratory")
    assert max(len(line) for line in shown.splitlines() if "/" not in line) <= 100
    row = next(line for line in lines if line.startswith("MAW Fine-tuned  ") and line.split()[2:4] == ["6", "9"])
    assert row.split()[4] == f"{trainings.compute(records(result)['maw'])['steps']}"


def test_checkpoints_name_seed_and_fold_and_trials_leave_none(finished):
    from maw.training.checkpoint import load_checkpoint

    _, result, _, logs = finished
    names = {path.name for path in (logs / "checkpoints").iterdir()}
    assert names == {
        f"beir_tiny_{arm}_seed{s}_fold{f}_best" for arm in ("lora", "maw") for s in (42, 43) for f in (1, 2, 3)
    }
    model = load_checkpoint(logs / "checkpoints" / "beir_tiny_maw_seed43_fold2_best")
    run = next(run for run in records(result)["maw"]["runs"] if (run["seed"], run["fold"]) == (43, 2))
    assert model.checkpoint["best_val_metric"] == run[f"val_{METRIC}"]
    assert model.config.seed == 43 and model.config.learning_rate == run["learning_rate"]


def test_a_method_of_peft_has_a_model_for_each_fold(models, folder, tmp_path):
    """PiSSA's base weights, which no checkpoint holds, are those with which each fold was trained."""
    from maw.data.registry import load_folds
    from maw.evaluation.evaluate import evaluate_retriever
    from maw.experiment.benchmark import run_complete_benchmark
    from maw.training.checkpoint import load_checkpoint

    config = settings(models, tmp_path, folder, methods=["peft:pissa"], folds=3, num_epochs=1, learning_rate=0.01)
    runs = run_complete_benchmark(config)["beir_tiny"]["results"]["peft_pissa_retriever"]["runs"]
    assert [run["fold"] for run in runs] == [1, 2, 3]
    for run, fold in zip(runs, load_folds(f"beir:{folder}", config).collections, strict=True):
        model = load_checkpoint(tmp_path / "logs" / "checkpoints" / f"beir_tiny_peft_pissa_fold{run['fold']}_best")
        assert evaluate_retriever(model, fold.validation, model.config)[METRIC] == run[f"val_{METRIC}"]


def test_folds_are_the_same_for_another_choice_of_methods(finished, models, folder, tmp_path):
    from maw.data.registry import load_folds

    _, result, _, _ = finished
    other = settings(models, tmp_path, folder, folds=3, methods=["lora"], seeds=1)
    assert load_folds(f"beir:{folder}", other).whole.facts["folds"]["sha256"] == result["data"]["folds"]["sha256"]


def test_one_seed_without_trials_and_folds_is_as_before(models, folder, tmp_path, capsys):
    from maw.experiment.benchmark import run_complete_benchmark

    config = settings(models, tmp_path, folder, methods=["zero_shot", "lora"])
    result = run_complete_benchmark(config)["beir_tiny"]
    record = result["results"][LORA.key]
    assert record["metrics"] == record["runs"][0]["metrics"]
    assert record["training_history"] == record["runs"][0]["training_history"]
    assert record["learning_rate"] == LORA.learning_rate and "spread" not in record and "tuning" not in record
    assert result["confirmatory"] == {} and "Before the results" not in capsys.readouterr().out
    logs = tmp_path / "logs"
    assert {path.name for path in (logs / "checkpoints").iterdir()} == {"beir_tiny_lora_best"}
    assert not (logs / "summary" / "confirmatory.json").exists()


def test_seeds_alone(models, folder, tmp_path):
    """Each seed is what a run with that seed alone gives over the same data."""
    from maw.data.registry import load_collection
    from maw.experiment.dataset_run import DatasetRun
    from maw.models.pretrained import model_spec

    config = settings(models, tmp_path, folder, methods=["lora"], seeds=3)
    data = load_collection(f"beir:{folder}", config)

    def run(one):
        return DatasetRun(data, one, model_spec(one), model_device()).run()["results"][LORA.key]

    together = run(config)
    alone = [run(replace(config, seed=seed, seeds=1)) for seed in (42, 43, 44)]
    assert [each["metrics"] for each in together["runs"]] == [each["metrics"] for each in alone]
    means = [each["metrics"][METRIC] for each in alone]
    assert together["metrics"][METRIC] == pytest.approx(np.mean(means))
    assert any(one["training_history"] != other["training_history"] for one, other in pairwise(together["runs"]))
    names = {path.name for path in (tmp_path / "logs" / "checkpoints").iterdir()}
    assert {f"beir_tiny_lora_seed{seed}_best" for seed in (42, 43, 44)} < names


def model_device():
    import torch

    return torch.device("cpu")


def test_a_winner_at_the_edge_is_a_warning():
    search = {"chosen": {"learning_rate": 0.03, "kernel_learning_rate": 0.01}, "at_edge": {"learning_rate": "highest"}}
    text = trainings.edge_warning(MAW, [search, {**search, "fold": 2}, {**search, "at_edge": {}}])
    assert "learning rate 0.03, the highest; learning rate 0.03, the highest in fold 2" in text
    assert text.startswith("MAW Fine-tuned: trials chose values at the edge")
    assert trainings.edge_warning(MAW, [{**search, "at_edge": {}}]) == "" == trainings.edge_warning(MAW, [])
    failed = {"trial": 2, "rates": {"learning_rate": 0.5}, f"val_{METRIC}": None, "seconds": 1.0}
    assert trainings.trial_line(failed, 9, False) == "   trial 2 of 9: learning rate 0.5: diverged (1.0 s)"


def test_folds_without_training_evaluate_all_queries_once(models, folder, tmp_path):
    from maw.experiment.benchmark import run_complete_benchmark

    config = settings(models, tmp_path, folder, methods=["zero_shot"], folds=3, seeds=2, tune=2)
    result = run_complete_benchmark(config)["beir_tiny"]
    assert len(result["results"][ZERO.key]["runs"]) == 1 and "rounds" not in result["data"]
    assert result["results"][ZERO.key]["evaluation"]["queries"] == 72
