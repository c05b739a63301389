"""Depth attention in plain Hugging Face models: what `add_maw` changes, saves, and returns."""

from __future__ import annotations

import json
import logging
from contextlib import nullcontext

import pytest
import torch
from attention.depth_slices import mix_depth
from conftest import every_family, random_texts, tiny_config
from peft import IA3Config, LoHaConfig, LoraConfig, get_peft_model
from transformers import AttentionInterface, AutoModel, AutoModelForSequenceClassification, AutoTokenizer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask

import maw
from maw.attention import layer as attention
from maw.attention.architectures import architecture_of
from maw.errors import ConfigError, MAWError, ModelError
from maw.models.add_maw import maw_layers
from maw.models.retriever import MAWRetriever
from maw.storage.checksummed import read_signed, write_signed
from maw.storage.files import write_json

TEXTS = random_texts(4, seed=3)


@pytest.mark.parametrize("name", maw.__all__)
def test_every_public_name_says_what_it_does(name):
    value = getattr(maw, name)
    assert callable(value) and value.__name__ == name and len(value.__doc__) > 40
    assert name in dir(maw)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nosuch'"):
        _ = maw.nosuch


def load(models, model_type="bert", **options):
    return architecture_of(model_type).loader().from_pretrained(models(model_type), **options).eval()


