"""The faster CPU kernels give PyTorch's own results."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from maw.models import cpu_kernels
from maw.models.cpu_kernels import (
    ByteDropout,
    PackedLinear,
    attention,
    drop_unscaled,
    packed_weights,
    use_faster_modules,
)

packing = pytest.mark.skipif(not cpu_kernels._PACKABLE, reason="this processor's build of PyTorch packs no weights")


ENCODER = nn.Module()
ENCODER.is_causal = False


def states(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator).to(dtype).requires_grad_() for _ in range(3)]


def masks(kind: str, texts: int, tokens: int, dtype: torch.dtype) -> torch.Tensor | None:
    lengths = torch.arange(texts) % tokens + 1
    shared = (torch.arange(tokens) < lengths[:, None])[:, None, None].expand(-1, -1, tokens, -1)
    near = (torch.arange(tokens)[:, None] - torch.arange(tokens)).abs() <= 2
    return {
        "none": None,
        "shared": shared,
        "sliding": near.expand(texts, 1, -1, -1),
        "additive": torch.zeros(shared.shape, dtype=dtype).masked_fill(~shared, torch.finfo(dtype).min),
    }[kind]


def with_gradients(
    function, tensors: list[torch.Tensor], upstream: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    output = function(*tensors)
    return output, list(torch.autograd.grad(output, tensors, upstream))


@pytest.mark.parametrize("mask", ["none", "shared", "sliding", "additive"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_give_what_fused_attention_gives(monkeypatch, mask, dtype):
    monkeypatch.setattr(cpu_kernels, "_better_by_products", lambda *_: True)
    tensors = states(5, 2, 7, 4, dtype=dtype)
    allowed = masks(mask, 5, 7, dtype)
    upstream = torch.randn(5, 7, 2, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
    ours, our_gradients = with_gradients(
        lambda q, k, v: attention(ENCODER, q, k, v, allowed, scaling=0.3)[0], tensors, upstream
    )
    exact = [each.detach().double().requires_grad_() for each in tensors]
    wide = allowed if allowed is None or allowed.dtype == torch.bool else allowed.double()
    theirs, gradients = with_gradients(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=wide, scale=0.3).transpose(1, 2),
        exact,
        upstream.double(),
    )
    tolerance = {"atol": 2e-6, "rtol": 2e-6} if dtype == torch.float32 else {"atol": 0.05, "rtol": 0.05}
    for own, other in zip([ours, *our_gradients], [theirs, *gradients]):
        torch.testing.assert_close(own, other.to(dtype), **tolerance)


def test_a_mask_that_is_not_shared_is_not_cut_to_its_first_row(monkeypatch):
    monkeypatch.setattr(cpu_kernels, "_better_by_products", lambda *_: True)
    tensors = states(1, 2, 7, 4)
    mask = masks("sliding", 1, 7, torch.float32)
    right = attention(ENCODER, *tensors, mask)[0]
    wrong = attention(ENCODER, *tensors, mask[:, :, :1])[0]
    assert (right - wrong).abs().max() > 0.1


@pytest.mark.parametrize("mask", ["none", "shared", "sliding", "additive"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_of_a_batch_give_what_fused_attention_gives(monkeypatch, mask, dtype):
    monkeypatch.setattr(cpu_kernels, "_better_by_products", lambda *_: True)
    monkeypatch.setattr(cpu_kernels, "_SCORES_IN_CACHE", 2 * 3 * 7 * 7)  # two texts
    tensors = [each.detach() for each in states(5, 3, 7, 4, dtype=dtype)]
    allowed = masks(mask, 5, 7, dtype)
    found = attention(ENCODER, *tensors, allowed, scaling=0.3)[0]
    wide = allowed if allowed is None or allowed.dtype == torch.bool else allowed.double()
    exact = (each.double() for each in tensors)
    expected = F.scaled_dot_product_attention(*exact, attn_mask=wide, scale=0.3).transpose(1, 2)
    tolerance = {"atol": 2e-6, "rtol": 2e-6} if dtype == torch.float32 else {"atol": 0.02, "rtol": 0.02}
    torch.testing.assert_close(found, expected.to(dtype), **tolerance)


def test_parts_in_another_order_would_be_noticed(monkeypatch):
    monkeypatch.setattr(cpu_kernels, "_better_by_products", lambda *_: True)
    monkeypatch.setattr(cpu_kernels, "_SCORES_IN_CACHE", 1)
    tensors = [each.detach() for each in states(5, 3, 7, 4)]
    right = attention(ENCODER, *tensors, masks("shared", 5, 7, torch.float32))[0]
    join = torch.cat
    monkeypatch.setattr(torch, "cat", lambda parts: join(parts[::-1]))
    wrong = attention(ENCODER, *tensors, masks("shared", 5, 7, torch.float32))[0]
    assert (right - wrong).abs().max() > 0.1


def test_dropout_does_not_depend_on_parts(monkeypatch):
    """Activation checkpointing runs a layer twice, and both must drop the same values."""
    tensors = states(5, 3, 7, 4)
    found = []
    for most in (1, 2**20):
        monkeypatch.setattr(cpu_kernels, "_SCORES_IN_CACHE", most)
        torch.manual_seed(0)
        found.append(attention(ENCODER, *tensors, None, dropout=0.25)[0])
    assert torch.equal(*found)


def test_products_are_for_bfloat16_and_for_dropout_on_a_processor(monkeypatch):
    tensors = states(1, 2, 4, 8, dtype=torch.bfloat16)
    decide = lambda *args, dropout=0.0, **options: cpu_kernels._better_by_products(*args, dropout, options)
    assert decide(*tensors)
    assert not decide(*(each.float() for each in tensors))
    assert decide(*(each.float() for each in tensors), dropout=0.1)
    assert not decide(*tensors, position_bias=torch.zeros(1))
    assert not decide(*(each.to("meta") for each in tensors))
    for computes in (True, False):  # in bfloat16
        monkeypatch.setattr(cpu_kernels, "_packable", lambda dtype, computes=computes: computes)
        assert decide(*tensors)
        with torch.no_grad():
            assert decide(*tensors) == computes
            assert not decide(*(each.float() for each in tensors))
        assert decide(*(each.detach() for each in tensors)) == computes


@pytest.mark.parametrize("said", [None, True])
def test_a_decoder_stays_causal(said):
    decoder = nn.Module()
    decoder.is_causal = said is None
    tensors = states(1, 2, 5, 4, dtype=torch.bfloat16)
    output = attention(decoder, *tensors, None, is_causal=said)[0]
    expected = F.scaled_dot_product_attention(*tensors, is_causal=True).transpose(1, 2)
    assert torch.equal(output, expected)


def test_long_texts_are_left_to_fused_attention(monkeypatch):
    tensors = states(1, 2, 8, 4, dtype=torch.bfloat16)
    monkeypatch.setattr(cpu_kernels, "MOST_SCORES", 127)
    assert not cpu_kernels._better_by_products(*tensors, 0.0, {})
    monkeypatch.setattr(cpu_kernels, "MOST_SCORES", 128)
    assert cpu_kernels._better_by_products(*tensors, 0.0, {})


def test_texts_whose_scores_are_not_kept_do_not_count_together(monkeypatch):
    """Else the bits of a text would depend on the number of texts in its batch."""
    monkeypatch.setattr(cpu_kernels, "MOST_SCORES", 128)
    monkeypatch.setattr(cpu_kernels, "_packable", lambda dtype: True)
    tensors = states(3, 2, 8, 4, dtype=torch.bfloat16)
    assert not cpu_kernels._better_by_products(*tensors, 0.0, {})
    with torch.no_grad():
        assert cpu_kernels._better_by_products(*tensors, 0.0, {})
        assert not cpu_kernels._better_by_products(*tensors, 0.1, {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_dropout_drops_the_right_share_at_every_place(dtype, probability):
    torch.manual_seed(3)
    values = torch.ones(8 * 40_000, dtype=dtype, requires_grad=True)
    kept, gain = drop_unscaled(values, probability)
    share = round(256 * probability) / 256
    assert gain == pytest.approx(1 / (1 - share))
    dropped = (kept == 0).float().view(-1, 8).mean(0)  # each byte of the random numbers by itself
    assert (dropped - share).abs().max() < 5 * (share * (1 - share) / 40_000) ** 0.5
    assert set(kept.detach().float().unique().tolist()) == {0.0, 1.0}
    (gradient,) = torch.autograd.grad(kept, values, torch.full_like(values, 2.0))
    assert torch.equal(gradient, 2 * kept)


def test_numbers_without_their_top_bit_would_be_noticed(monkeypatch):
    """`random_()` without bounds leaves the sign bit out, so that every eighth value would drop too seldom."""
    plain = torch.Tensor.random_
    monkeypatch.setattr(torch.Tensor, "random_", lambda tensor, *_: plain(tensor))
    torch.manual_seed(3)
    kept, _ = drop_unscaled(torch.ones(8 * 40_000), 0.5)
    assert ((kept == 0).float().view(-1, 8).mean(0) - 0.5).abs().max() > 0.1


def test_dropout_depends_on_the_seed_alone():
    values = torch.randn(3, 5, 7)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(ByteDropout(0.3)(values))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("probability", [0.01, 0.99, 1.0])
def test_probabilities_that_steps_would_distort_are_left_to_pytorch(probability):
    torch.manual_seed(5)
    kept, gain = drop_unscaled(torch.ones(1000), probability)
    torch.manual_seed(5)
    assert torch.equal(kept, F.dropout(torch.ones(1000), probability))
    assert gain == 1


def test_nothing_is_dropped_at_evaluation_or_at_zero():
    values = torch.randn(4, 4)
    assert torch.equal(ByteDropout(0.5).eval()(values), values)
    assert torch.equal(ByteDropout(0.0)(values), values)


def test_dropped_attention_keeps_its_mean():
    tensors = states(1, 2, 6, 4)
    torch.manual_seed(0)
    mean = torch.stack([attention(ENCODER, *tensors, None, dropout=0.25)[0].detach() for _ in range(4000)]).mean(0)
    with torch.no_grad():
        expected = attention(ENCODER, *tensors, None)[0]
    assert (mean - expected).abs().max() < 0.06


@packing
@pytest.mark.parametrize("bias", [True, False])
def test_packed_weights_give_the_same_map(bias):
    linear = nn.Linear(24, 40, bias=bias)
    packed = PackedLinear.of(linear)
    assert packed.weight is linear.weight
    assert packed.bias is linear.bias
    values = torch.randn(6, 5, 24)
    with torch.no_grad(), packed_weights():
        torch.testing.assert_close(packed(values), linear(values), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(packed(values[::2]), linear(values[::2]), atol=1e-6, rtol=1e-6)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = packed(values)
        assert rounded.dtype == torch.bfloat16
        torch.testing.assert_close(rounded.float(), linear(values), atol=0.03, rtol=0.03)


@packing
def test_packed_weights_end_with_their_block_and_are_not_used_in_training():
    packed = PackedLinear.of(nn.Linear(8, 8))
    values = torch.randn(2, 8)
    with torch.no_grad(), packed_weights():
        before = packed(values)
    with torch.no_grad():
        packed.weight.add_(1.0)
        assert (packed(values) - before).abs().max() > 0.1
        with packed_weights():
            assert (packed(values) - before).abs().max() > 0.1
    with packed_weights():
        packed(values).sum().backward()
    assert packed.weight.grad.abs().sum() > 0


@packing
def test_trained_weights_are_never_stale_inside_a_block_for_frozen_ones():
    trained, frozen = (PackedLinear.of(nn.Linear(8, 8)) for _ in range(2))
    frozen.requires_grad_(False)
    values = torch.randn(2, 8)
    with torch.no_grad(), packed_weights(trained=False):
        for _ in range(3):
            trained.weight.add_(1.0)
            torch.testing.assert_close(trained(values), F.linear(values, trained.weight, trained.bias))
            with packed_weights():
                torch.testing.assert_close(trained(values), F.linear(values, trained.weight, trained.bias))
                torch.testing.assert_close(frozen(values), F.linear(values, frozen.weight, frozen.bias))


@packing
def test_weights_of_another_device_are_not_packed():
    """No library packs them, and "meta" stands in for a GPU: it knows the plain map and nothing of packing."""
    packed = PackedLinear.of(nn.Linear(8, 6)).to("meta").requires_grad_(False)
    for no_gradient in (torch.no_grad, torch.inference_mode):
        with no_gradient(), packed_weights():
            assert packed(torch.empty(2, 8, device="meta")).shape == (2, 6)
            assert not cpu_kernels._packs.get().packed


@packing
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_formats_that_cannot_be_packed_here_are_computed_plainly(monkeypatch, dtype):
    """As bfloat16 is on a processor without the units for it, which refuses to pack."""
    monkeypatch.setattr(cpu_kernels, "_packable", lambda dtype: dtype == torch.float32)
    linear = nn.Linear(24, 40).to(dtype)
    values = torch.randn(6, 24).to(dtype)
    with torch.no_grad(), packed_weights():
        found = PackedLinear.of(linear)(values)
        assert not cpu_kernels._packs.get().packed
    torch.testing.assert_close(found, linear(values))


@packing
@pytest.mark.parametrize("supported", [True, False])
def test_the_library_is_asked_whether_it_packs_bfloat16(monkeypatch, supported):
    library = SimpleNamespace(_is_mkldnn_bf16_supported=lambda: supported)
    monkeypatch.setattr(torch, "ops", SimpleNamespace(mkldnn=library))
    found = [
        cpu_kernels._packable.__wrapped__(each)
        for each in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    ]
    assert found == [True, supported, False, False]


@packing
def test_packed_weights_are_really_used(monkeypatch):
    packed, values, calls = PackedLinear.of(nn.Linear(8, 8)), torch.randn(2, 8), []
    plain = F.linear
    monkeypatch.setattr(F, "linear", lambda *words: calls.append(words) or plain(*words))
    with torch.no_grad(), packed_weights():
        found = packed(values)
    assert not calls
    with torch.no_grad():
        torch.testing.assert_close(found, packed(values))
    assert len(calls) == 1, "outside the block it is the plain map again"


@pytest.mark.parametrize("rows", [1, 63, 64, 65])
@pytest.mark.parametrize("bias", [True, False])
def test_products_of_filled_up_rows_give_the_same_map_and_gradients(rows, bias):
    linear = nn.Linear(24, 40, bias=bias)
    packed = PackedLinear.of(copy.deepcopy(linear))
    values = torch.randn(rows, 2, 24, generator=torch.Generator().manual_seed(0)).requires_grad_()
    upstream = torch.randn(rows, 2, 40, generator=torch.Generator().manual_seed(1))
    found = []
    for module in (packed, linear):
        with torch.autocast("cpu", torch.bfloat16):
            output = module(values)
        assert output.dtype == torch.bfloat16
        found.append([output.float(), *torch.autograd.grad(output.float(), [values, *module.parameters()], upstream)])
    for ours, theirs in zip(*found):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0.02)


def test_products_have_few_shapes(monkeypatch):
    seen = set()
    plain = F.linear
    monkeypatch.setattr(F, "linear", lambda rows, *rest: seen.add(len(rows)) or plain(rows, *rest))
    packed = PackedLinear.of(nn.Linear(8, 8)).to(torch.bfloat16)
    for rows in range(1, 200):
        packed(torch.randn(rows, 8).to(torch.bfloat16))
    assert seen == {64, 128, 192, 256}


def test_frozen_weights_may_be_packed_in_training():
    packed = PackedLinear.of(nn.Linear(8, 6)).requires_grad_(False).to(torch.bfloat16)
    values = torch.randn(5, 8, dtype=torch.bfloat16, requires_grad=True)
    expected = torch.autograd.grad(packed(values).sum(), values)
    with packed_weights():
        got = torch.autograd.grad(packed(values).sum(), values)
    torch.testing.assert_close(got, expected)


def test_faster_modules_keep_parameters_names_and_copies():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.2), nn.Sequential(nn.Linear(4, 2)))
    before = dict(model.named_parameters())
    use_faster_modules(model.eval())
    assert {name: id(each) for name, each in model.named_parameters()} == {n: id(p) for n, p in before.items()}
    assert type(model[1]) is ByteDropout
    assert model[1].p == 0.2
    assert not model[1].training
    assert type(model[2][0]) is PackedLinear
    values = torch.randn(3, 4)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(values), model(values))
