"""The methods of a run: where each starts, what it trains, and that it is what its name says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import FAMILIES, IN_SHORT, every_family, random_texts

from maw.attention.architectures import architecture_of
from maw.config.methods import METHODS, find_method, method_of, trained_methods
from maw.config.tier1_config import Tier1Config
from maw.models.retriever import BaselineRetriever, MAWRetriever
from maw.training.checkpoint import RETRIEVERS, load_checkpoint, save_checkpoint
from maw.training.optimizer import learning_rate, parameter_groups

ARMS = [method.name for method in METHODS if method.trained]
WHOLE = ("full", "full_lowrank", "maw_fixed", "maw_random", "maw_soft", "maw", "maw_qv")
SIX_MAPS = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)


@pytest.fixture
def build(tiny_settings):
    """`build("maw_fixed", "roberta", kernel_rank=2)` makes that arm's retriever as a run does."""

    def make(name, model_type="bert", **changes):
        method = find_method(name)
        return RETRIEVERS[method.retriever](method.configure(tiny_settings(model_type, **changes)))

    return make


def perturb(model, scale=0.3):
    """Moves all that is trained."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def last_layer(model):
    return model.encoder.architecture.layers(model.encoder.backbone)[2]


# ------------------------------------------------------------------------------------------------- the table itself


def test_the_configuration_takes_its_names_from_the_table():
    assert Tier1Config(methods=["all"]).methods == [method.name for method in METHODS]
    assert trained_methods(Tier1Config(methods=["all"])) == ARMS
    assert all(method.learning_rate for method in METHODS if method.trained)
    keys = [find_method(name).key for name in Tier1Config().methods]
    assert keys == ["1_normal_retriever", "2_lora_fine_tuned_retriever", "3_maw_fine_tuned_retriever"]
    assert "MAW" not in find_method("maw_qv").label + find_method("maw_qv").approach


@pytest.mark.parametrize("kernels", ["diagonal", "low_rank", "gated"])
@pytest.mark.parametrize("router", ["grpo", "supervised"])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_method_is_known_by_its_model(tiny_settings, method, router, kernels):
    """Whatever the run's own settings of LoRA, layers and values are."""
    for changes in (
        {"use_lora": True},
        {"train_layers": True},
        {"depth_values": True},
        {"lora_targets": "all"},
        {"adapt_maw_layers": True},
    ):
        config = method.configure(tiny_settings(router=router, depth_kernel=kernels, **changes))
        assert method_of(method.retriever, config) is method
        assert method.configure(config) == config, "configuring twice is configuring once"


def test_learning_rates_follow_from_the_model(tiny_settings, build, monkeypatch):
    rates = {method.name: 0.1 + index for index, method in enumerate(METHODS)}
    for method in METHODS:
        monkeypatch.setitem(method.__dict__, "learning_rate", rates[method.name] if method.trained else None)
    for method in METHODS:
        model = build(method.name)
        expected = rates[method.name] if method.trained else 0.0
        assert learning_rate(model, tiny_settings()) == expected
        assert learning_rate(model, tiny_settings(learning_rate=0.5)) == 0.5
    from_python = MAWRetriever(tiny_settings(router="soft", use_lora=True))
    assert learning_rate(from_python, tiny_settings()) == rates["maw_soft"]
    for changes, name in (
        ({"train_layers": True}, "full"),
        ({"use_lora": True, "lora_targets": "all"}, "lora_matched"),
    ):
        assert learning_rate(BaselineRetriever(tiny_settings(**changes)), tiny_settings()) == rates[name]
    settings = tiny_settings()
    settings.learning_rate = learning_rate(build("lora_matched"), settings)
    used = {group["lr"] for group in parameter_groups(build("lora_matched"), settings)}
    assert used == {rates["lora_matched"]}


# ---------------------------------------------------------------------------------------------------- the first step


@pytest.mark.parametrize(
    ("model_type", "kernels"),
    [
        pytest.param(family, kernels, marks=() if family in always else pytest.mark.faults)
        for kernels, always in (("diagonal", ["bert"]), ("low_rank", ["bert"]), ("gated", {*FAMILIES} - {*IN_SHORT}))
        for family in FAMILIES
    ],
)
def test_every_arm_starts_as_the_pretrained_model(build, model_type, kernels):
    texts = random_texts(6)
    expected = build("zero_shot", model_type).encode(texts)
    for number, name in enumerate(ARMS):
        by_head = (number + FAMILIES.index(model_type)) % 2  # over the families, each arm in both ways
        route_by = "head" if by_head else "sequence"
        changes = {"depth_kernel": kernels, "route_by": route_by, "finetune_layers": "all", "maw_layers": "all"}
        got = build(name, model_type, kernel_init_std=0.2, **changes).encode(texts)
        if name == "maw_random" and kernels == "diagonal":
            assert abs(got - expected).max() > 1e-3, "noise at other depths would be noticed"
        else:
            assert abs(got - expected).max() <= 1e-6, name


