"""Checkpoints: a folder with `checkpoint.json` and the trained parameters in safetensors.

    from tier_1 import load_checkpoint
    model = load_checkpoint("logs/tier1/checkpoints/pystdlib_maw_best")

Only what training changed is stored, so a LoRA checkpoint is a few hundred kilobytes; the pretrained weights are
found again by the model's name and checked by their hash. The weights' file is named by its content and written
first; `checkpoint.json`, which names it, is renamed into place last. So a folder holds the old checkpoint or the new
one at every moment, and never a mixture.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from maw.config import Tier1Config
from maw.errors import MAWError, ModelError
from maw.files import reason, write_atomically, write_json
from maw.model_files import WEIGHTS, sha256
from maw.retriever import BaselineRetriever, MAWRetriever

logger = logging.getLogger(__name__)

RECORD = "checkpoint.json"
FIELDS = {"weights": str, "weights_sha256": str, "retriever": str, "config": dict, "pretrained_sha256": str | None}
RETRIEVERS = {"baseline": BaselineRetriever, "maw": MAWRetriever}


def save_checkpoint(
    folder: Path,
    model: BaselineRetriever,
    *,
    dataset: str,
    method: str,
    epoch: int,
    best_val_metric: float,
    training_history: Sequence[Mapping[str, Any]],
) -> Path:
    """Writes a checkpoint, replacing the one that stands there.

    Args:
        epoch: the epoch, from 1, whose weights the model holds.
        best_val_metric: validation nDCG@10 of the best epoch so far.

    Raises:
        MAWError: the folder cannot be written.
    """
    config = model.config
    weights = model.trained_state() if config.checkpoint_compression else _whole_state(model)
    temporary_name = folder / "weights.safetensors"
    try:
        write_atomically(temporary_name, lambda path: save_file(weights, path))
    except SafetensorError as error:  # what safetensors makes of a full disk
        raise MAWError(f"cannot write {temporary_name}: {reason(error)}; nothing there was changed") from error
    digest = sha256(temporary_name)
    target = folder / f"weights-{digest[:16]}.safetensors"
    temporary_name.replace(target)
    write_json(
        folder / RECORD,
        {
            "dataset": dataset,
            "method": method,
            "retriever": "maw" if isinstance(model, MAWRetriever) else "baseline",
            "epoch": epoch,
            "best_val_metric": best_val_metric,
            "weights": target.name,
            "weights_sha256": digest,
            "pretrained_sha256": _pretrained_sha256(model),
            "config": config.to_dict(),
            "training_history": list(training_history),
        },
    )
    for old in folder.glob("weights-*.safetensors"):
        if old != target:
            old.unlink(missing_ok=True)
    return folder


def load_checkpoint(folder: Path | str, device: torch.device | str = "cpu") -> BaselineRetriever:
    """A ready retriever, in evaluation mode, with the checkpoint's weights.

    Its record, `epoch` and `training_history` among it, is left in the retriever's `checkpoint` attribute.

    Raises:
        MAWError: no checkpoint there, or a damaged one.
        ModelError: the pretrained model cannot be found, or is not the one that was trained.
    """
    folder = Path(folder)
    record = _read_record(folder / RECORD)
    path = folder / record["weights"]
    if path.parent != folder or not path.is_file():
        raise MAWError(f"{folder / RECORD}: its weights, {record['weights']!r}, are not in the folder")
    if sha256(path) != record["weights_sha256"]:
        raise MAWError(f"{path}: damaged (its SHA-256 is not the one recorded); train again or use another checkpoint")
    model = RETRIEVERS[record["retriever"]](Tier1Config.from_dict(record["config"]))
    if record["pretrained_sha256"] != _pretrained_sha256(model):
        raise ModelError(f"{folder}: was trained from other weights than those that {model.spec.name} has now")
    try:
        model.load_trained_state(load_file(path))
    except SafetensorError as error:
        raise MAWError(f"{path}: not a safetensors file ({error})") from error
    model.checkpoint = record
    return model.to(device).eval()


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MAWError(f"{path}: {error.strerror}; a checkpoint is a folder with this file in it") from error
    except ValueError as error:
        raise MAWError(f"{path}: not a checkpoint record ({error})") from error
    whole = isinstance(record, dict) and FIELDS.keys() <= record.keys()
    whole = whole and all(isinstance(record[key], kind) for key, kind in FIELDS.items())
    if not whole or record["retriever"] not in RETRIEVERS:
        raise MAWError(f"{path}: not a checkpoint record of this version")
    return record


def _whole_state(model: BaselineRetriever) -> dict[str, Tensor]:
    """All weights as they were read and trained: layers that nothing trains may be at work in a narrower format."""
    original = type(model)(replace(model.config, precision="float32"))
    original.load_trained_state(model.trained_state())
    return {name: each.detach().cpu().clone() for name, each in original.encoder.state_dict().items()}


def _pretrained_sha256(model: BaselineRetriever) -> str | None:
    """Of the weights' file that the model was built from; None for a model that its hub's name stands for."""
    path = model.spec.folder / WEIGHTS if model.spec.folder else None
    return sha256(path) if path and path.is_file() else None
