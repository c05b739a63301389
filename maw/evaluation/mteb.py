"""Adapts a retriever in memory to `mteb`'s interface; mteb is imported only when it asks for metadata.

    import mteb
    from maw.evaluation.mteb import MTEBEncoder

    mteb.evaluate(MTEBEncoder(retriever), mteb.get_tasks(tasks=["SciFact"]))

mteb ranks, so its rule for queries that are documents too holds, not `self_passages`: a task with
`ignore_identical_ids` (ArguAna, Quora, FiQA, MS MARCO and others) removes the document of the query's id from the
1,000 that it found, as `drop` does, and leaves the judgements alone; other tasks remove nothing, as `keep` does.
`examples/mteb_task.py` ranks what a run ranked.

Queries and documents get the model's own prefixes and length limits, and a task's prompts are ignored. Texts that are
neither, as in similarity tasks, are encoded as documents without a prefix. An exported model
(`maw.models.export.sentence_transformers`) needs no adapter, because mteb accepts a SentenceTransformer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maw.models.encode import encode
from maw.models.encoder import MAWWithGRPOEncoder
from maw.models.retriever import BaselineRetriever
from maw.models.tokenized import TextSource

_FRAMEWORK = "PyTorch"


class MTEBEncoder:
    """Implements `mteb.models.EncoderProtocol`.

    Args:
        retriever: at any stage of training; it encodes on its own device.
        name: name of the results in mteb, "organisation/model".
        revision: the model's revision; mteb keeps results of different revisions apart.
    """

    def __init__(self, retriever: BaselineRetriever, name: str = "maw/retriever", revision: str = "in-memory"):
        self.retriever, self.name, self.revision = retriever, name, revision

    def encode(
        self, inputs: Iterable[Mapping[str, Any]], *, prompt_type: Any = None, batch_size: int = 128, **_: Any
    ) -> np.ndarray:
        """Embeddings of all texts of the batches, in their order, float32 (N, C).

        Args:
            inputs: batches, each with a list "text".
            prompt_type: mteb's `PromptType`, "query" or "document"; None for texts that are neither.
            batch_size: most texts encoded at once.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        kind = getattr(prompt_type, "value", prompt_type)
        model = self.retriever
        if kind is None:
            source = TextSource(texts, model.tokenizer, max_length=model.spec.max_document_length)
        else:
            source = model.source(texts, "query" if kind == "query" else "document")
        return np.asarray(encode(model.encoder, source, batch_size=batch_size, device=model.device).embeddings)

    def similarity(self, embeddings1: Tensor | np.ndarray, embeddings2: Tensor | np.ndarray) -> Tensor:
        """Inner products of all pairs, (N, M); cosines if the model's similarity is the cosine.

        Args:
            embeddings1: (N, C), or (C,) for one embedding.
            embeddings2: (M, C), or (C,).
        """
        return _rows(embeddings1) @ _rows(embeddings2).T

    def similarity_pairwise(self, embeddings1: Tensor | np.ndarray, embeddings2: Tensor | np.ndarray) -> Tensor:
        """Scores of each row of `embeddings1`, (N, C), with the same row of `embeddings2`, (N, C): (N,)."""
        return (_rows(embeddings1) * _rows(embeddings2)).sum(-1)

    @property
    def mteb_model_meta(self) -> Any:
        """mteb's `ModelMeta`, which it writes beside results."""
        from mteb.models.model_meta import ModelMeta, ScoringFunction

        spec, parameters = self.retriever.spec, sum(each.numel() for each in self.retriever.parameters())
        similarity = ScoringFunction.COSINE if spec.similarity == "cosine" else ScoringFunction.DOT_PRODUCT
        depths = {}
        if isinstance(self.retriever.encoder, MAWWithGRPOEncoder):
            depths = {"depths": self.retriever.config.depth_dim, "router": self.retriever.config.router}
        known = {
            "name": self.name,
            "revision": self.revision,
            "n_parameters": parameters,
            "embed_dim": spec.embedding_dim,
            "max_tokens": spec.max_document_length,
            "framework": [_FRAMEWORK],
            "similarity_fn_name": similarity,
            "use_instructions": bool(spec.query_prefix or spec.document_prefix),
            "experiment_kwargs": depths or None,
        }
        return ModelMeta.create_empty(overwrites=known)


def _rows(embeddings: Tensor | np.ndarray) -> Tensor:
    found = torch.as_tensor(embeddings)
    return found if found.ndim == 2 else found[None]
