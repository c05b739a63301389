"""LoRA: no change at the start, unchanged base weights, and the change is B A x."""

from __future__ import annotations

import pytest
import torch
from conftest import every_family, random_texts

from maw.models.lora import add_lora, matched_rank
from maw.models.retriever import BaselineRetriever


@every_family
def test_step_zero_is_the_pretrained_model(tiny_settings, model_type):
    texts = random_texts(6)
    plain = BaselineRetriever(tiny_settings(model_type)).encode(texts)
    adapted = BaselineRetriever(tiny_settings(model_type, use_lora=True, finetune_layers="all")).encode(texts)
    assert abs(plain - adapted).max() <= 1e-6


@every_family
def test_adapters_stand_on_query_and_value_of_the_chosen_layers(tiny_settings, model_type):
    model = BaselineRetriever(tiny_settings(model_type, use_lora=True, finetune_layers=[2, 3], lora_rank=2))
    names = {n for n, p in model.encoder.named_parameters() if p.requires_grad}
    assert names and all(".lora_A." in n or ".lora_B." in n for n in names)
    layers = {next(part for part in name.split(".") if part.isdigit()) for name in names}
    assert layers == {"1", "2"}, "layers are counted from 1 by the user and from 0 by PyTorch"
    projections = 1 if model_type == "modernbert" else 2  # a fused projection is adapted whole
    assert len(names) == 2 * projections * 2
    shared = getattr(model.encoder.backbone.config, "num_key_value_heads", 2) == 1  # one value for two heads
    outputs = [48] if model_type == "modernbert" else [16, 8 if shared else 16]
    assert model.trained_parameters == 2 * 2 * sum(16 + width for width in outputs)


def test_the_change_is_b_a_x_times_alpha_over_rank(tiny_settings):
    model = BaselineRetriever(tiny_settings(use_lora=True, lora_rank=4, lora_alpha=12))
    query = model.encoder.backbone.encoder.layer[2].attention.self.query
    with torch.no_grad():
        query.lora_B["default"].weight.normal_(generator=torch.Generator().manual_seed(0))
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    change = x @ query.lora_A["default"].weight.T @ query.lora_B["default"].weight.T * (12 / 4)
    torch.testing.assert_close(query(x), query.base_layer(x) + change)


def test_a_wrong_layer_is_named(tiny_settings):
    model = BaselineRetriever(tiny_settings())
    with pytest.raises(ValueError, match="layer 4"):
        add_lora(model.encoder.backbone, model.encoder.architecture, [4], rank=2, alpha=2)


@pytest.mark.parametrize(("parameters", "rank"), [(0, 1), (1, 1), (313, 2), (4159, 20), (4161, 20), (4300, 21)])
def test_the_matched_rank_is_the_nearest(tiny_settings, parameters, rank):
    """A BERT layer of width 16 and 24 takes 4 * 32 + 2 * 40 = 208 numbers for each rank."""
    model = BaselineRetriever(tiny_settings())
    found = matched_rank(model.encoder.backbone, model.encoder.architecture, [3], parameters)
    assert found == rank
    assert abs(208 * found - parameters) <= 104 or parameters < 104
    assert matched_rank(model.encoder.backbone, model.encoder.architecture, [2, 3], 2 * parameters) == rank


@every_family
def test_all_targets_are_all_linear_maps_of_a_layer(tiny_settings, model_type):
    model = BaselineRetriever(tiny_settings(model_type))
    architecture = model.encoder.architecture
    layer = architecture.layers(model.encoder.backbone)[2]
    linear = {name for name, module in layer.named_modules() if isinstance(module, torch.nn.Linear)}
    assert set(architecture.query_value_maps) < linear
    add_lora(model.encoder.backbone, architecture, [3], rank=2, alpha=2, targets="all")
    adapted = {name for name, module in layer.named_modules() if hasattr(module, "lora_A")}
    assert adapted == linear
    with pytest.raises(ValueError, match="'qkv'"):
        add_lora(model.encoder.backbone, architecture, [3], rank=2, alpha=2, targets="qkv")
