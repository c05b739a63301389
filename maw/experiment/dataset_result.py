"""The result of one dataset: records of its methods, tests between them, facts on data, model and machine.

outcome = Outcome(collection, config, spec, device)
outcome.add(find_method("lora"), result, searches)
outcome.result(started, outcome.smallest_effects())     # the content of dataset.json
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from maw.config.methods import Described, Method, find_method, in_order, subject_of
from maw.config.tier1_config import Tier1Config
from maw.data.collection import Collection
from maw.data.dataset_table import source_of
from maw.evaluation import confirmatory, exploratory, method_pairs
from maw.evaluation.metrics import EvaluationResult, bpref_warning, cutoff_warning
from maw.evaluation.query_examples import Examples
from maw.evaluation.routing.attention_example import write_examples
from maw.experiment.aggregate import MethodResult
from maw.models.pretrained import ModelSpec, trained_layers, weights_sha256
from maw.models.retriever import load_tokenizer
from maw.models.tokenized import TextSource
from maw.report.tables.trec import RunFiles
from maw.report.text import trainings
from maw.runtime import energy
from maw.runtime.devices import used_gpus
from maw.runtime.environment import environment_facts
from maw.runtime.precision import name_of, pick_precision


@dataclass
class Outcome:
    """Results of all methods on one dataset, by method name.

    Attributes:
        collection: the dataset, with all test queries.
        records: the methods' entries in dataset.json.
        evaluations: test queries, averaged over seeds.
        validations: validation queries at the best epoch; None for a method that is not trained.
        by_seed: test queries of each seed.
        attention: attention of one text, for methods with depths.
    """

    collection: Collection
    config: Tier1Config
    spec: ModelSpec
    device: torch.device
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    evaluations: dict[str, EvaluationResult] = field(default_factory=dict)
    validations: dict[str, EvaluationResult | None] = field(default_factory=dict)
    by_seed: dict[str, dict[int, EvaluationResult]] = field(default_factory=dict)
    attention: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, method: Method, result: MethodResult, searches: Sequence[Mapping[str, Any]]) -> None:
        """Adds a method's result and the records of its learning rate searches."""
        record = {"approach": self._approach(method), "description": method.description} | result.record
        record |= {"method": Described.facts(method)} if method.origin else {}
        if searches:
            record |= {"tuning": searches, "tuning_seconds": sum(search["seconds"] for search in searches)}
            record["runtime_seconds"] += record["tuning_seconds"]
        self.records[method.name] = record | {"runtime_minutes": record["runtime_seconds"] / 60}
        self.evaluations[method.name], self.validations[method.name] = result.evaluation, result.validation
        self.by_seed[method.name] = result.by_seed
        if result.attention:
            self.attention[method.name] = result.attention

    def smallest_effects(self) -> dict[str, dict[str, Any]]:
        """Smallest differences that the confirmatory tests detect, from validation queries alone."""
        return confirmatory.smallest_effects(self.validations, len(self.collection.test), self.config)

    def result(
        self, started: datetime, effects: dict[str, dict[str, Any]], command: str | None = None
    ) -> dict[str, Any]:
        """The content of dataset.json.

        Args:
            command: the command line that started the run, if it is not that of this process.
        """
        config, test, signs = self.config, self.collection.test, exploratory.permutations_for(self.config)
        seconds = {name: record["runtime_seconds"] for name, record in self.records.items()}
        tests = method_pairs.significance(self.evaluations, permutations=signs, seed=config.seed)
        confirmed = confirmatory.confirm(tests, effects, config, signs)
        labelled = exploratory.label(tests, confirmed, config)
        return {
            "dataset": self.collection.name,
            "venue": self.collection.title,
            "evaluated_at": started.isoformat(timespec="seconds"),
            "configuration": config.to_dict(),
            "data": self.collection.facts,
            "model": self._model_facts(),
            "results": {find_method(name).key: record for name, record in self.records.items()},
            "runtime_summary": runtime_summary(seconds),
            "improvements": method_pairs.improvements(self.evaluations),
            "intervals": method_pairs.intervals(self.evaluations, seed=config.seed),
            "confirmatory": confirmed,
            "exploratory": exploratory.about(labelled, config, signs),
            "significance": labelled,
            "tested_on": {
                "queries": len(test),
                "qrels_sha256": test.qrels_hash(),
                "corpus_sha256": test.corpus.fingerprint,
                "relevance_level": test.relevance_level,
                "self_passages": config.self_passages,
                "left_out": len(test.left_out),
            },
            "environment": environment_facts(command) | {"energy": energy.sources(used_gpus(config, self.device))},
            "warnings": self.warnings(),
        }

    def files(self) -> list[Callable[[Path], object]]:
        """Functions that take the dataset's folder and write more files into it."""
        runs = RunFiles(self.collection.name, self.collection.test, self.by_seed, self.config.run_files)
        subject, _ = subject_of(self.config.compare)
        examples = Examples(self.collection.test, self.evaluations, self.by_seed, subject)
        return [runs.write, examples.write, partial(write_examples, by_method=self.attention)]

    def warnings(self) -> list[str]:
        """Warnings for the reader of the numbers."""
        test, level = self.collection.test, self.collection.test.relevance_level
        edges = (trainings.edge_warning(m, self.records[m.name].get("tuning", ())) for m in in_order(self.records))
        about = (cutoff_warning(self.config.top_k, len(test.corpus)), bpref_warning(test.qrels, level))
        found = [*edges, self._not_zero_shot(), *about]
        low = sum(max(judged.values()) < level for judged in test.qrels.values())
        if low:
            found.append(
                f"{low} of {len(test)} test queries have no passage of grade {level} or more, the relevance level, "
                "and score 0 in the binary metrics"
            )
        return [warning for warning in found if warning]

    def _not_zero_shot(self) -> str | None:
        if not self.spec.was_trained_on(self.collection.name):
            return None
        name, source = self.collection.name, source_of(self.collection.name)
        by_name = f" (recognised by its name: {source})" if name != source else ""
        return (
            f"{self.spec.name} was trained on data like {self.collection.title}{by_name}, as its model card says, so "
            "its scores without training are not zero-shot in the strict sense, and gains over them say little "
            "about models that never saw such data"
        )

    def _approach(self, method: Method) -> str:
        """The method's name in reports, with the router and layers of this run."""
        own = method.configure(self.config)
        if method.retriever == "maw" and own.router == self.config.router:  # a router of the run, not of the method
            layers = trained_layers(own, self.spec)
            where = "last layer" if layers["maw"] == (self.spec.num_layers,) else _layers(layers["maw"])
            router = own.router
            return f"{method.approach} ({router.upper() if router == 'grpo' else router} on {where})"
        return method.approach

    def _model_facts(self) -> dict[str, Any]:
        spec, layers, device = self.spec, trained_layers(self.config, self.spec), self.device
        queries = TextSource(
            self.collection.test.queries,
            load_tokenizer(spec),
            prefix=spec.query_prefix,
            max_length=spec.max_query_length,
        )
        return {
            "name": spec.name,
            "weights_sha256": weights_sha256(spec),
            "layers": spec.num_layers,
            "pooling": spec.pooling,
            "similarity": spec.similarity,
            "temperature": spec.temperature,
            "query_prefix": spec.query_prefix,
            "document_prefix": spec.document_prefix,
            "max_query_length": spec.max_query_length,
            "max_document_length": spec.max_document_length,
            "test_queries_cut_at_that_length": queries.truncated(),
            "precision": name_of(pick_precision(self.config.precision, device)),
            "fine_tuned_layers": _layers(layers["finetune"]),
            "maw_layers": _layers(layers["maw"]),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "torch": torch.__version__,
        }


def runtime_summary(seconds: Mapping[str, float]) -> dict[str, float]:
    """`{short}_seconds` of each method, and their sum in seconds and in minutes."""
    total = sum(seconds.values())
    return {
        **{f"{method.short}_seconds": round(seconds[method.name], 2) for method in in_order(seconds)},
        "total_dataset_seconds": round(total, 2),
        "total_dataset_minutes": round(total / 60, 2),
    }


def _layers(numbers: tuple[int, ...]) -> str:
    return f"layer{'s' * (len(numbers) != 1)} {', '.join(map(str, numbers)) or 'none'}"
