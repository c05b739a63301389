"""The ablation whose depths change values: against the written-out formula, softly mixed, merged into the weights."""

from __future__ import annotations

import pytest
import torch

from attention.depth_slices import mix_depth, select_depth
from maw.attention.architectures import architecture_of
from maw.attention.depth_kernels import LowRankKernels
from maw.attention.layer import MAWAttentionLayer
from maw.attention.routers import Routing, build_router
from maw.models.retriever import MAWRetriever


def layer_of(tiny_settings, **changes):
    """The last layer of a tiny BERT with depth kernels far from their start."""
    settings = {"depth_values": True, "depth_dim": 3, "kernel_rank": 2}
    model = MAWRetriever(tiny_settings(**(settings | changes)))
    (layer,) = model.encoder.maw_attention
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.kernel_parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return layer


def hidden(texts=2, tokens=5):
    return torch.randn(texts, tokens, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", ["diagonal", "low_rank", "gated"])
def test_values_of_every_depth_against_the_formula_written_out(tiny_settings, family):
    layer, states = layer_of(tiny_settings, depth_kernel=family), hidden()
    _, value = layer.reference(states)
    plain = layer.base.value(states).unflatten(-1, (2, 8))  # (B, K, H, E)
    kernels = layer.value_kernels
    for b in range(2):
        for h in range(2):
            for k in range(5):
                for d in range(3):
                    if family == "diagonal":
                        expected = plain[b, k, h] * kernels.weight[h, d]
                    elif family == "gated":
                        change = (kernels.gate[d] * (kernels.down @ states[b, k])) @ kernels.up[h]
                        expected = plain[b, k, h] + change
                    else:
                        expected = plain[b, k, h] + (kernels.down[d] @ states[b, k]) @ kernels.up[h, d]
                    torch.testing.assert_close(value[b, h, k, d], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("family", ["diagonal", "low_rank", "gated"])
def test_a_soft_pick_mixes_query_kernels_and_value_kernels(tiny_settings, family):
    """The expected kernel on both sides, which no mixture of the depths' outputs is."""
    layer, states = layer_of(tiny_settings, depth_kernel=family, router="soft"), hidden()
    with torch.no_grad():
        layer.router.weight.normal_(generator=torch.Generator().manual_seed(2))
    routing = Routing(torch.ones(2, 5))
    output = layer(states, routing=routing)[0]
    share_BD = routing.picked_depths[0][:, 0, 0, 0]
    assert share_BD.max(1).values.min() < 0.99, "a pick of one depth would be no mixture"
    query, key, value = layer.architecture.project(layer.base, states)
    query, value = (
        torch.einsum("bd,bhtde->bhte", share_BD, kernels.all_depths(each, states))
        for kernels, each in ((layer.kernels, query), (layer.value_kernels, value))
    )
    expected = ((query @ key.transpose(-1, -2)) * 8**-0.5).softmax(-1) @ value
    torch.testing.assert_close(output, expected.transpose(1, 2).flatten(2), atol=1e-5, rtol=1e-5)
    attn, every = layer.reference(states)
    by_depth = torch.stack([mix_depth(attn, every, torch.full((2, 1, 1), d)) for d in range(3)])
    outputs = torch.einsum("bd,dbhte->bhte", share_BD, by_depth)
    assert not torch.allclose(outputs, expected, atol=1e-3)


def test_the_reference_catches_values_of_another_depth(tiny_settings):
    layer, states = layer_of(tiny_settings), hidden()
    attn, value = layer.reference(states)
    right, wrong = torch.full((2, 1, 1), 1), 2
    output = layer(states, routing=Routing(torch.ones(2, 5), depths=[right[:, None]]))[0]
    output = output.unflatten(-1, (2, 8)).transpose(1, 2)
    torch.testing.assert_close(mix_depth(attn, value, right), output, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(select_depth(attn, right) @ value[:, :, :, wrong], output, atol=1e-2)


def test_a_value_cannot_depend_on_who_reads_it(models):
    kernels = LowRankKernels(2, 8, 3, hidden_size=16)
    with pytest.raises(ValueError, match="route_by"):
        MAWAttentionLayer(
            torch.nn.Identity(), architecture_of("bert"), kernels, build_router("grpo", 2, 8, 3, "token"), kernels
        )


def test_without_depths_of_values_nothing_about_the_layer_changes(tiny_settings):
    """The kernels of the query are drawn first, so the ablation starts from the very same ones."""
    layers = [MAWRetriever(tiny_settings(depth_values=values)).encoder.maw_attention[0] for values in (False, True)]
    assert layers[0].value_kernels is None
    assert torch.equal(layers[0].kernels.weight, layers[1].kernels.weight)
    assert not torch.equal(layers[1].kernels.weight, layers[1].value_kernels.weight)
