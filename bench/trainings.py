"""Trainings for the research log, through the benchmark's own Python interface, on validation queries and shared data.

with Bench() as bench:
    values, found = bench.train(Run("LoRA", "lora"))    # nDCG@10 by query, and what is kept of the rest
    model, history = bench.fit(Run("LoRA", "lora"), seed=1)
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bench.common import commit, machine
from bench.experiments import BASE, Run
from maw.config.methods import find_method
from maw.config.tier1_config import Tier1Config, cache_folder
from maw.data.collection import Collection
from maw.data.registry import load_collection
from maw.encoding.activation_cache import ActivationStore
from maw.experiment.method_trainer import MethodTrainer
from maw.models.retriever import BaselineRetriever
from maw.runtime.devices import pick_device
from maw.training.optimizer import rates
from maw.training.prepare import prepare_training
from maw.training.state import History

NDCG = "ndcg_cut_10"
ROUTING = (
    "effective_depths",
    "top_share",
    "policy_entropy",
    "text_depth_mutual_information",
    "depth_distance",
    "same_output_share",
    "best_fixed",
    "greedy",
    "shuffled",
    "oracle",
    "learnable_headroom",
    "learnable_headroom_error",
    "router_headroom",
    "router_headroom_error",
    "router_headroom_by_reward",
)
"""What is kept of "val_routing" for each side."""
TRAINING = ("train_loss", "router_loss", "reward_mean", "reward_std", "zero_variance_share", "clip_fraction", "kl")
"""What is kept of the best epoch's own record, where it is there."""

DATA_SETTINGS = ("train_samples", "num_negatives", "negative_source", "hard_negative_ratio")
"""Settings of which the training data depend, where experiments differ in them."""

Result = dict[str, Any]


class Bench:
    """The data and the activations of the frozen layers that all runs share.

    Use as a context manager.
    """

    def __init__(self) -> None:
        config = configuration(Run("", "lora"))
        self.device = pick_device(config)
        self.activations = ActivationStore(cache_folder(config) / "activations", config.prefix_cache_gb)
        self._collections: dict[tuple[Any, ...], Collection] = {}

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self.activations.close()

    def collection(self, config: Tier1Config) -> Collection:
        """The data, its negatives chosen; the same whatever the seed of a training is."""
        config = replace(config, seed=BASE["seed"])
        key = tuple(getattr(config, name) for name in DATA_SETTINGS)
        if key not in self._collections:
            (dataset,) = config.datasets
            loaded = load_collection(dataset, config)
            self._collections[key] = prepare_training(loaded, config, None, self.activations)
        return self._collections[key]

    def train(self, run: Run) -> tuple[np.ndarray, Result]:
        """A run: nDCG@10 of every validation query with the weights of the best epoch, and what is kept.

        With several seeds both are means over them.
        """
        trained = [self._train(run, seed) for seed in run.seeds]
        values = np.mean([per_query for per_query, _ in trained], axis=0)
        found = mean_of([each for _, each in trained])
        found["seconds"] = round(sum(each["seconds"] for _, each in trained), 1)
        return values, {
            "label": run.label,
            "method": run.method,
            "settings": dict(run.settings),
            "seeds": list(run.seeds),
            "commit": commit(),
            "machine": machine(),
            "queries": len(values),
            "by_seed": [each[NDCG] for _, each in trained],
        } | found

    def fit(self, run: Run, seed: int) -> tuple[BaselineRetriever, History]:
        """One training: the model with the weights of its best epoch, and the history."""
        config = configuration(run)
        data = self.collection(config)
        arm = MethodTrainer(find_method(run.method), config, self.device, self.activations)
        model = arm.build(arm.configure(seed))
        return model, arm.train(model, data.train, data.validation, data.name)

    def _train(self, run: Run, seed: int) -> tuple[np.ndarray, Result]:
        started = time.perf_counter()
        model, history = self.fit(run, seed)
        best = history.best
        routing = best.get("val_routing", {})
        return history.validation.per_query[NDCG], {
            NDCG: best[f"val_{NDCG}"],
            "by_epoch": [record[f"val_{NDCG}"] for record in history],
            "best_epoch": best["epoch"],
            "trained_parameters": model.trained_parameters,
            "rates": rates(model, model.config),
            "training": {key: best[key] for key in TRAINING if key in best},
            "routing": {side: {key: facts[key] for key in ROUTING if key in facts} for side, facts in routing.items()},
            "seconds": time.perf_counter() - started,
        }


def mean_of(values: Sequence[Any]) -> Any:
    """The mean of numbers, through dictionaries and lists that are alike; what is the same for all stays as it is."""
    first = values[0]
    if all(each == first for each in values):
        return first
    if isinstance(first, Mapping):
        return {key: mean_of([each[key] for each in values]) for key in first}
    if isinstance(first, list):
        return [mean_of(list(each)) for each in zip(*values, strict=True)]
    return None if None in values else float(np.mean(values))


def configuration(run: Run) -> Tier1Config:
    """A run's configuration: `BASE` and its own settings."""
    return Tier1Config.from_dict({**BASE, **run.settings, "methods": ["zero_shot", run.method]})
