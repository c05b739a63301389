"""Loads a finished run: its results, its trained models, and their corpus.

    run = PastRun.open("logs/tier1")                # or one dataset's folder in it
    model = run.model("maw")                        # float32, with the best epoch's weights
    corpus = run.corpus()

dataset.json has the settings with which the collection was sampled, a checkpoint those of its method. A checkpoint
with other settings, left by a later run in the same folder, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from maw.config.methods import Method, find_method, methods_of
from maw.config.paths import absolute, check_there, folders_of, found_again, is_folder, with_folders
from maw.config.tier1_config import RESULT_NEUTRAL, Precision, Tier1Config
from maw.data.collection import RetrievalData
from maw.data.corpus import Corpus
from maw.data.dataset_table import results_name
from maw.data.registry import load_collection, load_folds
from maw.errors import ConfigError, MAWError, show, suggestion
from maw.experiment.method_trainer import MethodTrainer
from maw.models.retriever import BaselineRetriever
from maw.runtime.devices import pick_device
from maw.storage.files import read_json
from maw.storage.run_record import BEST, CHECKPOINTS
from maw.training.checkpoint import given_method, load_checkpoint
from maw.training.checkpoint_writer import training_name
from maw.training.optimizer import RATES

_VARIES = ("seed", *RATES, "method_rates")  # among a method's trainings
_ELSEWHERE = ("device", "log_dir", "cache_dir", "precision")  # where the run computes, not what it trains


@dataclass(frozen=True)
class PastRun:
    """One dataset of a finished run.

    Attributes:
        folder: the dataset's folder.
        result: the content of its dataset.json.
        config: the run's configuration, its folders where they are now.
        moved: as in `open`.
    """

    folder: Path
    result: dict[str, Any]
    config: Tier1Config
    moved: Sequence[str] = ()

    @classmethod
    def open(cls, folder: Path | str, dataset: str | None = None, moved: Sequence[str] = ()) -> PastRun:
        """The newest results of a dataset.

        Args:
            folder: a run's `log_dir`, or the folder of one dataset in it.
            dataset: name of the results, such as msmarco or beir_scifact; needed if the folder has several.
            moved: folders of the model, the dataset and the distractors that are neither where they were nor where
                they would be if they had moved together with the run; each is recognised by its name.

        Raises:
            ConfigError: the folder has no such results, or several and `dataset` is None.
            MAWError: the results cannot be read.
        """
        folder = Path(absolute(folder))
        paths = [folder / "dataset.json"] if (folder / "dataset.json").is_file() else folder.glob("*/dataset.json")
        found = sorted(((_read(path), path.parent) for path in paths), key=lambda pair: pair[0]["evaluated_at"])
        newest = {result["dataset"]: (result, place) for result, place in found}
        if not folder.is_dir():
            raise ConfigError([f"{folder}: there is no such folder"])
        if not newest:
            text = f"{folder}: has no results (NAME_DATE/dataset.json); give the --log-dir of a finished run"
            raise ConfigError([text])
        if dataset is None and len(newest) > 1:
            raise ConfigError([f"{folder}: has results of {', '.join(newest)}; say which with --dataset"])
        name = next(iter(newest)) if dataset is None else dataset
        if name not in newest:
            known = f"{suggestion(name, newest)}; there are those of {', '.join(newest)}"
            raise ConfigError([f"{folder}: has no results of {show(name)}{known}"])
        result, place = newest[name]
        methods_of(result)  # enters those of users as they are described; their code is not loaded
        settings = found_again(result["configuration"], place.parent, moved)
        if not is_folder(settings.get("cache_dir") or "."):
            settings |= {"cache_dir": None}
        return cls(place, result, Tier1Config.from_dict(settings), moved)

    @property
    def name(self) -> str:
        """Name of the dataset's results."""
        return self.result["dataset"]

    @property
    def methods(self) -> list[str]:
        """The run's methods, in the order of reports."""
        return [method.name for method in methods_of(self.result)]

    def record(self, method: str) -> dict[str, Any]:
        """A method's entry in dataset.json.

        Raises:
            ConfigError: the run did not have that method.
        """
        if method not in self.methods:
            text = f"{suggestion(method, self.methods)}; it compared {', '.join(self.methods)}"
            raise ConfigError([f"{self.folder}: the run had no method {show(method)}{text}"])
        return self.result["results"][find_method(method).key]

    def checkpoint_folder(self, method: str, seed: int | None = None, fold: int | None = None) -> Path:
        """The path of a method's best checkpoint, which may be gone; arguments as `checkpoint`."""
        seed = self.config.seed if seed is None else seed
        fold = (fold or 1) if self.config.folds else None
        name = training_name(self.config, self.name, method, seed, fold)
        return self.folder.parent / CHECKPOINTS / f"{name}_{BEST}"

    def checkpoint(self, method: str, seed: int | None = None, fold: int | None = None) -> Path:
        """The folder of a method's best checkpoint; of the first seed, or fold from 1, where it is None.

        Raises:
            ConfigError: the run had no such seed or fold.
            MAWError: the checkpoint is gone.
        """
        self.check_training(seed, fold)
        path = self.checkpoint_folder(method, seed, fold)
        if not path.is_dir():
            raise MAWError(f"{path}: no such checkpoint; a run keeps one for each method, seed and fold")
        return path

    def check_training(self, seed: int | None, fold: int | None) -> None:
        """Makes sure that the run had that seed and fold.

        Raises:
            ConfigError: it did not.
        """
        config = self.config
        seeds, folds = range(config.seed, config.seed + config.seeds), range(1, (config.folds or 0) + 1)
        for what, value, had in (("seed", seed, seeds), ("fold", fold, folds)):
            if value is not None and value not in had:
                several = f"it had {what}s {had[0]} to {had[-1]}" if len(had) > 1 else f"the run had no {what}s"
                there = f"the only {what} is {had[0]}" if len(had) == 1 else several
                raise ConfigError([f"{self.folder}: no {what} {value}; {there}"])

    def model(
        self,
        method: str,
        seed: int | None = None,
        fold: int | None = None,
        precision: Precision = "float32",
        code: type[Method] | str | None = None,
    ) -> BaselineRetriever:
        """A method's trained retriever, in evaluation mode, on the device of this machine.

        Args:
            method: the method's name, as in `--methods`.
            seed: the training's seed; the first one if None.
            fold: the fold; the first one if None.
            precision: number format, as `Tier1Config.precision`.
            code: the class of a user's method, or FILE.py:CLASS; no code is loaded from a place that the run names.

        Raises:
            MAWError: as `record` and `checkpoint`, or the checkpoint is damaged or from another run.
        """
        facts = self.record(method).get("method")
        given_method(self.folder, facts, code)
        device = pick_device(replace(self.config, device=None))
        if not find_method(method).trained:
            check_there(self.folder, folders_of({"model": self.config.model}))
            trainer = MethodTrainer(find_method(method), replace(self.config, precision=precision), device)
            return trainer.build(trainer.config).eval()
        path = self.checkpoint(method, seed, fold)
        model = load_checkpoint(path, moved=self.moved, method=code if facts else None)
        self._check_settings(path, method, model.config)
        return in_precision(model, precision).to(device).eval()

    def corpus(self) -> Corpus:
        """The corpus of the test queries; raises as `test`."""
        return self.test().corpus

    def test(self) -> RetrievalData:
        """The test split: its queries, judgements and corpus.

        Raises:
            DataError: the dataset can no longer be loaded.
            MAWError: its folder is gone, or its passages have changed since the run.
        """
        names = [name for name in self.config.datasets if results_name(name) == self.name]
        if not names:
            raise MAWError(f"{self.folder}: no dataset of its configuration has results called {self.name}")
        config = self.config
        check_there(self.folder, folders_of({"datasets": names, "distractors": config.distractors}))
        data = load_folds(names[0], config).whole if config.folds else load_collection(names[0], config)
        seen = data.test.corpus.fingerprint
        if self.result.get("tested_on", {}).get("corpus_sha256", seen) != seen:
            raise MAWError(f"{self.folder}: the passages of {names[0]} have changed since the run; run it again")
        return data.test

    def _check_settings(self, path: Path, method: str, config: Tier1Config) -> None:
        """Makes sure that a checkpoint has the settings of this run."""
        both = MethodTrainer(find_method(method), self.config, None).config, config
        mine, its = (with_folders(vars(each), lambda text: Path(text).name) for each in both)  # wherever they are
        other = [
            name
            for name in mine
            if name not in (*_VARIES, *_ELSEWHERE, *RESULT_NEUTRAL) and mine[name] != its.get(name)
        ]
        if other:
            names = ", ".join(other[:5])
            raise MAWError(f"{path}: is from another run than {self.folder}: they differ in {names}; run it again")


def in_precision(model: BaselineRetriever, precision: Precision) -> BaselineRetriever:
    """The same retriever in another number format, made from the original weights."""
    if model.config.precision == precision:
        return model
    made = model.rebuilt(precision=precision)
    made.load_trained_state(model.trained_state())
    return made.eval()


def _read(path: Path) -> dict[str, Any]:
    result = read_json(path)
    kinds = {"dataset": str, "evaluated_at": str, "configuration": Mapping, "results": Mapping}
    if not isinstance(result, dict) or not all(isinstance(result.get(name), kind) for name, kind in kinds.items()):
        raise MAWError(f"{path}: not the results of a dataset of this version")
    return result
