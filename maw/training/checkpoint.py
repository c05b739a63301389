"""Checkpoints: folders with `checkpoint.json` and tensors in safetensors, whose checksums are compared at loading.

    from tier_1 import load_checkpoint, cleanup_checkpoints
    model = load_checkpoint("logs/tier1/checkpoints/pystdlib_maw_best")
    cleanup_checkpoints("logs/tier1/checkpoints", keep_best=True)

Only the trained parameters are stored, so a LoRA checkpoint has a few hundred kilobytes; the pretrained weights are
found by the model's name and checked by their hash. A user's method, or one of PEFT, may also have computed frozen
tensors; these are stored beside what was trained, since another machine may compute others. `load_checkpoint` reads
the tensor file `weights`. The file `training` has what `--resume` needs to reach the same result: optimizers,
schedule, random numbers, learners of routers, passage bank and position (`maw.training.state`). The format is that of
`maw.storage.checksummed_tensors`.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maw.config.method_files import as_reference, load_method, place_of, why_not_found, without_code
from maw.config.methods import Described, Method
from maw.config.paths import absolute, check_there, folders_of, found_again
from maw.config.tier1_config import Tier1Config
from maw.errors import DamagedError, MAWError, ModelError, NotFiniteError, reason
from maw.models.after_pooling import weights_of
from maw.models.model_files import WEIGHTS
from maw.models.retriever import BaselineRetriever, MAWRetriever
from maw.runtime.devices import unwrap
from maw.storage.checksummed_tensors import read_bundle, read_tensors, write_bundle
from maw.storage.files import json_sha, sha256
from maw.storage.run_record import BEST, CHECKPOINT, LATEST, is_unfinished
from maw.training.state import State, joined, separated

logger = logging.getLogger(__name__)

CARD = "README.md"
FIELDS = {"retriever": str, "config": dict, "pretrained_sha256": str | None, "files": dict}
RETRIEVERS = {"baseline": BaselineRetriever, "maw": MAWRetriever}
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
    """Writes a checkpoint, and replaces the one in the folder.

    Args:
        epoch: the epoch of the model's weights, from 1; it may be unfinished.
        best_val_metric: validation nDCG@10 of the best epoch so far; None before the first has ended.
        run: identifies the run and its part; only that can resume from the checkpoint.
        keep_previous: keep the replaced checkpoint, to fall back on if this one gets damaged.

    Raises:
        MAWError: the folder cannot be written.
        NotFiniteError: a weight or another number is NaN or infinite; nothing is written.
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
        **({"adapted_by": Described.facts(model.method)} if model.method and model.method.origin else {}),
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
    write_bundle(folder, record, groups, name=CHECKPOINT, keep_previous=keep_previous)
    (folder / CARD).unlink(missing_ok=True)  # it describes the replaced model
    return folder


def load_checkpoint(
    folder: Path | str,
    device: torch.device | str = "cpu",
    moved: Sequence[str] = (),
    method: type[Method] | str | None = None,
) -> BaselineRetriever:
    """The retriever of a checkpoint, in evaluation mode.

    The retriever's attribute `checkpoint` has the record, with `epoch` and `training_history`. If a latest checkpoint
    is damaged, the one before it is loaded with a warning.

    Args:
        folder: of the checkpoint, such as logs/tier1/checkpoints/msmarco_maw_best.
        device: of the retriever.
        moved: where the folder of the pretrained model is now, if it is neither where it was nor where it would be if
            it had moved together with the run.
        method: the class of a user's method, or FILE.py:CLASS. Code is never loaded from a place that a checkpoint
            names.

    Raises:
        ConfigError: the method cannot be loaded.
        MAWError: there is no checkpoint in the folder, it is damaged, or the folder of its pretrained model is gone.
        ModelError: the pretrained model cannot be loaded, or its weights are not those that were trained; or the model
            was adapted by a user's method, which is not given.
    """
    folder = Path(absolute(folder))
    record = read_record(folder)
    adapted_by = given_method(folder, record.get("adapted_by"), method)
    config = Tier1Config.from_dict(found_again(record["config"], folder.parent.parent, moved))
    local = record["pretrained_sha256"] is not None and not config.model.startswith("packaged:")
    check_there(folder, [config.model] if local else folders_of({"model": config.model}))
    model = RETRIEVERS[record["retriever"]](config, adapted_by)
    if record["pretrained_sha256"] != _pretrained_sha256(model):
        raise ModelError(f"{folder}: was trained from other weights than those that {model.spec.name} has now")
    model.load_trained_state(read_tensors(folder, record, "weights"))
    model.checkpoint = record
    return model.to(device).eval()


