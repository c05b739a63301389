"""Depth attention on one text, for the report: `attention.json` in a dataset's folder.

    example = attention_example(model, collection.validation)       # before training; None without depth attention
    ...
    example.content(model)                                          # after training

The text is the first validation query of `SHORT` to `LONGEST` tokens, or else the first query, cut. It is chosen
before training and is the same for every method. The file describes the last layer with depth attention: for every
head the distance of each depth's attention from the attention in use, and the maps of the head whose depths differ
most. The distances are stored because depths differ little compared with the attention itself.

"In use" is the attention that the model computes at its router's depths, or with a soft router's mixture. "Pretrained"
is the layer's attention before training, without kernels.

Letters: H heads, Q query tokens, K key tokens (the same tokens), D depths; h is 1 or H and t is 1 or T, as the router
decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from maw.attention.layer import MAWAttentionLayer
from maw.data.collection import RetrievalData
from maw.evaluation.query_examples import ATTENTION
from maw.evaluation.routing.attention_maps import at_layer, attention_maps, picked_depths
from maw.models.add_maw import maw_layers
from maw.models.retriever import BaselineRetriever, MAWRetriever
from maw.models.tokenized import ListTexts
from maw.runtime import distributed
from maw.storage.files import write_json

SHORT, LONGEST = 8, 16  # tokens: long enough for a text, short enough for labels on a phone
_LOOKED_AT = 200  # queries
_LONGEST_TEXT = 300  # characters
_DIGITS = 6


@dataclass(frozen=True)
class AttentionExample:
    """A text, and the pretrained model's attention on it.

    Attributes:
        inputs: the model's inputs, (1, Q).
        tokens: the tokens as readable strings.
        cut: whether the text has more tokens.
        layer: number of the layer, from 1.
        pretrained_HQK: attention before training.
    """

    query_id: str
    text: str
    inputs: dict[str, Tensor]
    tokens: list[str]
    cut: bool
    layer: int
    pretrained_HQK: Tensor

    def content(self, model: MAWRetriever) -> dict[str, Any]:
        """The file's content for a trained model.

        Returns:
            "query_id", "text", "tokens", "cut"; "layer" and "head", from 1; "heads" and "depths", their numbers;
            "router" and "route_by"; "picks" (D,), how often that head's tokens use each depth, or the weights of a
            mixture; "distance" (H, D), the total variation distance between a token's attention at a depth and in use,
            mean over tokens, and "distance_pretrained" (H,), the same for the pretrained model; for the head the maps
            "pretrained" and "used" (Q, K), "farthest", the depth with the largest distance, its map "at_farthest"
            (Q, K), and "received" (D, K), each token's received attention at a depth, mean over query tokens.
        """
        layer = maw_layers(model)[self.layer]
        depth = picked_depths(model, self.inputs)[self.layer][:, None]  # (1, 1, h, t), or (1, 1, h, t, D)
        every_HQKD = attention_maps(model, self.inputs, layer=self.layer)[0].cpu()

        def in_use(query: Tensor, hidden: Tensor) -> Tensor:
            return layer.kernels(query.clone(), hidden, depth)[:, 0, :, :, None]  # kernels may change the query

        used_HQK = _attention(model, self.inputs, self.layer, in_use)
        distance_HD = _total_variation(every_HQKD, used_HQK[..., None]).mean(1)
        head = int(distance_HD.mean(1).argmax())
        farthest = int(distance_HD[head].argmax())
        heads, _, _, num_depths = every_HQKD.shape
        shares = depth if depth.is_floating_point() else F.one_hot(depth, num_depths).float()
        share_hD = shares.mean((0, 1, 3)).cpu()
        return {
            "query_id": self.query_id,
            "text": self.text[:_LONGEST_TEXT],
            "tokens": self.tokens,
            "cut": self.cut,
            "layer": self.layer,
            "head": head + 1,
            "heads": heads,
            "depths": num_depths,
            "router": layer.router.name,
            "route_by": layer.router.route_by,
            "picks": _numbers(share_hD[head if len(share_hD) > 1 else 0]),
            "distance": _numbers(distance_HD),
            "distance_pretrained": _numbers(_total_variation(self.pretrained_HQK, used_HQK).mean(1)),
            "pretrained": _numbers(self.pretrained_HQK[head]),
            "used": _numbers(used_HQK[head]),
            "farthest": farthest,
            "at_farthest": _numbers(every_HQKD[head, ..., farthest]),
            "received": _numbers(every_HQKD[head].mean(0).T),
        }


def attention_example(model: BaselineRetriever, data: RetrievalData) -> AttentionExample | None:
    """Chooses a text of `data` for an untrained model; None without several depths, and outside the main process."""
    if not isinstance(model, MAWRetriever) or not distributed.is_main():
        return None
    layers = maw_layers(model)
    number = max(layers)
    if layers[number].router.num_depths < 2 or not len(data):
        return None
    row, ids = _short_query(model, data)
    tokens = [model.tokenizer.decode([each]).strip() or "(space)" for each in ids[:LONGEST]]
    inputs = {"input_ids": torch.tensor([ids[:LONGEST]]), "attention_mask": torch.ones(1, len(tokens)).long()}
    pretrained = _attention(model, inputs, number, lambda query, hidden: query[..., None, :])
    return AttentionExample(
        data.query_ids[row], data.queries[row], inputs, tokens, len(ids) > LONGEST, number, pretrained
    )


def write_examples(folder: Path, by_method: Mapping[str, Mapping[str, Any]]) -> Path | None:
    """Writes each method's example into a dataset's folder; None and no file if there are no examples.

    Raises:
        MAWError: the file cannot be written.
    """
    return write_json(folder / ATTENTION, by_method) if by_method else None


def _short_query(model: BaselineRetriever, data: RetrievalData) -> tuple[int, list[int]]:
    """The chosen query's row and its token ids."""
    source = model.source(ListTexts(data.queries[:_LOOKED_AT]), "query")
    batch = source.batch(range(len(source)))
    lengths = batch["attention_mask"].sum(1).tolist()
    row = next((row for row, length in enumerate(lengths) if SHORT <= length <= LONGEST), 0)
    return row, batch["input_ids"][row, : lengths[row]].tolist()


def _attention(
    model: MAWRetriever, inputs: dict[str, Tensor], number: int, weigh: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """The attention of a layer whose query `weigh` weights, (H, Q, K)."""

    def look(layer: MAWAttentionLayer, inputs: dict[str, Any]) -> Tensor:
        return layer.reference(**inputs, weigh=weigh)[0]

    return at_layer(model, inputs, number, look)[0, ..., 0].cpu()


def _total_variation(some_HQK: Tensor, other_HQK: Tensor) -> Tensor:
    """Total variation distance between two attention maps, over keys, the third dimension: (H, Q), or (H, Q, D)."""
    return (some_HQK - other_HQK).abs().sum(2) / 2


def _numbers(values: Tensor) -> list[Any]:
    return torch.round(values.double(), decimals=_DIGITS).tolist()
