"""Runs on an ArguAna in small: what they write, say and compare, and what `search` and other tools make of them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
from conftest import random_texts

import tier_1
from maw.cli.search import own_row, search
from maw.config.tier1_config import Tier1Config
from maw.data.self_passages import RULES
from maw.evaluation.mteb import MTEBEncoder
from maw.experiment.benchmark import run_complete_benchmark
from maw.experiment.config_checks import validate
from maw.experiment.past_run import PastRun
from maw.experiment.plan.plan import make_plan
from maw.experiment.plan.plan_text import plan_text
from maw.report.compare import compare_runs, comparison_text
from maw.report.html.page import report_page
from maw.report.text.summary import dataset_summary

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Arguments a and their counter-arguments b; every a is a query, and query 2 has the id of another passage."""
    folder = tmp_path_factory.mktemp("beir") / "arguments"
    (folder / "qrels").mkdir(parents=True)
    texts = list(dict.fromkeys(random_texts(150, seed=8, longest=14)))[:84]
    passages = {f"t{i // 2:02}{'ab'[i % 2]}": text for i, text in enumerate(texts[:80])} | {"2": texts[80]}
    queries = {name: text + "!" for name, text in passages.items() if name.endswith("a")} | {"2": texts[81]}
    judged = {name: f"{name[:-1]}b" for name in queries if name != "2"} | {"2": "t00b"}
    for name, lines in {
        "corpus.jsonl": [{"_id": i, "title": "", "text": text} for i, text in passages.items()],
        "queries.jsonl": [{"_id": i, "text": text} for i, text in queries.items()],
    }.items():
        (folder / name).write_text("\n".join(map(json.dumps, lines)))
    for name, part in {"train": slice(0, 16), "dev": slice(16, 24), "test": slice(24, None)}.items():
        lines = [f"{query}\t{judged[query]}\t1" for query in list(queries)[part]]
        (folder / "qrels" / f"{name}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")
    return folder


@pytest.fixture(scope="module")
def settings(folder, models, tmp_path_factory):
    base = tmp_path_factory.mktemp("runs")

    def make(rule, **changes):
        places = {"log_dir": str(base / rule), "cache_dir": str(base / "cache"), "datasets": [f"beir:{folder}"]}
        small = {"depth_dim": 4, "num_epochs": 1, "batch_size": 8, "permutations": 200, "num_negatives": 2}
        exact = {
            "precision": "float32",
            "device": "cpu",
            "model": str(models("bert")),
            "methods": ["zero_shot", "maw"],
        }
        return Tier1Config(**(places | small | exact | {"self_passages": rule} | changes))

    return make


@pytest.fixture(scope="module")
def runs(settings):
    for rule in RULES:
        run_complete_benchmark(settings(rule))
    return {rule: PastRun.open(settings(rule).log_dir) for rule in RULES}


def trec(run, method):
    (qrels,) = (run.folder / "runs").glob("*_qrels.trec")
    with qrels.open() as judged, (run.folder / "runs" / f"beir_arguments_{method}.trec").open() as ranked:
        return pytrec_eval.parse_qrel(judged), pytrec_eval.parse_run(ranked)


@pytest.mark.parametrize("method", ["zero_shot", "maw"])
def test_what_a_run_writes(runs, method):
    scores = {}
    for rule, run in runs.items():
        qrels, ranked = trec(run, method)
        own = {query for query in ranked if query not in ranked[query]}
        assert own == {"keep": set(), "auto": {q for q in ranked if q != "2"}, "drop": set(ranked)}[rule]
        values = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(ranked)
        scores[rule] = np.mean([each["ndcg_cut_10"] for each in values.values()])
        assert run.record(method)["metrics"]["ndcg_cut_10"] == pytest.approx(scores[rule])
        assert run.result["tested_on"]["self_passages"] == rule and run.result["tested_on"]["left_out"] == len(own)
    assert scores["auto"] > scores["keep"]


def test_drop_is_beirs_formula_over_the_run_that_keeps_everything(runs):
    qrels, ranked = trec(runs["keep"], "zero_shot")
    dropped = {query: {p: s for p, s in found.items() if p != query} for query, found in ranked.items()}
    values = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(dropped)
    expected = np.mean([each["ndcg_cut_10"] for each in values.values()])
    assert runs["drop"].record("zero_shot")["metrics"]["ndcg_cut_10"] == pytest.approx(expected)


def test_reports_say_both_counts_and_warn(runs):
    for rule, run in runs.items():
        facts = run.result["data"]["self_passages"]
        assert facts["test"]["same_id"] == 17 and facts["test"]["same_id_and_text"] == 16
        assert facts["validation"]["same_id"] == facts["validation"]["same_id_and_text"] == 8
        assert facts["test"]["left_out"] == {"auto": 16, "drop": 17, "keep": 0}[rule]
        text = " ".join(dataset_summary(run.result).split())
        page = " ".join(report_page([run.result]).split())
        assert "test: same id 17, same id and text 16" in text
        assert "<dt>same id</dt> <dd>17</dd> <dt>same id and text</dt> <dd>16</dd>" in page
        for shown in (text, page):
            assert "16 of 17 test queries are passages too" in shown or rule != "keep"
            assert "drop leaves out 1 passages that only share the id" in shown or rule != "drop"