def tokens(models, model_type="bert", texts=TEXTS):
    batch = AutoTokenizer.from_pretrained(models(model_type))(texts, padding=True, return_tensors="pt")
    assert not batch["attention_mask"].all(), "the batch must have padding to test it"
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def perturb(model, scale=0.5):
    """Depths apart, and routers that choose."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in maw_layers(model).values():
            for parameter in (*layer.kernel_parameters(), *layer.router.parameters()):
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def real(batch, states):
    return states[batch["attention_mask"].bool()]


@pytest.mark.parametrize("kernel", ["diagonal", "low_rank", "gated"])
@pytest.mark.parametrize("router", ["grpo", "soft"])
@every_family
def test_a_new_model_computes_what_it_did(models, model_type, router, kernel):
    batch = tokens(models, model_type)
    model = load(models, model_type)
    with torch.no_grad():
        before = real(batch, model(**batch).last_hidden_state)
        same = maw.add_maw(model, layers=[1, 3], depths=4, router=router, depth_kernel=kernel, kernel_init_std=0.3)
        assert same is model and list(maw_layers(model)) == [1, 3]
        after = real(batch, model(**batch).last_hidden_state)
        torch.testing.assert_close(after, before, atol=1e-5, rtol=0)
        moved = real(batch, perturb(model)(**batch).last_hidden_state)
    assert (moved - before).abs().max() > 1e-3


@every_family
def test_depth_0_is_the_pretrained_models_own_attention(models, model_type):
    """The attention weights that transformers itself returns are the reference, layer for layer."""
    batch = tokens(models, model_type)
    plain = load(models, model_type, attn_implementation="eager")
    expected = plain(**batch, output_attentions=True).attentions
    noise = {"depth_kernel": "diagonal", "kernel_init_std": 0.5}
    model = maw.add_maw(load(models, model_type), layers="all", depths=3, **noise)
    for number in (1, 2, 3):
        maps = maw.attention_maps(model, batch, layer=number)
        assert maps.shape == (4, 2, *batch["input_ids"].shape[1:] * 2, 3)
        rows = batch["attention_mask"].bool()
        got, wanted = (each.permute(0, 2, 1, 3)[rows] for each in (maps[..., 0], expected[number - 1]))
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
        assert (maps[..., 1] - maps[..., 0]).abs().max() > 1e-3, "another depth attends otherwise"


def test_the_maps_are_the_formula(models):
    """Each number by hand from the weights, in a BERT whose layer 1 has depths that differ."""
    model = perturb(maw.add_maw(load(models), layers=[1], depths=4, depth_kernel="diagonal"))
    batch = tokens(models)
    maps = maw.attention_maps(model, batch)
    layer = model.encoder.layer[0].attention.self
    hidden = model.embeddings(batch["input_ids"])
    query, key = (map_(hidden).unflatten(-1, (2, 8)) for map_ in (layer.base.query, layer.base.key))
    for b, h, d in [(0, 0, 0), (1, 1, 3), (3, 0, 2)]:
        length = int(batch["attention_mask"][b].sum())
        weighted = query[b, :, h] * layer.kernels.weight[h, d]
        score = (weighted @ key[b, :length, h].T) / 8**0.5
        torch.testing.assert_close(maps[b, h, :, :length, d], score.softmax(-1), atol=1e-5, rtol=0)
        assert maps[b, h, :, length:, d].max() == 0 if length < maps.shape[3] else True


def test_a_wrong_softmax_would_be_noticed(models, monkeypatch):
    original = attention.attention_5d
    monkeypatch.setattr(attention, "attention_5d", lambda *given: original(*given).softmax(-1))
    with pytest.raises(AssertionError):
        test_the_maps_are_the_formula(models)


@pytest.mark.parametrize("route_by", ["sequence", "head", "token"])
@pytest.mark.parametrize("model_type", ["bert", "modernbert", "distilbert"])
def test_the_model_uses_the_slice_that_was_picked(models, model_type, route_by):
    model = perturb(maw.add_maw(load(models, model_type), layers=[3], depths=4, route_by=route_by))
    batch = tokens(models, model_type)
    ((number, picks),) = maw.picked_depths(model, batch).items()
    assert number == 3 and picks.shape[1:] == (
        1 if route_by == "sequence" else 2,
        batch["input_ids"].shape[1] if route_by == "token" else 1,
    )
    assert len(picks.unique()) > 1, "texts that all pick one depth would show nothing"
    layer, seen = maw_layers(model)[3], {}
    with layer.register_forward_hook(
        lambda m, args, kwargs, out: seen.update(args=args, kwargs=kwargs, out=out[0]), with_kwargs=True
    ):
        model(**batch)
    weights, value = layer.reference(*seen["args"], **seen["kwargs"])
    torch.testing.assert_close(weights, maw.attention_maps(model, batch))
    mixed = mix_depth(weights, value, picks).transpose(1, 2).flatten(2)
    expected = layer.architecture.output(layer.base, mixed)
    torch.testing.assert_close(real(batch, seen["out"]), real(batch, expected), atol=1e-5, rtol=0)


def test_texts_token_ids_and_batches_give_the_same(models):
    model = perturb(maw.add_maw(load(models), layers="last", depths=4))
    batch = tokens(models)
    expected = maw.attention_maps(model, batch)
    ids = [row[keep.bool()].tolist() for row, keep in zip(batch["input_ids"], batch["attention_mask"])]
    for given in (TEXTS, ids):
        torch.testing.assert_close(maw.attention_maps(model, given), expected)
    one = torch.tensor([ids[0]])
    torch.testing.assert_close(maw.attention_maps(model, one), maw.attention_maps(model, TEXTS[0]))
    with pytest.raises(ValueError, match="token ids contain padding"):
        maw.attention_maps(model, batch["input_ids"])


def test_looking_leaves_the_model_as_it_was(models):
    model = maw.add_maw(load(models), depths=4).train()
    modes = [module.training for module in model.modules()]
    maw.attention_maps(model, TEXTS)
    maw.picked_depths(model, TEXTS)
    assert [module.training for module in model.modules()] == modes
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert sum(hooks) == 0 and all(each.grad is None for each in model.parameters())


def test_a_retriever_of_a_run_shows_its_maps_too(tiny_settings):
    for precision in ("float32", "bfloat16"):
        model = perturb(MAWRetriever(tiny_settings(precision=precision, maw_layers=[2, 3])))
        maps = maw.attention_maps(model, TEXTS, layer=2)
        torch.testing.assert_close(maps.sum(-2), torch.ones_like(maps.sum(-2)), atol=1e-2, rtol=0)
        assert list(maw.picked_depths(model, TEXTS)) == [2, 3]


# -------------------------------------------------------------------------------------------------- what is trained


def test_the_summary_counts_by_hand(models):
    model = maw.add_maw(load(models), layers=[3], depths=4, depth_kernel="diagonal")
    counts = maw.trained_parameters(model)
    assert (counts.kernels, counts.routers, counts.other) == (4 * 16, 16 * 4 + 4, 0)
    assert counts.total == sum(each.numel() for each in model.parameters())
    assert str(counts).startswith("trained: 132 of ") and "depth kernels 64, routers 68, other 0" in str(counts)
    gated = maw.add_maw(load(models), layers=[3], depths=4, kernel_rank=2, train_layers=[3])
    whole = maw.trained_parameters(gated)
    assert (whole.kernels, whole.other) == (2 * (16 + 16) + 4 * 2, 1960) and whole.trained == 1960 + 68 + 72


def test_a_head_and_adapters_stay_to_be_trained(models):
    model = AutoModelForSequenceClassification.from_pretrained(models("bert"), num_labels=3)
    maw.add_maw(model, depths=4)
    assert maw.trained_parameters(model).other == 3 * 16 + 3
    adapted = get_peft_model(load(models), LoraConfig(r=2, target_modules=["query"]))
    maw.add_maw(adapted, layers="last", depths=4)
    assert maw.trained_parameters(adapted).other == 3 * 2 * (16 + 16)
    perturb(adapted)
    assert maw.attention_maps(adapted, TEXTS, tokenizer=AutoTokenizer.from_pretrained(models("bert"))).shape[-1] == 4


@pytest.mark.parametrize("kernel", ["diagonal", "low_rank", "gated"])
def test_a_loss_moves_kernels_and_a_soft_router_and_nothing_frozen(models, kernel):
    model = perturb(maw.add_maw(load(models), layers=[2], depths=4, router="soft", depth_kernel=kernel)).train()
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model(**tokens(models)).last_hidden_state.square().mean(1)[:, 0].sum().backward()
    optimizer.step()
    moved = {name for name, each in model.named_parameters() if not torch.equal(each, before[name])}
    assert moved == {name for name, each in model.named_parameters() if each.requires_grad}
    assert all(".kernels." in name or ".router." in name for name in moved)


ADAPTERS = [
    IA3Config(target_modules=["query", "output.dense"], feedforward_modules=["output.dense"]),
    LoHaConfig(r=2, target_modules=["query"]),
    LoraConfig(r=2, target_modules=["query"], modules_to_save=["embeddings"]),
    LoraConfig(r=2, target_modules=["key"], bias="all"),
]


@pytest.mark.parametrize("adapter", ADAPTERS, ids=["ia3", "loha", "modules_to_save", "bias"])
def test_whatever_peft_trains_stays_to_be_trained(models, adapter):
    model = get_peft_model(load(models), adapter)
    before = sum(each.numel() for each in model.parameters() if each.requires_grad)
    maw.add_maw(model, layers=[3], depths=4)
    assert maw.trained_parameters(model).other == before > 0


@pytest.mark.parametrize("kernel", ["diagonal", "low_rank", "gated"])
@pytest.mark.parametrize("router", ["grpo", "soft"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_half_precision_is_near_to_whole(models, when, router, kernel):
    """A model may be loaded in bfloat16 or brought into it, trained and looked at."""
    settings = {"layers": [1, 3], "depths": 4, "router": router, "depth_kernel": kernel, "route_by": "head"}
    batch = tokens(models)
    whole = perturb(maw.add_maw(load(models), **settings), 0.1)
    if when == "before":
        half = perturb(maw.add_maw(load(models, dtype=torch.bfloat16), **settings), 0.1)
    else:
        half = perturb(maw.add_maw(load(models), **settings), 0.1).to(torch.bfloat16)
    output = half(**batch).last_hidden_state
    assert output.dtype == torch.bfloat16
    apart = real(batch, output.float() - whole(**batch).last_hidden_state).abs()
    assert apart.mean() < 0.05
    output.float().square().sum().backward()
    assert all(each.grad is not None for each in maw_layers(half)[3].kernel_parameters())
    maps = maw.attention_maps(half, batch)
    torch.testing.assert_close(maps.sum(3), torch.ones_like(maps.sum(3)), atol=1e-5, rtol=0)
    assert (maps - maw.attention_maps(whole, batch)).abs().mean() < 0.02


@pytest.mark.parametrize("route_by", ["sequence", "token"])
@pytest.mark.parametrize("model_type", ["bert", "distilbert"])
def test_backends_that_take_the_padding_mask_as_it_is_find_it(models, model_type, route_by):
    """As flash attention does: (B, T) in place of (B, 1, T, T), and None where there is no padding."""

    def attend(module, query, key, value, mask, **options):
        mask = None if mask is None else mask[:, None, None].bool().expand(-1, -1, query.shape[2], -1)
        return sdpa_attention_forward(module, query, key, value, mask, **options | {"is_causal": False})

    AttentionInterface.register("by_padding", attend)
    AttentionMaskInterface.register("by_padding", flash_attention_mask)
    batch, found = tokens(models, model_type), []
    for name in ("sdpa", "by_padding"):
        model = load(models, model_type, attn_implementation=name)
        perturb(maw.add_maw(model, layers=[2, 3], depths=4, route_by=route_by))
        with torch.no_grad():
            found.append(real(batch, model(**batch).last_hidden_state))
    torch.testing.assert_close(*found, atol=1e-5, rtol=0)
    with pytest.raises(ModelError, match="attn_implementation"):
        maw.attention_maps(model, batch)


def test_texts_are_cut_to_the_positions_that_the_model_has(models):
    """RoBERTa's begin behind its padding index: 65 of 66 here, and 512 of the usual 514."""
    tokenizer = AutoTokenizer.from_pretrained(models("roberta"))
    tokenizer.model_max_length = 10**30  # as a tokenizer that was saved without one has
    model = maw.add_maw(load(models, "roberta"), depths=2)
    assert maw.attention_maps(model, ["file " * 100], tokenizer=tokenizer).shape[2] == 65


