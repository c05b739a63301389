"""Several GPUs: what a CPU can show of it, and, marked `gpu`, the thing itself.

python -m pytest -m gpu tests/test_multi_gpu.py
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import random_texts
from faults.runs import beir_folder
from safetensors.torch import load_file
from torch import nn

import maw.runtime.devices as parallel
from maw.evaluation.evaluate import evaluate_retriever
from maw.models.retriever import BaselineRetriever, MAWRetriever
from maw.runtime import distributed
from maw.runtime.devices import count_replicas, device_of, replicate, unwrap
from maw.training.checkpoint import load_checkpoint, save_checkpoint
from maw.training.train import train_retriever

ROOT = Path(__file__).resolve().parents[1]
CUDA = torch.device("cuda")
RETRIEVERS = {"lora": (BaselineRetriever, {"use_lora": True}), "maw": (MAWRetriever, {})}


# ------------------------------------------------------------------------------------------------------ on any machine


def test_a_batch_is_split_over_all_visible_gpus_unless_one_is_named(tiny_settings, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert count_replicas(tiny_settings(), CUDA) == 4
    assert count_replicas(tiny_settings(use_multi_gpu=False), CUDA) == 1
    assert count_replicas(tiny_settings(), torch.device("cuda:1")) == 1
    assert count_replicas(tiny_settings(), torch.device("cpu")) == 1


def test_what_is_used_is_said_once(tiny_settings, monkeypatch, caplog):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr(nn.DataParallel, "__init__", lambda self, module: nn.Module.__init__(self))
    parallel._say_once.cache_clear()
    with caplog.at_level(logging.INFO, "maw"):
        for _ in range(3):
            replicate(nn.Linear(1, 1), tiny_settings(), CUDA)
    parallel._say_once.cache_clear()
    assert [record.getMessage() for record in caplog.records] == ["using DataParallel across 2 GPUs"]


@pytest.mark.parametrize("said", [{}, {"NCCL_P2P_DISABLE": "1"}, {"NCCL_P2P_LEVEL": "SYS"}])
def test_nccl_is_told_nothing_that_the_environment_says_already(monkeypatch, said):
    for name in ("NCCL_P2P_DISABLE", "NCCL_P2P_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    distributed.avoid_hangs()
    assert dict(os.environ) == before | ({} if said else {"NCCL_P2P_LEVEL": "NVL"})


@pytest.mark.parametrize("arm", RETRIEVERS)
def test_a_model_that_is_wrapped_already_is_taken_as_it_is(tiny_settings, tiny_data, tmp_path, arm):
    kind, changes = RETRIEVERS[arm]
    config = tiny_settings(num_epochs=1, **changes)
    found = []
    for wrap in (lambda model: model, nn.DataParallel):  # on a CPU this calls what is inside
        model = wrap(kind(config))
        history = train_retriever(model, tiny_data, tiny_data, config)
        result = evaluate_retriever(model, tiny_data, config)
        folder = tmp_path / str(len(found))
        known = {"dataset": "d", "method": arm, "epoch": 1, "best_val_metric": 0.5, "training_history": []}
        save_checkpoint(folder, model, **known)
        found.append((history[0]["train_loss"], dict(result)))
        for weights in folder.glob("*.safetensors"):
            assert not any(name.startswith("module.") for name in load_file(weights))
        assert unwrap(model).encode(["file"]).tolist() == load_checkpoint(folder).encode(["file"]).tolist()
    assert found[0] == found[1]


def test_where_a_model_computes(tiny_settings):
    model = BaselineRetriever(tiny_settings())
    assert device_of(model, None) == device_of(nn.DataParallel(model), None) == torch.device("cpu")
    assert device_of(model, "cuda:1") == torch.device("cuda:1")
    on_first = type("OnFirst", (nn.Module,), {"device": torch.device("cuda:0")})()
    assert device_of(on_first, None) == torch.device("cuda:0")
    assert device_of(nn.DataParallel(on_first), None) == CUDA, "all of them"


@pytest.mark.parametrize("arm", RETRIEVERS)
def test_an_encoder_can_be_copied_whole(tiny_settings, arm):
    kind, changes = RETRIEVERS[arm]
    model = kind(tiny_settings(**changes))
    texts = random_texts(5)
    expected = model.encode(texts)
    model.encoder = pickle.loads(pickle.dumps(model.encoder))
    assert (model.encode(texts) == expected).all()


# ----------------------------------------------------------------------------------------------------- on several GPUs


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


@pytest.mark.gpu(2)
@pytest.mark.parametrize("arm", RETRIEVERS)
def test_all_gpus_train_and_rank_as_one_does(tiny_settings, tiny_data, arm):
    kind, changes = RETRIEVERS[arm]
    found = []
    for several in (False, True):
        config = tiny_settings(device="cuda", use_multi_gpu=several, batch_size=7, num_negatives=0, **changes)
        assert (count_replicas(config, CUDA) > 1) is several
        model = without_dropout(kind(config)).to(CUDA)
        history = train_retriever(model, tiny_data, tiny_data, config, CUDA)
        found.append((history[0]["train_loss"], dict(evaluate_retriever(model, tiny_data, config, CUDA))))
    assert found[1][0] == pytest.approx(found[0][0], abs=1e-4)
    assert found[1][1] == pytest.approx(found[0][1], abs=1e-3)


@pytest.fixture
def words(models, tmp_path):
    """The flags of a run over two small datasets, by methods."""
    folders = [beir_folder(tmp_path / name) for name in ("one", "two")]
    found = ["--model", models("bert"), "--datasets", ",".join(f"beir:{each}" for each in folders)]
    found += ["--precision", "float32", "--num-epochs", 1, "--batch-size", 8]
    found += ["--depth-dim", 4, "--permutations", 200, "--cache-dir", tmp_path / "cache"]
    return lambda methods="zero_shot,lora,maw": [*map(str, found), "--methods", methods]


def metrics(logs):
    found = json.loads((logs / "summary" / "all_results.json").read_text())
    return {
        (dataset, method, name): value
        for dataset, one in found.items()
        for method, each in one["results"].items()
        for name, value in each["metrics"].items()
    }


def start(words, logs, *launcher):
    command = [*(launcher or [sys.executable]), str(ROOT / "tier_1.py"), *words, "--log-dir", str(logs)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.mark.gpu(2)
def test_a_run_on_all_gpus_leaves_what_a_run_on_one_leaves(words, tmp_path):
    one, many = tmp_path / "logs1", tmp_path / "logs2"
    start([*words(), "--no-use-multi-gpu"], one)
    done = start(words(), many)
    assert done.stderr.count("using DataParallel across") == 1
    assert metrics(many) == pytest.approx(metrics(one), abs=0.05)  # dropout differs: each GPU draws its own
    zero_shot = [key for key in metrics(one) if key[1] == "1_normal_retriever"]
    assert {k: metrics(many)[k] for k in zero_shot} == pytest.approx({k: metrics(one)[k] for k in zero_shot}, abs=1e-4)
    for weights in (many / "checkpoints").rglob("*.safetensors"):
        assert not any(name.startswith("module.") for name in load_file(weights))


@pytest.mark.gpu(2)
def test_datasets_on_disjoint_gpus_have_the_results_of_a_sequence(words, tmp_path):
    sequence, together = tmp_path / "logs1", tmp_path / "logs2"
    start([*words(), "--no-use-multi-gpu"], sequence)
    done = start([*words(), "--no-use-multi-gpu", "--parallel-datasets"], together)
    assert "2 datasets side by side, 2 at a time" in done.stderr
    assert metrics(together) == pytest.approx(metrics(sequence), abs=1e-4)


@pytest.mark.gpu(2)
def test_two_processes_with_nccl_leave_what_one_leaves(words, tmp_path):
    one, two = tmp_path / "logs1", tmp_path / "logs2"
    start([*words("zero_shot"), "--no-use-multi-gpu"], one)
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    done = start(words("zero_shot"), two, *torchrun)
    assert "2 processes, 2 of them on this machine" in done.stderr
    assert metrics(two) == pytest.approx(metrics(one), abs=1e-4)
    start(words("maw"), tmp_path / "logs3", *torchrun)


@pytest.mark.gpu(2)
def test_more_processes_than_gpus_are_refused(words, tmp_path):
    count = torch.cuda.device_count() + 1
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    command = [*torchrun, str(ROOT / "tier_1.py"), *words(), "--log-dir", str(tmp_path / "logs")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600, check=False)
    assert done.returncode != 0 and f"{count} processes on this machine" in done.stderr


@pytest.mark.gpu(2)
def test_one_of_several_gpus_can_be_named(tiny_settings, tiny_data):
    config = tiny_settings(device="cuda:1")
    model = BaselineRetriever(config).to("cuda:1")
    assert evaluate_retriever(model, tiny_data, config)["ndcg_cut_10"] > 0
    assert model.device == torch.device("cuda:1")
