"""Resumable state of one dataset: finished trainings, trials, activations. It is removed when the run has finished.

    done = DatasetState(state, number, config)
    run = done.read_run("maw_seed42")           # None if it is to be run
    done.write_run("maw_seed42", run)

The folder `state/01` has `data.json`, hashes of the data; `activations/`, which texts passed through the frozen layers
together (`maw.encoding.activation_log`); a folder for each finished training with its record, the values of every
query and the ranking; the trials of its searches; and `dataset.json`, which names the folder of the dataset's results.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from maw.config.methods import find_method
from maw.config.tier1_config import Tier1Config
from maw.data.collection import Collection
from maw.encoding.activation_cache import ActivationStore
from maw.errors import DamagedError
from maw.experiment.arm import TrainingResult
from maw.experiment.run_state import RunState
from maw.experiment.tuning import Trial
from maw.models.fingerprint import encoder_parts, tokenizer_sha256
from maw.models.retriever import BaselineRetriever
from maw.runtime import distributed
from maw.storage.checksummed import clear_temporaries, read_signed, write_signed
from maw.storage.checksummed_tensors import RECORD, read_bundle, read_tensors, write_bundle
from maw.storage.files import json_sha, read_json, sha256
from maw.training.checkpoint_writer import CheckpointWriter, checkpoints_folder
from maw.training.state import evaluation_state, joined, load_evaluation, separated

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
_EVALUATIONS = ("evaluation", "validation")  # of a TrainingResult
_MODEL, _DATA, _ACTIVATIONS, _DATASET = "model.json", "data.json", "activations", "dataset.json"


class DatasetState:
    """What of one dataset is done.

    Args:
        run: the run's state.
        number: of the dataset, from 1.
        config: of the run.
    """

    def __init__(self, run: RunState, number: int, config: Tier1Config):
        self.run, self.config = run, config
        self.folder = run.dataset(number)
        self.activations: ActivationStore | None = None
        self._noted = 0

    # ------------------------------------------------------------------------------------------------- the dataset

    def begin(self, folder: str, now: datetime) -> datetime:
        """When the dataset was begun; that, and where its results will lie, is noted once and stays.

        Args:
            folder: name of the results' folder, if none is noted yet.
            now: the time, likewise.
        """
        if not distributed.is_main():
            return now
        if self._read() is None:
            record = {"folder": folder, "started": now.isoformat(), "results_sha256": None}
            write_signed(self.folder / _DATASET, record)
        for path in (self.results_folder, *self.results_folder.glob("*/")):
            clear_temporaries(path)
        return datetime.fromisoformat(self._read()["started"])

    @property
    def results_folder(self) -> Path:
        """Where the results lie, or will lie."""
        return self.run.log_dir / self._read()["folder"]

    @distributed.main_only
    def close(self) -> None:
        """Notes that the dataset's results are written."""
        digest = sha256(self.results_folder / _DATASET)
        write_signed(self.folder / _DATASET, self._read() | {"results_sha256": digest})

    def results(self) -> dict[str, Any] | None:
        """What dataset.json holds of a dataset that is done; None if it is not, or the file is not as it was left."""
        record = self._read()
        if record is None or not record["results_sha256"]:
            return None
        results = self.results_folder / _DATASET
        if not results.is_file() or sha256(results) != record["results_sha256"]:
            logger.warning("%s: is not as it was written; the results are put together again", results)
            return None
        return read_json(results)

    def _read(self) -> dict[str, Any] | None:
        path = self.folder / _DATASET
        try:
            return read_signed(path) if path.is_file() else None
        except DamagedError as error:
            logger.warning("%s; the dataset's results are put together again", error)
            return None

    @distributed.main_only
    def check_model(self, config: Tier1Config) -> None:
        """Notes which pretrained model the run computes with, or compares it with the one it began with; once.

        Raises:
            ConfigError: it is not the same; one line for each difference.
        """
        if self.run.model_checked:
            return
        model = BaselineRetriever(find_method("zero_shot").configure(config))
        found = encoder_parts(model.encoder) | {"tokenizer": tokenizer_sha256(model.tokenizer)}
        self.run.record_or_compare(self.run.folder / _MODEL, "model", json.loads(json.dumps(found)))
        self.run.model_checked = True

    @distributed.main_only
    def check_data(self, collections: Sequence[Collection]) -> None:
        """Notes which data the run computes with, or compares them with those it began with.

        Raises:
            ConfigError: they are not the same; one line for each difference.
        """
        found = {f"round {number}": fingerprints(each) for number, each in enumerate(collections, start=1)}
        self.run.record_or_compare(self.folder / _DATA, "data", found)

    # ------------------------------------------------------------------------------------------------- activations

    def share(self, activations: ActivationStore) -> None:
        """Takes a store whose journal is to be saved; one of a run that goes on gets what was noted before.

        Raises:
            DamagedError: that cannot be read, so that going on would give other last bits.
        """
        if distributed.is_distributed():  # each process has a store of its own, of what came to it
            return
        self.activations, activations.before_commit = activations, self.save_activations
        path = self.folder / _ACTIVATIONS
        if not (path / RECORD).is_file():
            return
        try:
            record = read_bundle(path)
            activations.resume(record, read_tensors(path, record, "rows"))
        except DamagedError as error:
            text = f"{error}; without it the run would not go on to the same result: start anew with --restart"
            raise DamagedError(text) from error
        self._noted = len(activations.activation_log.fills)

    def save_activations(self) -> None:
        """Saves the journal, if there is anything new in it."""
        if self.activations is None or len(self.activations.activation_log.fills) == self._noted:
            return
        facts, tensors = self.activations.activation_log.content()
        write_bundle(self.folder / _ACTIVATIONS, facts, {"rows": tensors})
        self._noted = len(self.activations.activation_log.fills)

    # ------------------------------------------------------------------------------------------------ runs and trials

    def writer(self, name: str, *, dataset: str, method: str, trial: str | None = None) -> CheckpointWriter:
        """What saves one training.

        Args:
            name: of the run, with dataset and method.
            dataset: for the record.
            method: for the record.
            trial: which trial of a search it is; nothing of it is kept when it is over.
        """
        part = {"id": self.run.id, "part": name if trial is None else f"{name} {trial}"}
        folder = checkpoints_folder(self.config) if trial is None else self.folder
        return CheckpointWriter(
            self.config,
            folder,
            name if trial is None else "trial",
            dataset=dataset,
            method=method,
            run=part,
            resume=self.run.resumed,
            only_latest=trial is not None,
            before_save=self.save_activations,
        )

    def read_run(self, name: str) -> TrainingResult | None:
        """A finished training; None if it has not been saved, or what was saved is damaged."""
        folder = self.folder / name
        if not (folder / RECORD).is_file():
            return None
        try:
            record = read_bundle(folder)
            values = joined(record["training"], read_tensors(folder, record, "values"))
        except DamagedError as error:
            logger.warning("%s; this part of the run is done again", error)
            return None
        return TrainingResult(
            **values | {part: values[part] and load_evaluation(values[part]) for part in _EVALUATIONS}
        )

    @distributed.main_only
    def write_run(self, name: str, run: TrainingResult) -> None:
        """Saves a finished training."""
        self.save_activations()  # first: a training that is not repeated must have left its activations
        values = vars(run)
        evaluations = {part: values[part] and evaluation_state(values[part]) for part in _EVALUATIONS}
        record, tensors = separated(values | evaluations)
        write_bundle(self.folder / name, {"training": record}, {"values": tensors})

    def trials(self, name: str, *, dataset: str, method: str) -> Trials:
        """Where the trials of a search are kept."""
        return Trials(self, name, dataset, method)


