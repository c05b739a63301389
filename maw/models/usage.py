"""How a pretrained model is used, by the files that sentence-transformers writes.

They state pooling, similarity, prefixes and lengths. Each of their settings is obeyed, has no effect here, or the
model is refused with the setting's name; an unknown setting is refused too. `docs/compatibility_models.md` lists all.
Source of the meanings: the code of sentence-transformers 6.2, which also reads the names that older versions wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from maw.config.tier1_config import Tier1Config
from maw.errors import ModelError, show
from maw.models.model_files import ModelFiles

DEFAULT_MAX_LENGTH = 512
SHORTEST = 3  # tokens: one token between the two special ones
DEFAULT_TEMPERATURE = {"cosine": 0.05, "dot": 1.0}
_NO_LIMIT = 10**9  # "no limit" is saved as 10**30
_POOLING_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_POOLING_NAMES = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
"""Pooling mode of sentence-transformers -> this project's name."""


class Rule(NamedTuple):
    """The known settings of a file; all others are refused.

    Attributes:
        read: obeyed, or refused by their values, in the functions below.
        free: without effect on an embedding.
        only: setting -> the values that are computed here.
    """

    read: tuple[str, ...] = ()
    free: tuple[str, ...] = ()
    only: Mapping[str, tuple[Any, ...]] = {}


_MODULE = Rule(read=("path", "type"), free=("idx", "name"), only={"kwargs": ([], None)})
_ARGUMENTS = {"model_kwargs": "model_args", "processor_kwargs": "tokenizer_args", "config_kwargs": "config_args"}
"""Arguments of transformers in the Transformer's file -> their name before sentence-transformers 6."""
_TRANSFORMER = Rule(
    read=(
        *(
            "max_seq_length",
            "do_lower_case",
            "query_length",
            "document_length",
            "modality_config",
            "processing_kwargs",
        ),
        *_ARGUMENTS,
        *_ARGUMENTS.values(),
    ),
    free=("unpad_inputs", "backend", "cache_dir"),  # speed and places of files
    only={
        "transformer_task": ("feature-extraction",),
        "module_output_name": ("token_embeddings",),
        "query_expansion": (None,),
        "tokenizer_name_or_path": (None,),
    },
)
_TEXT = {"method": "forward", "method_output_name": "last_hidden_state"}
_NESTED = {
    # Number format and attention's implementation are this project's; the rest says where files are, or is unused.
    "model_kwargs": Rule(
        free=(
            *("dtype", "torch_dtype", "attn_implementation", "device_map", "low_cpu_mem_usage", "use_safetensors"),
            *("add_pooling_layer", "trust_remote_code"),
        )
    ),
    # This project pads on the right, and a text's embedding does not depend on padding.
    "processor_kwargs": Rule(
        read=("model_max_length",),
        free=("padding_side", "use_fast", "trust_remote_code"),
        only={"truncation_side": ("right",)},
    ),
    "config_kwargs": Rule(free=("use_cache", "trust_remote_code")),
    "processing_kwargs": Rule(
        free=("audio", "image", "video", "chat_template"), only={"text": ({}, None), "common": ({}, None)}
    ),
}
_POOLING = Rule(
    read=(*_POOLING_MODES, "pooling_mode", "include_prompt"), free=("word_embedding_dimension", "embedding_dimension")
)
_NORMALIZE = Rule(
    only={"module_input_name": ("sentence_embedding",), "module_output_name": ("sentence_embedding", None)}
)
_DENSE = Rule(
    read=("in_features", "out_features", "bias", "activation_function", "use_residual"), only=dict(_NORMALIZE.only)
)
_LAYER_NORM = Rule(read=("dimension",))
_AFTER_POOLING = {"Normalize": _NORMALIZE, "Dense": _DENSE, "LayerNorm": _LAYER_NORM}
_ACTIVATIONS = {
    f"torch.nn.modules.{'linear' if name == 'Identity' else 'activation'}.{name}": name
    for name in ("Identity", "Tanh", "ReLU", "LeakyReLU", "ELU", "GELU", "SiLU", "Mish", "Sigmoid", "Softplus")
}
"""Activation of a Dense module, as sentence-transformers writes it -> its name in torch.nn."""
DENSE_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Files with the weights of a Dense or a LayerNorm module, the first that exists."""
_MODEL = Rule(
    read=("prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim"),
    free=("__version__", "requirements"),
    only={"model_type": ("SentenceTransformer",)},
)
_TRANSFORMER_FILES = [  # in the order in which sentence-transformers looks for them
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
]


@dataclass(frozen=True)
class PooledModule:
    """A module behind the pooling: "Dense", "LayerNorm" or "Normalize", and the folder that it is in.

    The last three settings are those of a Dense module; the others map an embedding to one of the same width.
    """

    kind: str
    path: str
    in_features: int
    out_features: int
    bias: bool = True
    activation: str = "Tanh"
    use_residual: bool = False


@dataclass(frozen=True)
class Usage:
    """How a model turns texts into scores.

    A length is the most tokens of a text, None for as many as the model has positions; `lower_case` says whether texts
    are lower-cased before the tokenizer, which its own settings must do; `after_pooling` are the modules behind the
    pooling, without normalisations at the end, which cosine similarity does; `source` names where the settings come
    from.
    """

    pooling: str = "mean"
    similarity: str = "cosine"
    temperature: float = DEFAULT_TEMPERATURE["cosine"]
    query_prefix: str = ""
    document_prefix: str = ""
    query_length: int | None = DEFAULT_MAX_LENGTH
    document_length: int | None = DEFAULT_MAX_LENGTH
    lower_case: bool = False
    after_pooling: tuple[PooledModule, ...] = ()
    source: str = "this project's defaults, for a model without files of sentence-transformers"


_CONTRIEVER = Usage(similarity="dot", temperature=0.05, source="its paper and model card")
KNOWN = {"facebook/contriever": _CONTRIEVER, "facebook/contriever-msmarco": _CONTRIEVER}
"""Settings of models published without files of sentence-transformers, from their papers and model cards.

