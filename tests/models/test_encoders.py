"""The table of encoders in docs/encoders.md, checked on a tiny random model of each family."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FAMILIES, IN_SHORT, every_family, random_texts, write_model
from transformers import AutoTokenizer

import maw
from maw.attention.architectures import ARCHITECTURES, architecture_of
from maw.config.methods import METHODS, find_method
from maw.errors import ConfigError, ModelError
from maw.evaluation.evaluate import evaluate_retriever
from maw.experiment.config_checks import validate
from maw.models.export.modeling_maw import MODELS
from maw.training.checkpoint import RETRIEVERS
from maw.training.train import train_retriever

DOCS = (Path(__file__).parents[2] / "docs" / "encoders.md").read_text()
TEXTS = random_texts(6)
WITHOUT_DEPTHS = tuple(each for each, architecture in ARCHITECTURES.items() if architecture.no_depths)
PUBLISHED = {  # the config.json of sentence-transformers/all-mpnet-base-v2, without the vocabulary
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 514,
    "relative_attention_num_buckets": 32,
    "layer_norm_eps": 1e-05,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "initializer_range": 0.05,
}
SEEN_CLOSELY = ("lora", "full", "maw")


def build(settings, method, model_type, **changes):
    changes = {"num_epochs": 1, "learning_rate": 0.01, "num_negatives": 0} | changes
    config = find_method(method).configure(settings(model_type, **changes))
    return RETRIEVERS[find_method(method).retriever](config)


def starts_as_pretrained(settings, model_type):
    expected = build(settings, "zero_shot", model_type).encode(TEXTS)
    default = {"router_start": "clusters", "kernel_init_std": None}
    arms = [(each.name, default) for each in METHODS if each.trained]
    arms += [(name, {}) for name, _ in arms if name != "maw_random"]  # noise sets its depths apart from the start
    starts = [build(settings, name, model_type, **changes).encode(TEXTS) for name, changes in arms]
    return all(np.abs(start - expected).max() <= 1e-6 for start in starts)


def runs(settings, data, model_type):
    """Every method, trained for a step where it is trained, and evaluated; its loss and its scores are numbers."""
    found = []
    for method in METHODS:
        model = build(settings, method.name, model_type)
        if method.trained and method.name not in SEEN_CLOSELY:
            history = train_retriever(model, data, data, model.config, "cpu", "tiny", method.name)
            found.append(np.isfinite(history[0]["train_loss"]))
        found.append(0 < evaluate_retriever(model, data, model.config, "cpu")["ndcg_cut_10"] <= 1)
    return all(found)


def trains(settings, data, model_type, methods=SEEN_CLOSELY, **changes):
    found = []
    for name in methods:
        model = build(settings, name, model_type, **changes)
        before = {name: each.detach().clone() for name, each in model.encoder.named_parameters()}
        train_retriever(model, data, data, model.config, "cpu", "tiny", name)
        moved = {name: not torch.equal(each, before[name]) for name, each in model.encoder.named_parameters()}
        trained = {name: each.requires_grad for name, each in model.encoder.named_parameters()}
        # A key's bias moves no attention weight: the softmax over keys takes it out.
        found += [moved[name] == trained[name] or _is_key_bias(name) for name in moved]
    return all(found)


def _is_key_bias(name):
    return bool(re.search(r"(key|k_lin|k_proj|\.k)\.bias$", name))


def has_maps(folder, model_type):
    batch = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    loader = architecture_of(model_type).loader()
    plain = loader.from_pretrained(folder, attn_implementation="eager").eval()
    expected = plain(**batch, output_attentions=True).attentions[-1]
    maps = maw.attention_maps(maw.add_maw(loader.from_pretrained(folder), depths=3), batch)
    rows = batch["attention_mask"].bool()
    return (maps[..., 0].transpose(1, 2)[rows] - expected.transpose(1, 2)[rows]).abs().max() <= 1e-5


@every_family
def test_the_table_is_what_is_found(models, tiny_settings, tiny_data, model_type):
    small = tiny_data | {"queries": tiny_data["queries"][:8], "qrels": {i: {i: 1} for i in range(8)}}
    found = [
        runs(tiny_settings, small, model_type),
        starts_as_pretrained(tiny_settings, model_type),
        trains(tiny_settings, small, model_type),
        has_maps(models(model_type), model_type),
        model_type in MODELS,  # tests/models/test_export.py tries all of these
    ]
    adapter = type(architecture_of(model_type)).__name__
    cells = [f"`{model_type}`", *("yes" if each else "no" for each in found), f"`{adapter}`"]
    (row,) = (line for line in DOCS.partition("## Refused")[0].splitlines() if f"| `{model_type}` |" in line)
    assert row.endswith(f" | {' | '.join(cells)} |")


@pytest.mark.parametrize("model_type", (*FAMILIES, *WITHOUT_DEPTHS))
def test_zero_shot_is_what_sentence_transformers_computes(models, tiny_settings, model_type):
    from sentence_transformers import SentenceTransformer

    texts = random_texts(12, seed=9, longest=30)
    expected = SentenceTransformer(str(models(model_type)), device="cpu").encode_document(texts)
    got = build(tiny_settings, "zero_shot", model_type).encode(texts)
    assert np.abs(got - expected / np.linalg.norm(expected, axis=1, keepdims=True)).max() <= 1e-5
    assert np.abs(got[1:] - got[:-1]).max(1).min() > 1e-2, "texts that are embedded alike would always agree"


@pytest.mark.parametrize("model_type", IN_SHORT)
def test_a_family_in_short(models, tiny_settings, tiny_data, model_type):
    """MAW in all layers, the first included: starts as pretrained, learns, and shows its attention."""
    small = tiny_data | {"queries": tiny_data["queries"][:8], "qrels": {i: {i: 1} for i in range(8)}}
    everywhere = {"maw_layers": "all", "finetune_layers": "all", "kernel_init_std": 0.3}
    expected = build(tiny_settings, "zero_shot", model_type).encode(TEXTS)
    start = build(tiny_settings, "maw", model_type, **everywhere).encode(TEXTS)
    assert np.abs(start - expected).max() <= 1e-6
    assert trains(tiny_settings, small, model_type, methods=("maw",), **everywhere)
    assert has_maps(models(model_type), model_type)


@pytest.mark.parametrize("model_type", ["mpnet", "t5"])
@pytest.mark.parametrize("method", ["full", "maw"])
def test_no_method_trains_the_bias_of_relative_positions(tiny_settings, model_type, method):
    """It is one table for all layers; T5 has it inside the first."""
    changes = {"maw_layers": "all", "finetune_layers": "all"}
    model = build(tiny_settings, method, model_type, **changes)
    bias = {name: each.requires_grad for name, each in model.named_parameters() if "relative_attention_bias" in name}
    assert list(bias.values()) == [False]
    plain = architecture_of(model_type).loader().from_pretrained(model.spec.folder)
    added = maw.add_maw(plain, layers="all", train_layers="all", depths=4)
    assert not any(each.requires_grad for name, each in added.named_parameters() if "relative_attention_bias" in name)


# ------------------------------------------------------------------------------------- families that cannot carry MAW


@pytest.mark.parametrize("model_type", WITHOUT_DEPTHS)
def test_a_family_without_depths_has_the_other_methods(tiny_settings, tiny_data, model_type):
    small = tiny_data | {"queries": tiny_data["queries"][:8], "qrels": {i: {i: 1} for i in range(8)}}
    expected = build(tiny_settings, "zero_shot", model_type).encode(TEXTS)
    methods = ("lora", "lora_matched", "full")
    for name in methods:
        changes = {"finetune_layers": "all", "maw_layers": "all"}
        assert np.abs(build(tiny_settings, name, model_type, **changes).encode(TEXTS) - expected).max() <= 1e-6
    assert trains(tiny_settings, small, model_type, methods=methods)


@pytest.mark.parametrize("model_type", WITHOUT_DEPTHS)
def test_a_method_with_depths_is_refused_for_it_by_name(models, tiny_settings, model_type):
    why = architecture_of(model_type).no_depths
    with pytest.raises(ConfigError) as caught:
        validate(tiny_settings(model_type, methods=["all"]))
    (line,) = caught.value.problems
    assert line.startswith("methods: ") and f"of type {model_type}, which cannot carry MAW: {why}" in line
    assert line.endswith("leave out full_lowrank, maw_fixed, maw_random, maw_soft, maw, maw_qv")
    validate(tiny_settings(model_type, methods=["zero_shot", "lora", "lora_matched", "full"]))
    with pytest.raises(ConfigError, match=f"precision: transformers computes {model_type} in float32 alone"):
        validate(tiny_settings(model_type, methods=["zero_shot"], precision="auto"))
    with pytest.raises(ModelError, match="cannot carry MAW: its attention scores hold"):
        build(tiny_settings, "maw", model_type)
    with pytest.raises(ModelError, match="cannot carry MAW: its attention scores hold"):
        maw.add_maw(architecture_of(model_type).loader().from_pretrained(models(model_type)))


def test_an_encoder_with_its_decoder_is_refused(models):
    from transformers import T5Model

    with pytest.raises(ModelError, match=r"T5Model: .* without its decoder; load it with T5EncoderModel"):
        maw.add_maw(T5Model.from_pretrained(models("t5")))


def test_every_family_is_in_the_table():
    table = DOCS.partition("## Without MAW")[0]
    assert "all ten methods" in table and len(METHODS) == 10
    named = set(re.findall(r"`[a-z0-9_-]+`", table))
    assert {f"`{each}`" for each, architecture in ARCHITECTURES.items() if not architecture.no_depths} <= named
    others = DOCS.partition("## Without MAW")[2]
    assert all(f"`{each}`" in others for each in WITHOUT_DEPTHS)


# ------------------------------------------------------------------------------------------------- a published model


@pytest.mark.faults
def test_a_model_of_the_shape_of_all_mpnet_base_v2(tmp_path, tiny_settings, tiny_data):
    """Random weights in the published sizes, through every method."""
    folder = write_model(tmp_path / "mpnet", "mpnet", **PUBLISHED)
    config = json.loads((folder / "config.json").read_text())
    assert (config["num_hidden_layers"], config["num_attention_heads"], config["hidden_size"]) == (12, 12, 768)
    small = tiny_data | {"queries": tiny_data["queries"][:4], "qrels": {i: {i: 1} for i in range(4)}}

    def settings(_, **changes):
        return tiny_settings(model=str(folder), **changes)

    assert runs(settings, small, "mpnet")
    assert starts_as_pretrained(settings, "mpnet")