def test_a_token_is_no_padding_where_the_model_has_none(models):
    model = maw.add_maw(load(models, "qwen3"), depths=2)
    model.config.pad_token_id = None
    assert maw.attention_maps(model, torch.tensor([[7, 0, 5]])).shape == (1, 2, 3, 3, 2)


# ------------------------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize("kernel", ["diagonal", "low_rank", "gated"])
@pytest.mark.parametrize("model_type", ["bert", "modernbert"])
def test_a_saved_model_comes_back(models, tmp_path, model_type, kernel):
    settings = {"layers": [-1, 1], "depths": 4, "route_by": "head", "depth_kernel": kernel, "train_layers": [3]}
    model = perturb(maw.add_maw(load(models, model_type), **settings))
    folder = maw.save_maw(model, tmp_path / "maw")
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".safetensors"]
    batch = tokens(models, model_type)
    again = maw.load_maw(load(models, model_type), folder)
    with torch.no_grad():
        torch.testing.assert_close(again(**batch)[0], model(**batch)[0], atol=0, rtol=0)
    assert str(maw.trained_parameters(again)) == str(maw.trained_parameters(model))
    perturb(again)
    maw.save_maw(again, folder)
    assert len(list(folder.iterdir())) == 2, "the earlier weights are gone"
    maw.load_maw(model, folder)
    with torch.no_grad():
        torch.testing.assert_close(again(**batch)[0], model(**batch)[0], atol=0, rtol=0)


