"""Chooses the validation corpus of the offline preset: the smallest at which no choice loses nDCG@10.

    python -m bench.validation_corpus                        # seeds 42 to 44, 9 trials of lora and maw; hours
    python -m bench.validation_corpus --seeds 42             # goes on where it stopped; finished trials are read
    python -m bench.validation_corpus --quick

Every epoch of every method ranks the validation queries. A smaller corpus (`--val-corpus-size`: judged passages, hard
distractors, the rest by hash, see `maw.data.corpus_sampling`) makes that cheaper, and may choose another epoch or
trial. The rule was fixed before any result: the smallest of 1,000, 1,500, 2,000 and 3,000 passages at which, for every
method and seed, the chosen epoch of the chosen trial has at most .002 less nDCG@10 on the full validation corpus than
the one that the full corpus chooses.

One set of trainings serves all sizes. After each epoch the whole corpus is ranked, and the ranking is saved. A
passage has the same score in every corpus, so the ranking of a part of the corpus is what is left of the saved one.
The trials are those that the full corpus leads to (`maw.experiment.tuning`): a search on a smaller one might try other
rates in its last third.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.common import claim, quick_parser, report, results_folder
from bench.peer import first_queries
from maw.config.methods import find_method
from maw.config.tier1_config import Tier1Config, cache_folder
from maw.data.collection import Collection, RetrievalData
from maw.data.corpus_sampling import choose
from maw.data.registry import load_collection
from maw.encoding.activation_cache import ActivationStore
from maw.errors import NotFiniteError
from maw.evaluation.evaluate import evaluate_retriever
from maw.evaluation.metrics import compute_metrics
from maw.experiment.method_trainer import MethodTrainer
from maw.experiment.tuning import RateSearch, Trial
from maw.runtime.devices import pick_device
from maw.storage.files import read_json, write_atomically, write_json
from maw.training.prepare import prepare_training
from maw.training.train import train_retriever

NDCG, CUTOFF = "ndcg_cut_10", 10
SIZES = (1000, 1500, 2000, 3000)
SEEDS = (42, 43, 44)
TRIALS = 9
METHODS = ("lora", "maw")
MOST_LOST = 0.002
HEADER = (
    "passages",
    "method",
    "seed",
    "trial and epoch, full",
    "trial and epoch, small",
    "nDCG@10 lost",
    "same trial",
)

Scores = np.ndarray
"""nDCG@10 of each trial and epoch, (trials, epochs); NaN for what a diverged trial has not reached."""


class SavedTrials:
    """The trials of one method and seed; finished ones are in files.

    Args:
        folder: of the files.
        trials: how many the search makes.
    """

    def __init__(self, folder: Path, trainer: MethodTrainer, data: Collection, trials: int):
        self.folder, self.trainer, self.data, self.trials = folder, trainer, data, trials
        self.seed = trainer.config.seed

    def run(self) -> list[np.ndarray]:
        """Rankings of each trial's epochs: [(epochs, queries, ranked)] rows of the validation corpus, best first."""
        search = RateSearch(self.trainer.default_rates(self.seed), self.trials, self.seed)
        done: list[Trial] = []
        rankings: list[np.ndarray] = []
        for number in range(1, self.trials + 1):
            rates, how = search.next(done)
            path = self.folder / f"{self.trainer.method.name}_{self.seed}_{number}.npz"
            if not (path.exists() and read_json(path.with_suffix(".json")) == rates):
                rows = self._train(rates)
                write_atomically(path, lambda temporary, rows=rows: _save(temporary, rows))
                write_json(path.with_suffix(".json"), rates)
            with np.load(path) as saved:
                rankings.append(saved["rows"])
            scores = [mean_ndcg(self.data.validation, each) for each in rankings[-1]]
            done.append(Trial(number, rates, how, max(scores, default=None), {}))
        return rankings

    def _train(self, rates: Mapping[str, float]) -> np.ndarray:
        """One trial: the ranking of the full corpus after each epoch, as many passages as `--top-k`."""
        trainer, validation = self.trainer, self.data.validation
        config = replace(trainer.configure(self.seed, rates), diagnostics="none", patience=0)
        model = trainer.build(config)
        found: list[np.ndarray] = []

        def rank(record: Mapping[str, Any], improved: bool) -> None:
            with_all = evaluate_retriever(
                model, validation, config, trainer.device, "validation", activations=trainer.activations
            )
            found.append(with_all.run["rows"].astype(np.int32))

        few = first_queries(validation, 8, config)  # the training's own validation decides nothing here
        try:
            train_retriever(
                model,
                self.data.train,
                few,
                config,
                trainer.device,
                self.data.name,
                trainer.method.name,
                activations=trainer.activations,
                on_epoch=rank,
            )
        except NotFiniteError:
            found.clear()  # a trial that diverged has no score
        return np.stack(found) if found else np.empty((0, len(validation.query_ids), 0), np.int32)


def _save(path: Path, rows: np.ndarray) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, rows=rows)


