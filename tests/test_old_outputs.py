"""Outputs of earlier versions still work: models, reports, caches; an unfinished run is refused in one line.

`tests/fixtures/README.md` says what the archive holds and how it was made.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import drawing

import maw
import tier_1
from maw.config.tier1_config import Tier1Config
from maw.data.registry import load_collection
from maw.evaluation.evaluate import evaluate_retriever
from maw.evaluation.metrics import METRICS
from maw.experiment.past_run import PastRun
from maw.training.hard_negatives import mine_negatives

ARCHIVE = Path(__file__).parent / "fixtures" / "old_outputs.tar.xz"
TRAINED = ("lora", "maw")
CLOSE = 1e-6


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def old(unpacked, tmp_path, monkeypatch):
    """The current folder, with the old outputs in it under the relative names that they were made with."""
    folder = tmp_path / "old"
    shutil.copytree(unpacked, folder)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def embeddings(unpacked):
    return dict(np.load(unpacked / "embeddings.npz"))


def texts(name):
    """Texts by id of a file of the BEIR folder."""
    lines = map(json.loads, Path("small", f"{name}.jsonl").read_text().splitlines())
    return {each["_id"]: each["text"] for each in lines}


def asked():
    """The test queries' texts, in the order of their file."""
    judged = {line.split("\t")[0] for line in Path("small/qrels/test.tsv").read_text().splitlines()[1:]}
    return [text for name, text in texts("queries").items() if name in judged]


def passages():
    return list(texts("corpus").values())


def dataset_folder(log_dir):
    (path,) = Path(log_dir).glob("*/dataset.json")
    return path.parent


def recorded_values(method):
    """Metric -> the value of each test query that the old run wrote."""
    (path,) = dataset_folder("logs").glob(f"runs/*_{method}_per_query.parquet")
    table = pq.read_table(path)
    order = {query: row for row, query in enumerate(table["query_id"].to_pylist())}
    return order, {name: np.array(table[name]) for name in METRICS}


def apart(first, second):
    return np.abs(np.asarray(first) - np.asarray(second)).max()


# ------------------------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("method", TRAINED)
def test_a_checkpoint_computes_the_recorded_embeddings(old, embeddings, method):
    model = tier_1.load_checkpoint(f"logs/checkpoints/beir_small_{method}_best")
    assert apart(model.encode(asked(), "query"), embeddings[f"{method}_queries"]) < CLOSE
    assert apart(model.encode(passages(), "document"), embeddings[f"{method}_passages"]) < CLOSE
    assert model.checkpoint["epoch"] == PastRun.open("logs").record(method)["best_epoch"]


def test_the_two_checkpoints_are_not_alike(embeddings):
    """Else one of them, or the pretrained model, would pass for the other."""
    assert apart(embeddings["lora_passages"], embeddings["maw_passages"]) > 0.01


@pytest.mark.parametrize("method", ("zero_shot", *TRAINED))
def test_a_past_runs_model_has_the_recorded_value_of_every_query(old, method):
    run = PastRun.open("logs")
    order, expected = recorded_values(method)
    test = load_collection("beir:small", run.config).test
    found = evaluate_retriever(run.model(method), test, run.config, "cpu")
    rows = [order[query] for query in found.query_ids]
    assert len(rows) == 13
    for name in METRICS:
        np.testing.assert_allclose(found.per_query[name], expected[name][rows], rtol=0, atol=1e-12, err_msg=name)
        assert found[name] == pytest.approx(run.record(method)["metrics"][name], abs=1e-12)
    if method == "maw":
        routing = run.record(method)["evaluation"]["routing"]
        assert found.facts["routing"] == routing
        assert min(routing["query"]["effective_depths"]) > 1.3, "texts take different depths"


@pytest.mark.parametrize("method", TRAINED)
def test_an_export_computes_the_recorded_embeddings(old, embeddings, method):
    check_export(Path("exports", method), method, embeddings)


@pytest.mark.parametrize("method", TRAINED)
def test_an_old_run_is_exported_now(old, embeddings, method):
    assert tier_1.main(["export", "logs", "exported", "--method", method]) == 0
    check_export(Path("exported"), method, embeddings)


def check_export(folder, method, embeddings):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", trust_remote_code=method == "maw", local_files_only=True)
    assert apart(model.encode_query(asked()), embeddings[f"{method}_queries"]) < 1e-5
    assert apart(model.encode_document(passages()), embeddings[f"{method}_passages"]) < 1e-5


def test_what_save_maw_wrote_is_loaded(old, embeddings):
    from transformers import AutoModel, AutoTokenizer

    pretrained = AutoModel.from_pretrained("model")
    inputs = AutoTokenizer.from_pretrained("model")(passages(), padding=True, return_tensors="pt")

    def first_tokens(model):
        with torch.no_grad():
            return model.eval()(**inputs).last_hidden_state[:, 0].numpy()

    assert apart(first_tokens(pretrained), embeddings["saved_first_tokens"]) > 0.1
    loaded = maw.load_maw(pretrained, "saved")
    assert apart(first_tokens(loaded), embeddings["saved_first_tokens"]) < 1e-5


# ----------------------------------------------------------------------------------------------------------- commands


def test_report_makes_the_same_tables_and_tests_again(old):
    files = [
        Path("logs/summary", name) for name in ("metrics_comparison.csv", "confirmatory.json", "exploratory.json")
    ]
    before = [path.read_bytes() for path in files]
    for path in files:
        path.unlink()
    with drawing():
        assert tier_1.main(["report", "logs"]) == 0
    assert [path.read_bytes() for path in files] == before
    assert Path("logs/summary/report.html").stat().st_size > 10_000
    assert len([*dataset_folder("logs").glob("figures/*.svg")]) >= 5