class Trials:
    """The trials of one search, `maw.experiment.tuning.TrialLog`.

    Args:
        state: of the dataset.
        name: of the search.
        dataset: for the record.
        method: for the record.
    """

    def __init__(self, state: DatasetState, name: str, dataset: str, method: str):
        self.state, self.name, self.about = state, name, {"dataset": dataset, "method": method}
        self.path = state.folder / f"trials_{name}.json"

    def read(self) -> list[Trial]:
        """Those that are over; none, with a warning, if the file is damaged."""
        if not self.path.is_file():
            return []
        try:
            return [Trial(**each) for each in read_signed(self.path)["trials"]]
        except DamagedError as error:
            logger.warning("%s; the search begins again", error)
            return []

    @distributed.main_only
    def write(self, trials: Sequence[Trial]) -> None:
        """Keeps all that are over; what was saved of the last one goes."""
        self.state.save_activations()
        write_signed(self.path, {"trials": [dataclasses.asdict(each) for each in trials]})
        self.writer(len(trials), trials[-1].rates).finish()

    def writer(self, number: int, rates: Mapping[str, float]) -> CheckpointWriter:
        """What saves a trial while it goes on."""
        return self.state.writer(self.name, **self.about, trial=f"trial {number} {json_sha(dict(rates))[:16]}")


def fingerprints(collection: Collection) -> dict[str, dict[str, str]]:
    """What decides a collection's splits, as hashes: its queries, judgements, passages, negatives and answers."""
    found = {}
    for name in SPLITS:
        split = getattr(collection, name)
        found[name] = {
            "queries": json_sha([split.query_ids, split.queries]),
            "judgements": split.qrels_hash(),
            "passages": split.corpus.fingerprint,
            "negatives": json_sha(split.negatives),
            "answers": json_sha(split.answers),
        }
    return found
