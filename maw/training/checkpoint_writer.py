"""Saves one training: the checkpoints that the user wants, and the one that `--resume` needs.

    writer = CheckpointWriter(config, folder, "pystdlib_maw", dataset="pystdlib", method="maw", run={"id": ...})
    train_retriever(model, ..., writer=writer)
    writer.finish()

`<name>_best` is written after each epoch that is the best so far, `<name>_epochNNN` on request, and `<name>_latest`
after every epoch, every `save_every` minutes, and when a signal asks for it. The latest keeps the one before it to
fall back on. With `keep_only_best_checkpoint` the latest is removed when the result of the training is saved.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from maw.config.tier1_config import Tier1Config
from maw.models.retriever import BaselineRetriever
from maw.runtime import distributed, signals
from maw.runtime.profiler import stage
from maw.storage.run_record import BEST, CHECKPOINTS, LATEST
from maw.training.checkpoint import load_training, save_checkpoint
from maw.training.state import Saved

SECONDS = 60


def checkpoints_folder(config: Tier1Config) -> Path:
    """The folder of a run's checkpoints."""
    return Path(config.log_dir) / CHECKPOINTS


def training_name(config: Tier1Config, dataset: str, method: str, seed: int, fold: int | None) -> str:
    """The name of a training, with which the names of its checkpoint folders begin: pystdlib_maw_seed42_fold1."""
    parts = [dataset, method]
    parts += [f"seed{seed}"] if config.seeds > 1 else []
    parts += [f"fold{fold}"] if fold is not None else []
    return "_".join(parts)


class CheckpointWriter:
    """Writes the checkpoints of one training.

    Args:
        name: the names of the checkpoints begin with it.
        run: identifies the run and its part; the training resumes only from checkpoints with the same value.
        resume: whether to look for a checkpoint to resume from.
        only_latest: write no best checkpoint, nor those of epochs.
    """

    def __init__(
        self,
        config: Tier1Config,
        folder: Path,
        name: str,
        *,
        dataset: str,
        method: str,
        run: Mapping[str, Any] | None = None,
        resume: bool = False,
        only_latest: bool = False,
        before_save: Callable[[], None] = lambda: None,
    ):
        self.config, self.folder, self.name = config, folder, name
        self.about = {"dataset": dataset, "method": method, "run": dict(run or {})}
        self.resume, self.only_latest, self.before_save = resume, only_latest, before_save
        self._saved_at = time.monotonic()

    def load(self) -> Saved | None:
        """What this training saved last; None if there is nothing, or it is damaged."""
        if not self.resume:
            return None
        found = load_training(self._path(LATEST), self.about["run"])
        return None if found is None else Saved(*found)

    def due(self) -> bool:
        """Whether to save after this step: a signal asks for it, or the last save is `save_every` minutes ago."""
        waited = time.monotonic() - self._saved_at
        late = bool(self.config.save_every) and waited >= self.config.save_every * SECONDS
        return signals.save_asked() or signals.stop_asked() or late

    def save(
        self, model: BaselineRetriever, saved: Saved, *, improved: bool = False, epoch_over: bool = False
    ) -> None:
        """Writes the latest checkpoint and, after an epoch, the other wanted ones.

        Raises:
            MAWError: as `maw.training.checkpoint.save_checkpoint`.
        """
        with stage("writing checkpoints"), signals.held_back():
            self.before_save()
            if epoch_over and not self.only_latest:
                wanted = {BEST: improved, f"epoch{saved.epoch:03d}": self.config.save_epoch_checkpoints}
                for kind in (kind for kind, is_wanted in wanted.items() if is_wanted):
                    self._write(kind, model, saved)
            self._write(LATEST, model, saved, keep_previous=True)
        self._saved_at = time.monotonic()

    @distributed.main_only
    def finish(self) -> None:
        """Removes the latest checkpoint if only the best is to be kept; call it when the result is saved."""
        if self.only_latest or self.config.keep_only_best_checkpoint:
            shutil.rmtree(self._path(LATEST), ignore_errors=True)

    @distributed.main_only
    def _write(self, kind: str, model: BaselineRetriever, saved: Saved, keep_previous: bool = False) -> None:
        save_checkpoint(
            self._path(kind),
            model,
            epoch=saved.epoch,
            step=saved.step,
            best_val_metric=saved.best_val_metric,
            training_history=saved.history,
            training=saved.state,
            keep_previous=keep_previous,
            **self.about,
        )

    def _path(self, kind: str) -> Path:
        return self.folder / f"{self.name}_{kind}"