def test_compare_tests_what_the_old_run_tested(old):
    words = ["compare", "logs", "logs", "--method", "maw", "--against", "lora", "--out", "compared.json"]
    assert tier_1.main(words) == 0
    recorded = json.loads(Path("logs/summary/confirmatory.json").read_text())["comparisons"][0]
    compared = json.loads(Path("compared.json").read_text())["comparisons"]
    (found,) = [each for each in compared if each["metric"] == "ndcg_cut_10"]
    assert {name: found[name] for name in ("mean_difference", "p_value", "n", "wins", "losses")} == {
        name: recorded[name] for name in ("mean_difference", "p_value", "n", "wins", "losses")
    }


@pytest.mark.parametrize("method", ("zero_shot", *TRAINED))
def test_search_finds_what_the_old_run_found(old, capsys, method):
    ranking = next(dataset_folder("logs").glob(f"runs/*_{method}.trec")).read_text().splitlines()
    query, _, best, _, score, _ = ranking[0].split()
    assert tier_1.main(["search", "logs", texts("queries")[query], "--method", method, "--k", "1"]) == 0
    hit = next(line.split() for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["1"])
    assert hit[2] == best
    assert float(hit[1]) == pytest.approx(float(score), abs=1e-4)


def test_the_events_of_a_run_are_read(old):
    (path,) = Path("logs").glob("run_*.jsonl.gz")
    events = list(maw.read_events(path))
    assert events[0]["event"] == "run" and events[0]["configuration"]["datasets"] == ["beir:small"]
    assert [(each["method"], each["epoch"]) for each in events if each["event"] == "epoch"] == [
        (method, epoch) for method in TRAINED for epoch in (1, 2)
    ]


# ------------------------------------------------------------------------------------------------------------- caches


def place_passage_store():
    """Gives the old passage store the name and the source that it would have, had it been made in this folder."""
    corpus = Path("small/corpus.jsonl").resolve()
    folder = Path("cache/corpora/beir-small")
    manifest = json.loads((folder / "manifest.json").read_text())
    stat = corpus.stat()
    manifest["source"] |= {"path": str(corpus), "stat": [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]}
    del manifest["sha256"]
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode("ascii")).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest | {"sha256": digest}))
    key = hashlib.sha256(str(corpus).encode()).hexdigest()[:16]
    return folder.rename(folder.with_name(f"beir-{key}"))


def test_a_run_with_the_old_caches_comes_to_the_old_results(old):
    """The caches are used or made anew, as other machines and libraries have it; either way nothing else comes out."""
    store = place_passage_store()
    config = Tier1Config.from_dict(PastRun.open("logs").result["configuration"])
    tier_1.run_complete_benchmark(replace(config, log_dir="again"))
    before, now = (PastRun.open(log_dir) for log_dir in ("logs", "again"))
    for method in ("zero_shot", "lora"):  # MAW's router is trained in another way now
        expected = before.record(method)["metrics"]
        assert now.record(method)["metrics"] == pytest.approx(expected, abs=1e-12), method
    assert [path.name for path in store.parent.glob("beir-*") if path.is_dir()] == [store.name]


@pytest.mark.parametrize("pattern", ("cache/corpora/*/passages.arrow", "cache/embeddings/*/embeddings.npy"))
def test_a_damaged_old_cache_is_made_anew(old, pattern):
    place_passage_store()
    for path in Path().glob(pattern):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    run = PastRun.open("logs")
    test = load_collection("beir:small", run.config).test
    found = evaluate_retriever(run.model("zero_shot"), test, run.config, "cpu")
    assert found == pytest.approx(run.record("zero_shot")["metrics"], abs=1e-12)


@pytest.mark.parametrize("lost", ((), ("negatives",), ("negatives", "bm25")))
def test_negatives_are_those_of_the_old_run(old, lost):
    """Read from the old file, chosen again with the old index, or chosen again with a new one."""
    place_passage_store()
    (path,) = Path("cache/negatives").glob("*.json")
    expected = json.loads(path.read_text())["negatives"]
    for name in lost:
        shutil.rmtree(Path("cache", name))
    config = PastRun.open("logs").config
    assert mine_negatives(load_collection("beir:small", config).train, config)[0].negatives == expected


# ---------------------------------------------------------------------------------------------------- unfinished runs


@pytest.mark.parametrize("words", (["--resume", "unfinished"], ["--resume", "last", "--log-dir", "unfinished"]))
def test_an_unfinished_run_is_refused_in_one_line(old, capsys, words):
    assert tier_1.main(words) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "tier_1.py: cannot run:"
    assert len(said) == 2 and said[1].startswith("--resume unfinished: ")
    assert "another version of this program; only the version that wrote it can resume the run" in said[1]


def test_an_unfinished_run_is_not_overwritten_unasked(old, capsys):
    before = {path: path.read_bytes() for path in Path("unfinished").glob("[sc]*/**/*") if path.is_file()}
    words = ["--model", "model", "--datasets", "beir:small", "--log-dir", "unfinished", "--cache-dir", "cache"]
    assert tier_1.main([*words, "--device", "cpu"]) == 2
    assert "holds an unfinished run" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before


def test_an_unfinished_run_gives_way_to_restart(old):
    words = ["--model", "model", "--datasets", "beir:small", "--log-dir", "unfinished", "--cache-dir", "cache"]
    assert tier_1.main([*words, "--device", "cpu", "--methods", "zero_shot", "--restart"]) == 0
    assert PastRun.open("unfinished").methods == ["zero_shot"]
    assert not Path("unfinished/state").exists()
