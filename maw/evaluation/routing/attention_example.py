"""What depth attention does with one text, kept for the report: `attention.json` in a dataset's folder.

    example = attention_example(model, collection.validation)       # before training: None where nothing has depths
    ...
    example.content(model)                                          # after it

The text is a validation query, the first of `SHORT` to `LONGEST` tokens, chosen before anything is trained and the
same for every method; without one the first query, cut. What is kept is of the last layer with depth attention. The
differences between depths are small beside the attention itself, so that they are kept as well as it: for every head
how far each depth's attention is from that in use, and for the head whose depths differ most the maps themselves.

"In use" is the attention that the model computes, at the depths that its router picks or with the kernel that it
mixes of them. "Pretrained" is that of the layer before training, without kernels.

Letters: H heads, Q query tokens, K key tokens (the same tokens), D depths.
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

SHORT, LONGEST = 8, 16  # tokens: enough to be a text, few enough to be read as labels on a phone
_LOOKED_AT = 200  # queries
_LONGEST_TEXT = 300  # characters
_DIGITS = 6


@dataclass(frozen=True)
class AttentionExample:
    """A text, and the attention of the pretrained model on it.

    Attributes:
        query_id: whose text it is.
        text: as it is asked.
        inputs: its tokens as a model takes them, (1, Q).
        tokens: the same, to be read.
        cut: whether the text goes on behind them.
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
        """What the file holds of a trained model.

        Returns:
            "query_id", "text", "tokens", "cut"; "layer" and "head", from 1, and "heads" and "depths", how many there
            are; "router" and "route_by"; "picks" (D,), the share of that head's tokens that take each depth, or the
            weights of a mixture; "distance" (H, D), how much of a token's attention lies elsewhere at a depth than in
            use, the mean over tokens, between 0 and 1, and "distance_pretrained" (H,), the same of the pretrained
            model; and of the head the maps "pretrained" and "used" (Q, K), "farthest", the depth that is farthest
            from those in use, its map "at_farthest" (Q, K), and "received" (D, K), what each token receives at a
            depth, the mean over query tokens.
        """
        layer = maw_layers(model)[self.layer]
        depth = picked_depths(model, self.inputs)[self.layer][:, None]  # (1, 1, h, t), or (1, 1, h, t, D)
        every_HQKD = attention_maps(model, self.inputs, layer=self.layer)[0].cpu()

        def in_use(query: Tensor, hidden: Tensor) -> Tensor:
            features = layer.kernels.features(hidden)
            return layer.kernels(query.clone(), features, depth)[:, 0, :, :, None]  # kernels may change the query

        used_HQK = _attention(model, self.inputs, self.layer, in_use)
        distance_HD = _elsewhere(every_HQKD, used_HQK[..., None]).mean(1)
        head = int(distance_HD.mean(1).argmax())
        farthest = int(distance_HD[head].argmax())
        heads, _, _, depths = every_HQKD.shape
        shares_hD = (depth if depth.is_floating_point() else F.one_hot(depth, depths).float()).mean((0, 1, 3)).cpu()
        return {
            "query_id": self.query_id,
            "text": self.text[:_LONGEST_TEXT],
            "tokens": self.tokens,
            "cut": self.cut,
            "layer": self.layer,
            "head": head + 1,
            "heads": heads,
            "depths": depths,
            "router": layer.router.name,
            "route_by": layer.router.route_by,
            "picks": _numbers(shares_hD[head if len(shares_hD) > 1 else 0]),
            "distance": _numbers(distance_HD),
            "distance_pretrained": _numbers(_elsewhere(self.pretrained_HQK, used_HQK).mean(1)),
            "pretrained": _numbers(self.pretrained_HQK[head]),
            "used": _numbers(used_HQK[head]),
            "farthest": farthest,
            "at_farthest": _numbers(every_HQKD[head, ..., farthest]),
            "received": _numbers(every_HQKD[head].mean(0).T),
        }


def attention_example(model: BaselineRetriever, data: RetrievalData) -> AttentionExample | None:
    """A text of `data` for a model that is not trained yet; None without several depths.

    Of several processes the main one alone has it.
    """
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
    """Writes what each method's example holds into a dataset's folder; nothing where no method has one.

    Raises:
        MAWError: a path that cannot be written.
    """
    return write_json(folder / ATTENTION, by_method) if by_method else None


def _short_query(model: BaselineRetriever, data: RetrievalData) -> tuple[int, list[int]]:
    """A query's row and its token ids, as the model reads them."""
    source = model.source(ListTexts(data.queries[:_LOOKED_AT]), "query")
    batch = source.batch(range(len(source)))
    lengths = batch["attention_mask"].sum(1).tolist()
    row = next((row for row, length in enumerate(lengths) if SHORT <= length <= LONGEST), 0)
    return row, batch["input_ids"][row, : lengths[row]].tolist()


def _attention(
    model: MAWRetriever, inputs: dict[str, Tensor], number: int, weigh: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """The attention of a layer with its query weighed so, (H, Q, K)."""

    def look(layer: MAWAttentionLayer, inputs: dict[str, Any]) -> Tensor:
        return layer.reference(**inputs, weigh=weigh)[0]

    return at_layer(model, inputs, number, look)[0, ..., 0].cpu()


def _elsewhere(some_HQK: Tensor, other_HQK: Tensor) -> Tensor:
    """How much of each query token's attention lies on other tokens in one than in the other: the total variation.

    Sums over keys, the third dimension: (H, Q), or (H, Q, D).
    """
    return (some_HQK - other_HQK).abs().sum(2) / 2


def _numbers(values: Tensor) -> list[Any]:
    return torch.round(values.double(), decimals=_DIGITS).tolist()
