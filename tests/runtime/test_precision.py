"""Half precision: close to float32, the same for every method, without lost weights or digits of a policy."""

from __future__ import annotations

import json
import os
from functools import partial

import numpy as np
import pytest
import torch
from conftest import random_texts
from faults.tools import Watched

from maw.data.from_dicts import as_retrieval_data
from maw.encoding.activation_cache import ActivationStore
from maw.errors import NotFiniteError
from maw.evaluation.evaluate import evaluate_retriever
from maw.models.retriever import BaselineRetriever, MAWRetriever
from maw.runtime.precision import bfloat16_speed, name_of, numerics, pick_precision
from maw.training.checkpoint import load_checkpoint, save_checkpoint
from maw.training.state import joined, separated
from maw.training.train import train_retriever
from maw.training.trainer import Trainer

MODEL_TYPES = ["bert", "roberta", "distilbert", "modernbert", "electra"]
TEXTS = random_texts(30, seed=3)
SCALER = torch.amp.GradScaler


def embeddings(retriever, config):
    return retriever(config).encode(TEXTS)


def test_what_is_asked_for_is_taken_and_auto_measures():
    cpu = torch.device("cpu")
    assert pick_precision("float32", cpu) is torch.float32
    assert pick_precision("bfloat16", cpu) is torch.bfloat16
    assert pick_precision("float16", cpu) is torch.float16
    assert pick_precision("auto", cpu) is (torch.bfloat16 if bfloat16_speed("cpu") >= 1.5 else torch.float32)
    assert pick_precision("auto", torch.device("mps")) is torch.float32
    assert name_of(torch.bfloat16) == "bfloat16"


@pytest.mark.parametrize(
    ("model_type", "precision"),
    [*((each, "bfloat16") for each in MODEL_TYPES), ("bert", "float16"), ("modernbert", "float16")],
)
@pytest.mark.parametrize("maw_layers", [None, [2, 3]])
def test_embeddings_are_those_of_float32_but_for_rounding(tiny_settings, model_type, precision, maw_layers):
    exact = embeddings(BaselineRetriever, tiny_settings(model_type))
    config = tiny_settings(model_type, precision=precision, maw_layers=maw_layers)
    for retriever in (BaselineRetriever, MAWRetriever):
        rounded = embeddings(retriever, config)
        assert rounded.dtype == np.float32
        cosine = (exact * rounded).sum(1)
        assert np.median(cosine) > 0.9995
        assert cosine.min() > 0.97  # rounding moves single texts of a random model far: 2 or 3 in 1,000 below 0.995
        assert not np.array_equal(exact, rounded)  # or nothing was computed in bfloat16


def test_arms_that_start_as_the_pretrained_model_are_equal_in_bfloat16(tiny_settings):
    config = tiny_settings(precision="bfloat16")
    plain = embeddings(BaselineRetriever, config)
    assert np.array_equal(plain, embeddings(BaselineRetriever, tiny_settings(precision="bfloat16", use_lora=True)))
    assert np.abs(plain - embeddings(MAWRetriever, config)).max() < 1e-2


@pytest.mark.parametrize("router", ["grpo", "soft", "supervised", "random"])
@pytest.mark.parametrize("kernel", ["diagonal", "low_rank", "gated"])
def test_training_moves_float32_weights_and_is_repeatable(tiny_settings, tiny_data, router, kernel):
    config = tiny_settings(precision="bfloat16", router=router, depth_kernel=kernel, route_by="token", num_epochs=1)
    states = []
    for _ in range(2):
        model = MAWRetriever(config)
        start = model.trained_state()
        train_retriever(model, tiny_data, tiny_data, config, "cpu")
        states.append(model.trained_state())
        assert all(each.dtype == torch.float32 for each in states[-1].values())
        assert any(not torch.equal(start[name], each) for name, each in states[-1].items())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_stored_activations_give_the_same_metrics(tiny_settings, tiny_data, tmp_path, precision):
    config = tiny_settings(precision=precision)
    model = BaselineRetriever(config)
    plain = evaluate_retriever(model, tiny_data, config, "cpu")
    with ActivationStore(tmp_path, 1.0) as activations:
        first, second = (evaluate_retriever(model, tiny_data, config, "cpu", activations=activations) for _ in "ab")
        taken = 10**9 - activations.free_bytes
    assert dict(plain) == dict(first) == dict(second)
    tokens = sum(len(text.split()) + 2 for text in [*tiny_data["queries"], *tiny_data["docs"]])
    assert taken == tokens * 16 * 2  # hidden size 16, two bytes


def test_a_whole_checkpoint_holds_the_pretrained_weights_unrounded(tiny_settings, tmp_path):
    config = tiny_settings(precision="bfloat16", checkpoint_compression=False)
    model = MAWRetriever(config)
    save_checkpoint(
        tmp_path / "c", model, dataset="d", method="maw", epoch=1, best_val_metric=0.5, training_history=[]
    )
    exact = MAWRetriever(tiny_settings()).encoder.state_dict()
    from safetensors.torch import load_file

    (weights,) = (tmp_path / "c").glob("*.safetensors")
    stored = load_file(weights)
    assert stored.keys() == exact.keys()
    assert all(torch.equal(stored[name], each) for name, each in exact.items())
    assert np.array_equal(load_checkpoint(tmp_path / "c").encode(TEXTS), model.encode(TEXTS))


