"""Epoch history and best weights of one training; saving and resuming it.

    progress = Progress(model, trainer, writer)     # puts model and trainer where an interrupted training stopped
    progress.after_step()                           # saves if it is time, ends the run if a signal asks for it
    progress.add(record, result, improved)          # after an epoch

`maw.training.trainer` trains, `maw.training.checkpoint_writer` writes.
"""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import time
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from maw.evaluation.metrics import EvaluationResult
from maw.models.retriever import BaselineRetriever
from maw.runtime import distributed, signals, trackers
from maw.runtime.energy import EnergyMeter
from maw.training.checkpoint_writer import CheckpointWriter
from maw.training.state import VALIDATION_METRIC, History, Saved, evaluation_state, load_evaluation
from maw.training.trainer import Trainer

logger = logging.getLogger(__name__)


class Progress:
    """History and best weights of one training, and when they are saved.

    Args:
        trainer: trains it. If the writer has a saved training, model and trainer are put where that stopped.
        writer: saves the training; None saves nothing.
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
        """Adds the validation scores to an epoch's record; returns whether they are the best so far."""
        record[f"val_{VALIDATION_METRIC}"] = result[VALIDATION_METRIC]
        if "routing" in result.facts:
            record["val_routing"] = result.facts["routing"]
        best = self.history.best[f"val_{VALIDATION_METRIC}"] if self.history else -math.inf
        return result[VALIDATION_METRIC] > best

    def add(self, record: dict[str, Any], result: EvaluationResult, improved: bool) -> None:
        """Adds a finished epoch to the history, tells it to the experiment tracker, and saves."""
        trackers.log_epoch(self.trainer.step, record)
        self.history.append(record)
        if improved:
            self.best_weights = self.model.trained_state()
            self.history.validation, result.run = result, None  # the ranking is large, and nothing needs it
        self.save(improved=improved, epoch_over=True)

    def after_step(self) -> None:
        """Saves after a step if it is time. If a signal asks for the end of the run, saves first, then ends it."""
        asked = self.writer is None or self.writer.due()
        due, stop = distributed.any_process(asked, signals.stop_asked())  # several processes save, and stop, together
        if due:
            self.save()
            signals.check()
        if stop and distributed.is_distributed():
            raise signals.Stopped(signal.SIGTERM)

    @contextlib.contextmanager
    def saved_when_stopped(self) -> Iterator[None]:
        """Saves if a signal arrives inside the block; the block must not train."""
        try:
            signals.check()
            yield
        except KeyboardInterrupt:
            if not distributed.is_distributed():  # a save needs all processes, and the others are elsewhere
                self.save()
            raise

    def save(self, *, improved: bool = False, epoch_over: bool = False) -> None:
        """Saves the training as it is now."""
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
            "validation": None if validation is None else evaluation_state(validation),
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
            self.history.validation = load_evaluation(state["validation"])
        self.best_weights = state["best_weights"]
        if self.best_weights is None:
            self.best_weights = {
                name: saved.weights[name] for name in self.model.trained_state() if name in saved.weights
            }
