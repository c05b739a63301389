"""Resumable state of one dataset: finished trainings, trials, activations; removed when the run has finished.

    state = DatasetState(run_state, number, config)
    result = state.read_run("maw_seed42")           # None if the training is not finished
    state.write_run("maw_seed42", result)

The folder `state/01` holds `data.json`, hashes of the data; `activations/`, which texts passed through the frozen
layers together (`maw.encoding.activation_log`); a folder for each finished training with its record, per-query values
and ranking; the trials of each search; and `dataset.json`, which names the folder of the dataset's results.
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
from maw.experiment.method_trainer import TrainingResult
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
    """Resumable state of one dataset of a run; `number` counts from 1."""

    def __init__(self, run: RunState, number: int, config: Tier1Config):
        self.run, self.config = run, config
        self.folder = run.dataset(number)
        self.activations: ActivationStore | None = None
        self._noted = 0

    def begin(self, folder: str, now: datetime) -> datetime:
        """The time when the dataset was started; `now` and the results' `folder` are saved the first time."""
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
        """The folder of the dataset's results; it may not exist yet."""
        return self.run.log_dir / self._read()["folder"]

    @distributed.main_only
    def close(self) -> None:
        """Saves that the dataset's results are written."""
        digest = sha256(self.results_folder / _DATASET)
        write_signed(self.folder / _DATASET, self._read() | {"results_sha256": digest})

    def results(self) -> dict[str, Any] | None:
        """The content of dataset.json; None if the dataset is not finished or the file has changed."""
        record = self._read()
        if record is None or not record["results_sha256"]:
            return None
        results = self.results_folder / _DATASET
        if not results.is_file() or sha256(results) != record["results_sha256"]:
            logger.warning(
                "%s: has changed since it was written; the results are computed again from finished trainings", results
            )
            return None
        return read_json(results)

    def _read(self) -> dict[str, Any] | None:
        path = self.folder / _DATASET
        try:
            return read_signed(path) if path.is_file() else None
        except DamagedError as error:
            logger.warning("%s; the dataset's results are computed again from finished trainings", error)
            return None

    @distributed.main_only
    def check_model(self, config: Tier1Config) -> None:
        """Saves hashes of the run's pretrained model, or compares them with those saved; once in a run.

        Raises:
            ConfigError: the model has changed; one line for each difference.
        """
        if self.run.model_checked:
            return
        model = BaselineRetriever(find_method("zero_shot").configure(config))
        found = encoder_parts(model.encoder) | {"tokenizer": tokenizer_sha256(model.tokenizer)}
        self.run.record_or_compare(self.run.folder / _MODEL, "model", json.loads(json.dumps(found)))
        self.run.model_checked = True

    @distributed.main_only
    def check_data(self, collections: Sequence[Collection]) -> None:
        """Saves hashes of the dataset's data, or compares them with those saved.

        Raises:
            ConfigError: the data have changed; one line for each difference.
        """
        found = {f"round {number}": fingerprints(each) for number, each in enumerate(collections, start=1)}
        self.run.record_or_compare(self.folder / _DATA, "data", found)

    def track_activations(self, activations: ActivationStore) -> None:
        """Saves the activation log of a store from now on, and restores the log of a resumed run into it.

        Raises:
            DamagedError: the saved log cannot be read, so the run could not continue with the same last bits.
        """
        if distributed.is_distributed():  # each process has a store of its own texts
            return
        self.activations, activations.before_commit = activations, self.save_activations
        path = self.folder / _ACTIVATIONS
        if not (path / RECORD).is_file():
            return
        try:
            record = read_bundle(path)
            activations.resume(record, read_tensors(path, record, "rows"))
        except DamagedError as error:
            text = f"{error}; without it the run cannot continue to the same result; start again with --restart"
            raise DamagedError(text) from error
        self._noted = len(activations.activation_log.fills)

    def save_activations(self) -> None:
        """Saves the activation log if it has grown."""
        if self.activations is None or len(self.activations.activation_log.fills) == self._noted:
            return
        facts, tensors = self.activations.activation_log.content()
        write_bundle(self.folder / _ACTIVATIONS, facts, {"rows": tensors})
        self._noted = len(self.activations.activation_log.fills)

    def writer(self, name: str, *, dataset: str, method: str, trial: str | None = None) -> CheckpointWriter:
        """The checkpoint writer of one training, or of a trial, whose checkpoints are removed when it ends."""
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
        """The result of a finished training; None if it is not finished or its files are damaged."""
        folder = self.folder / name
        if not (folder / RECORD).is_file():
            return None
        try:
            record = read_bundle(folder)
            values = joined(record["training"], read_tensors(folder, record, "values"))
        except DamagedError as error:
            logger.warning("%s; the training is repeated", error)
            return None
        return TrainingResult(
            **values | {part: values[part] and load_evaluation(values[part]) for part in _EVALUATIONS}
        )

    @distributed.main_only
    def write_run(self, name: str, run: TrainingResult) -> None:
        """Saves the result of a finished training."""
        self.save_activations()  # first: a training that is not repeated must leave its activations behind
        values = vars(run)
        evaluations = {part: values[part] and evaluation_state(values[part]) for part in _EVALUATIONS}
        record, tensors = separated(values | evaluations)
        write_bundle(self.folder / name, {"training": record}, {"values": tensors})

    def trials(self, name: str, *, dataset: str, method: str) -> Trials:
        """The saved trials of one search."""
        return Trials(self, name, dataset, method)


class Trials:
    """The saved trials of one search; implements `maw.experiment.tuning.TrialLog`."""

    def __init__(self, state: DatasetState, name: str, dataset: str, method: str):
        self.state, self.name, self.about = state, name, {"dataset": dataset, "method": method}
        self.path = state.folder / f"trials_{name}.json"

    def read(self) -> list[Trial]:
        """The finished trials; none, with a warning, if the file is damaged."""
        if not self.path.is_file():
            return []
        try:
            return [Trial(**each) for each in read_signed(self.path)["trials"]]
        except DamagedError as error:
            logger.warning("%s; the search starts again", error)
            return []

    @distributed.main_only
    def write(self, trials: Sequence[Trial]) -> None:
        """Saves all finished trials, and removes the checkpoint of the last one."""
        self.state.save_activations()
        write_signed(self.path, {"trials": [dataclasses.asdict(each) for each in trials]})
        self.writer(len(trials), trials[-1].rates).finish()

    def writer(self, number: int, rates: Mapping[str, float]) -> CheckpointWriter:
        """The checkpoint writer of one trial."""
        return self.state.writer(self.name, **self.about, trial=f"trial {number} {json_sha(dict(rates))[:16]}")


def fingerprints(collection: Collection) -> dict[str, dict[str, str]]:
    """Hashes of each split: queries, judgements, passages, negatives, answers and which passages are left out."""
    found = {}
    for name in SPLITS:
        split = getattr(collection, name)
        found[name] = {
            "queries": json_sha([split.query_ids, split.queries]),
            "judgements": split.qrels_hash(),
            "passages": split.corpus.fingerprint,
            "negatives": json_sha(split.negatives),
            "answers": json_sha(split.answers),
            "left_out": json_sha(sorted(split.left_out)),
        }
    return found
