"""Depth attention against its materialised 5-D reference, for every encoder family."""

from __future__ import annotations

import pytest
import torch
from conftest import every_family, random_texts
from transformers import AutoTokenizer

from attention.depth_slices import mix_depth, select_depth
from maw.attention.architectures import architecture_of
from maw.attention.depth_kernels import DiagonalKernels, GatedKernels, LowRankKernels, build_kernels
from maw.attention.layer import MAWAttentionLayer, attention_5d
from maw.attention.routers import Routing, build_router
from maw.errors import ModelError
from maw.models.encoder import MAWWithGRPOEncoder, NonMAWEncoder

ROUTES = ("sequence", "head", "token")
DEPTHS = 5
with_values = pytest.mark.parametrize(
    ("route_by", "values"),
    [("sequence", False), ("head", False), ("token", False), ("sequence", True), ("head", True)],
)


def load(models, model_type):
    folder = models(model_type)
    backbone = architecture_of(model_type).loader().from_pretrained(folder)
    return backbone.requires_grad_(False).eval(), AutoTokenizer.from_pretrained(folder)


def padded_batch(tokenizer, count=4):
    batch = tokenizer(random_texts(count, seed=3), padding=True, return_tensors="pt")
    assert not batch["attention_mask"].all(), "the batch must have padding to test it"
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def maw_encoder(
    backbone,
    model_type,
    *,
    family="diagonal",
    route_by="sequence",
    router="grpo",
    layers=(2, 3),
    std=0.5,
    values=False,
):
    return MAWWithGRPOEncoder(
        backbone,
        architecture_of(model_type),
        maw_layers=layers,
        depths=DEPTHS,
        kernels={"family": family, "rank": 2, "init_std": std},
        router={"name": router, "route_by": route_by},
        seed=0,
        depth_values=values,
    ).eval()


