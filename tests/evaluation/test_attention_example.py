"""The attention of one text that a run keeps for its report: the right text, and the model's numbers."""

from __future__ import annotations

import json

import pytest
import torch
from attention.depth_slices import select_depth
from transformers import AutoModel

from maw.data.from_dicts import as_retrieval_data
from maw.evaluation.routing.attention_example import LONGEST, SHORT, attention_example, write_examples
from maw.evaluation.routing.attention_maps import attention_maps, picked_depths
from maw.models.add_maw import maw_layers
from maw.models.retriever import BaselineRetriever, MAWRetriever
from maw.storage.files import json_text

TEXTS = [
    "open file",
    "open the file and read the first line of the text",
    "sort the list of words in lower case first",
]


def queries(*texts):
    return as_retrieval_data(
        {"queries": list(texts), "docs": ["a text"], "qrels": {number: {0: 1} for number in range(len(texts))}}
    )


def shaken(model, seed=0):
    """As after a training that has moved everything, routers included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def attention_in_use(model, inputs):
    """The attention of the last layer, computed from the queries and keys that reach its product: (H, Q, K)."""
    layer, seen = max(maw_layers(model).items())[1], {}
    attend = type(layer.architecture).attend

    class Looking(type(layer.architecture)):
        def attend(self, base, query, key, value, inputs):
            seen["scores"] = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
            return attend(self, base, query, key, value, inputs)

    before, layer.architecture = layer.architecture, Looking()
    with torch.no_grad():
        model.encoder(inputs)
    layer.architecture = before
    return seen["scores"].softmax(-1)[0]


@pytest.mark.parametrize("router", ["grpo", "soft", "random", "fixed"])
@pytest.mark.parametrize("route_by", ["sequence", "head", "token"])
def test_the_attention_in_use_is_that_of_the_model(tiny_settings, router, route_by):
    if router in ("random", "fixed") and route_by != "sequence":
        pytest.skip("no more to be seen")
    model = MAWRetriever(tiny_settings(router=router, route_by=route_by, kernel_init_std=0.3, fixed_depth=2))
    example = attention_example(model, queries(*TEXTS))
    found = example.content(shaken(model))
    head, used = found["head"] - 1, torch.tensor(found["used"])
    expected = attention_in_use(model, example.inputs)
    assert torch.allclose(used, expected[head], atol=2e-6)
    every = attention_maps(model, example.inputs)
    picked = picked_depths(model, example.inputs)[3]
    if router != "soft":
        assert torch.allclose(used, select_depth(every, picked)[0, head], atol=2e-6)
    assert sum(found["picks"]) == pytest.approx(1, abs=1e-5) and len(found["picks"]) == found["depths"] == 4
    received = every[0, head].mean(0).T
    assert torch.allclose(torch.tensor(found["received"]), received, atol=2e-6)
    distance = torch.tensor(found["distance"])
    by_hand = (every[0, 1, ..., 3] - expected[1]).abs().sum(1).mean() / 2
    assert distance[1, 3] == pytest.approx(float(by_hand), abs=2e-6)
    assert distance.mean(1).argmax() == head and distance[head].argmax() == found["farthest"]
    assert torch.allclose(torch.tensor(found["at_farthest"]), every[0, head, ..., found["farthest"]], atol=2e-6)


@pytest.mark.parametrize("model_type", ["bert", "modernbert", "qwen3"])
def test_the_pretrained_attention_is_the_pretrained_models(tiny_settings, model_type):
    """Whatever the untrained routers pick: at depth 2 the kernels begin with noise."""
    settings = tiny_settings(model_type, router="fixed", fixed_depth=2, kernel_init_std=0.3, maw_layers="last")
    model = MAWRetriever(settings)
    example = attention_example(model, queries(*TEXTS))
    plain = AutoModel.from_pretrained(model.spec.folder, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = plain(**example.inputs, output_attentions=True).attentions[-1][0]
    assert torch.allclose(example.pretrained_HQK, expected, atol=1e-5)


def test_before_training_nothing_has_moved(tiny_settings):
    for router in ("grpo", "soft"):
        model = MAWRetriever(tiny_settings(router=router, kernel_init_std=0.3))
        found = attention_example(model, queries(*TEXTS)).content(model)
        assert max(found["distance_pretrained"]) < 1e-5 < max(found["distance"][found["head"] - 1])


def test_the_text_is_short_and_chosen_by_its_place(tiny_settings):
    model = MAWRetriever(tiny_settings())
    example = attention_example(model, queries(*TEXTS, *TEXTS[1:]))
    assert example.query_id == "1" and example.text == TEXTS[1] and not example.cut
    assert example.tokens[0] == "[CLS]" and example.tokens[-1] == "[SEP]" and "first" in example.tokens
    assert SHORT <= len(example.tokens) <= LONGEST and example.layer == 3
    long = attention_example(model, queries("open " * 40, "file " * 40))
    assert long.query_id == "0" and long.cut and len(long.tokens) == LONGEST


def test_only_what_has_depths_to_choose_from(tiny_settings):
    assert attention_example(BaselineRetriever(tiny_settings()), queries(*TEXTS)) is None
    assert attention_example(MAWRetriever(tiny_settings(depth_dim=1, router="fixed")), queries(*TEXTS)) is None


def test_the_file_is_small_and_the_model_stays_as_it_was(tiny_settings, tmp_path):
    model = MAWRetriever(tiny_settings()).train()
    modes = [module.training for module in model.modules()]
    example = attention_example(model, queries(*TEXTS))
    content = example.content(model)
    assert [module.training for module in model.modules()] == modes
    assert json.loads(json_text(tmp_path, content)) == content
    path = write_examples(tmp_path, {"maw": content})
    assert json.loads(path.read_text()) == {"maw": content} and path.stat().st_size < 20_000
    assert write_examples(tmp_path / "other", {}) is None and not (tmp_path / "other").exists()
