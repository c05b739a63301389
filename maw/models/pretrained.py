"""Finds a pretrained encoder and reads its sizes, pooling, similarity, prefixes and length limits.

`--model` names a folder, a Hugging Face id, or packaged:all-MiniLM-L6-v2. The settings come from the files that
sentence-transformers writes or, for models published without them, from `KNOWN`; the configuration overrides them.
This module does not import torch, so that layer numbers and sizes are checked before anything heavy is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maw.attention.architectures import ARCHITECTURES, architecture_of
from maw.config.fields import Problem
from maw.config.layers import parse_layers
from maw.config.tier1_config import Tier1Config
from maw.data.dataset_table import DATASETS, source_of
from maw.errors import ConfigError, ModelError, show
from maw.models.model_files import MINILM_SHA256, WEIGHTS, ModelFiles, find_model, is_minilm
from maw.storage.files import sha256

_OWN_SCORES = (
    "adds relative position terms of its own inside the attention scores, so that a depth kernel on the query would "
    "not be the MAW formula; use a BERT, RoBERTa, XLM-R, ELECTRA, DistilBERT or ModernBERT encoder instead"
)
REFUSED_MODEL_TYPES = {"mpnet": _OWN_SCORES, "deberta": _OWN_SCORES, "deberta-v2": _OWN_SCORES}

DEFAULT_MAX_LENGTH = 512
SHORTEST = 3  # tokens: one token between the two special ones
DEFAULT_TEMPERATURE = {"cosine": 0.05, "dot": 1.0}
_POOLING_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_POOLING_NAMES = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
"""Pooling mode of sentence-transformers -> this project's name."""
MINILM = "packaged:all-MiniLM-L6-v2"


@dataclass(frozen=True)
class Usage:
    """How a model turns texts into scores."""

    pooling: str = "mean"
    similarity: str = "cosine"
    temperature: float = DEFAULT_TEMPERATURE["cosine"]
    query_prefix: str = ""
    document_prefix: str = ""
    max_length: int = DEFAULT_MAX_LENGTH


_CONTRIEVER = Usage(similarity="dot", temperature=0.05)
KNOWN = {"facebook/contriever": _CONTRIEVER, "facebook/contriever-msmarco": _CONTRIEVER}
"""Settings of models published without files of sentence-transformers, from their papers and model cards.

Source: Izacard et al. 2022, "Unsupervised Dense Information Retrieval with Contrastive Learning".
"""


@dataclass(frozen=True)
class ModelSpec:
    """Facts about a pretrained encoder, and how this run uses it.

    `folder` is None for a Hugging Face id; `trained_on` names the datasets on which it is not zero-shot (a folder's
    name proves nothing: it is recognised by the SHA-256 of its weights if they have the size of a known model);
    `weights_sha256` is the expected hash, None if unknown; `max_positions` is the most tokens of its position
    embeddings.
    """

    name: str
    folder: Path | None
    model_type: str
    num_layers: int
    num_heads: int
    hidden_dim: int
    pooling: str
    similarity: str
    temperature: float
    query_prefix: str
    document_prefix: str
    max_query_length: int
    max_document_length: int
    trained_on: tuple[str, ...] = ()
    weights_sha256: str | None = None
    max_positions: int = DEFAULT_MAX_LENGTH

    def was_trained_on(self, collection: str) -> bool:
        """Whether the model was trained on a collection or its source dataset; see `source_of`."""
        return source_of(collection) in self.trained_on


def model_spec(config: Tier1Config) -> ModelSpec:
    """Reads the model's own settings and applies the configuration's.

    Raises:
        ModelError: the model cannot be found or read, or cannot carry depth attention.
        ConfigError: settings contradict the model.
    """
    spec = read_spec(config)
    problems = disagreements(config, spec)
    if problems:
        raise ConfigError([str(problem) for problem in problems])
    return spec


def disagreements(config: Tier1Config, spec: ModelSpec) -> list[Problem]:
    """Problems of a configuration with a model: wrong sizes, and lengths beyond the model's positions."""
    found = []
    for name in ("hidden_dim", "num_heads", "num_layers"):
        asked, actual = getattr(config, name), getattr(spec, name)
        if asked not in (None, actual):
            text = f"{asked} contradicts the model; {spec.name} has {actual} (omit the setting to use the model's)"
            found.append(Problem(name, text, ("model",)))
    for name in ("max_query_length", "max_document_length"):
        if getattr(spec, name) > spec.max_positions:
            text = f"{getattr(spec, name)} tokens are too many: {spec.name} has positions for {spec.max_positions}"
            found.append(Problem(name, text, ("model",)))
    return found


