"""Finds a pretrained encoder and reads its sizes, pooling, similarity, prefixes and length limits.

`--model` names a folder, a Hugging Face id, or packaged:all-MiniLM-L6-v2. How it is used, `maw.models.usage` reads;
the configuration overrides it.
This module does not import torch, so that layer numbers and sizes are checked before anything heavy is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maw.attention.architectures import ARCHITECTURES, architecture_of
from maw.config.fields import Problem
from maw.config.layers import parse_layers
from maw.config.paths import short_path
from maw.config.tier1_config import Tier1Config
from maw.data.dataset_table import DATASETS, source_of
from maw.errors import ConfigError, ModelError, show
from maw.models.model_files import MINILM_SHA256, WEIGHTS, ModelFiles, find_model, is_minilm
from maw.models.usage import DEFAULT_MAX_LENGTH, DEFAULT_TEMPERATURE, KNOWN, SHORTEST, PooledModule, Usage, read_usage
from maw.storage.files import sha256

_LONGEST = 65_536
"""Most tokens of a text in a family without positions of its own: as many as a flag can set."""
MINILM = "packaged:all-MiniLM-L6-v2"


@dataclass(frozen=True)
class ModelSpec:
    """Facts about a pretrained encoder, and how this run uses it.

    `folder` is None for a Hugging Face id; `trained_on` names the datasets on which it is not zero-shot (a folder's
    name proves nothing: it is recognised by the SHA-256 of its weights if they have the size of a known model);
    `weights_sha256` is the expected hash, None if unknown; `max_positions` is the most tokens of its position
    embeddings, `vocab_size` the number of its token embeddings (None if config.json does not say); `lower_case` says
    whether its tokenizer must lower-case texts; `after_pooling` are the modules behind the pooling; `source` names
    where the settings come from that no flag gives.
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
    vocab_size: int | None = None
    lower_case: bool = False
    after_pooling: tuple[PooledModule, ...] = ()
    source: str = Usage.source

    @property
    def embedding_dim(self) -> int:
        """Numbers of an embedding."""
        return self.after_pooling[-1].out_features if self.after_pooling else self.hidden_dim

    def was_trained_on(self, collection: str) -> bool:
        """Whether the model was trained on a collection or its source dataset; see `source_of`."""
        return source_of(collection) in self.trained_on


def model_spec(config: Tier1Config) -> ModelSpec:
    """Reads the model's own settings and applies the configuration's.

    Raises:
        ModelError: the model cannot be found or read, or its family has no adapter.
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
    if architecture_of(spec.model_type).float32_only and config.precision != "float32":
        text = f"transformers computes {spec.model_type} in float32 alone; set float32"
        found.append(Problem("precision", text, ("model",)))
    if config.train_dense and not any(each.kind != "Normalize" for each in spec.after_pooling):
        found.append(Problem("train_dense", f"{spec.name} has no Dense and no LayerNorm module", ("model",)))
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
    if folder and (folder / "adapter_config.json").is_file():  # transformers would load its base model instead
        text = "adapter_config.json makes it an adapter of PEFT; save the model that merge_and_unload returns"
        raise ModelError(f"model {name}: {text}")
    settings = files.required("config.json")
    model_type = model_type_of(name, settings)
    sizes = _sizes(name, settings)
    positions = positions_of(name, model_type, settings)
    local = None if name.startswith("packaged:") else folder
    known_name = name if local is None else MINILM if is_minilm(local) else "/".join(local.parts[-2:])
    usage = KNOWN.get(known_name) or read_usage(files, config, sizes["hidden_dim"])
    similarity = config.similarity or usage.similarity
    own = usage.temperature if similarity == usage.similarity else DEFAULT_TEMPERATURE[similarity]
    return ModelSpec(
        name=name if local is None else short_path(local),
        folder=folder,
        model_type=model_type,
        **sizes,
        pooling=config.pooling or usage.pooling,
        similarity=similarity,
        temperature=config.temperature if config.temperature is not None else own,
        query_prefix=config.query_prefix if config.query_prefix is not None else usage.query_prefix,
        document_prefix=config.document_prefix if config.document_prefix is not None else usage.document_prefix,
        max_query_length=config.max_query_length or min(usage.query_length or positions, positions),
        max_document_length=config.max_document_length or min(usage.document_length or positions, positions),
        trained_on=tuple(each.name for each in DATASETS.values() if known_name in each.training_data_of),
        weights_sha256=MINILM_SHA256 if known_name == MINILM else None,
        max_positions=positions,
        vocab_size=_positive(name, settings, "vocab_size") if "vocab_size" in settings else None,
        lower_case=usage.lower_case,
        after_pooling=usage.after_pooling,
        source=usage.source,
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
        ModelError: the family has no adapter, or the model is one that its adapter does not compute.
    """
    model_type = settings.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        supported = ", ".join(ARCHITECTURES)
        if settings.get("auto_map") and isinstance(model_type, str) and not _is_native(model_type):
            text = "its code comes with the model and is not run here, and transformers has none for it"
            raise ModelError(f"model {name}: model type {show(model_type)}: {text}; supported: {supported}")
        raise ModelError(f"model {name}: no adapter for model type {show(model_type)}; supported: {supported}")
    if settings.get("is_decoder"):
        raise ModelError(f"model {name} is a decoder; a retriever needs an encoder, which reads the whole text")
    kind = settings.get("position_embedding_type") or "absolute"
    architecture = ARCHITECTURES[model_type]
    if not (architecture.rotary or architecture.no_depths) and kind != "absolute":
        text = "transformers no longer computes it; use a model with absolute positions"
        raise ModelError(f"model {name} has position_embedding_type {show(kind)}: {text}")
    return model_type


def _is_native(model_type: str) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return model_type in CONFIG_MAPPING_NAMES


def _sizes(name: str, settings: dict[str, Any]) -> dict[str, int]:
    architecture = architecture_of(settings["model_type"])
    sizes = {field: _positive(name, settings, key) for field, key in architecture.sizes.items()}
    if architecture.head_size not in settings and sizes["hidden_dim"] % sizes["num_heads"]:
        size, heads = sizes["hidden_dim"], sizes["num_heads"]
        raise ModelError(f"model {name}: config.json gives {heads} heads, which do not divide hidden size {size}")
    return sizes


def positions_of(name: str, model_type: str, settings: dict[str, Any]) -> int:
    """The most tokens for which the model has positions."""
    architecture = architecture_of(model_type)
    if architecture.positions is None:
        return _LONGEST
    total = _positive(name, settings, architecture.positions) - architecture.lost_positions(settings)
    if total < SHORTEST:
        raise ModelError(f"model {name}: config.json has positions for {total} tokens; at least {SHORTEST} are needed")
    return total


def _positive(name: str, settings: dict[str, Any], key: str) -> int:
    value = settings.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(f"model {name}: config.json should give a positive whole {key}, got {show(value)}")
    return value


_HUB_NAME = {MINILM: "sentence-transformers/all-MiniLM-L6-v2"}


def base_model(spec: ModelSpec) -> str:
    """The hub's name of the model that training starts from, or its folder."""
    return _HUB_NAME.get(spec.name, spec.name)
