"""The research log: its experiments run, results are kept, and its pages show them."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from bench import oracle, research, trainings
from bench.experiments import BASE, EXPERIMENTS, ORACLES, SEEDS_ALONE, Experiment, Run
from maw.config.methods import find_method

SECTIONS_OF_DATA = (
    "datasets", "train_samples", "val_samples", "corpus_size", "val_corpus_size", "distractors", "num_negatives",
    "negative_source", "hard_negative_ratio", "negative_margin", "folds",
)  # fmt: skip
ALL_RUNS = [(experiment.name, run) for experiment in EXPERIMENTS for run in experiment.runs] + [
    ("oracle", run) for run in (SEEDS_ALONE, *ORACLES)
]


class FakeBench:
    """Trainings without models: each run's values are its label's number of letters, for every query."""

    def __init__(self):
        self.trained = []

    def train(self, run):
        self.trained.append(run.label)
        values = np.linspace(0, 1, 40) * len(run.label)
        return values, {
            "label": run.label,
            "method": run.method,
            "settings": dict(run.settings),
            "seeds": list(run.seeds),
            "by_seed": [float(values.mean())] * len(run.seeds),
            "commit": "abc1234",
            "machine": {"processor": "a processor"},
            "queries": 40,
            "ndcg_cut_10": float(values.mean()),
            "seconds": 1.0,
            "routing": {},
        }


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(research, "FOLDER", tmp_path)
    return tmp_path


THREE = Experiment("three", "Why?", (Run("a", "lora"), Run("bb", "full"), Run("ccc", "maw", {"depth_dim": 4})), "So.")


def stored(folder, name="three"):
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["runs"]


@pytest.mark.parametrize(("name", "run"), ALL_RUNS, ids=[f"{name}: {run.label}" for name, run in ALL_RUNS])
def test_every_run_is_one_that_the_benchmark_takes(name, run):
    config = find_method(run.method).configure(trainings.configuration(run))
    assert config.max_document_length == 64 and config.precision == "bfloat16"
    if run.method != "full_lowrank":  # which makes its one depth as large as those that are set
        assert all(getattr(config, key) == value for key, value in run.settings.items()), "it is the method's own"


def test_data_differ_only_by_settings_that_the_bench_looks_at():
    about_data = {name for name in SECTIONS_OF_DATA if any(name in run.settings for _, run in ALL_RUNS)}
    assert about_data <= set(trainings.DATA_SETTINGS)


def test_experiments_can_be_told_apart():
    assert len({each.name for each in EXPERIMENTS}) == len(EXPERIMENTS)
    for experiment in EXPERIMENTS:
        assert len({run.label for run in experiment.runs}) == len(experiment.runs)
        kinds = {(run.method, json.dumps(dict(run.settings), sort_keys=True), run.seeds) for run in experiment.runs}
        assert len(kinds) == len(experiment.runs), "the same run twice"


def test_runs_are_compared_with_the_first_by_query(folder, capsys):
    bench = FakeBench()
    research.run_experiment(THREE, bench)
    first, second, third = stored(folder)
    assert "against_first" not in first and bench.trained == ["a", "bb", "ccc"]
    assert second["against_first"]["mean_difference"] == pytest.approx(0.5)
    assert third["against_first"]["mean_difference"] == pytest.approx(1.0) and third["against_first"]["n"] == 40
    assert capsys.readouterr().out.count("\n") == 3


def test_what_is_there_is_not_run_again_and_what_changed_is(folder):
    research.run_experiment(THREE, FakeBench())
    bench = FakeBench()
    research.run_experiment(THREE, bench)
    assert bench.trained == []
    changed = Experiment("three", "Why?", (*THREE.runs[:2], Run("ccc", "maw", {"depth_dim": 8})))
    research.run_experiment(changed, bench)
    assert bench.trained == ["ccc", "a"], "the reference is trained anew to compare by query"
    assert stored(folder)[2]["settings"] == {"depth_dim": 8} and "against_first" in stored(folder)[1]
    bench = FakeBench()
    research.run_experiment(changed, bench, again=True)
    assert bench.trained == ["a", "bb", "ccc"]


def test_a_run_with_several_seeds_is_their_mean_by_query(folder, monkeypatch):
    def train(seed):
        side = {
            "effective_depths": [seed / 10.0],
            "learnable_headroom": None if seed == 2 else 0.5,
            "top_share": [1.0],
        }
        found = {"ndcg_cut_10": seed / 4.0, "best_epoch": 3, "routing": {"query": side}, "seconds": float(seed)}
        return np.array([seed / 4.0, 0.0, seed / 2.0]), found

    bench = object.__new__(trainings.Bench)
    monkeypatch.setattr(bench, "_train", lambda run, seed: train(seed), raising=False)
    values, found = bench.train(Run("two", "maw", {"depth_dim": 4}, seeds=(1, 2)))
    np.testing.assert_allclose(values, [0.375, 0.0, 0.75])
    assert (found["ndcg_cut_10"], found["by_seed"], found["seeds"]) == (0.375, [0.25, 0.5], [1, 2])
    assert found["best_epoch"] == 3 and found["seconds"] == 3.0 and found["queries"] == 3
    side = found["routing"]["query"]
    assert side["effective_depths"] == pytest.approx([0.15]) and side["top_share"] == [1.0]
    assert side["learnable_headroom"] is None, "one of the seeds has none"
    row = research._row(found, 0)
    assert row[3] == "0.3750 (0.2500, 0.5000)"
    assert research._row(found | {"seeds": [1], "by_seed": [0.375]}, 0)[3] == "0.3750"
    stored_run = json.loads(json.dumps(found))
    assert research._is_of(stored_run, Run("another name", "maw", {"depth_dim": 4}, seeds=(1, 2)))
    assert not research._is_of(stored_run, Run("two", "maw", {"depth_dim": 4}, seeds=(1, 3)))


def test_the_page_shows_each_run_with_its_place_and_headroom(folder):
    research.run_experiment(THREE, FakeBench())
    content = json.loads((folder / "three.json").read_text(encoding="utf-8"))
    side = {"effective_depths": [4.25], "learnable_headroom": -0.00126, "learnable_headroom_error": 0.0005}
    content["runs"][2]["routing"] = {"query": side, "document": side | {"effective_depths": [1.0, 2.0]}}
    pages = research.research_pages({"three": content}, (THREE, Experiment("later", "And?", (Run("d"),))))
    page, index = pages["research/three.md"], pages["research.md"]
    row = next(line for line in page.splitlines() if "3. ccc" in line)
    assert "| `depth_dim` 4 |" in row and "| 4.2 / 1.0, 2.0 |" in row and row.count("-0.0013 ± 0.0005") == 2
    assert "python -m bench.research three\n" in page and "\nSo.\n" in page and "commit abc1234" in page
    assert "Not run yet." in pages["research/later.md"] and f"`seed` {BASE['seed']}" in index
    assert "## three\n\nWhy?\n\n[Runs and conclusion](research/three.md)\n" in index


def test_the_pages_in_the_docs_are_those_of_the_results():
    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in research.FOLDER.glob("*.json")}
    pages = research.research_pages(results)
    for name, page in pages.items():
        assert (research.DOCS / name).read_text(encoding="utf-8") == page, "run python -m bench.research --page"
    there = {f"research/{path.name}" for path in (research.DOCS / "research").iterdir()}
    assert there == (pages.keys() - {"research.md"}) | {"research/router.md"}, "a page of an experiment that is gone"


def test_the_index_keeps_the_anchors_of_the_time_when_the_log_was_one_page():
    index = (research.DOCS / "research.md").read_text(encoding="utf-8")
    headings = {*re.findall("^##+ (.*)$", index, re.M)}
    assert headings >= {"layers", "specialise", "signal", "longer", "collapse", "headroom", "clusters", "default"}
    assert headings >= {"default_hard", "oracle", "Limits", "Methods, tuned alike", "MS MARCO"}


def test_the_oracle_over_depths_is_shown_against_that_of_the_seeds(tmp_path):
    assert "Not run yet." in oracle.oracle_page(tmp_path / "none.json")
    row = {"label": "8 depths", "oracle_null": 0.75, "models_mean": 0.5, "oracle_depths": 0.875, "depths_mean": 0.5}
    content = {"commit": "abc", "machine": {"processor": "a processor"}, "rows": [row | {"excess": 0.125}]}
    (tmp_path / "some.json").write_text(json.dumps(content), encoding="utf-8")
    text = oracle.oracle_page(tmp_path / "some.json")
    assert f"| {SEEDS_ALONE.label} | 0.7500 | 0.5000 | +0.2500 |  |" in text
    assert "| 8 depths | 0.8750 | 0.5000 | +0.3750 | +0.1250 |" in text and "commit abc" in text


def test_depths_are_held_against_models_as_large_that_only_their_seed_tells_apart():
    assert SEEDS_ALONE.method == "full_lowrank" and len(set(SEEDS_ALONE.seeds)) == 8
    assert all(trainings.configuration(run).depth_dim >= len(SEEDS_ALONE.seeds) for run in ORACLES)
    assert all(len(run.seeds) == 1 for run in ORACLES)


@pytest.mark.parametrize(
    "words", [["nothing"], ["--run", "1"], ["layers", "--run", "0"], ["layers", "collapse", "--run", "1"]]
)
def test_a_wrong_command_says_so(words, capsys):
    with pytest.raises(SystemExit) as stop:
        research.main(words)
    assert stop.value.code == 2 and "error:" in capsys.readouterr().err
