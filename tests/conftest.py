"""Tiny random models with their own tokenizer, written to disk as model folders."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import string
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models this small lose more by waiting for threads than they gain

import pytest
import torch

from maw.attention.architectures import ARCHITECTURES
from maw.experiment.plan import encoding_speed
from maw.report import rebuild

WORDS = [
    "a",
    "the",
    "of",
    "in",
    "file",
    "string",
    "list",
    "number",
    "path",
    "open",
    "close",
    "read",
    "write",
    "sort",
    "parse",
    "json",
    "date",
    "time",
    "return",
    "returns",
    "get",
    "set",
    "remove",
    "add",
    "count",
    "word",
    "text",
    "error",
    "first",
    "last",
    "lower",
    "upper",
    "join",
    "split",
    "line",
    "is",
    "to",
    "from",
    "with",
    "for",
    "not",
]

FAMILIES = tuple(
    model_type
    for model_type, architecture in ARCHITECTURES.items()
    if model_type != "camembert" and not architecture.no_depths
)
"""Model types that are tested with every method; CamemBERT is RoBERTa under another name."""
IN_SHORT = (
    *("mpnet", "t5", "eurobert", "nomic_bert", "gte", "jina_embeddings_v3", "qwen2", "llama", "mistral"),
    "gemma3_text",
)
"""Families of which the ordinary suite tries the parts in tests/models/test_encoders.py, and `make faults` all."""
every_family = pytest.mark.parametrize(
    "model_type", [pytest.param(each, marks=pytest.mark.faults if each in IN_SHORT else ()) for each in FAMILIES]
)

SETTINGS_OF = {
    "roberta": {"type_vocab_size": 1},
    "xlm-roberta": {"type_vocab_size": 1},
    "electra": {"embedding_size": 12},
    "distilbert": {"hidden_dim": 24},
    "modernbert": {
        "local_attention": 8,
        "global_attn_every_n_layers": 2,
        "cls_token_id": 2,
        "sep_token_id": 3,
        "bos_token_id": 2,
        "eos_token_id": 3,
    },
    "qwen3": {"num_key_value_heads": 1, "head_dim": 8, "eos_token_id": 3},
    "qwen2": {"num_key_value_heads": 1, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
    "llama": {"num_key_value_heads": 1, "head_dim": 8},
    "mistral": {"num_key_value_heads": 1, "sliding_window": 5},
    "eurobert": {"num_key_value_heads": 1, "mask_token_id": 4},
    "gemma3_text": {
        "num_key_value_heads": 1,
        "head_dim": 8,
        "query_pre_attn_scalar": 24,
        "sliding_window": 6,
        "sliding_window_pattern": 2,
        "use_bidirectional_attention": True,
    },
    "jina_embeddings_v3": {"type_vocab_size": 1},
    "t5": {"d_kv": 8, "d_ff": 24, "eos_token_id": 3},
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0},
    "deberta-v2": {
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "share_att_key": True,
        "position_buckets": 4,
        "norm_rel_ebd": "layer_norm",
        "conv_kernel_size": 3,
        "type_vocab_size": 0,
    },
}
"""What a tiny model of a type needs beside its sizes; most types need nothing."""


def tiny_config(model_type: str):
    """The configuration of a tiny random encoder: 3 layers, 2 heads of 8, hidden size 16."""
    from transformers import AutoConfig

    sizes = {"num_layers": 3, "num_heads": 2, "hidden_dim": 16}
    settings = {name: sizes[field] for field, name in ARCHITECTURES[model_type].sizes.items()}
    settings |= {"intermediate_size": 24, "vocab_size": len(WORDS) + 5, "max_position_embeddings": 66}
    return AutoConfig.for_model(model_type, pad_token_id=0, **settings | SETTINGS_OF.get(model_type, {}))


def write_model(folder: Path, model_type: str = "bert", seed: int = 0, pooling: str = "mean", **settings: Any) -> Path:
    """Writes a tiny model folder in the layout of sentence-transformers; `settings` change its configuration."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    config = tiny_config(model_type)
    config.initializer_range = 0.5  # large enough for texts, and depths, to differ
    for name, value in settings.items():
        setattr(config, name, value)
    loader = ARCHITECTURES[model_type].loader()
    (loader.from_config(config) if hasattr(loader, "from_config") else loader(config)).save_pretrained(folder)
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    if model_type == "qwen2":  # transformers makes a byte-level tokenizer of its vocabulary, whatever the file says
        vocabulary = {piece: i for i, piece in enumerate([*list(vocabulary)[:5], "Ġ", *string.ascii_lowercase])}
        tokenizer = Tokenizer(models.BPE(vocabulary, []))
    else:
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        eos_token="[SEP]" if model_type == "qwen2" else None,  # else its own, which would be one more token
        model_max_length=64,
    ).save_pretrained(folder)
    (folder / "1_Pooling").mkdir(exist_ok=True)
    if ARCHITECTURES[model_type].causal and model_type != "gemma3_text" and pooling == "mean":
        pooling = "lasttoken"
    modes = {"pooling_mode_mean_tokens": pooling == "mean", "pooling_mode_cls_token": pooling == "cls"}
    modes |= {"pooling_mode_lasttoken": pooling == "lasttoken"}
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": config.hidden_size} | modes)
    )
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64}))
    return folder


