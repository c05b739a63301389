"""A retriever in memory as `mteb` calls its models. Of mteb itself nothing is needed until it asks for metadata.

    import mteb
    from maw.evaluation.mteb import MTEBEncoder

    mteb.evaluate(MTEBEncoder(retriever), mteb.get_tasks(tasks=["SciFact"]))

Queries and documents get the model's own prefixes and lengths, whatever prompts a task suggests; what is neither, such
as the two sides of a similarity task, is read as a document without a prefix. An exported model
(`maw.models.export.sentence_transformers`) needs none of this: mteb takes a SentenceTransformer as it is.
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
    """Answers to `mteb.models.EncoderProtocol`.

    Args:
        retriever: at any stage of training; encoded on the device where it is.
        name: under which mteb keeps results, as "organisation/model".
        revision: of the model; results of another one are not mixed with them.
    """

    def __init__(self, retriever: BaselineRetriever, name: str = "maw/retriever", revision: str = "in-memory"):
        self.retriever, self.name, self.revision = retriever, name, revision

    def encode(
        self, inputs: Iterable[Mapping[str, Any]], *, prompt_type: Any = None, batch_size: int = 128, **_: Any
    ) -> np.ndarray:
        """All texts of the batches, in their order, as embeddings, float32 (N, C).

        Args:
            inputs: batches with a list "text" each.
            prompt_type: mteb's `PromptType`, "query" or "document"; None for texts that are neither.
            batch_size: texts encoded at once.
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
        """Scores of all pairs, (N, M): by inner product, which is the cosine where the model compares by it.

        Args:
            embeddings1: (N, C), or one, (C,).
            embeddings2: (M, C), likewise.
        """
        return _rows(embeddings1) @ _rows(embeddings2).T

    def similarity_pairwise(self, embeddings1: Tensor | np.ndarray, embeddings2: Tensor | np.ndarray) -> Tensor:
        """Scores of each row of `embeddings1`, (N, C), with the same row of `embeddings2`, (N, C): (N,)."""
        return (_rows(embeddings1) * _rows(embeddings2)).sum(-1)

    @property
    def mteb_model_meta(self) -> Any:
        """What mteb writes beside results, its `ModelMeta`."""
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
            "embed_dim": spec.hidden_dim,
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
