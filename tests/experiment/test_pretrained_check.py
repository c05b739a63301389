"""A model that cannot tell texts apart stops doctor, the plan and the run alike, before anything is trained."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import tier_1
from maw.experiment import dataset_run, pretrained_check
from maw.experiment.benchmark import run_complete_benchmark

COMMIT = "a" * 40


@pytest.fixture
def copied(models, tmp_path):
    shutil.copytree(models("bert"), tmp_path / "model")
    return tmp_path / "model"


def flags(model, tiny_beir, tmp_path):
    places = ["--log-dir", str(tmp_path / "logs"), "--cache-dir", str(tmp_path / "cache")]
    return ["--model", str(model), "--datasets", f"beir:{tiny_beir}", *places, "--device", "cpu"]


@pytest.mark.parametrize("command", [["doctor"], ["--dry-run"], [], ["--methods", "zero_shot"]])
def test_a_model_without_its_tokenizer(copied, tiny_beir, tmp_path, capsys, command):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copied / name).unlink()
    rest = flags(copied, tiny_beir, tmp_path)
    assert tier_1.main([*command, *rest]) != 0
    shown = " ".join("".join(capsys.readouterr()).split())
    assert f"model {copied}: its tokenizer is missing: {copied} has no tokenizer.json, and none of vocab.txt" in shown
    assert not list((tmp_path / "logs").rglob("*.json"))


@pytest.mark.parametrize("command", [["doctor"], ["--dry-run"], ["--methods", "zero_shot"]])
def test_a_tokenizer_that_exceeds_the_embeddings(copied, tiny_beir, tmp_path, capsys, command):
    tokenizer = json.loads((copied / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["zebra"] = 46
    (copied / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert tier_1.main([*command, *flags(copied, tiny_beir, tmp_path)]) != 0
    shown = " ".join("".join(capsys.readouterr()).split())
    assert "it can produce 'zebra', number 46, but the model has embeddings for 46 tokens" in shown


@pytest.mark.parametrize("methods", [["zero_shot"], ["lora"]])
def test_a_model_that_embeds_all_texts_alike(copied, tiny_beir, tmp_path, capsys, methods):
    weights = load_file(copied / "model.safetensors")
    for name in ("word_embeddings", "position_embeddings"):
        weights[f"embeddings.{name}.weight"].zero_()
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    assert tier_1.main([*flags(copied, tiny_beir, tmp_path), "--methods", *methods]) != 0
    shown = " ".join("".join(capsys.readouterr()).split())
    assert "of 14 different queries, all have the same embedding; check that the tokenizer belongs" in shown
    assert not (tmp_path / "logs" / "summary").exists()


def test_a_hub_model_whose_weights_alone_are_in_the_cache(models, tmp_path):
    """Without a network nothing can be fetched, and transformers would make an empty tokenizer."""
    cache = tmp_path / "home" / "hub" / "models--org--model"
    snapshot, absent = cache / "snapshots" / COMMIT, cache / ".no_exist" / COMMIT
    shutil.copytree(models("bert"), snapshot)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(COMMIT)
    absent.mkdir(parents=True)
    (absent / "config_sentence_transformers.json").touch()
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    code = (
        "import pathlib, sys, tier_1\nwords = ['doctor', '--model', 'org/model', '--datasets', 'pystdlib']\n"
        "tier_1.main(words)\nprint('without')\npathlib.Path(sys.argv[1]).unlink()\ntier_1.main(words)"
    )
    command = [sys.executable, "-c", code, str(snapshot / "tokenizer.json")]
    environment["PYTHONPATH"] = str(Path(tier_1.__file__).parent)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    whole, _, without = done.stdout.partition("\nwithout\n")
    missing = "its tokenizer is missing: the local cache has no tokenizer.json"
    assert "its weights are here" in whole and missing not in whole, done.stdout + done.stderr
    assert missing in without, done.stdout + done.stderr


def test_texts_in_words_that_the_tokenizer_does_not_know(tiny_settings, tmp_path, caplog):
    folder = tmp_path / "foreign"
    (folder / "qrels").mkdir(parents=True)
    numbers = range(6)
    words = ("file", "list", "path", "word", "date", "time")
    passages = [{"_id": f"d{i}", "text": f"{words[i]} qq rr ss"} for i in numbers]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, passages)))
    queries = [{"_id": f"q{i}", "text": f"{words[i]} xx yy"} for i in numbers]
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    lines = ["query-id\tcorpus-id\tscore", *(f"q{i}\td{i}\t1" for i in numbers)]
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")
    run_complete_benchmark(tiny_settings(datasets=[f"beir:{folder}"], methods=["zero_shot"]))
    warned = [each.getMessage() for each in caplog.records if "unknown to the tokenizer" in each.getMessage()]
    assert ["67%" in warned[0], "75%" in warned[1], len(warned)] == [True, True, 2]
    assert warned[0].startswith("beir_foreign: model ") and "of 6 different queries" in warned[0]


def test_the_check_changes_no_number(tiny_settings, tiny_beir, tmp_path, monkeypatch):
    found = []
    for name in ("checked", "unchecked"):
        places = {"log_dir": str(tmp_path / name / "logs"), "cache_dir": str(tmp_path / name / "cache")}
        methods = ["zero_shot", "lora", "maw"]
        config = tiny_settings(datasets=[f"beir:{tiny_beir}"], methods=methods, num_epochs=1, **places)
        (result,) = run_complete_benchmark(config).values()
        found.append({method: each["metrics"] for method, each in result["results"].items()})
        monkeypatch.setattr(dataset_run, "checked_retriever", lambda *arguments: None)
    assert found[0] == found[1]


def test_the_check_is_done_once_for_each_dataset_before_the_negatives(tiny_settings, tiny_beir, monkeypatch):
    order = []
    real_check, real_prepare = pretrained_check.check_texts, dataset_run.prepare_training
    monkeypatch.setattr(pretrained_check, "check_texts", lambda *rest: (order.append(rest[2]), real_check(*rest))[1])
    monkeypatch.setattr(
        dataset_run, "prepare_training", lambda *rest: (order.append("negatives"), real_prepare(*rest))[1]
    )
    config = tiny_settings(
        datasets=[f"beir:{tiny_beir}"], methods=["lora"], negative_source="dense", num_negatives=2, num_epochs=1
    )
    run_complete_benchmark(config)
    assert order == ["beir_small", "negatives"]
