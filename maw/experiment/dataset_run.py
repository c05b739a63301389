"""All methods on one dataset, from its texts to its results.

Methods run one after the other on the same batches and against the same corpus: an arm that trains is tuned in each
round of the folds (`maw.experiment.tuning`), then trained with every seed and evaluated on the round's test queries
(`maw.experiment.arm`); its runs make one value for each query (`maw.experiment.aggregate`). Test queries are read
once by each run, when its training is over. What the tests of a dataset can find is said before any of their results
is shown (`maw.evaluation.confirmatory`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from maw.config.methods import Method, find_method, in_order
from maw.config.tier1_config import RESULT_NEUTRAL, Tier1Config, cache_folder
from maw.data.collection import Collection
from maw.data.folds import Folds, with_fold_facts
from maw.encoding.activation_cache import ActivationStore
from maw.errors import DataError
from maw.evaluation import confirmatory, exploratory
from maw.evaluation.metrics import EvaluationResult, bpref_warning, cutoff_warning
from maw.evaluation.query_examples import Examples
from maw.evaluation.routing.attention_example import write_examples
from maw.experiment.aggregate import ArmResult, combine
from maw.experiment.arm import Arm, TrainingResult
from maw.experiment.dataset_state import DatasetState
from maw.experiment.model_card import write_cards
from maw.experiment.past_run import PastRun
from maw.experiment.tuning import Trial, tune
from maw.models.pretrained import ModelSpec, weights_sha256
from maw.models.retriever import BaselineRetriever, load_tokenizer, trained_layers
from maw.models.tokenized import TextSource
from maw.report import layout
from maw.report.tables import comparisons
from maw.report.tables.trec import RunFiles
from maw.report.text import protocol, summary
from maw.report.text.differences import effects_text
from maw.report.text.profile import profile_text
from maw.runtime import console, distributed, energy, signals, trackers
from maw.runtime.devices import used_gpus
from maw.runtime.environment import environment_facts
from maw.runtime.precision import name_of, pick_precision
from maw.runtime.profiler import current, stage, watch
from maw.runtime.run_log import log_event
from maw.training.checkpoint_writer import CheckpointWriter
from maw.training.hard_negatives import prepare_training

logger = logging.getLogger(__name__)

_STAMP = "%Y%m%d_%H%M%S"


class DatasetRun:
    """All methods on one dataset.

    Args:
        data: the dataset, its samples drawn; or its folds.
        config: the run's configuration.
        spec: the run's model.
        device: where to compute.
        state: what of it is done, and where what is done is kept; None to keep nothing.
    """

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
        self.records: dict[str, dict[str, Any]] = {}
        self.evaluations: dict[str, EvaluationResult] = {}
        self.validations: dict[str, EvaluationResult | None] = {}
        self.by_seed: dict[str, dict[int, EvaluationResult]] = {}
        self.attention: dict[str, dict[str, Any]] = {}
        self.scores: dict[str, tuple[Mapping[str, float], int]] = {}
        self.folder: Path | None = None

    def run(self) -> dict[str, Any]:
        """Runs the methods, writes the dataset's folder, shows its summary, and gives what `dataset.json` holds."""
        started = self._begin()
        room = (
            self.config.prefix_cache_gb / distributed.this_process().local_count
        )  # each process has a store of its own
        with ActivationStore(cache_folder(self.config) / "activations", room) as activations:
            if self.state:
                self.state.share(activations)
            with stage("negatives"), distributed.main_first():
                self._prepare_training(activations)
            if self.state:
                self.state.check_data(self.collections or [self.collection])
            for method in in_order(self.config.methods):
                console.show(summary.method_heading(method, self.collection.title))
                with console.at(method=method.name), stage(method.name):
                    self._run_method(method, activations)
                console.show(summary.method_done(self.records[method.name]))
                seconds = self.records[method.name]["runtime_seconds"]
                log_event(logger, "method", dataset=self.collection.name, method=method.name, seconds=seconds)
        if not distributed.is_main():  # what is left is to test and to write
            return {"dataset": self.collection.name}
        effects = confirmatory.smallest_effects(self.validations, len(self.collection.test), self.config)
        if effects:
            console.show(f"\n{effects_text(effects)}")
        with stage("significance and report"):
            result = self._result(started, effects)
        for record in self.records.values():
            console.show(f"\n{summary.method_summary(record)}")
        with stage("writing"):
            stamp = started.strftime(_STAMP)
            self.folder = layout.write_dataset(
                self.config.log_dir,
                result,
                self.evaluations,
                stamp,
                extras=self._extras(),
                folder=self.state.results_folder if self.state else None,
            )
            write_cards(PastRun(self.folder, result, self.config), self.spec)
        console.show(f"\n{summary.dataset_summary(result)}\n\nWritten to {self.folder}")
        log_event(logger, "dataset", dataset=self.collection.name, folder=str(self.folder))
        profile = current()
        if profile is not None:
            content = profile.content()
            layout.write_profile(self.folder, content)
            console.show(f"\n{profile_text(content)}")
        for name, (metrics, steps) in self.scores.items():  # told to a tracker, too, when all of it is
            trackers.results(name, metrics, steps)
        if self.state:
            self.state.close()
        return result

    def _begin(self) -> datetime:
        """When the dataset was begun: before the run was interrupted, if it was."""
        now = datetime.now()
        if self.state is None:
            return now
        self.state.check_model(self.config)
        folder = layout.free_folder(self.config.log_dir, self.collection.name, now.strftime(_STAMP))
        return self.state.begin(folder.name, now)

    def _prepare_training(self, activations: ActivationStore) -> None:
        """Chooses the hard negatives that every trained method will see."""
        if not any(method.trained for method in in_order(self.config.methods)):
            return
        dense = self.config.negative_source == "dense" and self.config.num_negatives
        plain = find_method("zero_shot").configure(self.config)
        retriever = BaselineRetriever(plain).to(self.device) if dense else None
        if retriever is not None:
            watch(retriever.encoder)
        self.collections = [prepare_training(each, self.config, retriever, activations) for each in self.collections]
        for each in self.collections:
            if len(each.train) == 1 and not any(each.train.negatives.values()):
                raise DataError(
                    f"{each.name}: there is one training query, with nothing to be compared with; add "
                    "more, or run with --methods zero_shot"
                )
        folds = self.config.folds
        self.collection = with_fold_facts(self.collection, self.collections) if folds else self.collections[0]

    def _run_method(self, method: Method, activations: ActivationStore) -> None:
        arm = Arm(method, self.config, self.device, activations)
        result, searches = self._train_and_test(arm) if method.trained else (self._test(arm), [])
        record = {"approach": self._approach(method), "description": method.description} | result.record
        if searches:
            record |= {"tuning": searches, "tuning_seconds": sum(search["seconds"] for search in searches)}
            record["runtime_seconds"] += record["tuning_seconds"]
        self.records[method.name] = record | {"runtime_minutes": record["runtime_seconds"] / 60}
        self.evaluations[method.name], self.validations[method.name] = result.evaluation, result.validation
        self.by_seed[method.name] = result.by_seed
        if result.attention:
            self.attention[method.name] = result.attention

    def _test(self, arm: Arm) -> ArmResult:
        """An arm that is not trained: once, on all test queries."""
        return combine([self._run_arm(arm, self.collection, self.config.seed, None, None)])

    def _train_and_test(self, arm: Arm) -> tuple[ArmResult, list[dict[str, Any]]]:
        """An arm that is: tuned in every round, then every seed trained and tested; and an account of the searches."""
        config, runs, searches = self.config, [], []
        for number, collection_of_fold in enumerate(self.collections, start=1):
            fold = number if config.folds else None
            rates = None
            if config.tune:
                with console.at(fold=fold):
                    rates, account = self._tune(arm, collection_of_fold, fold)
                searches.append(account)
            for seed in range(config.seed, config.seed + config.seeds):
                with console.at(fold=fold, seed=seed if config.seeds > 1 else None):
                    runs.append(self._run_arm(arm, collection_of_fold, seed, rates, fold))
                if config.seeds > 1 or config.folds:
                    console.show(protocol.run_line(runs[-1].record))
        return combine(runs), searches

    def _run_arm(
        self, arm: Arm, collection: Collection, seed: int, rates: dict[str, float] | None, fold: int | None
    ) -> TrainingResult:
        """One run of an arm: read back if it is done, else from where it was interrupted or from its beginning."""
        name, state = self._checkpoint_name(arm.method, seed, fold), self.state
        dataset, method = self.collection.name, arm.method.name
        run = state.read_run(name) if state else None
        if state is None:
            folder = Path(self.config.log_dir) / "checkpoints"
            writer = CheckpointWriter(self.config, folder, name, dataset=dataset, method=method)
        else:
            writer = state.writer(name, dataset=dataset, method=method)
        if run is not None:
            logger.info("%s: done before the run was interrupted", name)
        else:
            settings = {
                key: each for key, each in arm.configure(seed, rates).to_dict().items() if key not in RESULT_NEUTRAL
            }
            with trackers.training(name, settings | {"dataset": dataset, "method": method, "fold": fold}):
                run = arm.run(collection, seed, rates, fold=fold, writer=writer)
            if state is not None:
                with signals.held_back():
                    state.write_run(name, run)
                signals.check()
        writer.finish()
        self.scores[name] = run.record["metrics"], run.record.get("steps", 0)
        return run

    def _tune(
        self, arm: Arm, collection_of_fold: Collection, fold: int | None
    ) -> tuple[dict[str, float], dict[str, Any]]:
        def show(trial: Trial, trials: int, best: bool) -> None:
            console.show(protocol.trial_line(trial.record, trials, best))

        if fold is not None:
            console.show(f"   fold {fold}:")
        config, log = self.config, None
        if self.state:
            name = self._checkpoint_name(arm.method, config.seed, fold)
            log = self.state.trials(name, dataset=self.collection.name, method=arm.method.name)
        tuned = tune(
            arm,
            collection_of_fold.train,
            collection_of_fold.validation,
            collection_of_fold.name,
            config.tune,
            config.seed,
            show,
            log,
        )
        return tuned.rates, ({} if fold is None else {"fold": fold}) | tuned.record

    def _checkpoint_name(self, method: Method, seed: int, fold: int | None) -> str:
        parts = [self.collection.name, method.name]
        parts += [f"seed{seed}"] if self.config.seeds > 1 else []
        parts += [f"fold{fold}"] if fold is not None else []
        return "_".join(parts)

    def _result(self, started: datetime, effects: dict[str, dict[str, Any]]) -> dict[str, Any]:
        config, test, signs = self.config, self.collection.test, exploratory.permutations_for(self.config)
        seconds = {name: record["runtime_seconds"] for name, record in self.records.items()}
        tests = comparisons.significance(self.evaluations, permutations=signs, seed=config.seed)
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
            "runtime_summary": comparisons.runtime_summary(seconds),
            "improvements": comparisons.improvements(self.evaluations),
            "intervals": comparisons.intervals(self.evaluations, seed=config.seed),
            "confirmatory": confirmed,
            "exploratory": exploratory.about(labelled, config, signs),
            "significance": labelled,
            "tested_on": {
                "queries": len(test),
                "qrels_sha256": test.qrels_hash(),
                "corpus_sha256": test.corpus.fingerprint,
                "relevance_level": test.relevance_level,
            },
            "environment": self._environment() | {"energy": energy.sources(used_gpus(config, self.device))},
            "warnings": self._warnings(),
        }

    def _environment(self) -> dict[str, Any]:
        """Facts on process and machine; of a run that was resumed with the command that began it."""
        began_with = self.state.run.record.get("command") if self.state else None
        return environment_facts() | ({"command": began_with} if began_with else {})

    def _extras(self) -> list[Callable[[Path], object]]:
        """What else is written into the dataset's folder."""
        files = RunFiles(self.collection.name, self.collection.test, self.by_seed, self.config.run_files)
        examples = Examples(self.collection.test, self.evaluations, self.by_seed)
        return [files.write, examples.write, partial(write_examples, by_method=self.attention)]

    def _approach(self, method: Method) -> str:
        """The method's name in reports, with what this run does to it."""
        own = method.configure(self.config)
        if method.retriever == "maw" and own.router == self.config.router:  # where it does not stand in the name
            layers = trained_layers(own, self.spec)
            where = "last layer" if layers["maw"] == (self.spec.num_layers,) else _layers(layers["maw"])
            router = own.router
            return f"{method.approach} ({router.upper() if router == 'grpo' else router} on {where})"
        return method.approach

    def _model_facts(self) -> dict[str, Any]:
        spec, layers = self.spec, trained_layers(self.config, self.spec)
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
            "precision": name_of(pick_precision(self.config.precision, self.device)),
            "fine_tuned_layers": _layers(layers["finetune"]),
            "maw_layers": _layers(layers["maw"]),
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type,
            "torch": torch.__version__,
        }

    def _warnings(self) -> list[str]:
        test, level = self.collection.test, self.collection.test.relevance_level
        about = (cutoff_warning(self.config.top_k, len(test.corpus)), bpref_warning(test.qrels, level))
        edges = (protocol.edge_warning(m, self.records[m.name].get("tuning", ())) for m in in_order(self.records))
        found = [warning for warning in edges if warning]
        source = self.spec.trained_on_source_of(self.collection.name)
        found += [self._not_zero_shot(source)] if source else []
        found += [warning for warning in about if warning]
        low = sum(max(judged.values()) < level for judged in test.qrels.values())
        if low:
            found.append(
                f"{low} of {len(test)} test queries have no passage of grade {level} or more, the relevance level, "
                "and score 0 in the binary metrics"
            )
        return found

    def _not_zero_shot(self, source: str) -> str:
        by_name = f" (recognised by its name: {source})" if self.collection.name != source else ""
        return (
            f"{self.spec.name} was trained on data like {self.collection.title}{by_name}, as its model card says, so "
            "its scores without training are not zero-shot in the strict sense, and gains over them say little "
            "about models that never saw such data"
        )


def _layers(numbers: tuple[int, ...]) -> str:
    return f"layer{'s' * (len(numbers) != 1)} {', '.join(map(str, numbers)) or 'none'}"