def test_the_plan_states_the_rule(settings):
    for rule in RULES:
        config = settings(rule)
        text = " ".join(plan_text(make_plan(config, validate(config))).split())
        assert f"Ranking {RULES[rule]} (--self-passages {rule})" in text


def test_compare_warns_where_other_passages_were_ranked(runs):
    found = compare_runs(runs["auto"].folder.parent, runs["keep"].folder.parent)
    assert found["settings_that_differ"] == {"self_passages": ["auto", "keep"]}
    (said,) = found["warnings"]
    assert said == (
        "beir_arguments: the runs ranked other passages: in the first 16 queries left out the passage of their id by "
        "auto, in the second 0 queries left out the passage of their id by keep; give both the same --self-passages"
    )
    assert "Warnings" in comparison_text(found) and "ranked other passages" in comparison_text(found)
    same = compare_runs(runs["auto"].folder.parent, runs["auto"].folder.parent)
    assert same["warnings"] == [] and "Warnings" not in comparison_text(same)
    assert compare_runs(runs["auto"].folder.parent, runs["drop"].folder.parent)["warnings"]


def test_compare_takes_a_run_without_the_setting_as_one_that_kept_all(runs, tmp_path):
    import shutil

    old = tmp_path / "old"
    shutil.copytree(runs["keep"].folder.parent, old)
    path = old / runs["keep"].folder.name / "dataset.json"
    content = json.loads(path.read_text())
    for name in ("self_passages", "left_out"):
        del content["tested_on"][name]
    path.write_text(json.dumps(content))
    assert compare_runs(old, runs["keep"].folder.parent)["warnings"] == []
    assert len(compare_runs(old, runs["auto"].folder.parent)["warnings"]) == 1


def test_search_leaves_out_what_the_run_left_out(runs, capsys):
    for rule, run in runs.items():
        data = run.test()
        place = data.query_ids.index("t30a")
        query, model = data.queries[place], run.model("zero_shot")
        row = own_row(data, query)
        assert (row >= 0) == (rule != "keep") and own_row(data, "something else") == -1
        hits = search(model, "zero_shot", run.config, data.corpus, query, 10, row).hits
        ids = data.corpus.id_of([hit.row for hit in hits])
        _, ranked = trec(run, "zero_shot")
        expected = sorted(ranked["t30a"], key=lambda p: (ranked["t30a"][p], p), reverse=True)[:10]
        assert ids == expected and len(ids) == 10
        assert tier_1.main(["search", str(run.folder.parent), query, "--method", "zero_shot", "--k", "200"]) == 0
        shown = capsys.readouterr()
        said = "the words are those of the test query t30a; its own passage is left out, as in the run" in shown.err
        assert said == (rule != "keep")
        lines = [line.split() for line in shown.out.splitlines()]
        assert sum(len(line) == 3 and line[0].isdigit() and line[2] == "t30a" for line in lines) == (rule == "keep")


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("rule", RULES)
def test_mteb_finds_the_runs_own_score(runs, rule, capsys):
    pytest.importorskip("mteb")
    run = runs[rule]
    found = example("mteb_task").main(str(run.folder.parent), "zero_shot")
    assert found == pytest.approx(run.record("zero_shot")["metrics"]["ndcg_cut_10"], abs=1e-5)


def test_mtebs_own_rule_is_drop(runs):
    """A task with `ignore_identical_ids`, over queries of the usual names."""
    mteb = pytest.importorskip("mteb")
    module, run = example("mteb_task"), runs["drop"]
    task = module.RunTask()
    task.data = (
        runs["keep"].test().__class__(**(vars(runs["keep"].test()) | {"left_out": frozenset(run.test().query_ids)}))
    )
    result = mteb.evaluate(MTEBEncoder(run.model("zero_shot")), task, cache=None, co2_tracker=False)
    expected = run.record("zero_shot")["metrics"]["ndcg_cut_10"]
    assert result.task_results[0].get_score() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.filterwarnings("error:Experiment Pipeline Validation")
def test_pyterrier_finds_the_runs_own_numbers(runs, rule):
    pytest.importorskip("pyterrier")
    found = example("pyterrier_experiment").main(str(runs[rule].folder.parent)).set_index("name")
    for method in ("zero_shot", "maw"):
        expected = runs[rule].record(method)["metrics"]["ndcg_cut_10"]
        assert found.loc[method, "ndcg_cut_10"] == pytest.approx(expected, abs=1e-6)


def test_negatives_of_a_run_do_not_hold_the_query(settings, runs):
    facts = runs["keep"].result["data"]["hard_negatives"]
    assert facts["hard"] and runs["auto"].result["data"]["hard_negatives"]["hard"] == facts["hard"]
    for path in (Path(settings("keep").cache_dir) / "negatives").glob("*.json"):
        negatives = json.loads(path.read_text())["negatives"]
        assert negatives and all(query not in chosen for query, chosen in negatives.items())
