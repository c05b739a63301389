"""A run with relative paths: searched, exported, loaded, compared and resumed from other folders, and moved."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import tier_1
from maw.config.tier1_config import Tier1Config
from maw.data.from_dicts import as_retrieval_data
from maw.errors import MAWError
from maw.experiment.method_trainer import MethodTrainer
from maw.experiment.past_run import PastRun
from maw.report.compare import compare_runs
from maw.storage.checksummed import read_signed, write_signed
from maw.training.hard_negatives import mine_negatives

WORDS = [
    "--depth-dim=4", "--num-epochs=1", "--batch-size=8", "--permutations=200", "--precision=float32", "--device=cpu",
    "--router-start=uniform", "--methods=zero_shot,lora", "--cache-dir=cache",
]  # fmt: skip
RELATIVE = ["--model", "model", "--datasets", "beir:data/small", "--distractors", "data/more", *WORDS]


def lay_out(folder, models, tiny_beir):
    shutil.copytree(models("bert"), folder / "model")
    shutil.copytree(tiny_beir, folder / "data" / "small")
    (folder / "data" / "more").mkdir()
    (folder / "data" / "more" / "corpus.jsonl").write_text('{"_id": "x", "text": "sort the date of a file"}\n')


@pytest.fixture(scope="module")
def made(models, tiny_beir, tmp_path_factory):
    """A folder with model, data and logs/run, a run with relative paths."""
    folder = tmp_path_factory.mktemp("made")
    lay_out(folder, models, tiny_beir)
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert tier_1.main([*RELATIVE, "--log-dir", "logs/run"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def start(made, tmp_path, monkeypatch):
    """A copy of it that may be changed, in which nothing refers to the first; the current folder is another."""
    folder = tmp_path / "project"
    shutil.copytree(made, folder)
    for path in folder.glob("logs/run/*/dataset.json"):
        path.write_text(path.read_text().replace(str(made), str(folder)))
    for path in folder.glob("logs/run/checkpoints/*/checkpoint.json"):
        record = read_signed(path)
        write_signed(path, json.loads(json.dumps(record).replace(str(made), str(folder))))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return folder


def test_the_stored_settings_are_absolute(start):
    config = PastRun.open(start / "logs/run").config
    assert (config.model, config.log_dir) == (f"{start}/model", f"{start}/logs/run")
    assert (config.datasets, config.distractors) == ([f"beir:{start}/data/small"], [f"{start}/data/more"])


def test_a_report_shows_short_paths(made):
    text = next(made.glob("logs/run/summary/benchmark_summary.txt")).read_text()
    assert "data/small" in text and str(made) not in text


def test_search_export_and_load_from_another_folder(start, capsys):
    assert tier_1.main(["search", "../project/logs/run", "a file", "--k", "1"]) == 0
    assert tier_1.main(["export", str(start / "logs/run"), "out", "--method", "lora"]) == 0
    assert tier_1.load_checkpoint("../project/logs/run/checkpoints/beir_small_lora_best").encode(["a"]).shape == (
        1,
        16,
    )
    assert PastRun.open("../project/logs/run/").model("zero_shot").encode(["a"]).shape == (1, 16)


def test_a_run_that_moved_with_its_neighbours(start, tmp_path, capsys):
    shutil.move(start, tmp_path / "away")
    assert tier_1.main(["search", "../away/logs/run", "a file", "--k", "1"]) == 0
    assert tier_1.load_checkpoint(tmp_path / "away/logs/run/checkpoints/beir_small_lora_best")


def test_a_run_that_moved_alone_says_what_is_missing_and_takes_the_new_place(start, tmp_path, capsys):
    shutil.move(start / "logs/run", tmp_path / "run")
    shutil.rmtree(start / "logs")
    shutil.move(start, tmp_path / "gone")
    lost = f"needs the folder {start}/model, which is not there"
    assert tier_1.main(["export", "../run", "out", "--method", "lora"]) == 1
    assert lost in capsys.readouterr().err
    assert tier_1.main(["search", "../run", "a file"]) == 1
    assert f"needs the folder {start}/data/small, which is not there" in capsys.readouterr().err
    with pytest.raises(MAWError, match=lost):
        tier_1.load_checkpoint("../run/checkpoints/beir_small_lora_best")
    with pytest.raises(MAWError, match=lost):
        PastRun.open("../run").model("zero_shot")
    moved = [str(tmp_path / "gone" / name) for name in ("model", "data/small", "data/more")]
    assert tier_1.load_checkpoint("../run/checkpoints/beir_small_lora_best", moved=moved)
    assert tier_1.main(["export", "../run", "out", "--method", "lora", "--moved", moved[0]]) == 0
    assert tier_1.main(["search", "../run", "a file", "--moved", f"{moved[0]}s"]) == 1
    assert "there is no such folder (did you mean model?)" in capsys.readouterr().err
    flags = [word for each in moved for word in ("--moved", each)]
    assert tier_1.main(["search", "../run", "a file", "--k", "1", *flags]) == 0


def test_passages_that_changed_are_refused(start):
    with (start / "data/more/corpus.jsonl").open("a") as file:
        file.write('{"_id": "y", "text": "another text of a file"}\n')
    with pytest.raises(MAWError, match="have changed since the run"):
        PastRun.open(start / "logs/run").corpus()


def test_runs_from_different_folders_have_the_same_settings(start, tmp_path, monkeypatch):
    monkeypatch.chdir(start / "data")
    words = ["--model", "../model/", "--datasets", "beir:./small", "--distractors", "../data/more", *WORDS]
    assert tier_1.main([*words, "--log-dir", "../logs/again"]) == 0
    monkeypatch.chdir(tmp_path)
    assert compare_runs(start / "logs/run", start / "logs/again")["settings_that_differ"] == {}


def test_the_cache_of_dense_negatives_does_not_depend_on_the_spelling(
    made, models, tiny_settings, tiny_data, tmp_path, monkeypatch
):
    data = as_retrieval_data(tiny_data)
    monkeypatch.chdir(made)
    for model in ("model", "./model/", str(made / "model")):
        mine_negatives(data, tiny_settings(model=model, negative_source="dense", cache_dir=str(tmp_path / "c")))
    mine_negatives(
        data, tiny_settings(model=f"{made}/data/../model", negative_source="dense", cache_dir=str(tmp_path / "c"))
    )
    assert len(list((tmp_path / "c" / "negatives").glob("*.json"))) == 1


# ------------------------------------------------------------------------------------------------------- --resume


@pytest.fixture
def interrupted(models, tiny_beir, tmp_path, monkeypatch):
    """A run with relative paths that stopped after zero_shot; its folder."""
    folder = tmp_path / "project"
    folder.mkdir()
    lay_out(folder, models, tiny_beir)
    monkeypatch.chdir(folder)
    with monkeypatch.context() as patch:
        patch.setattr(MethodTrainer, "train", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt()))
        assert tier_1.main([*RELATIVE, "--log-dir", "logs/run"]) == 130
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return folder


@pytest.mark.parametrize(
    "words",
    [
        ["--resume", "../project/logs/run"],
        [
            "--resume",
            "../project/logs/run/",
            "--model",
            "../project/model/",
            "--datasets",
            "beir:../project/data/small",
        ],
        ["--resume", "last", "--log-dir", "../project/logs"],
    ],
)
def test_a_run_is_resumed_from_another_folder(interrupted, words):
    assert tier_1.main(words) == 0
    assert PastRun.open(interrupted / "logs/run").methods == ["zero_shot", "lora"]
    assert not Path("cache").exists(), "the cache is where it was"


def test_a_run_is_resumed_from_python_in_another_folder(interrupted):
    results = tier_1.run_complete_benchmark(Tier1Config.from_run("../project/logs/run"))
    assert list(results) == ["beir_small"]


def test_a_run_that_moved_is_resumed(interrupted, tmp_path, capsys):
    shutil.move(interrupted, tmp_path / "away")
    assert tier_1.main(["--resume", "../away/logs/run"]) == 0


def test_a_run_whose_model_moved_is_resumed_with_its_new_place(interrupted, tmp_path, capsys):
    (tmp_path / "far").mkdir()
    shutil.move(interrupted / "model", tmp_path / "far" / "model")
    assert tier_1.main(["--resume", "../project/logs/run"]) == 2
    assert f"needs {interrupted}/model, which is not there" in capsys.readouterr().err
    assert tier_1.main(["--resume", "../project/logs/run", "--model", "../far/model"]) == 0


def test_another_model_is_still_refused(interrupted, tmp_path, models, capsys):
    shutil.copytree(models("roberta"), tmp_path / "far" / "model")
    assert tier_1.main(["--resume", "../project/logs/run", "--model", "../far/model"]) == 2
    assert "model: was" in capsys.readouterr().err
    shutil.move(interrupted / "model", interrupted / "moved")
    assert tier_1.main(["--resume", "../project/logs/run", "--model", "../far/model"]) == 2
    assert "have changed since it started" in capsys.readouterr().err, "its weights are others"


@pytest.mark.parametrize("name", ["-a,b", "#a 100% cafe\u0301"])
def test_a_whole_run_under_an_odd_name(models, tiny_beir, tmp_path, monkeypatch, name):
    (tmp_path / name).mkdir()
    lay_out(tmp_path / name, models, tiny_beir)
    monkeypatch.chdir(tmp_path)
    words = [f"--model={name}/model", f"--datasets=beir:{name}/data/small", f"--distractors={name}/data/more"]
    assert tier_1.main([*words, *WORDS, f"--log-dir={name}/logs", "--quiet"]) == 0
    monkeypatch.chdir("/")
    assert tier_1.main(["search", str(tmp_path / name / "logs"), "a file", "--k", "1"]) == 0
    assert (
        tier_1.main(["export", str(tmp_path / name / "logs"), str(tmp_path / name / "out"), "--method", "lora"]) == 0
    )