Source: Izacard et al. 2022, "Unsupervised Dense Information Retrieval with Contrastive Learning".
"""


def read_usage(files: ModelFiles, config: Tier1Config, hidden_dim: int) -> Usage:
    """How the model's files say that it is used; what the configuration overrides is not judged.

    Raises:
        ModelError: the files cannot be read, or hold a setting or a module that is neither obeyed nor without effect.
    """
    modules = files.read("modules.json", list)
    if modules is None:  # a plain transformer
        return Usage()
    pooling_folder, after_pooling = _check_modules(files, modules, hidden_dim)
    normalizes = bool(after_pooling) and after_pooling[-1].kind == "Normalize"
    while after_pooling and after_pooling[-1].kind == "Normalize":
        after_pooling.pop()
    width = after_pooling[-1].out_features if after_pooling else hidden_dim
    saved = _read(files, "config_sentence_transformers.json", _MODEL)
    query, document = _prompts(files.name, saved)
    dimension = saved.get("truncate_dim")
    if dimension is not None and not (isinstance(dimension, int) and dimension >= width):
        raise ModelError(
            f"model {files.name}: config_sentence_transformers.json cuts embeddings to truncate_dim {show(dimension)} "
            f"of their {width} numbers, which is not supported; remove the setting to use whole embeddings"
        )
    pooling = _read(files, f"{pooling_folder}/config.json", _POOLING, needed=True)
    overridden = ((config.query_prefix, query), (config.document_prefix, document))
    prompted = any(own if flag is None else flag for flag, own in overridden)
    similarity = "cosine" if config.similarity else _similarity(files.name, saved, normalizes)
    query_length, document_length, lower_case = _transformer(files, config)
    return Usage(
        pooling="mean" if config.pooling else _pooling(files.name, pooling, prompted),
        similarity=similarity,
        temperature=DEFAULT_TEMPERATURE[similarity],
        query_prefix=query,
        document_prefix=document,
        query_length=query_length,
        document_length=document_length,
        lower_case=lower_case,
        after_pooling=tuple(after_pooling),
        source="its files of sentence-transformers",
    )


def _read(files: ModelFiles, filename: str, rule: Rule, *, needed: bool = False) -> dict[str, Any]:
    """A file's settings, checked; none if there is no such file and none is needed."""
    settings = files.read(filename)
    if settings is None and needed:
        raise ModelError(f"model {files.name}: {filename}, which modules.json names, is missing")
    return _check(files.name, filename, settings or {}, rule)