def read_spec(config: Tier1Config, *, local_only: bool = False) -> ModelSpec:
    """As `model_spec`, without checking the configuration against the model.

    Raises:
        ModelError: as `model_spec`.
        NotCachedError: `local_only`, and the model's files are not on this machine.
    """
    name = config.model
    folder = find_model(name)
    files = ModelFiles(name, folder, local_only)
    settings = files.required("config.json")
    model_type = model_type_of(name, settings)
    sizes = _sizes(name, settings)
    positions = positions_of(name, model_type, settings)
    usage = _usage(files, config, model_type)
    similarity = config.similarity or usage.similarity
    own = usage.temperature if similarity == usage.similarity else DEFAULT_TEMPERATURE[similarity]
    length = min(usage.max_length, positions)
    known_folder = folder is not None and not name.startswith("packaged:") and is_minilm(folder)
    known_name = MINILM if known_folder else name
    return ModelSpec(
        name=name,
        folder=folder,
        model_type=model_type,
        **sizes,
        pooling=config.pooling or usage.pooling,
        similarity=similarity,
        temperature=config.temperature if config.temperature is not None else own,
        query_prefix=config.query_prefix if config.query_prefix is not None else usage.query_prefix,
        document_prefix=config.document_prefix if config.document_prefix is not None else usage.document_prefix,
        max_query_length=config.max_query_length or length,
        max_document_length=config.max_document_length or length,
        trained_on=tuple(each.name for each in DATASETS.values() if known_name in each.training_data_of),
        weights_sha256=MINILM_SHA256 if known_name == MINILM else None,
        max_positions=positions,
    )


def trained_layers(config: Tier1Config, spec: ModelSpec) -> dict[str, Any]:
    """Layers by what a run does to them.

    Returns:
        "maw" and "finetune": layer numbers from 1; "prefix": how many layers from the bottom no method changes.

    Raises:
        ConfigError: as `maw.config.layers.parse_layers`.
    """
    maw, finetune = (
        parse_layers(getattr(config, name), spec.num_layers, name) for name in ("maw_layers", "finetune_layers")
    )
    return {"maw": maw, "finetune": finetune, "prefix": min((*maw, *finetune), default=spec.num_layers + 1) - 1}


def weights_sha256(spec: ModelSpec) -> str | None:
    """SHA-256 of the file with a model's weights; None if there are several files, or none on this machine."""
    if spec.weights_sha256 is not None:
        return spec.weights_sha256  # `load_backbone` has verified it
    if spec.folder is not None:
        paths = sorted(spec.folder.glob("*.safetensors"))
    else:
        from huggingface_hub import try_to_load_from_cache

        cached = (try_to_load_from_cache(spec.name, name) for name in (WEIGHTS, "pytorch_model.bin"))
        paths = [Path(path) for path in cached if isinstance(path, str)][:1]
    return sha256(paths[0], ModelError) if len(paths) == 1 else None


def verify_weights(spec: ModelSpec) -> None:
    """Compares the weights' SHA-256 with the expected hash, if one is known; reads the whole file.

    Raises:
        ModelError: the weights are missing or differ.
    """
    if spec.weights_sha256 is None or spec.folder is None:
        return
    path = spec.folder / WEIGHTS
    actual = sha256(path, ModelError)
    if actual != spec.weights_sha256:
        raise ModelError(
            f"{path}: SHA-256 is {actual}, not {spec.weights_sha256}: the weights of {spec.name} are damaged or "
            "replaced; install its package again"
        )


def model_type_of(name: str, settings: dict[str, Any]) -> str:
    """The model type in a config.json.

    Raises:
        ModelError: the family cannot carry depth attention, or has no adapter.
    """
    model_type = settings.get("model_type")
    if isinstance(model_type, str) and model_type in REFUSED_MODEL_TYPES:
        raise ModelError(f"model {name} cannot carry MAW: {model_type} {REFUSED_MODEL_TYPES[model_type]}")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        supported = ", ".join(ARCHITECTURES)
        raise ModelError(f"model {name}: no adapter for model type {show(model_type)}; supported: {supported}")
    if settings.get("is_decoder"):
        raise ModelError(f"model {name} is a decoder; a retriever needs an encoder, which reads the whole text")
    kind = settings.get("position_embedding_type") or "absolute"
    if not ARCHITECTURES[model_type].rotary and kind != "absolute":
        raise ModelError(f"model {name} cannot carry MAW: with position_embedding_type {show(kind)} it {_OWN_SCORES}")
    return model_type


def _sizes(name: str, settings: dict[str, Any]) -> dict[str, int]:
    keys = architecture_of(settings["model_type"]).sizes
    sizes = {field: _positive(name, settings, key) for field, key in keys.items()}
    if "head_dim" not in settings and sizes["hidden_dim"] % sizes["num_heads"]:
        size, heads = sizes["hidden_dim"], sizes["num_heads"]
        raise ModelError(f"model {name}: config.json gives {heads} heads, which do not divide hidden size {size}")
    return sizes


def positions_of(name: str, model_type: str, settings: dict[str, Any]) -> int:
    """The most tokens for which the model has positions."""
    total = _positive(name, settings, "max_position_embeddings")
    if architecture_of(model_type).positions_follow_padding:
        padding = settings.get("pad_token_id")
        total -= (padding if isinstance(padding, int) else 1) + 1
    if total < SHORTEST:
        raise ModelError(f"model {name}: config.json has positions for {total} tokens; at least {SHORTEST} are needed")
    return total