def test_what_does_not_fit_is_refused(models, tmp_path, caplog):
    folder = maw.save_maw(maw.add_maw(load(models), depths=4), tmp_path / "maw")
    with pytest.raises(ModelError, match="was saved from a bert model, and this one is of type roberta"):
        maw.load_maw(load(models, "roberta"), folder)
    with pytest.raises(ModelError, match="of other settings"):
        maw.load_maw(maw.add_maw(load(models), depths=5), folder)
    other = load(models)
    with torch.no_grad():
        other.embeddings.word_embeddings.weight += 1
    with caplog.at_level(logging.WARNING, "maw"):
        maw.load_maw(other, folder)
    assert "other frozen weights" in caplog.text
    with pytest.raises(ModelError, match=r"no depth attention of maw\.add_maw"):
        maw.save_maw(load(models), tmp_path / "other")


def test_damage_is_noticed(models, tmp_path):
    folder = maw.save_maw(maw.add_maw(load(models), depths=4), tmp_path / "maw")
    (weights,) = folder.glob("*.safetensors")
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(MAWError, match="damaged"):
        maw.load_maw(load(models), folder)
    weights.unlink()
    with pytest.raises(MAWError, match="No such file"):
        maw.load_maw(load(models), folder)
    weights.write_bytes(content)
    path, record = folder / "maw.json", read_signed(folder / "maw.json")
    outside = {"files": {"maw": record["files"]["maw"] | {"file": "../x.safetensors"}}}
    for change in ({}, outside, {"format": 9}, {"settings": {"nosuch": 1}}, {"settings": 1}, {"files": {}}):
        write_signed(path, record | change)
        with pytest.raises(MAWError, match=r"maw\.json") if change else nullcontext():
            maw.load_maw(load(models), folder)
    text = path.read_text()
    for broken in ("{", "[]", text.replace("bert", "bort"), json.dumps(record)):
        path.write_text(broken)
        with pytest.raises(MAWError, match=r"maw\.json"):
            maw.load_maw(load(models), folder)


def as_before(folder) -> dict:
    """Writes maw.json as the first version of `save_maw` did, without a hash of its own; gives what it holds."""
    record = read_signed(folder / "maw.json")
    file = record.pop("files")["maw"]
    record |= {"format": 1, "weights": file["file"], "weights_sha256": file["sha256"]}
    write_json(folder / "maw.json", record)
    return record


