"""One training of a method: one seed, one training split, measured on one test split.

    trainer = MethodTrainer(find_method("lora"), config, device, activations)
    run = trainer.run(collection, seed=43, rates={"learning_rate": 1e-3})
    run.evaluation["ndcg_cut_10"], run.record["training_history"]

`maw.config.methods` has the settings and default learning rate of each method, `maw.training.trainer` the training
loop. `train` gets no test data, so tuning (`maw.experiment.tuning`) cannot use any. The seed of a training decides
initialisation, data order, dropout and routing; `config.seed` alone decides queries, passages, folds and negatives.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from maw.config.method_files import mistakes_of
from maw.config.methods import Method
from maw.config.tier1_config import Tier1Config
from maw.data.collection import Collection, RetrievalData
from maw.encoding.activation_cache import ActivationStore
from maw.errors import error_context
from maw.evaluation.evaluate import evaluate_retriever
from maw.evaluation.metrics import EvaluationResult
from maw.evaluation.routing.attention_example import attention_example
from maw.models.retriever import BaselineRetriever
from maw.runtime.devices import used_gpus
from maw.runtime.energy import EnergyMeter
from maw.runtime.profiler import stage, watch
from maw.training.checkpoint import RETRIEVERS
from maw.training.checkpoint_writer import CheckpointWriter
from maw.training.method_checks import watched
from maw.training.optimizer import rates, with_rates
from maw.training.state import VALIDATION_METRIC, History
from maw.training.train import train_retriever


@dataclass(frozen=True)
class TrainingResult:
    """The result of one training.

    Attributes:
        seed: the training's seed.
        fold: number of the test fold from 1; None without folds.
        record: JSON-able metrics and facts; if the method is trained also rates, history, steps and seconds.
        evaluation: test queries.
        validation: validation queries at the best epoch; None if the method is not trained.
        attention: attention of one text at each depth (`maw.evaluation.routing.attention_example`); None without
            depths.
    """

    seed: int
    fold: int | None
    record: dict[str, Any]
    evaluation: EvaluationResult
    validation: EvaluationResult | None
    attention: dict[str, Any] | None = None


class MethodTrainer:
    """A method ready to run on a dataset.

    Args:
        activations: store of the frozen layers' output, shared by all methods.
    """

    def __init__(
        self, method: Method, config: Tier1Config, device: torch.device, activations: ActivationStore | None = None
    ):
        self.method, self.device, self.activations = method, device, activations
        rate = config.learning_rate if config.learning_rate is not None else method.learning_rate
        # One training's configuration: seeds, folds and trials are the benchmark's.
        self.config = replace(method.configure(config), learning_rate=rate, tune=0, seeds=1, folds=0)

    def metered(self) -> EnergyMeter:
        """A meter of the energy used inside its block."""
        return EnergyMeter(used_gpus(self.config, self.device))

    def configure(self, seed: int, rates: Mapping[str, float] | None = None) -> Tier1Config:
        """The configuration of one training."""
        return with_rates(replace(self.config, seed=seed), rates or {})

    def build(self, config: Tier1Config) -> BaselineRetriever:
        """The model, untrained, on the device."""
        with stage("loading model"):
            model = RETRIEVERS[self.method.retriever](config, self.method).to(self.device)
        watch(model.encoder)
        return model

    def default_rates(self, seed: int) -> dict[str, float]:
        """The default learning rates that tuning varies, by setting."""
        config = self.configure(seed)
        found = rates(self.build(config), config)
        return {name: rate for name, rate in found.items() if self.method.tuned is None or name in self.method.tuned}

    def train(
        self,
        model: BaselineRetriever,
        train: RetrievalData,
        validation: RetrievalData,
        dataset: str,
        writer: CheckpointWriter | None = None,
        meter: EnergyMeter | None = None,
    ) -> History:
        """Trains a model from `build`, which then has the weights of its best epoch.

        Args: as `train_retriever`.

        Raises:
            NotFiniteError: the training diverged.
        """
        watching = watched(model, train, model.config, self.activations)
        with stage("training"), mistakes_of(self.method), watching:
            return train_retriever(
                model,
                train,
                validation,
                model.config,
                self.device,
                dataset,
                self.method.name,
                activations=self.activations,
                writer=writer,
                meter=meter,
            )

    def run(
        self,
        collection: Collection,
        seed: int,
        rates: Mapping[str, float] | None = None,
        *,
        fold: int | None = None,
        writer: CheckpointWriter | None = None,
    ) -> TrainingResult:
        """Trains the model, if the method is trained, and evaluates it on the test queries.

        Args:
            rates: learning rates by setting; the method's defaults if None.
            fold: for the record.
            writer: writes checkpoints and has the one of an interrupted training; None to write none.
        """
        with self.metered() as meter:
            started = time.perf_counter()
            model = self.build(self.configure(seed, rates))
            example = attention_example(model, collection.validation)
            record: dict[str, Any] = {"seed": seed, **({} if fold is None else {"fold": fold})}
            history = None
            if self.method.trained:
                history = self.train(model, collection.train, collection.validation, collection.name, writer, meter)
                record |= training_facts(model, history)
            trained, before = time.perf_counter(), history.seconds_before if history else 0.0
            training_joules = meter.joules()
            with stage("evaluation"), mistakes_of(self.method), error_context(f"{collection.name} {self.method.name}"):
                evaluation = evaluate_retriever(
                    model, collection.test, model.config, self.device, "test", activations=self.activations
                )
            finished = time.perf_counter()
            record |= {
                "trained_parameters": model.trained_parameters if self.method.trained else 0,
                "metrics": dict(evaluation),
                "evaluation": evaluation.facts,
                "training_seconds": before + trained - started if self.method.trained else 0.0,
                "evaluation_seconds": finished - trained,
                "runtime_seconds": before + finished - started,
            }
            record["energy"] = _energy(training_joules, meter.joules(), self.method.trained)
        attention = example.content(model) if example else None
        return TrainingResult(seed, fold, record, evaluation, history.validation if history else None, attention)


def _energy(training: Mapping[str, float], whole: Mapping[str, float], trained: bool) -> dict[str, Any]:
    """The energy of a training; null if no device was measured up to the end.

    Args:
        training: joules of each kind of device up to the end of training.
        whole: joules of each kind of device up to the end of evaluation.
        trained: whether the method is trained; only then the energy of loading the model is counted.
    """
    spent = sum(training[kind] for kind in whole) if trained else 0.0
    evaluation = sum(whole[kind] - training[kind] for kind in whole)
    return {
        "training_joules": spent if whole else None,
        "evaluation_joules": evaluation if whole else None,
        "measured_joules": spent + evaluation if whole else None,
        "measured_devices": list(whole),
    }


def training_facts(model: BaselineRetriever, history: History) -> dict[str, Any]:
    """The record of a training: rates, steps, best epoch and history."""
    best = history.best
    return {
        "learning_rate": model.config.learning_rate,
        "rates": rates(model, model.config),
        "best_epoch": best["epoch"],
        f"val_{VALIDATION_METRIC}": best[f"val_{VALIDATION_METRIC}"],
        "steps": sum(record["steps"] for record in history),
        "optimizer_steps": sum(record["optimizer_steps"] for record in history),
        "training_history": history,
    }
