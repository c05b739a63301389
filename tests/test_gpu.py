"""Tests for a GPU: imports, minimal trainings, batches, number formats, and one wait in each step.

python -m pytest -m gpu                     # with tests/test_multi_gpu.py and the other tests marked so
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_texts
from training.test_steps import ARMS

from maw.data.from_dicts import as_retrieval_data
from maw.encoding.activation_cache import ActivationStore
from maw.evaluation.evaluate import evaluate_retriever
from maw.evaluation.metrics import METRICS
from maw.models.retriever import BaselineRetriever, MAWRetriever
from maw.runtime.precision import numerics, pick_precision
from maw.search.exact import top_k
from maw.training.train import train_retriever
from maw.training.trainer import Trainer

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).resolve().parents[1]
CUDA = torch.device("cuda")
METHODS = {"lora": (BaselineRetriever, {"use_lora": True}), "maw": (MAWRetriever, {})}
HALVES = ["float16", *(["bfloat16"] if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else [])]


# ------------------------------------------------------------------------------------------------------------- imports


def test_importing_takes_no_gpu():
    code = "import tier_1, maw.experiment.benchmark, torch\nassert not torch.cuda.is_initialized()"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False, timeout=300).returncode == 0


def test_the_gpu_is_what_a_run_takes(tiny_settings):
    from maw.runtime.devices import pick_device

    assert pick_device(tiny_settings(device=None)) == CUDA
    assert pick_precision("auto", CUDA) is (torch.bfloat16 if "bfloat16" in HALVES else torch.float32)


# ------------------------------------------------------------------------------------------- the least that must work


@pytest.mark.parametrize("arm", METHODS)
def test_training_learns_the_task(tiny_settings, tiny_data, arm):
    kind, changes = METHODS[arm]
    config = tiny_settings(device="cuda", use_multi_gpu=False, num_epochs=6, learning_rate=2e-2, patience=0, **changes)
    model = kind(config).to(CUDA)
    before = evaluate_retriever(model, tiny_data, config, CUDA)
    history = train_retriever(model, tiny_data, tiny_data, config, CUDA)
    after = evaluate_retriever(model, tiny_data, config, CUDA)
    assert set(after) == set(METRICS)
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert after["ndcg_cut_10"] > before["ndcg_cut_10"]


@pytest.mark.parametrize("arm", METHODS)
def test_a_step_is_that_of_the_cpu(tiny_settings, tiny_data, arm):
    kind, changes = METHODS[arm]
    found = []
    for device in ("cpu", "cuda"):
        config = tiny_settings(device=device, use_multi_gpu=False, num_epochs=1, num_negatives=0, **changes)
        model = kind(config)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model = model.to(device)
        (record,) = train_retriever(model, tiny_data, tiny_data, config, device)
        found.append((record["train_loss"], dict(evaluate_retriever(model, tiny_data, config, device))))
    assert found[1][0] == pytest.approx(found[0][0], abs=1e-3)
    assert found[1][1] == pytest.approx(found[0][1], abs=0.05)


# ------------------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("model_type", ["bert", "modernbert", "qwen3"])
@pytest.mark.parametrize("kind", [BaselineRetriever, MAWRetriever])
def test_a_batch_is_its_texts_one_by_one_and_those_of_the_cpu(tiny_settings, kind, model_type):
    model = kind(tiny_settings(model_type))
    texts = random_texts(13, seed=5)
    expected = model.encode(texts)
    model = model.to(CUDA)
    np.testing.assert_allclose(model.encode(texts, batch_size=13), expected, atol=1e-4)
    np.testing.assert_allclose(np.concatenate([model.encode([text]) for text in texts]), expected, atol=1e-4)


@pytest.mark.parametrize("precision", HALVES)
def test_narrow_formats_are_near_float32_and_learn(tiny_settings, tiny_data, precision):
    exact = BaselineRetriever(tiny_settings()).encode(random_texts(30, seed=3))
    config = tiny_settings(device="cuda", use_multi_gpu=False, precision=precision, num_epochs=2, learning_rate=5e-3)
    rounded = BaselineRetriever(config).to(CUDA).encode(random_texts(30, seed=3))
    assert (exact * rounded).sum(1).min() > 0.995 and not np.array_equal(exact, rounded)
    for kind, changes in METHODS.values():
        for name, value in changes.items():
            setattr(config, name, value)
        model = kind(config).to(CUDA)
        history = train_retriever(model, tiny_data, tiny_data, config, CUDA)
        assert all(each.dtype == torch.float32 and each.isfinite().all() for each in model.trained_state().values())
        assert all(np.isfinite(record["train_loss"]) for record in history)


def test_search_is_that_of_the_cpu_whatever_training_may_round():
    random = np.random.default_rng(0)
    passages = random.integers(-4, 5, size=(3000, 64)).astype(np.float32)  # whole numbers: every order is exact
    queries, ties = torch.from_numpy(passages[::30].copy()), random.permutation(3000)
    expected = top_k(queries, passages, 200, ties)
    with numerics(tf32=True, deterministic=False):
        for form in (np.float32, np.float16):
            found = top_k(queries.to(CUDA), passages.astype(form), 200, ties, block=512)
            assert all(torch.equal(*pair) for pair in zip(found, expected))


def test_tf32_rounds_what_it_may():
    values = torch.randn(512, 512, device=CUDA, generator=torch.Generator(CUDA).manual_seed(0))
    exact = values.double() @ values.double()
    errors = []
    for tf32 in (False, True):
        with numerics(tf32=tf32, deterministic=False):
            errors.append(float(((values @ values).double() - exact).abs().max()))
    capable = torch.cuda.get_device_capability()[0] >= 8
    assert errors[0] < 1e-3 and (errors[1] > 3 * errors[0]) is capable


def test_a_deterministic_run_has_the_same_bits_again(tiny_settings, tiny_data):
    config = tiny_settings(device="cuda", use_multi_gpu=False, num_epochs=1, route_by="token", maw_layers=[2, 3])
    states = []
    with numerics(tf32=False, deterministic=True):
        for _ in range(2):
            model = MAWRetriever(config).to(CUDA)
            train_retriever(model, tiny_data, tiny_data, config, CUDA)
            states.append(model.trained_state())
    assert all(torch.equal(each, states[1][name]) for name, each in states[0].items())


# --------------------------------------------------------------------------------------------- how it is waited for


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("model_type", ["bert", "modernbert"])
@pytest.mark.parametrize("arm", ARMS)
def test_the_host_waits_once_for_each_optimizer_step(tiny_settings, tiny_data, tmp_path, arm, model_type, precision):
    kind, changes = ARMS[arm]
    settings = {"batch_size": 4, "num_negatives": 0, "device": "cuda", "use_multi_gpu": False, "precision": precision}
    config = tiny_settings(model_type, **(settings | changes))
    model = kind(config).to(CUDA)
    with ActivationStore(tmp_path, 1.0) as store:
        trainer = Trainer(model, as_retrieval_data(tiny_data, "train"), config, CUDA, "tiny", store)
        batches = list(trainer.pairs.batches(1, 4))
        for batch in batches:  # what is prepared once, such as libraries' workspaces, is over
            trainer._run_batch(batch, len(batches))
        trainer.done, before = 0, trainer._overflows
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                for batch in batches:
                    trainer._run_batch(batch, len(batches))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [f"{each.filename}:{each.lineno}" for each in caught if "synchroniz" in str(each.message)]
    updates = -(-len(batches) // config.gradient_accumulation_steps)
    left_out = trainer._overflows - before  # each of which asks for the scale, too
    assert updates <= len(waits) <= updates + left_out, waits
