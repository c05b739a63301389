"""Shared by measurements on the packaged model: settings, real texts, and sentence-transformers as the peer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from maw.config.tier1_config import Tier1Config
from maw.data.collection import Collection, RetrievalData
from maw.data.corpus_sampling import cut_to, judged_rows
from maw.data.registry import load_collection
from maw.runtime.precision import FORMATS


def settings(**changes: Any) -> Tier1Config:
    """The offline preset on the CPU, with changes."""
    return Tier1Config.from_preset("offline", device="cpu", **changes)


def texts_of_python() -> Collection:
    """Queries and passages from Python's own library."""
    return load_collection("pystdlib", settings())


def first_queries(data: RetrievalData, count: int, config: Tier1Config) -> RetrievalData:
    """A split of the first queries, with their judged passages as the corpus."""
    ids = data.query_ids[:count]
    some = replace(
        data,
        query_ids=ids,
        queries=data.queries[:count],
        qrels={each: data.qrels[each] for each in ids},
        left_out=data.left_out & set(ids),
    )
    return replace(some, corpus=cut_to(data.corpus, judged_rows(some).tolist(), config))


def sentence_transformer(folder: Path, precision: str | None = None, max_length: int | None = None) -> Any:
    """The same weights in sentence-transformers, on the CPU.

    Args:
        folder: of the model.
        precision: of its weights; None leaves the library's default.
        max_length: tokens kept of a text; None leaves the model's own.
    """
    from sentence_transformers import SentenceTransformer

    options = {} if precision is None else {"model_kwargs": {"dtype": FORMATS[precision]}}
    model = SentenceTransformer(str(folder), device="cpu", **options)
    if max_length is not None:
        model.max_seq_length = max_length
    return model


def precision_of(model: torch.nn.Module) -> str:
    """The number format of a model's weights."""
    return str(next(model.parameters()).dtype).removeprefix("torch.")
