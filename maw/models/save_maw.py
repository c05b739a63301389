"""Saves the depth attention that `maw.add_maw` put into a model, and loads it again.

    maw.save_maw(model, "my-maw")
    model = maw.load_maw(AutoModel.from_pretrained(...), "my-maw")

    maw.json                  settings, the model's family and name, hashes
    maw-<hash>.safetensors    all depth kernels and routers, and all other parameters that training may change

The folder is written and checked as `maw.storage.checksummed_tensors` says.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maw.config.paths import absolute, is_folder
from maw.errors import DamagedError, MAWError, ModelError
from maw.models.add_maw import add_maw, backbone_of, maw_layers
from maw.storage.checksummed_tensors import check_tensor_files, read_bundle, read_tensors, write_bundle
from maw.storage.files import read_json

logger = logging.getLogger(__name__)

RECORD = "maw.json"
_WEIGHTS = "maw"
_FORMAT = 2


def save_maw(model: nn.Module, folder: Path | str) -> Path:
    """Writes a model's depth attention and its other trainable parameters, as safetensors and JSON.

    Frozen pretrained weights are not written, only their hash.

    Returns:
        The folder; an earlier model in it is replaced.

    Raises:
        ModelError: the model has no depth attention of `add_maw`.
        MAWError: the folder cannot be written.
    """
    folder, backbone = Path(folder), backbone_of(model)[0]
    record = {
        "format": _FORMAT,
        "model_type": backbone.config.model_type,
        "base_model": absolute(name) if is_folder(name := backbone.config.name_or_path) else name,
        "frozen_sha256": _frozen_sha256(model),
        "settings": _settings(model),
    }
    state = {name: each.detach().cpu().contiguous() for name, each in _saved_state(model).items()}
    write_bundle(folder, record, {_WEIGHTS: state}, name=RECORD)
    return folder


def load_maw(model: nn.Module, folder: Path | str) -> nn.Module:
    """Installs in a pretrained model what `save_maw` wrote.

    A model that has depth attention of the same settings gets the saved weights. If the model's frozen weights differ
    from those of the saved model, a warning is logged.

    Returns:
        `model`.

    Raises:
        MAWError: there is no such folder, or it is damaged.
        ModelError: the model is of another family, or has other sizes.
    """
    folder = Path(folder)
    record = _read_record(folder)
    backbone, _ = backbone_of(model)
    if backbone.config.model_type != record["model_type"]:
        kinds = f"a {record['model_type']} model, and this one is of type {backbone.config.model_type}"
        raise ModelError(f"{folder}: was saved from {kinds}")
    state = read_tensors(folder, record, _WEIGHTS)
    if not maw_layers(model):
        try:
            add_maw(model, **record["settings"])
        except TypeError as error:  # an unknown setting
            raise MAWError(f"{folder / RECORD}: not what save_maw of this version writes: {error}") from error
    elif _settings(model) != record["settings"]:
        raise ModelError(f"{folder}: the model has depth attention of other settings; load the pretrained model anew")
    wanted = _saved_state(model).keys()
    try:
        unexpected = model.load_state_dict(state, strict=False).unexpected_keys
    except RuntimeError as error:
        raise ModelError(
            f"{folder}: the weights do not fit the model: {str(error).splitlines()[-1].strip()}"
        ) from error
    stray = sorted({*unexpected, *(wanted - state.keys())})
    if stray:
        raise ModelError(f"{folder}: the weights do not fit the model: {stray[0]} is in only one of the two")
    if _frozen_sha256(model) != record["frozen_sha256"]:
        base = record.get("base_model")
        text = "%s: was trained with other frozen weights than this model has, so outputs differ; load it into %s"
        logger.warning(text, folder, base or "the model that it was saved from")
    return model


def _settings(model: nn.Module) -> dict[str, Any]:
    settings = getattr(backbone_of(model)[0], "maw_settings", None)
    if settings is None:
        raise ModelError("the model has no depth attention of maw.add_maw; a run's retriever has checkpoints instead")
    return settings


def _saved_state(model: nn.Module) -> dict[str, Tensor]:
    """Depth kernels, routers and all other trainable parameters, by name."""
    layers = maw_layers(model).values()
    own = {id(p) for layer in layers for p in (*layer.kernel_parameters(), *layer.router.parameters())}
    return {name: each for name, each in model.named_parameters() if each.requires_grad or id(each) in own}


def _frozen_sha256(model: nn.Module) -> str:
    """SHA-256 of the values of all parameters that are not saved."""
    sha, saved = hashlib.sha256(), _saved_state(model).keys()
    for name, each in sorted(model.named_parameters(), key=lambda pair: pair[0]):
        if name not in saved:
            sha.update(each.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    record = read_json(path, MAWError)
    if isinstance(record, dict) and record.get("format") == 1:  # of an earlier version, without a hash of maw.json
        file = {"file": record.get("weights"), "sha256": record.get("weights_sha256")}
        record |= {"format": _FORMAT, "files": {_WEIGHTS: file}}
        check_tensor_files(path, record)
    else:
        record = read_bundle(folder, name=RECORD)
    kinds = {"model_type": str, "frozen_sha256": str, "settings": dict}
    whole = all(isinstance(record.get(name), kind) for name, kind in kinds.items())
    if not whole or record.get("format") != _FORMAT or _WEIGHTS not in record["files"]:
        raise DamagedError(f"{path}: not what save_maw of this version writes")
    return record
