"""All methods on one dataset, from loading it to its results.

Methods run one after the other on the same batches and the same corpus. Hard negatives are mined first, once for all
methods. Then each method is tuned, trained and tested (`maw.experiment.method_run`). After each training the test
queries are used once. The smallest difference that the tests detect is shown before any test result
(`maw.evaluation.confirmatory`).
"""

from __future__ import annotations

from collections.abc import Collection as Collected
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from maw.config.methods import in_order, trained_methods
from maw.config.tier1_config import Tier1Config, cache_folder
from maw.data.collection import Collection
from maw.data.dataset_table import results_name
from maw.data.folds import Folds, with_fold_facts
from maw.data.registry import load_collection, load_folds
from maw.encoding.activation_cache import ActivationStore
from maw.errors import ConfigError, DataError
from maw.experiment.dataset_report import STAMP, report_dataset
from maw.experiment.dataset_result import Outcome
from maw.experiment.dataset_state import DatasetState
from maw.experiment.method_run import MethodRunner
from maw.experiment.method_trainer import MethodTrainer
from maw.experiment.pretrained_check import checked_retriever
from maw.models.pretrained import ModelSpec
from maw.report import layout
from maw.runtime import console, distributed
from maw.runtime.profiler import profiling, stage
from maw.training.prepare import prepare_training


def run_dataset(
    name: str,
    config: Tier1Config,
    spec: ModelSpec,
    device: torch.device,
    state: DatasetState | None,
    others: Collected[str] = (),
) -> tuple[dict[str, Any], Path | None]:
    """Loads one dataset and runs all methods on it.

    Args:
        state: resumable state of the dataset; None to save none.
        others: names of the results that the run has already.

    Returns:
        The content of dataset.json, and the dataset's folder; None for the folder in a process that does not write.

    Raises:
        ConfigError: another dataset of the run has the same result name.
    """
    with console.at(dataset=results_name(name)), profiling(device, wanted=config.profile):
        with stage("loading data"), distributed.main_first():
            data = load_folds(name, config) if config.folds else load_collection(name, config)
        run = DatasetRun(data, config, spec, device, state)
        if run.collection.name in others:
            taken = run.collection.name
            raise ConfigError([f"datasets: {name} and another one are both called {taken}; rename one"])
        return run.run(), run.folder


class DatasetRun:
    """All methods on one dataset, loaded and sampled, or on its folds; other arguments as `run_dataset`."""

    def __init__(
        self,
        data: Collection | Folds,
        config: Tier1Config,
        spec: ModelSpec,
        device: torch.device,
        state: DatasetState | None = None,
    ):
        self.collection = data.whole if isinstance(data, Folds) else data
        self.collections = list(data.collections) if isinstance(data, Folds) else [data]
        self.config, self.spec, self.device, self.state = config, spec, device, state
        self.folder: Path | None = None

    def run(self) -> dict[str, Any]:
        """Runs the methods, writes the dataset's folder and shows its summary; returns the content of dataset.json."""
        started = self._begin()
        limit_gb = self.config.prefix_cache_gb / distributed.this_process().local_count  # each process has a store
        with ActivationStore(cache_folder(self.config) / "activations", limit_gb) as activations:
            if self.state:
                self.state.track_activations(activations)
            with stage("negatives"), distributed.main_first():
                self._prepare_training(activations)
            if self.state:
                self.state.check_data(self.collections or [self.collection])
            outcome = Outcome(self.collection, self.config, self.spec, self.device)
            runner = MethodRunner(outcome, self.collections, self.state)
            for method in in_order(self.config.methods):
                runner.run(MethodTrainer(method, self.config, self.device, activations))
        if not distributed.is_main():  # the main process tests and writes
            return {"dataset": self.collection.name}
        result, self.folder = report_dataset(outcome, started, self.state)
        runner.report_scores()
        if self.state:
            self.state.close()
        return result

    def _begin(self) -> datetime:
        """The time when the dataset was started, in the interrupted run if this one resumes it."""
        now = datetime.now()
        if self.state is None:
            return now
        self.state.check_model(self.config)
        folder = layout.free_folder(self.config.log_dir, self.collection.name, now.strftime(STAMP))
        return self.state.begin(folder.name, now)

    def _prepare_training(self, activations: ActivationStore) -> None:
        """Checks the pretrained retriever, and mines the hard negatives, the same for every trained method."""
        retriever = checked_retriever(self.collection, self.config, self.device)
        if not trained_methods(self.config):
            return
        dense = self.config.negative_source == "dense" and self.config.num_negatives
        self.collections = [
            prepare_training(each, self.config, retriever if dense else None, activations) for each in self.collections
        ]
        for each in self.collections:
            if len(each.train) == 1 and not any(each.train.negatives.values()):
                raise DataError(
                    f"{each.name}: there is only one training query, and it has no negatives; add more, or run with "
                    "--methods zero_shot"
                )
        folds = self.config.folds
        self.collection = with_fold_facts(self.collection, self.collections) if folds else self.collections[0]
