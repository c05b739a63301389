"""Exports a trained retriever as a folder that sentence-transformers loads without this package.

    python tier_1.py export logs/tier1 --method maw my-model

    from sentence_transformers import SentenceTransformer
    model = SentenceTransformer("my-model", trust_remote_code=True)        # or ORG/NAME, see `maw.models.export.hub`
    queries, passages = model.encode_query([...]), model.encode_document([...])

The folder includes prefixes, lengths, pooling and normalisation; embeddings agree to 1e-5 in float32. A model with
depth attention needs the modeling file `maw.models.export.modeling_maw` and `trust_remote_code`; all others are plain
models of their family. LoRA is merged into the weights, and also saved as a PEFT adapter in `adapter/`.

    config.json, model.safetensors, tokenizer files        as transformers writes them; float32
    modeling_maw.py                                         for models with depth attention
    modules.json, 1_Pooling/, sentence_bert_config.json, config_sentence_transformers.json
    adapter/                                                for LoRA
    README.md                                               a model card with the run's results
    (`maw.experiment.model_card`)
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from maw.config.method_files import mistakes_of, place_of
from maw.errors import ConfigError, MAWError, ModelError, reason
from maw.models.adaptation import merge_adapters
from maw.models.after_pooling import write_after_pooling
from maw.models.encoder import MAWWithGRPOEncoder
from maw.models.export.modeling_maw import MODELS, ROUTERS
from maw.models.pretrained import base_model
from maw.models.retriever import AGREES, PROBE, BaselineRetriever, load_tokenizer, quiet_transformers
from maw.storage.files import give_usual_mode, read_json, write_json, write_text

MODELING = "modeling_maw.py"
_POOLING = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
_POOLING_OF = {"mean": "mean_tokens", "cls": "cls_token", "last": "lasttoken"}


def export_retriever(model: BaselineRetriever, folder: Path | str, card: str | None = None) -> Path:
    """Writes a retriever as a sentence-transformers folder.

    Args:
        model: any retriever, in any number format; float32 is written.
        folder: must not exist, or must be empty; it appears when the export is complete.
        card: content of README.md.

    Returns:
        The folder.

    Raises:
        ModelError: a model with a random router, which is a control; depths that change values shared by groups of
            heads; a router or a model type that `maw.models.export.modeling_maw` does not have; a user's method that
            cannot be merged into the weights.
        ConfigError: the folder is not empty.
        MAWError: the folder cannot be written.
    """
    encoder = model.encoder
    if isinstance(encoder, MAWWithGRPOEncoder):
        _check_exportable(encoder, model.spec.model_type)
    made = model.rebuilt(precision="float32", device="cpu")  # a copy: the caller's stays as it is
    made.load_trained_state(model.trained_state())
    with _new_folder(Path(folder)) as temporary:
        if isinstance(made.encoder, MAWWithGRPOEncoder):
            _write_with_depths(made, temporary)
        else:
            _write_plain(made, temporary)
        load_tokenizer(made.spec).save_pretrained(temporary)
        _write_sentence_files(made, temporary)
        if card is not None:
            write_text(temporary / "README.md", card)
    return Path(folder)


def _check_exportable(encoder: MAWWithGRPOEncoder, model_type: str) -> None:
    layer = encoder.maw_attention[0]
    router = layer.router
    if layer.value_kernels is not None and getattr(layer.base, "num_key_value_groups", 1) > 1:
        raise ModelError("depths that change values shared by groups of heads are not exported; try maw")
    if router.needs_text_keys:
        raise ModelError("a model at random depths is a control of the benchmark and is not exported; try maw or full")
    if router.name not in ROUTERS:
        raise ModelError(
            f"a model with the router {router.name} is not exported: {MODELING} does not have that router"
        )
    if model_type not in MODELS:
        raise ModelError(f"depths in a model of type {model_type} are not exported: {MODELING} has no class for it")


def _write_with_depths(model: BaselineRetriever, folder: Path) -> None:
    """Writes a model of `maw.models.export.modeling_maw`, and that file."""
    backbone = model.encoder.backbone
    kind = MODELS[model.spec.model_type]
    settings = json.loads(backbone.config.to_json_string())
    for name in ("model_type", "architectures", "transformers_version", "_name_or_path"):
        settings.pop(name, None)
    if "use_cache" in settings:
        settings["use_cache"] = False  # routers read whole texts, so a cache is of no use
    made = kind(kind.config_class(**settings, maw=depth_settings(model.encoder)))
    state = {name.replace(".base.", "."): each for name, each in backbone.state_dict().items()}
    made.load_state_dict(_low_rank(state), strict=True)
    made.save_pretrained(folder)
    config = read_json(folder / "config.json")
    module = MODELING.removesuffix(".py")
    config["auto_map"] = {
        "AutoConfig": f"{module}.{kind.config_class.__name__}",
        "AutoModel": f"{module}.{kind.__name__}",
    }
    write_json(folder / "config.json", config)
    write_text(folder / MODELING, resources.files("maw.models.export").joinpath(MODELING).read_text(encoding="utf-8"))


def depth_settings(encoder: MAWWithGRPOEncoder) -> dict[str, Any]:
    """The settings of a MAW encoder that `maw.models.export.modeling_maw` needs besides the weights."""
    layer = encoder.maw_attention[0]
    low_rank = hasattr(layer.kernels, "down")
    return {
        "layers": list(encoder.maw_layers),
        "depths": layer.router.num_depths,
        "kernel": "low_rank" if low_rank else "diagonal",
        "rank": layer.kernels.down.shape[-2] if low_rank else None,
        "values": layer.value_kernels is not None,
        "router": layer.router.name,
        "route_by": layer.router.route_by,
        "fixed_depth": getattr(layer.router, "fixed_depth", 0),
    }


def _low_rank(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights with the factors of gated kernels written out for each depth."""
    for name in [name for name in state if name.endswith("kernels.gate")]:
        kernels, gate_DR = name.removesuffix("gate"), state.pop(name)
        state[f"{kernels}down"] = state[f"{kernels}down"].expand(len(gate_DR), -1, -1).contiguous()
        state[f"{kernels}up"] = gate_DR[..., None] * state[f"{kernels}up"][:, None]
    return state


