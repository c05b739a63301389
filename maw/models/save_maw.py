"""A folder with what `maw.add_maw` put into a model, and the model made of it again.

    maw.save_maw(model, "my-maw")
    model = maw.load_maw(AutoModel.from_pretrained(...), "my-maw")

    maw.json                  settings, the model's family and name, hashes
    maw-<hash>.safetensors    what training may change, and all depth kernels and routers

The weights' file is named by its content and written first; maw.json, which names it, is put in place last. So the
folder holds the old model or the new one at every moment.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from maw.errors import MAWError, ModelError
from maw.models.add_maw import add_maw, backbone_of, maw_layers
from maw.storage.files import write_atomically, write_json

logger = logging.getLogger(__name__)

RECORD = "maw.json"
_FORMAT = 1


def save_maw(model: nn.Module, folder: Path | str) -> Path:
    """Writes a model's depth attention and whatever else of it is to be trained: safetensors and JSON.

    The pretrained weights that stay frozen are not written; their hash is.

    Returns:
        The folder; an earlier model in it is replaced.

    Raises:
        ModelError: the model has no depth attention of `add_maw`.
        MAWError: the folder cannot be written.
    """
    folder, settings = Path(folder), _settings(model)
    state = _saved_state(model)
    content = save({name: each.detach().cpu().contiguous() for name, each in state.items()})
    digest = hashlib.sha256(content).hexdigest()
    weights = folder / f"maw-{digest[:16]}.safetensors"
    write_atomically(weights, lambda path: path.write_bytes(content))
    record = {
        "format": _FORMAT,
        "model_type": backbone_of(model)[0].config.model_type,
        "base_model": backbone_of(model)[0].config.name_or_path,
        "frozen_sha256": _frozen_sha256(model),
        "weights": weights.name,
        "weights_sha256": digest,
        "settings": settings,
    }
    write_json(folder / RECORD, record)
    for old in folder.glob("maw-*.safetensors"):
        if old != weights:
            old.unlink(missing_ok=True)
    return folder


def load_maw(model: nn.Module, folder: Path | str) -> nn.Module:
    """Installs in a pretrained model what `save_maw` wrote; one that `add_maw` changed alike takes the weights alone.

    A model whose frozen weights are others than those of the one that was saved is loaded with a warning.

    Returns:
        `model`.

    Raises:
        MAWError: no such folder, or a damaged one.
        ModelError: a model of another family or other sizes.
    """
    folder = Path(folder)
    record = _read_record(folder / RECORD)
    backbone, _ = backbone_of(model)
    if backbone.config.model_type != record["model_type"]:
        kinds = f"a {record['model_type']} model, and this one is of type {backbone.config.model_type}"
        raise ModelError(f"{folder}: was saved from {kinds}")
    state = _read_weights(folder / record["weights"], record["weights_sha256"])
    if not maw_layers(model):
        _install(model, folder / RECORD, record["settings"])
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
        logger.warning("%s: was trained with other frozen weights than this model has", folder)
    return model


def _settings(model: nn.Module) -> dict[str, Any]:
    settings = getattr(backbone_of(model)[0], "maw_settings", None)
    if settings is None:
        raise ModelError("the model has no depth attention of maw.add_maw; a run's retriever has checkpoints instead")
    return settings


def _saved_state(model: nn.Module) -> dict[str, Tensor]:
    """What training may change, and kernels and routers in any case, by name."""
    layers = maw_layers(model).values()
    own = {id(p) for layer in layers for p in (*layer.kernel_parameters(), *layer.router.parameters())}
    return {name: each for name, each in model.named_parameters() if each.requires_grad or id(each) in own}


def _frozen_sha256(model: nn.Module) -> str:
    """Over the values of all parameters that are not saved."""
    sha, saved = hashlib.sha256(), _saved_state(model).keys()
    for name, each in sorted(model.named_parameters(), key=lambda pair: pair[0]):
        if name not in saved:
            sha.update(each.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _install(model: nn.Module, path: Path, settings: dict[str, Any]) -> None:
    try:
        add_maw(model, **settings)
    except TypeError as error:  # a setting that there is not
        raise MAWError(f"{path}: not what save_maw of this version writes: {error}") from error


def _read_record(path: Path) -> dict[str, Any]:
    kinds = {"format": int, "model_type": str, "weights": str, "weights_sha256": str, "settings": dict}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MAWError(f"{path}: {error.strerror}; save_maw writes a folder with this file in it") from error
    except ValueError as error:
        raise MAWError(f"{path}: is not JSON ({error})") from error
    whole = isinstance(record, dict) and all(isinstance(record.get(name), kind) for name, kind in kinds.items())
    if not whole or record["format"] != _FORMAT or Path(record["weights"]).name != record["weights"]:
        raise MAWError(f"{path}: not what save_maw of this version writes")
    return record


def _read_weights(path: Path, digest: str) -> dict[str, Tensor]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MAWError(f"{path}: {error.strerror}; save the model again") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise MAWError(f"{path}: damaged (its SHA-256 is not the one recorded); save the model again")
    try:
        return load(content)
    except SafetensorError as error:
        raise MAWError(f"{path}: not a safetensors file ({error})") from error
