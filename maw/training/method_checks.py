"""What a run checks of a user's method beside the modules that it changed, since it takes nothing on trust.

- `check_method` tries the method on two texts, before the data are loaded.
- `cache_disagreement` compares the output from stored activations of the frozen layers with that from tokens, at the
  start of a training and after one step of the optimizer.
- `watched` does so for a training, and compares what is not trained before and after it.

Tests hold the benchmark's own methods to the same rules, so that a run spends no time on them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from maw.attention.noise import text_keys
from maw.config.method_files import mistakes_of, place_of
from maw.config.methods import Method
from maw.config.tier1_config import Tier1Config
from maw.data.collection import RetrievalData
from maw.encoding.activation_cache import ActivationStore
from maw.errors import ModelError
from maw.models.changes import frozen_hashes
from maw.models.retriever import AGREES, PROBE, BaselineRetriever
from maw.models.tokenized import ListTexts
from maw.runtime import distributed
from maw.runtime.devices import to_device
from maw.training.contrastive import TrainingPairs, contrastive_loss
from maw.training.optimizer import parameter_groups

logger = logging.getLogger(__name__)

Inputs = Mapping[str, Tensor]


def check_method(method: Method, build: Callable[[], BaselineRetriever]) -> None:
    """Builds a model, encodes two texts with it and computes a gradient.

    Raises:
        ModelError: the method has a mistake; the line names its file and line.
    """
    where = f"{place_of(method)}: {method.name}"
    model = build()
    with mistakes_of(method, everything=True):
        tokens = model.source(PROBE, "document").batch([0, 1])
        embedding = model.encoder({name: each.to(model.device) for name, each in tokens.items()})["embedding"]
        expected = (len(PROBE), model.spec.embedding_dim)
        if tuple(embedding.shape) != expected:
            raise ModelError(f"{where}: gives embeddings of shape {tuple(embedding.shape)}, not {expected}")
        if not bool(torch.isfinite(embedding).all()):
            raise ModelError(f"{where}: gives NaN or infinite embeddings before it is trained")
        if not method.trained:
            return
        trained = {name: each for name, each in model.encoder.named_parameters() if each.requires_grad}
        found = [None] * len(trained)
        if embedding.requires_grad:
            found = torch.autograd.grad(embedding.square().sum(), list(trained.values()), allow_unused=True)
        if all(each is None for each in found):
            raise ModelError(f"{where}: no output depends on what it trains, such as {next(iter(trained))}")
        for name, each in zip(trained, found, strict=True):
            if each is not None and not bool(torch.isfinite(each).all()):
                raise ModelError(f"{where}: the gradient of {name} is NaN or infinite before it is trained")


def cache_disagreement(model: BaselineRetriever, queries: Inputs, passages: Inputs, config: Tier1Config) -> float:
    """The largest difference between embeddings from stored activations and from tokens.

    It is taken at the start, and after one step of the optimizer, which is then undone. Stored activations are those
    of the start, as a run's are.

    Args:
        queries, passages: token ids and masks of B texts each, on the device; passage i is the positive of query i.
        config: learning rates and weight decay of the training.
    """
    encoder, seen = model.encoder, (queries, passages)
    stored = [_stored(encoder, tokens) for tokens in seen]

    def differs() -> float:
        with torch.no_grad():
            pairs = [(encoder(a)["embedding"], encoder(b)["embedding"]) for a, b in zip(stored, seen, strict=True)]
        return max(float((a - b).abs().max().nan_to_num(torch.inf)) for a, b in pairs)

    with _undone(model):
        found = differs()
        optimizer = torch.optim.AdamW(parameter_groups(model, config))
        encoder.train()
        query_BC, passage_BC = (encoder(tokens)["embedding"] for tokens in seen)
        every = torch.ones(len(query_BC), len(passage_BC), dtype=torch.bool, device=query_BC.device)
        contrastive_loss(query_BC, passage_BC, every, model.spec.temperature).mean().backward()
        optimizer.step()
        encoder.eval()
        return max(found, differs())


def _stored(encoder: torch.nn.Module, tokens: Inputs) -> dict[str, Tensor]:
    padding = tokens["attention_mask"]
    keys = text_keys(tokens["input_ids"], padding)
    return {"hidden": encoder(tokens, mode="prefix"), "attention_mask": padding, "text_keys": keys}


@contextmanager
def _undone(model: BaselineRetriever) -> Iterator[None]:
    """Puts parameters, buffers, gradients and random numbers back to what they were before the block."""
    changing = [*model.parameters(), *model.buffers()]
    before = [each.detach().clone() for each in changing]
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            model.encoder.eval()
            with torch.no_grad():
                for each, value in zip(changing, before, strict=True):
                    each.copy_(value)
                    each.grad = None


@contextmanager
def watched(
    model: BaselineRetriever, data: RetrievalData, config: Tier1Config, activations: ActivationStore | None
) -> Iterator[None]:
    """Watches the training of a user's method, in the block; a method of the benchmark is not watched.

    A model that stored activations would give another output reads none: none of its layers then counts as frozen.

    Args:
        data: the training split.
        config: of the training.
        activations: stored activations of the frozen layers; None where the training has none.

    Raises:
        ModelError: at the end, if a frozen parameter or a buffer has changed.
    """
    method, encoder = model.method, model.encoder
    if method is None or method.origin is None:
        yield
        return
    place = f"{place_of(method)}: {method.name}"
    if activations is not None and encoder.prefix_layers and len(data) > 1:
        found = cache_disagreement(model, *_first_texts(model, data, config), config)
        (differs,) = distributed.any_process(found > AGREES)
        if differs:
            encoder.prefix_layers = encoder.pretrained_layers = 0
            text = (
                "%s: its output from stored activations of the frozen layers differs from that from tokens (by %.2g, "
            )
            text += "at the start or after one step), so nothing is stored for it: every text passes all layers"
            logger.warning(text, place, found)
    before = frozen_hashes(encoder)
    yield
    now = frozen_hashes(encoder)
    changed = [name for name in before if now.get(name) != before[name]]
    if changed:
        raise ModelError(
            f"{place}: {changed[0]} is not trained, but training has changed it, and a checkpoint does not hold "
            "that; return it from adapt, or leave it as it is"
        )


def _first_texts(model: BaselineRetriever, data: RetrievalData, config: Tier1Config) -> list[dict[str, Tensor]]:
    """The queries and positives of the first batch, on the device."""
    pairs = TrainingPairs(data, negatives=0, seed=config.seed)
    batch = next(iter(pairs.batches(1, config.batch_size)))
    found = []
    for texts, rows in zip((ListTexts(data.queries), data.corpus), pairs.source_rows(batch), strict=True):
        source = model.source(texts, "document" if found else "query")
        tokens = source.batch(rows[: len(batch.queries)])
        found.append({name: to_device(each, model.device) for name, each in tokens.items()})
    return found
