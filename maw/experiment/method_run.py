"""All trainings of one method on one dataset: each fold is tuned, then each seed trained and tested.

    runner = MethodRunner(outcome, collections, state)
    runner.run(MethodTrainer(find_method("lora"), config, device))       # the result is outcome.records["lora"]

A finished training is read back from the run's state. An interrupted training continues from its last checkpoint
(`maw.experiment.dataset_state`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from maw.config.tier1_config import RESULT_NEUTRAL
from maw.data.collection import Collection
from maw.experiment.aggregate import MethodResult, combine
from maw.experiment.dataset_result import Outcome
from maw.experiment.dataset_state import DatasetState
from maw.experiment.method_trainer import MethodTrainer, TrainingResult
from maw.experiment.tuning import Trial, tune
from maw.report.text import summary, trainings
from maw.report.text.router import router_lines
from maw.runtime import console, signals, trackers
from maw.runtime.profiler import stage
from maw.runtime.run_log import log_event
from maw.training.checkpoint_writer import CheckpointWriter, checkpoints_folder, training_name

logger = logging.getLogger(__name__)


class MethodRunner:
    """Runs methods on one dataset.

    Args:
        collections: one for each fold, or the dataset alone.
        state: resumable state of the dataset; None to save none.
    """

    def __init__(self, outcome: Outcome, collections: Sequence[Collection], state: DatasetState | None):
        self.outcome, self.collections, self.state = outcome, collections, state
        self.config, self.dataset = outcome.config, outcome.collection.name
        self._scores: dict[str, tuple[Mapping[str, float], int]] = {}

    def run(self, trainer: MethodTrainer) -> None:
        """Runs a method with every seed on every fold; one that is not trained runs once, on all test queries."""
        method = trainer.method
        console.show(summary.method_heading(method, self.outcome.collection.title))
        with console.at(method=method.name), stage(method.name):
            self.outcome.add(method, *self._train_and_test(trainer))
        record = self.outcome.records[method.name]
        console.show("\n".join([summary.method_done(record), *router_lines(record)]))
        log_event(logger, "method", dataset=self.dataset, method=method.name, seconds=record["runtime_seconds"])

    def report_scores(self) -> None:
        """Sends the test metrics of all trainings to the experiment tracker; called once, after the dataset."""
        for name, (metrics, steps) in self._scores.items():
            trackers.results(name, metrics, steps)

    def _train_and_test(self, trainer: MethodTrainer) -> tuple[MethodResult, list[dict[str, Any]]]:
        """The combined result, and a record of each learning rate search."""
        config, results, searches = self.config, [], []
        if not trainer.method.trained:
            return combine([self._train(trainer, self.outcome.collection, config.seed, None, None)]), []
        for number, collection in enumerate(self.collections, start=1):
            fold = number if config.folds else None
            rates = None
            if config.tune:
                with console.at(fold=fold):
                    rates, account = self._tune(trainer, collection, fold)
                searches.append(account)
            for seed in range(config.seed, config.seed + config.seeds):
                with console.at(fold=fold, seed=seed if config.seeds > 1 else None):
                    results.append(self._train(trainer, collection, seed, rates, fold))
                if config.seeds > 1 or config.folds:
                    console.show(trainings.run_line(results[-1].record))
        return combine(results), searches

    def _train(
        self,
        trainer: MethodTrainer,
        collection: Collection,
        seed: int,
        rates: dict[str, float] | None,
        fold: int | None,
    ) -> TrainingResult:
        """One training: read back if finished, else continued from its checkpoint or started."""
        state, method = self.state, trainer.method.name
        name = training_name(self.config, self.dataset, method, seed, fold)
        result = state.read_run(name) if state else None
        if state is None:
            folder = checkpoints_folder(self.config)
            writer = CheckpointWriter(self.config, folder, name, dataset=self.dataset, method=method)
        else:
            writer = state.writer(name, dataset=self.dataset, method=method)
        if result is not None:
            logger.info("%s: finished before the run was interrupted", name)
        else:
            settings = trainer.configure(seed, rates).to_dict()
            settings = {key: each for key, each in settings.items() if key not in RESULT_NEUTRAL}
            with trackers.training(name, settings | {"dataset": self.dataset, "method": method, "fold": fold}):
                result = trainer.run(collection, seed, rates, fold=fold, writer=writer)
            if state is not None:
                with signals.held_back():
                    state.write_run(name, result)
                signals.check()
        writer.finish()
        self._scores[name] = result.record["metrics"], result.record.get("steps", 0)
        return result

    def _tune(
        self, trainer: MethodTrainer, collection: Collection, fold: int | None
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """The rates that a search chose, and the search's record."""

        def show(trial: Trial, trials: int, best: bool) -> None:
            console.show(trainings.trial_line(trial.record, trials, best))

        if fold is not None:
            console.show(f"   fold {fold}:")
        config, log = self.config, None
        if self.state:
            name = training_name(config, self.dataset, trainer.method.name, config.seed, fold)
            log = self.state.trials(name, dataset=self.dataset, method=trainer.method.name)
        train, validation = collection.train, collection.validation
        tuned = tune(trainer, train, validation, collection.name, config.tune, config.seed, show, log)
        return tuned.rates, ({} if fold is None else {"fold": fold}) | tuned.record
