"""Tokenizers that do not fit their model are refused, and so are models that embed different texts alike."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import FAMILIES, WORDS, random_texts
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from maw.config.tier1_config import Tier1Config
from maw.errors import ModelError
from maw.models.pretrained import model_spec
from maw.models.retriever import BaselineRetriever, load_tokenizer
from maw.models.tokenizer_check import check_texts

TEXTS = random_texts(40, seed=2, longest=9)
SIZE = len(WORDS) + 5  # token embeddings of a tiny model
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture
def copied(models, tmp_path):
    """`copied("bert")` copies a tiny model, to be changed."""

    def make(model_type="bert"):
        shutil.copytree(models(model_type), tmp_path / model_type)
        return tmp_path / model_type

    return make


def config_of(folder, **settings):
    return Tier1Config(model=str(folder), **{"precision": "float32", "device": "cpu"} | settings)


def refusal(folder):
    with pytest.raises(ModelError) as caught:
        load_tokenizer(model_spec(config_of(folder)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def save_tokenizer(folder, tokenizer, **tokens):
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names | tokens).save_pretrained(folder)


def words(vocabulary, kind=models.WordLevel):
    """A tokenizer of whole words that lower-cases, with special tokens around a text."""
    made = Tokenizer(kind({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return made


# ------------------------------------------------------------------------------------------------ tokenizers missing


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("kept", [(), ("tokenizer_config.json",)])
def test_a_folder_without_a_tokenizer(copied, model_type, kept):
    folder = copied(model_type)
    for name in {"tokenizer.json", "tokenizer_config.json"} - set(kept):
        (folder / name).unlink()
    message = refusal(folder)
    assert (
        f"model {folder}: its tokenizer is missing: {folder} has no tokenizer.json, and none of vocab.txt" in message
    )
    assert "vocab.json with merges.txt" in message
    with pytest.raises(ModelError, match="its tokenizer is missing"):
        BaselineRetriever(config_of(folder))


def test_files_of_another_family(copied):
    """transformers reads the files that the family has, and makes an empty tokenizer when there are none."""
    folder = copied("roberta")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *WORDS]))
    message = refusal(folder)
    assert "it knows no word" in message and "vocab.json and merges.txt and tokenizer.json" in message


def test_half_of_a_pair_of_files(copied):
    folder = copied("roberta")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    (folder / "vocab.json").write_text(json.dumps({"<s>": 0}))
    assert "its tokenizer is missing" in refusal(folder)


def test_a_vocabulary_of_only_special_tokens(copied):
    folder = copied()
    save_tokenizer(folder, words(SPECIAL), mask_token="[MASK]")
    assert "it knows no word" in refusal(folder)


def test_a_plain_vocabulary_file_is_enough(copied, models):
    folder = copied()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *WORDS]))
    found = BaselineRetriever(config_of(folder)).encode(TEXTS)
    assert np.abs(found - BaselineRetriever(config_of(models("bert"))).encode(TEXTS)).max() <= 1e-5


def test_no_padding_token(copied):
    folder = copied()
    save_tokenizer(folder, words([*SPECIAL, *WORDS]), pad_token=None)
    assert "it has no padding token" in refusal(folder)


# ------------------------------------------------------------------------------------------------ tokens outside


@pytest.mark.parametrize("entry", ["hat", "##s", "Hat"])
def test_a_vocabulary_larger_than_the_table(copied, entry):
    """One word too many; in word pieces also a continuation. Behind a normalizer, capitals never come."""
    folder = copied()
    save_tokenizer(folder, words([*SPECIAL, *WORDS, entry], models.WordPiece))
    if entry == "Hat":
        model = BaselineRetriever(config_of(folder))
        assert model.encode(["Hat hat HAT", "the file"]).shape == (2, 16)
        return
    message = refusal(folder)
    assert f"it can produce {entry!r}, number {SIZE}, but the model has embeddings for {SIZE} tokens" in message


@pytest.mark.parametrize("entry", ["[unused1]", "two words", "##s", "Été"])
def test_entries_that_no_text_gives_do_no_harm(copied, entry):
    folder = copied()
    save_tokenizer(folder, words([*SPECIAL, *WORDS, entry]))
    model = BaselineRetriever(config_of(folder))
    assert max(AutoTokenizer.from_pretrained(folder).get_vocab().values()) == SIZE
    assert np.isfinite(model.encode([entry, f"a {entry} b", *TEXTS])).all()


@pytest.mark.parametrize("special", [True, False])
def test_an_added_token_outside_the_table(copied, special):
    folder = copied()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<new>"], special_tokens=special)
    tokenizer.save_pretrained(folder)
    assert f"it can produce '<new>', number {SIZE}" in refusal(folder)


def test_a_padding_token_outside_the_table(copied):
    folder = copied()
    save_tokenizer(folder, words([*SPECIAL, *WORDS]), pad_token="[END]")
    assert f"it can produce '[END]', number {SIZE}" in refusal(folder)


def test_special_tokens_that_are_inserted_by_another_tokenizers_numbers(copied):
    """As in a tokenizer that was cut down while its post-processor kept the numbers of the large one."""
    folder = copied()
    made = words([*SPECIAL, *WORDS])
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 101), ("[SEP]", 102)]
    )
    save_tokenizer(folder, made)
    assert f"it can produce None, number 101, but the model has embeddings for {SIZE} tokens" in refusal(folder)


def byte_pairs(merges, alphabet):
    """A byte-level BPE tokenizer of these merges."""
    pieces = ["[PAD]", *alphabet, *(a + b for a, b in merges)]
    made = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return made, len(pieces)


def test_byte_pairs_are_outside_only_if_their_merges_come_to_pass(copied):
    folder = copied()
    letters = [*"abcdefghijklmnopqrstuvwxyzĠ0123456789"]
    filled = [("a", each) for each in "bcdefgh"]
    made, size = byte_pairs([*filled, ("x", "y"), ("xy", "z")], letters)
    assert size == SIZE + 1
    save_tokenizer(folder, made, unk_token=None, cls_token=None, sep_token=None)
    assert f"it can produce 'xyz', number {SIZE}" in refusal(folder)
    made, size = byte_pairs(
        [*filled, ("y", "z"), ("x", "y"), ("xy", "z")], letters
    )  # y goes to z before x can have it
    vocabulary = json.loads(made.to_str())["model"]["vocab"]
    assert vocabulary["xyz"] >= SIZE and made.encode("xyz").tokens == ["x", "yz"]
    save_tokenizer(folder, made, unk_token=None, cls_token=None, sep_token=None)
    text = refusal(folder)
    assert "'xyz'" not in text and "'xy'" in text, "xy comes to pass, alone"


def test_a_larger_table_is_fine_and_the_smaller_tokenizer_is_used(copied):
    folder = copied()
    save_tokenizer(folder, words([*SPECIAL, *WORDS[:20]]))
    assert BaselineRetriever(config_of(folder)).encode(TEXTS).shape == (40, 16)


# ------------------------------------------------------------------------------------------------ texts told apart


def check(model, queries=TEXTS, passages=TEXTS):
    return check_texts(model, {"query": queries, "document": passages}, "some data")


def alike(model, spread):
    """Moves all embeddings to within `spread` of one."""
    real = model.encoder._pool

    def pool(hidden, padding):
        pooled = real(hidden, padding)
        return torch.nn.functional.normalize(torch.ones_like(pooled) + spread * pooled, dim=-1)

    model.encoder._pool = pool
    return model


def test_a_model_that_tells_texts_apart_draws_no_random_number(models):
    model = BaselineRetriever(config_of(models("bert"))).train()
    torch.manual_seed(3)
    before, numbers = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = check(model)
    assert torch.equal(torch.get_rng_state(), before) and np.array_equal(np.random.get_state()[1], numbers)
    assert model.training and model.encoder.training
    assert check(model) == first and all("mean cosine" in each for each in first)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_embeddings_that_agree_are_refused_and_close_ones_warned_of(models, similarity):
    def make(spread):
        return alike(BaselineRetriever(config_of(models("bert"), similarity=similarity)), spread)

    with pytest.raises(ModelError, match="of 16 different queries, all have the same embedding; check that the tok"):
        check(make(1e-7))
    close = check(make(1e-2))
    assert len(close) == 2 and all("embeddings have a mean cosine of" in each for each in close)
    assert "some data: model " in close[0] and "of 16 different queries" in close[0] and "passages" in close[1]


def test_only_passages_that_agree_are_refused_too(models):
    model = BaselineRetriever(config_of(models("bert"), document_prefix="file of the list ", max_document_length=6))
    with pytest.raises(ModelError, match=r"different passages, all have the same embedding; .*prefixes and lengths"):
        check(model)


def test_unknown_tokens(models):
    model = BaselineRetriever(config_of(models("bert"), query_prefix="file of the list "))
    unknown = [f"zz{i}" for i in range(20)]
    with pytest.raises(ModelError, match="of 16 different queries, all tokens are unknown"):
        check(model, queries=unknown)
    known = dict(zip(unknown, WORDS, strict=False))
    (warning,) = (each for each in check(model, queries=[f"{known[i]} {i} q" for i in unknown]) if "unknown" in each)
    assert "of 16 different queries, 67% of the tokens are unknown" in warning
    assert not any("unknown" in each for each in check(model, queries=[f"{known[i]} {i}" for i in unknown]))


def test_tokens_that_are_all_alike(copied):
    folder = copied()
    tokenizer = words([*SPECIAL, "any"])
    tokenizer.normalizer = normalizers.Replace(Regex(".+"), "any")
    save_tokenizer(folder, tokenizer)
    with pytest.raises(ModelError, match=r"all tokens are alike \('any'\)"):
        check(BaselineRetriever(config_of(folder)))


def test_an_embedding_table_of_zeros(copied):
    from safetensors.torch import load_file, save_file

    folder = copied()
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.word_embeddings.weight"].zero_()
    weights["embeddings.position_embeddings.weight"].zero_()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="all have the same embedding"):
        check(BaselineRetriever(config_of(folder)))


@pytest.mark.parametrize("few", [["the file"] * 20, ["The file!", "the FILE"], ["", "  "], []])
def test_texts_that_do_not_differ_prove_nothing(models, few):
    assert not any("queries" in each for each in check(BaselineRetriever(config_of(models("bert"))), queries=few))


def test_the_same_texts_are_taken_each_time_and_different_ones(models, monkeypatch):
    from maw.models import tokenizer_check

    seen = []
    real = tokenizer_check.encode
    monkeypatch.setattr(
        tokenizer_check, "encode", lambda e, source, **k: (seen.append(source.texts.texts), real(e, source, **k))[1]
    )
    texts = [each for text in TEXTS for each in (text, text.upper(), f" {text}. ")]
    check(BaselineRetriever(config_of(models("bert"))), queries=texts, passages=texts[::-1])
    assert len(seen) == 2 and all(len(each) == len({text.strip(" .").lower() for text in each}) == 16 for each in seen)