def pytest_collection_modifyitems(items):
    """Skips what needs more GPUs than there are."""
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for item in items:
        for mark in item.iter_markers("gpu"):
            wanted = mark.args[0] if mark.args else 1
            if there < wanted:
                item.add_marker(pytest.mark.skip(reason=f"needs {wanted} CUDA GPU{'s' * (wanted > 1)}, has {there}"))


def pytest_collection_finish(session):
    """Thousands of collected tests are no garbage; each search for garbage would look at all of them."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000)


def pytest_addoption(parser):
    parser.addoption("--faults-full", action="store_true", help="try each fault of tests/faults as often as it says")


_draw = rebuild._draw


@pytest.fixture(scope="session", autouse=True)
def quick():
    """Runs in the tests' own process draw no figures, which take longer than the runs (see `drawing`), never wait for
    the disk, and measure their speed on few texts."""
    with (
        mock.patch.object(rebuild, "_draw"),
        mock.patch.object(os, "fsync"),
        mock.patch.object(encoding_speed, "TEXTS", 10),
    ):
        yield


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Runs inside the block draw their figures."""
    with mock.patch.object(rebuild, "_draw", _draw):
        yield


_shared = contextlib.ExitStack()


@contextlib.contextmanager
def _forking() -> Iterator[str]:
    from forks import forking

    with tempfile.TemporaryDirectory() as folder, forking(Path(folder)) as address:  # a socket's name must be short
        yield address


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    """The workers of pytest-xdist share one process that forks."""
    if not hasattr(node.config, "forks"):
        node.config.forks = _shared.enter_context(_forking())
    node.workerinput["forks"] = node.config.forks


def pytest_unconfigure():
    _shared.close()


@pytest.fixture(scope="session")
def forks(request):
    """`forks.run("tier_1.py", "--help", cwd=ROOT)`: a command in a fork of a process that has loaded the libraries."""
    from forks import Forks

    given = getattr(request.config, "workerinput", {}).get("forks")
    with contextlib.nullcontext(given) if given else _forking() as address:
        yield Forks(address)