def restricted(rows_QK: np.ndarray, part: np.ndarray, passages: int) -> np.ndarray:
    """The first ten of each ranking that are in a part of the corpus, (Q, 10).

    Args:
        rows_QK: rows of the corpus, best first; -1 at the end where there are no more.
        part: rows of the part.
        passages: size of the corpus.

    Raises:
        ValueError: a saved ranking is too short to tell.
    """
    inside = np.zeros(passages + 1, bool)
    inside[part] = True
    kept = inside[rows_QK]
    first = np.argsort(~kept, axis=1, kind="stable")[:, :CUTOFF]
    if not np.take_along_axis(kept, first, 1).all() or first.shape[1] < CUTOFF:
        raise ValueError("a saved ranking has fewer than ten passages of the part; rank more with --top-k")
    return np.take_along_axis(rows_QK, first, 1)


def mean_ndcg(data: RetrievalData, rows_QK: np.ndarray) -> float:
    """Mean nDCG@10 of rankings, of which the first ten count."""
    rows = rows_QK[:, :CUTOFF]
    scores = np.broadcast_to(np.arange(rows.shape[1], 0, -1, dtype=np.float32), rows.shape)
    ids, values = data.corpus.rankings(rows, scores)
    return float(compute_metrics(data.query_ids, ids, values, data.qrels, relevance_level=data.relevance_level)[NDCG])


def scores_of(data: RetrievalData, rankings: Sequence[np.ndarray], part: np.ndarray | None = None) -> Scores:
    """nDCG@10 of every epoch on a part of the corpus; on all of it if None."""
    epochs = max(map(len, rankings))
    scores = np.full((len(rankings), epochs), np.nan)
    for trial, rows in enumerate(rankings):
        for epoch, each in enumerate(rows):
            cut = each if part is None else restricted(each, part, len(data.corpus))
            scores[trial, epoch] = mean_ndcg(data, cut)
    return scores


def choice(scores: Scores) -> tuple[int, int]:
    """Trial and epoch, from 0, with the best score: of equal trials and of equal epochs the first, as in a run."""
    trial, epoch = np.unravel_index(np.argmax(np.nan_to_num(scores, nan=-1)), scores.shape)
    return int(trial), int(epoch)


def lost(full: Scores, small: Scores) -> float:
    """nDCG@10 on the full corpus that is lost when the small corpus chooses trial and epoch."""
    return float(full[choice(full)] - full[choice(small)])


def smallest(losses: Mapping[int, Sequence[float]], most: float = MOST_LOST) -> int | None:
    """The smallest size at which no choice loses more than `most`; None if there is none."""
    return min((size for size, each in losses.items() if max(each) <= most), default=None)


def main() -> None:
    """Trains what is missing, and shows every size."""
    parser = quick_parser(__doc__)
    parser.add_argument("--seeds", help="seeds, separated by commas (default: 42,43,44)", type=_numbers, default=SEEDS)
    arguments: argparse.Namespace = parser.parse_args()
    quick = arguments.quick
    small = {"train_samples": 32, "val_samples": 16, "num_epochs": 2, "val_corpus_size": 300} if quick else {}
    sizes, trials, seeds = ((50, 100), 3, (42,)) if quick else (SIZES, TRIALS, arguments.seeds)
    folder = results_folder(quick) / "validation_corpus"
    losses: dict[int, list[float]] = {size: [] for size in sizes}
    rows = []
    for seed in seeds:
        config = Tier1Config.from_preset("offline", **{"seed": seed, "val_corpus_size": "full"} | small)
        device = pick_device(config)
        data = load_collection(config.datasets[0], config)
        with (
            tempfile.TemporaryDirectory() as own,
            ActivationStore(
                Path(own) if quick else cache_folder(config) / "activations", config.prefix_cache_gb, lasting=not quick
            ) as activations,
        ):
            data = prepare_training(data, config, None, activations)
            for method in METHODS:
                trainer = MethodTrainer(find_method(method), config, device, activations)
                rankings = SavedTrials(folder, trainer, data, trials).run()
                full = scores_of(data.validation, rankings)
                for size in sizes:
                    part = np.concatenate(list(choose(data.validation, size, config).values()))
                    found = scores_of(data.validation, rankings, part)
                    losses[size].append(lost(full, found))
                    names = [f"{trial + 1}, {epoch + 1}" for trial, epoch in (choice(full), choice(found))]
                    same = choice(full)[0] == choice(found)[0]
                    rows.append([size, method, seed, *names, losses[size][-1], same])
    rows.sort(key=lambda row: row[:3])
    claims = [
        claim(f"validation on {size:,} passages, largest loss of nDCG@10", "the full corpus", max(each), "<= 0.002")
        for size, each in losses.items()
    ]
    report("validation_corpus", HEADER, rows, results_folder(quick), claims)
    print(f"the smallest size by the rule: {smallest(losses) or 'none'}")  # noqa: T201


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


if __name__ == "__main__":
    main()
