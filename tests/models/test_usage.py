"""Settings that sentence-transformers writes: obeyed as it obeys them, or refused by name."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import random_texts, write_model
from safetensors.torch import load_file, save_file

from maw.config.methods import find_method
from maw.config.tier1_config import Tier1Config
from maw.errors import ConfigError, ModelError
from maw.experiment.plan.plan_text import _model as model_line
from maw.models import usage
from maw.models.export.sentence_transformers import export_retriever
from maw.models.pretrained import model_spec
from maw.models.retriever import BaselineRetriever
from maw.training.checkpoint import RETRIEVERS, load_checkpoint, save_checkpoint
from maw.training.train import train_retriever

TEXTS = [*random_texts(10, seed=3, longest=30), "Get The FILE", "", "nothing known here"]
BERT, MODEL, POOLING = "sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json"
TOKENIZER, NORMALIZE = "tokenizer_config.json", "2_Normalize/config.json"
PASSAGE = {"prompts": {"query": "get the ", "passage": "text of "}}


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """`saved("bert")` gives a folder that sentence-transformers itself wrote, once for each type."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    made: dict[tuple[str, bool], Path] = {}

    def folder(model_type: str = "bert", *, normalize: bool = False) -> Path:
        key = (model_type, normalize)
        if key not in made:
            plain = write_model(tmp_path_factory.mktemp(model_type), model_type)
            modules = [Transformer(str(plain)), Pooling(16, "lasttoken" if model_type == "qwen3" else "mean")]
            made[key] = tmp_path_factory.mktemp("saved")
            SentenceTransformer(modules=[*modules, *([Normalize()] if normalize else [])], device="cpu").save(
                str(made[key])
            )
        return made[key]

    return folder


@pytest.fixture
def changed(saved, tmp_path):
    """`changed({"file.json": {"key": value}})` copies a saved model and changes settings; None removes a file."""

    def make(changes, model_type="bert", **options) -> Path:
        folder = tmp_path / "changed"
        shutil.copytree(saved(model_type, **options), folder)
        for name, settings in changes.items():
            path = folder / name
            if settings is None:
                path.unlink()
                continue
            old = json.loads(path.read_text()) if path.is_file() else {}
            path.write_text(json.dumps(settings if isinstance(settings, list) else old | settings))
        return folder

    return make


def ours(folder, **flags):
    settings = {"precision": "float32", "device": "cpu"} | flags
    model = BaselineRetriever(Tier1Config(model=str(folder), **settings))
    return model.encode(TEXTS, "query"), model.encode(TEXTS, "document")


def theirs(folder, batch_size=32, passage=None, **options):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True, **options)
    documents = model.encode_document(TEXTS, batch_size=batch_size, prompt_name=passage)
    found = model.encode_query(TEXTS, batch_size=batch_size), documents
    if model.similarity_fn_name == "cosine":  # this project divides by the length before it compares, not while
        found = tuple(each / np.linalg.norm(each, axis=1, keepdims=True) for each in found)
    return found


def agree(left, right):
    return [bool(np.abs(a - b).max() <= 1e-5) for a, b in zip(left, right, strict=True)]


def refusal(folder, **flags):
    with pytest.raises(ModelError) as caught:
        model_spec(Tier1Config(model=str(folder), **flags))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -------------------------------------------------------------------------------------------------- what is obeyed