@pytest.fixture(scope="session")
def library_cache(tmp_path_factory) -> str:
    """A cache folder, in which the collection of Python's library is made by the first who loads it."""
    return str(tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """`models("roberta")` gives the folder of a tiny model of that type, written once."""
    made: dict[str, Path] = {}

    def folder(model_type: str = "bert") -> Path:
        if model_type not in made:
            made[model_type] = write_model(tmp_path_factory.mktemp(model_type), model_type)
        return made[model_type]

    return folder


def user_method(folder: Path) -> str:
    """FILE.py:CLASS of a user's method, which scales the output of each layer that the run adapts."""
    (folder / "own.py").write_text("""import torch

import maw


class Own(maw.Method):
    name, label, learning_rate = "own", "Own", 0.01

    def adapt(self, backbone, context):
        for layer in context.layers.values():
            layer.factor = torch.nn.Parameter(torch.ones(context.spec.hidden_dim))
            layer.register_forward_hook(lambda layer, inputs, output: output * layer.factor)
        return [layer.factor for layer in context.layers.values()]
""")
    return f"{folder}/own.py:Own"


def random_texts(count: int, seed: int = 0, longest: int = 12) -> list[str]:
    """Texts of 1 to `longest` words that the tiny tokenizer knows."""
    import random

    source = random.Random(seed)
    return [" ".join(source.choices(WORDS, k=source.randint(1, longest))) for _ in range(count)]


@pytest.fixture
def tiny_data():
    """A tiny retrieval task in the user's plain form: each query is a few words of its one relevant passage."""
    docs = list(dict.fromkeys(random_texts(60, seed=1)))[:40]
    queries = [" ".join(doc.split()[:4]) + " file" for doc in docs[:24]]
    return {"queries": queries, "docs": docs, "qrels": {i: {i: 1} for i in range(len(queries))}}


@pytest.fixture
def tiny_settings(models, tmp_path):
    """`tiny_settings(router="soft")` gives a configuration over the tiny BERT that trains in a second."""
    from maw.config.tier1_config import Tier1Config

    def make(model_type: str = "bert", **changes):
        settings = {
            "model": str(models(model_type)),
            "datasets": ["pystdlib"],
            "depth_dim": 4,
            "num_epochs": 2,
            "batch_size": 8,
            "eval_batch_size": 16,
            "grpo_group_size": 3,
            "router_start": "uniform",
            "router_balance": 0.0,
            "grpo_group": "sampled",
            "depth_kernel": "diagonal",  # depths that differ from the start
            "top_k": 20,
            "permutations": 200,
            "cache_dir": str(tmp_path / "cache"),
            "log_dir": str(tmp_path / "logs"),
            "device": "cpu",
            "precision": "float32",
        }
        return Tier1Config(**(settings | changes))

    return make


def beir_outline(folder: Path, *judgements: str) -> Path:
    """The files that a folder in BEIR layout must have, with something in them: enough to be named in a run."""
    for name in ("corpus.jsonl", "queries.jsonl", *(f"qrels/{each}.tsv" for each in judgements or ("test",))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}\n")
    return folder


@pytest.fixture(scope="session")
def tiny_beir(tmp_path_factory) -> Path:
    """A folder in BEIR layout of 40 passages, each query a few words of its passage."""
    folder = tmp_path_factory.mktemp("beir") / "small"
    (folder / "qrels").mkdir(parents=True)
    passages = list(dict.fromkeys(random_texts(60, seed=21)))[:40]
    queries = {f"q{i}": " ".join(text.split()[:4]) + " of" for i, text in enumerate(passages)}
    queries = {i: text for i, text in queries.items() if list(queries.values()).count(text) == 1}
    corpus = [json.dumps({"_id": f"d{i}", "title": "", "text": text}) for i, text in enumerate(passages)]
    (folder / "corpus.jsonl").write_text("\n".join(corpus))
    (folder / "queries.jsonl").write_text("\n".join(json.dumps({"_id": i, "text": t}) for i, t in queries.items()))
    for number, split in enumerate(("train", "dev", "test")):
        lines = [f"{i}\td{i[1:]}\t1" for i in list(queries)[number::3]]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")
    return folder


@pytest.fixture(scope="session")
def tiny_run(tiny_beir, models, tmp_path_factory) -> Path:
    """The `log_dir` of a finished run of zero-shot, LoRA and MAW over the tiny BERT."""
    from maw.config.tier1_config import Tier1Config
    from maw.experiment.benchmark import run_complete_benchmark

    folder = tmp_path_factory.mktemp("run")
    settings = {"depth_dim": 4, "num_epochs": 1, "batch_size": 8, "permutations": 200, "precision": "float32"}
    names = {"model": str(models("bert")), "datasets": [f"beir:{tiny_beir}"], "device": "cpu"}
    places = {"log_dir": str(folder / "logs"), "cache_dir": str(folder / "cache")}
    lengths = {"query_prefix": "get ", "max_query_length": 6, "learning_rate": 0.05}
    start = {"router_start": "uniform", "kernel_init_std": 0.5}
    run_complete_benchmark(Tier1Config(**settings, **names, **places, **lengths, **start))
    return folder / "logs"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home folder for ir_datasets, which reads the variable when it is imported."""
    from source_fixtures import forget_library

    folder = tmp_path / "ir_datasets"
    monkeypatch.setenv("IR_DATASETS_HOME", str(folder))
    monkeypatch.setenv("IR_DATASETS_TMP", str(tmp_path / "tmp"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    forget_library()
    yield folder
    forget_library()
