"""bfloat16: close to float32, the same in every arm, and no reason to lose a weight or a policy's digits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import random_texts

from maw.checkpoint import load_checkpoint, save_checkpoint
from maw.evaluation import evaluate_retriever
from maw.precision import bfloat16_speed, name_of, pick_precision
from maw.prefix import ActivationStore
from maw.retriever import BaselineRetriever, MAWRetriever
from maw.training import train_retriever

MODEL_TYPES = ["bert", "roberta", "distilbert", "modernbert", "electra"]
TEXTS = random_texts(30, seed=3)


def embeddings(retriever, config):
    return retriever(config).encode(TEXTS)


def test_what_is_asked_for_is_taken_and_auto_measures():
    cpu = torch.device("cpu")
    assert pick_precision("float32", cpu) is torch.float32
    assert pick_precision("bfloat16", cpu) is torch.bfloat16
    assert pick_precision("auto", cpu) is (torch.bfloat16 if bfloat16_speed("cpu") >= 1.5 else torch.float32)
    assert pick_precision("auto", torch.device("mps")) is torch.float32
    assert name_of(torch.bfloat16) == "bfloat16"


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("maw_layers", [None, [2, 3]])
def test_embeddings_are_those_of_float32_but_for_rounding(tiny_settings, model_type, maw_layers):
    exact = embeddings(BaselineRetriever, tiny_settings(model_type))
    config = tiny_settings(model_type, precision="bfloat16", maw_layers=maw_layers)
    for retriever in (BaselineRetriever, MAWRetriever):
        rounded = embeddings(retriever, config)
        assert rounded.dtype == np.float32
        cosine = (exact * rounded).sum(1)
        assert cosine.min() > 0.995
        assert not np.array_equal(exact, rounded)  # or nothing was computed in bfloat16


def test_arms_that_start_as_the_pretrained_model_are_equal_in_bfloat16(tiny_settings):
    config = tiny_settings(precision="bfloat16")
    plain = embeddings(BaselineRetriever, config)
    assert np.array_equal(plain, embeddings(BaselineRetriever, tiny_settings(precision="bfloat16", use_lora=True)))
    assert np.abs(plain - embeddings(MAWRetriever, config)).max() < 1e-2


@pytest.mark.parametrize("router", ["grpo", "soft", "supervised", "random"])
@pytest.mark.parametrize("kernel", ["diagonal", "low_rank"])
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


def test_stored_activations_give_the_same_metrics(tiny_settings, tiny_data, tmp_path):
    config = tiny_settings(precision="bfloat16")
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