def perturb(*layers, seed=0):
    """Random kernels, and routers that prefer different depths for different texts without being certain."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in layers:
            for name, parameter in layer.named_parameters():
                if "base" not in name:
                    std = 0.1 if "router" in name else 0.5
                    parameter.add_(std * torch.randn(parameter.shape, generator=generator))


@every_family
def test_running_the_layers_ourselves_is_the_models_own_forward(models, model_type):
    backbone, tokenizer = load(models, model_type)
    batch = padded_batch(tokenizer)
    encoder = NonMAWEncoder(backbone, architecture_of(model_type), prefix_layers=1)
    expected = backbone(**batch).last_hidden_state
    prefix = encoder(batch, "prefix")
    hidden = encoder._layers(prefix, batch["attention_mask"], None)
    torch.testing.assert_close(hidden, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", ["diagonal", "low_rank", "gated"])
@every_family
def test_step_zero_is_the_pretrained_model(models, model_type, family):
    plain, tokenizer = load(models, model_type)
    batch = padded_batch(tokenizer)
    expected = NonMAWEncoder(plain, architecture_of(model_type))(batch)["embedding"]
    for router in ("grpo", "supervised", "fixed"):
        backbone, _ = load(models, model_type)
        encoder = maw_encoder(backbone, model_type, family=family, router=router, layers=(1, 2, 3))
        torch.testing.assert_close(encoder(batch)["embedding"], expected, atol=1e-6, rtol=0)


@with_values
@pytest.mark.parametrize("family", ["diagonal", "low_rank", "gated"])
@every_family
def test_selected_depth_is_a_slice_of_the_reference(models, model_type, family, route_by, values):
    backbone, tokenizer = load(models, model_type)
    batch = padded_batch(tokenizer)
    architecture = architecture_of(model_type)
    encoder = maw_encoder(backbone, model_type, family=family, route_by=route_by, values=values)
    layer = encoder.maw_attention[0]
    perturb(*(kernels for kernels in (layer.kernels, layer.value_kernels) if kernels is not None))
    hidden = encoder.architecture.embed(backbone, batch["input_ids"]).detach()
    inputs = architecture.layer_inputs(backbone, hidden, batch["attention_mask"])[1]
    heads, tokens = (1 if route_by == "sequence" else 2), (hidden.shape[1] if route_by == "token" else 1)
    depth = torch.randint(DEPTHS, (4, 1, heads, tokens), generator=torch.Generator().manual_seed(1))

    def run(compute):
        leaf = hidden.clone().requires_grad_(True)
        layer.zero_grad()
        output = compute(leaf)
        real = batch["attention_mask"].bool()
        weight = torch.linspace(-1, 1, output[real].numel()).view_as(output[real])
        (output[real] * weight).sum().backward()
        gradients = [leaf.grad, *(parameter.grad.clone() for parameter in layer.kernel_parameters())]
        return output[real], gradients

    def selected(leaf):
        routing = Routing(batch["attention_mask"], depths=[depth])
        return layer(leaf, routing=routing, **inputs)[0]

    def reference(leaf):
        attn, value = layer.reference(leaf, **inputs)
        torch.testing.assert_close(attn.sum(3), torch.ones(attn.sum(3).shape))
        assert value.ndim == (5 if values else 4)
        mixed = mix_depth(attn, value, depth[:, 0])
        return architecture.output(layer.base, mixed.transpose(1, 2).flatten(2))

    output, gradients = run(selected)
    expected, expected_gradients = run(reference)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    for got, want in zip(gradients, expected_gradients, strict=True):
        assert want.abs().max() > 1e-4, "a gradient that vanishes would compare equal to anything"
        scale = want.abs().max()
        torch.testing.assert_close(got / scale, want / scale, atol=1e-5, rtol=0)


def test_the_reference_catches_a_wrong_depth(models):
    backbone, tokenizer = load(models, "bert")
    batch = padded_batch(tokenizer)
    encoder = maw_encoder(backbone, "bert")
    layer = encoder.maw_attention[0]
    hidden = encoder.architecture.embed(backbone, batch["input_ids"])
    attn, value = layer.reference(hidden)
    right, wrong = (torch.full((4, 1, 1), depth) for depth in (2, 3))
    picked = layer(hidden, routing=Routing(torch.ones_like(batch["input_ids"]), depths=[right[:, None]]))[0]
    assert torch.allclose((select_depth(attn, right) @ value).transpose(1, 2).flatten(2), picked, atol=1e-5)
    assert not torch.allclose((select_depth(attn, wrong) @ value).transpose(1, 2).flatten(2), picked, atol=1e-3)


def test_attention_5d_against_the_formula_written_out():
    generator = torch.Generator().manual_seed(0)
    batch, heads, tokens, size, depths = 2, 2, 3, 4, 3
    query, key = (torch.randn(batch, heads, tokens, size, generator=generator) for _ in range(2))
    kernels = DiagonalKernels(heads, size, depths, init_std=1.0, generator=generator)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]], dtype=torch.bool)[:, None, None]
    attn = attention_5d(kernels.all_depths(query, None), key, mask, scale=0.5)
    for b in range(batch):
        for h in range(heads):
            for q in range(tokens):
                for d in range(depths):
                    score = torch.stack(
                        [
                            0.5
                            * sum(query[b, h, q, e] * kernels.weight[h, d, e] * key[b, h, k, e] for e in range(size))
                            if mask[b, 0, 0, k]
                            else torch.tensor(-torch.inf)
                            for k in range(tokens)
                        ]
                    )
                    torch.testing.assert_close(attn[b, h, q, :, d], score.softmax(0), atol=1e-6, rtol=1e-5)


def test_one_hot_kernels_are_the_outer_product_form():
    """With as many depths as features, one-hot kernels keep each product of one query and one key feature apart."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 2, 3, 4, generator=generator) for _ in range(2))
    kernels = DiagonalKernels(2, 4, 4)
    kernels.weight.data = torch.eye(4).expand(2, 4, 4).clone()
    score = attention_5d(kernels.all_depths(query, None), key, None, scale=1.0).log()
    outer = torch.einsum("bhqe,bhke->bhqke", query, key)
    torch.testing.assert_close(score, outer - outer.logsumexp(3, keepdim=True), atol=1e-5, rtol=1e-5)


