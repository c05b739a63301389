"""Diagnostics of routing on a split, for queries and documents separately, after every epoch.

    diagnostics = routing_diagnostics(model, config, device, activations)     # None without MAW
    evaluate_retriever(model, validation, config, device, inspect=diagnostics)
    diagnostics.cheap(), diagnostics.full()

    python tier_1.py --diagnostics all        # full after every epoch; best: full for the kept weights; none

`cheap` uses the routers' policies and a few texts at every depth. `full` puts a sample of the queries, and of their
relevant documents, at every depth, ranks the corpus for each, and estimates a router's possible gain
(`maw.evaluation.routing.headroom`). It compares the router's depths with one depth for all, with its depths shuffled
between texts and, on all queries and relevant documents, with those of its own start. By default only the kept
weights get `full`. `compare_with_seeds` is for notebooks.

"At depth d" puts all layers, heads and tokens of a text at depth d. Documents outside the sample, and all texts of the
other side, stay at their greedy depths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from maw.attention.routers import PolicyRouter
from maw.config.tier1_config import Tier1Config
from maw.data.collection import RetrievalData
from maw.encoding.activation_cache import ActivationStore
from maw.evaluation.evaluate import evaluate_retriever
from maw.evaluation.routing.headroom import oracle_null
from maw.evaluation.routing.routed_texts import Facts, RoutedSplit, RoutedTexts
from maw.models.encode import Embeddings
from maw.models.retriever import BaselineRetriever, MAWRetriever
from maw.runtime import distributed
from maw.runtime.devices import replicate
from maw.runtime.profiler import stage

TEXTS_FOR_DISTANCE = 8  # texts of each side, in every epoch


def routing_diagnostics(
    model: BaselineRetriever,
    config: Tier1Config,
    device: torch.device,
    activations: ActivationStore | None = None,
    start: Sequence[PolicyRouter] | None = None,
) -> RoutingDiagnostics | None:
    """Diagnostics of a MAW model; None for other models, for `diagnostics="none"`, and outside the main process."""
    if config.diagnostics == "none" or not isinstance(model, MAWRetriever) or not distributed.is_main():
        return None
    return RoutingDiagnostics(model, config, device, activations, start)


class RoutingDiagnostics:
    """Diagnostics of one model on the split of its last evaluation.

    Pass it to `evaluate_retriever` as `inspect`; it uses the embeddings of that evaluation.

    Args: as `maw.encoding.embedding_cache.Embedder`, and
        start: the routers before training, to compare with; None for no comparison.
    """

    def __init__(
        self,
        model: MAWRetriever,
        config: Tier1Config,
        device: torch.device,
        activations: ActivationStore | None = None,
        start: Sequence[PolicyRouter] | None = None,
    ):
        self.model, self.config, self.device, self.activations = model, config, device, activations
        self.start = start
        self.engine = replicate(model.encoder, config, device)
        self.split: RoutedSplit | None = None
        self._best: RoutedSplit | None = None

    def __call__(self, data: RetrievalData, queries: Embeddings, documents: Embeddings) -> None:
        """Stores the data and embeddings of an evaluation."""
        self.split = RoutedSplit(
            self.model,
            self.engine,
            self.config,
            self.device,
            self.activations,
            data,
            queries.embeddings,
            documents.embeddings,
            self.start,
        )

    def _sides(self) -> Sequence[RoutedTexts]:
        assert self.split is not None, "evaluate first"
        return self.split.sides

    def cheap(self) -> dict[str, Facts]:
        """Cheap diagnostics of "query" and "document"; see `RoutedTexts.policy` and `depth_distance`."""
        return {side.kind: side.policy() | side.distance(TEXTS_FOR_DISTANCE) for side in self._sides()}

    def full(self) -> dict[str, Facts]:
        """Diagnostics of "query" and "document" at every depth; see `RoutedTexts.headroom` and `learnt`."""
        return {
            side.kind: side.distance() | side.headroom() | ({"learnt": side.learnt()} if self.start else {})
            for side in self._sides()
        }

    def after_epoch(self, record: Facts, improved: bool) -> None:
        """Adds the configured diagnostics to an epoch's "val_routing"."""
        with stage("diagnostics"):
            _merge(record["val_routing"], self.cheap())
            if self.config.diagnostics == "all":
                _merge(record["val_routing"], self.full())
        if improved and self.config.diagnostics == "best":
            self._best = self.split
        self.split = None

    @property
    def has_forgotten_best(self) -> bool:
        """Whether `after_training` needs a new evaluation of the best weights, since the training was interrupted."""
        return self.config.diagnostics == "best" and self._best is None

    def after_training(self, best_record: Facts) -> None:
        """Adds full diagnostics to the best epoch's record; the model must have that epoch's weights."""
        best, self._best = self._best, None
        self.split = (best or self.split) if self.config.diagnostics == "best" else None
        if self.split is not None:
            with stage("diagnostics"):
                _merge(best_record["val_routing"], self.full())
        self.split = None


def compare_with_seeds(
    model: MAWRetriever,
    others: Sequence[BaselineRetriever],
    data: RetrievalData | Mapping[str, Any],
    config: Tier1Config,
    device: torch.device | str | None = None,
) -> dict[str, float | int]:
    """Compares an oracle over depths with an oracle over models of different seeds, on the queries of a split.

    See `maw.evaluation.routing.headroom.oracle_null`.

        retriever = lambda name: load_checkpoint(f"logs/{name}")
        seeds = [retriever(f"seed{seed}/checkpoints/pystdlib_full_best") for seed in (1, 2, 3)]
        compare_with_seeds(retriever("maw/checkpoints/pystdlib_maw_best"), seeds, collection.validation, config)

    Args:
        model: the MAW model.
        others: models trained in the same way without routing, from different seeds.
        data: as for `evaluate_retriever`.
        config: as for `evaluate_retriever`.
        device: device that computes; by default the model's.
    """
    device = torch.device(device) if device is not None else model.device
    diagnostics = RoutingDiagnostics(model, config, device)
    evaluate_retriever(model, data, config, device, inspect=diagnostics)
    queries = diagnostics._sides()[0]
    runs = [evaluate_retriever(other, data, config, device).per_query["ndcg_cut_10"] for other in others]
    return oracle_null([run[queries.rows_B] for run in runs], queries.matrix.ndcg_QD, seed=config.seed)


def _merge(record: Facts, found: Mapping[str, Facts]) -> None:
    for side, facts in found.items():
        record[side] |= facts