def test_a_soft_arm_starts_with_depths_apart(build):
    weight = last_layer(build("maw_soft", kernel_init_std=0.2)).attention.self.kernels.weight
    assert (weight - 1).abs().amax(dim=(0, 2)).min() > 0.1, "no depth is one by itself, only their mixture is"


# ----------------------------------------------------------------------------------------------------- what is trained


def names_of_trained(model):
    """Trained parameters by their name in the last layer, as the pretrained model has it, and where they are."""
    names = {name for name, parameter in model.encoder.named_parameters() if parameter.requires_grad}
    assert names and all(".layer.2." in name for name in names), "nothing outside the last layer"
    return {name.rpartition(".layer.2.")[2].replace(".self.base.", ".self.") for name in names}


def test_each_arm_trains_what_it_should_and_nothing_else(build, tiny_settings):
    plain = {name for name, _ in last_layer(BaselineRetriever(tiny_settings())).named_parameters()}
    kernels = {"attention.self.kernels.weight"}
    router = {"attention.self.router.weight", "attention.self.router.bias"}
    lora = {f"{{}}.lora_{part}.default.weight" for part in "AB"}
    expected = {
        "lora": {each.format(name) for name in SIX_MAPS if name.endswith(("query", "value")) for each in lora},
        "lora_matched": {each.format(name) for name in SIX_MAPS for each in lora},
        "full": plain,
        "full_lowrank": plain | {"attention.self.kernels.down", "attention.self.kernels.up"},
        "maw_fixed": plain | kernels,
        "maw_random": plain | kernels,
        "maw_soft": plain | kernels | router,
        "maw": plain | kernels | router,
        "maw_qv": plain | kernels | router | {"attention.self.value_kernels.weight"},
    }
    assert set(expected) == set(ARMS)
    for name in ARMS:
        assert names_of_trained(build(name)) == expected[name], name


def layers_of_trained(model):
    """Numbers, from 1, of the layers in which anything is trained."""
    names = [name for name, parameter in model.encoder.named_parameters() if parameter.requires_grad]
    return {int(name.split(".layer.")[1].split(".")[0]) + 1 for name in names}


@pytest.mark.parametrize(
    ("maw", "finetune", "controls", "lora"),
    [([1], [3], {1, 3}, {3}), ("all", None, {1, 2, 3}, {3}), ([2], [], {2}, set())],
)
def test_controls_reach_every_layer_that_maw_does(build, maw, finetune, controls, lora):
    layers = {"maw_layers": maw, "finetune_layers": finetune}
    for name in ("lora_matched", "full", "maw", "full_lowrank"):
        model = build(name, **layers)
        assert layers_of_trained(model) == controls, name
        assert model.layers["prefix"] == min(controls) - 1, "frozen layers are the same in every arm"
    if lora:
        assert layers_of_trained(build("lora", **layers)) == lora, "the user's LoRA keeps to the layers to fine-tune"


def test_a_retriever_from_python_keeps_to_the_layers_to_fine_tune(tiny_settings):
    for changes in ({"train_layers": True}, {"use_lora": True}, {"use_lora": True, "lora_targets": "all"}):
        for adapt, layers in ((False, {3}), (True, {1, 3})):
            model = BaselineRetriever(
                tiny_settings(maw_layers=[1], finetune_layers=[3], adapt_maw_layers=adapt, **changes)
            )
            assert layers_of_trained(model) == layers