def _check(name: str, where: str, settings: Any, rule: Rule) -> dict[str, Any]:
    if not isinstance(settings, dict):
        raise ModelError(f"model {name}: {where} should hold settings by name, got {show(settings)}")
    for key, value in settings.items():
        if key in rule.read or key in rule.free or value in rule.only.get(key, ()):
            continue
        text = f"model {name}: {where} sets {key} to {show(value)}, which is not supported"
        if key in rule.only:
            text += f"; only {' or '.join(map(show, rule.only[key]))} is"
        raise ModelError(text)
    return settings


def _check_modules(files: ModelFiles, modules: list[Any], hidden_dim: int) -> tuple[str, list[PooledModule]]:
    """Refuses other modules than a transformer, a pooling and the known ones behind it, in this order.

    Returns:
        The pooling's folder, and the modules behind it.
    """
    kinds, paths, name = [], [], files.name
    known = ("Transformer", "Pooling", *_AFTER_POOLING)
    after: list[PooledModule] = []
    for module in modules:
        kind = str(module.get("type", "") if isinstance(module, dict) else module)
        path = module.get("path") if isinstance(module, dict) else None
        short = kind.rsplit(".", 1)[-1]
        if short == "Transformer" and path:
            text = "save it again with a current sentence-transformers, which puts it at the top"
            raise ModelError(f"model {name} has its transformer in the folder {show(path)}; {text}")
        own = kind.startswith("sentence_transformers.")  # else code of the model's author, whatever it is called
        if short not in known or not own or not isinstance(path, str):
            text = f"only {', '.join(known[:-1])} and {known[-1]} are supported"
            raise ModelError(f"model {name}: modules.json lists a module {show(short if own else kind)}; {text}")
        _check(name, "modules.json", module, _MODULE)
        if short in _AFTER_POOLING:
            settings = {}
            if short != "Normalize" or files.folder or ".base." in kind:  # older versions write no file for it
                settings = _read(files, f"{path}/config.json", _AFTER_POOLING[short], needed=short != "Normalize")
            width = after[-1].out_features if after else hidden_dim
            after.append(_after_pooling(f"model {name}: {path}/config.json", short, path, settings, width))
        kinds.append(short)
        paths.append(path)
    if kinds[:2] != ["Transformer", "Pooling"] or len(kinds) != len(after) + 2:
        text = f"a Transformer, a Pooling and then any {', '.join(_AFTER_POOLING)} are needed, in this order"
        raise ModelError(f"model {name}: modules.json lists the modules {', '.join(kinds) or 'none'}; {text}")
    return paths[1], after


def _after_pooling(where: str, kind: str, path: str, settings: dict[str, Any], width: int) -> PooledModule:
    """A module behind the pooling, where embeddings have the width `width`."""
    if kind == "Normalize":
        return PooledModule(kind, path, width, width)
    dense = kind == "Dense"
    for key in ("in_features", "out_features") if dense else ("dimension",):
        size = settings.get(key)
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ModelError(f"{where} should give a positive whole {key}, got {show(size)}")
        if key != "out_features" and size != width:
            raise ModelError(f"{where}: {key} is {size}, but the embedding before it has {width} numbers")
    if not dense:
        return PooledModule(kind, path, width, width)
    for key in ("bias", "use_residual"):
        if not isinstance(settings.get(key, False), bool):
            raise ModelError(f"{where}: {key} should be true or false, got {show(settings[key])}")
    activation = settings.get("activation_function", "torch.nn.modules.activation.Tanh")
    if activation not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS.values())
        raise ModelError(f"{where}: activation_function {show(activation)} is not supported; of torch.nn, {known} are")
    return PooledModule(
        kind,
        path,
        in_features=width,
        out_features=settings["out_features"],
        bias=settings.get("bias", True),
        activation=_ACTIVATIONS[activation],
        use_residual=settings.get("use_residual", False),
    )