def _write_plain(model: BaselineRetriever, folder: Path) -> None:
    """Writes a plain model of the family with LoRA merged; weights that the encoder does not use stay as published."""
    backbone = model.encoder.backbone
    own = model.method is None or model.method.origin is None  # others may have changed the weights under an adapter
    if own and any(isinstance(module, LoraLayer) for module in backbone.modules()):
        _write_adapter(model, folder / "adapter")
    state = _merged_state(model)
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # for a pooler that was not published
        whole = model.encoder.architecture.loader().from_pretrained(
            model.spec.folder or model.spec.name, dtype=torch.float32, trust_remote_code=False
        )
    missing, unexpected = whole.load_state_dict(state, strict=False)
    if unexpected or any(not name.startswith("pooler.") for name in missing):
        raise ModelError(f"model {model.spec.name}: {[*unexpected, *missing][0]} is not in both models")
    whole.save_pretrained(folder)


def _merged_state(model: BaselineRetriever) -> dict[str, Tensor]:
    """The weights of a plain model of the family that computes the same.

    Raises:
        ModelError: a user's method cannot be merged, or its `merge` gives another output.
    """
    method, backbone = model.method, model.encoder.backbone
    if method is None or method.origin is None:
        merge_adapters(backbone, model.context)
        return backbone.state_dict()
    where = f"{place_of(method)}: {method.name}"
    if method.merge is None and model.changes.structural:
        raise ModelError(f"{where}: is not exported: it adds modules or hooks to the encoder and has no merge")
    expected = model.encode(PROBE)
    if method.merge is not None:
        with mistakes_of(method, everything=True):
            method.merge(backbone, model.context)
    state = backbone.state_dict()
    plain = BaselineRetriever(replace(model.config, use_lora=False, train_layers=False))
    missing, unexpected = plain.encoder.backbone.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise ModelError(f"{where}: is not exported: after merge, {[*unexpected, *missing][0]} is not in both models")
    if plain.encoder.after_pooling is not None:
        plain.encoder.after_pooling.load_state_dict(model.encoder.after_pooling.state_dict())
    difference = float(abs(plain.encode(PROBE) - expected).max())
    if not difference <= AGREES:
        raise ModelError(f"{where}: is not exported: after merge the output differs by {difference:.2g}")
    return state


def _write_adapter(model: BaselineRetriever, folder: Path) -> None:
    """Writes the adapters as `PeftModel.from_pretrained` reads them."""
    backbone = model.encoder.backbone
    config = backbone.peft_config["default"]
    config.base_model_name_or_path, config.inference_mode = base_model(model.spec), True
    folder.mkdir()
    config.save_pretrained(folder)
    state = {
        f"base_model.model.{name.replace('.default.', '.')}": each.contiguous()
        for name, each in backbone.state_dict().items()
        if ".lora_" in name
    }
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _write_sentence_files(model: BaselineRetriever, folder: Path) -> None:
    spec, behind = model.spec, model.encoder.after_pooling
    written = [("Transformer", ""), ("Pooling", "1_Pooling")]
    if behind is not None:
        written += write_after_pooling(behind, spec.after_pooling, folder)
    if spec.similarity == "cosine":
        written.append(("Normalize", f"{len(written)}_Normalize"))
        (folder / written[-1][1]).mkdir()
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(written)
    ]
    write_json(folder / "modules.json", modules)
    (folder / "1_Pooling").mkdir()
    wanted = _POOLING_OF[spec.pooling]
    pooling: dict[str, bool | int] = {f"pooling_mode_{mode}": mode == wanted for mode in _POOLING}
    pooling |= {"word_embedding_dimension": spec.hidden_dim, "include_prompt": True}
    write_json(folder / "1_Pooling" / "config.json", pooling)
    lengths = {"query_length": spec.max_query_length, "document_length": spec.max_document_length}
    text = {"max_seq_length": max(lengths.values()), "do_lower_case": False}
    write_json(folder / "sentence_bert_config.json", text | (lengths if len(set(lengths.values())) > 1 else {}))
    about = {
        "prompts": {"query": spec.query_prefix, "document": spec.document_prefix},
        "default_prompt_name": None,
        "similarity_fn_name": spec.similarity,
    }
    write_json(folder / "config_sentence_transformers.json", about)


def check_free(folder: Path) -> None:
    """Raises ConfigError if the folder is not empty."""
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError([f"{folder}: is not empty; name a new folder"])


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that replaces `folder` at the end of the block, and is removed after an error."""
    temporary = None
    try:
        check_free(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
        temporary.chmod(0o755)
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                give_usual_mode(path)  # some libraries make their files readable by their owner only
        temporary.replace(folder)
    except (OSError, SafetensorError) as error:
        raise MAWError(f"cannot write {folder}: {reason(error)}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