def _positive(name: str, settings: dict[str, Any], key: str) -> int:
    value = settings.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(f"model {name}: config.json should give a positive whole {key}, got {show(value)}")
    return value


def _usage(files: ModelFiles, config: Tier1Config, model_type: str) -> Usage:
    if files.name in KNOWN:
        return KNOWN[files.name]
    modules = files.read("modules.json", list)
    if modules is None:  # a plain transformer
        return Usage()
    pooling_folder = _check_modules(files.name, modules)
    normalizes = any(_kind(module) == "Normalize" for module in modules)
    saved = files.read("config_sentence_transformers.json") or {}
    query, document = _prompts(saved)
    pooling = files.read(f"{pooling_folder}/config.json") if pooling_folder else {}
    if pooling is None:
        raise ModelError(f"model {files.name}: {pooling_folder}/config.json, which modules.json names, is missing")
    own_pooling = "mean" if config.pooling else _pooling(files.name, pooling, bool(query or document))
    similarity = "cosine" if normalizes or config.similarity else _similarity(files.name, saved)
    return Usage(
        pooling=own_pooling,
        similarity=similarity,
        temperature=DEFAULT_TEMPERATURE[similarity],
        query_prefix=query,
        document_prefix=document,
        max_length=_max_length(files, model_type),
    )


def _kind(module: Any) -> str:
    return str(module.get("type", "") if isinstance(module, dict) else module).rsplit(".", 1)[-1]


def _check_modules(name: str, modules: list[Any]) -> str | None:
    """Refuses unsupported modules; returns the pooling module's folder, or None for mean pooling."""
    folder = None
    for module in modules:
        kind = _kind(module)
        path = module.get("path") if isinstance(module, dict) else None
        if kind not in ("Transformer", "Pooling", "Normalize") or not isinstance(path, str):
            text = "only Transformer, Pooling and Normalize are supported"
            raise ModelError(f"model {name}: modules.json lists a module {show(kind)}; {text}")
        if kind == "Transformer" and path:
            text = "save it again with a current sentence-transformers, which puts it at the top"
            raise ModelError(f"model {name} has its transformer in the folder {show(path)}; {text}")
        folder = path if kind == "Pooling" else folder
    return folder


def _pooling(name: str, settings: dict[str, Any], has_prompts: bool) -> str:
    modes = settings.get("pooling_mode") or [mode for key, mode in _POOLING_MODES.items() if settings.get(key)]
    modes = modes or ["mean"] if isinstance(modes, list) else [modes]
    if modes not in ([known] for known in _POOLING_NAMES):
        raise ModelError(
            f"model {name} pools by {' + '.join(map(str, modes))}; only mean, cls and lasttoken are supported "
            "(--pooling mean, cls or last uses it anyway, with embeddings that differ from the published ones)"
        )
    if has_prompts and settings.get("include_prompt") is False:
        text = "its pooling excludes the prompt, which is not supported"
        raise ModelError(f"model {name}: {text} (--pooling {_POOLING_NAMES[modes[0]]} includes the prompt)")
    return _POOLING_NAMES[modes[0]]


def _similarity(name: str, saved: dict[str, Any]) -> str:
    similarity = saved.get("similarity_fn_name") or "cosine"
    if similarity in ("dot", "dot_product"):
        return "dot"
    if similarity != "cosine":
        text = "only cosine and dot are supported (--similarity cosine or dot overrides it)"
        raise ModelError(f"model {name} compares by {show(similarity)}; {text}")
    return similarity


def _prompts(saved: dict[str, Any]) -> tuple[str, str]:
    prompts = saved.get("prompts")
    prompts = prompts if isinstance(prompts, dict) else {}
    document = next((prompts[key] for key in ("document", "passage", "corpus") if key in prompts), None)
    query = prompts.get("query")
    return query if isinstance(query, str) else "", document if isinstance(document, str) else ""


def _max_length(files: ModelFiles, model_type: str) -> int:
    """The length limit of sentence-transformers: its own setting or, since version 6, the tokenizer's."""
    saved = files.read("sentence_bert_config.json")
    if saved is None:  # older models name the file after their type
        saved = files.read(f"sentence_{model_type}_config.json") or {}
    tokenizer = files.read("tokenizer_config.json") or {}
    if saved.get("do_lower_case") and not tokenizer.get("do_lower_case"):
        raise ModelError(f"model {files.name} needs lower-cased text before its tokenizer, which is not supported")
    for length in (saved.get("max_seq_length"), tokenizer.get("model_max_length")):
        if isinstance(length, int) and SHORTEST <= length < 10**9:  # "no limit" is saved as 10**30
            return length
    return DEFAULT_MAX_LENGTH


_HUB_NAME = {MINILM: "sentence-transformers/all-MiniLM-L6-v2"}


def base_model(spec: ModelSpec) -> str:
    """The hub's name of the model that training starts from, or its folder."""
    return _HUB_NAME.get(spec.name, spec.name)
