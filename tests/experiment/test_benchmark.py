"""The whole program on a small folder in BEIR layout: files, console, exit codes, and the same numbers twice."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import random_texts

from maw.config.methods import find_method
from maw.errors import MAWError
from maw.runtime.environment import environment_facts

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def beir(tmp_path_factory):
    """A BEIR folder of 80 passages in which each query is a few words of its passage."""
    folder = tmp_path_factory.mktemp("data") / "tiny"
    (folder / "qrels").mkdir(parents=True)
    passages = list(dict.fromkeys(random_texts(120, seed=11)))[:80]
    queries = list(dict.fromkeys(" ".join(text.split()[1:5]) + " of" for text in passages))
    corpus = [{"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(passages)]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)))
    rows = [{"_id": f"q{i}", "text": text} for i, text in enumerate(queries)]
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = {
        query: next(i for i, p in enumerate(passages) if " ".join(p.split()[1:5]) + " of" == query)
        for query in queries
    }
    third = len(queries) // 3
    for number, split in enumerate(("train", "dev", "test")):
        part = range(number * third, (number + 1) * third)
        lines = ["query-id\tcorpus-id\tscore", *(f"q{i}\td{source[queries[i]]}\t1" for i in part)]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def finished(beir, forks, models, tmp_path_factory):
    """One whole run from the shell, in an empty folder."""
    folder = tmp_path_factory.mktemp("run")
    done = forks.run(
        ROOT / "tier_1.py",
        "--datasets",
        f"beir:{beir}",
        "--model",
        models("bert"),
        "--num-epochs",
        2,
        "--batch-size",
        8,
        "--depth-dim",
        4,
        "--learning-rate",
        0.01,
        "--cache-dir",
        folder / "cache",
        "--device",
        "cpu",
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return folder, done


def test_the_files_are_the_users(finished):
    folder, _ = finished
    logs = folder / "logs" / "tier1"
    (dataset,) = logs.glob("beir_tiny_*")
    names = {"dataset.json", "zeroshot_metrics.json", "lora_metrics.json", "maw_metrics.json", "improvements.json"}
    names |= {"routing_maw.png", "figures", "runs", "examples.json", "attention.json"}
    assert {path.name for path in dataset.iterdir()} == names
    names = {"beir_tiny_qrels.trec"}
    for method in ("zero_shot", "lora", "maw"):
        names |= {f"beir_tiny_{method}.trec", f"beir_tiny_{method}_per_query.parquet"}
    assert {path.name for path in (dataset / "runs").iterdir()} == names
    assert {path.name for path in (logs / "summary").iterdir()} == {
        "benchmark_summary.txt",
        "all_results.json",
        "metrics_comparison.csv",
        "costs.csv",
        "confirmatory.json",
        "exploratory.json",
        "tables.tex",
        "tables.md",
        "report.html",
    }
    assert {path.name for path in (logs / "checkpoints").iterdir()} == {"beir_tiny_lora_best", "beir_tiny_maw_best"}
    (log,) = logs.glob("run_*.log.gz")
    assert b"epoch 2/2" in gzip.decompress(log.read_bytes())
    stray = [path for path in folder.rglob("*") if path.name.endswith(".tmp") or "activations-" in path.name]
    assert not stray


def test_the_results_have_the_users_keys(finished):
    folder, done = finished
    (dataset,) = (folder / "logs" / "tier1").glob("beir_tiny_*")
    result = json.loads((dataset / "dataset.json").read_text())
    keys = ["1_normal_retriever", "2_lora_fine_tuned_retriever", "3_maw_fine_tuned_retriever"]
    assert list(result["results"]) == keys
    for key in keys:
        record = result["results"][key]
        assert len(record["metrics"]) == 36
        assert record["runtime_minutes"] == pytest.approx(record["runtime_seconds"] / 60)
        assert f"{record['metrics']['ndcg_cut_10']:.4f}" in done.stdout
    assert set(result["runtime_summary"]) == {
        "zeroshot_seconds",
        "lora_seconds",
        "maw_seconds",
        "total_dataset_seconds",
        "total_dataset_minutes",
    }
    zero, maw = (result["results"][keys[i]]["metrics"]["ndcg_cut_10"] for i in (0, 2))
    assert result["improvements"]["maw_vs_zeroshot_ndcg_cut_10"] == pytest.approx((maw - zero) / zero)
    test = result["significance"]["maw_vs_zeroshot"]["ndcg_cut_10"]
    assert test["mean_difference"] == pytest.approx(maw - zero)
    assert (test["family"], test["permutations"] >= 11_600) == ("exploratory", True) and 0 < test["p_holm"] <= 1
    assert result["significance"]["maw_vs_lora"]["ndcg_cut_10"]["family"] == "confirmatory"
    assert result["environment"]["command"].startswith("python tier_1.py --datasets beir:")
    assert result["environment"]["packages"]["torch"] and result["environment"]["peak_memory_bytes"] > 1e7
    assert len(result["tested_on"]["corpus_sha256"]) == len(result["tested_on"]["qrels_sha256"]) == 64
    history = result["results"][keys[2]]["training_history"]
    assert [record["epoch"] for record in history] == [1, 2]
    seen = {"policy_entropy", "kl", "reward_mean", "zero_variance_share", "flat_group_share", "weighted_reward_std"}
    assert seen | {"clip_fraction", "train_loss", "document_flat_group_share"} <= set(history[0])
    assert len(history[0]["val_routing"]["query"]["depth_histogram"][0]) == 4
    best = max(history, key=lambda each: (each["val_ndcg_cut_10"], -each["epoch"]))
    for found in best["val_routing"].values():
        assert 0 < found["learnt"]["against_shuffled_p_value"] <= 1
    assert result["data"]["hard_negatives"]["queries_by_source"]["bm25"] > 10
    assert result["data"]["corpora"]["test"]["passages"] == "all 80 passages"
    assert json.loads((folder / "logs/tier1/summary/all_results.json").read_text())["beir_tiny"] == result


def test_the_table_and_the_per_query_values_agree_with_the_means(finished):
    folder, _ = finished
    logs = folder / "logs" / "tier1"
    (dataset,) = logs.glob("beir_tiny_*")
    maw = json.loads((dataset / "maw_metrics.json").read_text())
    per_query = maw["per_query"]
    for metric, values in per_query["metrics"].items():
        assert len(values) == len(per_query["query_ids"])
        assert sum(values) / len(values) == pytest.approx(maw["metrics"][metric])
    with (logs / "summary" / "metrics_comparison.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == "maw" and not row["compared_with"]]
    assert len(rows) == 36
    assert all(float(row["value"]) == pytest.approx(maw["metrics"][row["metric"]]) for row in rows)


def test_a_notebook_gets_the_same_numbers_as_the_shell(finished, beir, models, tmp_path):
    from tier_1 import Tier1Config, load_checkpoint, run_complete_benchmark

    folder, _ = finished
    config = Tier1Config(
        datasets=[f"beir:{beir}"],
        model=str(models("bert")),
        num_epochs=2,
        batch_size=8,
        depth_dim=4,
        learning_rate=0.01,
        cache_dir=str(tmp_path / "cache"),
        log_dir=str(tmp_path / "logs"),
        device="cpu",
    )
    again = run_complete_benchmark(config)["beir_tiny"]["results"]
    shell = json.loads((folder / "logs/tier1/summary/all_results.json").read_text())["beir_tiny"]["results"]
    for key, record in shell.items():
        assert record["metrics"] == again[key]["metrics"], "one seed, one result"
    model = load_checkpoint(tmp_path / "logs" / "checkpoints" / "beir_tiny_maw_best")
    assert model.checkpoint["best_val_metric"] == max(
        record["val_ndcg_cut_10"] for record in again["3_maw_fine_tuned_retriever"]["training_history"]
    )


def test_all_ten_methods_in_one_run(beir, tiny_settings, tmp_path, capsys):
    from maw.config.methods import METHODS
    from tier_1 import load_checkpoint, run_complete_benchmark

    config = tiny_settings(datasets=[f"beir:{beir}"], methods=["all"], num_epochs=1, kernel_rank=2)
    result = run_complete_benchmark(config)["beir_tiny"]
    assert list(result["results"]) == [method.key for method in METHODS]
    trained = {method.name: result["results"][method.key]["trained_parameters"] for method in METHODS}
    assert trained["zero_shot"] == 0 and trained["maw_fixed"] == trained["maw_random"] < trained["maw"]
    assert trained["maw"] == trained["maw_soft"] < trained["maw_qv"]
    assert abs(trained["lora_matched"] - trained["maw"]) <= (4 * 32 + 2 * 40) / 2
    assert trained["lora"] < trained["full"] < trained["full_lowrank"]
    for method in METHODS[1:]:
        record = result["results"][method.key]
        assert record["learning_rate"] == method.learning_rate and len(record["training_history"]) == 1
        model = load_checkpoint(tmp_path / "logs" / "checkpoints" / f"beir_tiny_{method.name}_best")
        assert model.trained_parameters == record["trained_parameters"]
    console = capsys.readouterr().out
    assert "approach 3: MAW Fine-tuned" in console and "control: Whole Layers" in console
    summary = (tmp_path / "logs" / "summary" / "benchmark_summary.txt").read_text()
    assert max(map(len, summary.splitlines())) <= 100
    for method in METHODS:
        assert f"{result['results'][method.key]['approach']}: " in console
    assert "Query-and-Value Depths, an Ablation (GRPO on last layer)" in console


def test_a_notebook_learns_at_once_that_it_cannot_write(beir, models, tmp_path):
    from tier_1 import Tier1Config, run_complete_benchmark

    (tmp_path / "file").write_text("")
    config = Tier1Config(
        datasets=[f"beir:{beir}"],
        model=str(models("bert")),
        methods=["zero_shot"],
        log_dir=str(tmp_path / "file" / "logs"),
        cache_dir=str(tmp_path / "cache"),
        device="cpu",
    )
    with pytest.raises(MAWError, match=r"cannot write to .*logs"):
        run_complete_benchmark(config)
    assert not (tmp_path / "cache").exists(), "nothing was loaded"


def test_malformed_data_is_one_line_with_its_place(beir, models, tmp_path, capsys, monkeypatch):
    import tier_1

    broken = tmp_path / "broken"
    (broken / "qrels").mkdir(parents=True)
    for path in beir.rglob("*.*"):
        target = broken / path.relative_to(beir)
        target.write_bytes(path.read_bytes())
    with (broken / "corpus.jsonl").open("a") as file:
        file.write("\n{not json\n")
    monkeypatch.chdir(tmp_path)
    words = ["--datasets", f"beir:{broken}", "--model", str(models("bert")), "--cache-dir", str(tmp_path / "c")]
    assert tier_1.main([*words, "--device", "cpu"]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "corpus.jsonl:81" in line


def test_a_single_training_query_is_refused_before_any_method_runs(tiny_settings, monkeypatch):
    import torch

    from maw.experiment.dataset_run import DatasetRun
    from maw.models.pretrained import model_spec

    config = tiny_settings(num_negatives=0)
    data = graded(1).test
    first = data.query_ids[0]
    one = replace(data, query_ids=[first], queries=data.queries[:1], qrels={first: data.qrels[first]})
    run = DatasetRun(replace(graded(1), train=one), config, model_spec(config), torch.device("cpu"))
    monkeypatch.setattr("maw.experiment.dataset_run.MethodTrainer", lambda *words: pytest.fail("a method ran"))
    with pytest.raises(MAWError, match="tiny: there is only one training query"):
        run.run()


def graded(level, name="tiny"):
    """A collection of three graded test queries, of which one has no passage of grade 2."""
    from maw.data.collection import Collection
    from maw.data.from_dicts import as_retrieval_data

    docs = list(dict.fromkeys(random_texts(30, seed=2)))[:12]
    qrels = {0: {0: 3, 4: 1}, 1: {1: 2, 5: 0}, 2: {2: 1, 6: 1}}
    data = replace(as_retrieval_data({"queries": docs[:3], "docs": docs, "qrels": qrels}), relevance_level=level)
    return Collection(name, "Tiny", data, data, data, {})


def test_grades_count_from_the_relevance_level(tiny_settings):
    from maw.evaluation.evaluate import evaluate_retriever
    from maw.evaluation.metrics import compute_metrics
    from maw.models.retriever import BaselineRetriever

    config = tiny_settings()
    model = BaselineRetriever(config)
    one, two = (evaluate_retriever(model, graded(level).test, config) for level in (1, 2))
    assert "relevance_level" not in one.facts and two.facts["relevance_level"] == 2
    assert one["ndcg_cut_10"] == two["ndcg_cut_10"], "grades are gains whatever the level"
    assert one["map"] > two["map"] and two.per_query["map"][2] == 0.0
    rows, scores = two.run["rows"], two.run["scores"]
    again = compute_metrics(["0", "1", "2"], rows.astype(str), scores, graded(2).test.qrels, relevance_level=2)
    assert dict(two) == dict(again)


def test_plain_dictionaries_have_the_level_of_the_configuration(tiny_settings):
    from maw.evaluation.evaluate import evaluate_retriever
    from maw.models.retriever import BaselineRetriever

    config = tiny_settings(relevance_level=2, self_passages="keep")  # the queries are passages, and judged
    model, data = BaselineRetriever(config), graded(2).test
    docs = dict(zip(data.corpus.ids, data.corpus.take(range(len(data.corpus)))))
    plain = {"queries": dict(zip(data.query_ids, data.queries)), "docs": docs, "qrels": data.qrels}
    found = evaluate_retriever(model, plain, config)
    assert dict(found) == dict(evaluate_retriever(model, data, config)) and found.facts["relevance_level"] == 2


def test_warnings_depend_on_level_and_name():
    import torch

    from maw.config.tier1_config import Tier1Config
    from maw.experiment.dataset_result import Outcome
    from maw.models.pretrained import model_spec

    config = Tier1Config.from_preset("offline")

    def warnings(level, name, **changes):
        outcome = Outcome(graded(level, name), replace(config, **changes), model_spec(config), torch.device("cpu"))
        return " ".join(outcome.warnings())

    assert warnings(2, "tiny") == (
        "1 of 3 test queries have no passage of grade 2 or more, the relevance level, "
        "and score 0 in the binary metrics"
    )
    assert warnings(1, "tiny") == "", "a grade of 0 is judged not relevant, so bpref says something"
    assert "was trained on data like Tiny (recognised by its name: msmarco), as" in warnings(1, "beir_msmarco_dl19")
    assert "was trained on data like Tiny, as its model card" in warnings(1, "nq")
    assert warnings(1, "tiny", top_k=11).startswith("only 11 of 12 passages were ranked for each query")


@pytest.mark.parametrize("began_with", ["python tier_1.py --seed 1", None])
def test_a_resumed_run_is_told_of_by_the_command_that_began_it(monkeypatch, began_with):
    """Nobody can repeat an experiment with --resume."""
    monkeypatch.setattr("maw.runtime.environment.command", lambda: "python tier_1.py --resume last")
    assert environment_facts(began_with)["command"] == (began_with or "python tier_1.py --resume last")


@pytest.mark.parametrize("protocol", [{}, {"folds": 3}])
def test_a_run_over_judgements_of_missing_passages(beir, tiny_settings, tmp_path, protocol):
    """ArguAna's kind: some relevant passages are not in the corpus. The numbers are those of pytrec_eval."""
    import ir_measures
    import pytrec_eval

    from maw.experiment.benchmark import run_complete_benchmark

    folder = shutil.copytree(beir, tmp_path / "tiny")
    queries = {}
    for split in ("train", "dev", "test"):
        path = folder / "qrels" / f"{split}.tsv"
        first, second, *rest = path.read_text().splitlines()[1:]
        queries[split] = first.split("\t")[0], second.split("\t")[0]
        rows = [f"{queries[split][0]}\tgone\t1", second, f"{queries[split][1]}\tlost\t2", *rest]
        path.write_text("\n".join(["query-id\tcorpus-id\tscore", *rows, "nobody\tgone\t1\n"]))
    config = tiny_settings(datasets=[f"beir:{folder}"], methods=["zero_shot", "maw"], num_epochs=1, **protocol)
    result = run_complete_benchmark(config)["beir_tiny"]
    (runs,) = Path(config.log_dir).glob("beir_tiny_*/runs")
    judged = {}
    for each in ir_measures.read_trec_qrels(str(runs / "beir_tiny_qrels.trec")):
        judged.setdefault(each.query_id, {})[each.doc_id] = each.relevance
    assert judged[queries["test"][0]] == {"gone": 1} and judged[queries["test"][1]]["lost"] == 2
    for name in config.methods:
        ranked = {}
        for each in ir_measures.read_trec_run(str(runs / f"beir_tiny_{name}.trec")):
            ranked.setdefault(each.query_id, {})[each.doc_id] = each.score
        expected = pytrec_eval.RelevanceEvaluator(judged, {"ndcg_cut.10", "recall.10", "map"}).evaluate(ranked)
        assert expected.keys() == judged.keys() and expected[queries["test"][0]]["recall_10"] == 0
        found = result["results"][find_method(name).key]
        for key in ("ndcg_cut_10", "recall_10", "map"):
            mean = sum(each[key] for each in expected.values()) / len(expected)
            assert found["metrics"][key] == pytest.approx(mean, abs=1e-9), (name, key)
    assert result["data"]["counted"] == {"unknown_queries": 3}
    assert any("judgements of test queries name passages that are not" in each for each in result["data"]["warnings"])