def test_a_folder_of_an_earlier_version_loads_and_its_damage_is_noticed(models, tmp_path):
    model = perturb(maw.add_maw(load(models), depths=4))
    folder = maw.save_maw(model, tmp_path / "maw")
    record = as_before(folder)
    again = maw.load_maw(load(models), folder)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    changes = ({"weights": "../x.safetensors"}, {"weights": 1}, {"weights_sha256": "0" * 64}, {"model_type": 1})
    for change in (*changes, {"settings": {"nosuch": 1}}):
        write_json(folder / "maw.json", record | change)
        with pytest.raises(MAWError, match=r"maw(\.json|-[0-9a-f]{16}\.safetensors: damaged)"):
            maw.load_maw(load(models), folder)
    maw.save_maw(model, folder)
    assert read_signed(folder / "maw.json")["format"] == 2


def test_saving_removes_no_file_of_another_kind(models, tmp_path):
    model = maw.add_maw(load(models), depths=4)
    (tmp_path / "weights-0123456789abcdef.safetensors").touch()
    (tmp_path / "maw-old.safetensors").touch()
    maw.save_maw(model, tmp_path)
    maw.save_maw(perturb(model), tmp_path)
    others = {"weights-0123456789abcdef.safetensors", "maw-old.safetensors", "maw.json"}
    assert others < {path.name for path in tmp_path.iterdir()} and len(list(tmp_path.iterdir())) == len(others) + 1


# ---------------------------------------------------------------------------------------------------------- refusals


def test_all_wrong_arguments_are_named_at_once(models):
    with pytest.raises(ConfigError) as caught:
        maw.add_maw(load(models), depths=0, router="gpro", route_by="word", fixed_depth=7)
    text = str(caught.value)
    assert "depths: must be at least 1" in text and "did you mean grpo?" in text and "route_by: must be" in text
    with pytest.raises(ConfigError, match="router: random is a control"):
        maw.add_maw(load(models), router="random")
    with pytest.raises(ConfigError, match="layers: no layer 4 in a model of 3 layers"):
        maw.add_maw(load(models), layers=[4])
    with pytest.raises(ConfigError, match="layers: none leaves"):
        maw.add_maw(load(models), layers="none")


def test_what_cannot_carry_it_is_refused_with_the_reason(models):
    import transformers as tf

    deberta = tf.DebertaModel(
        tf.DebertaConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    )
    with pytest.raises(ModelError, match="DebertaModel cannot carry MAW: its attention scores"):
        maw.add_maw(deberta)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
    with pytest.raises(ModelError, match="no adapter for model type 'albert'"):
        maw.add_maw(tf.AlbertModel(tf.AlbertConfig(**sizes)))
    with pytest.raises(ModelError, match="Linear is not a Hugging Face model"):
        maw.add_maw(torch.nn.Linear(2, 2))
    model = maw.add_maw(load(models))
    with pytest.raises(ModelError, match="already"):
        maw.add_maw(model)
    with pytest.raises(ModelError, match="layer 2 has no depth attention; layers with depth attention: 3"):
        maw.attention_maps(model, TEXTS, layer=2)
    nameless = maw.add_maw(AutoModel.from_config(tiny_config("bert")))
    with pytest.raises(ModelError, match="pass tokenizer="):
        maw.attention_maps(nameless, TEXTS)


def test_a_text_is_not_read_piece_by_piece(models):
    """The picks of a piece would be made without the rest, and the layer keeps no keys of an earlier call."""
    import transformers as tf

    tokens = torch.randint(5, 30, (1, 6))
    for layers in ([1], [2]):
        model = maw.add_maw(tf.AutoModel.from_pretrained(models("qwen3")), layers=layers).eval()
        with torch.no_grad():
            first = model(tokens[:, :5], use_cache=True)
            with pytest.raises(ModelError, match="reads a text as a whole"):
                model(tokens[:, 5:], past_key_values=first.past_key_values)


def test_a_language_model_with_its_head_is_refused(models):
    import transformers as tf

    with pytest.raises(ModelError, match="Qwen3ForCausalLM: a router reads all tokens"):
        maw.add_maw(tf.Qwen3ForCausalLM(tiny_config("qwen3")))
    headed = maw.add_maw(tf.BertForMaskedLM(tiny_config("bert")))
    assert maw.trained_parameters(headed).kernels, "which sees all tokens anyway"