def test_only_trained_layers_drop_out(build):
    for name in ARMS:
        model = build(name).train()
        layers = model.encoder.architecture.layers(model.encoder.backbone)
        assert [any(m.training for m in layer.modules()) for layer in layers] == [False, False, True], name


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"depth_kernel": "low_rank", "kernel_rank": 3, "router": "soft"},
        {"route_by": "token", "maw_layers": "all", "finetune_layers": [2, 3]},
        {"depth_dim": 1000, "route_by": "head"},
        {"depth_values": True, "router": "fixed"},
    ],
)
@every_family
def test_matched_lora_is_as_large_as_maw_to_half_a_rank(build, model_type, changes):
    maw, lora = (build(name, model_type, **changes) for name in ("maw", "lora_matched"))
    maps = [m for m in lora.encoder.modules() if hasattr(m, "lora_A")]
    each_rank = sum(m.base_layer.in_features + m.base_layer.out_features for m in maps)
    ranks = {m.r["default"] for m in maps}
    adapted = set(lora.layers["finetune"] + lora.layers["maw"])
    count = sum(isinstance(m, torch.nn.Linear) for m in last_layer(build("zero_shot", model_type)).modules())
    assert len(ranks) == 1 and len(maps) == count * len(adapted)
    assert abs(lora.trained_parameters - maw.trained_parameters) <= each_rank / 2
    assert lora.trained_parameters == ranks.pop() * each_rank


def test_matched_lora_by_hand_and_its_scale(build):
    """BERT of width 16 and 24: the layer has 1,960 numbers, 4 diagonal depths 64 and their router 68."""
    maw, lora = build("maw"), build("lora_matched", lora_rank=4, lora_alpha=12)
    layer = 4 * (16 * 16 + 16) + 2 * (16 * 24) + 24 + 16 + 2 * (2 * 16)
    assert layer == 1960 and maw.trained_parameters == layer + 4 * 16 + (16 * 4 + 4)
    adapter = last_layer(lora).output.dense
    assert adapter.r["default"] == round((layer + 64 + 68) / (4 * 32 + 2 * 40)) == 10
    assert adapter.scaling["default"] == pytest.approx(12 / 4), "the ratio of alpha and rank is the configured one"


@every_family
@pytest.mark.parametrize(
    ("changes", "rank"),
    [
        ({"depth_kernel": "low_rank", "depth_dim": 4, "kernel_rank": 3}, 12),
        ({"depth_kernel": "gated", "depth_dim": 16, "kernel_rank": 3}, 3),
        ({"depth_kernel": "low_rank", "depth_dim": 16, "kernel_rank": 3}, 16),  # no more than the hidden size
        ({"depth_dim": 8}, 4),
        ({"depth_dim": 7}, 4),
        ({"depth_dim": 1}, 1),
    ],
)
def test_the_static_change_has_the_kernels_size(build, model_type, changes, rank):
    changes |= {"maw_layers": [2, 3]}
    static, maw = (build(name, model_type, **changes).encoder.maw_attention for name in ("full_lowrank", "maw_fixed"))
    assert len(static) == 2
    for one, other in zip(static, maw):
        assert one.kernels.down.shape == (1, rank, 16) and one.kernels.up.shape == (2, 1, rank, 8)
        size, wanted = (sum(p.numel() for p in each.kernel_parameters()) for each in (one, other))
        tied = architecture_of(model_type).rotary and "depth_kernel" not in changes
        gates = 16 * 3 if changes.get("depth_kernel") == "gated" else 0
        assert rank == 16 or 0 <= size - (wanted - gates) * (2 if tied else 1) <= 16


def test_as_many_ranks_as_the_setting_takes(tiny_settings):
    config = tiny_settings(depth_kernel="low_rank", depth_dim=1024, kernel_rank=16)
    assert find_method("full_lowrank").configure(config).kernel_rank == 4096


# --------------------------------------------------------------------------------------------- they are what they say


@every_family
def test_the_static_change_is_a_hand_written_one(build, model_type):
    """query + up (down x) for every head, by a hook on the plain model's own projection."""
    model = build("full_lowrank", model_type, depth_kernel="low_rank", kernel_rank=2)
    kernels = model.encoder.maw_attention[0].kernels
    with torch.no_grad():
        kernels.up.normal_(generator=torch.Generator().manual_seed(0))
    plain = build("zero_shot", model_type)
    attention = plain.encoder.architecture.attention(last_layer(plain))
    name = next(name for name in ("query", "q_lin", "Wqkv", "q_proj", "q") if hasattr(attention, name))
    seen = {}

    def change(module, args, output):
        heads = changes(args[0])
        query, *rest = output.split(16, dim=-1)
        return torch.cat([query + torch.cat(heads, dim=-1), *rest], dim=-1)

    def changes(hidden):
        low = hidden @ kernels.down[0].T
        return [low @ kernels.up[head, 0] for head in range(2)]

    texts = random_texts(6)
    before = plain.encode(texts)
    if hasattr(attention, "q_norm"):  # a kernel is behind the norm of each head's query
        heads = -2 if model_type == "qwen3" else -3
        attention.q_proj.register_forward_hook(lambda module, args, output: seen.update(hidden=args[0]))
        attention.q_norm.register_forward_hook(
            lambda module, args, output: output + torch.stack(changes(seen["hidden"]), dim=heads)
        )
    else:
        getattr(attention, name).register_forward_hook(change)
    np.testing.assert_allclose(model.encode(texts), plain.encode(texts), atol=1e-5)
    assert abs(plain.encode(texts) - before).max() > 1e-2, "the change must show"


