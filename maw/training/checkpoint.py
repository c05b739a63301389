"""Checkpoints: a folder with `checkpoint.json` and tensors in safetensors, checked byte by byte when it is read.

    from tier_1 import load_checkpoint, cleanup_checkpoints
    model = load_checkpoint("logs/tier1/checkpoints/pystdlib_maw_best")
    cleanup_checkpoints("logs/tier1/checkpoints", keep_best=True)

Only what training changed is stored, so a LoRA checkpoint is a few hundred kilobytes; the pretrained weights are
found again by the model's name and checked by their hash. Beside `weights`, which `load_checkpoint` reads, stands
`training`: optimizers, schedule, random numbers, routers' learners, passage bank and position, all that `--resume`
needs to go on to the same result (`maw.training.state`). `maw.storage.checksummed` says how the folder stays whole.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maw.config.tier1_config import Tier1Config
from maw.errors import DamagedError, MAWError, ModelError, NotFiniteError, reason
from maw.models.model_files import WEIGHTS
from maw.models.retriever import BaselineRetriever, MAWRetriever
from maw.runtime.devices import unwrap
from maw.storage.checksummed_tensors import read_bundle, read_tensors, write_bundle
from maw.storage.files import sha256
from maw.storage.run_record import is_unfinished
from maw.training.state import State, joined, separated

logger = logging.getLogger(__name__)

RECORD, CARD = "checkpoint.json", "README.md"
FIELDS = {"retriever": str, "config": dict, "pretrained_sha256": str | None, "files": dict}
RETRIEVERS = {"baseline": BaselineRetriever, "maw": MAWRetriever}
BEST, LATEST = "best", "latest"
_KIND = re.compile(rf"_({BEST}|{LATEST}|epoch[0-9]+)$")


def save_checkpoint(
    folder: Path,
    model: BaselineRetriever,
    *,
    dataset: str,
    method: str,
    epoch: int,
    best_val_metric: float | None,
    training_history: Sequence[Mapping[str, Any]],
    step: int = 0,
    training: State | None = None,
    run: Mapping[str, Any] | None = None,
    keep_previous: bool = False,
) -> Path:
    """Writes a checkpoint, replacing the one that stands there.

    Args:
        epoch: the epoch, from 1, whose weights the model holds; inside an epoch, the one that is not over.
        best_val_metric: validation nDCG@10 of the best epoch so far; None before the first is over.
        step: batches trained on so far.
        training: what else training needs to go on from here.
        run: which run and which part of it this is, so that no other goes on from it.
        keep_previous: keep the checkpoint that stands there, to fall back on if this one is damaged.

    Raises:
        MAWError: the folder cannot be written.
        NotFiniteError: a weight or anything else that is NaN or infinite; nothing is written.
    """
    model = unwrap(model)
    config = model.config
    weights = model.trained_state() if config.checkpoint_compression else _whole_state(model)
    facts, tensors = separated(training) if training is not None else (None, {})
    _check_finite(folder, step, {"weights": weights, "training": tensors})
    record = {
        "dataset": dataset,
        "method": method,
        "retriever": "maw" if isinstance(model, MAWRetriever) else "baseline",
        "epoch": epoch,
        "step": step,
        "best_val_metric": best_val_metric,
        "pretrained_sha256": _pretrained_sha256(model),
        "run": dict(run) if run else None,
        "config": config.to_dict(),
        "training_history": list(training_history),
        "training": facts,
    }
    groups = {"weights": weights, "training": tensors}
    write_bundle(folder, record, groups, name=RECORD, keep_previous=keep_previous)
    (folder / CARD).unlink(missing_ok=True)  # it tells of the model that stood there
    return folder


def load_checkpoint(folder: Path | str, device: torch.device | str = "cpu") -> BaselineRetriever:
    """A ready retriever, in evaluation mode, with the checkpoint's weights.

    Its record, `epoch` and `training_history` among it, is left in the retriever's `checkpoint` attribute. A latest
    checkpoint that is damaged is passed over with a warning for the one saved before it.

    Args:
        folder: of the checkpoint, such as logs/tier1/checkpoints/msmarco_maw_best.
        device: where the retriever is to be.

    Raises:
        MAWError: no checkpoint there, or a damaged one.
        ModelError: the pretrained model cannot be found, or is not the one that was trained.
    """
    folder = Path(folder)
    record = read_record(folder)
    model = RETRIEVERS[record["retriever"]](Tier1Config.from_dict(record["config"]))
    if record["pretrained_sha256"] != _pretrained_sha256(model):
        raise ModelError(f"{folder}: was trained from other weights than those that {model.spec.name} has now")
    model.load_trained_state(read_tensors(folder, record, "weights"))
    model.checkpoint = record
    return model.to(device).eval()


def load_training(folder: Path, run: Mapping[str, Any]) -> tuple[dict[str, Tensor], State] | None:
    """The weights and the training state of a part of a run; None where it has saved none, or none that is whole.

    Args:
        run: as `save_checkpoint` got it; another run's checkpoint, left in the same folder, is none.
    """
    if not (folder / RECORD).is_file():
        return None
    try:
        record = read_record(folder, repair=True)
        if record.get("run") != dict(run) or record.get("training") is None:
            return None
        state = joined(record["training"], read_tensors(folder, record, "training"))
        return read_tensors(folder, record, "weights"), state
    except DamagedError as error:
        logger.warning("%s; training starts again from its beginning", error)
        return None


def cleanup_checkpoints(folder: Path | str, keep_best: bool = True) -> list[Path]:
    """Removes the checkpoints in a folder such as logs/tier1/checkpoints, and nothing else.

    While a run is unfinished its latest checkpoints stay, since `--resume` goes on from them.

    Args:
        folder: where the checkpoints' own folders lie.
        keep_best: leave those of the best epochs.

    Returns:
        The folders that were removed.

    Raises:
        MAWError: there is no such folder, or a checkpoint cannot be removed.
    """
    folder = Path(folder)
    unfinished = is_unfinished(folder.parent)
    removed = []
    try:
        for path in sorted(folder.iterdir()):
            kind = _KIND.search(path.name)
            if kind is None or path.is_symlink() or not (path / RECORD).is_file():
                continue
            if (keep_best and kind[1] == BEST) or (unfinished and kind[1] == LATEST):
                continue
            shutil.rmtree(path)
            removed.append(path)
    except OSError as error:
        raise MAWError(f"{folder}: cannot be cleaned up: {reason(error)}") from error
    return removed


def read_record(folder: Path, repair: bool = False) -> dict[str, Any]:
    """A checkpoint's record, every byte of the checkpoint checked.

    Raises:
        DamagedError: it is damaged, and there is none saved before it to fall back on.
        MAWError: there is none, or not of this version.
    """
    path = folder / RECORD
    if not path.is_file():
        raise MAWError(f"{path}: there is no such file; a checkpoint is a folder with this file in it")
    record = read_bundle(folder, name=RECORD, repair=repair)
    whole = FIELDS.keys() <= record.keys() and all(isinstance(record[key], kind) for key, kind in FIELDS.items())
    if not whole or record["retriever"] not in RETRIEVERS or "weights" not in record["files"]:
        raise DamagedError(f"{path}: not a checkpoint record of this version")
    return record


def _check_finite(folder: Path, step: int, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
    for group, tensors in groups.items():
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise NotFiniteError(
                    f"{folder.name}: {group} {name} is not finite after step {step}; it is not saved, and what was "
                    "saved before is as it was. Try lower learning rates"
                )


def _whole_state(model: BaselineRetriever) -> dict[str, Tensor]:
    """All weights as they were read and trained: layers that nothing trains may be at work in a narrower format."""
    whole = model
    if model.precision != torch.float32:
        with torch.random.fork_rng(devices=[]):  # what a new model draws must not change what training draws next
            whole = type(model)(replace(model.config, precision="float32"))
        whole.load_trained_state(model.trained_state())
    return {name: each.detach().cpu().clone() for name, each in whole.encoder.state_dict().items()}


def _pretrained_sha256(model: BaselineRetriever) -> str | None:
    """Of the weights' file that the model was built from; None for a model that its hub's name stands for."""
    path = model.spec.folder / WEIGHTS if model.spec.folder else None
    if path is None or not path.is_file():
        return None
    about = path.stat()
    return _sha256_once(path, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=8)
def _sha256_once(path: Path, size: int, changed: int) -> str:
    """The SHA-256 of a file of that size and date; large, and asked for at every save."""
    return sha256(path, ModelError)