def given_method(owner: Path, facts: Mapping[str, Any] | None, given: type[Method] | str | None) -> Method | None:
    """The user's method that adapted a model, as the caller gives it; None for a method of the benchmark.

    Args:
        owner: what needs it, for messages.
        facts: what a checkpoint or a result says of the method; it is compared and never loaded from.
        given: the caller's class or FILE.py:CLASS; None if this process must have loaded it.

    Raises:
        ModelError: it is not given, or is another one.
        ConfigError: it cannot be loaded.
    """
    if facts is None:
        return None if given is None else load_method(as_reference(given))
    name, digest = facts["name"], facts["origin"]["digest"]
    reference = facts["origin"]["reference"]
    method = without_code(name, reference, digest) if given is None else load_method(as_reference(given))
    if method is None or method.origin is None:
        raise ModelError(f"{owner}: was adapted by the method {name}, and {why_not_found(reference)}")
    if method.name != name:
        raise ModelError(f"{owner}: was adapted by the method {name}, and {place_of(method)} is {method.name}")
    if method.origin.digest != digest:
        text = "%s: the code of %s has changed since it was trained (%s, now %s)"
        logger.warning(text, owner, name, digest, method.origin.digest)
    return method


def load_training(folder: Path, run: Mapping[str, Any]) -> tuple[dict[str, Tensor], State] | None:
    """Loads weights and training state to resume from.

    Args:
        run: as for `save_checkpoint`; the checkpoint of another run does not count.

    Returns:
        None if there is no such checkpoint, or it is damaged.
    """
    if not (folder / CHECKPOINT).is_file():
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

    The latest checkpoints of an unfinished run stay, since `--resume` needs them.

    Args:
        folder: has one folder for each checkpoint.
        keep_best: keep the checkpoints of the best epochs.

    Returns:
        The removed folders.

    Raises:
        MAWError: there is no such folder, or a checkpoint cannot be removed.
    """
    folder = Path(folder)
    unfinished = is_unfinished(folder.parent)
    removed = []
    try:
        for path in sorted(folder.iterdir()):
            kind = _KIND.search(path.name)
            if kind is None or path.is_symlink() or not (path / CHECKPOINT).is_file():
                continue
            if (keep_best and kind[1] == BEST) or (unfinished and kind[1] == LATEST):
                continue
            shutil.rmtree(path)
            removed.append(path)
    except OSError as error:
        raise MAWError(f"{folder}: cannot be cleaned up: {reason(error)}") from error
    return removed


def read_record(folder: Path, repair: bool = False) -> dict[str, Any]:
    """The record of a checkpoint; all of its files are compared with their checksums.

    Raises:
        DamagedError: the checkpoint is damaged or of another version, and there is no previous one.
        MAWError: there is no checkpoint.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        raise MAWError(f"{path}: there is no such file; a checkpoint is a folder with this file in it")
    record = read_bundle(folder, name=CHECKPOINT, repair=repair)
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
    """All weights of the encoder in float32, also those of frozen layers that compute in a narrower format."""
    whole = model
    if model.precision != torch.float32:
        with torch.random.fork_rng(devices=[]):  # building a model must not change the random numbers of training
            whole = model.rebuilt(precision="float32")
        whole.load_trained_state(model.trained_state())
    # A state_dict lacks non-persistent buffers.
    return whole.made | {name: each.detach().cpu().clone() for name, each in whole.encoder.state_dict().items()}


def _pretrained_sha256(model: BaselineRetriever) -> str | None:
    """SHA-256 of the file of pretrained weights, or of the hashes of several; None for a model of the hub."""
    path = model.spec.folder / WEIGHTS if model.spec.folder else None
    if path is None or not path.is_file():
        return None
    hashes = []
    for each in (path, *weights_of(model.spec.name, model.spec.folder, model.spec.after_pooling)):
        about = each.stat()
        hashes.append(_sha256_once(each, about.st_size, about.st_mtime_ns))
    return hashes[0] if len(hashes) == 1 else json_sha(hashes)


@lru_cache(maxsize=8)
def _sha256_once(path: Path, size: int, changed: int) -> str:
    """The SHA-256 of a file, computed once for each size and date: the file is large, and every save asks."""
    return sha256(path, ModelError)