SHORT = {TOKENIZER: {"model_max_length": 7}}
OBEYED = {  # changes -> whether queries, and passages, are embedded as without them
    "query_length": ({BERT: {"query_length": 5}}, (False, True)),
    "document_length": ({BERT: {"document_length": 9}}, (True, False)),
    "both lengths": ({BERT: {"query_length": 5, "document_length": 24}}, (False, False)),
    "a length beyond max_seq_length": ({BERT: {"max_seq_length": 6, "query_length": 64}}, (True, False)),
    "lengths of null": ({BERT: {"query_length": None, "document_length": None, "max_seq_length": None}}, (True, True)),
    "max_seq_length": ({BERT: {"max_seq_length": 6}}, (False, False)),
    "max_seq_length before the tokenizer's": (SHORT | {BERT: {"max_seq_length": 64}}, (True, True)),
    "processor_kwargs": ({BERT: {"processor_kwargs": {"model_max_length": 6}, "max_seq_length": 8}}, (False, False)),
    "tokenizer_args": ({BERT: {"tokenizer_args": {"model_max_length": 6, "padding_side": "right"}}}, (False, False)),
    "an older file name": ({BERT: None, "sentence_roberta_config.json": {"max_seq_length": 6}}, (False, False)),
    "model_max_length": (SHORT, (False, False)),
    "model_max_length without limit": ({TOKENIZER: {"model_max_length": 10**30}}, (True, True)),
    "truncation_side": ({TOKENIZER: {"truncation_side": "left", "model_max_length": 7}}, (False, False)),
    "prompts": ({MODEL: {"prompts": {"query": "get the ", "document": "text of "}}}, (False, False)),
    "prompts of null": ({MODEL: {"prompts": {"query": None, "document": "text of "}}}, (True, False)),
    "another prompt": ({MODEL: {"prompts": {"clustering": "sort "}}}, (True, True)),
    "default_prompt_name": (
        {MODEL: {"prompts": {"sorted": "sort ", "query": "get "}, "default_prompt_name": "sorted"}},
        (False, True),
    ),
    "pooling_mode cls": ({POOLING: {"pooling_mode": "cls"}}, (False, False)),
    "pooling_mode lasttoken": ({POOLING: {"pooling_mode": ["lasttoken"]}}, (False, False)),
    "pooling_mode before the older flags": (
        {POOLING: {"pooling_mode": "cls", "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}},
        (False, False),
    ),
    "include_prompt without prompts": ({POOLING: {"include_prompt": False}}, (True, True)),
    "word_embedding_dimension": ({POOLING: {"word_embedding_dimension": 7}}, (True, True)),
    "similarity_fn_name dot": ({MODEL: {"similarity_fn_name": "dot"}}, (False, False)),
    "similarity_fn_name null": ({MODEL: {"similarity_fn_name": None}}, (True, True)),
    "truncate_dim as large as the embedding": ({MODEL: {"truncate_dim": 16}}, (True, True)),
    "do_lower_case": ({BERT: {"do_lower_case": True}, TOKENIZER: {"do_lower_case": True}}, (True, True)),
    "speed": ({BERT: {"unpad_inputs": False, "model_args": {"attn_implementation": "eager"}}}, (True, True)),
    "config_kwargs": ({BERT: {"config_kwargs": {"use_cache": True}}}, (True, True)),
    "other modalities": ({BERT: {"processing_kwargs": {"image": {"size": 3}, "text": {}}}}, (True, True)),
    "requirements": ({MODEL: {"requirements": {"transformers": ">=4"}}}, (True, True)),
}


@pytest.mark.parametrize("name", OBEYED)
def test_a_setting_is_obeyed_as_sentence_transformers_obeys_it(saved, changed, name):
    changes, alike = OBEYED[name]
    folder = changed(changes)
    found = ours(folder)
    assert agree(found, theirs(folder)) == [True, True]
    assert tuple(agree(found, ours(saved()))) == alike


@pytest.mark.parametrize("model_type", ["roberta", "modernbert", "qwen3"])
def test_lengths_prompts_and_sides_in_other_families(changed, model_type):
    prompts = {"query": "get ", "document": "the text "}
    changes = {BERT: {"query_length": 6, "document_length": 11}, MODEL: {"prompts": prompts}}
    folder = changed(changes | {TOKENIZER: {"truncation_side": "left"}}, model_type)
    assert agree(ours(folder), theirs(folder)) == [True, True]


def test_older_pooling_flags(changed):
    folder = changed({POOLING: {"pooling_mode_cls_token": True}})
    settings = json.loads((folder / POOLING).read_text())
    del settings["pooling_mode"]
    (folder / POOLING).write_text(json.dumps(settings))
    assert model_spec(Tier1Config(model=str(folder))).pooling == "cls"
    assert agree(ours(folder), theirs(folder)) == [True, True]


def test_an_empty_file_before_one_of_an_older_name(changed):
    folder = changed({"sentence_xlnet_config.json": {"max_seq_length": 6}})
    (folder / BERT).write_text("{}")
    assert agree(ours(folder), theirs(folder)) == [True, True]
    assert model_spec(Tier1Config(model=str(folder))).max_query_length == 6


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", None])
def test_a_model_that_normalises(changed, similarity):
    folder = changed({MODEL: {"similarity_fn_name": similarity}}, normalize=True)
    assert (folder / NORMALIZE).is_file()
    assert model_spec(Tier1Config(model=str(folder))).similarity == "cosine"
    assert agree(ours(folder), theirs(folder)) == [True, True]


def test_padding_on_the_left_changes_no_text_that_stands_alone(saved, changed):
    folder = changed({TOKENIZER: {"padding_side": "left"}})
    assert agree(ours(folder), theirs(folder, batch_size=1)) == [True, True]
    assert agree(ours(folder), theirs(folder)) == [False, False], "there a text's embedding depends on its batch"
    assert agree(ours(folder), ours(saved())) == [True, True]


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_the_number_format_is_the_runs_own(saved, changed, key):
    folder = changed({BERT: {"model_kwargs": {key: "bfloat16"}}})
    assert agree(ours(folder), theirs(folder, model_kwargs={"dtype": torch.float32})) == [True, True]
    assert agree(ours(folder), ours(saved())) == [True, True]


def test_a_prompt_for_passages_is_used_when_there_is_none_for_documents(changed):
    """By the documentation of encode_document. Its version 6.2 uses the prompt only if it is asked for by name."""
    folder = changed({MODEL: PASSAGE})
    settings = json.loads((folder / MODEL).read_text())
    assert settings["prompts"] == PASSAGE["prompts"]
    assert agree(ours(folder), theirs(folder, passage="passage")) == [True, True]
    assert agree(ours(folder), theirs(folder)) == [True, False]


def test_a_length_beyond_the_positions_is_cut_to_them(changed):
    folder = changed({BERT: {"max_seq_length": 300, "query_length": 200}})
    spec = model_spec(Tier1Config(model=str(folder)))
    assert (spec.max_query_length, spec.max_document_length) == (66, 66)
    assert agree(ours(folder), theirs(folder)) == [True, True]


def test_long_texts_in_a_family_that_loses_positions(changed):
    """There 514 positions are enough for 512 tokens; sentence-transformers takes the limit that the files say."""
    folder = changed({TOKENIZER: {"model_max_length": 10**30}}, "roberta")
    texts = random_texts(3, seed=1, longest=20) + ["the file " * 90]
    model = BaselineRetriever(Tier1Config(model=str(folder), precision="float32", device="cpu"))
    assert model.spec.max_document_length == 65 and np.isfinite(model.encode(texts)).all()
    from sentence_transformers import SentenceTransformer

    with pytest.raises((IndexError, RuntimeError), match="index"):
        SentenceTransformer(str(folder), device="cpu").encode(texts)


def test_without_any_limit_the_positions_are_the_limit(monkeypatch, tmp_path):
    import conftest

    real = conftest.tiny_config

    def longer(model_type):
        config = real(model_type)
        config.max_position_embeddings = 700
        return config

    monkeypatch.setattr(conftest, "tiny_config", longer)
    folder = write_model(tmp_path / "model")
    (folder / BERT).unlink()
    (folder / TOKENIZER).write_text(
        json.dumps(json.loads((folder / TOKENIZER).read_text()) | {"model_max_length": 10**30})
    )
    from sentence_transformers import SentenceTransformer

    assert SentenceTransformer(str(folder), device="cpu").get_max_seq_length() == 700
    assert model_spec(Tier1Config(model=str(folder))).max_document_length == 700


def test_flags_override_the_files_and_the_plan_says_so(changed):
    files = {
        BERT: {"query_length": 5, "document_length": "long"},
        MODEL: PASSAGE | {"similarity_fn_name": "manhattan"},
    }
    folder = changed(files | {POOLING: {"pooling_mode": "max"}})
    flags = {"max_document_length": 12, "pooling": "cls", "similarity": "dot", "document_prefix": ""}
    config = Tier1Config(model=str(folder), **flags)
    spec = model_spec(config)
    assert (spec.max_query_length, spec.max_document_length, spec.pooling, spec.similarity) == (5, 12, "cls", "dot")
    line = model_line(SimpleNamespace(config=config, spec=spec))
    assert line.endswith(
        "taken from its files of sentence-transformers, "
        "except --pooling, --similarity, --document-prefix, --max-document-length"
    )
    assert "pooling cls, similarity dot, " in line and "query prefix 'get the ', document prefix ''" in line
    assert "max query length 5, max document length 12" in line


def test_an_export_is_read_back_as_it_was_used(saved, tmp_path):
    flags = {"max_query_length": 5, "max_document_length": 24, "query_prefix": "get ", "pooling": "cls"}
    config = Tier1Config(model=str(saved()), precision="float32", device="cpu", **flags)
    folder = export_retriever(BaselineRetriever(config), tmp_path / "exported")
    assert agree(ours(folder), ours(saved(), **flags)) == [True, True]
    assert agree(ours(folder), theirs(folder)) == [True, True]


# -------------------------------------------------------------------------------------------------- what is refused

UNKNOWN = {file: ({file: {"flavour": 7}}, "sets flavour to 7") for file in (BERT, MODEL, POOLING, NORMALIZE)}
REFUSED = UNKNOWN | {  # changes, and what the refusal names
    "transformer_task": ({BERT: {"transformer_task": "fill-mask"}}, "transformer_task to 'fill-mask'"),
    "module_output_name": ({BERT: {"module_output_name": "scores"}}, "module_output_name to 'scores'"),
    "modality_config messages": (
        {BERT: {"modality_config": {"text": usage._TEXT, "message": {**usage._TEXT, "format": "flat"}}}},
        "modality_config",
    ),
    "modality_config of another output": (
        {BERT: {"modality_config": {"text": {"method": "forward", "method_output_name": "pooler_output"}}}},
        "modality_config",
    ),
    "modality_config without text": ({BERT: {"modality_config": {}}}, "modality_config"),
    "query_expansion": ({BERT: {"query_expansion": {"strategy": "fixed", "length": 32}}}, "query_expansion"),
    "tokenizer_name_or_path": ({BERT: {"tokenizer_name_or_path": "other"}}, "tokenizer_name_or_path to 'other'"),
    "processing_kwargs": ({BERT: {"processing_kwargs": {"text": {"max_length": 9}}}}, "processing_kwargs, sets text"),
    "processing_kwargs common": ({BERT: {"processing_kwargs": {"common": {"padding": 1}}}}, "sets common"),
    "processing_kwargs unknown": ({BERT: {"processing_kwargs": {"smell": {}}}}, "processing_kwargs, sets smell"),
    "model_args": ({BERT: {"model_args": {"num_hidden_layers": 2}}}, "model_kwargs, sets num_hidden_layers to 2"),
    "model_kwargs": ({BERT: {"model_kwargs": {"load_in_8bit": True}}}, "model_kwargs, sets load_in_8bit"),
    "model_kwargs of a wrong kind": ({BERT: {"model_kwargs": [1]}}, "model_kwargs, should hold settings by name"),
    "tokenizer_args": ({BERT: {"tokenizer_args": {"truncation_side": "left"}}}, "sets truncation_side to 'left'"),
    "processor_kwargs": ({BERT: {"processor_kwargs": {"add_bos_token": True}}}, "sets add_bos_token"),
    "config_args": ({BERT: {"config_args": {"is_causal": False}}}, "config_kwargs, sets is_causal"),
    "do_lower_case": ({BERT: {"do_lower_case": True}}, "lower-cased"),
    **{
        f"{key} {value!r}": ({BERT: {key: value}}, f"{key}: should be a whole number of at least 3 tokens")
        for key, value in (
            ("query_length", 0), ("query_length", "64"), ("document_length", 2), ("document_length", True),
            ("max_seq_length", 1), ("max_seq_length", 12.5), ("max_seq_length", "64"),
        )
    },
    "model_max_length": ({TOKENIZER: {"model_max_length": 0}}, "tokenizer_config.json, model_max_length: should be"),
    "pooling_mode max": ({POOLING: {"pooling_mode": "max"}}, "pools by max"),
    "pooling_mode of two": ({POOLING: {"pooling_mode": ["cls", "mean"]}}, "pools by cls + mean"),
    "pooling_mode of none": ({POOLING: {"pooling_mode": []}}, "pools by nothing"),
    "pooling_mode null": ({POOLING: {"pooling_mode": None}}, "pools by None"),
    "include_prompt": ({POOLING: {"include_prompt": False}, MODEL: PASSAGE}, "include_prompt"),
    "module_input_name": ({NORMALIZE: {"module_input_name": "token_embeddings"}}, "module_input_name"),
    "module_output_name of Normalize": ({NORMALIZE: {"module_output_name": "other"}}, "module_output_name to 'other'"),
    "truncate_dim": ({MODEL: {"truncate_dim": 8}}, "truncate_dim 8 of their 16"),
    "truncate_dim 0": ({MODEL: {"truncate_dim": "8"}}, "truncate_dim '8'"),
    "model_type": ({MODEL: {"model_type": "SparseEncoder"}}, "model_type to 'SparseEncoder'"),
    "similarity manhattan": ({MODEL: {"similarity_fn_name": "manhattan"}}, "compares by 'manhattan'"),
    "similarity maxsim": ({MODEL: {"similarity_fn_name": "maxsim"}}, "compares by 'maxsim'"),
    "similarity dot_product": ({MODEL: {"similarity_fn_name": "dot_product"}}, "compares by 'dot_product'"),
    "prompts of a wrong kind": ({MODEL: {"prompts": ["query: "]}}, "should name texts in prompts"),
    "a prompt of a wrong kind": ({MODEL: {"prompts": {"query": 5}}}, "should name texts in prompts"),
    "default_prompt_name": ({MODEL: {"default_prompt_name": "sorted"}}, "default_prompt_name 'sorted'"),
    "a multi-vector model's": ({MODEL: {"skiplist_words": [","]}}, "sets skiplist_words"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_setting_that_is_not_obeyed_is_refused_by_name(changed, name):
    changes, words = REFUSED[name]
    assert words in refusal(changed(changes, normalize=True))


def module(kind, path, **more):
    return {"idx": 0, "name": "0", "path": path, "type": kind, **more}


FIRST, POOL = (
    module("sentence_transformers.models.Transformer", ""),
    module("sentence_transformers.models.Pooling", "1_Pooling"),
)
NORM = module("sentence_transformers.models.Normalize", "2_Normalize")


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        ([], "lists the modules none"),
        ([FIRST], "lists the modules Transformer; a Transformer, a Pooling"),
        ([POOL, FIRST], "lists the modules Pooling, Transformer"),
        ([FIRST, NORM, POOL], "lists the modules Transformer, Normalize, Pooling"),
        ([FIRST, POOL, POOL], "lists the modules Transformer, Pooling, Pooling"),
        ([FIRST, module("custom_st.Pooling", "1_Pooling")], "lists a module 'custom_st.Pooling'"),
        ([module("custom_st.Transformer", ""), POOL], "lists a module 'custom_st.Transformer'"),
        ([FIRST | {"kwargs": ["task"]}, POOL], "modules.json sets kwargs to ['task']"),
        ([FIRST | {"weight": 2}, POOL], "modules.json sets weight to 2"),
    ],
)  # fmt: skip
def test_other_lists_of_modules(changed, modules, words):
    assert words in refusal(changed({"modules.json": modules}))


def test_every_other_module_of_sentence_transformers_is_refused_by_name(changed):
    from sentence_transformers.cross_encoder import modules as cross
    from sentence_transformers.multi_vector_encoder import modules as multi
    from sentence_transformers.sentence_transformer import modules as dense
    from sentence_transformers.sparse_encoder import modules as sparse

    kinds = {name for each in (dense, sparse, multi, cross) for name in each.__all__} - {"Module", "InputModule"}
    others = sorted(kinds - {"Transformer", "Pooling", "Normalize", "Dense", "LayerNorm"})
    assert len(others) >= 17, others
    folder = changed({})
    for kind in others:
        added = module(f"sentence_transformers.models.{kind}", f"2_{kind}")
        (folder / "modules.json").write_text(json.dumps([FIRST, POOL, added]))
        assert f"lists a module {kind!r}" in refusal(folder)


def test_every_setting_of_sentence_transformers_is_known():
    """A setting that a later version adds must get a row, or models that it writes are refused."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, LayerNorm, Normalize, Pooling, Transformer

    def known(rule):
        return {*rule.read, *rule.free, *rule.only}

    arguments = set(inspect.signature(inspect.unwrap(Transformer.__init__)).parameters) - {
        "self",
        "model_name_or_path",
    }
    assert {*arguments, *Transformer.config_keys} <= known(usage._TRANSFORMER)
    assert {*Pooling.config_keys, *Pooling.config_key_renames} <= known(usage._POOLING)
    assert set(Normalize.config_keys) == known(usage._NORMALIZE)
    assert set(Dense.config_keys) == known(usage._DENSE) and set(LayerNorm.config_keys) == known(usage._LAYER_NORM)
    empty = SentenceTransformer(modules=[torch.nn.Identity()], device="cpu", truncate_dim=3)
    assert set(empty._get_model_config()) <= known(usage._MODEL)


def test_prompts_that_pooling_excludes_may_be_turned_off_or_come_from_a_flag(changed):
    folder = changed({POOLING: {"include_prompt": False}, MODEL: PASSAGE})
    assert "include_prompt" in refusal(folder, query_prefix="")
    model_spec(Tier1Config(model=str(folder), query_prefix="", document_prefix=""))
    (folder / MODEL).unlink()
    model_spec(Tier1Config(model=str(folder)))
    assert "include_prompt" in refusal(folder, query_prefix="get ")


def test_an_adapter_is_refused(changed):
    folder = changed({"adapter_config.json": {"base_model_name_or_path": "other"}})
    assert "adapter_config.json" in refusal(folder) and "merge_and_unload" in refusal(folder)


@pytest.mark.parametrize("class_name", ["BertTokenizer", "TokenizersBackend"])
@pytest.mark.parametrize("cased", [True, False])
def test_lower_casing_is_done_by_the_tokenizer_or_refused(changed, class_name, cased):
    """Whatever tokenizer_config.json says, the tokenizer that is loaded decides."""
    folder = changed(
        {BERT: {"do_lower_case": True}, TOKENIZER: {"do_lower_case": True, "tokenizer_class": class_name}}
    )
    if cased:
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        tokenizer["normalizer"] = None
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    if cased and class_name == "TokenizersBackend":  # BertTokenizer makes its normalizer from tokenizer_config.json
        with pytest.raises(ModelError, match="do_lower_case"):
            ours(folder)
    else:
        assert agree(ours(folder), theirs(folder)) == [True, True]


# ---------------------------------------------------------------------------------------- modules behind the pooling


def behind(*modules):
    """A model of sentence-transformers with these modules behind its pooling: (name, arguments) of each."""

    def make(folder: Path, plain: Path) -> Path:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer import modules as kinds

        torch.manual_seed(5)
        made = [kinds.Transformer(str(plain)), kinds.Pooling(16, "mean")]
        made += [getattr(kinds, name)(**arguments) for name, arguments in modules]
        for each in made[2:]:
            for parameter in each.parameters():
                torch.nn.init.normal_(parameter, std=0.4)
        SentenceTransformer(modules=made, device="cpu").save(str(folder))
        return folder

    return make


TWO_DENSE = behind(  # EmbeddingGemma has these, of other sizes
    ("Dense", {"in_features": 16, "out_features": 40, "bias": False, "activation_function": None}),
    ("Dense", {"in_features": 40, "out_features": 12, "bias": False, "activation_function": None}),
    ("Normalize", {}),
)
BEHIND = {
    "a Dense": behind(("Dense", {"in_features": 16, "out_features": 24})),
    "two Dense": TWO_DENSE,
    "a residual": behind(("Dense", {"in_features": 16, "out_features": 16, "use_residual": True})),
    "a residual to another width": behind(("Dense", {"in_features": 16, "out_features": 8, "use_residual": True})),
    "an activation": behind(
        ("Dense", {"in_features": 16, "out_features": 24, "activation_function": torch.nn.GELU()}),
        ("LayerNorm", {"dimension": 24}),
    ),
    "a Normalize between": behind(
        ("Normalize", {}),
        ("Dense", {"in_features": 16, "out_features": 9, "bias": True}),
        ("LayerNorm", {"dimension": 9}),
    ),
}


@pytest.mark.parametrize("name", BEHIND)
def test_modules_behind_the_pooling_are_computed(models, tmp_path, name):
    folder = BEHIND[name](tmp_path / "saved", models("bert"))
    for similarity in ("cosine", "dot"):
        (folder / MODEL).write_text(json.dumps({"similarity_fn_name": similarity}))
        assert agree(ours(folder), theirs(folder)) == [True, True]


def test_weights_in_the_older_format(models, tmp_path):
    folder = TWO_DENSE(tmp_path / "saved", models("bert"))
    expected = ours(folder)
    for path in folder.glob("*_Dense/model.safetensors"):
        torch.save(load_file(path), path.with_name("pytorch_model.bin"))
        path.unlink()
    assert agree(ours(folder), expected) == [True, True]
    next(folder.glob("*_Dense")).joinpath("pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match=r"has no weights: neither model.safetensors nor pytorch_model.bin"):
        ours(folder)


@pytest.mark.parametrize("changes", [{}, {"train_dense": True}], ids=["frozen", "trained"])
@pytest.mark.parametrize("method", ["zero_shot", "lora", "full", "maw"])
def test_they_are_trained_as_told_saved_and_exported(models, tiny_settings, tiny_data, tmp_path, method, changes):
    folder = TWO_DENSE(tmp_path / "saved", models("bert"))
    settings = tiny_settings(model=str(folder), num_epochs=1, num_negatives=0, learning_rate=0.01, **changes)
    kind = find_method(method)
    model = RETRIEVERS[kind.retriever](kind.configure(settings))
    before = [each.clone() for each in model.encoder.after_pooling.parameters()]
    if kind.trained:
        train_retriever(model, tiny_data, tiny_data, model.config, "cpu", "tiny", method)
    moved = [
        not torch.equal(old, new) for old, new in zip(before, model.encoder.after_pooling.parameters(), strict=True)
    ]
    assert moved == [bool(changes) and kind.trained] * 2
    found = model.encode(TEXTS, "query"), model.encode(TEXTS, "document")
    assert found[0].shape[1] == model.spec.embedding_dim == 12
    exported = export_retriever(model, tmp_path / "exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
        assert agree(found, theirs(exported, trust_remote_code=True)) == [True, True]
    if not kind.trained:
        return
    checkpoint = tmp_path / "logs" / "checkpoints" / "one"
    facts = {"dataset": "tiny", "method": method, "epoch": 1, "best_val_metric": None, "training_history": []}
    save_checkpoint(checkpoint, model, **facts)
    assert np.array_equal(load_checkpoint(checkpoint).encode(TEXTS, "query"), found[0])
    weights = next(folder.glob("*_Dense/model.safetensors"))
    state = {name: each + 1 for name, each in load_file(weights).items()}
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="was trained from other weights"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"in_features": 17}, "in_features is 17, but the embedding before it has 16 numbers"),
        ({"out_features": 0}, "should give a positive whole out_features, got 0"),
        ({"activation_function": "mine.Wave"}, "activation_function 'mine.Wave' is not supported"),
        ({"activation_function": "torch.nn.modules.module.Module"}, "is not supported; of torch.nn, Identity, Tanh"),
        ({"bias": "yes"}, "bias should be true or false, got 'yes'"),
        ({"module_input_name": "token_embeddings"}, "module_input_name"),
        ({"flavour": 7}, "sets flavour to 7"),
    ],
)
def test_a_dense_module_that_is_not_computed_is_refused(models, tmp_path, settings, words):
    folder = TWO_DENSE(tmp_path / "saved", models("bert"))
    path = min(folder.glob("*_Dense/config.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    assert f"{path.parent.name}/config.json" in refusal(folder) and words in refusal(folder)


def test_what_is_said_of_a_dense_module_that_is_not_there(saved, models, tmp_path):
    with pytest.raises(ConfigError, match=r"train_dense: .* has no Dense and no LayerNorm module"):
        model_spec(Tier1Config(model=str(saved()), train_dense=True))
    folder = TWO_DENSE(tmp_path / "saved", models("bert"))
    (folder / MODEL).write_text(json.dumps({"truncate_dim": 8}))
    assert "truncate_dim 8 of their 12 numbers" in refusal(folder)
    shutil.rmtree(min(folder.glob("*_Dense")))
    assert "which modules.json names, is missing" in refusal(folder)
