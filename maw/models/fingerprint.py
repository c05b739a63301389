"""Fingerprint of an encoder: hashes and plain values of everything that determines its embeddings.

    key = encoder_parts(model.encoder) | {"tokenizer": tokenizer_sha256(model.tokenizer)}

`maw.encoding.embedding_cache` and `maw.training.hard_negatives` find stored results by it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import nn

from maw.storage.files import json_sha

_NOT_OF_THE_MODEL = ("_name_or_path", "transformers_version")
_NOT_COMPUTED_WITH = {"name_or_path", *vars(nn.Module())}


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 over name, type, shape and bytes of all parameters and buffers, non-persistent buffers included."""
    return _sha256(module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False))


def _sha256(*named: Iterable[tuple[str, torch.Tensor]]) -> str:
    sha, tensors = hashlib.sha256(), chain(*named)
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        values = tensor.detach().cpu().contiguous()
        sha.update(json.dumps([name, str(values.dtype), list(values.shape)]).encode("ascii"))
        sha.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def encoder_parts(encoder: Any) -> dict[str, Any]:
    """Everything in an encoder of `maw.models.encoder` that determines its output, given token ids.

    It includes settings that are not weights: an adapter's scale, a norm's epsilon, whether an adapter is disabled.
    """
    return {
        "weights": weights_sha256(encoder),
        **_configured(encoder),
        # Without the encoder's own settings, some of which state what is trained.
        "modules": _modules_sha256((name, each) for name, each in encoder.named_modules() if name),
        "encoder": [type(encoder).__qualname__, type(encoder.architecture).__qualname__],
        "pooling": encoder.pooling,
        "normalize": encoder.normalize,
        "precision": str(encoder.precision).removeprefix("torch."),
    }


def frozen_parts(encoder: Any) -> dict[str, Any]:
    """Everything that determines the output of an encoder's prefix layers, given token ids.

    All methods of a run have the same, because weights and modules of the layers above are left out.
    """
    layers = encoder.architecture.layers(encoder.backbone)[encoder.prefix_layers :]
    above = {each for layer in layers for each in layer.modules()}
    modules = [(name, each) for name, each in encoder.backbone.named_modules() if each not in above]
    named = [(f"{name}.", each) for name, each in modules]
    return {
        "weights": _sha256(
            *(
                ((path + name, each) for name, each in module.named_parameters(recurse=False))
                for path, module in named
            ),
            *(((path + name, each) for name, each in module.named_buffers(recurse=False)) for path, module in named),
        ),
        **_configured(encoder),
        "modules": _modules_sha256((name, each) for name, each in modules if name),
        "architecture": type(encoder.architecture).__qualname__,
        "layers": encoder.prefix_layers,
        "precision": str(encoder.precision).removeprefix("torch."),
    }


def _configured(encoder: Any) -> dict[str, Any]:
    config = json.loads(encoder.backbone.config.to_json_string(use_diff=False))
    return {
        "config": {name: value for name, value in config.items() if name not in _NOT_OF_THE_MODEL},
        "attention": encoder.backbone.config._attn_implementation,
    }


def _modules_sha256(named: Iterable[tuple[str, nn.Module]]) -> str:
    return json_sha([[name, type(each).__qualname__, _settings(each)] for name, each in named])


def tokenizer_sha256(tokenizer: Any) -> str | None:
    """SHA-256 of a tokenizer's serialised form; None for a tokenizer in pure Python, which has none.

    Truncation and padding are left out, because every call sets them.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    form = json.loads(backend.to_str()) | {"truncation": None, "padding": None}
    return json_sha([type(tokenizer).__qualname__, tokenizer.truncation_side, tokenizer.pad_token_id, form])


def _settings(module: nn.Module) -> dict[str, Any]:
    """The module's attributes that are plain values."""
    return {name: value for name, value in vars(module).items() if name not in _NOT_COMPUTED_WITH and _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and _is_plain(each) for name, each in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
