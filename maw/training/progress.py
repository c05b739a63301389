"""How far a training is, and how it is saved so that it can go on: `maw.training.trainer` trains,
`maw.training.checkpoint_writer` writes.

progress = Progress(model, trainer, writer)     # puts both where an interrupted training was left
progress.after_step()                           # saves if it is time, ends the run if a signal asks for it
progress.add(record, result, improved)          # after an epoch
"""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from maw.evaluation.metrics import EvaluationResult
from maw.models.retriever import BaselineRetriever
from maw.runtime import distributed, signals, trackers
from maw.runtime.energy import EnergyMeter
from maw.training.state import State

if TYPE_CHECKING:
    from maw.training.trainer import Trainer

logger = logging.getLogger(__name__)

VALIDATION_METRIC = "ndcg_cut_10"


class History(list[dict[str, Any]]):
    """One record for each epoch, in their order: a plain list, to which the best epoch's validation is attached.

    Attributes:
        validation: what the best epoch's weights, which the model is left with, scored on the validation queries, one
            value a query; None before the first epoch has ended.
        seconds_before: that it had taken when it was interrupted, up to its last save; 0 if it was not.
    """

    validation: EvaluationResult | None = None
    seconds_before: float = 0.0

    @property
    def best(self) -> dict[str, Any]:
        """The record of the best epoch on validation, the first of equals."""
        return max(self, key=lambda record: (record[f"val_{VALIDATION_METRIC}"], -record["epoch"]))


@dataclass(frozen=True)
class Saved:
    """A training at one moment, as it is saved.

    Attributes:
        weights: of what is trained.
        state: all else that going on needs, JSON-able but for its tensors; see `Progress`.
    """

    weights: Mapping[str, Tensor]
    state: State

    @property
    def epoch(self) -> int:
        """The epoch, from 1, that these weights are of."""
        return self.state["epoch"]

    @property
    def step(self) -> int:
        """Batches trained on."""
        return self.state["trainer"]["step"]

    @property
    def history(self) -> History:
        """The records of the epochs that are over."""
        return History(self.state["history"])

    @property
    def best_val_metric(self) -> float | None:
        """Of the best of these epochs."""
        return self.history.best[f"val_{VALIDATION_METRIC}"] if self.history else None


class CheckpointWriter(Protocol):
    """What saves a training; `maw.training.checkpoint_writer` has the one that runs use."""

    def load(self) -> Saved | None:
        """What to go on from."""

    def due(self) -> bool:
        """Whether to save at this step."""

    def save(
        self, model: BaselineRetriever, saved: Saved, *, improved: bool = False, epoch_over: bool = False
    ) -> None:
        """Saves; after an epoch told whether it is the best so far."""


class Progress:
    """How far a training is: its epochs so far, the weights of the best, and how they are saved.

    Args:
        model: what is trained.
        trainer: what trains it; both are put where the writer's training was left, if it has one.
        writer: None to save nothing.
        meter: measures the energy, which is saved with the training; None to measure none.
    """

    def __init__(
        self,
        model: BaselineRetriever,
        trainer: Trainer,
        writer: CheckpointWriter | None,
        meter: EnergyMeter | None = None,
    ):
        self.model, self.trainer, self.writer, self.meter = model, trainer, writer, meter
        self.history = History()
        self.best_weights: dict[str, Tensor] = {}
        self._started = time.perf_counter()
        with distributed.main_first():
            saved = writer.load() if writer else None
        if saved is not None:
            self._restore(saved)
            logger.info("%s: goes on in epoch %d, after step %d", trainer.label, trainer.epoch, saved.step)

    def judge(self, record: dict[str, Any], result: EvaluationResult) -> bool:
        """Adds to an epoch's record what it scored; whether it is the best so far."""
        record[f"val_{VALIDATION_METRIC}"] = result[VALIDATION_METRIC]
        if "routing" in result.facts:
            record["val_routing"] = result.facts["routing"]
        best = self.history.best[f"val_{VALIDATION_METRIC}"] if self.history else -math.inf
        return result[VALIDATION_METRIC] > best

    def add(self, record: dict[str, Any], result: EvaluationResult, improved: bool) -> None:
        """Takes in an epoch that is over, and saves."""
        self.history.append(record)
        if improved:
            self.best_weights = self.model.trained_state()
            self.history.validation, result.run = result, None  # the ranking itself is large, and not needed
        self.save(improved=improved, epoch_over=True)

    def after_step(self) -> None:
        """Saves after a step if it is time, and ends the run if that is asked for; not before it is saved."""
        asked = self.writer is None or self.writer.due()
        due, stop = distributed.any_process(asked, signals.stop_asked())  # several processes save, and stop, together
        if due:
            self.save()
            signals.check()
        if stop and distributed.is_distributed():
            raise signals.Stopped(signal.SIGTERM)

    @contextlib.contextmanager
    def saved_when_stopped(self) -> Iterator[None]:
        """A block in which nothing is trained, so that the training can be saved as it is if a signal ends it."""
        try:
            signals.check()
            yield
        except KeyboardInterrupt:
            if not distributed.is_distributed():  # the others are elsewhere, and a save takes all
                self.save()
            raise

    def save(self, *, improved: bool = False, epoch_over: bool = False) -> None:
        """Saves the training as it is."""
        if self.writer is not None:
            with signals.held_back():
                self.writer.save(self.model, self._saved(epoch_over), improved=improved, epoch_over=epoch_over)
        trackers.flush()

    def _saved(self, epoch_over: bool) -> Saved:
        validation = self.history.validation
        best_is_here = epoch_over and self.history.best is self.history[-1]
        state = {
            "epoch": self.trainer.epoch,
            "trainer": self.trainer.state_dict(epoch_over),
            "history": list(self.history),
            "validation": None if validation is None else _evaluation_state(validation),
            "best_weights": None if best_is_here else self.best_weights,
            "seconds": self.history.seconds_before + time.perf_counter() - self._started,
            "joules": self.meter.joules() if self.meter else {},
        }
        return Saved(self.model.trained_state(), state)

    def _restore(self, saved: Saved) -> None:
        state = saved.state
        self.model.load_trained_state(saved.weights)
        self.trainer.load_state_dict(state["trainer"])
        self.history.extend(state["history"])
        self.history.seconds_before = state["seconds"]
        if self.meter:
            self.meter.before = state.get("joules", {})
        if state["validation"] is not None:
            self.history.validation = _evaluation(state["validation"])
        self.best_weights = state["best_weights"]
        if self.best_weights is None:
            self.best_weights = {name: saved.weights[name] for name in self.model.trained_state()}


def _evaluation_state(result: EvaluationResult) -> State:
    per_query = {name: torch.from_numpy(values) for name, values in result.per_query.items()}
    return {"query_ids": result.query_ids, "per_query": per_query, "facts": result.facts}


def _evaluation(state: State) -> EvaluationResult:
    per_query = {name: values.numpy() for name, values in state["per_query"].items()}
    return EvaluationResult(state["query_ids"], per_query, facts=state["facts"])