@with_values
@pytest.mark.parametrize("family", ["diagonal", "low_rank", "gated"])
@pytest.mark.parametrize("model_type", ["bert", "modernbert"])
def test_a_group_is_its_samples_one_by_one(models, model_type, family, route_by, values):
    backbone, tokenizer = load(models, model_type)
    batch = padded_batch(tokenizer)
    encoder = maw_encoder(backbone, model_type, family=family, route_by=route_by, values=values)
    perturb(*encoder.maw_attention)
    keys = torch.arange(12).view(4, 3)
    group = encoder(batch, mode="group", keys=keys)
    for sample in range(3):
        alone = encoder(batch, mode="group", keys=keys[:, sample : sample + 1])
        torch.testing.assert_close(group["embedding"][:, sample], alone["embedding"][:, 0], atol=1e-5, rtol=1e-5)
        given = encoder(batch, mode="group", depths=[d[:, sample : sample + 1] for d in group["depths"]])
        torch.testing.assert_close(group["embedding"][:, sample], given["embedding"][:, 0], atol=1e-5, rtol=1e-5)
    assert any((d[:, 0] != d[:, 1]).any() for d in group["depths"]), "samples must differ"


@pytest.mark.parametrize("values", [False, True])
@every_family
def test_a_batch_is_its_chunks(models, model_type, values):
    """What a data-parallel replica computes does not depend on which replica it is."""
    backbone, tokenizer = load(models, model_type)
    batch = padded_batch(tokenizer)
    encoder = maw_encoder(backbone, model_type, route_by="head", values=values)
    perturb(encoder.maw_attention[0])
    keys = torch.arange(8).view(4, 2)
    whole = encoder(batch, mode="group", keys=keys)
    chunks = [
        encoder({n: each[part] for n, each in batch.items()}, mode="group", keys=keys[part])
        for part in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(whole["embedding"], torch.cat([c["embedding"] for c in chunks]), atol=1e-6, rtol=1e-5)
    assert all(torch.equal(w, torch.cat(p)) for w, *p in zip(whole["depths"], *(c["depths"] for c in chunks)))


@every_family
def test_called_through_hugging_face_the_layer_takes_greedy_depths(models, model_type):
    backbone, tokenizer = load(models, model_type)
    batch = padded_batch(tokenizer)
    encoder = maw_encoder(backbone, model_type)
    perturb(*encoder.maw_attention)
    hidden = backbone(**batch).last_hidden_state
    direct = encoder._pool(hidden, batch["attention_mask"])
    torch.testing.assert_close(direct, encoder(batch)["embedding"], atol=1e-6, rtol=1e-5)


def test_a_soft_router_uses_the_expected_kernel(models):
    backbone, _ = load(models, "bert")
    encoder = maw_encoder(backbone, "bert", router="soft", layers=(3,))
    layer = encoder.maw_attention[0]
    perturb(layer)
    query = torch.randn(2, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    gate = torch.randn(2, 1, 1, 1, DEPTHS, generator=torch.Generator().manual_seed(1)).softmax(-1)
    expected = query * torch.einsum("bd,hde->bhe", gate[:, 0, 0, 0], layer.kernels.weight)[:, :, None]
    torch.testing.assert_close(layer.kernels(query, None, gate)[:, 0], expected)


@pytest.mark.parametrize("route_by", ROUTES)
def test_hard_gates_are_one_hot_soft_gates(route_by):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 5, 16, generator=generator)
    query = torch.randn(3, 2, 5, 8, generator=generator)
    heads, tokens = (1 if route_by == "sequence" else 2), (5 if route_by == "token" else 1)
    hard = torch.randint(DEPTHS, (3, 4, heads, tokens), generator=generator)
    soft = torch.nn.functional.one_hot(hard, DEPTHS).float()
    low_rank = {"hidden_size": 16, "rank": 3}
    for kernels in (
        DiagonalKernels(2, 8, DEPTHS, init_std=1.0),
        LowRankKernels(2, 8, DEPTHS, **low_rank),
        GatedKernels(2, 8, DEPTHS, **low_rank),
    ):
        perturb(kernels)
        torch.testing.assert_close(kernels(query, hidden, hard), kernels(query, hidden, soft))


def test_depth_zero_starts_at_exactly_one_and_the_others_apart():
    kernels = DiagonalKernels(2, 8, DEPTHS, generator=torch.Generator().manual_seed(0))
    assert (kernels.weight[:, 0] == 1).all()
    distances = torch.cdist(kernels.weight[0], kernels.weight[0]) + torch.eye(DEPTHS)
    assert distances.min() > 0.01


@pytest.mark.parametrize("rotary", [False, True])
def test_kernels_for_a_router_that_mixes_are_one_in_the_mixture(rotary):
    mixture = build_router("soft", 2, 8, DEPTHS).first_mixture_D
    assert build_router("grpo", 2, 8, DEPTHS).first_mixture_D is None
    generator = torch.Generator().manual_seed(0)
    options = {"rotary": rotary, "init_std": 0.5, "generator": generator}
    kernels = DiagonalKernels(2, 8, DEPTHS, mixture_D=mixture, **options)
    expected = torch.einsum("d,hde->he", mixture, kernels.kernels_HDE)
    torch.testing.assert_close(expected, torch.ones(2, 8), atol=1e-6, rtol=0)
    assert (torch.cdist(kernels.weight[0], kernels.weight[0]) + torch.eye(DEPTHS)).min() > 0.1


def test_rotary_kernels_commute_with_rotation(models):
    backbone, tokenizer = load(models, "modernbert")
    architecture = architecture_of("modernbert")
    hidden = architecture.embed(backbone, padded_batch(tokenizer)["input_ids"])
    inputs = architecture.layer_inputs(backbone, hidden, torch.ones(hidden.shape[:2]))[0]
    query = torch.randn(4, 2, hidden.shape[1], 8)
    kernels = DiagonalKernels(2, 8, DEPTHS, rotary=True, init_std=1.0)
    gate = torch.tensor([1, 2, 3, 4])[:, None, None, None]
    before = architecture.rotate((kernels(query, None, gate)[:, 0],), inputs)[0]
    after = kernels(architecture.rotate((query,), inputs)[0], None, gate)[:, 0]
    torch.testing.assert_close(before, after, atol=1e-6, rtol=1e-5)
    untied = DiagonalKernels(2, 8, DEPTHS, init_std=1.0)
    before = architecture.rotate((untied(query, None, gate)[:, 0],), inputs)[0]
    after = untied(architecture.rotate((query,), inputs)[0], None, gate)[:, 0]
    assert not torch.allclose(before, after, atol=1e-2), "only tied kernels commute"


def test_unknown_names_are_refused():
    with pytest.raises(ModelError, match="reformer"):
        architecture_of("reformer")
    with pytest.raises(ValueError, match="cubic"):
        build_kernels("cubic", 2, 8, 4, hidden_size=16, rotary=False, rank=2, init_std=0.1)
    with pytest.raises(ValueError, match="oracle"):
        build_router("oracle", 2, 8, 4)
    assert MAWAttentionLayer.__name__ == "MAWAttentionLayer"


@every_family
def test_without_padding_every_token_is_attended_to(models, model_type):
    """Hugging Face then gives no mask at all, which a backend may take for causal attention."""
    plain, tokenizer = load(models, model_type)
    batch = tokenizer(["file string list number path open close read write sort"] * 2, return_tensors="pt")
    batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    expected = plain(**batch).last_hidden_state
    backbone, _ = load(models, model_type)
    encoder = maw_encoder(backbone, model_type, layers=(1, 2, 3))
    hidden = encoder._layers(encoder._prefix(batch), batch["attention_mask"], Routing(batch["attention_mask"]))
    rounding = 1e-5 if model_type == "mpnet" else 1e-6  # of another attention: transformers has MPNet's written out
    torch.testing.assert_close(hidden, expected, atol=rounding, rtol=0)


def test_low_rank_depths_start_apart():
    """`up` is zero at the start, so its gradient is what tells depths apart: it comes from `down`."""
    generator = torch.Generator().manual_seed(0)
    kernels = LowRankKernels(2, 8, DEPTHS, hidden_size=16, rank=3, generator=generator)
    hidden, query = torch.randn(3, 5, 16, generator=generator), torch.randn(3, 2, 5, 8, generator=generator)
    gate = torch.full((3, 1, 1, 1, DEPTHS), 1 / DEPTHS)
    kernels(query, hidden, gate).square().sum().backward()
    by_depth = kernels.up.grad.transpose(0, 1).flatten(1)
    assert (torch.cdist(by_depth, by_depth) + torch.eye(DEPTHS)).min() > 0.01


def gated():
    """Kernels with a trained change, with a query, hidden states and depths of three texts."""
    generator = torch.Generator().manual_seed(0)
    hidden, query = torch.randn(3, 5, 16, generator=generator), torch.randn(3, 2, 5, 8, generator=generator)
    kernels = GatedKernels(2, 8, DEPTHS, hidden_size=16, rank=3, generator=generator)
    with torch.no_grad():
        kernels.up.normal_(generator=generator)
    return kernels, query, hidden, torch.tensor([0, 2, 1]).view(3, 1, 1, 1)


def test_a_gated_depth_is_its_own_weighting_of_one_change():
    kernels, query, hidden, depth = gated()
    got = kernels(query, hidden, depth)
    for b, d in enumerate(depth.flatten().tolist()):
        change = torch.einsum("tc,rc,r,hre->hte", hidden[b], kernels.down, kernels.gate[d], kernels.up)
        torch.testing.assert_close(got[b, 0], query[b] + change)
    wrong = torch.einsum("btc,rc,hre->bhte", hidden, kernels.down, kernels.up)
    assert (got[:, 0] - query - wrong).abs().amax((1, 2, 3))[1:].min() > 0.1, "the gates matter"


def test_gated_depths_start_as_the_query_and_differ_once_the_change_is_trained():
    kernels, query, hidden, _ = gated()
    new = GatedKernels(2, 8, DEPTHS, hidden_size=16, rank=3, generator=torch.Generator().manual_seed(0))
    assert (new.all_depths(query, hidden) == query[..., None, :]).all()
    assert (new.gate[0] == 1).all() and (torch.cdist(new.gate, new.gate) + torch.eye(DEPTHS)).min() > 0.1
    every = kernels.all_depths(query, hidden)
    assert (torch.cdist(*[every.movedim(3, 0).flatten(1)] * 2) + torch.eye(DEPTHS)).min() > 0.1


def test_every_text_trains_the_change_and_its_own_gates_alone():
    kernels, query, hidden, depth = gated()
    kernels(query, hidden, depth)[:1].square().sum().backward()  # one text, at depth 0
    assert kernels.up.grad.abs().min() > 0 and kernels.down.grad.abs().min() > 0
    assert kernels.gate.grad[0].abs().min() > 0 and not kernels.gate.grad[1:].any()


@every_family
def test_attention_weights_drop_out_in_training_and_not_at_evaluation(models, model_type):
    backbone, tokenizer = load(models, model_type)
    batch = padded_batch(tokenizer)
    encoder = maw_encoder(backbone, model_type, layers=(3,))
    encoder.trained_layers = (3,)
    for module in backbone.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    attention = encoder.maw_attention[0].base
    if hasattr(attention, "attention_dropout"):
        attention.attention_dropout = 0.5
    elif isinstance(attention.dropout, float):
        attention.dropout = 0.5
    else:
        attention.dropout.p = 0.5
    at_evaluation = encoder(batch)["embedding"]
    assert torch.equal(at_evaluation, encoder(batch)["embedding"])
    encoder.train()
    assert not torch.allclose(at_evaluation, encoder(batch)["embedding"], atol=1e-3)
