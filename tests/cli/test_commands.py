"""`report` and `compare`: reports from files alone, byte for byte; two runs are tested, or refused with reasons."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import drawing, random_texts

import tier_1
from maw.config.methods import find_method
from maw.errors import ConfigError
from maw.evaluation.metrics import PRIMARY
from maw.evaluation.significance import holm, paired_test
from maw.report.compare import compare_runs

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "depth_dim": 4,
    "num_epochs": 1,
    "batch_size": 8,
    "grpo_group_size": 3,
    "top_k": 20,
    "permutations": 200,
    "num_negatives": 0,
    "diagnostics": "none",
    "device": "cpu",
    "precision": "float32",
}


def make_beir(folder: Path, seed: int) -> Path:
    (folder / "qrels").mkdir(parents=True)
    passages = list(dict.fromkeys(random_texts(70, seed=seed)))[:48]
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


@pytest.fixture(scope="module")
def runs(models, tmp_path_factory):
    """Two runs over two datasets that differ in the learning rate, and the second in a method: (folder, folder)."""
    from maw.config.tier1_config import Tier1Config
    from maw.experiment.benchmark import run_complete_benchmark

    tmp = tmp_path_factory.mktemp("runs")
    datasets = [f"beir:{make_beir(tmp / name, seed)}" for name, seed in (("one", 11), ("two", 12))]
    places = {"model": str(models("bert")), "cache_dir": str(tmp / "cache")}
    variants = {"a": {"learning_rate": 1e-3}, "b": {"learning_rate": 2e-2, "methods": ["zero_shot", "maw"]}}
    with contextlib.redirect_stdout(io.StringIO()):
        for name, changes in variants.items():
            config = Tier1Config(datasets=datasets, log_dir=str(tmp / name), **(SETTINGS | places | changes))
            with drawing() if name == "a" else contextlib.nullcontext():
                run_complete_benchmark(config)
    return tmp / "a", tmp / "b"


@pytest.fixture
def run(runs, tmp_path):
    """A copy of the first run, to be changed."""
    return Path(shutil.copytree(runs[0], tmp_path / "run"))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def folder_of(run: Path, name: str) -> Path:
    (folder,) = run.glob(f"beir_{name}_*")
    return folder


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# ---------------------------------------------------------------------------------------------------------- report


def test_reports_come_out_byte_for_byte(run, forks, capsys):
    before = files_of(run)
    made = [name for name in before if name.startswith("summary/") or name.endswith(".png")]
    assert {"summary/benchmark_summary.txt", "summary/metrics_comparison.csv", "summary/exploratory.json"} <= set(made)
    assert len([name for name in made if name.endswith(".png")]) == 2
    assert tier_1.main(["report", str(run)]) == 0
    assert files_of(run) == before
    assert capsys.readouterr().out.strip() == f"Written to {run / 'summary'}"
    for name in made:
        if name != "summary/all_results.json":
            (run / name).unlink()
    done = forks.run(ROOT / "tier_1.py", "report", run, cwd=run)  # which draws in processes of their own
    assert done.returncode == 0, done.stderr
    assert files_of(run) == before


def test_a_picture_that_cannot_be_written_is_one_line(run, forks):
    for figures in run.glob("*/figures"):
        shutil.rmtree(figures)
        figures.write_text("")
    done = forks.run(ROOT / "tier_1.py", "report", run, cwd=run)
    assert done.returncode == 1 and "figures" in done.stderr and "Traceback" not in done.stderr


def test_without_a_summary_the_newest_folders_of_one_configuration_count(run):
    before = files_of(run)
    shutil.rmtree(run / "summary")
    older = shutil.copytree(folder_of(run, "one"), run / "beir_one_20200101_000000")
    edit(older / "dataset.json", lambda content: content.update(evaluated_at="2020-01-01T00:00:00"))
    other = shutil.copytree(folder_of(run, "two"), run / "beir_other_20200101_000000")
    edit(other / "dataset.json", lambda content: content["configuration"].update(seed=7))
    edit(other / "dataset.json", lambda content: content.update(evaluated_at="2020-01-01T00:00:00", dataset="x"))
    assert tier_1.main(["report", str(run)]) == 0
    after = files_of(run)
    assert {name: after[name] for name in before} == before


def test_a_run_that_went_on_with_another_console_is_one_run(run):
    shutil.rmtree(run / "summary")
    edit(folder_of(run, "one") / "dataset.json", lambda content: content["configuration"].update(quiet=True))
    assert tier_1.main(["report", str(run)]) == 0
    assert len(json.loads((run / "summary" / "all_results.json").read_text())) == 2


def test_a_change_in_a_result_reaches_the_reports(run):
    def change(content):
        content["venue"] = "Renamed"
        content["significance"]["maw_vs_lora"]["map"]["p_value"] = 1e-9

    edit(folder_of(run, "one") / "dataset.json", change)
    assert tier_1.main(["report", str(run)]) == 0
    assert "Renamed (beir_one)" in (run / "summary" / "benchmark_summary.txt").read_text()
    family = json.loads((run / "summary" / "exploratory.json").read_text())
    assert min(row["p_holm"] for row in family["comparisons"]) == pytest.approx(1e-9 * family["family_size"])


@pytest.mark.parametrize(
    "words, says",
    [
        (["report"], "report: the following arguments are required: RUN_DIR"),
        (["report", "a", "b"], "report: unrecognized arguments: b"),
        (["report", "nowhere"], "nowhere: there is no such folder"),
        (["compare", "nowhere"], "compare: the following arguments are required: RUN"),
        (["compare", "nowhere", "nowhere"], "nowhere: there is no such folder"),
        (["compare", "a", "b", "--against", "lora"], "compare: --against names a method of the second run"),
        (["compare", "a", "b", "--seed", "1"], "compare: unrecognized arguments: --seed 1"),
        (["--preset", "offline", "report", "a"], "'report': is neither a flag"),
    ],
)
def test_wrong_use_is_one_line_and_exits_with_2(words, says, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert tier_1.main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "tier_1.py: cannot run:" and lines[1].startswith(says)
    assert not list(tmp_path.iterdir()), "no log is begun"


@pytest.mark.parametrize(
    "words",
    [["report"], ["compare", "other"], ["search", "words"], ["export", "out"], ["--resume"]],
    ids=lambda w: w[0],
)
def test_a_folder_that_is_not_there_is_wrong_use_of_every_command(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert tier_1.main([words[0], "nowhere", *words[1:]]) == 2
    head, line = capsys.readouterr().err.splitlines()
    assert head == "tier_1.py: cannot run:" and "nowhere" in line and not list(tmp_path.iterdir())


def test_folders_that_are_no_run(run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for folder, says in (
        (tmp_path / "empty", "holds no results"),
        (run / "summary", "is part of a run"),
        (folder_of(run, "one"), "is part of a run"),
    ):
        assert tier_1.main(["report", str(folder)]) == 2
        assert says in capsys.readouterr().err


@pytest.mark.parametrize("content, says", [("{", "is not JSON"), ("[]", "lacks dataset"), ("{}", "lacks dataset")])
def test_a_broken_result_is_one_line_with_its_path(run, content, says, capsys):
    path = folder_of(run, "one") / "dataset.json"
    path.write_text(content)
    assert tier_1.main(["report", str(run)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}: ") and says in line


def test_a_folder_that_the_summary_names_is_gone(run, capsys):
    shutil.rmtree(folder_of(run, "two"))
    assert tier_1.main(["report", str(run)]) == 1
    assert "names results of beir_two, evaluated" in capsys.readouterr().err


def test_help_says_what_there_is(capsys):
    for words, says in ((["report", "--help"], "RUN_DIR"), (["compare", "--help"], "--against"), (["-h"], "compare")):
        with pytest.raises(SystemExit) as stopped:
            tier_1.main(words)
        assert stopped.value.code == 0 and says in capsys.readouterr().out


# --------------------------------------------------------------------------------------------------------- compare


def test_two_runs_are_tested_on_their_queries(runs, tmp_path, capsys):
    out = tmp_path / "out" / "comparison.json"
    assert tier_1.main(["compare", *map(str, runs), "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    rows = [row for row in found["comparisons"] if row["metric"] == "ndcg_cut_10"]
    assert [(row["dataset"], row["methods"]) for row in rows] == [
        (name, [method] * 2) for name in ("beir_one", "beir_two") for method in ("zero_shot", "maw")
    ]
    assert len(found["comparisons"]) == 4 * len(PRIMARY)
    for row in rows:
        values = [
            json.loads((folder_of(run, row["dataset"][5:]) / f"{find_method(name).short}_metrics.json").read_text())
            for run, name in zip(runs, row["methods"])
        ]
        a, b = (each["per_query"]["metrics"]["ndcg_cut_10"] for each in values)
        test = paired_test(a, b, permutations=found["permutations"], seed=42)
        assert row["p_value"] == test.p_value and row["mean_difference"] == pytest.approx(np.mean(a) - np.mean(b))
        assert (row["first"], row["second"]) == (pytest.approx(np.mean(a)), pytest.approx(np.mean(b)))
    assert [row["p_holm"] for row in rows] == pytest.approx(holm([row["p_value"] for row in rows]))
    assert rows[0]["p_value"] == 1.0 and rows[0]["effect_size"] is None, "without training they are the same"
    assert found["settings_that_differ"]["learning_rate"] == [1e-3, 2e-2]
    assert set(found["settings_that_differ"]) == {"learning_rate", "methods"}
    shown = capsys.readouterr().out
    assert "beir_two: maw" in shown and "0.001 in the first, 0.02 in the second" in shown
    assert max(map(len, shown.splitlines()[:-1])) <= 100


def test_methods_may_be_named(runs):
    found = compare_runs(runs[0], runs[0], method="maw", against="lora")
    for row in found["comparisons"]:
        result = json.loads((folder_of(runs[0], row["dataset"][5:]) / "dataset.json").read_text())
        test = result["significance"]["maw_vs_lora"][row["metric"]]
        assert row["mean_difference"] == pytest.approx(test["mean_difference"])
        assert row["t_p_value"] == pytest.approx(test["t_p_value"])
    assert found["settings_that_differ"] == {}
    with pytest.raises(ConfigError, match=r"no such pair of methods: .*a has zero_shot, lora, maw; .*b has zero"):
        compare_runs(*runs, method="lora")
    with pytest.raises(ConfigError, match="name one of the first run with --method, too"):
        compare_runs(*runs, against="maw")


def drop_queries(run: Path, name: str, keep: slice) -> None:
    """Leaves some queries of a dataset, as a run with fewer test samples would have drawn."""
    folder = folder_of(run, name)
    for path in folder.glob("*_metrics.json"):

        def change(content):
            values = content["per_query"]
            values["query_ids"] = values["query_ids"][keep]
            values["metrics"] = {key: each[keep] for key, each in values["metrics"].items()}

        edit(path, change)
    kept = set(json.loads(path.read_text())["per_query"]["query_ids"])
    qrels = folder / "runs" / f"beir_{name}_qrels.trec"
    lines = [line for line in qrels.read_text().splitlines() if line.split()[0] in kept]
    qrels.write_text("\n".join(lines) + "\n")
    edit(folder / "dataset.json", lambda content: content["tested_on"].update(qrels_sha256="0" * 64))


def test_only_common_queries_count(runs, run):
    drop_queries(run, "one", slice(3, None))
    found = compare_runs(run, runs[1], method="maw")
    counts = found["datasets"]["beir_one"]
    assert counts["only_in_second"] == 3 and counts["only_in_first"] == 0
    row = next(row for row in found["comparisons"] if row["dataset"] == "beir_one")
    assert row["n"] == counts["queries"]
    folders = [folder_of(each, "one") for each in (run, runs[1])]
    first, second = (json.loads((folder / "maw_metrics.json").read_text())["per_query"] for folder in folders)
    a, b = first["metrics"]["ndcg_cut_10"], second["metrics"]["ndcg_cut_10"][3:]
    assert row["mean_difference"] == pytest.approx(np.mean(a) - np.mean(b))


def other_corpus(run):
    edit(folder_of(run, "one") / "dataset.json", lambda content: content["tested_on"].update(corpus_sha256="0" * 64))


def other_level(run):
    edit(folder_of(run, "one") / "dataset.json", lambda content: content["tested_on"].update(relevance_level=2))


def other_judgement(run):
    edit(folder_of(run, "one") / "dataset.json", lambda content: content["tested_on"].update(qrels_sha256="0" * 64))
    path = folder_of(run, "one") / "runs" / "beir_one_qrels.trec"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0][:-1] + "3", *lines[1:]]) + "\n")


def no_judgements(run):
    other_judgement(run)
    (folder_of(run, "one") / "runs" / "beir_one_qrels.trec").unlink()


def earlier_version(run):
    edit(folder_of(run, "one") / "dataset.json", lambda content: content.pop("tested_on"))


def no_common_query(run):
    drop_queries(run, "one", slice(0, 0))


@pytest.mark.parametrize(
    "change, says",
    [
        (other_corpus, r"beir_one: they searched different corpora \(000000000000 and "),
        (other_level, "beir_one: passages are relevant from different grades on, 2 and 1"),
        (other_judgement, r"beir_one: 1 of \d+ common queries are judged differently, such as 'q\d+'"),
        (no_judgements, r"beir_one: the judgements differ \(000000000000 and .* one run did not keep them"),
        (earlier_version, "results without facts on the test queries: "),
        (no_common_query, "beir_one: they have no test query in common"),
    ],
)
def test_runs_that_do_not_compare_are_refused_with_the_reason(runs, run, change, says, capsys):
    change(run)
    assert tier_1.main(["compare", str(run), str(runs[1])]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: the runs do not compare: ") and re.search(says, line)


def test_all_reasons_are_given_at_once_and_other_datasets_are_no_common_ones(runs, run, capsys):
    for change in (other_corpus, other_level):
        change(run)
    assert tier_1.main(["compare", str(run), str(runs[1])]) == 1
    line = capsys.readouterr().err
    assert "different corpora" in line and "different grades" in line
    shutil.rmtree(run / "summary")
    for name in ("one", "two"):
        edit(folder_of(run, name) / "dataset.json", lambda content: content.update(dataset=f"x_{content['dataset']}"))
    assert tier_1.main(["compare", str(run), str(runs[1])]) == 1
    assert "no dataset in common" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_mistake(runs):
    command = [sys.executable, str(ROOT / "tier_1.py"), "compare", *map(str, runs)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait(240) == 141 and said == ""


def test_a_run_whose_reader_has_seen_enough_is_no_mistake(forks, models, tmp_path):
    folder = make_beir(tmp_path / "small", 5)
    words = [f"--datasets=beir:{folder}", f"--model={models('bert')}", "--device=cpu", "--dry-run", "--quiet"]
    code = "import os, sys\nreads, writes = os.pipe()\nos.close(reads)\nos.dup2(writes, 1)\n"
    done = forks.run("-c", f"{code}import tier_1\nsys.exit(tier_1.main({words}))", cwd=tmp_path, path=(ROOT,))
    assert (done.returncode, done.stderr) == (141, "")
