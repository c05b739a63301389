"""Depth attention on texts, for analysis: the whole 5-D attention tensor, and the picked depths.

    maw.attention_maps(model, ["a text", "another one"])[0, :, 1, :, 0]     # all heads, token 1, at depth 0
    maw.picked_depths(model, ["a text"])[12]                                # in layer 12

Letters: B texts, H heads, Q query tokens, K key tokens, D depths; h is 1 or H and t is 1 or T, as the router decides.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from maw.attention.layer import MAWAttentionLayer
from maw.attention.routers import Routing
from maw.errors import ModelError
from maw.models.add_maw import backbone_of, maw_layers
from maw.models.encode import evaluating
from maw.models.encoder import NonMAWEncoder
from maw.models.pretrained import positions_of
from maw.models.retriever import BaselineRetriever
from maw.models.tokenized import tokenizing

TokensOrTexts: TypeAlias = str | Sequence[str] | Tensor | Sequence[Sequence[int]] | Mapping[str, Tensor]


def attention_maps(
    model: nn.Module, texts: TokensOrTexts, *, layer: int | None = None, tokenizer: Any = None
) -> Tensor:
    """The whole 5-D attention tensor of one layer at all depths, as `maw.attention.layer.attention_5d` defines it.

    It is for analysis and holds B * H * Q * K * D numbers. The layers below use their greedy depths.

    Args:
        model: a model with depth attention, from `add_maw` or a `MAWRetriever`.
        texts: texts, which get no prefix; token ids without padding; or a tokenizer's output.
        layer: number of the layer, from 1; by default the last one with depth attention.
        tokenizer: tokenizer of the texts; by default the model's own, found by its name.

    Returns:
        (B, H, Q, K, D), which sums to one over K; padding has weight zero.

    Raises:
        ModelError: the layer has no depth attention, or there is no tokenizer.
        ValueError: token ids with padding but without an attention mask.
    """
    layers = maw_layers(model)
    number = max(layers, default=0) if layer is None else layer
    if number not in layers:
        there = ", ".join(map(str, layers)) or "none"
        raise ModelError(f"layer {layer or 'last'} has no depth attention; layers with depth attention: {there}")
    return at_layer(model, texts, number, lambda module, inputs: module.reference(**inputs)[0], tokenizer=tokenizer)


def at_layer(
    model: nn.Module,
    texts: TokensOrTexts,
    layer: int,
    look: Callable[[MAWAttentionLayer, dict[str, Any]], Tensor],
    *,
    tokenizer: Any = None,
) -> Tensor:
    """The result of `look` for a layer and its inputs, in float32.

    Args: as `attention_maps`, and
        look: takes a layer with depth attention and the arguments of its `reference`.
    """
    found: list[Tensor] = []
    caller = threading.get_ident()

    def hook(module: MAWAttentionLayer, given: tuple[Tensor, ...], named: dict[str, Any]) -> None:
        if threading.get_ident() != caller:
            return  # a call in another thread, on other texts
        inputs = dict(zip(("hidden_states", "attention_mask", "position_bias"), given, strict=False)) | named
        inputs = {name: each for name, each in inputs.items() if not isinstance(each, Routing)}
        found.append(look(module, inputs).float())

    with maw_layers(model)[layer].register_forward_pre_hook(hook, with_kwargs=True):
        _run(model, texts, tokenizer)
    return found[0]


def picked_depths(model: nn.Module, texts: TokensOrTexts, *, tokenizer: Any = None) -> dict[int, Tensor]:
    """The greedy depths of each text in each layer with depth attention.

    Args: as `attention_maps`.

    Returns:
        By layer number: int64 (B, h, t), or for a soft router weights over depths, (B, h, t, D).
    """
    layers = maw_layers(model)
    found: dict[tuple[int, int], Tensor] = {}  # by thread, since others may run the model on their own texts
    get_thread = threading.get_ident

    def keep(number: int) -> Any:
        return lambda _module, _given, depth: found.__setitem__((get_thread(), number), depth[:, 0])

    with contextlib.ExitStack() as hooks:
        for number, each in layers.items():
            hooks.enter_context(each.router.register_forward_hook(keep(number)))
        _run(model, texts, tokenizer)
    return {number: found[get_thread(), number] for number in layers}


def _run(model: nn.Module, texts: TokensOrTexts, tokenizer: Any) -> None:
    """Runs the model on texts in evaluation mode without gradients, and restores its training mode."""
    backbone, _ = backbone_of(model)
    device = next(backbone.parameters()).device
    inputs = {name: each.to(device) for name, each in _inputs(model, backbone, texts, tokenizer).items()}
    encoder = model.encoder if isinstance(model, BaselineRetriever) else model
    own = isinstance(encoder, NonMAWEncoder)
    engine = encoder if own else backbone
    with torch.no_grad(), evaluating(engine):
        engine(inputs) if own else engine(**inputs)


def _inputs(model: nn.Module, backbone: nn.Module, texts: Any, tokenizer: Any) -> dict[str, Tensor]:
    if isinstance(texts, Mapping):
        return {name: texts[name] for name in ("input_ids", "attention_mask")}
    if isinstance(texts, str):
        texts = [texts]
    padding = backbone.config.pad_token_id
    if isinstance(texts, Tensor):
        if padding is not None and (texts == padding).any():
            raise ValueError('token ids contain padding; pass {"input_ids": ..., "attention_mask": ...} instead')
        return {"input_ids": texts, "attention_mask": torch.ones_like(texts)}
    if texts and isinstance(texts[0], str):
        tokenizer = tokenizer or getattr(model, "tokenizer", None) or _tokenizer(backbone)
        config = backbone.config
        positions = positions_of(config.name_or_path, config.model_type, config.to_dict())
        longest = min(tokenizer.model_max_length, positions)
        with tokenizing:
            tokens = tokenizer(list(texts), truncation=True, max_length=longest)["input_ids"]
    else:
        tokens = texts
    rows = [torch.tensor(each, dtype=torch.long) for each in tokens]
    return {
        "input_ids": nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding or 0),
        "attention_mask": nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
    }


def _tokenizer(backbone: nn.Module) -> Any:
    from transformers import AutoTokenizer

    name = backbone.config.name_or_path
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"no tokenizer of the model is found at {name!r}; pass tokenizer=") from error