def merged(model, plain):
    """The plain model with all that `model` trained merged into its own weights; for one depth that is always used."""
    trained, own = last_layer(model), last_layer(plain)
    weights = {name.replace(".base.", "."): each for name, each in trained.named_parameters()}
    with torch.no_grad():
        for name, parameter in own.named_parameters():
            stem, _, kind = name.rpartition(".")
            base = weights.get(name, weights.get(f"{stem}.base_layer.{kind}"))
            parameter.copy_(base)
        for stem in SIX_MAPS:
            if f"{stem}.lora_A.default.weight" in weights:
                low, high = (weights[f"{stem}.lora_{part}.default.weight"] for part in "AB")
                scale = trained.get_submodule(stem).scaling["default"]
                own.get_submodule(stem).weight += scale * high @ low
        for stem, kernels in (("query", "kernels"), ("value", "value_kernels")):
            down, up = (weights.get(f"attention.self.{kernels}.{part}") for part in ("down", "up"))
            gate = weights.get(f"attention.self.{kernels}.gate")
            if gate is not None:
                down, up = down[None], (gate[..., None] * up[:, None])
            if down is not None:
                change = torch.cat([up[head, 0].T @ down[0] for head in range(2)])
                own.get_submodule(f"attention.self.{stem}").weight += change
            if f"attention.self.{kernels}.weight" in weights:
                factor = weights[f"attention.self.{kernels}.weight"][:, 0].reshape(-1)
                projection = own.get_submodule(f"attention.self.{stem}")
                projection.weight *= factor[:, None]
                projection.bias *= factor
    return plain


@pytest.mark.parametrize("kernels", ["diagonal", "low_rank", "gated"])
@pytest.mark.parametrize("name", ["lora", "lora_matched", "full", "full_lowrank", "maw_fixed", "maw_qv"])
def test_merged_weights_are_the_same_model(build, name, kernels):
    """Whatever uses one depth for all texts could be written as an ordinary model."""
    texts = random_texts(8)
    changes = {"depth_kernel": kernels, "router": "fixed", "lora_rank": 2}
    model, plain = perturb(build(name, **changes), 0.1), build("zero_shot")
    before = plain.encode(texts)
    np.testing.assert_allclose(merged(model, plain).encode(texts), model.encode(texts), atol=1e-5)
    assert abs(before - model.encode(texts)).max() > 1e-2


def test_a_merge_that_forgets_the_values_is_noticed(build):
    texts = random_texts(8)
    model = perturb(build("maw_qv", router="fixed"), 0.1)
    right = merged(model, build("zero_shot")).encode(texts)
    model.encoder.maw_attention[0].value_kernels = None
    assert abs(right - model.encode(texts)).max() > 1e-3


@pytest.mark.parametrize("changes", [{}, {"depth_kernel": "low_rank", "checkpoint_compression": False}])
@pytest.mark.parametrize("name", ARMS)
def test_a_checkpoint_of_every_arm_comes_back(build, tmp_path, name, changes):
    model, texts = perturb(build(name, maw_layers=[2, 3], **changes)), random_texts(6)
    facts = {"dataset": "tiny", "method": name, "epoch": 1, "best_val_metric": 0.5, "training_history": []}
    loaded = load_checkpoint(save_checkpoint(tmp_path / "best", model, **facts))
    np.testing.assert_array_equal(loaded.encode(texts), model.encode(texts))
    assert loaded.trained_parameters == model.trained_parameters
    assert loaded.trained_state().keys() == model.trained_state().keys()
    kind = "maw" if isinstance(loaded, MAWRetriever) else "baseline"
    assert method_of(kind, loaded.config).name == name
