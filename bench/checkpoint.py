"""Measures the cost of saving in trainings of the offline preset: time and disk space.

    python -m bench.checkpoint
    python -m bench.checkpoint --full --methods lora

With `--full`, each method is trained once as `python tier_1.py --preset offline` trains it, else on a tenth of the
queries for one epoch, with a smaller validation corpus. Every save is timed inside that training. So the share of
saving is a ratio of two times of one training, and a temporarily slow machine changes it little. A save is everything
that is written at the end of an epoch: the best checkpoint if the epoch is better than those before, the latest
checkpoint for `--resume`, and the record of stored activations.

Sizes are those of whole folders. A scheme that keeps all weights writes the model and its optimizer as best, as latest
and after every epoch. The default here keeps one checkpoint, of the trained weights.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from bench.common import claim, quick_parser, report, results_folder
from bench.peer import settings
from maw.config.methods import find_method
from maw.config.tier1_config import Tier1Config
from maw.data.collection import Collection
from maw.data.registry import load_collection
from maw.encoding.activation_cache import ActivationStore
from maw.experiment.dataset_state import DatasetState
from maw.experiment.method_trainer import MethodTrainer
from maw.experiment.run_state import RunState
from maw.models.retriever import BaselineRetriever
from maw.storage.run_record import BEST, LATEST
from maw.training.checkpoint import save_checkpoint
from maw.training.checkpoint_writer import CheckpointWriter
from maw.training.prepare import prepare_training
from maw.training.state import Saved

METHODS = ("lora", "full", "maw")
SHORT = {"train_samples": 200, "val_samples": 50, "val_corpus_size": 500, "num_epochs": 1}
QUICK = {"train_samples": 32, "val_samples": 16, "val_corpus_size": 50, "num_epochs": 1}
MOST_SHARE, MOST_SECONDS, LEAST_SAVED = "<= 0.02", "<= 1", ">= 0.9"
MEGABYTE = 1e6
HEADER = (
    "method",
    "trained",
    "s training",
    "saves",
    "s a save",
    "s slowest",
    "share of time",
    "MB kept",
    "MB in progress",
    "MB whole model",
    "MB all kinds, whole",
)


@dataclass
class Cost:
    """Cost of saving one training.

    Attributes:
        training: seconds of the whole training, saves included.
        saves: seconds of each save.
        kept: bytes of the best checkpoint, which stays.
        progress: bytes of the latest one, which goes when the training is over.
        whole: bytes of a checkpoint of all weights.
        trained: how many numbers are trained.
    """

    training: float = 0.0
    saves: list[float] = field(default_factory=list)
    kept: int = 0
    progress: int = 0
    whole: int = 0
    trained: int = 0

    @property
    def share(self) -> float:
        """Of the training's time that saving took."""
        return sum(self.saves) / self.training


class TimedKeeper(CheckpointWriter):
    """Notes how long each save takes."""

    seconds: list[float]
    model: BaselineRetriever
    last: Saved

    def save(self, model: BaselineRetriever, saved: Saved, **how: Any) -> None:
        """Saves, and notes what is needed to weigh it."""
        started = time.perf_counter()
        super().save(model, saved, **how)
        self.seconds.append(time.perf_counter() - started)
        self.model, self.last = model, saved


def measure(name: str, config: Tier1Config, data: Collection, folder: Path) -> Cost:
    """Trains one method with its checkpoints."""
    state = DatasetState(RunState(folder, {"id": "bench"}, resumed=False), 1, config)
    with ActivationStore(folder / "activations", config.prefix_cache_gb) as activations:
        state.track_activations(activations)
        arm = MethodTrainer(find_method(name), config, torch.device("cpu"), activations)
        writer = TimedKeeper(
            config,
            folder,
            name,
            dataset="pystdlib",
            method=name,
            run={"id": "bench", "part": name},
            before_save=state.save_activations,
        )
        writer.seconds = []
        model = arm.build(arm.configure(config.seed))
        started = time.perf_counter()
        arm.train(model, data.train, data.validation, "pystdlib", writer)
        cost = Cost(time.perf_counter() - started, writer.seconds, trained=model.trained_parameters)
    cost.kept, cost.progress = size(folder / f"{name}_{BEST}"), size(folder / f"{name}_{LATEST}")
    cost.whole = whole_size(writer, folder / "whole")
    return cost


def size(folder: Path) -> int:
    """Bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.iterdir())


def whole_size(writer: TimedKeeper, folder: Path) -> int:
    """Bytes of the last checkpoint with all weights in it."""
    model, last = writer.model, writer.last
    model.config = replace(model.config, checkpoint_compression=False)
    save_checkpoint(
        folder,
        model,
        dataset="pystdlib",
        method="",
        epoch=last.epoch,
        best_val_metric=last.best_val_metric,
        training_history=last.history,
        training=last.state,
    )
    return size(folder)


def row(name: str, cost: Cost, epochs: int) -> list[Any]:
    """A line of the table."""
    return [
        name,
        cost.trained,
        cost.training,
        len(cost.saves),
        statistics.median(cost.saves),
        max(cost.saves),
        cost.share,
        cost.kept / MEGABYTE,
        cost.progress / MEGABYTE,
        cost.whole / MEGABYTE,
        cost.whole * (2 + epochs) / MEGABYTE,
    ]


def claims_of(name: str, cost: Cost, epochs: int) -> list[dict[str, Any]]:
    """Limits that the costs must not exceed."""
    saved = 1 - cost.kept / (cost.whole * (2 + epochs))
    return [
        claim(f"{name}, saving, share of the training's time", "the same training", cost.share, MOST_SHARE),
        claim(f"{name}, slowest save, seconds", "", max(cost.saves), MOST_SECONDS),
        claim(f"{name}, checkpoints, share of storage saved", "whole models of every kind", saved, LEAST_SAVED),
    ]


def main() -> None:
    """Measures each method."""
    parser = quick_parser(__doc__)
    parser.add_argument("--methods", default=",".join(METHODS), help="what to train")
    arguments = parser.parse_args()
    config = settings(**({} if arguments.full else QUICK if arguments.quick else SHORT))
    data = prepare_training(load_collection("pystdlib", config), config)
    rows, claims = [], []
    for name in arguments.methods.split(","):
        with tempfile.TemporaryDirectory() as folder:
            cost = measure(name, config, data, Path(folder))
        rows.append(row(name, cost, config.num_epochs))
        claims += claims_of(name, cost, config.num_epochs)
    report("checkpoint", HEADER, rows, results_folder(arguments.quick), claims, shortened=not arguments.full)


if __name__ == "__main__":
    main()
