"""The modules of sentence-transformers behind the pooling: Dense, LayerNorm and Normalize.

`maw.models.usage` reads their settings; here they are built with their weights, and written for an export. The
embedding is in float32 here, whatever the encoder's number format. Letters: B texts, C width of an embedding.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from maw.errors import ModelError, reason
from maw.models.model_files import ModelFiles
from maw.models.usage import DENSE_WEIGHTS, PooledModule
from maw.storage.files import write_json


class Dense(nn.Module):
    """activation(W x + b), plus x itself (through a map of its own if the widths differ) with `use_residual`."""

    def __init__(self, settings: PooledModule):
        super().__init__()
        wide, narrow = settings.in_features, settings.out_features
        self.linear = nn.Linear(wide, narrow, bias=settings.bias)
        self.activation = getattr(nn, settings.activation)()
        self.use_residual = settings.use_residual
        self.residual = nn.Linear(wide, narrow, bias=False) if settings.use_residual and wide != narrow else None

    def forward(self, embedding_BC: Tensor) -> Tensor:
        output = self.activation(self.linear(embedding_BC))
        if self.use_residual:
            output = output + (embedding_BC if self.residual is None else self.residual(embedding_BC))
        return output


class LayerNorm(nn.Module):
    """A layer norm, under the names that sentence-transformers gives its weights."""

    def __init__(self, settings: PooledModule):
        super().__init__()
        self.norm = nn.LayerNorm(settings.out_features)

    def forward(self, embedding_BC: Tensor) -> Tensor:
        return self.norm(embedding_BC)


class Normalize(nn.Module):
    """Divides embeddings by their length."""

    def __init__(self, settings: PooledModule):
        super().__init__()

    def forward(self, embedding_BC: Tensor) -> Tensor:
        return F.normalize(embedding_BC, dim=-1)


_CLASSES = {"Dense": Dense, "LayerNorm": LayerNorm, "Normalize": Normalize}


def load_after_pooling(name: str, folder: Path | None, modules: Iterable[PooledModule]) -> nn.Sequential:
    """The modules with their weights, frozen.

    Args:
        name: the model.
        folder: its folder; None for a model of the hub.

    Raises:
        ModelError: weights are missing, cannot be read, or do not fit the settings.
    """
    made, files = nn.Sequential(), ModelFiles(name, folder)
    for each in modules:
        with torch.random.fork_rng(devices=[]):  # the first weights are random, and none of a run's numbers
            module = _CLASSES[each.kind](each)
        if each.kind != "Normalize":
            path = weights_path(files, each)
            try:
                safe = path.suffix == ".safetensors"
                state = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
                module.load_state_dict(state)
            except (OSError, EOFError, RuntimeError, ValueError, TypeError, AttributeError, SafetensorError) as error:
                raise ModelError(f"model {name}: {path}: {reason(error)}") from error
            except Exception as error:
                if type(error).__name__ != "UnpicklingError":
                    raise
                raise ModelError(f"model {name}: {path}: {reason(error)}") from error
        made.append(module.float())
    return made.requires_grad_(False)


def weights_of(name: str, folder: Path | None, modules: Iterable[PooledModule]) -> list[Path]:
    """The files with the weights of all modules that have any."""
    files = ModelFiles(name, folder)
    return [weights_path(files, each) for each in modules if each.kind != "Normalize"]


def weights_path(files: ModelFiles, module: PooledModule) -> Path:
    """The file with a module's weights.

    Raises:
        ModelError: the model has none.
    """
    for name in DENSE_WEIGHTS:
        path = files.path(f"{module.path}/{name}")
        if path is not None:
            return path
    text = f"{module.path}, which modules.json names, has no weights: neither {' nor '.join(DENSE_WEIGHTS)}"
    raise ModelError(f"model {files.name}: {text}")


def write_after_pooling(
    modules: nn.Sequential, settings: Iterable[PooledModule], folder: Path
) -> list[tuple[str, str]]:
    """Writes the modules as sentence-transformers reads them.

    Args:
        folder: of the exported model.

    Returns:
        Kind and path of each, for modules.json.
    """
    written = []
    for number, (module, each) in enumerate(zip(modules, settings, strict=True), start=2):
        path = f"{number}_{each.kind}"
        (folder / path).mkdir()
        write_json(folder / path / "config.json", _settings(each))
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
        if state:
            save_file(state, folder / path / DENSE_WEIGHTS[0], metadata={"format": "pt"})
        written.append((each.kind, path))
    return written


def _settings(module: PooledModule) -> dict[str, Any]:
    if module.kind == "LayerNorm":
        return {"dimension": module.out_features}
    if module.kind == "Normalize":
        return {}
    place = "linear" if module.activation == "Identity" else "activation"
    settings = {
        "in_features": module.in_features,
        "out_features": module.out_features,
        "bias": module.bias,
        "activation_function": f"torch.nn.modules.{place}.{module.activation}",
    }
    return settings | ({"use_residual": True} if module.use_residual else {})