# --------------------------------------------------------------------------------------------- the scale of float16


def trainer_of(tiny_settings, tiny_data, monkeypatch, scale, **changes):
    """A trainer in float16 whose loss is first multiplied by so much, and its batches."""
    monkeypatch.setattr("torch.amp.GradScaler", partial(SCALER, init_scale=scale))
    config = tiny_settings(**({"precision": "float16", "num_negatives": 0} | changes))
    data = as_retrieval_data(tiny_data, "train")
    trainer = Trainer(MAWRetriever(config), data, config, torch.device("cpu"), "tiny", None)
    return trainer, list(trainer.pairs.batches(1, 4))


def test_a_gradient_beyond_float16_leaves_the_step_out_and_lowers_the_scale(tiny_settings, tiny_data, monkeypatch):
    trainer, batches = trainer_of(tiny_settings, tiny_data, monkeypatch, 2.0**30)
    start = trainer.model.trained_state()
    trainer._run_batch(batches[0], len(batches))
    assert trainer._overflows == 1 and trainer.scaler.get_scale() == 2.0**29
    assert trainer.schedule.last_epoch == 0
    now = trainer.model.trained_state()
    assert all(torch.equal(each, now[name]) for name, each in start.items() if "router" not in name)
    assert any(not torch.equal(each, now[name]) for name, each in start.items() if "router" in name)

    facts, tensors = separated(trainer.state_dict())
    again, _ = trainer_of(tiny_settings, tiny_data, monkeypatch, 1.0)
    again.load_state_dict(joined(json.loads(json.dumps(facts)), tensors))
    assert again._overflows == 1 and again.scaler.get_scale() == 2.0**29

    trainer.scaler.update(2.0**10)
    trainer._run_batch(batches[1], len(batches))
    assert trainer._overflows == 1 and trainer.schedule.last_epoch == 1
    assert any(not torch.equal(each, now[name]) for name, each in trainer.model.trained_state().items())


def test_float16_learns_what_float32_learns(tiny_settings, tiny_data, monkeypatch):
    records = {}
    for precision in ("float32", "float16"):
        config = tiny_settings(precision=precision, use_lora=True, learning_rate=5e-3, num_epochs=1)
        (records[precision],) = train_retriever(BaselineRetriever(config), tiny_data, tiny_data, config, "cpu")
    assert "overflow_steps" not in records["float32"]
    found = records["float16"]
    assert found["steps"] == 3 == found["optimizer_steps"] + found["overflow_steps"]
    assert found["train_loss"] == pytest.approx(records["float32"]["train_loss"], abs=0.05)


@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_what_no_scale_mends_is_a_fault(tiny_settings, tiny_data, monkeypatch, precision):
    trainer, batches = trainer_of(tiny_settings, tiny_data, monkeypatch, 4.0, precision=precision)
    trainer.parameters[0].register_hook(lambda gradient: gradient * torch.nan)
    for batch in batches[: 2 if precision == "float16" else 0]:  # from 4 to 1
        trainer._run_batch(batch, len(batches))
    with pytest.raises(NotFiniteError, match="gradient norm nan"):
        trainer._run_batch(batches[2], len(batches))


def test_a_loss_that_is_not_finite_is_a_fault_at_once(tiny_settings, tiny_data, monkeypatch):
    trainer, batches = trainer_of(tiny_settings, tiny_data, monkeypatch, 2.0**16, router="random")
    real = trainer.objective
    trainer.objective = Watched(real, lambda *words: (real(*words)[0] * torch.inf, {}))
    with pytest.raises(NotFiniteError, match="loss inf"):
        trainer._run_batch(batches[0], len(batches))


# ------------------------------------------------------------------------------------ how a GPU is asked to compute


def test_tf32_and_determinism_hold_inside_the_block(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision, torch.are_deterministic_algorithms_enabled()
    with numerics(tf32=True, deterministic=False):
        assert matmul.fp32_precision == "tf32" and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
        with numerics(tf32=False, deterministic=True):
            assert matmul.fp32_precision == "ieee" and torch.are_deterministic_algorithms_enabled()
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert before == (matmul.fp32_precision, torch.are_deterministic_algorithms_enabled())
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with numerics(tf32=False, deterministic=True):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    assert not torch.are_deterministic_algorithms_enabled()


def test_every_operation_of_a_training_has_a_deterministic_algorithm(tiny_settings, tiny_data):
    config = tiny_settings(num_epochs=1, route_by="token", maw_layers=[2, 3])
    states = []
    for deterministic in (False, True):
        with numerics(tf32=False, deterministic=deterministic):
            model = MAWRetriever(config)
            train_retriever(model, tiny_data, tiny_data, config, "cpu")
            states.append(model.trained_state())
    assert all(torch.equal(states[0][name], each) for name, each in states[1].items())
