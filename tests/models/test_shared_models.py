"""A retriever and a model with added depths, shared by threads and run again in a backward pass."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import every_family, random_texts

import maw
from maw.attention.architectures import architecture_of
from maw.attention.noise import noise_keys
from maw.encoding.activation_cache import ActivationStore
from maw.models.encode import evaluating
from maw.models.retriever import BaselineRetriever, MAWRetriever

TEXTS = [random_texts(5, seed=seed, longest=4 + 6 * seed) for seed in range(4)]


@pytest.fixture
def eager_threads():
    """Threads that change places as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    with ThreadPoolExecutor(4) as threads:
        yield threads
    sys.setswitchinterval(interval)


def moved(model):
    """Depths apart, and routers that choose."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "router.weight" in name or "kernels" in name:
                parameter.add_((3.0 if "router" in name else 0.3) * torch.randn(parameter.shape, generator=generator))
    return model


def retriever(tiny_settings, model_type="bert", **changes):
    return moved(MAWRetriever(tiny_settings(model_type, kernel_init_std=0.5, maw_layers=[2, 3], **changes)))


# --------------------------------------------------------------------------------------------------------- threads


@pytest.mark.parametrize("model_type", ["bert", "modernbert", "qwen3"])
def test_threads_encode_texts_of_different_limits(tiny_settings, eager_threads, model_type):
    """A tokenizer keeps the limit of its last call."""
    model = retriever(tiny_settings, model_type, max_query_length=5, max_document_length=40)
    jobs = [(texts, kind) for texts in TEXTS for kind in ("query", "document")] * 12
    expected = {(tuple(texts), kind): model.encode(texts, kind) for texts, kind in jobs[:8]}
    for found, (texts, kind) in zip(eager_threads.map(lambda job: model.encode(*job), jobs), jobs, strict=True):
        np.testing.assert_allclose(found, expected[tuple(texts), kind], atol=1e-5)


def test_a_model_is_evaluating_until_the_last_thread_has_ended(tiny_settings):
    """Else dropout would start again in the middle of another thread's texts."""
    model = BaselineRetriever(tiny_settings(train_layers=True, finetune_layers=[3])).encoder.train()
    before = {name: each.training for name, each in model.named_modules()}
    assert before["backbone.encoder.layer.2"] and not before["backbone.encoder.layer.0"]
    first, second = evaluating(model), evaluating(model)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not any(each.training for each in model.modules())
    second.__exit__(None, None, None)
    assert {name: each.training for name, each in model.named_modules()} == before
    with evaluating(model), evaluating(model):
        assert not any(each.training for each in model.modules())
    assert {name: each.training for name, each in model.named_modules()} == before


@pytest.mark.parametrize(
    ("look", "place"), [(maw.picked_depths, "encoder.layer.2"), (maw.attention_maps, "embeddings")]
)
def test_analysis_sees_its_own_texts_alone(tiny_settings, look, place):
    """While it runs, another thread runs the model on other texts: after all layers, or before."""
    model = retriever(tiny_settings)
    expected = look(model, TEXTS[0])
    started = threading.Event()

    def in_between(*_):
        if not started.is_set():
            started.set()
            other = threading.Thread(target=model.encode, args=(TEXTS[3],))
            other.start()
            other.join()

    with model.encoder.backbone.get_submodule(place).register_forward_hook(in_between):
        found = look(model, TEXTS[0])
    assert started.is_set()
    torch.testing.assert_close(found, expected)


def test_a_source_appends_while_a_thread_reads_ahead(tiny_settings, tmp_path, monkeypatch):
    model = retriever(tiny_settings, finetune_layers=[3])
    with ActivationStore(tmp_path, 1.0) as store:
        source = store.source(model.source(TEXTS[1], "document"), model.encoder, torch.device("cpu"))
        expected = source.batch(range(5))
        length = maw.encoding.activation_cache.padded_length

        def append(tokens):
            source._map = None
            return length(tokens)

        monkeypatch.setattr("maw.encoding.activation_cache.padded_length", append)
        torch.testing.assert_close(source.batch(range(5)), expected)


# -------------------------------------------------------------------------------- layers that run again, and copies


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("how", ["greedy", "sampled"])
@pytest.mark.parametrize("router", ["grpo", "soft"])
def test_a_retrievers_layers_run_again_in_the_backward_pass(tiny_settings, how, router, reentrant):
    model = retriever(tiny_settings, router=router, finetune_layers=[2, 3], route_by="head").train()
    inputs = [model.source(texts, "document").batch(range(5)) for texts in TEXTS[:3]]
    keys = noise_keys(1, 1, torch.arange(5), 3) if how == "sampled" else None

    def gradients():
        model.zero_grad()
        torch.manual_seed(0)
        outputs = [model(each, "group", keys=keys) for each in inputs]
        sum(each["embedding"].square().sum(1).mean() + each["embedding"][..., :3].sum() for each in outputs).backward()
        grads = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
        return grads, [torch.cat([depth.flatten() for depth in each["depths"]]) for each in outputs]

    expected = gradients()
    assert any("kernels" in name for name in expected[0])
    model.encoder.backbone.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.encoder.backbone.embeddings.register_forward_hook(lambda _m, _i, out: out.detach().requires_grad_())
    torch.testing.assert_close(gradients(), expected, atol=1e-6, rtol=1e-5)


@every_family
def test_added_depths_leave_nothing_behind_a_call(models, model_type):
    architecture = architecture_of(model_type)
    plain = architecture.loader().from_pretrained(models(model_type))
    model = moved(maw.add_maw(plain, layers=[2, 3], depths=4)).eval()
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 40, (3, 4, 9), generator=random)
    masks = torch.ones_like(ids) * (
        torch.arange(9) < torch.tensor([[[9], [4], [2], [6]], [[3], [9], [5], [2]], [[9], [7], [8], [3]]])
    )

    def run(model, number):
        return (model(ids[number], masks[number]).last_hidden_state * masks[number][..., None]).sum(1)

    before = {part: dict(vars(part)) for part in model.modules()}
    expected = [run(model, number) for number in range(3)]
    for part, attributes in before.items():
        assert vars(part).keys() == attributes.keys()
        assert not [
            key for key, each in vars(part).items() if isinstance(each, torch.Tensor) and each is not attributes[key]
        ]
    for made in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(run(made, 1), expected[1])
    inner = []

    def again(*_):
        if not inner:
            inner.append(None)
            inner.append(run(model, 1))

    with architecture.layers(model)[1].register_forward_pre_hook(again):
        torch.testing.assert_close(run(model, 0), expected[0])
    torch.testing.assert_close(inner[1], expected[1])
    if not model.supports_gradient_checkpointing:
        return
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.zero_grad()
    torch.manual_seed(0)
    sum(run(model, number).square().sum() for number in range(3)).backward()
    found = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    model.gradient_checkpointing_disable()
    model.zero_grad()
    torch.manual_seed(0)
    sum(run(model, number).square().sum() for number in range(3)).backward()
    assert any("kernels" in name for name in found)
    for name, each in model.named_parameters():
        if name in found:
            torch.testing.assert_close(found[name], each.grad, atol=1e-4, rtol=1e-4)
