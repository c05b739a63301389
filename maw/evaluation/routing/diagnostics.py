"""What routing does on a split, and whether it is worth doing: queries and documents apart, after every epoch.

    diagnostics = routing_diagnostics(model, config, device, activations)     # None without MAW
    evaluate_retriever(model, validation, config, device, inspect=diagnostics)
    diagnostics.cheap(), diagnostics.full()

    python tier_1.py --diagnostics all        # in full after every epoch; best: for the weights that are kept; none

`cheap` is what the routers' policies and a few texts at every depth show. `full` puts every query, and a sample of the
documents relevant to them, at every depth, ranks the corpus for each, and asks `maw.evaluation.routing.headroom` what
a router could gain. On one core the latter takes about a fifth of an epoch of the offline preset, so it is left to
the weights that training keeps unless asked for. `evidence` compares the router with the depth that was best on
validation and with its own picks shuffled between texts, on test queries. `compare_with_seeds` is for a notebook.

"At depth d" puts all layers, heads and tokens of a text at depth d. Documents outside the sample, and all texts of the
other side, stay at their greedy picks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from maw.config.tier1_config import Tier1Config
from maw.data.collection import RetrievalData
from maw.encoding.activation_cache import ActivationStore
from maw.evaluation.evaluate import evaluate_retriever
from maw.evaluation.routing.headroom import oracle_null
from maw.evaluation.routing.split_sides import Facts, Side, SplitSides
from maw.models.encode import Embeddings
from maw.models.retriever import BaselineRetriever, MAWRetriever
from maw.runtime import distributed
from maw.runtime.devices import replicate
from maw.runtime.profiler import stage

TEXTS_FOR_DISTANCE = 32  # of each side, in every epoch


def routing_diagnostics(
    model: BaselineRetriever,
    config: Tier1Config,
    device: torch.device,
    activations: ActivationStore | None = None,
) -> RoutingDiagnostics | None:
    """Diagnostics of a model; None if it does not route, or the configuration wants none.

    Of several processes the main one alone has them, and the others wait for it.
    """
    if config.diagnostics == "none" or not isinstance(model, MAWRetriever) or not distributed.is_main():
        return None
    return RoutingDiagnostics(model, config, device, activations)


class RoutingDiagnostics:
    """Diagnostics of one model, on the split that it was evaluated on last.

    Give it to `evaluate_retriever` as `inspect`: it works with the embeddings made there, so that no corpus is encoded
    for it.

    Args: as `maw.encoding.embedding_cache.Embedder`.
    """

    def __init__(
        self,
        model: MAWRetriever,
        config: Tier1Config,
        device: torch.device,
        activations: ActivationStore | None = None,
    ):
        self.model, self.config, self.device, self.activations = model, config, device, activations
        self.engine = replicate(model.encoder, config, device)
        self.split: SplitSides | None = None
        self._best: SplitSides | None = None

    def __call__(self, data: RetrievalData, queries: Embeddings, documents: Embeddings) -> None:
        """Takes note of an evaluation."""
        self.split = SplitSides(
            self.model,
            self.engine,
            self.config,
            self.device,
            self.activations,
            data,
            queries.embeddings,
            documents.embeddings,
        )

    def _sides(self) -> Sequence[Side]:
        assert self.split is not None, "evaluate first"
        return self.split.sides

    def cheap(self) -> dict[str, Facts]:
        """What little computation shows, for "query" and "document"; see `Side.policy` and `depth_distance`."""
        return {side.kind: side.policy() | side.distance(TEXTS_FOR_DISTANCE) for side in self._sides()}

    def full(self) -> dict[str, Facts]:
        """What the texts at every depth show, for "query" and "document"; see `Side.headroom`."""
        return {side.kind: side.distance() | side.headroom() for side in self._sides()}

    def after_epoch(self, record: Facts, improved: bool) -> None:
        """Adds to an epoch's "val_routing" what the configuration wants."""
        with stage("diagnostics"):
            _merge(record["val_routing"], self.cheap())
            if self.config.diagnostics == "all":
                _merge(record["val_routing"], self.full())
        if improved and self.config.diagnostics == "best":
            self._best = self.split
        self.split = None

    @property
    def has_forgotten_best(self) -> bool:
        """Whether `after_training` wants the best weights evaluated again: the training was interrupted since."""
        return self.config.diagnostics == "best" and self._best is None

    def after_training(self, best_record: Facts) -> None:
        """Adds to the record of the best epoch, whose weights the model must have again."""
        best, self._best = self._best, None
        self.split = (best or self.split) if self.config.diagnostics == "best" else None
        if self.split is not None:
            with stage("diagnostics"):
                _merge(best_record["val_routing"], self.full())
        self.split = None

    def evidence(self, best_record: Facts) -> dict[str, Facts]:
        """Tests for "query" and "document" on the split seen last: the test split, once; see `Side.evidence`.

        Args:
            best_record: of the epoch that was kept. The depth to beat is the one that was best on validation in it.
        """
        best_depth = {side.kind: best_record["val_routing"][side.kind]["best_depth"] for side in self._sides()}
        with stage("diagnostics"):
            found = {side.kind: side.evidence(best_depth[side.kind]) for side in self._sides()}
        self.split = None
        return found


def compare_with_seeds(
    model: MAWRetriever,
    others: Sequence[BaselineRetriever],
    data: RetrievalData | Mapping[str, Any],
    config: Tier1Config,
    device: torch.device | str | None = None,
) -> dict[str, float | int]:
    """Compares an oracle over depths with an oracle over models of other seeds, on the queries of a split.

    See `maw.evaluation.routing.headroom.oracle_null`.

        retriever = lambda name: load_checkpoint(f"logs/{name}")
        seeds = [retriever(f"seed{seed}/checkpoints/pystdlib_full_best") for seed in (1, 2, 3)]
        compare_with_seeds(retriever("maw/checkpoints/pystdlib_maw_best"), seeds, collection.validation, config)

    Args:
        model: the MAW model.
        others: models trained alike without routing, from different seeds.
        data: as for `evaluate_retriever`.
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