def _pooling(name: str, settings: dict[str, Any], prompted: bool) -> str:
    modes = settings.get("pooling_mode") if "pooling_mode" in settings else None
    if "pooling_mode" not in settings:
        modes = [mode for key, mode in _POOLING_MODES.items() if settings.get(key)] or ["mean"]
    modes = modes if isinstance(modes, list) else [modes]
    if modes not in ([known] for known in _POOLING_NAMES):
        raise ModelError(
            f"model {name} pools by {' + '.join(map(str, modes)) or 'nothing'}; only mean, cls and lasttoken are "
            "supported (--pooling mean, cls or last uses it anyway, with embeddings other than the published ones)"
        )
    if prompted and not settings.get("include_prompt", True):
        text = "its pooling excludes the prompt (include_prompt), which is not supported"
        raise ModelError(f"model {name}: {text} (--pooling {_POOLING_NAMES[modes[0]]} includes the prompt)")
    return _POOLING_NAMES[modes[0]]


def _similarity(name: str, saved: dict[str, Any], normalizes: bool) -> str:
    similarity = saved.get("similarity_fn_name") or "cosine"
    if normalizes and similarity in ("dot", "euclidean"):
        return "cosine"  # the same ranking, between embeddings of length 1
    if similarity not in ("cosine", "dot"):
        text = "only cosine and dot are supported (--similarity cosine or dot overrides it)"
        raise ModelError(f"model {name} compares by {show(similarity)}; {text}")
    return similarity


def _prompts(name: str, saved: dict[str, Any]) -> tuple[str, str]:
    """The prefixes of queries and of passages; null is none.

    `default_prompt_name` has no effect on queries and passages in sentence-transformers either.
    """
    prompts, default = saved.get("prompts") or {}, saved.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        text = f"should name texts in prompts, got {show(prompts)}"
        raise ModelError(f"model {name}: config_sentence_transformers.json {text}")
    if default is not None and default not in (*prompts, "query", "document"):
        text = f"names the default_prompt_name {show(default)}, which is not among its prompts"
        raise ModelError(f"model {name}: config_sentence_transformers.json {text}")
    document = next((prompts[key] for key in ("document", "passage", "corpus") if key in prompts), None)
    return prompts.get("query") or "", document or ""


def _transformer(files: ModelFiles, config: Tier1Config) -> tuple[int | None, int | None, bool]:
    """The length limits of queries and passages, and whether texts are to be lower-cased."""
    name = files.name
    where, saved = next(((each, found) for each in _TRANSFORMER_FILES if (found := files.read(each))), ("", {}))
    _check(name, where, saved, _TRANSFORMER)
    given = {key: saved.get(key, saved.get(old)) or {} for key, old in _ARGUMENTS.items()}
    for key, settings in (given | {"processing_kwargs": saved.get("processing_kwargs") or {}}).items():
        _check(name, f"{where}, {key},", settings, _NESTED[key])
    modalities = saved.get("modality_config", {"text": _TEXT})
    if not isinstance(modalities, dict) or modalities.get("text") != _TEXT or "message" in modalities:
        text = (
            f"only a plain text through {_TEXT['method']} to {_TEXT['method_output_name']} is, without a chat template"
        )
        raise ModelError(f"model {name}: {where} sets modality_config to {show(modalities)}, not supported; {text}")
    tokenizer = files.read("tokenizer_config.json") or {}
    lower_case = bool(saved.get("do_lower_case"))
    if lower_case and not tokenizer.get("do_lower_case"):
        raise ModelError(f"model {name} needs lower-cased text before its tokenizer, which is not supported")
    both = (
        (f"{where}, processor_kwargs, model_max_length", given["processor_kwargs"].get("model_max_length")),
        (f"{where}, max_seq_length", saved.get("max_seq_length")),
        ("tokenizer_config.json, model_max_length", tokenizer.get("model_max_length")),
    )
    lengths = []
    for kind in ("query", "document"):
        own = (f"{where}, {kind}_length", saved.get(f"{kind}_length"))
        first = next((each for each in (own, *both) if each[1] is not None), own)
        lengths.append(None if getattr(config, f"max_{kind}_length") else _length(name, *first))
    return lengths[0], lengths[1], lower_case


def _length(name: str, where: str, value: Any) -> int | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is None or (number and value >= _NO_LIMIT):
        return None
    if not isinstance(value, int) or not number or value < SHORTEST:
        text = f"should be a whole number of at least {SHORTEST} tokens, got {show(value)}"
        raise ModelError(f"model {name}: {where}: {text} (--max-query-length and --max-document-length override it)")
    return value
