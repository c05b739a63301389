"""The example scripts for ir_measures and PyTerrier run and print the run's own numbers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from maw.experiment.past_run import PastRun

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("zero_shot", "lora", "maw")


def example(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def values_of(run, key):
    return {method: run.record(method)["metrics"][key] for method in METHODS}


def test_ir_measures_finds_the_runs_own_numbers(tiny_run, capsys):
    (found,) = example("ir_measures_run").main(str(tiny_run)).values()
    run = PastRun.open(tiny_run)
    for name, key in (("nDCG@10", "ndcg_cut_10"), ("AP", "map"), ("R@100", "recall_100"), ("RR", "recip_rank")):
        assert {m: found[f"beir_small_{m}"][name] for m in METHODS} == pytest.approx(values_of(run, key), abs=1e-9)
    assert f"{run.record('maw')['metrics']['map']:10.4f}" in capsys.readouterr().out


def test_ir_measures_sets_another_systems_ranking_beside_them(tiny_run, tmp_path):
    run = PastRun.open(tiny_run)
    (judged,) = (run.folder / "runs").glob("*_qrels.trec")
    rows = [line.split() for line in judged.read_text().splitlines()]
    other = tmp_path / "perfect.trec"
    other.write_text("".join(f"{query} Q0 {passage} 1 1.0 perfect\n" for query, _, passage, grade in rows if grade))
    (found,) = example("ir_measures_run").main(str(tiny_run), str(other)).values()
    assert found["perfect"] == {"nDCG@10": 1.0, "AP": 1.0, "R@100": 1.0, "RR": 1.0}
    other.write_text("".join(other.read_text().splitlines(keepends=True)[1:]))
    (found,) = example("ir_measures_run").main(str(tiny_run), str(other)).values()
    assert found["perfect"]["RR"] < 1, "a query that a file lacks counts as 0"


def test_a_folder_without_a_run_is_said_to_be_one(tmp_path):
    with pytest.raises(SystemExit, match="has no judgements; give the --log-dir"):
        example("ir_measures_run").main(str(tmp_path))


@pytest.fixture(scope="module")
def pyterrier():
    return pytest.importorskip("pyterrier", reason="PyTerrier is not installed (requirements-dev.txt has it)")


@pytest.mark.filterwarnings("error:Experiment Pipeline Validation")
def test_pyterrier_finds_the_runs_own_numbers(pyterrier, tiny_run, capsys):
    found = example("pyterrier_experiment").main(str(tiny_run)).set_index("name")
    run = PastRun.open(tiny_run)
    assert list(found.index) == [name for method in METHODS for name in (method, f"{method} as written")]
    for key in ("ndcg_cut_10", "map", "recall_100"):
        for method, value in values_of(run, key).items():
            assert found.loc[method, key] == pytest.approx(value, abs=1e-6)
            assert found.loc[f"{method} as written", key] == pytest.approx(value, abs=1e-9)
    assert "maw as written" in capsys.readouterr().out
    assert not pyterrier.java.started(), "nothing of it needs Java"


def test_a_method_is_a_part_of_pipelines(pyterrier, tiny_run):
    import pandas

    module, run = example("pyterrier_experiment"), PastRun.open(tiny_run)
    maw = module.RunRetriever(run, "maw", k=10)
    topics, _ = module.topics_and_qrels(run)
    found = (maw % 3)(topics)
    assert set(found.groupby("qid").size()) == {3} and {"docno", "text", "score", "query"} <= set(found.columns)
    assert found["text"].tolist() == [
        run.corpus().take([int(i)])[0] for i in run.corpus().rows_of(found["docno"].tolist())
    ]
    fused = (maw + module.RunRetriever(run, "zero_shot", k=10))(topics)
    assert isinstance(fused, pandas.DataFrame) and set(fused["qid"]) == set(topics["qid"])


def test_what_pyterrier_writes_is_read_here(pyterrier, tiny_run, tmp_path):
    module, run = example("pyterrier_experiment"), PastRun.open(tiny_run)
    topics, _ = module.topics_and_qrels(run)
    ranking = module.RunRetriever(run, "maw", run.config.top_k)(topics)
    pyterrier.io.write_results(ranking, str(tmp_path / "mine.trec"))
    (found,) = example("ir_measures_run").main(str(tiny_run), str(tmp_path / "mine.trec")).values()
    assert found["mine"]["nDCG@10"] == pytest.approx(run.record("maw")["metrics"]["ndcg_cut_10"], abs=1e-6)
