"""Runs the datasets of a run, one after the other or in parallel processes."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch

from maw.config.methods import in_order
from maw.config.tier1_config import Tier1Config
from maw.experiment.config_checks import validate
from maw.experiment.dataset_run import run_dataset
from maw.experiment.dataset_state import DatasetState
from maw.experiment.method_trainer import MethodTrainer
from maw.experiment.parallel_datasets import run_side_by_side, shares
from maw.experiment.run_state import RunState
from maw.models.pretrained import ModelSpec
from maw.report.rebuild import write_reports
from maw.runtime import console, distributed, signals, trackers
from maw.runtime.devices import clear_cache, pick_device
from maw.runtime.precision import fixed_precision, numerics
from maw.storage.run_record import read_run
from maw.training.method_checks import check_method

logger = logging.getLogger(__name__)


def run_datasets(config: Tier1Config, spec: ModelSpec, device: torch.device, state: RunState) -> dict[str, Any]:
    """Runs all datasets of a run, and writes the run's reports after each; dataset -> its dataset.json's content."""
    _check_methods(config, device)
    if config.parallel_datasets:
        parts = shares(config, device)
        if len(parts) > 1:
            return run_side_by_side(config, state, parts)
        logger.info("datasets run one after the other: there is only one dataset, one GPU or one thread")
    results: dict[str, Any] = {}
    folders: list[Path] = []
    for number, name in enumerate(config.datasets, start=1):
        done = DatasetState(state, number, config)
        result = done.results()
        if result is not None:
            folders.append(done.results_folder)
            console.show(f"\n{result['dataset']}: finished before the run was interrupted")
        else:
            result, folder = run_dataset(name, config, spec, device, done, results)
            folders += [folder] if folder else []
        results[result["dataset"]] = result
        if distributed.is_main():
            write_reports(config.log_dir, folders, drawn=folders[:-1])
        clear_cache(config)
        signals.check()
    return results


def _check_methods(config: Tier1Config, device: torch.device) -> None:
    """Tries each user's method on two texts, before minutes of other methods.

    Raises:
        ModelError: a method has a mistake.
    """
    for method in in_order(config.methods):
        if method.origin is not None:
            trainer = MethodTrainer(method, config, device)
            check_method(method, partial(trainer.build, trainer.configure(config.seed)))


def run_dataset_of(config: Tier1Config, number: int, *, resumed: bool) -> None:
    """Runs one dataset, counted from 1, for the parent process, which holds the lock on the run's folder."""
    with numerics(tf32=config.tf32, deterministic=config.deterministic):
        spec, device = validate(config), pick_device(config)
        state = RunState(Path(config.log_dir), read_run(Path(config.log_dir)), resumed)
        tracked = trackers.reporting(config.report_to, config.log_dir, state.id, state.record["started"])
        with fixed_precision(device, state.record["precision"]), tracked:
            done = DatasetState(state, number, config)
            run_dataset(config.datasets[number - 1], config, spec, device, done)
