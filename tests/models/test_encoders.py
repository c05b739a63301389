"""The table of encoders in docs/encoders.md, checked on a tiny random model of each family."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FAMILIES, random_texts
from transformers import AutoModel, AutoTokenizer

import maw
from maw.attention.architectures import ARCHITECTURES, architecture_of
from maw.config.methods import METHODS, find_method
from maw.errors import ModelError
from maw.evaluation.evaluate import evaluate_retriever
from maw.models.export.modeling_maw import MODELS
from maw.models.pretrained import REFUSED_MODEL_TYPES
from maw.training.checkpoint import RETRIEVERS
from maw.training.train import train_retriever

DOCS = (Path(__file__).parents[2] / "docs" / "encoders.md").read_text()
TEXTS = random_texts(6)
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


def trains(settings, data, model_type):
    found = []
    for name in SEEN_CLOSELY:
        model = build(settings, name, model_type)
        before = {name: each.detach().clone() for name, each in model.encoder.named_parameters()}
        train_retriever(model, data, data, model.config, "cpu", "tiny", name)
        moved = {name: not torch.equal(each, before[name]) for name, each in model.encoder.named_parameters()}
        trained = {name: each.requires_grad for name, each in model.encoder.named_parameters()}
        # A key's bias moves no attention weight: the softmax over keys takes it out.
        found += [moved[name] == trained[name] or _is_key_bias(name) for name in moved]
    return all(found)


def _is_key_bias(name):
    return bool(re.search(r"(key|k_lin)\.bias$", name))


def has_maps(folder, model_type):
    batch = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    plain = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    expected = plain(**batch, output_attentions=True).attentions[-1]
    maps = maw.attention_maps(maw.add_maw(AutoModel.from_pretrained(folder), depths=3), batch)
    rows = batch["attention_mask"].bool()
    return (maps[..., 0].transpose(1, 2)[rows] - expected.transpose(1, 2)[rows]).abs().max() <= 1e-5


@pytest.mark.parametrize("model_type", FAMILIES)
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


def test_every_family_is_in_the_table_and_every_refusal_too():
    table = DOCS.partition("## Refused")[0]
    assert "all ten methods" in table and len(METHODS) == 10
    assert {f"`{each}`" for each in ARCHITECTURES} <= set(re.findall(r"`[a-z0-9-]+`", table))
    refused = DOCS.partition("## Refused")[2]
    assert all(f"`{each}`" in refused for each in REFUSED_MODEL_TYPES)


@pytest.mark.parametrize("model_type", sorted(REFUSED_MODEL_TYPES))
def test_a_refusal_names_the_reason_and_what_to_take(tmp_path, model_type):
    from maw.config.tier1_config import Tier1Config
    from maw.models.pretrained import model_spec

    (tmp_path / "config.json").write_text(f'{{"model_type": "{model_type}"}}')
    with pytest.raises(ModelError, match=r"relative position terms .* use a BERT, RoBERTa"):
        model_spec(Tier1Config(model=str(tmp_path)))
