"""The whole experiment: every method on every dataset, and the files it leaves.

    from tier_1 import Tier1Config, run_complete_benchmark
    results = run_complete_benchmark(Tier1Config(...))

This module alone knows all the others. For each dataset the methods run one after the other on the same batches and
against the same corpus; the test queries are read once for each method, when its training is over.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from maw.checkpoint import save_checkpoint
from maw.config import Tier1Config, cache_folder
from maw.data import check_sources, load_collection
from maw.data.collection import Collection
from maw.diagnostics import routing_diagnostics
from maw.errors import ConfigError, DataError
from maw.evaluation import evaluate_retriever
from maw.files import check_writable
from maw.inputs import ListTexts
from maw.methods import Method, find_method, in_order
from maw.metrics import EvaluationResult, bpref_warning
from maw.negatives import prepare_training
from maw.parallel import clear_cache, pick_device
from maw.plan import make_plan
from maw.precision import name_of
from maw.prefix import ActivationStore
from maw.pretrained import ModelSpec, source_of
from maw.profile import current, profiling, stage, watch
from maw.report import layout, plots, tables, text
from maw.report.plan import plan_text
from maw.report.profile import profile_text
from maw.retriever import BaselineRetriever, MAWRetriever, trained_layers
from maw.training import learning_rate, train_retriever
from maw.validation import validate

logger = logging.getLogger(__name__)

RETRIEVERS = {"baseline": BaselineRetriever, "maw": MAWRetriever}


def run_complete_benchmark(config: Tier1Config | None = None) -> dict[str, Any]:
    """Runs every method of `config.methods` on every dataset of `config.datasets` and writes the results.

    Before anything is downloaded or written it shows what it needs, and stops if a disk is too small for it.

    Args:
        config: what to run; the defaults, if not given.

    Returns:
        What `summary/all_results.json` holds: each dataset's results by its name. Nothing if `config.dry_run`.

    Raises:
        ConfigError: every mistake in the configuration, before anything is loaded.
        MAWError: whatever else the user can mend.
    """
    config = config or Tier1Config()
    spec = validate(config)
    device = pick_device(config)
    plan = make_plan(config, spec)
    text.show(plan_text(plan))
    if config.dry_run:
        return {}
    plan.check_disks()
    check_sources(config.datasets, config)
    results: dict[str, Any] = {}
    check_writable(config.log_dir)
    for name in config.datasets:
        with profiling(device, wanted=config.profile):
            with stage("loading data"):
                collection = load_collection(name, config)
            if collection.name in results:
                raise ConfigError([f"datasets: {name} and another one are both called {collection.name}; rename one"])
            results[collection.name] = DatasetRun(collection, config, spec, device).run()
        layout.write_summary(config.log_dir, list(results.values()))
        clear_cache(config)
    text.show(f"\nSummary of the run: {Path(config.log_dir) / 'summary' / 'benchmark_summary.txt'}")
    return results


class DatasetRun:
    """All methods on one dataset.

    Args:
        collection: the dataset, its samples drawn.
        config: the run's configuration.
        spec: the run's model.
        device: where to compute.
    """

    def __init__(self, collection: Collection, config: Tier1Config, spec: ModelSpec, device: torch.device):
        self.collection, self.config, self.spec, self.device = collection, config, spec, device
        self.records: dict[str, dict[str, Any]] = {}
        self.evaluations: dict[str, EvaluationResult] = {}
        self.model_facts: dict[str, Any] = {}

    def run(self) -> dict[str, Any]:
        """Runs the methods, writes the dataset's folder, shows its summary, and gives what `dataset.json` holds."""
        started = datetime.now()
        folder = cache_folder(self.config) / "activations"
        with ActivationStore(folder, self.config.prefix_cache_gb) as activations:
            with stage("negatives"):
                self._prepare_training(activations)
            for method in in_order(self.config.methods):
                text.show(text.method_heading(method, self.collection.title))
                with stage(method.name):
                    self._run_method(method, activations)
                text.show(text.method_summary(self.records[method.name]))
        with stage("significance and report"):
            result = self._result(started)
        with stage("writing"):
            stamp = started.strftime("%Y%m%d_%H%M%S")
            folder = layout.write_dataset(self.config.log_dir, result, self.evaluations, stamp)
            plots.write_routing_plots(folder, result)
        text.show(f"\n{text.dataset_summary(result)}\n\nWritten to {folder}")
        profile = current()
        if profile is not None:
            content = profile.content()
            layout.write_profile(folder, content)
            text.show(f"\n{profile_text(content)}")
        return result

    def _prepare_training(self, activations: ActivationStore) -> None:
        """Chooses the hard negatives that every trained method will see."""
        if any(method.trained for method in in_order(self.config.methods)):
            dense = self.config.negative_source == "dense" and self.config.num_negatives
            retriever = BaselineRetriever(replace(self.config, use_lora=False)).to(self.device) if dense else None
            if retriever is not None:
                watch(retriever.encoder)
            self.collection = prepare_training(self.collection, self.config, retriever, activations)
            train = self.collection.train
            if len(train) == 1 and not any(train.negatives.values()):
                raise DataError(
                    f"{self.collection.name}: there is one training query, with nothing to be compared with; add "
                    "more, or run with --methods zero_shot"
                )

    def _run_method(self, method: Method, activations: ActivationStore) -> None:
        started = time.perf_counter()
        config = method.configure(self.config)
        with stage("loading model"):
            model = RETRIEVERS[method.retriever](config).to(self.device)
        watch(model.encoder)
        record: dict[str, Any] = {
            "approach": self._approach(method),
            "description": method.description,
            "trained_parameters": model.trained_parameters if method.trained else 0,
        }
        if method.trained:
            with stage("training"):
                history = self._train(method, model, config, activations)
            record |= {"learning_rate": learning_rate(model, config), "training_history": history}
        trained = time.perf_counter()
        with stage("evaluation"):
            diagnostics = routing_diagnostics(model, config, self.device, activations)
            result = evaluate_retriever(
                model, self.collection.test, config, self.device, "test", activations=activations, inspect=diagnostics
            )
            if diagnostics and method.trained:
                record["routing_test"] = diagnostics.evidence(history)
        finished = time.perf_counter()
        self.model_facts = self.model_facts or self._facts_of(model)
        self.evaluations[method.name] = result
        self.records[method.name] = record | {
            "metrics": dict(result),
            "evaluation": result.facts,
            "training_seconds": trained - started if method.trained else 0.0,
            "evaluation_seconds": finished - trained,
            "runtime_seconds": finished - started,
            "runtime_minutes": (finished - started) / 60,
        }

    def _train(
        self, method: Method, model: BaselineRetriever, config: Tier1Config, activations: ActivationStore
    ) -> list[dict[str, Any]]:
        folder = Path(config.log_dir) / "checkpoints"
        history: list[dict[str, Any]] = []

        def on_epoch(record: Mapping[str, Any], improved: bool) -> None:
            history.append(dict(record))
            wanted = {
                "best": improved,
                "latest": not config.keep_only_best_checkpoint,
                f"epoch{record['epoch']:03d}": config.save_epoch_checkpoints,
            }
            for suffix in (suffix for suffix, is_wanted in wanted.items() if is_wanted):
                with stage("writing checkpoints"):
                    save_checkpoint(
                        folder / f"{self.collection.name}_{method.name}_{suffix}",
                        model,
                        dataset=self.collection.name,
                        method=method.name,
                        epoch=record["epoch"],
                        best_val_metric=max(each["val_ndcg_cut_10"] for each in history),
                        training_history=history,
                    )

        return train_retriever(
            model,
            self.collection.train,
            self.collection.validation,
            config,
            self.device,
            self.collection.name,
            method.name,
            activations=activations,
            on_epoch=on_epoch,
        )

    def _result(self, started: datetime) -> dict[str, Any]:
        seconds = {name: record["runtime_seconds"] for name, record in self.records.items()}
        return {
            "dataset": self.collection.name,
            "venue": self.collection.title,
            "evaluated_at": started.isoformat(timespec="seconds"),
            "configuration": self.config.to_dict(),
            "data": self.collection.facts,
            "model": self.model_facts,
            "results": {find_method(name).key: record for name, record in self.records.items()},
            "runtime_summary": tables.runtime_summary(seconds),
            "improvements": tables.improvements(self.evaluations),
            "significance": tables.significance(
                self.evaluations, permutations=self.config.permutations, seed=self.config.seed
            ),
            "warnings": self._warnings(),
        }

    def _approach(self, method: Method) -> str:
        """The method's name in reports, with what this run does to it."""
        layers = trained_layers(self.config, self.spec)
        if method.name == "maw":
            where = "last layer" if layers["maw"] == (self.spec.num_layers,) else _layers(layers["maw"])
            router = self.config.router
            return f"{method.approach} ({router.upper() if router == 'grpo' else router} on {where})"
        return method.approach

    def _facts_of(self, model: BaselineRetriever) -> dict[str, Any]:
        spec, layers = self.spec, trained_layers(self.config, self.spec)
        queries = model.source(ListTexts(self.collection.test.queries), "query")
        return {
            "name": spec.name,
            "weights_sha256": spec.weights_sha256,
            "layers": spec.num_layers,
            "pooling": spec.pooling,
            "similarity": spec.similarity,
            "temperature": spec.temperature,
            "query_prefix": spec.query_prefix,
            "document_prefix": spec.document_prefix,
            "max_query_length": spec.max_query_length,
            "max_document_length": spec.max_document_length,
            "test_queries_cut_at_that_length": queries.truncated(),
            "precision": name_of(model.precision),
            "fine_tuned_layers": _layers(layers["finetune"]),
            "maw_layers": _layers(layers["maw"]),
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type,
            "torch": torch.__version__,
        }

    def _warnings(self) -> list[str]:
        test, level = self.collection.test, self.collection.test.relevance_level
        bpref = bpref_warning(test.qrels, level)
        found = [self._not_zero_shot()] if self.spec.was_trained_on(self.collection.name) else []
        found += [bpref] if bpref else []
        low = sum(max(judged.values()) < level for judged in test.qrels.values())
        if low:
            found.append(
                f"{low} of {len(test)} test queries have no passage of grade {level} or more, the relevance level, "
                "and score 0 in the binary metrics"
            )
        return found

    def _not_zero_shot(self) -> str:
        name, source = self.collection.name, source_of(self.collection.name)
        by_name = f" (recognised by its name: {source})" if name != source else ""
        return (
            f"{self.spec.name} was trained on data like {self.collection.title}{by_name}, as its model card says, so "
            "its scores without training are not zero-shot in the strict sense, and gains over them say little "
            "about models that never saw such data"
        )


def _layers(numbers: tuple[int, ...]) -> str:
    return f"layer{'s' * (len(numbers) != 1)} {', '.join(map(str, numbers)) or 'none'}"
