"""What depth attention does with texts, for study: the whole 5-D attention tensor, and the depths that are picked.

    maw.attention_maps(model, ["a text", "another one"])[0, :, 1, :, 0]     # all heads, token 1, at depth 0
    maw.picked_depths(model, ["a text"])[12]                                # in layer 12

Letters: B texts, H heads, Q query tokens, K key tokens, D depths; h is 1 or H and t is 1 or T, by how a router routes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from maw.attention.layer import MAWAttentionLayer
from maw.errors import ModelError
from maw.models.add_maw import backbone_of, maw_layers
from maw.models.encoder import NonMAWEncoder
from maw.models.pretrained import positions_of
from maw.models.retriever import BaselineRetriever

TokensOrTexts: TypeAlias = str | Sequence[str] | Tensor | Sequence[Sequence[int]] | Mapping[str, Tensor]


def attention_maps(
    model: nn.Module,
    texts: TokensOrTexts,
    *,
    layer: int | None = None,
    tokenizer: Any = None,
) -> Tensor:
    """The whole 5-D attention tensor of one layer, as `maw.attention.layer.attention_5d` defines it: every depth, not
    the picked ones alone.

    It is made for study, and holds B * H * Q * K * D numbers. What enters the layer is what the layers below it make
    of the texts at their greedy depths.

    Args:
        model: with depth attention, from `add_maw` or a `MAWRetriever`.
        texts: texts, which get no prefix; or token ids, without padding; or what a tokenizer returns.
        layer: its number from 1; the last one with depth attention, if not given.
        tokenizer: for texts; the model's own, by its name, if not given.

    Returns:
        (B, H, Q, K, D), each row summing to one over K; padding gets no weight.

    Raises:
        ModelError: no depth attention there, or no tokenizer.
        ValueError: token ids that hold padding without saying where.
    """
    layers = maw_layers(model)
    number = max(layers, default=0) if layer is None else layer
    if number not in layers:
        there = ", ".join(map(str, layers)) or "none"
        raise ModelError(f"layer {layer or 'last'} has no depth attention; layers that do: {there}")
    return at_layer(model, texts, number, lambda module, inputs: module.reference(**inputs)[0], tokenizer=tokenizer)


def at_layer(
    model: nn.Module,
    texts: TokensOrTexts,
    layer: int,
    look: Callable[[MAWAttentionLayer, dict[str, Any]], Tensor],
    *,
    tokenizer: Any = None,
) -> Tensor:
    """What `look` makes of a layer and of the inputs that texts give it, in float32.

    Args: as `attention_maps`.
        look: given the layer with depth attention and the arguments of its `reference`.
    """
    found: list[Tensor] = []

    def hook(module: MAWAttentionLayer, given: tuple[Tensor, ...], named: dict[str, Any]) -> None:
        inputs = dict(zip(("hidden_states", "attention_mask"), given, strict=False)) | named
        inputs.pop("routing", None)
        found.append(look(module, inputs).float())

    with maw_layers(model)[layer].register_forward_pre_hook(hook, with_kwargs=True):
        _run(model, texts, tokenizer)
    return found[0]


def picked_depths(
    model: nn.Module,
    texts: TokensOrTexts,
    *,
    tokenizer: Any = None,
) -> dict[int, Tensor]:
    """The depth that each text takes in each layer with depth attention.

    Args: as `attention_maps`.

    Returns:
        By layer number: int64 (B, h, t), or for a soft router weights over depths, (B, h, t, D).
    """
    layers = maw_layers(model)
    found: dict[int, Tensor] = {}

    def keep(number: int) -> Any:
        return lambda _module, _given, taken: found.__setitem__(number, taken[:, 0])

    with contextlib.ExitStack() as hooks:
        for number, each in layers.items():
            hooks.enter_context(each.router.register_forward_hook(keep(number)))
        _run(model, texts, tokenizer)
    return found


def _run(model: nn.Module, texts: TokensOrTexts, tokenizer: Any) -> None:
    """Passes the texts through the model in evaluation mode, without gradient, leaving it in the mode it was in."""
    backbone, _ = backbone_of(model)
    inputs = {name: each.to(_device(backbone)) for name, each in _inputs(model, backbone, texts, tokenizer).items()}
    encoder = getattr(model, "encoder", None) if isinstance(model, BaselineRetriever) else model
    modes = {module: module.training for module in backbone.modules()}
    with torch.no_grad():
        try:
            backbone.eval()
            if isinstance(encoder, NonMAWEncoder):
                encoder(inputs)
            else:
                backbone(**inputs)
        finally:
            for module, mode in modes.items():
                module.training = mode


def _inputs(model: nn.Module, backbone: nn.Module, texts: Any, tokenizer: Any) -> dict[str, Tensor]:
    if isinstance(texts, Mapping):
        return {name: texts[name] for name in ("input_ids", "attention_mask")}
    if isinstance(texts, str):
        texts = [texts]
    padding = backbone.config.pad_token_id
    if isinstance(texts, Tensor):
        if padding is not None and (texts == padding).any():
            raise ValueError(
                'token ids hold padding; pass {"input_ids": ..., "attention_mask": ...} to say where it is'
            )
        return {"input_ids": texts, "attention_mask": torch.ones_like(texts)}
    if texts and isinstance(texts[0], str):
        tokenizer = tokenizer or getattr(model, "tokenizer", None) or _tokenizer(backbone)
        tokens = tokenizer(list(texts), truncation=True, max_length=_longest(backbone, tokenizer))["input_ids"]
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


def _longest(backbone: nn.Module, tokenizer: Any) -> int:
    config = backbone.config
    return min(tokenizer.model_max_length, positions_of(config.name_or_path, config.model_type, config.to_dict()))


def _device(backbone: nn.Module) -> torch.device:
    return next(backbone.parameters()).device
